"""Gaussian noise on integers, from the operating system's entropy and never from a run's seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import DependencyError


def noisy(sums: NDArray[np.int64], scale: int, sampler: str) -> NDArray[np.int64]:
    """Integers with Gaussian noise of σ = `scale` steps on each: int64 of the same shape.

    exact: OpenDP's discrete Gaussian, sampled exactly; fast: NumPy's normals, rounded.  Either
    way from the operating system's entropy.  Raises DependencyError when OpenDP does not import.
    """
    flat = sums.reshape(-1)
    drawn = _discrete(flat, scale) if sampler == "exact" else flat + _rounded(len(flat), scale)
    return drawn.reshape(sums.shape)


def _discrete(values: NDArray[np.int64], scale: int) -> NDArray[np.int64]:
    # A scale below 2^53 is the same number as a float.
    return np.asarray(measurement(float(scale))(values.tolist()), np.int64)


def measurement(scale: float) -> Any:
    """OpenDP's Gaussian measurement of int64 vectors.  Raises DependencyError."""
    try:
        import opendp.prelude as library
        from opendp.measurements import make_gaussian
    except ImportError as error:
        raise DependencyError(
            f"opendp does not import ({error})", "it, for exact noise", "pip install opendp"
        ) from None
    library.enable_features("contrib")
    domain = library.vector_domain(library.atom_domain(T="i64"))
    return make_gaussian(domain, library.l2_distance(T="f64"), scale=scale)


def _rounded(count: int, scale: int) -> NDArray[np.int64]:
    """Normals of a generator that is seeded from the operating system: rounded, int64 `[count]`."""
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence()))
    return np.rint(draws.normal(0.0, scale, count)).astype(np.int64)
