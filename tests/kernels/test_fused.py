"""Kernels and torch compute the same, in every precision and on every kind of processor."""

import copy

import pytest
import torch
import torch.nn.functional as F

from prismfl.features.networks import ConvUnit
from prismfl.kernels import fused
from prismfl.kernels.matching import UnitDistance
from prismfl.search import _Adam

pytestmark = [
    pytest.mark.skipif(fused._fast is None, reason="kernels were not compiled"),
    pytest.mark.usefixtures("kind"),
]

PRECISIONS = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def maps(*shape, dtype=torch.float32, seed=0):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return made.contiguous(memory_format=torch.channels_last)


def both(monkeypatch, function, *inputs):
    """Results and gradients by the kernels, and the same in float64 by torch."""
    found = []
    for fast, dtype in ((fused._fast, inputs[0].dtype), (None, torch.float64)):
        monkeypatch.setattr(fused, "_fast", fast)
        leaves = [one.detach().to(dtype).requires_grad_() for one in inputs]
        result = function(*(leaf * 1 for leaf in leaves))
        weights = maps(*result.shape, seed=9).to(dtype)
        found.append([result.detach(), *torch.autograd.grad(result, leaves, weights)])
    monkeypatch.undo()
    return zip(*found, strict=True)


def alike(pairs, dtype):
    for one, other in pairs:
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(4, 16, 8, 8), (3, 5, 4, 4), (2, 3, 32, 32), (7, 192, 2, 2), (4, 16, 1, 1)], ids=str)
def test_normalisation_with_relu(monkeypatch, dtype, shape):
    # A mean far from 0: the variance must not drown in it.  Among few different numbers one may be the very mean.
    x = maps(*shape, dtype=dtype) * 0.5 + (3 if dtype == torch.float32 else 0.3)
    alike(both(monkeypatch, lambda x: fused.norm_relu(x, 1e-5)[0], x), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_what_else_needs_a_normalised_map_adds_its_gradient(monkeypatch, dtype):
    def two_uses(x):
        normed, same = fused.norm_relu(x, 1e-5)
        return normed + same.square()

    alike(both(monkeypatch, two_uses, maps(4, 16, 8, 8, dtype=dtype)), dtype)
    # One of the two may be all that is used.
    x = maps(4, 16, 8, 8, dtype=dtype).requires_grad_()
    _, same = fused.norm_relu(x * 1, 1e-5)
    (gradient,) = torch.autograd.grad(same.sum(), x)
    assert (gradient == 1).all()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(4, 16, 8, 8), (2, 48, 2, 4), (2, 5, 16, 16)], ids=str)
def test_a_doubled_map_is_added(monkeypatch, dtype, shape):
    small = maps(shape[0], shape[1], shape[2] // 2, shape[3] // 2, dtype=dtype, seed=1)
    alike(both(monkeypatch, fused.plus_doubled, maps(*shape, dtype=dtype), small), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("channels", [5, 32])
def test_a_doubled_map_is_shifted_image_by_image(monkeypatch, dtype, channels):
    small, shift = maps(3, channels, 2, 2, dtype=dtype, seed=1), maps(3, channels, 1, 1, dtype=dtype, seed=2)
    x = maps(3, channels, 4, 4, dtype=dtype)
    alike(both(monkeypatch, fused.plus_doubled, x, small, shift[:, :, 0, 0]), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (3, 1, 4, 4), (1, 1, 5, 3)], ids=str)
def test_grey_is_three_equal_channels(monkeypatch, dtype, shape):
    alike(both(monkeypatch, fused.tripled, maps(*shape, dtype=dtype)), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(4, 16, 8, 8), (2, 48, 2, 4), (2, 5, 16, 16), (2, 16, 5, 4)], ids=str)
def test_the_largest_of_four_pixels(monkeypatch, dtype, shape):
    # Few different values, so that ties are common: the first of them takes the gradient.
    leaf = (maps(*shape, dtype=dtype) * 2).round().requires_grad_()
    goal = torch.zeros(1, leaf[0].numel())
    phi, _, small = fused.matched(leaf * 1, torch.tensor([0, shape[0]]), [goal], (1.0,), rectify=False, pool=True)
    assert torch.equal(phi, leaf) and torch.equal(small, F.max_pool2d(leaf, 2))
    weights = maps(*small.shape, dtype=dtype, seed=9)
    ours, theirs = (torch.autograd.grad(one, leaf, weights)[0] for one in (small, F.max_pool2d(leaf, 2)))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("scales", [(0.3, 0.2), (0.3,)], ids=str)
@pytest.mark.parametrize("labels", [[0, 0, 2, 2, 2, 3], [1] * 6], ids=str)
@pytest.mark.parametrize("pool", [False, True])
def test_matching_in_passing_is_matching_afterwards(dtype, rectify, scales, labels, pool):
    tags, x = torch.tensor(labels), maps(6, 16, 4, 4, dtype=dtype)
    goals = [torch.rand(5, 256, generator=torch.Generator().manual_seed(n)) / 50 for n in range(len(scales))]
    starts = torch.searchsorted(tags, torch.arange(6))
    leaves = [x.clone().requires_grad_(), x.float().requires_grad_()]
    phi, totals, small = fused.matched(leaves[0] * 1, starts, goals, scales, rectify=rectify, pool=pool)
    plain = F.relu(leaves[1]) if rectify else leaves[1] * 1
    rows = plain.permute(0, 2, 3, 1).flatten(1)
    whole = UnitDistance.apply(tags, scales, goals, rows)
    assert torch.equal(small, F.max_pool2d(phi, 2) if pool else phi)
    torch.testing.assert_close(phi.float(), plain, **TOLERANCE[dtype])
    torch.testing.assert_close(totals.sum(), whole, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    # What comes from later layers is added to it; and either may be missing.
    weights, halved = maps(6, 16, 4, 4, seed=3), maps(6, 16, 2, 2, seed=4)
    for with_later, with_small, with_total in (
        (1, 0, 1),
        (1, 0, 0),
        (0, 0, 1),
        (0, pool, 1),
        (0, pool, 0),
        (1, pool, 1),
    ):
        ours = with_total * totals.sum() + with_later * (phi.float() * weights).sum()
        theirs = with_total * whole + with_later * (plain * weights).sum()
        if with_small:
            ours, theirs = ours + (small.float() * halved).sum(), theirs + (F.max_pool2d(plain, 2) * halved).sum()
        pair = [
            torch.autograd.grad(loss, leaf, retain_graph=True)[0]
            for loss, leaf in zip((ours, theirs), leaves, strict=True)
        ]
        torch.testing.assert_close(pair[0].float(), pair[1], **TOLERANCE[dtype])


def test_a_map_without_features_is_matched_without_a_number_that_is_none():
    x = torch.zeros(2, 16, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    goal = torch.rand(1, 64)
    _, totals, _ = fused.matched(x * 1, torch.tensor([0, 2]), [goal], (0.5,), rectify=True)
    (gradient,) = torch.autograd.grad(totals.sum(), x)
    torch.testing.assert_close(totals, goal.square().sum(1))
    assert not gradient.any()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_what_is_not_a_number_stays_none(dtype):
    x = maps(2, 16, 4, 4, dtype=dtype)
    x[0, 3, 1, 1] = torch.nan
    assert fused.norm_relu(x, 1e-5)[0][:, 3].isnan().all()
    goals, starts = [torch.zeros(1, 256)], torch.tensor([0, 2])
    _, totals, small = fused.matched(x.clone(), starts, goals, (1.0,), rectify=True, pool=True)
    assert totals.isnan().all() and small[0, 3, 0, 0].isnan()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("groups", [[0, 24], [0, 5, 5, 17, 24]], ids=str)
def test_nothing_depends_on_the_number_of_threads(dtype, groups):
    x, small = maps(24, 48, 16, 16, dtype=dtype), maps(24, 48, 8, 8, dtype=dtype, seed=1)
    goals = [torch.rand(len(groups) - 1, x[0].numel(), generator=torch.Generator().manual_seed(n)) for n in range(2)]
    grey, flat = maps(24, 1, 40, 40, dtype=dtype, seed=2), [maps(1, 1, 1, 99_999, seed=n).flatten() for n in range(4)]

    def everything():
        leaf, less, one = (part.clone().requires_grad_() for part in (x, small, grey))
        normed, same = fused.norm_relu(leaf * 1, 1e-5)
        grown = fused.plus_doubled(same * 1, less, less[:, :, 0, 0])
        phi, totals, pooled = fused.matched(grown, torch.tensor(groups), goals, (0.3, 0.2), rectify=True, pool=True)
        ends = [normed, totals, phi, pooled, fused.tripled(one)]
        found = [end.detach() for end in ends]
        found += torch.autograd.grad(sum((end.float() ** 2).sum() for end in ends), (leaf, less, one))
        state = [part.abs() for part in flat]
        fused.adam_step(*state, (0.5, 0.9), 0.1, 0.3, 1e-9)
        return [*found, *state]

    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(everything())
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_frozen_convolution_of_four_pixels_is_a_convolution(dtype):
    unit = ConvUnit(3, 5, norm=False).to(dtype).requires_grad_(False)
    for images in (maps(4, 3, 2, 2, dtype=dtype), maps(4, 1, 2, 2, dtype=dtype)):
        leaf = images.requires_grad_()
        plain = F.conv2d(leaf.expand(-1, 3, -1, -1), unit.conv.weight, unit.conv.bias, padding=1)
        weights = maps(4, 5, 2, 2, dtype=dtype, seed=2)
        torch.testing.assert_close(unit(leaf).float(), plain.float(), **TOLERANCE[dtype])
        pair = [torch.autograd.grad(found, leaf, weights)[0].float() for found in (unit(leaf), plain)]
        torch.testing.assert_close(*pair, **TOLERANCE[dtype])
    wider = copy.deepcopy(unit).double()  # what was kept of the weights does not go along
    assert wider(images.double()).dtype == torch.float64
    unit.conv.weight.mul_(2)
    torch.testing.assert_close(unit(leaf).float(), unit.conv(leaf.expand(-1, 3, -1, -1)).float(), **TOLERANCE[dtype])


@pytest.mark.parametrize("count", [1, 16, 1000])
def test_adam_takes_the_same_steps(monkeypatch, count):
    gradients = torch.randn(5, count, generator=torch.Generator().manual_seed(count)) * 1e-4
    found = []
    for fast in (fused._fast, None):
        monkeypatch.setattr(fused, "_fast", fast)
        adam, scores = _Adam(0.9, count, torch.device("cpu")), torch.linspace(-2, 2, count)
        for gradient in gradients:
            adam.step(scores, gradient, torch.tensor(0.3, dtype=torch.float64))
        found.append((scores, adam.first, adam.second))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
