"""The doubling convolution, by whichever way, is doubling and then the convolution; so are its gradients."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.kernels import doubling, joined


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.manual_seed(sum(shape)), dtype=torch.float64).to(dtype).requires_grad_()


def plainly(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), kernel, padding=1)


def ours(x: Tensor, kernel: Tensor) -> Tensor:
    return doubling.convolved_doubling(x, doubling.doubling_kernel(kernel))


def with_gradients(made: Tensor, *given: Tensor) -> list[Tensor]:
    weights = drawn(*made.shape, dtype=made.dtype).detach()
    return [made, *torch.autograd.grad(made, given, weights)]


@pytest.mark.parametrize("channels", [(1, 1), (3, 2), (doubling._CHANNELS, 3)], ids=str)
@pytest.mark.parametrize("sides", [(1, 1), (4, 3), (7, 8)], ids=str)
def test_it_is_doubling_and_then_the_convolution(channels: tuple[int, int], sides: tuple[int, int]) -> None:
    x, kernel = drawn(2, channels[0], *sides), drawn(channels[1], channels[0], 3, 3)
    expected, found = (with_gradients(way(x, kernel), x, kernel) for way in (plainly, ours))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deep_small_maps_are_multiplied_and_others_are_not(dtype: torch.dtype) -> None:
    kernel = drawn(doubling._CHANNELS, 8, 4, 4, dtype=dtype)
    with patch.object(doubling._Multiplied, "apply", wraps=doubling._Multiplied.apply) as multiplied:
        for side, called in ((4, 1), (5, 0)):
            multiplied.reset_mock()
            x = drawn(2, doubling._CHANNELS, side, side, dtype=dtype)
            found = with_gradients(doubling.convolved_doubling(x, kernel), x, kernel)
            expected = with_gradients(F.conv_transpose2d(x, kernel, stride=2, padding=1), x, kernel)
            assert multiplied.call_count == called
            for one, other in zip(expected, found, strict=True):
                assert other.dtype == dtype
                assert (one - other).abs().max() <= (1e-5 if dtype == torch.float32 else 0.01) * one.abs().max()
            assert called == 0 or found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("maps", [(24, 32, 8, 8), (64, 32, 4, 4)], ids=str)
def test_images_side_by_side_are_those_of_each(maps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "matrix_unit", lambda: True)
    x, kernel = drawn(*maps, dtype=torch.bfloat16), drawn(32, 16, 4, 4, dtype=torch.bfloat16)
    with patch.object(doubling, "joined", wraps=joined.joined) as made:
        found = with_gradients(doubling.convolved_doubling(x, kernel), x, kernel)
    made.assert_called_once()
    expected = with_gradients(F.conv_transpose2d(x, kernel, stride=2, padding=1), x, kernel)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= 0.02 * one.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_kernel_by_sums_is_that_by_products(dtype: torch.dtype) -> None:
    kernel = drawn(5, 4, 3, 3, dtype=dtype)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.05}
    one, other = (with_gradients(way(kernel), kernel) for way in (doubling.by_products, doubling.by_sums))
    torch.testing.assert_close(one, other, **close)
