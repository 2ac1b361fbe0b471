"""Several masks of one frozen network, each searched for what those before it miss.

Images of a model take turns among its masks, so its moments are the mean of theirs.  After k masks with moments
m_1 … m_k the next is searched towards (k + 1) t - m_1 - … - m_k: met, the mean of all is the target t.  What one
network cannot show the next one does, as in boosting (Friedman 2001, with functions in place of moments).  A search
goes on from the mask before: what that has learnt of the data is not learnt again.  So later masks are better, and
where more are searched than the model is to have the last ones are kept: each takes the place of the oldest.  Nothing
but the target is private, and it is not asked for again.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prismfl.generator.modelfile import Model
from prismfl.generator.sampling import Sampler
from prismfl.moments import FeatureMap, Target

_LOOKED_AT = 5000  # images of a mask that its moments are the mean of
_SEED = 2**63  # of their latents: no one samples with it


def moments_of(
    features: FeatureMap, whole: Target, model: Model, number: int, device: str = "cpu"
) -> NDArray[np.float64]:
    """Moments of a mask's images, in the shares of labels that the target has.

    Args:
        features: the map that images are matched by.
        whole: the target of the whole model.
        model: of that mask alone.
        number: of that mask, from 0: each has latents of its own.
        device: torch device that makes its images.

    Returns:
        float64 `[G · D]`.
    """
    labels = labels_in(whole.shares, _LOOKED_AT)
    images = Sampler(model, device).sample(
        len(labels), seed=_SEED + number, labels=labels if model.layout.classes else None
    )
    return features.target(images, labels, model.layout.classes).moments.astype(np.float64)


def missing(whole: Target, found: Sequence[NDArray[np.float64]]) -> Target:
    """What a mask after the first is searched towards: with it the mean of all moments is the whole model's target.

    Args:
        whole: the target of the whole model.
        found: moments of the masks that are kept beside it, `[G · D]` each.

    Returns:
        A target of the same shape, which knows the real images' moments.

    Examples:
        >>> whole = Target(np.ones(1, np.float32), images=50)
        >>> missing(whole, [np.array([0.25]), np.array([1.5])]).moments.tolist()
        [1.25]
    """
    moments = (len(found) + 1) * whole.moments.astype(np.float64) - sum(found)
    return replace(whole, moments=moments.astype(np.float32), real=whole.moments)


def labels_in(shares: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Labels in these shares `[G]`, each within 1 of its own: int64 `[count]`.

    Examples:
        >>> labels_in(np.array([0.5, 0.0, 0.5]), 4).tolist()
        [0, 0, 2, 2]
    """
    points = (np.arange(count) + 0.5) / count
    return np.searchsorted(np.cumsum(shares) / shares.sum(), points).clip(0, len(shares) - 1).astype(np.int64)
