"""The ledger: what was released of private data, and the (ε, δ) that it adds up to.

A release adds noise of standard deviation σ to a vector of which one person's images move the
L2 norm by at most Δ.  Of Gaussian noise the curve of (ε, δ) is known exactly (Balle, Wang 2018,
theorem 8), and of several releases it is that of one release with (Δ/σ)² = Σ (Δ_i/σ_i)² (Dong,
Roth, Su 2022, corollary 3.3).  What a discrete sampler changes is bounded in total variation, and
paid for in δ: see `rounding_distance`.

The unit is the images of one person (`images_per_person`) at one client; adjacency is
replace-one, after the images were dealt to clients.  Where a client knows its persons the unit is all images of one,
however many, and n counts persons.  Importing this needs neither torch nor
dp-accounting; figures need dp-accounting.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prismfl.errors import DependencyError, PrivacyError
from prismfl.settings.schema import Privacy

UNIT = "the images of one person at one client, images_per_person of them at most"
PERSON_UNIT = "all images of one person at one client, of whom each counts once"
ADJACENCY = "replace-one, after the images were dealt to clients; the number of images is public"
PERSON_ADJACENCY = "replace-one person, after the images were dealt to clients; the number of persons is public"
MECHANISMS = ("gaussian", "distributed-gaussian", "gaussian-theta")
SAMPLERS = {"exact": "OpenDP's discrete Gaussian", "fast": "NumPy's normals, rounded, from system entropy"}

_LEAST_SCALE = 1000.0  # below it the bound of `rounding_distance` was not proved
_SAME = 1e-6  # figures of one entry may differ by this much before it is called inconsistent
_LATER = {"sites", "colluders", "dropouts"}  # fields that older files do not have


@dataclass(frozen=True)
class Entry:
    """One release of one client's store, or `count` alike with noise of their own.

    epsilon, delta: what the release alone was asked to give; noise_multiplier: σ / Δ; sigma,
    sensitivity: σ and Δ in units of mean moments; slack: total variation between the noise drawn
    and rounded Gaussian noise; images: n, of persons where the unit is whole ones; dimension: entries of the vector;
    versions: of libraries.
    sites, colluders, dropouts: of a sum that sites opened together and shared the noise of (mechanism
    `distributed-gaussian`, see `privacy/pooled.py`); n is then that of all of them, and the figures hold against the
    server and so many colluders; 0 of a client's own release.
    Raises PrivacyError for figures that are impossible or contradict each other.
    """

    client: int
    mechanism: str
    sampler: str
    epsilon: float
    delta: float
    noise_multiplier: float
    sigma: float
    sensitivity: float
    slack: float
    images: int
    images_per_person: int
    dimension: int
    count: int = 1
    unit: str = UNIT
    adjacency: str = ADJACENCY
    versions: Mapping[str, str] = field(default_factory=dict)
    sites: int = 0
    colluders: int = 0
    dropouts: int = 0

    def __post_init__(self) -> None:
        for name, fine in self._checks():
            if not fine:
                raise _unreadable(f"{name} = {getattr(self, name)!r}")

    def _checks(self) -> list[tuple[str, bool]]:
        """Names of fields, and whether each is what a release may write."""
        positive = ("epsilon", "noise_multiplier", "sensitivity", "images", "images_per_person", "dimension", "count")
        return [
            *((name, 0 < getattr(self, name) < math.inf) for name in positive),
            ("sigma", math.isclose(self.sigma, self.noise_multiplier * self.sensitivity, rel_tol=_SAME)),
            ("client", self.client >= 0),
            ("mechanism", self.mechanism in MECHANISMS),
            ("sampler", self.sampler in SAMPLERS),
            ("delta", 0 < self.delta < 1),
            ("slack", 0 <= self.slack < 1),
            ("unit", self.unit in (UNIT, PERSON_UNIT)),
            ("adjacency", self.adjacency == (PERSON_ADJACENCY if self.whole_persons else ADJACENCY)),
            ("images_per_person", self.images_per_person == 1 or not self.whole_persons),
            (
                "sites",
                (self.sites > 0) == (self.mechanism == "distributed-gaussian") and self.noises >= (self.sites > 0),
            ),
            ("colluders", self.colluders >= 0),
            ("dropouts", self.dropouts >= 0),
        ]

    @property
    def whole_persons(self) -> bool:
        """Whether it protects all images of a person, however many."""
        return self.unit == PERSON_UNIT

    @property
    def noises(self) -> int:
        """Sites whose noise counts: N - t - d."""
        return self.sites - self.colluders - self.dropouts


@dataclass(frozen=True)
class Guarantee:
    """(ε, δ) of a whole ledger, whose clients' persons are different ones: the largest of any client.

    weakest: the client of that ε; releases: its number of releases; clients: all that released.
    """

    epsilon: float
    delta: float
    weakest: int
    releases: int
    clients: int


# --------------------------------------------------------------------------------------- figures


def rounding_distance(dimension: int, scale: float) -> float:
    """Total variation, at most, between `dimension` discrete Gaussians and rounded Gaussians.

    scale: σ in steps of the integer grid, at least 1000.  Rounding after Gaussian noise on integers
    is post-processing, so a discrete Gaussian gives δ + (1 + e^ε) times this where a Gaussian
    gives (ε, δ).  With q(k) ∝ exp(-k²/2σ²) and p(k) the mass of N(0, σ²) within 1/2 of k,
    1 - 1/24σ² ≤ p/q ≤ exp(k²/24σ⁴) up to exp(-2π²σ²), hence χ²(p, q) ≤ 1/100σ⁴; divergences of
    independent entries add, and Pinsker gives √(dimension / 200) / σ².  Raises PrivacyError.
    """
    if scale < _LEAST_SCALE:
        raise PrivacyError(f"noise of {scale:.3g} grid steps", f"at least {_LEAST_SCALE:.0f}", "ask for a smaller ε")
    return math.sqrt(dimension / 200) / scale**2


@lru_cache(maxsize=256)  # a run asks for the same again for each client
def calibrate(epsilon: float, delta: float, dimension: int = 0, steps: float = math.inf) -> float:
    """σ / Δ of one release that is (ε, δ)-DP by the analytic Gaussian mechanism (Balle, Wang 2018).

    The unit is what Δ is the sensitivity to; here the images of one person at one client, replace-one.

    Args:
        epsilon: promised with `delta`.
        delta: promised with `epsilon`.
        dimension: entries of the released vector, where its noise is discrete; 0 for Gaussian noise.
        steps: Δ in steps of the discrete noise's grid.

    Returns:
        The noise multiplier σ / Δ; what discrete noise differs from Gaussian noise is paid for in δ.

    Raises:
        PrivacyError: where ε or δ is impossible, or δ cannot pay for the difference.

    Example:
        >>> round(calibrate(1.0, 1e-5), 3)
        3.731
    """
    _check(epsilon, delta)
    library = _dp_accounting()
    plain = float(library.get_sigma_gaussian(epsilon, delta))
    if not dimension:
        return plain
    paid = _payment(plain, delta, rounding_distance(dimension, plain * steps))
    # The library solves for σ to twelve digits: nine are rounded up.
    return float(library.get_sigma_gaussian(epsilon, delta - paid)) * (1 + 1e-9)


@lru_cache(maxsize=256)
def epsilon_of(noise_multiplier: float, delta: float, slack: float = 0.0) -> float:
    """ε at δ of Gaussian noise with σ / Δ, and total variation `slack` from it.  Raises PrivacyError."""
    _check(1.0, delta)
    return float(
        _dp_accounting().get_epsilon_gaussian(noise_multiplier, delta - _payment(noise_multiplier, delta, slack))
    )


def _payment(noise_multiplier: float, delta: float, slack: float) -> float:
    """(1 + e^ε) · slack, for an ε that is too large if anything: that of δ / 2."""
    if not slack:
        return 0.0
    above = float(_dp_accounting().get_epsilon_gaussian(noise_multiplier, delta / 2))
    paid = slack * (1 + math.exp(min(above, 700)))
    if paid > delta / 2:
        most = math.log(max(1.0, delta / (2 * slack)))
        raise PrivacyError(
            f"ε of about {above:.0f} at half of δ = {delta}",
            f"at most about {most:.0f}, for which δ pays what discrete noise differs from Gaussian noise",
            "ask for a smaller ε",
        )
    return paid


def _check(epsilon: float, delta: float) -> None:
    if not 0 < epsilon < math.inf:
        raise PrivacyError(f"ε = {epsilon}", "a number above 0", "choose ε between 0.1 and 10")
    if not 0 < delta < 1:
        raise PrivacyError(f"δ = {delta}", "a number between 0 and 1", "choose δ well below 1 / images")


def compose(entries: Sequence[Entry], delta: float = 0.0, clients_of_a_person: int = 1) -> Guarantee:
    """What all releases together guarantee.

    The unit is the images of one person at one client, the largest `images_per_person` among the entries; adjacency
    is replace-one.  Releases of one client compose (Dong, Roth, Su 2022, corollary 3.3); different clients hold
    different persons, so the worst one counts.

    Args:
        entries: the ledger.
        delta: at which ε is told; 0: the largest δ among the entries.
        clients_of_a_person: how many clients one person may have images at; the worst so many compose.

    Returns:
        ε, δ, and whose they are.

    Raises:
        PrivacyError: for an empty ledger, and for an ε past all bounds.
    """
    if not entries or clients_of_a_person < 1:
        raise PrivacyError("a ledger without entries", "at least one release", "there is no guarantee to state")
    delta = delta or max(entry.delta for entry in entries)
    spent = spent_by_client(entries, max(entry.images_per_person for entry in entries))
    worst = sorted(spent, key=lambda client: spent[client][0], reverse=True)[:clients_of_a_person]
    square = sum(spent[client][0] for client in worst)
    slack = max(spent[client][1] for client in spent) * len(worst)
    releases = sum(entry.count for entry in entries if entry.client == worst[0])
    return Guarantee(epsilon_of(square**-0.5, delta, slack), delta, worst[0], releases, len(spent))


def spent_by_client(entries: Sequence[Entry], images_per_person: int) -> dict[int, tuple[float, float]]:
    """Of each client, the sum of (Δ/σ)² and of slack over its releases, for persons of so many images.

    An entry's Δ is that of its own `images_per_person`; so many times as many images move a sum so many times as far,
    but one of persons no farther.
    """
    spent: dict[int, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for entry in entries:
        square, slack = spent[entry.client]
        factor = 1.0 if entry.whole_persons else entry.images_per_person / images_per_person
        multiplier = entry.noise_multiplier * factor
        spent[entry.client] = (square + entry.count / multiplier**2, slack + entry.count * entry.slack)
    return dict(spent)


def against(entry: Entry, colluders: int) -> float:
    """ε of a sum, at the entry's δ, against the server and so many sites; with all but one, of that site's noise alone.

    Unit: the images of one person at one site; adjacency: replace-one.  `dropouts` sites may have vanished besides, as
    far as there are any left.  Infinite where so little noise is left that δ cannot pay for its sampler.

    Examples:
        >>> from prismfl.features.networks import load_features
        >>> from prismfl.privacy.release import grid_of
        >>> from prismfl.settings.resolve import Matching
        >>> from prismfl.moments import FeatureMap
        >>> from prismfl.privacy.pooled import plan
        >>> grid = grid_of(FeatureMap(load_features("vgg"), Matching(), channels=1, size=16), classes=0)
        >>> entry, _ = plan(grid, Privacy(epsilon=1.0), images=60_000, sites=10, colluders=2, dropouts=1)
        >>> [round(against(entry, colluders), 2) for colluders in (0, 2, 5, 9)]
        [0.87, 1.0, 1.36, 2.95]
    """
    left = max(1, entry.sites - entry.dropouts - colluders)
    part = left / entry.noises  # of the variance; slack goes as its inverse
    try:
        return epsilon_of(entry.noise_multiplier * math.sqrt(part), entry.delta, entry.slack / part)
    except PrivacyError:
        return math.inf


def against_text(entry: Entry) -> str:
    """What the theorem says of a sum, and what is left of it with more colluders: for people."""
    rows = [(more, against(entry, more)) for more in sorted({entry.colluders + 1, entry.sites // 2, entry.sites - 1})]
    beyond = ", ".join(f"{_bound(epsilon)} against {more}" for more, epsilon in rows if more > entry.colluders)
    return (
        f"one sum of {entry.sites} sites, of which {entry.dropouts} may drop out: ε = {entry.epsilon:g} for all images "
        f"against the server and any {entry.colluders} of them" + (f"; {beyond}" if beyond else "")
    )


def _bound(epsilon: float) -> str:
    return f"{epsilon:.4g}" if epsilon < math.inf else "no bound"


def as_asked(entry: Entry, privacy: Privacy) -> bool:
    """Whether a client's entry says that it released what a run asked for: the same promise, by noise that keeps it.

    Unit and adjacency are those of the entry.
    """
    same = all(getattr(entry, name) == getattr(privacy, name) for name in ("epsilon", "delta"))
    same = same and (entry.whole_persons or entry.images_per_person == privacy.images_per_person)
    if not same or entry.sampler != privacy.noise or entry.count != 1 or entry.delta >= 1 / entry.images:
        return False
    try:
        return epsilon_of(entry.noise_multiplier, entry.delta, entry.slack) <= privacy.epsilon * (1 + _SAME)
    except PrivacyError:
        return False


def summary_of(entries: Sequence[Entry]) -> str:
    """The guarantee in one line, for people."""
    if not entries:
        return "no formal guarantee: ε was not set"
    found, person = compose(entries), protected(entries)
    caution = "" if all(entry.sampler == "exact" for entry in entries) else "; noise by the fast sampler"
    against = "".join(sorted({_against(entry) for entry in entries}))
    return f"({found.epsilon:.4g}, {found.delta:g})-differentially private for {person} at one client{against}{caution}"


def covered(entry: Entry) -> str:
    """How many images of a person a release protects, for a table."""
    return "all" if entry.whole_persons else str(entry.images_per_person)


def protected(entries: Sequence[Entry]) -> str:
    """What all of these releases protect, for people."""
    if all(entry.whole_persons for entry in entries):
        return "all images of one person"
    most = max(entry.images_per_person for entry in entries)
    return "one image" if most == 1 else f"up to {most} images of one person"


def _against(entry: Entry) -> str:
    """Of a sum: whom its noise holds against."""
    if not entry.sites:
        return ""
    return f", against the server and any {entry.colluders} of the {entry.sites} sites together"


# ----------------------------------------------------------------------------------------- JSON


def to_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Entries as plain values, as they stand in `ledger.json` and in a model file."""
    return [asdict(entry) | {"versions": dict(entry.versions)} for entry in entries]


def from_json(values: Any) -> tuple[Entry, ...]:
    """Entries from plain values, each field checked.  Raises PrivacyError."""
    if not isinstance(values, list | tuple):
        raise _unreadable(f"{type(values).__name__} for a list")
    return tuple(map(_entry, values))


def _entry(value: Any) -> Entry:
    kinds = {item.name: item.type for item in fields(Entry)}
    if not isinstance(value, Mapping) or not set(kinds) - _LATER <= set(value) <= set(kinds):
        raise _unreadable("other fields than a release has")
    for name, kind in kinds.items():
        if name in value and not _fits(kind, value[name]):
            raise _unreadable(f"{name} = {value[name]!r}")
    return Entry(**value)


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e308  # whole ones may be longer than a float can say
    if kind in (int, str):
        return type(value) is kind
    return isinstance(value, dict) and all(isinstance(one, str) for pair in value.items() for one in pair)


def _unreadable(what: str) -> PrivacyError:
    return PrivacyError(
        f"a ledger entry with {what}",
        "an entry as a release writes it",
        "fetch the file anew: what it says of privacy cannot be relied on",
    )


# ------------------------------------------------------------------------------------- libraries


def versions() -> dict[str, str]:
    """Versions of the libraries that a release relies on."""
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {}
    for name in ("dp-accounting", "numpy", "opendp", "prismfl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise DependencyError(
            f"dp-accounting does not import ({error})", "it, for any figure of privacy", "pip install dp-accounting"
        ) from None
    return dp_accounting
