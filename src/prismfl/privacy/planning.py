"""What a guarantee costs before anything is released, and what a given noise guarantees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prismfl.errors import PrivacyError
from prismfl.privacy.ledger import calibrate, epsilon_of


@dataclass(frozen=True)
class Plan:
    """One client's release: n images, Δ and σ of the mean vector, σ / Δ, and ε at δ.

    noise_to_signal: norm of the noise to be expected, σ √D, over 1, the largest that the mean vector's norm can be.
    """

    images: int
    sensitivity: float
    sigma: float
    noise_multiplier: float
    noise_to_signal: float
    epsilon: float


def plans(
    sizes: Sequence[int],
    delta: float,
    dimension: int,
    *,
    epsilon: float = 0.0,
    sigma: float = 0.0,
    images_per_person: int = 1,
) -> list[Plan]:
    """A plan for each client's number of images: what σ an ε needs, or what ε a σ gives.

    epsilon or sigma, not both; Δ is that of non-negative features, √2 · images_per_person / n.  Unit: the images
    of one person at one client; adjacency: replace-one.  Raises PrivacyError for what is impossible.
    """
    if (epsilon == 0) == (sigma == 0):
        raise PrivacyError(f"ε = {epsilon} and σ = {sigma}", "one of the two", "give --epsilon, or --sigma")
    if not sigma >= 0 or dimension < 1 or images_per_person < 1:
        raise PrivacyError(
            f"σ = {sigma}, {dimension} entries, {images_per_person} images a person", "positive numbers", "mend them"
        )
    return [_plan(size, delta, dimension, epsilon, sigma, images_per_person) for size in sizes]


def _plan(size: int, delta: float, dimension: int, epsilon: float, sigma: float, most: int) -> Plan:
    if size < 2 or delta >= 1 / size:
        raise PrivacyError(f"{size} images with δ = {delta}", "at least 2 images, and δ below 1 / images", "mend them")
    sensitivity = math.sqrt(2) * most / size
    multiplier = calibrate(epsilon, delta) if epsilon else sigma / sensitivity
    noise = multiplier * sensitivity
    return Plan(size, sensitivity, noise, multiplier, noise * math.sqrt(dimension), epsilon_of(multiplier, delta))


def at_clients(found: Sequence[Plan], clients: int, delta: float) -> float:
    """ε, at δ, of one person with images at so many clients: at those where it is largest.  Raises PrivacyError."""
    if not 1 <= clients <= len(found):
        raise PrivacyError(f"a person at {clients} clients", f"1 … {len(found)}, the clients", "mend the number")
    squares = sorted((plan.noise_multiplier**-2 for plan in found), reverse=True)[:clients]
    return epsilon_of(sum(squares) ** -0.5, delta)
