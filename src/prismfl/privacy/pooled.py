"""The release of all sites together: each adds a share of the noise to its exact sums, and only the sum is opened.

Of N sites t may tell the server all that they know and d may vanish.  Each draws discrete Gaussian noise of variance
σ²/(N - t - d), so that whatever N - d of them are left and whichever t collude, the honest ones' noise has variance σ²
at least (Kairouz, Liu, Steinke, ICML 2021).  Noise beyond that is post-processing.

The unit is the images of one person at one site, `images_per_person` at most, or of a site that knows its persons all
of them; adjacency is replace-one.  One image, or the mean of one person's, moves the sum over all sites by √2 · NORM
steps whatever its site's size, and n is the number of all images, which is public.  Against more than t colluders less
noise is left: see `ledger.against`.

A sum of m discrete Gaussians of variance s² is one of variance m s² but for a factor within 1 ± 8 m exp(-π² s²) of each
probability (docs/concepts/privacy.md), which for s of 1000 steps and more is nearer to 1 than any float tells.  So what
it differs from rounded Gaussian noise by is `rounding_distance` of √m s.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import PrivacyError
from prismfl.moments import FeatureMap, Target
from prismfl.privacy.ledger import Entry, calibrate, rounding_distance
from prismfl.privacy.noise import noisy
from prismfl.privacy.release import NORM, Grid, check_sizes, entry_at, integer_sums, to_target
from prismfl.settings.schema import Privacy
from prismfl.sums.rules import usual

_TAIL = 40  # σ of noise that the ring has room for: beyond is what no run will ever see


def share(scale: float, noises: int) -> int:
    """σ of each site's own noise, in whole steps, for `noises` honest ones to come to `scale` together.

    Raises PrivacyError where it is too little for the proof of what sums of it are.

    Examples:
        >>> share(6000, noises=9)
        2000
    """
    found = math.ceil(scale / math.sqrt(noises))
    rounding_distance(1, found)  # refuses what is below the least scale
    return found


def plan(
    grid: Grid,
    privacy: Privacy,
    images: int,
    sites: int,
    colluders: int,
    dropouts: int,
    client: int = 0,
    *,
    persons: bool = False,
) -> tuple[Entry, int]:
    """What a sum will cost each site, known before an image is looked at, and σ of its own share of the noise.

    Unit: the images of one person at one site; adjacency: replace-one.

    Args:
        grid: of the release.
        privacy: what is asked for.
        images: n of all sites of the sum, of persons at those that know them.
        sites: N, whose keys each of them pins.
        colluders: t, that may tell the server all that they know.
        dropouts: d, that may vanish.
        client: whose ledger the entry is for.
        persons: whether it knows its own.

    Returns:
        The ledger's entry, and σ in whole steps.

    Raises:
        PrivacyError: for what no noise gives.
    """
    check_sizes(privacy, [images])
    if privacy.noise != "exact":
        raise PrivacyError(f"a secure sum by the {privacy.noise} sampler", "exact noise", "leave --noise out")
    steps, noises = grid.sensitivity * privacy.images_per_person, sites - colluders - dropouts
    mine = share(calibrate(privacy.epsilon, privacy.delta, grid.entries, steps) * steps, noises)
    alone = entry_at(grid, privacy, images, client, mine * math.sqrt(noises), persons=persons)
    mechanism = "distributed-gaussian"
    return replace(alone, mechanism=mechanism, sites=sites, colluders=colluders, dropouts=dropouts), mine


# --------------------------------------------------------------------------------- numbers of the sum


def width_of(images: int, sites: int, own: int) -> int:
    """Bytes a word in which the sum of so many images and so many sites' noise of σ = `own` steps has room."""
    return (math.ceil(images * NORM + _TAIL * math.sqrt(sites) * own).bit_length() + 8) // 8


def site_sums(
    features: FeatureMap,
    grid: Grid,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    own: int,
    people: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """A site's exact sums with its share of the noise, σ = `own` steps (0: none): int64 `[G · E]`.

    Unit: the images of one person at one site, with `people` all of them; adjacency: replace-one.
    """
    sums = integer_sums(features, grid, images, labels, people)
    return (noisy(sums, own, "exact") if own else sums).ravel()


def pooled_target(sums: NDArray[np.int64], grid: Grid, images: int, sites: int, own: int) -> Target:
    """The opened sum int64 `[G · E]` of so many images and sites as a target: post-processing."""
    scale = math.ceil(own * math.sqrt(sites))
    return to_target(sums.reshape(max(1, grid.classes), grid.width), grid, scale, images)


def noise_in_mean(grid: Grid, privacy: Privacy, sizes: Sequence[int], *, persons: bool, summed: bool) -> float:
    """Norm of the noise in the mean of all clients' moments, as the distance sees it; an image's features have norm 1.

    Known before an image is looked at.  Unit and adjacency are those of the releases.

    Args:
        grid: of the releases.
        privacy: what is asked for.
        sizes: images of each client, or where `persons` these.
        persons: whether it is known whose each image is.
        summed: whether there is one secure sum, of sites whose policies leave colluders and drop-outs open.

    Raises:
        PrivacyError: for what no noise gives.
    """
    if summed:
        colluders, dropouts = usual(len(sizes))
        entry, _ = plan(grid, privacy, sum(sizes), len(sizes), colluders, dropouts, persons=persons)
        return entry.sigma * math.sqrt(len(sizes) / entry.noises * grid.noise)
    most = 1 if persons else privacy.images_per_person
    one = calibrate(privacy.epsilon, privacy.delta) * math.sqrt(2) * most * NORM / grid.scale
    return math.sqrt(sum(size**-2 for size in sizes) * grid.noise) * one / len(sizes)
