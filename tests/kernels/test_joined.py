"""Convolutions of images side by side are those of each image."""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.kernels import joined

Convolution = Callable[[Tensor, Tensor], Tensor]


def plain(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel, kernel[:, 0, 0, 0], padding=1)


def together(x: Tensor, kernel: Tensor) -> Tensor:
    return joined.convolved(x, kernel, kernel[:, 0, 0, 0])


CASES = (
    (plain, together, (48, 32, 3, 3), (64, 32, 4, 4)),
    (plain, together, (16, 32, 3, 3), (6, 32, 4, 4)),  # two at a time
)


@pytest.fixture(autouse=True)
def unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "matrix_unit", lambda: True)


@pytest.mark.parametrize(("alone", "beside", "kernel", "maps"), CASES)
def test_images_side_by_side_and_their_gradients_are_those_of_each(
    alone: Convolution, beside: Convolution, kernel: tuple[int, ...], maps: tuple[int, ...]
) -> None:
    draws = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=draws).to(torch.bfloat16).requires_grad_() for shape in (maps, kernel)]
    with patch.object(joined, "joined", wraps=joined.joined) as made:
        expected, found = (one(*given) for one in (alone, beside))
    made.assert_called_once()
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(found.shape, generator=draws).to(torch.bfloat16)
    gradients = (torch.autograd.grad(one, given, weights) for one in (expected, found))
    for one, other in zip((expected, *next(gradients)), (found, *next(gradients)), strict=True):
        assert (one - other).abs().max() <= 0.02 * one.abs().max()


def test_maps_that_gain_nothing_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "joined", lambda *_: pytest.fail("joined"))
    kernel = torch.ones(4, 4, 3, 3)
    for maps in (torch.ones(64, 4, 4, 4), torch.ones(64, 4, 8, 8).to(torch.bfloat16)):  # float32, and long lines
        assert torch.equal(together(maps, kernel.to(maps.dtype)), plain(maps, kernel.to(maps.dtype)))
    monkeypatch.setattr(joined, "matrix_unit", lambda: False)
    assert joined.convolved(torch.ones(8, 4, 4, 4).to(torch.bfloat16), kernel.to(torch.bfloat16)).shape == (8, 4, 4, 4)
