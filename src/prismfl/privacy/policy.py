"""What a site answers: its own rules for what servers may ask, whatever they ask."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prismfl.errors import PolicyError, SettingError
from prismfl.privacy.source import Budget, SourceLedger
from prismfl.settings.check import pointed
from prismfl.settings.schema import AUTO, Settings
from prismfl.settings.toml import read_toml, toml_value
from prismfl.sums.rules import Rules, usual
from prismfl.sums.secrets import public_key

WITHOUT = ("until-release", "never", "always")
_ABOUT = {
    "budget_epsilon": "most ε that all releases of this site's images may come to, together",
    "budget_delta": "δ at which that ε is told",
    "largest_epsilon": "most ε of one run; 0: whatever the budget has room for",
    "largest_delta": "most δ of one run",
    "images_per_person": "images that one person has here at most: a run must cover as many",
    "samplers": "of the noise: exact, or fast as well",
    "modes": "masks, one-shot",
    "networks": "SHA-256 of the feature networks that may be matched; none: any",
    "sizes": "pixels a side",
    "least_cohort": "clients a round, at least: of fewer, sums say much of each",
    "without_epsilon": "runs without ε: until-release (none once this site has released anything), never, always",
    "sums_alone": "answer no run but one whose server sees sums alone (--secure-sum)",
    "sites": "public keys of all sites of a secure sum, in order of their numbers, as client-N.pub have them",
    "colluders": "of these, how many may tell the server all that they know; -1: a fifth",
    "dropouts": "and how many may vanish; -1: a tenth",
    "one_shot_without_epsilon": "also send the moments of images as they are, which hides nothing",
}


@dataclass(frozen=True)
class Policy:
    """A site's rules; see `_ABOUT` for what each says, and `policy_text` for the file.

    Raises SettingError for values that none can have, PrivacyError for a budget that is none.
    """

    budget_epsilon: float
    budget_delta: float
    largest_epsilon: float = 0.0
    largest_delta: float = 1e-5
    images_per_person: int = 1
    samplers: tuple[str, ...] = ("exact",)
    modes: tuple[str, ...] = ("masks", "one-shot")
    networks: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (16, 32, 64)
    least_cohort: int = 2
    without_epsilon: str = WITHOUT[0]
    one_shot_without_epsilon: bool = False
    sums_alone: bool = False
    sites: tuple[str, ...] = ()
    colluders: int = AUTO
    dropouts: int = AUTO

    def __post_init__(self) -> None:
        self.budget()
        for name, allowed in (
            ("samplers", ("exact", "fast")),
            ("modes", ("masks", "one-shot")),
            ("sizes", (16, 32, 64)),
        ):
            if not set(getattr(self, name)) <= set(allowed):
                raise _wrong(name, getattr(self, name), f"of {allowed}")
        if self.without_epsilon not in WITHOUT:
            raise _wrong("without_epsilon", self.without_epsilon, f"one of {', '.join(WITHOUT)}")
        if not (self.largest_epsilon >= 0 and 0 < self.largest_delta < 1):
            raise _wrong(
                "largest_epsilon, largest_delta", (self.largest_epsilon, self.largest_delta), "ε ≥ 0, 0 < δ < 1"
            )
        if self.images_per_person < 1 or self.least_cohort < 1:
            raise _wrong("images_per_person, least_cohort", (self.images_per_person, self.least_cohort), "numbers ≥ 1")
        if self.sites:
            self.sums()

    def budget(self) -> Budget:
        """What the site's source may spend."""
        return Budget(self.budget_epsilon, self.budget_delta)

    def sums(self) -> Rules:
        """What the site asks of a secure sum.  Raises PolicyError where it pins no keys, SettingError for odd ones."""
        if not self.sites:
            raise _beyond("a secure sum", "the keys of all sites in `sites`: make it with `federate policy --keys`")
        told = (self.colluders, self.dropouts)
        colluders, dropouts = (
            usually if one == AUTO else one for one, usually in zip(told, usual(len(self.sites)), strict=True)
        )
        return Rules(self.sites, colluders, dropouts)

    def check(self, settings: Settings, ledger: SourceLedger, network: str = "", *, persons: bool = False) -> None:
        """Refuse what goes beyond the rules, before an image is read.

        settings: what the server asks; ledger: of this site's images; network: SHA-256 of what is matched, once it is
        known; persons: whether the site says whose each image is, so that all of a person's are covered.  Raises
        PolicyError, whose words hold nothing but what the server asked and what the rules allow;
        PrivacyError for a ledger that is not whole.
        """
        privacy, federation = settings.privacy, settings.federation
        clients = federation.cohort or settings.data.clients
        found: list[tuple[str, Any, bool, Any]] = [
            ("mode", federation.mode, federation.mode in self.modes, self.modes),
            ("size", settings.pixels, settings.pixels in self.sizes, self.sizes),
            (
                "a feature network with SHA-256",
                network,
                not network or network in (self.networks or (network,)),
                self.networks,
            ),
            ("clients a round", clients, clients >= self.least_cohort, f"at least {self.least_cohort}"),
        ]
        if privacy.epsilon:
            most = self.largest_epsilon or self.budget_epsilon
            found += [
                ("epsilon", privacy.epsilon, privacy.epsilon <= most, f"at most {most:g}"),
                ("delta", privacy.delta, privacy.delta <= self.largest_delta, f"at most {self.largest_delta:g}"),
                ("noise", privacy.noise, privacy.noise in self.samplers, self.samplers),
                (
                    "images_per_person",
                    privacy.images_per_person,
                    persons or privacy.images_per_person >= self.images_per_person,
                    f"at least {self.images_per_person}",
                ),
            ]
        for name, value, fine, allowed in found:
            if not fine:
                raise _beyond(f"{name} = {value}", str(allowed))
        self._check_sum(settings)
        if not privacy.epsilon:
            self._check_plain(federation.mode, ledger)

    def _check_sum(self, settings: Settings) -> None:
        """That the server sees sums alone, if only such runs are answered; and that nobody invents a site."""
        clients = settings.data.clients
        if not settings.federation.secure_sum:
            if self.sums_alone:
                raise _beyond("a run without secure_sum", "a run with it")
        elif len(self.sums().keys) != clients:
            raise _beyond(f"a secure sum of {clients} clients", f"{len(self.sites)}, whose keys are pinned")

    def _check_plain(self, mode: str, ledger: SourceLedger) -> None:
        """Runs without ε: masks tell something of images, and moments as they are tell nearly all."""
        if mode == "one-shot" and not self.one_shot_without_epsilon:
            raise _beyond("mode = one-shot without epsilon", "a run with epsilon, for moments as they are hide nothing")
        if self.without_epsilon == "never" or (self.without_epsilon == WITHOUT[0] and ledger.releases()):
            raise _beyond("a run without epsilon", "a run with epsilon")


def _beyond(got: str, allowed: str) -> PolicyError:
    return PolicyError(got, f"{allowed}, by this site's policy", "ask for less, or ask the site to change its policy")


def _wrong(name: str, value: Any, allowed: str) -> SettingError:
    return SettingError(f"{name} = {value!r} in a policy", allowed, "mend the policy file")


def policy_from(values: Mapping[str, Any]) -> Policy:
    """A policy from plain values, as its TOML file has them.  Raises SettingError, PrivacyError."""
    known = {item.name: item for item in fields(Policy)}
    if unknown := sorted(set(values) - set(known)):
        raise _wrong(unknown[0], values[unknown[0]], f"one of {', '.join(known)}")
    if missing := [name for name in ("budget_epsilon", "budget_delta") if name not in values]:
        raise SettingError(
            f"no {missing[0]}", "what the source may spend in all", f"set it, or pass --{missing[0].replace('_', '-')}"
        )
    return Policy(**{name: _typed(name, value) for name, value in values.items()})


def _typed(name: str, value: Any) -> Any:
    """A value of the field's type.  Raises SettingError."""
    like = {"samplers": ("",), "modes": ("",), "networks": ("",), "sites": ("",), "sizes": (0,)}.get(name)
    if like is not None:
        if not isinstance(value, list | tuple) or any(type(one) is not type(like[0]) for one in value):
            raise _wrong(name, value, f"a list as {toml_value(list(like))}")
        return tuple(value)
    kind = {item.name: item.type for item in fields(Policy)}[name]
    if kind is float and type(value) is int:
        value = pointed(value)
    if type(value) is not kind:
        raise _wrong(name, value, getattr(kind, "__name__", str(kind)))
    return value


def pinned(folder: Path) -> tuple[str, ...]:
    """Public keys of a folder's client-0.pub, client-1.pub …, in order.  Raises SettingError where one is missing."""
    found = {path.stem: path for path in folder.glob("client-*.pub")}
    names = [f"client-{number}" for number in range(len(found))]
    if not found or set(found) != set(names):
        raise SettingError(
            f"{len(found)} public keys in {folder}", "client-0.pub, client-1.pub … of all sites", "mend --keys"
        )
    return tuple(public_key(found[name].read_text(encoding="utf-8", errors="replace")) for name in names)


def read_policy(path: Path, **changes: Any) -> Policy:
    """A site's policy file, with other values laid over it.  Raises SettingError, PrivacyError."""
    try:
        values = read_toml(path)
    except SettingError as error:
        raise SettingError(error.got, "a policy file", "make one: prismfl federate policy") from None
    return policy_from(values | changes)


def policy_text(policy: Policy) -> str:
    """The policy as TOML, a comment a line."""
    lines = ["# What this site answers; what a server asks beyond it is refused before an image is read."]
    for name, value in asdict(policy).items():
        lines += ["", f"# {_ABOUT[name]}", f"{name} = {toml_value(value)}"]
    return "\n".join(lines) + "\n"
