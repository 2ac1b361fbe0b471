"""Moments and their gradients against plain autograd, the bound on their norm, and the residual."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prismfl.config import Features
from prismfl.errors import DataError, SettingError
from prismfl.mmd import FeatureMap, MovingResidual, _UnitMoments, distance, joint_features
from prismfl.nets.features import load_features


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


def plain_moments(phi):
    """The definition, row by row, with 0/0 = 0."""
    units = [row / row.norm() if row.any() else row * 0 for row in phi]
    squares = [row**2 / (row**2).norm() if row.any() else row * 0 for row in phi]
    return torch.stack(units).mean(0), torch.stack(squares).mean(0)


def test_unit_moments_are_their_definition():
    phi = maps_with_an_empty_row()
    for found, wanted in zip(_UnitMoments.apply(phi), plain_moments(phi), strict=True):
        torch.testing.assert_close(found, wanted)


def test_gradient_of_unit_moments_is_that_of_plain_autograd():
    first, second = torch.randn(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for moments in (_UnitMoments.apply, plain_moments):
        phi = maps_with_an_empty_row().requires_grad_()
        means = moments(phi)
        (means[0] @ first + means[1] @ second).backward()
        gradients.append(phi.grad)
    torch.testing.assert_close(*gradients)
    assert not gradients[0][2].any()


def test_gradient_of_unit_moments_passes_gradcheck():
    phi = maps_with_an_empty_row()[[0, 1, 3]].requires_grad_()
    assert torch.autograd.gradcheck(_UnitMoments.apply, (phi,))


def test_an_empty_row_leaves_the_other_rows_gradients_alone():
    phi = maps_with_an_empty_row().requires_grad_()
    torch.autograd.gradcheck(lambda rows: _UnitMoments.apply(torch.cat((rows, phi[2:3].detach()))), (phi[:2],))


@pytest.mark.parametrize("height", [1e-3, 1e-5])
def test_small_maps_have_finite_gradients(height):
    phi = torch.full((2, 4), height).requires_grad_()
    first, second = _UnitMoments.apply(phi)
    (first[0] + second[1]).backward()
    assert torch.isfinite(phi.grad).all()
    assert phi.grad.any()


@pytest.mark.parametrize("height", [1e-7, 1e-9, 1e-16])
def test_tiny_maps_have_finite_gradients(height):
    phi = torch.full((2, 4), height).requires_grad_()
    first, second = _UnitMoments.apply(phi)
    (first[0] + second[1]).backward()
    assert torch.isfinite(phi.grad).all()


# ------------------------------------------------------------------------------------ feature map


@pytest.mark.parametrize("name", ["vgg", "judge"])
@pytest.mark.parametrize("second_weight", [0.0, 0.05, 1.0, 100.0])
def test_no_images_moments_are_longer_than_one(name, second_weight):
    mapped = FeatureMap(load_features(name), Features(second_weight=second_weight), 3, 16)
    pictures = np.concatenate((noise(3, 3), np.full((1, 3, 16, 16), 255, np.uint8), np.zeros((1, 3, 16, 16), np.uint8)))
    for image in pictures:
        assert 0.5 < float(mapped.moments(scaled(image[None])).norm()) <= 1 + 1e-5
    assert float(mapped.moments(scaled(pictures)).norm()) <= 1 + 1e-5


def test_moments_stack_the_chosen_layers(vgg):
    pictures = scaled(noise(3))
    stages = vgg.net.stages(pictures)
    mapped = FeatureMap(vgg, Features(layers=(1, 4), second_weight=0.25), 1, 16)
    parts = []
    for layer in (1, 4):
        flat = stages[layer].permute(0, 2, 3, 1).flatten(1)
        first, second = plain_moments(flat)
        parts += [first * (1 / 2 / 1.25) ** 0.5, second * (0.25 / 2 / 1.25) ** 0.5]
    torch.testing.assert_close(mapped.moments(pictures), torch.cat(parts), rtol=1e-4, atol=1e-6)
    assert mapped.dimension == sum(map(len, parts))


def test_no_layers_named_means_all(vgg):
    every = FeatureMap(vgg, Features(), 1, 16)
    assert every.layers == tuple(range(7))
    assert every.dimension == 2 * sum(stage[0].numel() for stage in vgg.net.stages(torch.zeros(1, 1, 16, 16)))


def test_a_layer_that_does_not_exist_is_refused(vgg):
    with pytest.raises(SettingError, match=r"0 … 6"):
        FeatureMap(vgg, Features(layers=(0, 7)), 1, 16)


def test_images_are_scaled_to_the_feature_size(vgg):
    mapped = FeatureMap(vgg, Features(layers=(0,), feature_size=32), 1, 16)
    assert mapped.dimension == 2 * 16 * 32 * 32
    flat = mapped.moments(torch.full((1, 1, 16, 16), 0.3))
    torch.testing.assert_close(
        flat, FeatureMap(vgg, Features(layers=(0,)), 1, 32).moments(torch.full((1, 1, 32, 32), 0.3))
    )


def test_gradient_by_the_images_is_the_measured_slope(vgg):
    mapped = FeatureMap(vgg, Features(layers=(0, 1)), 1, 16)
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
        np.testing.assert_allclose(feature_map.target(pictures, batch).moments, whole.moments, atol=1e-6)
    np.testing.assert_allclose(feature_map.moments(scaled(pictures)).numpy(), whole.moments, atol=1e-6)


def test_a_target_is_the_mean_of_its_images(feature_map):
    one, other = noise(3, seed=1), noise(6, seed=2)
    parts = (3 * feature_map.target(one).moments + 6 * feature_map.target(other).moments) / 9
    np.testing.assert_allclose(feature_map.target(np.concatenate((one, other))).moments, parts, atol=1e-6)


def test_a_client_without_images_is_refused(feature_map):
    with pytest.raises(DataError, match="without images"):
        feature_map.target(noise(0))


def test_moments_that_are_not_finite_are_refused():
    broken = load_features("vgg")
    broken.net.units[0].conv.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        FeatureMap(broken, Features(layers=(0,)), 1, 16).target(noise(2))


def test_distance_is_nought_for_equal_images_and_more_for_others(feature_map):
    mine, theirs = feature_map.moments(scaled(noise(5))), feature_map.moments(scaled(noise(5) // 8))
    assert float(distance(mine, mine)) == 0
    assert float(distance(mine, theirs)) == pytest.approx(float((mine - theirs).norm()) ** 2, rel=1e-4)
    assert float(distance(mine, theirs)) > 1e-4


def test_fingerprints_name_the_map(vgg):
    mine = FeatureMap(vgg, Features(layers=(0, 1)), 1, 16)
    others = [
        FeatureMap(vgg, Features(layers=(0, 2)), 1, 16),
        FeatureMap(vgg, Features(layers=(0, 1), second_weight=0.1), 1, 16),
        FeatureMap(vgg, Features(layers=(0, 1), feature_size=32), 1, 16),
        FeatureMap(vgg, Features(layers=(0, 1)), 1, 32),
        FeatureMap(load_features("judge"), Features(layers=(0, 1)), 1, 16),
    ]
    assert mine.fingerprint() == FeatureMap(vgg, Features(layers=(0, 1)), 1, 16).fingerprint()
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


# ------------------------------------------------------------------------------- joint features


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
def test_joint_features_approximate_the_gaussian_kernel_of_unit_maps(bandwidth):
    phi = torch.rand(6, 40, generator=torch.Generator().manual_seed(1))
    projection = torch.randn(40, 20000, generator=torch.Generator().manual_seed(2)) / bandwidth
    found = joint_features(phi, projection)
    unit = phi / phi.norm(dim=1, keepdim=True)
    kernel = torch.exp(-torch.cdist(unit, unit).square() / (2 * bandwidth**2))
    torch.testing.assert_close(found @ found.T, kernel, atol=0.03, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_joint_features_keep_the_norm_and_raise_the_dimension():
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    plain, joint = (
        FeatureMap(load_features("vgg"), Features(joint=count, joint_layers=2, joint_weight=3.0), 1, 16)
        for count in (0, 64)
    )
    assert joint.dimension == plain.dimension + 2 * 64
    assert joint.moments(images).shape == (joint.dimension,)
    assert joint.moments(images).norm() == pytest.approx(1, abs=1e-5)
    assert plain.fingerprint() != joint.fingerprint()
