"""The AUC of membership against its definition, copies that are found, and samples that tell nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from prismfl.errors import DataError, SettingError
from prismfl.metrics import copying as module
from prismfl.metrics.copying import auc, membership, nearest_images
from prismfl.metrics.distances import judge_features

values = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@given(values, values)
def test_the_area_is_its_definition_and_the_usual_one(near, far):
    wanted = np.mean([(a < b) + (a == b) / 2 for a in near for b in far])
    found = auc(np.array(near), np.array(far))
    assert found == pytest.approx(wanted)
    truth = [0] * len(near) + [1] * len(far)
    assert found == pytest.approx(roc_auc_score(truth, near + far))
    assert auc(np.array(far), np.array(near)) == pytest.approx(1 - found)


def features(count, seed, dimension=8):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def test_the_area_is_that_of_the_least_of_all_distances():
    members, others, samples = features(7, 0), features(9, 1), features(8, 2)
    near, far = (np.linalg.norm(one[:, None] - samples[None], axis=2).min(1) for one in (members, others))
    found = membership(members, others, samples)
    assert found.mean == pytest.approx(auc(near, far)) and found.interval[0] < found.mean < found.interval[1]


def test_copies_give_members_away_and_fresh_samples_do_not():
    members, others = features(200, 0), features(200, 1)
    found = membership(members, others, members + np.float32(0.01))
    assert found.mean > 0.99 and found.interval[0] > 0.97
    fresh = membership(members, others, features(300, 2))
    assert fresh.interval[0] < 0.5 < fresh.interval[1]
    assert fresh.interval[1] - fresh.interval[0] < 0.2


def test_images_that_were_copied_are_found_by_the_judge(blobs):
    noise = np.random.default_rng(0).integers(0, 256, (20, 1, 16, 16), np.uint8)
    found = membership(*map(judge_features, (blobs[:10], noise, blobs[:10])))
    assert found.mean == 1.0


@pytest.mark.parametrize("counts", [(1, 5, 5), (5, 1, 5), (5, 5, 0)])
def test_too_few_images_are_refused(counts):
    with pytest.raises(DataError, match="at least 2"):
        membership(*(features(count, 0) for count in counts))


# ------------------------------------------------------------------------------------ nearest images


def pictures(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 16)).astype(np.uint8)


@pytest.mark.parametrize("space", ["pixels", "judge"])
def test_the_nearest_image_is_found_in_blocks_as_at_once(monkeypatch, space):
    members, samples = pictures(11, 0), pictures(5, 1)
    monkeypatch.setattr(module, "_BLOCK", 4)
    rows, far = nearest_images(members, samples, space)
    places = [
        judge_features(one) if space == "judge" else one.reshape(len(one), -1) / 255 for one in (members, samples)
    ]
    wanted = np.linalg.norm(places[1][:, None] - places[0][None], axis=2)
    np.testing.assert_array_equal(rows, wanted.argmin(1))
    np.testing.assert_allclose(far, wanted.min(1), rtol=1e-4)


def test_a_copy_is_its_own_nearest_image():
    members = pictures(9, 0)
    rows, far = nearest_images(members, members[[7, 2]], "pixels")
    assert rows.tolist() == [7, 2] and far == pytest.approx([0, 0], abs=1e-3)


def test_another_space_or_no_image_is_refused():
    with pytest.raises(SettingError, match="one of judge, pixels"):
        nearest_images(pictures(2, 0), pictures(2, 1), "colour")
    for members, samples in ((0, 2), (2, 0)):
        with pytest.raises(DataError, match="at least one of each"):
            nearest_images(pictures(members, 0), pictures(samples, 1))
