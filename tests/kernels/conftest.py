"""What tests of the compiled kernels share."""

import pytest

from prismfl.kernels import fused

MOST = 3  # kinds of processors are 0 … 3


@pytest.fixture(params=range(MOST + 1))
def kind(request):
    """Every kind of processor that this one can stand for."""
    if fused._fast.limit(request.param) != request.param:
        fused._fast.limit(MOST)
        pytest.skip(f"this processor is no kind {request.param}")
    yield request.param
    fused._fast.limit(MOST)
