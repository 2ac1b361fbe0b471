"""Where it is known whose each image is, a release protects all images of a person, and counts persons."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.data.images import ImageSet
from prismfl.errors import PrivacyError
from prismfl.privacy import release, store
from prismfl.privacy.audit import audit_release, noise_at_size
from prismfl.privacy.ledger import PERSON_UNIT, compose, from_json, summary_of, to_json
from prismfl.privacy.pooled import plan
from prismfl.privacy.probe import SIDES, PixelFeatures
from prismfl.privacy.release import NORM, covered_note, grid_of, integer_sums
from prismfl.privacy.source import SourceLedger
from prismfl.privacy.store import Releases
from prismfl.settings.schema import Privacy

FAST = Privacy(epsilon=5.0, delta=1e-3, noise="fast")
CLASSES = 3


def made(counts, seed=0):
    """Images of persons with so many each, of mixed labels, some of them longer than the bound."""
    rng, total = np.random.default_rng(seed), sum(counts)
    images = rng.integers(0, 256, (total, 1, *SIDES)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, total), np.repeat(np.arange(len(counts)), counts)


def sums_of(images, labels, people, features=None):
    features = features or PixelFeatures()
    return integer_sums(features, grid_of(features, CLASSES), images, labels, people)


counts = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(counts, st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_a_person_of_any_number_of_images_moves_the_sum_no_farther_than_one_image(others, mine, seed):
    sums = []
    for count, draw in ((1, seed), (mine, seed + 1)):
        rest, person = made(others), made([count], draw)
        images, labels = (np.concatenate(pair) for pair in zip(rest[:2], person[:2], strict=True))
        sums.append(sums_of(images, labels, np.concatenate((rest[2], np.full(count, len(others))))))
    moved = (sums[0] - sums[1]).astype(object)
    assert (moved**2).sum() <= 2 * NORM**2, "exact, in whole numbers"


@given(counts, st.integers(0, 1000))
def test_the_sum_is_that_of_persons_means_in_any_order(given_counts, seed):
    images, labels, people = made(given_counts)
    alone = [sums_of(images[people == p], labels[people == p], None) // n for p, n in enumerate(given_counts)]
    shuffled = np.random.default_rng(seed).permutation(len(images))
    found = sums_of(images[shuffled], labels[shuffled], people[shuffled] * 7)
    assert np.array_equal(found, sum(alone))


def test_of_one_image_each_it_is_the_sum_of_images(feature_map):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (20, 1, 16, 16)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, 20)
    one, two = (sums_of(images, labels, people, feature_map) for people in (None, np.arange(20)))
    assert np.abs(one - two).max() <= 20 * 64, "but for the last bits of other batches"  # of 2^24 steps


def test_the_ledger_says_persons_and_noise_is_that_of_their_number(tmp_path):
    images, labels, people = made([5, 1, 30, 2] * 5)
    mine = ImageSet(images, labels, ("a", "b", "c"), people=people)
    asked = replace(FAST, images_per_person=4)
    _, released = Releases(PixelFeatures(), CLASSES, asked, SourceLedger(tmp_path / "l.jsonl")).of(0, mine)
    entry = released.entry
    assert (entry.images, entry.unit, entry.images_per_person, released.target.images) == (20, PERSON_UNIT, 1, 20)
    grid = grid_of(PixelFeatures(), CLASSES)
    assert entry.sensitivity == pytest.approx(math.sqrt(2) * NORM / (20 * grid.scale))
    assert compose([entry]).epsilon == pytest.approx(5.0) and from_json(to_json([entry])) == (entry,)
    assert "for all images of one person" in summary_of([entry])
    # Beside releases for so many images of a person, one of persons costs what it did.
    of_images = release.entry_of(PixelFeatures(), CLASSES, asked, 500)
    both = compose([entry, of_images])
    alike = compose([entry, replace(of_images, images_per_person=1, sensitivity=of_images.sensitivity / 4,
                                    sigma=of_images.sigma / 4)])  # fmt: skip
    assert both.epsilon == pytest.approx(alike.epsilon) and "up to 4 images" in summary_of([entry, of_images])
    with pytest.raises(PrivacyError, match="unit"):
        from_json([to_json([entry])[0] | {"unit": "something else"}])
    assert covered_note(asked, persons=True) and not covered_note(FAST, persons=True)


def test_other_persons_are_another_release(tmp_path):
    images, labels, people = made([2] * 20)
    mine = ImageSet(images, labels, ("a", "b", "c"), people=people)
    releases = Releases(PixelFeatures(), CLASSES, FAST, SourceLedger(tmp_path / "l.jsonl"))
    names = [releases.of(0, one)[0] for one in (mine, mine, replace(mine, people=None))]
    assert names[0] == names[1] != names[2]


def test_a_sum_of_sites_counts_the_persons_of_those_that_know_them():
    grid = grid_of(PixelFeatures(), CLASSES)
    asked = Privacy(epsilon=1.0)
    entry, own = plan(grid, asked, 60_000, 10, 2, 1, persons=True)
    plain, same = plan(grid, asked, 60_000, 10, 2, 1)
    assert own == same and entry.noise_multiplier == plain.noise_multiplier and entry.whole_persons


def test_the_attack_finds_nothing_in_releases_of_persons_and_what_is_planted():
    asked = Privacy(epsilon=9.8, delta=1e-5, noise="fast")
    found = audit_release(asked, 60, 1_000, whole_persons=3)
    assert not found.defects, found
    real_sums, real_release = release.integer_sums, store.release

    def added_up(features, grid, images, labels, _people):
        return real_sums(features, grid, images, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "integer_sums", added_up)
        assert audit_release(asked, 24, 1_000, whole_persons=3).broken, "a person's images all count"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "release", lambda *told: real_release(*told[:6], None))
        assert audit_release(asked, 60, 1_000, whole_persons=3).broken, "noise for an image, not for a person"


@pytest.mark.usefixtures("full_world")
def test_a_release_of_persons_by_a_real_feature_map_has_the_noise_that_it_needs(feature_map):
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16), np.uint8)
    mine = ImageSet(images, np.arange(60) % 2, ("a", "b"), people=np.arange(60) // 3)
    assert 0.97 < noise_at_size(feature_map, mine, 2, replace(FAST, delta=1e-2)) < 1.04
