"""Moments and their gradients against plain autograd, the bound on their norm, and the residual."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prismfl.errors import DataError, SettingError
from prismfl.features.framing import Framing, mean_colours, tone_histograms
from prismfl.features.moving import MovingResidual
from prismfl.features.networks import load_features
from prismfl.features.vgg19 import random_vgg
from prismfl.kernels import fused
from prismfl.kernels.matching import UnitMoments
from prismfl.moments import FeatureMap, distance, label_groups, label_means, label_shares
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import Matching


@pytest.fixture(scope="module")
def vgg():
    return load_features("vgg")


def noise(count, channels=1, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), np.uint8)


def scaled(images):
    return torch.from_numpy(images).float() / 127.5 - 1


# ---------------------------------------------------------------------------------------- moments


def maps_with_an_empty_row():
    phi = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    phi[2] = 0
    return phi


def plain_moments(phi, groups=None):
    """The definition, row by row, with 0/0 = 0: means, or sums weighted by groups `[G, B]`."""
    units = torch.stack([row / row.norm() if row.any() else row * 0 for row in phi])
    squares = torch.stack([row**2 / (row**2).norm() if row.any() else row * 0 for row in phi])
    return (units.mean(0), squares.mean(0)) if groups is None else (groups @ units, groups @ squares)


def whole(phi):
    """One group: the mean of all rows."""
    return torch.full((1, len(phi)), 1 / len(phi), dtype=phi.dtype)


def five_groups():
    """Weights of four rows in five groups: plain, shared, negative, and two without any row."""
    groups = torch.zeros(5, 4, dtype=torch.float64)
    groups[0], groups[2, 1], groups[3, 1:] = 0.25, 0.5, torch.tensor([0.2, 0.7, -0.4])
    return groups


GROUPS = [whole(torch.zeros(4, 1, dtype=torch.float64)), torch.eye(4, dtype=torch.float64), five_groups()]


@pytest.mark.parametrize("groups", GROUPS, ids=["mean", "rows", "five"])
def test_unit_moments_are_their_definition(groups):
    phi = maps_with_an_empty_row()
    for found, wanted in zip(UnitMoments.apply(phi, groups), plain_moments(phi, groups), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("groups", GROUPS, ids=["mean", "rows", "five"])
def test_gradient_of_unit_moments_is_that_of_plain_autograd(groups):
    first, second = torch.randn(2, len(groups), 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for moments in (UnitMoments.apply, plain_moments):
        phi = maps_with_an_empty_row().requires_grad_()
        sums = moments(phi, groups)
        ((sums[0] * first).sum() + (sums[1] * second).sum()).backward()
        gradients.append(phi.grad)
    torch.testing.assert_close(*gradients)
    assert not gradients[0][2].any()


@pytest.mark.parametrize("groups", GROUPS, ids=["mean", "rows", "five"])
def test_gradient_of_unit_moments_passes_gradcheck(groups):
    phi = maps_with_an_empty_row()[[0, 1, 3]].requires_grad_()
    assert torch.autograd.gradcheck(UnitMoments.apply, (phi, groups[:, [0, 1, 3]]))


def test_an_empty_row_leaves_the_other_rows_gradients_alone():
    phi = maps_with_an_empty_row()
    rows, empty = phi[:2].requires_grad_(), phi[2:3]
    groups = five_groups()[:, :3]
    assert torch.autograd.gradcheck(lambda rows: UnitMoments.apply(torch.cat((rows, empty)), groups), (rows,))


@pytest.mark.parametrize("height", [1e-3, 1e-5])
def test_small_maps_have_finite_gradients(height):
    phi = torch.full((2, 4), height).requires_grad_()
    first, second = UnitMoments.apply(phi, whole(phi))
    (first[0, 0] + second[0, 1]).backward()
    assert torch.isfinite(phi.grad).all()
    assert phi.grad.any()


@pytest.mark.parametrize("height", [1e-7, 1e-9, 1e-16])
def test_tiny_maps_have_finite_gradients(height):
    phi = torch.full((2, 4), height).requires_grad_()
    first, second = UnitMoments.apply(phi, whole(phi))
    (first[0, 0] + second[0, 1]).backward()
    assert torch.isfinite(phi.grad).all()


# ----------------------------------------------------------------------------------------- labels


batches = st.integers(1, 9).flatmap(
    lambda classes: st.tuples(st.just(classes), st.lists(st.integers(0, classes - 1), min_size=1, max_size=40))
)


@given(batches)
def test_groups_part_the_mean_of_a_batch_by_label(batch):
    classes, labels = batch[0], torch.tensor(batch[1])
    groups = label_groups(labels, classes)
    assert groups.shape == (classes, len(labels)) and groups.dtype == torch.float32
    torch.testing.assert_close(groups.sum(0), label_groups(labels, 0)[0])
    for label in range(classes):
        assert torch.equal(groups[label] > 0, labels == label)
    torch.testing.assert_close(groups.sum(1).double(), torch.from_numpy(label_shares(labels.numpy(), classes)))


@given(batches)
def test_means_by_label_are_groups_over_their_shares(batch):
    classes, labels = batch[0], torch.tensor(batch[1])
    means = label_means(labels, classes)
    present = torch.bincount(labels, minlength=classes) > 0
    torch.testing.assert_close(means.sum(1), present.float())
    values = torch.arange(len(labels)).float()
    for label in labels.unique():
        torch.testing.assert_close(means[label] @ values, values[labels == label].mean())
    shares = torch.from_numpy(label_shares(labels.numpy(), classes)).float()
    torch.testing.assert_close(means * shares[:, None], label_groups(labels, classes))


def test_without_classes_there_is_one_group_whatever_the_labels():
    labels = torch.tensor([3, 0, 0, 7])
    assert label_groups(labels, 0).tolist() == label_means(labels, 0).tolist() == [[0.25] * 4]
    assert label_shares(labels.numpy(), 0).tolist() == [1]


# ------------------------------------------------------------------------------------ feature map


@pytest.mark.parametrize("second_weight", [0.0, 0.05, 1.0, 100.0])
def test_no_images_moments_are_longer_than_one(second_weight):
    mapped = FeatureMap(load_features("vgg"), Matching(second_weight=second_weight), 3, 16)
    pictures = np.concatenate((noise(3, 3), np.full((1, 3, 16, 16), 255, np.uint8), np.zeros((1, 3, 16, 16), np.uint8)))
    for image in pictures:
        assert 0.5 < float(mapped.moments(scaled(image[None])).norm()) <= 1 + 1e-5
    assert float(mapped.moments(scaled(pictures)).norm()) <= 1 + 1e-5


def test_moments_stack_the_chosen_layers(vgg):
    pictures = scaled(noise(3))
    stages = vgg.net.stages(pictures)
    mapped = FeatureMap(vgg, Matching(layers=(1, 4), second_weight=0.25), 1, 16)
    parts = []
    for layer in (1, 4):
        flat = stages[layer].permute(0, 2, 3, 1).flatten(1)
        first, second = plain_moments(flat)
        parts += [first * (1 / 2 / 1.25) ** 0.5, second * (0.25 / 2 / 1.25) ** 0.5]
    torch.testing.assert_close(mapped.moments(pictures), torch.cat(parts), rtol=1e-4, atol=1e-6)
    assert mapped.dimension == sum(map(len, parts))


def test_no_layers_named_means_all(vgg):
    every = FeatureMap(vgg, Matching(), 1, 16)
    assert every.layers == tuple(range(7))
    assert every.dimension == 2 * sum(stage[0].numel() for stage in vgg.net.stages(torch.zeros(1, 1, 16, 16)))


def test_a_layer_that_does_not_exist_is_refused(vgg):
    with pytest.raises(SettingError, match=r"0 … 6"):
        FeatureMap(vgg, Matching(layers=(0, 7)), 1, 16)


def test_nothing_is_computed_after_the_last_matched_layer(vgg):
    ran, mapped = [], FeatureMap(vgg, Matching(layers=(2, 0)), 1, 16)
    hooks = [unit.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, unit in enumerate(vgg.net.units)]
    mapped.moments(scaled(noise(2)))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1, 2]


def test_gradient_by_the_images_is_the_measured_slope(vgg):
    mapped = FeatureMap(vgg, Matching(layers=(0, 1)), 1, 16)
    target = mapped.moments(scaled(noise(4, seed=1)))
    x = scaled(noise(2, seed=2)) * 0.9
    x.requires_grad_()
    distance(mapped.moments(x), target).backward()
    along = x.grad / x.grad.norm()
    with torch.no_grad():
        ahead, behind = (distance(mapped.moments(x + step * along), target) for step in (0.02, -0.02))
    assert float(ahead - behind) / 0.04 == pytest.approx(float(x.grad.norm()), rel=0.05)


# ----------------------------------------------------------------------------------------- target


def test_a_target_over_batches_is_that_of_one_batch(feature_map):
    pictures = noise(13)
    whole = feature_map.target(pictures, batch=100)
    assert whole.images == 13
    assert whole.moments.dtype == np.float32
    for batch in (1, 4, 13):
        np.testing.assert_allclose(feature_map.target(pictures, batch=batch).moments, whole.moments, atol=1e-6)
    np.testing.assert_allclose(feature_map.moments(scaled(pictures)).numpy(), whole.moments, atol=1e-6)


def test_a_target_is_the_mean_of_its_images(feature_map):
    one, other = noise(3, seed=1), noise(6, seed=2)
    parts = (3 * feature_map.target(one).moments + 6 * feature_map.target(other).moments) / 9
    np.testing.assert_allclose(feature_map.target(np.concatenate((one, other))).moments, parts, atol=1e-6)


LABELS = np.array([2, 0, 2, 2, 4, 0, 2, 4, 0, 2, 2, 0, 0])  # of five labels, 1 and 3 without an image


@pytest.mark.parametrize(("batch", "tone"), [(1, 0.0), (4, 0.5), (100, 0.5)])
def test_a_target_by_label_is_each_labels_share_times_its_mean(vgg, batch, tone):
    mapped, pictures = FeatureMap(vgg, Matching(layers=(0, 1), tone_weight=tone), 1, 16), noise(13)
    found = mapped.target(pictures, LABELS, 5, batch)
    blocks = found.moments.reshape(5, mapped.dimension)
    np.testing.assert_array_equal(found.shares, [5 / 13, 0, 6 / 13, 0, 2 / 13])
    assert found.images == 13 and found.moments.dtype == np.float32
    for label in range(5):
        if found.shares[label]:
            mean = mapped.target(pictures[label == LABELS]).moments
            np.testing.assert_allclose(blocks[label], found.shares[label] * mean, atol=1e-6)
        else:
            assert not blocks[label].any()
    np.testing.assert_allclose(blocks.sum(0), mapped.target(pictures).moments, atol=1e-6)


def test_labels_without_classes_leave_the_target_alone(feature_map):
    plain, labelled = feature_map.target(noise(13)), feature_map.target(noise(13), LABELS)
    np.testing.assert_array_equal(plain.moments, labelled.moments)
    assert plain.shares.tolist() == labelled.shares.tolist() == [1]


@pytest.mark.parametrize("tone", [0.0, 1.0])
def test_no_images_moments_by_label_are_longer_than_one(vgg, tone):
    mapped = FeatureMap(vgg, Matching(tone_weight=tone), 1, 16)
    pictures = np.concatenate((noise(4), np.full((1, 1, 16, 16), 255, np.uint8), np.zeros((1, 1, 16, 16), np.uint8)))
    for label, image in enumerate(pictures):
        found = mapped.moments(scaled(image[None]), label_groups(torch.tensor([label]), 6)).view(6, -1)
        assert 0.5 < float(found[label].norm()) <= 1 + 1e-5
        assert found.count_nonzero() == found[label].count_nonzero()
    groups = label_groups(torch.tensor([0, 0, 1, 5, 5, 5]), 6)
    assert 0 < float(mapped.moments(scaled(pictures), groups).norm()) <= 1 + 1e-5


def test_a_client_without_images_is_refused(feature_map):
    with pytest.raises(DataError, match="without images"):
        feature_map.target(noise(0))


def test_moments_that_are_not_finite_are_refused():
    broken = load_features("vgg")
    broken.net.units[0].conv.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        FeatureMap(broken, Matching(layers=(0,)), 1, 16).target(noise(2))


def test_distance_is_nought_for_equal_images_and_more_for_others(feature_map):
    mine, theirs = feature_map.moments(scaled(noise(5))), feature_map.moments(scaled(noise(5) // 8))
    assert float(distance(mine, mine)) == 0
    assert float(distance(mine, theirs)) == pytest.approx(float((mine - theirs).norm()) ** 2, rel=1e-4)
    assert float(distance(mine, theirs)) > 1e-4


def test_fingerprints_name_the_map(vgg):
    mine = FeatureMap(vgg, Matching(layers=(0, 1)), 1, 16)
    others = [
        FeatureMap(vgg, Matching(layers=(0, 2)), 1, 16),
        FeatureMap(vgg, Matching(layers=(0, 1), second_weight=0.1), 1, 16),
        FeatureMap(vgg, Matching(layers=(0, 1), scale=2), 1, 16),
        FeatureMap(vgg, Matching(layers=(0, 1)), 1, 32),
        FeatureMap(random_vgg(), Matching(layers=(0, 1)), 1, 16),
    ]
    assert mine.fingerprint() == FeatureMap(vgg, Matching(layers=(0, 1)), 1, 16).fingerprint()
    assert len({mine.fingerprint(), *(other.fingerprint() for other in others)}) == 6


# --------------------------------------------------------------------------------- moving residual


def gradient_of(moving, moments):
    moments = moments.clone().requires_grad_()
    moving.loss(moments).backward()
    return moments.grad


@given(st.integers(0, 1000), st.floats(1e-3, 10))
def test_the_first_step_is_that_of_the_squared_distance(seed, rate):
    target, moments = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed))
    plain = moments.clone().requires_grad_()
    distance(plain, target).backward()
    torch.testing.assert_close(gradient_of(MovingResidual(target, rate), moments), plain.grad)


def test_a_rate_near_nought_keeps_the_first_residual():
    target = torch.tensor([1.0, -2.0, 0.5])
    moving = MovingResidual(target, 1e-9)
    first = gradient_of(moving, torch.zeros(3))
    for step in range(20):
        later = gradient_of(moving, torch.full((3,), float(step)))
    torch.testing.assert_close(later, first)
    torch.testing.assert_close(first, -2 * target)


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_the_second_step_moves_each_entry_by_the_rate_in_root_mean_squares(rate):
    target, moving = torch.tensor([3.0, 4.0]), MovingResidual(torch.tensor([3.0, 4.0]), rate)
    gradient_of(moving, torch.zeros(2))
    before = moving.value.clone()
    gradient_of(moving, target + torch.tensor([10.0, -20.0]))  # residual (-10, 20): down, and up
    step = rate * (25 / 2) ** 0.5
    torch.testing.assert_close(moving.value - before, torch.tensor([-step, step]))


def test_the_average_settles_at_a_residual_that_stays():
    moving = MovingResidual(torch.tensor([1.0, -1.0]), 0.02)
    gradient_of(moving, torch.zeros(2))
    for _ in range(800):
        gradient = gradient_of(moving, torch.tensor([0.5, -2.0]))
    torch.testing.assert_close(gradient, -2 * torch.tensor([0.5, 1.0]), atol=0.1, rtol=0)


def test_a_fast_average_follows_a_jump_that_a_slow_one_misses():
    kept = []
    for rate in (1.0, 1e-3):
        moving = MovingResidual(torch.zeros(4), rate)
        gradient_of(moving, torch.ones(4))
        for _ in range(10):
            gradient = gradient_of(moving, -torch.ones(4))
        kept.append(float(gradient.mean()))
    fast, slow = kept
    assert fast < 0 < slow


def test_the_average_smooths_the_noise_of_batches():
    rng = torch.Generator().manual_seed(0)
    moving, target = MovingResidual(torch.zeros(50), 0.01), torch.zeros(50)
    followed, single = [], []
    for _ in range(200):
        moments = torch.ones(50) + torch.randn(50, generator=rng)
        followed.append(gradient_of(moving, moments))
        single.append(2 * (moments - target))
    assert torch.stack(followed[1:]).var(0).mean() < 0.1 * torch.stack(single[1:]).var(0).mean()


def test_the_loss_has_no_gradient_through_the_average():
    moving = MovingResidual(torch.tensor([1.0]), 0.1)
    moments = torch.tensor([0.25], requires_grad=True)
    loss = moving.loss(moments)
    assert float(loss.detach()) == pytest.approx(2 * 0.75 * 0.75)
    loss.backward()
    assert float(moments.grad) == pytest.approx(-2 * 0.75)


# ---------------------------------------------------------------------------------------- tones


@pytest.mark.parametrize("channels", [1, 3])
def test_tones_keep_the_norm_and_never_fall_below_nought(vgg, channels):
    images = torch.rand(3, channels, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    images[0], images[1] = 1, -1
    plain, toned = (FeatureMap(vgg, Matching(tone_weight=weight), channels, 16) for weight in (0.0, 2.0))
    of_tones = toned.dimension - plain.dimension
    assert of_tones == 64 * channels + 16 * 9 * (1 if channels == 1 else 4)
    vectors = toned.moments(images, torch.eye(3)).view(3, -1)
    assert (vectors.norm(dim=1) <= 1 + 1e-5).all() and (vectors >= 0).all()
    assert plain.fingerprint() != toned.fingerprint()


def test_tone_weight_is_its_share_beside_first_moments(vgg):
    white = torch.ones(1, 3, 16, 16)
    found = FeatureMap(vgg, Matching(layers=(0,), second_weight=0.0, tone_weight=1.5), 3, 16).moments(white)
    shares = [part.square().sum() for part in (found[-768:-576], found[-576:])]
    torch.testing.assert_close(torch.stack(shares), torch.full((2,), 1.5 / 2.5 / 2))


def test_tones_tell_a_saturated_image_from_a_soft_one_of_equal_mean():
    soft = torch.zeros(1, 1, 32, 32)
    hard = torch.ones(1, 1, 32, 32)
    hard[:, :, :, ::4] = hard[:, :, :, 1::4] = -1
    torch.testing.assert_close(mean_colours(soft), mean_colours(hard))
    assert (tone_histograms(soft) - tone_histograms(hard)).norm() > 0.5


# ------------------------------------------------------------------------------------- framing


def test_images_are_scaled_up_for_the_network(vgg):
    small, large = torch.rand(2, 3, 16, 16) * 2 - 1, FeatureMap(vgg, Matching(layers=(0,)), 3, 32)
    mapped = FeatureMap(vgg, Matching(layers=(0,), scale=2), 3, 16)
    assert mapped.dimension == 2 * 16 * 32 * 32
    doubled = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(mapped.moments(small), large.moments(doubled), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("factor", "shift"), [(1, 0), (1, 2), (2, 1), (3, 0)])
def test_framing_is_a_shift_with_borders_repeated_and_then_bilinear(dtype, factor, shift):
    framing = Framing(8, factor, shift)
    x = torch.rand(framing.turns, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    padded = torch.nn.functional.pad(x.float(), [shift] * 4, mode="replicate")
    each = 2 * shift + 1
    cut = [padded[n, :, n // each : n // each + 8, n % each : n % each + 8] for n in range(framing.turns)]
    wanted = torch.nn.functional.interpolate(torch.stack(cut), scale_factor=factor, mode="bilinear")
    close = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(framing(x, torch.arange(framing.turns)).float(), wanted, **close)
    whole = framing(x, torch.tensor([framing.turns - 1]))
    torch.testing.assert_close(whole[-1].float(), wanted[-1], **close)
    torch.testing.assert_close(framing(x)[framing.turns // 2].float(), wanted[framing.turns // 2], **close)


@pytest.mark.parametrize(("size", "factor", "windows"), [(16, 2, 3), (16, 1, 2), (8, 2, 3)])
def test_a_window_is_half_a_side_scaled_up_twice_as_much(size, factor, windows):
    framing = Framing(size, factor, 1, windows)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(3))
    large = torch.nn.functional.interpolate(x, scale_factor=2 * factor, mode="bilinear")
    side, step = size * factor, size * factor // (windows - 1)
    for number in range(windows**2):
        row, column = number // windows * step, number % windows * step
        seen = framing(x, framing.window(number))
        torch.testing.assert_close(seen, large[:, :, row : row + side, column : column + side])
    plain = Framing(size, factor, 1)
    torch.testing.assert_close(framing(x, torch.arange(9)), plain(x, torch.arange(9)), rtol=0, atol=0)


def test_a_search_draws_views_by_their_shares():
    framing, draws = Framing(8, 1, 1, 2), Tape(Stream(0, Purpose.SEARCH))
    drawn = torch.cat([framing.drawn(draws) for _ in range(4000)])
    assert set(drawn.tolist()) == set(range(9 + 4))
    views = framing.view_of(drawn).bincount(minlength=5) / 4000
    assert views.tolist() == pytest.approx(framing.shares, abs=0.03) and sum(framing.shares) == pytest.approx(1)


@pytest.mark.parametrize("loss", ["squared", "unbiased"])
@pytest.mark.parametrize(
    "changes", [{}, {"layers": (0, 2), "second_weight": 0.0, "tone_weight": 0.5, "pool": 4}], ids=str
)
@pytest.mark.parametrize("joined", [False, True])
def test_with_windows_the_distance_of_a_view_is_that_of_the_moments_on_average(monkeypatch, vgg, loss, changes, joined):
    """Two ways to the same gradient: each view by its share, and the whole ψ at once."""
    if joined:
        monkeypatch.setattr(fused, "_fast", None)
    mapped, tags = FeatureMap(vgg, Matching(windows=2, **changes), 1, 16), torch.tensor([0, 0, 1, 1, 1, 1])
    assert sum(block.weight**2 for block in mapped.blocks) == pytest.approx(1)
    assert sum(block.size for block in mapped.blocks) == mapped.dimension
    target = torch.from_numpy(mapped.target(noise(8), np.arange(8) % 2, 2).moments)
    one, two = (scaled(noise(6, seed=1)).requires_grad_() for _ in range(2))
    groups = label_groups(tags, 2)
    if loss == "squared":
        goals, whole = mapped.split(target), distance(mapped.moments(one, groups), target)
    else:
        shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
        goals = mapped.aims(target, shares, 6)
        own = (goals.own[tags] * mapped.moments(one, torch.eye(6)).view(6, -1).square().sum(1)).sum() / 36
        counts = shares * 6
        aim = target.view(2, -1) * (1 - goals.own / counts)[:, None].float()
        whole = distance(mapped.moments(one, groups), aim.flatten()) - own
    views = [mapped.framing.turns // 2 + torch.zeros(1, dtype=torch.int64), *map(mapped.framing.window, range(4))]
    goals = goals.joined() if joined else goals
    found = [mapped.squared_distance(two, tags, goals, view) for view in views]
    mean = sum(share * one for share, one in zip(mapped.framing.shares, found, strict=True))
    gradients = [torch.autograd.grad(total, of)[0] for total, of in ((whole, one), (mean, two))]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)
    if loss == "squared":
        torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)


def test_real_images_take_all_shifts_in_turn_whatever_the_batches(vgg):
    mapped, pictures = FeatureMap(vgg, Matching(layers=(0, 1), shift=1, windows=2), 1, 16), noise(20)
    one, other = (mapped.target(pictures, batch=batch).moments for batch in (7, 100))
    np.testing.assert_allclose(one, other, atol=1e-6)
    apart = [mapped.moments(scaled(pictures[i : i + 1]), turns=torch.tensor([i % 9])) for i in range(20)]
    np.testing.assert_allclose(torch.stack(apart).mean(0).numpy(), one, atol=1e-6)
    np.testing.assert_allclose(mapped.vectors(pictures[10:13], 10).numpy(), torch.stack(apart[10:13]), atol=1e-6)


def test_a_search_draws_a_shift_only_where_there_are_some():
    plain, some = Tape(Stream(0, Purpose.SEARCH)), Tape(Stream(0, Purpose.SEARCH))
    assert Framing(8).drawn(plain) is None and int(plain.block) == 0
    drawn = {int(Framing(8, 1, 1).drawn(some)) for _ in range(200)}
    assert drawn == set(range(9))


# ------------------------------------------------------------------------------ squared distance


@pytest.mark.parametrize(
    "changes",
    [{}, {"second_weight": 0.0}, {"layers": (0, 2)}, {"tone_weight": 0.5, "pool": 4}],
    ids=str,
)
@pytest.mark.parametrize("labels", [[0] * 6, [0, 0, 1, 3, 3, 3], [2] * 6], ids=str)
@pytest.mark.parametrize("how", ["in passing", "afterwards", "joined"])
def test_the_distance_by_blocks_is_that_of_the_moments(monkeypatch, vgg, changes, labels, how):
    if how != "in passing":
        monkeypatch.setattr(fused, "_fast", None)
    mapped, tags = FeatureMap(vgg, Matching(**changes), 1, 16), torch.tensor(labels)
    classes = max(labels) + 2  # the last is of no image
    target = torch.from_numpy(mapped.target(noise(8), np.arange(8) % classes, classes).moments)
    images = [scaled(noise(6, seed=1)).requires_grad_() for _ in range(2)]
    whole = distance(mapped.moments(images[0], label_groups(tags, classes)), target)
    goals = mapped.split(target)
    found = mapped.squared_distance(images[1], tags, goals.joined() if how == "joined" else goals)
    torch.testing.assert_close(found, whole)
    (3 * whole).backward()
    (3 * found).backward()
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes", [0, 2])
def test_the_unbiased_loss_ranks_populations_as_their_means_do(vgg, classes):
    """Over all batches of four of three images: but for a constant it is 3/4 of their mean's squared distance."""
    mapped = FeatureMap(vgg, Matching(layers=(0, 1), tone_weight=0.5), 1, 16)
    groups, others = max(1, classes), scaled(noise(4 if classes else 0, seed=9))
    target = torch.from_numpy(mapped.target(noise(8), np.arange(8) % groups, classes).moments)
    tags = torch.tensor([0] * len(others) + [groups - 1] * 4)
    aims = {
        "squared": mapped.split(target),
        "unbiased": mapped.aims(target, torch.full((groups,), 1 / groups, dtype=torch.float64), len(tags)),
    }
    losses, means = {name: [] for name in aims}, []
    # Of three populations, whose images are unlike, much alike, and stronger in contrast.
    for images in (scaled(noise(3, seed=1)), scaled(noise(3, seed=2)) * 0.2, scaled(noise(3, seed=3)).sign()):
        mean = mapped.moments(images) / groups
        means.append(float(distance(mean, target.view(groups, -1)[-1])))
        for name, aim in aims.items():
            batches = (torch.cat((others, images[list(some)])) for some in itertools.product(range(3), repeat=4))
            losses[name].append(np.mean([float(mapped.squared_distance(batch, tags, aim)) for batch in batches]))
    np.testing.assert_allclose(np.diff(losses["unbiased"]), 0.75 * np.diff(means), atol=1e-6)
    assert np.abs(np.diff(losses["squared"]) - 0.75 * np.diff(means)).max() > 1e-3


def test_of_a_single_image_of_a_label_the_aim_is_the_target_itself(vgg):
    mapped = FeatureMap(vgg, Matching(layers=(0,), second_weight=0.0, tone_weight=0.5), 1, 16)
    image, tags = noise(1), torch.zeros(1, dtype=torch.int64)
    goals = mapped.aims(torch.from_numpy(mapped.target(image).moments), torch.ones(1, dtype=torch.float64), 1)
    x = scaled(image).requires_grad_()
    mapped.squared_distance(x, tags, goals).backward()
    assert float(x.grad.abs().max()) < 1e-4


@pytest.mark.parametrize("joined", [False, True])
def test_pieces_of_a_target_hold_each_number_once(vgg, joined):
    mapped = FeatureMap(vgg, Matching(tone_weight=0.5), 1, 16)
    target = torch.arange(3 * mapped.dimension, dtype=torch.float32)
    goals = mapped.split(target)
    pieces = torch.cat((goals.joined() if joined else goals).tensors, 1)
    assert pieces.shape == (3, mapped.dimension)
    assert torch.equal(pieces.flatten().sort().values, target)
    assert torch.equal(goals.of_maps([0, 3])[1], torch.cat([goals.squares[0], goals.squares[3]], 1))


def test_a_device_but_the_processor_matches_all_layers_together(vgg):
    mapped = FeatureMap(vgg, Matching(), 1, 16)
    goals = mapped.split(torch.empty(mapped.dimension, device="meta"))
    assert [len(goals.units), len(goals.squares)] == [1, 1]
    assert goals.units[0].shape == (1, sum(mapped.sizes))


def test_an_image_without_features_has_no_gradient_and_a_finite_distance(vgg):
    mapped = FeatureMap(vgg, Matching(layers=(0,)), 1, 16)
    dark = FeatureMap(vgg, Matching(layers=(0,)), 1, 16)
    dark.net = copy.deepcopy(vgg.net)
    for parameter in dark.net.parameters():
        parameter.zero_()
    images = scaled(noise(2)).requires_grad_()
    target = mapped.split(mapped.moments(scaled(noise(4, seed=3))).detach())
    found = dark.squared_distance(images, torch.zeros(2, dtype=torch.int64), target)
    found.backward()
    assert float(found.detach()) == pytest.approx(sum(float(part.square().sum()) for part in target.tensors), rel=1e-5)
    assert float(images.grad.abs().max()) == 0


def test_half_as_many_bits_give_nearly_the_same_moments(vgg):
    mapped = FeatureMap(vgg, Matching(), 1, 16)
    short, pictures = mapped.in_precision("bfloat16"), scaled(noise(4))
    assert mapped.in_precision("float32") is mapped
    found = short.moments(pictures.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mapped.moments(pictures), rtol=0.1, atol=2e-3)
    assert next(mapped.net.parameters()).dtype == torch.float32
