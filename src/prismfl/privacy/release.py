"""The one release of a client's images: exact integer sums of bounded vectors, noise, a `Target`.

An image's feature vector is put on an integer grid and its L2 norm is held to `NORM` steps,
after rounding and by exact arithmetic.  Sums over images are exact int64.  Replacing one image
then moves the sum by at most √2 · NORM, for no entry is below 0, and such vectors are never more
than a right angle apart.  Of n images the mean moves by √2 / n.  Products of a summary (`features/summary.py`) may be
below 0, and are never more than a right angle apart before they are rounded: with them vectors are held to less than
NORM, by as much as rounding may add to their distance (`Grid.bound`).

Every entry gets the same noise, so blocks are released with weights of their own, a_j² ∝ w_j √d_j where the
distance gives a block of d_j entries the weight w_j: of all weights whose squares have the same sum these leave the
least noise in the distance.  Blocks are scaled back after the noise.

Where images have labels, a vector stands in the block of its label, which leaves its norm as
it is, with one more entry that is the same for all images: its sum counts the label.  Sums are
divided by n, which is public, never by the number of a label's images.  What is done after the
noise (labels that drown in it are dropped) is post-processing and costs nothing.

The unit is the images of one person at one client, `images_per_person` at most; adjacency is
replace-one after the partition.  Where it is known whose each image is, a person's images make one vector, their mean,
which is as bounded as theirs; n counts persons, and the unit is all images of one.

Noise comes from the operating system, never from the run's seed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from prismfl.errors import DataError, PrivacyError
from prismfl.moments import Block, FeatureMap, Target
from prismfl.privacy.ledger import (
    ADJACENCY,
    PERSON_ADJACENCY,
    PERSON_UNIT,
    UNIT,
    Entry,
    calibrate,
    from_json,
    rounding_distance,
    to_json,
    versions,
)
from prismfl.privacy.noise import measurement, noisy
from prismfl.settings.schema import Privacy

# Every integer up to it is a float32, and sums of squares below 2^53 are exact in float64.
NORM = 2**24
LABEL_WEIGHT = 0.1  # norm of the entry that counts a label, of the whole vector's 1
_DROWNED = 2.0  # a label is dropped whose count is within so many σ of none
_PRODUCTS = 0.8  # of the squares of a release's weights, of products of a summary (study.md, "Where noise hurts")
_ROUNDED = 16  # steps that an entry is within of where it was before all rounding, in floats and to whole numbers
_BATCH = 16  # images at a time: their vectors stay in the processor's cache


@dataclass(frozen=True)
class Grid:
    """Public constants of a release: what is bounded by what, in steps of the integer grid.

    width: E, the entries of a label's block, of which with labels the last one counts;
    scale, label_scale: steps that make 1 of a feature entry and of a label's count; classes: 0
    for images without labels; stretch: float32 `[D]` or `[1]`, a_j / w_j of each feature entry, what it is multiplied
    by before the noise and divided by after it; signed: feature entries, the last, that may be below 0; shared: the
    last of these, which all labels have in the first one's block.
    """

    width: int
    scale: float
    label_scale: float
    classes: int
    stretch: NDArray[np.float32] = field(default_factory=lambda: np.ones(1, np.float32))
    signed: int = 0
    shared: int = 0

    @property
    def common(self) -> slice:
        """Entries of a block that all labels share."""
        end = self.width - (self.classes > 0)
        return slice(end - self.shared, end)

    @property
    def bound(self) -> int:
        """What an image's vector is held to, in steps.

        With entries that may be below 0 it is within ρ of one, of norm up to bound + ρ, that is at most a right angle
        from any other: two are then √2 (bound + ρ) + 2ρ ≤ √2 · NORM apart.
        """
        return NORM - math.ceil(3 * _ROUNDED * math.sqrt(self.signed))

    @property
    def entries(self) -> int:
        """Entries of the whole released vector."""
        return self.width * max(1, self.classes)

    @property
    def noise(self) -> float:
        """Squared norm of the noise in what is matched as it is, in σ²: that of so many entries not stretched."""
        entries = self.width - (self.classes > 0)
        seen = np.broadcast_to(self.stretch, entries).astype(np.float64)[: entries - self.signed]
        return float((1 / seen**2).sum()) * max(1, self.classes)

    @property
    def sensitivity(self) -> float:
        """How far replacing one image moves the sum, at most: L2 norm in steps."""
        return math.sqrt(2) * NORM


def grid_of(features: FeatureMap, classes: int) -> Grid:
    """The grid of a feature map: vectors of norm 1 fill it but for what rounding may add."""
    counted, signed = classes > 0, sum(block.size for block in features.blocks if block.signed)
    weights, sizes = release_weights(features.blocks), [block.size for block in features.blocks]
    width = features.dimension + counted
    stretch = [one / block.weight for one, block in zip(weights, features.blocks, strict=True)]
    room = math.sqrt(width)
    weight = LABEL_WEIGHT if counted else 0.0
    most = Grid(width, 1.0, 1.0, classes, signed=signed).bound - room
    scale, label_scale = most * math.sqrt(1 - weight**2), float(int(most * weight))
    lengths = np.repeat(np.array(stretch, np.float32), sizes)
    return Grid(width, scale, label_scale, classes, lengths, signed, features.shared)


def release_weights(blocks: Sequence[Block]) -> NDArray[np.float64]:
    """Weights a_j of a feature vector's blocks in a release: float64 `[J]`, a_j² ∝ w_j √d_j, Σ a_j² = Σ w_j².

    They minimise Σ d_j w_j² / a_j², the noise in the distance in units of σ², by Cauchy's inequality.  Products of a
    summary, of which single directions must stand out of the noise, have a share of their own.
    """
    weights, signed = np.array([block.weight for block in blocks]), np.array([block.signed for block in blocks])
    squares = weights * np.sqrt([block.size for block in blocks])
    shares = np.where(signed, _PRODUCTS, 1 - _PRODUCTS if signed.any() else 1.0)
    sums = np.where(signed, squares @ signed, squares @ ~signed)
    return np.asarray(np.sqrt(shares * squares / sums * (weights @ weights)))


# ------------------------------------------------------------------------------- before the noise


def quantise(vectors: Tensor, grid: Grid) -> Tensor:
    """Feature vectors float32 `[B, D]` as whole numbers, float64 `[B, E]`, of enforced norm.

    Each row's norm is at most `grid.bound`, and no feature but the last `grid.signed` is below 0.  Raises DataError for
    features that are not finite.
    """
    if not bool(torch.isfinite(vectors).all()):
        raise DataError("features that are not finite", "finite ones", "check the images and the feature network")
    steps = torch.from_numpy(grid.stretch * np.float32(grid.scale)).to(vectors.device)
    whole = (vectors * steps).round_().double()
    whole[:, : whole.shape[1] - grid.signed].clamp_min_(0)
    if grid.classes:
        whole = torch.cat((whole, whole.new_full((len(whole), 1), grid.label_scale)), 1)
    return enforce(whole, grid.bound)


def enforce(whole: Tensor, bound: int) -> Tensor:
    """Rows of whole numbers, float64 `[B, E]`, with those of norm above `bound` shrunk to it.

    Squares are summed exactly as long as they stay below 2^53; where they do not, they are
    far above the bound, and that is seen all the same.  Truncation brings no entry away from 0.
    """
    squares = torch.linalg.vecdot(whole, whole)
    over = squares > bound**2
    if bool(over.any()):
        factor = bound / squares[over].sqrt() * (1 - 2**-20)
        whole[over] = (whole[over] * factor[:, None]).trunc()
        if not bool((torch.linalg.vecdot(whole, whole) <= bound**2).all()):
            raise PrivacyError("a vector that cannot be bounded", "a finite one", "check the feature network")
    return whole


def integer_sums(
    features: FeatureMap,
    grid: Grid,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    people: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Sums over images uint8 `[n, C, H, W]`, by label int64 `[n]`: exact int64 `[G, E]`.

    people: int64 `[n]`, whose each is: then the sum is over persons, of the mean over each one's images, rounded down.
    A mean is no longer than the longest, and no farther from what no rounding touched, so replacing a person and all of
    its images moves the sum no farther than replacing an image does.

    Batches follow the order given, and hold images of one person alone where these are known: replacing one changes
    neither the company nor the place that any other is computed in, so not the last bit of its vector either.  Raises
    DataError for labels that were not agreed on.
    """
    groups = max(1, grid.classes)
    tags = labels if grid.classes else np.zeros(len(images), np.int64)
    if tags.shape != (len(images),) or not np.isin(tags, np.arange(groups)).all():
        raise DataError(f"labels {tags.dtype} {list(tags.shape)}", f"0 … {groups - 1}, one an image", "mend the labels")
    sums = np.zeros((groups, grid.width), np.int64)
    if people is None:
        _add_images(sums, features, grid, images, tags, 0)
        sums[0, grid.common] = _common(sums, grid)
        return sums
    for place, rows in enumerate(np.split(np.argsort(people, kind="stable"), _ends(people))):
        mine, row = np.unique(tags[rows], return_inverse=True)
        person = np.zeros((len(mine), grid.width), np.int64)
        _add_images(person, features, grid, images[rows], row, place)  # neighbours are seen at other shifts
        sums[0, grid.common] += _common(person, grid) // len(rows)
        sums[mine] += person // len(rows)
    return sums


def _common(sums: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
    """Take the entries that all labels share out of sums by label `[G, E]`, and add them up: int64 `[shared]`."""
    found = np.asarray(sums[:, grid.common].sum(0), np.int64)
    sums[:, grid.common] = 0
    return found


def _ends(people: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each person's images end among those sorted by person, but for the last: int64 `[persons - 1]`."""
    return np.asarray(np.cumsum(np.unique(people, return_counts=True)[1])[:-1], np.int64)


def _add_images(
    sums: NDArray[np.int64],
    features: FeatureMap,
    grid: Grid,
    images: NDArray[np.uint8],
    tags: NDArray[np.int64],
    first: int,
) -> None:
    """Add to int64 `[G, E]` each image's vector in the row of its tag; first: the number of the first of them."""
    for start in range(0, len(images), _BATCH):
        batch = tags[start : start + _BATCH]
        whole = quantise(features.vectors(images[start : start + _BATCH], first + start), grid)
        for tag in np.unique(batch):
            mine = whole[torch.from_numpy(batch == tag).to(whole.device)]
            sums[tag] += _summed(mine)


def _summed(whole: Tensor) -> NDArray[np.int64]:
    """Whole numbers float64 `[B, E]` summed over rows: exact, for B · NORM is below 2^53."""
    return whole.sum(0).cpu().numpy().astype(np.int64)


# --------------------------------------------------------------------------------- the release


@dataclass(frozen=True)
class Released:
    """What leaves a client's images: the noisy target, and what the ledger says of it."""

    target: Target
    entry: Entry


def check_sizes(privacy: Privacy, sizes: list[int]) -> None:
    """Raises PrivacyError, before an image is looked at, where no release could give what is asked.

    sizes: images of each client, or where they are known persons; they are public.
    """
    for client, size in enumerate(sizes):
        if size < 2:
            raise PrivacyError(
                f"client {client} with {size} images or persons", "at least 2 for a release", "leave the client out"
            )
        if privacy.delta >= 1 / size:
            raise PrivacyError(
                f"privacy.delta = {privacy.delta} with {size} images or persons of client {client}",
                f"below 1 / {size} = {1 / size:.2g}",
                "choose a smaller privacy.delta",
            )
    calibrate(privacy.epsilon, privacy.delta, 1, math.sqrt(2) * NORM)
    if privacy.noise == "exact":
        measurement(1.0)


def covered_note(privacy: Privacy, *, persons: bool) -> list[str]:
    """A line where images_per_person has no effect, for it is known whose each image is."""
    if not persons or privacy.images_per_person == 1:
        return []
    return [
        "note: it is known whose each image is, so a person counts once and all of its images are covered: "
        f"privacy.images_per_person = {privacy.images_per_person} changes nothing"
    ]


def release(
    features: FeatureMap,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: int,
    privacy: Privacy,
    client: int = 0,
    people: NDArray[np.int64] | None = None,
) -> Released:
    """Release images uint8 `[n, C, H, W]` with labels int64 `[n]` once, (ε, δ)-differentially private.

    The Gaussian mechanism at the analytic calibration (Balle, Wang 2018), on integers; what its
    discrete sampler differs by is paid for in δ.  Unit: the images of one person here, at most
    `images_per_person`, or with `people`, int64 `[n]`, all of them; adjacency: replace-one.  Every call draws new noise
    and spends anew.  Raises PrivacyError, DataError, DependencyError.
    """
    grid, units = grid_of(features, classes), len(images) if people is None else len(np.unique(people))
    entry, scale = _planned(grid, privacy, units, client, persons=people is not None)
    drawn = noisy(integer_sums(features, grid, images, labels, people), scale, privacy.noise)
    return Released(to_target(drawn, grid, scale, units), entry)


def entry_of(
    features: FeatureMap, classes: int, privacy: Privacy, units: int, client: int = 0, *, persons: bool = False
) -> Entry:
    """What the release of a client's images will cost, known before one of them is looked at.  Raises PrivacyError.

    units: images, or where `persons` these.
    """
    return _planned(grid_of(features, classes), privacy, units, client, persons=persons)[0]


def _planned(grid: Grid, privacy: Privacy, units: int, client: int, *, persons: bool) -> tuple[Entry, int]:
    """The ledger's entry, and σ in whole steps."""
    check_sizes(privacy, [units])
    steps = grid.sensitivity * (1 if persons else privacy.images_per_person)
    scale = math.ceil(calibrate(privacy.epsilon, privacy.delta, grid.entries, steps) * steps)
    return entry_at(grid, privacy, units, client, scale, persons=persons), scale


def entry_at(grid: Grid, privacy: Privacy, units: int, client: int, scale: float, *, persons: bool = False) -> Entry:
    """The ledger's entry of a release of n = `units` with noise of σ = `scale` steps.  Raises PrivacyError.

    Unit: the images of one person at one client, `images_per_person` at most, or where `persons` all of them;
    adjacency: replace-one.
    """
    most = 1 if persons else privacy.images_per_person
    steps, one = grid.sensitivity * most, units * grid.scale
    return Entry(
        client=client,
        mechanism="gaussian",
        sampler=privacy.noise,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        noise_multiplier=scale / steps,
        sigma=scale / one,
        sensitivity=steps / one,
        slack=rounding_distance(grid.entries, scale) if privacy.noise == "exact" else 0.0,
        images=units,
        images_per_person=most,
        dimension=grid.entries,
        unit=PERSON_UNIT if persons else UNIT,
        adjacency=PERSON_ADJACENCY if persons else ADJACENCY,
        versions=versions(),
    )


def to_target(drawn: NDArray[np.int64], grid: Grid, scale: int, images: int) -> Target:
    """A target of noisy sums int64 `[G, E]`: post-processing, which costs no privacy.

    Entries keep their noise, those below 0 too: a search follows sums over thousands of entries, in
    which noise averages out and the bias of clamping would add up.  A label whose noisy count is within
    two σ of 0 has moments and share 0, for what stands there is noise; unless that holds of all labels.
    """
    means = (drawn[:, :-1] if grid.classes else drawn) / (images * grid.scale * grid.stretch)
    if not grid.classes:
        return Target(means.astype(np.float32).ravel(), images)
    counts = drawn[:, -1].clip(0)
    heard = counts > _DROWNED * scale if counts.max() > _DROWNED * scale else counts > 0
    counts = np.where(heard, counts, 0)
    shares = counts / counts.sum() if counts.any() else np.full(len(counts), 1 / len(counts))
    moments = np.where(heard[:, None], means, 0)
    moments[:, grid.common] = 0  # noise, but for what all labels share
    moments[0, grid.common] = means[0, grid.common]
    return Target(moments.astype(np.float32).ravel(), images, shares)


# --------------------------------------------------------------------------------- what is stored


def to_bytes(released: Released) -> bytes:
    """A release as it is stored, before it is used for anything."""
    entry = np.frombuffer(json.dumps(to_json([released.entry])).encode(), np.uint8)
    target = released.target
    return save(
        {"moments": target.moments, "shares": target.shares, "images": np.array([target.images]), "entry": entry}
    )


def from_bytes(raw: bytes) -> Released:
    """A release that was stored.  Raises PrivacyError for bytes that are none."""
    try:
        arrays = load(raw)
        (entry,) = from_json(json.loads(arrays["entry"].tobytes()))
        target = Target(arrays["moments"], int(arrays["images"][0]), arrays["shares"])
    except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
        raise PrivacyError(
            f"a stored release that does not read ({type(error).__name__})",
            "the release as it was stored",
            "restore the file, for drawing again would release the images twice",
        ) from None
    return Released(target, entry)
