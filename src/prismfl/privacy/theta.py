"""The paper's mechanism, rightly calibrated: noise on a client's keep-probabilities, every round.

Clipped to [0.1, 0.9], N keep-probabilities of two stores may lie 0.8 √N apart, whatever one image
did to them: nothing smaller is known of a search.  Noise is calibrated to that and to the number of
rounds, and it drowns what it protects; this is here to show what it costs (see `docs/privacy.md`).

The unit is the images of one person at one client, however many; adjacency is replace-one.
"""

import math

import numpy as np
from numpy.typing import NDArray

from prismfl.config import Privacy
from prismfl.privacy.accountant import Entry, calibrate, rounding_distance, versions
from prismfl.privacy.release import noisy

UNITS = 65536  # of θ, as it travels
LOW, HIGH = 6554, 58982  # the clip range [0.1, 0.9] in whole units


def planned(privacy: Privacy, parameters: int, rounds: int, images: int, client: int) -> tuple[Entry, int]:
    """The ledger's entry of one round, and σ in units, so that `rounds` of them are (ε, δ)-DP.

    Rounds compose as Gaussians do: σ grows with √rounds, and the slack of all rounds together
    is that of one with σ / √rounds.  Raises PrivacyError.
    """
    steps = (HIGH - LOW) * math.sqrt(parameters)
    scale = math.ceil(calibrate(privacy.epsilon, privacy.delta, parameters, steps) * steps * math.sqrt(rounds))
    entry = Entry(
        client=client,
        mechanism="gaussian-theta",
        sampler=privacy.noise,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        noise_multiplier=scale / steps,
        sigma=scale / UNITS,
        sensitivity=steps / UNITS,
        slack=rounding_distance(parameters, scale) if privacy.noise == "exact" else 0.0,
        images=images,
        images_per_person=privacy.images_per_person,
        dimension=parameters,
        versions=versions(),
    )
    return entry, scale


def noised(q: NDArray[np.uint16], scale: int, sampler: str) -> NDArray[np.uint16]:
    """Keep-probabilities q / 65536, uint16 `[N]`, clipped, with noise of σ = `scale` units, clipped again."""
    drawn = noisy(q.astype(np.int64).clip(LOW, HIGH), scale, sampler)
    return drawn.clip(LOW, HIGH).astype(np.uint16)
