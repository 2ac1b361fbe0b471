"""What a guarantee costs before anything is released, and what a given noise guarantees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prismfl.errors import PrivacyError
from prismfl.privacy.ledger import calibrate, epsilon_of
from prismfl.settings.schema import AUTO
from prismfl.sums.rules import usual

_MULTIPLIERS = (1e-6, 1e9)  # of σ / Δ: the accountant's numbers do not reach further


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
    if not _MULTIPLIERS[0] <= multiplier <= _MULTIPLIERS[1]:
        raise PrivacyError(
            f"σ = {sigma:g}, {multiplier:.3g} times what one of {size} images can change",
            f"{_MULTIPLIERS[0]:g} to {_MULTIPLIERS[1]:g} times",
            "change σ",
        )
    noise = multiplier * sensitivity
    return Plan(size, sensitivity, noise, multiplier, noise * math.sqrt(dimension), epsilon_of(multiplier, delta))


def at_clients(found: Sequence[Plan], clients: int, delta: float) -> float:
    """ε, at δ, of one person with images at so many clients: at those where it is largest.  Raises PrivacyError."""
    if not 1 <= clients <= len(found):
        raise PrivacyError(f"a person at {clients} clients", f"1 … {len(found)}, the clients", "mend the number")
    squares = sorted((plan.noise_multiplier**-2 for plan in found), reverse=True)[:clients]
    return epsilon_of(sum(squares) ** -0.5, delta)


def sum_text(found: Sequence[Plan], delta: float, colluders: int = AUTO, dropouts: int = AUTO) -> str:
    """What one secure sum of all clients has in place of their own releases: a text of three lines.

    Unit: the images of one person at one client; adjacency: replace-one.

    Args:
        found: plans of the clients' own releases.
        delta: of the run.
        colluders: t; -1: what a policy has that leaves it open.
        dropouts: d; likewise.

    Raises:
        PrivacyError: for numbers with which no sum opens.

    Examples:
        >>> print(sum_text(plans([6000] * 10, 1e-5, 1000, epsilon=1.0), 1e-5))
        one secure sum of 10 clients: σ of the pooled mean 0.0001051, noise / signal 0.00332
        that is 2.65 times less than of their own releases
        ε = 1 against the server and any 2 of them; 2.95 against all 9 others
    """
    sites = len(found)
    t, d = (usually if one == AUTO else one for one, usually in zip((colluders, dropouts), usual(sites), strict=True))
    noises, images = sites - t - d, sum(plan.images for plan in found)
    if sites < 2 or noises < 1 or sites <= t + 2 * d:
        raise PrivacyError(
            f"a sum of {sites} clients, {t} colluders, {d} drop-outs", "more than t + 2 d clients", "mend the numbers"
        )
    one, shared = found[0].noise_multiplier, math.sqrt(sites / noises)
    sigma = one * shared * max(plan.sensitivity * plan.images for plan in found) / images
    norm = found[0].noise_to_signal / found[0].sigma  # of noise of σ = 1
    own = math.sqrt(sum((plan.sigma * plan.images / images) ** 2 for plan in found))
    alone = epsilon_of(one / math.sqrt(noises), delta)
    return (
        f"one secure sum of {sites} clients: σ of the pooled mean {sigma:.4g}, noise / signal {sigma * norm:.3g}\n"
        f"that is {own / sigma:.2f} times less than of their own releases\n"
        f"ε = {found[0].epsilon:.3g} against the server and any {t} of them; {alone:.3g} against all {sites - 1} others"
    )
