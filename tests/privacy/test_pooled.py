"""The release of all sites together: what it costs, how much noise is in it, and against whom."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from prismfl.errors import PrivacyError
from prismfl.moments import Target
from prismfl.privacy.ledger import (
    against,
    against_text,
    as_asked,
    calibrate,
    epsilon_of,
    from_json,
    summary_of,
    to_json,
)
from prismfl.privacy.pooled import plan, pooled_target, share, site_sums, width_of
from prismfl.privacy.release import NORM, grid_of, integer_sums, noisy
from prismfl.privacy.source import Release, as_text, spent_of
from prismfl.settings.schema import Privacy

PRIVACY = Privacy(epsilon=1.0, delta=1e-5)


@pytest.fixture(scope="module")
def grid(feature_map):
    return grid_of(feature_map, 2)


@pytest.mark.parametrize("sites, colluders, dropouts", [(5, 1, 1), (10, 2, 1), (3, 1, 0)])
def test_whoever_is_left_the_honest_sites_noise_is_that_of_the_central_mechanism(grid, sites, colluders, dropouts):
    entry, own = plan(grid, PRIVACY, 6000, sites, colluders, dropouts)
    steps = math.sqrt(2) * NORM
    sigma = calibrate(1.0, 1e-5, grid.entries, steps) * steps
    zeros = np.zeros((sites, 4000), np.int64)
    drawn = np.stack([noisy(row, own, "exact") for row in zeros])
    for gone in range(dropouts + 1):
        honest = drawn[: sites - gone - colluders].sum(0)
        opened = drawn[: sites - gone].sum(0)
        assert honest.std() > 0.96 * sigma  # three σ of an estimate of 4,000
        assert abs(opened.std() / (own * math.sqrt(sites - gone)) - 1) < 0.04
    assert own * math.sqrt(entry.noises) >= sigma > (own - 1) * math.sqrt(entry.noises)
    assert epsilon_of(entry.noise_multiplier, 1e-5, entry.slack) <= 1.0


def test_a_sum_of_discrete_gaussians_is_one_as_nearly_as_the_proof_says():
    for scale, count in ((0.8, 2), (1.0, 3), (1.3, 6)):
        reach = math.ceil(12 * scale * math.sqrt(count))
        numbers = np.arange(-reach, reach + 1)
        one = np.exp(-(numbers.astype(np.longdouble) ** 2) / (2 * scale**2))
        one /= one.sum()
        found = one
        for _ in range(count - 1):
            found = np.convolve(found, one)[reach:-reach]
        wide = np.exp(-(numbers.astype(np.longdouble) ** 2) / (2 * count * scale**2))
        wide /= wide.sum()
        middle = np.abs(numbers) < 4 * scale * math.sqrt(count)  # beyond it the cut at `reach` shows
        factor = found[middle] / wide[middle]
        bound = 8 * count * math.exp(-(math.pi**2) * scale**2)
        assert np.abs(factor - 1).max() <= bound
        if scale < 1:
            assert np.abs(factor - 1).max() > bound / 100  # it is no empty promise


def test_epsilon_grows_with_the_colluders_down_to_a_site_alone(grid):
    entry, own = plan(grid, PRIVACY, 6000, 10, 2, 1)
    told = [against(entry, colluders) for colluders in range(10)]
    assert told == sorted(told) and told[2] <= 1.0 < told[3]
    alone = own / (math.sqrt(2) * NORM)
    assert told[9] == pytest.approx(epsilon_of(alone, 1e-5, entry.slack * entry.noises), rel=1e-9)
    assert "against the server and any 2 of them" in against_text(entry) and f"{told[9]:.4g} against 9" in against_text(
        entry
    )


def test_where_too_little_noise_is_left_it_says_so_and_fails_nowhere(grid):
    entry, _ = plan(grid, Privacy(epsilon=9.8, delta=1e-5), 400, 4, 0, 0)
    assert against(entry, 0) == pytest.approx(9.8, rel=1e-3) and against(entry, 3) == math.inf
    assert "no bound against 3" in against_text(entry)


def test_the_ledger_says_whom_it_holds_against_and_older_entries_still_read(grid):
    entry, _ = plan(grid, PRIVACY, 6000, 10, 2, 1, client=3)
    (back,) = from_json(to_json([entry]))
    assert back == entry and as_asked(back, PRIVACY)
    assert "against the server and any 2 of the 10 sites together" in summary_of([entry])
    old = asdict(entry) | {"mechanism": "gaussian"}
    for name in ("sites", "colluders", "dropouts"):
        del old[name]
    assert from_json([old])[0].sites == 0
    for wrong in ({"sites": 0}, {"mechanism": "gaussian"}, {"colluders": 9}, {"dropouts": -1}):
        with pytest.raises(PrivacyError):
            from_json([asdict(entry) | wrong])
    text = as_text([Release("a" * 32, "d", "d", "2026-01-01T00:00:00Z", entry, "s")])
    assert "one sum of 10 sites" in text


def test_sums_of_one_source_add_up_and_another_attempt_is_paid_for(grid):
    entry, _ = plan(grid, PRIVACY, 6000, 10, 2, 1)
    one = Release("a", "d", "first", "", entry, "s")
    twice = [one, replace(one, id="b", definition="e", dealing="second")]
    assert spent_of(twice, 1e-5).epsilon == pytest.approx(
        epsilon_of(entry.noise_multiplier / math.sqrt(2), 1e-5), rel=1e-3
    )
    many = [replace(one, id=str(index), dealing=str(index)) for index in range(400)]
    assert spent_of(many, 1e-5).epsilon == math.inf  # past what δ pays for: told, not an error
    assert "∞" in as_text(many) or "inf" in as_text(many)


def test_the_opened_sum_is_the_target_of_all_images(feature_map, grid, blobs):
    labels = np.arange(30) % 2
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    total = sum(site_sums(feature_map, grid, blobs[part], labels[part], 0) for part in parts)
    found = pooled_target(total, grid, 30, 3, 0)
    whole = feature_map.target(blobs, labels, classes=2)
    assert isinstance(found, Target) and found.images == 30 and np.allclose(found.shares, whole.shares)
    assert np.abs(found.moments - whole.moments).max() < 1e-5
    # Summed by parts, an image's place among the images is its place in its part: with shifts they would differ.
    assert feature_map.matching.shift == 0
    again = integer_sums(feature_map, grid, blobs, labels)
    assert np.array_equal(total.reshape(again.shape), again)


def test_words_have_room_for_all_images_and_noise(grid):
    assert width_of(60_000, 10, 10**8) == 6
    for images, sites, own in ((1, 2, 0), (4_000_000, 10, 10**8), (10**9, 256, 10**9)):
        assert images * NORM + 40 * math.sqrt(sites) * own < 2 ** (8 * width_of(images, sites, own) - 1)


def test_what_no_shared_noise_gives_is_refused(grid):
    with pytest.raises(PrivacyError, match="exact noise"):
        plan(grid, replace(PRIVACY, noise="fast"), 6000, 10, 2, 1)
    with pytest.raises(PrivacyError, match="below 1"):
        plan(grid, replace(PRIVACY, delta=1e-3), 6000, 10, 2, 1)
    with pytest.raises(PrivacyError, match="noise of"):
        share(900, 9)
