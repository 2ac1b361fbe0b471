"""What is logged of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismfl.federation.agreement import Reply
from prismfl.generator.layout import Layout


@dataclass
class Traffic:
    """Bytes and frames that went up (client → server) and down.

    Examples:
        >>> traffic = Traffic()
        >>> traffic.down({0: b"four", 1: b"four"})
        >>> traffic.up(b"reply")
        >>> traffic.downlink_bytes, traffic.uplink_bytes
        (8, 5)
    """

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    uplink_frames: int = 0
    downlink_frames: int = 0

    def up(self, reply: Reply) -> None:
        """Count a reply, if it is one."""
        if isinstance(reply, bytes):
            self.uplink_bytes += len(reply)
            self.uplink_frames += 1

    def down(self, frames: Mapping[int, bytes]) -> None:
        """Count frames sent."""
        self.downlink_bytes += sum(map(len, frames.values()))
        self.downlink_frames += len(frames)


@dataclass(frozen=True)
class RoundRecord:
    """What is logged of a round: of θ_{t+1}, but mask_entropy of θ_t.

    Attributes:
        round: t.
        loss: mean over clients of their mean squared distance.
        kept_share: λ.
        density: share of ones among the masks.
        theta_variance: mean θ(1 - θ).
        mask_entropy: bits a parameter of a mask given θ_t alone.
        flips: mean over clients of `Distance.flips`; None where all layers are α layers.
        local_divergence: mean over clients of `Distance.divergence`; None where all layers are α layers.
        theta_by_layer: mean θ of each layer, by its name.
        replied: clients that count, ascending.
        left_out: clients that do not, and why.
        asked: size of the cohort.
        traffic: bytes of the round, of all its attempts.
    """

    round: int
    loss: float
    kept_share: float
    density: float
    theta_variance: float
    mask_entropy: float
    flips: float | None
    local_divergence: float | None
    theta_by_layer: Mapping[str, float]
    replied: tuple[int, ...]
    left_out: Mapping[int, str]
    asked: int
    traffic: "Traffic"


@dataclass(frozen=True)
class Distance:
    """How far a client's mask M is from the global model θ_t that it began from, among the entries sent.

    Attributes:
        flips: share with M ≠ [u < θ_t], u the uniforms that M was drawn with: in expectation the mean of |θ_k - θ_t|,
            and 0 for a client with no news.
        divergence: mean of |M - θ_t|, which is the expected normalised Hamming distance of M from a mask drawn from
            θ_t independently: the paper's local divergence Δ_t, without the noise of drawing that mask; 2θ(1 - θ) on
            average for a client with no news.
    """

    flips: float
    divergence: float


@dataclass(frozen=True)
class News:
    """What the log keeps of a reply: the client's loss, and how far its mask is from θ_t (None of no mask)."""

    loss: float
    moved: Distance | None


def distance_of(mask: NDArray[np.bool_], u: NDArray[np.uint16], q: NDArray[np.uint16]) -> Distance | None:
    """How far a mask is from θ_t; None of no entries.

    Args:
        mask: bool `[n]`.
        u: the uniforms that it was drawn with, uint16 `[n]`.
        q: θ_t · 65536, uint16 `[n]`.

    Examples:
        >>> u, q = np.array([16384, 49152], np.uint16), np.array([32768, 32768], np.uint16)
        >>> moved = distance_of(np.array([True, True]), u, q)
        >>> float(moved.flips), moved.divergence
        (0.5, 0.5)
    """
    if not len(mask):
        return None
    # 65536 - q, which q ≥ 1 keeps within 16 bits.
    apart = np.where(mask, np.negative(q), q).mean(dtype=np.float64) / 65536
    return Distance(np.count_nonzero(mask != (u < q)) / len(mask), float(apart))


def mean_distance(found: Sequence[Distance | None]) -> tuple[float | None, float | None]:
    """Mean flips and mean divergence, of those that have any."""
    there = [one for one in found if one is not None]
    if not there:
        return None, None
    return float(np.mean([one.flips for one in there])), float(np.mean([one.divergence for one in there]))


def mean_by_layer(layout: Layout, theta: NDArray[np.float64]) -> dict[str, float]:
    """Mean θ of each layer, by its name, from all of them, float64 `[N]`."""
    return {layer.name: float(theta[layer.span].mean()) for layer in layout.layers}


def mask_entropy(q: NDArray[np.uint16]) -> float:
    """Bits a parameter that a mask takes which is coded given θ = q / 65536 alone, q uint16 `[N]`.

    Examples:
        >>> mask_entropy(np.array([32768], np.uint16))
        1.0
    """
    theta = np.maximum(q, 1) / 65536
    return float(np.mean(-theta * np.log2(theta) - (1 - theta) * np.log2(1 - theta)))
