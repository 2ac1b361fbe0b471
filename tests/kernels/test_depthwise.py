"""Blocks in one kernel compute what plain torch does, in every precision and on every kind of processor."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from prismfl.features.efficientnet import EfficientNetLite, Stage
from prismfl.features.networks import averaged
from prismfl.kernels import depthwise, fused
from prismfl.kernels.depthwise import Unit, before_and_after, matrix, passed
from prismfl.kernels.routes import Route, route

pytestmark = [
    pytest.mark.skipif(fused._fast is None, reason="kernels were not compiled"),
    pytest.mark.usefixtures("kind"),
]

PRECISIONS = [torch.float32, torch.bfloat16]
FAR = {
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
}  # of the norm; a clamp lets another number pass where rounding differs
STAGES = (Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 4, 40), Stage(2, 5, 1, 6, 40))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape, most=1, seed=0):
    """Whole numbers: what they make is exact, so that a clamp lets the same pass whatever the precision."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def images(count, channels, high, wide, dtype=torch.float32):
    return whole(count, channels, high, wide, most=2).to(dtype).contiguous(memory_format=torch.channels_last)


def a_unit(dtype, kernel=3, stride=1, *, widen=True, narrow=True, inputs=24, channels=48):
    """A unit of whose numbers each clamp lets about a third pass; none of them is 0 or 6."""

    def pair(weights):
        return matrix(weights.to(dtype)), matrix(weights.T.to(dtype))

    inputs = inputs if widen else channels
    return Unit(
        pair(whole(inputs, channels, seed=1)) if widen else None,
        whole(channels, most=3, seed=2) + 0.5 if widen else None,
        whole(kernel * kernel, channels, seed=3),
        whole(channels, most=3, seed=4) + 0.25,
        pair(normal(channels, inputs, seed=5) / channels**0.5) if narrow else None,
        stride,
        adds=stride == 1 and narrow,
    )


def plainly(x, unit, most):
    """The same by torch's own convolutions."""
    inner = x
    if unit.widen:
        inner = torch.einsum("bchw,cd->bdhw", x, unit.widen[0].plain.to(x)) + unit.before.to(x)[:, None, None]
        inner = inner.clamp(0, 6)
    (top, below), (left, right) = (before_and_after(side, unit.kernel, unit.stride) for side in x.shape[2:])
    weights = unit.each.to(x).T.reshape(unit.channels, 1, unit.kernel, unit.kernel)
    padded = F.pad(inner, (left, right, top, below))
    phi = F.conv2d(padded, weights, unit.after.to(x), unit.stride, groups=unit.channels).clamp(0, 6)
    out = torch.einsum("bchw,cd->bdhw", phi, unit.narrow[0].plain.to(x)) if unit.narrow else phi
    return averaged(phi, most), out + x if unit.adds else out


def near(one, other, dtype):
    assert one.dtype == dtype and one.shape == other.shape
    assert (one.double() - other).norm() <= FAR[dtype] * other.norm()


def agree(x, unit, most, dtype):
    leaves = [x.to(dtype).requires_grad_(), x.to(dtype).double().requires_grad_()]
    found = [call(leaf * 1, unit, most) for call, leaf in zip((passed, plainly), leaves, strict=True)]
    for one, other in zip(*found, strict=True):
        near(one, other, dtype)
    weights = [normal(*end.shape, seed=8 + n) for n, end in enumerate(found[1])]
    for chosen in ((0, 1), (0,), (1,)):  # what comes for either may be missing
        pair = [
            torch.autograd.grad(
                [ends[n] for n in chosen], leaf, [weights[n].to(leaf) for n in chosen], retain_graph=True
            )
            for ends, leaf in zip(found, leaves, strict=True)
        ]
        near(pair[0][0], pair[1][0], dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("high,wide", [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (5, 7), (9, 4)])
def test_a_unit_is_two_products_with_a_convolution_between(dtype, kernel, stride, high, wide):
    agree(images(3, 24, high, wide), a_unit(dtype, kernel, stride), 0, dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("widen,narrow", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("most", [0, 2])
def test_either_product_may_be_missing(dtype, widen, narrow, most):
    unit = a_unit(dtype, widen=widen, narrow=narrow)
    agree(images(5, 24 if widen else 48, 8, 8), unit, most, dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("most", [1, 4, 8])
def test_what_is_matched_may_be_averaged(dtype, most):
    agree(images(3, 24, 16, 16), a_unit(dtype, 5, 2), most, dtype)


@pytest.mark.parametrize("count", [1, 23, 50])
@pytest.mark.parametrize("channels", [16, 80])
def test_any_number_of_small_images(count, channels):
    agree(images(count, 40, 2, 2), a_unit(torch.float32, 5, inputs=40, channels=channels), 0, torch.float32)


def test_what_is_not_a_number_stays_none():
    x = images(2, 24, 4, 4)
    x[1, 3, 2, 2] = torch.nan
    phi, _ = passed(x, a_unit(torch.float32), 0)
    assert phi[1, :, 2, 2].isnan().all() and not phi[0].isnan().any()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_nothing_depends_on_the_number_of_threads(dtype):
    x, unit = images(9, 24, 16, 16, dtype).requires_grad_(), a_unit(dtype, 5, 2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            ends = passed(x, unit, 4)
            (gradient,) = torch.autograd.grad(ends, x, [torch.ones_like(end) for end in ends])
            found.append([*ends, gradient])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def a_net():
    """A small network of random weights, whose maps stay of about one size."""
    torch.manual_seed(0)
    net = EfficientNetLite(STAGES)
    for name, weight in net.named_parameters():
        scale = (3 / weight[0].numel()) ** 0.5 if name.endswith("weight") else 0.5
        torch.nn.init.normal_(weight, std=scale)
    return net.requires_grad_(False)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_frozen_network_has_the_maps_and_the_gradient_of_its_modules(dtype, channels):
    # A clamp may let another number pass where rounding differs: plain torch is as far from what is exact.
    net, exact, x = a_net().to(dtype), a_net().to(dtype).double(), normal(4, channels, 32, 32).to(dtype)
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()]
    colour = [leaf.expand(-1, 3, -1, -1) for leaf in leaves]
    maps = [net.stages(leaves[0], most=4)]
    maps += [[averaged(phi, 4) for phi in one.walk_plain(x)] for one, x in zip((net, exact), colour[1:], strict=True)]
    assert [phi.shape[-1] for phi in maps[0]] == [4] * 9
    gradients = [
        torch.autograd.grad(found, leaf, [normal(*phi.shape, seed=n).to(leaf) for n, phi in enumerate(found)])[0]
        for found, leaf in zip(maps, leaves, strict=True)
    ]
    for ours, theirs, truth in [*zip(*maps, strict=True), gradients]:
        errors = [(one.double() - truth).norm() / truth.norm() for one in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + 1e-5


def test_the_kernels_follow_the_weights_and_leave_those_that_learn_to_torch():
    net, x = a_net(), normal(2, 3, 16, 16)
    before = net.stages(x)[-1]
    net.blocks[1].each.conv.bias.add_(1)
    after = net.stages(x)[-1]
    assert not torch.allclose(before, after)
    net.requires_grad_(True)
    learning = net.stages(x)[-1]
    torch.testing.assert_close(learning.detach(), after, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(learning.sum(), net.stem.conv.weight)[0].any()


def test_what_two_threads_work_out_at_once_is_held_while_the_kernel_runs(monkeypatch):
    """The cache keeps what one of two threads has worked out; the other's is its own to hold."""
    unit, x = a_unit(torch.float32), images(16, 24, 16, 16).requires_grad_()
    gone, held = [], []

    class Alone(Route):
        """What nobody else holds."""

        def __del__(self):
            gone.append(self.told)

    def each(maps, ends, told, *more):
        held.append(told not in gone)
        real(maps, ends, told, *more)

    real, plain = fused._fast.each, route.__wrapped__
    monkeypatch.setattr(depthwise, "route", lambda *asked: Alone(*plain(*asked)))
    monkeypatch.setattr(fused, "_fast", SimpleNamespace(each=each))
    passed(x, unit, 0)[1].sum().backward()
    assert held == [True, True] and len(gone) == 2
