"""Several masks of one frozen network, each searched for what those before it miss.

Images of a model take turns among its masks, so its moments are the mean of theirs.  After k masks with moments
m_1 … m_k the next is searched towards (k + 1) t - m_1 - … - m_k: met, the mean of all is the target t.  What one
network cannot show the next one does, as in boosting (Friedman 2001, with functions in place of moments).  A search
goes on from the mask before: what that has learnt of the data is not learnt again.  Nothing but the target is private,
and it is not asked for again.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prismfl.generator.modelfile import Model
from prismfl.generator.sampling import Sampler
from prismfl.moments import FeatureMap, Target

_LOOKED_AT = 5000  # images of a mask that its moments are the mean of
_SEED = 2**63  # of their latents: no one samples with it


def missing(
    features: FeatureMap, whole: Target, last: Target, model: Model, number: int, device: str = "cpu"
) -> Target:
    """What the next mask is searched towards: what the last one was, and the target less what that came to.

    Args:
        features: the map that images are matched by.
        whole: the target of the whole model.
        last: what the last mask was searched towards.
        model: of that mask alone.
        number: of that mask, from 0: each has latents of its own.
        device: torch device that makes its images.

    Returns:
        A target of the same shape.

    Examples:
        >>> from types import SimpleNamespace
        >>> from prismfl.generator.layout import Layout
        >>> from prismfl.generator.sampling import finish
        >>> layout = Layout(size=16, channels=1, width=2, latent=8)
        >>> one = finish(layout, 0, np.ones(layout.count, np.bool_), "")
        >>> black = SimpleNamespace(target=lambda images, labels, classes: Target(np.zeros(1, np.float32), len(images)))
        >>> whole = Target(np.ones(1, np.float32), images=50)
        >>> second = missing(black, whole, whole, one, 0)
        >>> second.moments.tolist(), missing(black, whole, second, one, 1).moments.tolist()
        ([2.0], [3.0])
    """
    labels = labels_in(whole.shares, _LOOKED_AT)
    images = Sampler(model, device).sample(
        len(labels), seed=_SEED + number, labels=labels if model.layout.classes else None
    )
    found = features.target(images, labels, model.layout.classes).moments
    moments = last.moments.astype(np.float64) + whole.moments - found
    return replace(whole, moments=moments.astype(np.float32))


def labels_in(shares: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Labels in these shares `[G]`, each within 1 of its own: int64 `[count]`.

    Examples:
        >>> labels_in(np.array([0.5, 0.0, 0.5]), 4).tolist()
        [0, 0, 2, 2]
    """
    points = (np.arange(count) + 0.5) / count
    return np.searchsorted(np.cumsum(shares) / shares.sum(), points).clip(0, len(shares) - 1).astype(np.int64)
