"""The release: norms that are held exactly, noise of the right size, and nothing else that gets out."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save
from scipy.stats import chi2, kstest, norm

from prismfl.errors import DataError, DependencyError, PrivacyError
from prismfl.features.networks import load_features
from prismfl.features.summary import products, products_in
from prismfl.moments import Block, FeatureMap
from prismfl.privacy.ledger import compose
from prismfl.privacy.noise import measurement, noisy
from prismfl.privacy.release import (
    NORM,
    Grid,
    check_sizes,
    enforce,
    from_bytes,
    grid_of,
    integer_sums,
    quantise,
    release,
    release_weights,
    to_bytes,
    to_target,
)
from prismfl.settings.resolve import Matching
from prismfl.settings.schema import Privacy

LABELS = np.arange(30) % 3
FAST = Privacy(epsilon=9.8, delta=1e-3, noise="fast")


def plain_grid(entries, classes=0):
    return Grid(entries + (classes > 0), float(NORM - 10), float(classes > 0) * NORM / 10, classes)


def exact_square(row):
    return sum(int(value) ** 2 for value in row.tolist())


@pytest.fixture(scope="module")
def toned_map():
    """A feature map with tones, whose images are seen at shifts."""
    return FeatureMap(load_features("vgg"), Matching(layers=(0, 5), tone_weight=1.0, shift=1, windows=2), 1, 16)


# ------------------------------------------------------------------------------- enforced norms


rows = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12)
powers = st.sampled_from([1e-6, 0.3, 1.0, 1.001, 7.0, 1e9, 1e30])


@given(rows, powers, st.sampled_from([1, 5, 1000, NORM]))
def test_no_row_is_longer_than_its_bound(row, power, bound):
    before = (torch.tensor([row], dtype=torch.float64) * power * bound).round()
    after = enforce(before.clone(), bound)
    assert exact_square(after[0]) <= bound**2
    assert torch.equal(after, after.round()) and bool((after.abs() <= before.abs()).all())
    assert bool((after * before >= 0).all())
    if exact_square(before[0]) <= bound**2:
        assert torch.equal(after, before)


@given(rows, powers)
def test_whatever_the_features_are_what_is_summed_is_bounded(row, power):
    (found,) = quantise(torch.tensor([row]) * power, plain_grid(len(row)))
    assert exact_square(found) <= NORM**2
    assert bool((found >= 0).all())


pairs = st.integers(1, 12).flatmap(
    lambda size: st.lists(st.lists(st.floats(-1, 1, width=32), min_size=size, max_size=size), min_size=2, max_size=2)
)


@given(pairs, powers)
def test_two_images_are_never_farther_apart_than_the_sensitivity(found, power):
    grid = plain_grid(len(found[0]))
    one, two = quantise(torch.tensor(found) * power, grid)
    assert exact_square(one - two) <= grid.sensitivity**2 * (1 + 1e-12)


def test_unlike_images_reach_the_sensitivity():
    grid = plain_grid(2)
    one, two = quantise(torch.eye(2) * 1.001, grid)
    assert math.sqrt(exact_square(one - two)) == pytest.approx(grid.sensitivity, rel=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused(value):
    with pytest.raises(DataError, match="not finite"):
        quantise(torch.tensor([[0.5, value]]), plain_grid(2))


def test_real_vectors_are_put_on_the_grid_unshrunk(feature_map, toned_map, blobs):
    for features in (feature_map, toned_map):
        grid = grid_of(features, 0)
        vectors = features.vectors(blobs)
        assert 0.8 < float(vectors.norm(dim=1).max()) <= 1 + 1e-5  # tones come to less than 1
        assert unshrunk(vectors, grid)
        longest = float(quantise(vectors, grid).norm(dim=1).max())
        assert 0.8 * grid.scale < longest <= NORM


def unshrunk(vectors, grid):
    wanted = vectors * torch.from_numpy(grid.stretch) * grid.scale
    return torch.allclose(quantise(vectors, grid), wanted.round().double(), rtol=1e-6, atol=1)


def test_no_entry_of_tones_is_below_nought_and_the_sensitivity_stays(toned_map, blobs):
    assert bool((toned_map.vectors(blobs, 3) >= 0).all())
    assert grid_of(toned_map, 0).sensitivity == pytest.approx(NORM * math.sqrt(2))


@pytest.fixture(scope="module")
def summed_up():
    """A feature map with products of a summary, whose entries may be below 0."""
    return FeatureMap(load_features("vgg"), Matching(layers=(0,), pool=2, summary=2), 1, 16)


@given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), powers)
def test_vectors_with_products_are_never_farther_apart_than_the_sensitivity(summed_up, found, power):
    grid = grid_of(summed_up, 0)
    y = torch.tensor(found).view(2, 2) * power
    y = y / y.norm(dim=1, keepdim=True).clamp(min=1)
    rest = torch.zeros(2, summed_up.dimension - products_in(2))
    vectors = torch.cat((rest, products(y) * summed_up.weights[3]), 1)
    one, two = quantise(vectors, grid)
    assert exact_square(one - two) <= 2 * NORM**2
    # Of two labels, what these share is still in one place.
    labelled, apart = grid_of(summed_up, 2), torch.zeros(2, 2, grid_of(summed_up, 2).width, dtype=torch.float64)
    rows = quantise(vectors, labelled)
    apart[0, 0], apart[1, 1] = rows
    apart[1, 0, labelled.common] = apart[1, 1, labelled.common]
    apart[1, 1, labelled.common] = 0
    assert exact_square((apart[0] - apart[1]).flatten()) <= 2 * NORM**2
    assert max(exact_square(one), exact_square(two)) <= grid.bound**2 < NORM**2


def test_products_below_nought_are_released_as_they_are_and_nothing_else_is(summed_up, blobs):
    grid = grid_of(summed_up, 0)
    vectors = summed_up.vectors(blobs)
    signed = vectors[:, -products_in(2) :]
    assert grid.signed == products_in(2) and bool((signed < -1e-3).any())
    assert unshrunk(vectors, grid)
    below = quantise(-vectors, grid)
    assert not below[:, : -grid.signed].any() and bool((below[:, -grid.signed :] > 0).any())
    # Room for what rounding adds costs a ten-thousandth.
    assert grid.bound > NORM * (1 - 1e-4)


# -------------------------------------------------------------------------------- block weights


found_blocks = st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.01, 1)), min_size=1, max_size=8)


@given(found_blocks, st.integers(0, 2**32 - 1))
def test_no_other_weights_of_blocks_leave_less_noise(found, seed):
    blocks = [Block(size, weight) for size, weight in found]
    sizes, asked = (np.array(part, np.float64) for part in zip(*found, strict=True))
    weights = release_weights(blocks)
    assert (weights**2).sum() == pytest.approx((asked**2).sum())

    def noise(squares):
        return (sizes * asked**2 / squares).sum()

    others = np.random.default_rng(seed).dirichlet(np.full(len(found), 20), 20) * (asked**2).sum()
    assert noise(weights**2) <= min(noise(asked**2), *map(noise, others)) * (1 + 1e-9)


def test_blocks_of_one_size_and_weight_are_left_as_they_are():
    np.testing.assert_allclose(release_weights([Block(50, 0.5)] * 4), 0.5)


def test_each_block_has_the_noise_that_its_weight_says(feature_map):
    grid = grid_of(feature_map, 3)
    drawn = noisy(np.zeros((3, grid.width), np.int64), NORM, "fast")
    drawn[:, -1] = 100 * NORM  # counts above the noise, that no label is dropped
    errors = to_target(drawn, grid, NORM, 1).moments.reshape(3, -1) * (grid.scale / NORM)
    blocks = feature_map.blocks
    parts = np.split(errors, np.cumsum([block.size for block in blocks])[:-1], axis=1)
    for part, block, weight in zip(parts, blocks, release_weights(blocks), strict=True):
        assert part.std() == pytest.approx(block.weight / weight, rel=6 / math.sqrt(part.size))
    assert (errors**2).sum() == pytest.approx(grid.noise, rel=0.05)
    assert grid.noise < 0.95 * 3 * feature_map.dimension


# ----------------------------------------------------------------------------------------- sums


def test_sums_are_the_moments_before_noise(feature_map, toned_map, summed_up, blobs):
    for features in (feature_map, toned_map, summed_up):
        for labels, classes in ((LABELS, 3), (LABELS, 0)):
            grid = grid_of(features, classes)
            sums = integer_sums(features, grid, blobs, labels)
            found = to_target(sums, grid, 1, 30)
            wanted = features.target(blobs, labels, classes)
            np.testing.assert_allclose(found.moments, wanted.moments, atol=2e-6)
            np.testing.assert_allclose(found.shares, wanted.shares)


def test_products_of_all_labels_are_summed_once_and_stay_where_a_label_is_dropped(summed_up, blobs):
    grid, whole = grid_of(summed_up, 3), grid_of(summed_up, 0)
    sums = integer_sums(summed_up, grid, blobs, LABELS)
    assert grid.common.stop - grid.common.start == 3 and not sums[1:, grid.common].any()
    together = integer_sums(summed_up, whole, blobs, LABELS)[0, whole.common]
    np.testing.assert_allclose(sums[0, grid.common] / grid.scale, together / whole.scale, rtol=1e-5)
    # A person of one image is that image, and one of two their mean, whatever their labels.
    np.testing.assert_array_equal(
        integer_sums(summed_up, grid, blobs[:1], LABELS[:1], np.zeros(1, np.int64)),
        integer_sums(summed_up, grid, blobs[:1], LABELS[:1]),
    )
    people, twice = np.array([5, 5]), np.array([2, 1])
    mean = integer_sums(summed_up, grid, blobs[:2], twice, people)
    each = integer_sums(summed_up, grid, blobs[:2], twice)
    assert int(np.abs(mean - each / 2).max()) <= 1
    # A label that is not heard takes its own moments along, and not what it keeps for the others.
    sums[0, -1] = 0
    sums[1, grid.common] = 10**9
    found = to_target(sums, grid, 1, 30).moments.reshape(3, -1)[:, -grid.signed :]
    assert not found[0, : -grid.shared].any() and found[0, -grid.shared :].any() and not found[1, -grid.shared :].any()


def test_replacing_an_image_moves_the_sum_by_its_own_two_vectors(feature_map, blobs):
    """Exactly: no other image's part changes by one step."""
    grid = grid_of(feature_map, 3)
    before = integer_sums(feature_map, grid, blobs, LABELS)
    for place, other, tag in ((0, 17, 2), (16, 3, 1), (29, 0, 0)):
        images, labels = blobs.copy(), LABELS.copy()
        images[place], labels[place] = blobs[other], tag
        moved = integer_sums(feature_map, grid, images, labels) - before
        batch = slice(place // 16 * 16, place // 16 * 16 + 16)
        old, new = (
            quantise(feature_map.vectors(store[batch]), grid)[place % 16].numpy().astype(np.int64)
            for store in (blobs, images)
        )
        wanted = np.zeros_like(before)
        wanted[LABELS[place]] -= old
        wanted[tag] += new
        np.testing.assert_array_equal(moved, wanted)
        assert 0 < exact_square(moved.ravel()) <= 2 * NORM**2


@pytest.mark.parametrize(
    "labels", [np.full(30, 3), np.full(30, -1), np.zeros(29, np.int64), np.zeros((30, 1), np.int64)]
)
def test_labels_that_were_not_agreed_on_are_refused(feature_map, blobs, labels):
    with pytest.raises(DataError, match="labels"):
        integer_sums(feature_map, grid_of(feature_map, 3), blobs, labels)


# ---------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("sampler", ["exact", "fast"])
@pytest.mark.parametrize("scale", [1000, 12_345_678])
def test_noise_is_normal_of_the_stated_size(sampler, scale):
    values = np.arange(4000, dtype=np.int64).reshape(2, 2000) * 10**9
    found = (noisy(values, scale, sampler) - values).ravel() / scale
    assert found.shape == (4000,)
    assert kstest(found, norm.cdf).pvalue > 1e-4
    assert chi2.ppf(1e-5, 4000) < (found**2).sum() < chi2.ppf(1 - 1e-5, 4000)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.08


@pytest.mark.parametrize("sampler", ["exact", "fast"])
def test_noise_follows_no_seed(sampler):
    draws = []
    for _ in range(2):
        np.random.seed(1)
        torch.manual_seed(1)
        draws.append(noisy(np.zeros(50, np.int64), 10**6, sampler))
    assert not np.array_equal(*draws)


def test_the_samplers_own_account_agrees():
    """OpenDP states zero-concentrated privacy: ρ = Δ² / 2σ²."""
    assert measurement(2000.0).map(1000.0) == pytest.approx(0.125)


def test_exact_noise_needs_opendp_and_fast_noise_does_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    with pytest.raises(DependencyError, match="pip install opendp"):
        noisy(np.zeros(3, np.int64), 1000, "exact")
    with pytest.raises(DependencyError):
        check_sizes(Privacy(epsilon=1.0), [600])
    check_sizes(Privacy(epsilon=1.0, noise="fast"), [600])


# -------------------------------------------------------------------------------------- releases


def test_a_release_says_what_it_cost(feature_map, blobs):
    found = release(feature_map, blobs, LABELS, 3, Privacy(epsilon=9.8, delta=1e-5), client=4).entry
    grid = grid_of(feature_map, 3)
    assert (found.client, found.images, found.sampler, found.dimension) == (4, 30, "exact", grid.entries)
    assert found.noise_multiplier == pytest.approx(0.508162, rel=1e-3)
    assert found.sensitivity == pytest.approx(math.sqrt(2) / 30, rel=0.01)
    assert {"opendp", "dp-accounting", "prismfl"} <= set(found.versions)
    assert 9.7 < compose([found]).epsilon <= 9.8
    alike = release(feature_map, blobs, LABELS, 3, Privacy(epsilon=9.8, delta=1e-5, noise="fast")).entry
    assert alike.sampler == "fast" and alike.slack == 0


def test_noise_grows_with_the_images_of_a_person(feature_map, blobs):
    one, three = (
        release(feature_map, blobs, LABELS, 3, Privacy(epsilon=5.0, images_per_person=k, noise="fast")).entry
        for k in (1, 3)
    )
    assert three.sigma == pytest.approx(3 * one.sigma) and three.images_per_person == 3
    assert three.sensitivity == pytest.approx(3 * one.sensitivity)


def test_noise_is_without_bias(feature_map, blobs):
    grid = grid_of(feature_map, 3)
    sums = integer_sums(feature_map, grid, blobs, LABELS)
    scale = 10**8
    mean = np.mean([noisy(sums, scale, "fast") for _ in range(40)], 0)
    error = (mean - sums) / (scale / math.sqrt(40))
    assert abs(error.mean()) < 5 / math.sqrt(error.size)
    assert error.std() == pytest.approx(1, abs=0.05)


def test_a_release_is_near_the_moments(feature_map, blobs):
    images, labels = np.tile(blobs, (20, 1, 1, 1)), np.tile(LABELS, 20)
    found = release(feature_map, images, labels, 3, FAST)
    wanted = feature_map.target(images, labels, 3)
    assert found.target.moments.dtype == np.float32
    error = found.target.moments - wanted.moments
    assert (error**2).sum() == pytest.approx(found.entry.sigma**2 * grid_of(feature_map, 3).noise, rel=0.1)
    np.testing.assert_allclose(found.target.shares, wanted.shares, atol=0.1)
    assert found.target.shares.sum() == pytest.approx(1) and found.target.images == 600


def test_sums_over_entries_of_a_release_have_no_bias(feature_map, blobs):
    """What a search follows: clamped entries, many of them near 0, would all err upwards."""
    images, labels = np.tile(blobs, (20, 1, 1, 1)), np.tile(LABELS, 20)
    found = release(feature_map, images, labels, 3, FAST)
    error = found.target.moments - feature_map.target(images, labels, 3).moments
    assert abs(error.sum()) < 5 * found.entry.sigma * len(error) ** 0.5


def test_labels_that_a_client_has_none_of_are_released_too_and_then_dropped(feature_map, blobs):
    images = np.tile(blobs, (20, 1, 1, 1))
    found = release(feature_map, images, np.full(600, 4), 40, Privacy(epsilon=9.8, delta=1e-4, noise="fast"))
    assert found.entry.dimension == 40 * (feature_map.dimension + 1)
    kept = found.target.shares > 0
    assert kept[4] and kept.sum() < 8 and found.target.shares[4] > 0.8
    assert not found.target.moments.reshape(40, -1)[~kept].any()


def test_labels_that_all_drown_are_kept_as_they_are(feature_map):
    grid = grid_of(feature_map, 3)
    drawn = np.zeros((3, grid.width), np.int64)
    drawn[:, -1] = [30, 10, -5]
    np.testing.assert_allclose(to_target(drawn, grid, 1000, 30).shares, [0.75, 0.25, 0])
    drawn[:, -1] = -1
    np.testing.assert_allclose(to_target(drawn, grid, 1000, 30).shares, np.full(3, 1 / 3))


def test_every_release_has_noise_of_its_own(feature_map, blobs):
    one, two = (release(feature_map, blobs, LABELS, 0, FAST).target.moments for _ in range(2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("privacy", "sizes", "says"),
    [
        (Privacy(epsilon=1.0), [10, 1], "client 1 with 1 images"),
        (Privacy(epsilon=1.0), [0], "client 0 with 0 images"),
        (Privacy(epsilon=1.0, delta=1e-2), [50, 200], "below 1 / 200"),
        (Privacy(epsilon=1.0, delta=0.01), [100], "below 1 / 100"),
        (Privacy(epsilon=60.0), [100], "smaller ε"),
    ],
)
def test_what_cannot_be_guaranteed_is_refused(privacy, sizes, says):
    with pytest.raises(PrivacyError, match=says.replace("/", "[/]")):
        check_sizes(privacy, sizes)


def test_impossible_privacy_is_refused_before_an_image_is_looked_at(monkeypatch, feature_map, blobs):
    def never(*_):
        raise AssertionError("looked")

    monkeypatch.setattr(FeatureMap, "vectors", never)
    with pytest.raises(PrivacyError):
        release(feature_map, blobs, LABELS, 3, Privacy(epsilon=1.0, delta=0.2))


# ---------------------------------------------------------------------------------------- storage


def test_a_stored_release_is_the_same_release(feature_map, blobs):
    found = release(feature_map, blobs, LABELS, 3, FAST)
    again = from_bytes(to_bytes(found))
    assert again.entry == found.entry and again.target.images == 30
    np.testing.assert_array_equal(again.target.moments, found.target.moments)
    np.testing.assert_array_equal(again.target.shares, found.target.shares)


@pytest.mark.parametrize("name", ["moments", "shares", "images", "entry"])
def test_a_damaged_release_is_refused_rather_than_drawn_again(feature_map, blobs, name):
    raw = to_bytes(release(feature_map, blobs, LABELS, 3, FAST))
    arrays = load(raw)
    without = save({key: array for key, array in arrays.items() if key != name})
    short = save(arrays | {"entry": arrays["entry"][:-3]})
    for damaged in (without, short, raw[:-4], b""):
        with pytest.raises(PrivacyError, match=r"twice|ledger"):
            from_bytes(damaged)


@pytest.mark.parametrize("changes", [{"pool": 4}, {"second_weight": 0.0}, {"pool": 2, "second_weight": 0.0}])
def test_smaller_maps_have_vectors_of_norm_one_too(blobs, changes):
    features = FeatureMap(load_features("vgg"), Matching(layers=(0, 3), **changes), 1, 16)
    vectors = features.vectors(blobs)
    assert vectors.shape == (30, features.dimension)
    np.testing.assert_allclose(vectors.norm(dim=1).numpy(), 1, atol=1e-5)
    assert bool((vectors >= 0).all())
    np.testing.assert_allclose(vectors.mean(0).numpy(), features.target(blobs).moments, atol=1e-5)
