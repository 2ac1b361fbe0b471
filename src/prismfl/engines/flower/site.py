"""One client's place: its number, what is local to it, what it answers, and what it wrote down of that."""

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from flwr.app import Context
from pydantic import ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

from prismfl.data.files import write_atomic
from prismfl.data.lock import alone
from prismfl.engines.sums import Member
from prismfl.errors import PolicyError, SettingError
from prismfl.privacy.chain import Chain
from prismfl.privacy.policy import Policy, policy_from, read_policy
from prismfl.privacy.source import SourceLedger
from prismfl.settings.schema import Features, Running, Settings
from prismfl.sums.secrets import Identity

AUDIT = "audit.jsonl"  # in a site's state folder
_PATIENCE = 60.0  # seconds to wait for another message's line


@dataclass(frozen=True)
class Site:
    """One client's place: its number, and what is local to it.

    state: folder of what it keeps, or None where Flower simulates it; data_dir: its images; ledger: file of all that
    was ever released of its images; key: private one that proves to other sites who this is; policy: file of what it
    answers, which the budget and most_epsilon go over; people: pattern that tells in file names whose image each is.  A
    run's own pattern is never searched for here: what it finds and what not would tell the server of names.  server:
    whom it answers, for its own log.
    """

    client: Annotated[StrictInt, Field(ge=0, alias="partition-id")]
    state: Annotated[Path | None, Field(alias="state-dir")] = None
    data_dir: Path | None = None
    device: str = "cpu"
    features: str = ""
    ledger: Path = Path()
    key: Path | None = None
    policy: Path | None = None
    budget_epsilon: float = 0.0
    budget_delta: float = 0.0
    most_epsilon: float = 0.0
    people: str = ""
    server: str = ""

    __pydantic_config__ = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))

    @classmethod
    def of(cls, context: Context) -> "Site":
        """From the node's configuration, in which the names have dashes.  Raises SettingError."""
        return cls.read(context.node_config)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Site":
        """From a node's configuration.  Raises SettingError."""
        given = {name: value for name, value in config.items() if value != ""}
        if "state-dir" not in given and "num-partitions" not in given:
            raise SettingError("no state-dir", "the client's own folder", "set state-dir in --node-config")
        if "state-dir" in given and "ledger" not in given:
            raise SettingError("no ledger", "the file of all that its images release", "set ledger in --node-config")
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            wrong = error.errors()[0]
            name = str(wrong["loc"][0])
            raise SettingError(f"{name} = {given.get(name)!r}", wrong["msg"], "set it in --node-config") from None

    @property
    def simulated(self) -> bool:
        """Whether Flower simulates this client: then its data are those of the run's settings."""
        return self.state is None

    def token(self) -> bytes:
        """Sixteen bytes that only this client knows, made once.  Raises RunFolderError."""
        if self.state is None:
            return bytes(16)
        path = self.state / "token"
        if not path.is_file():
            write_atomic(path, secrets.token_hex(16) + "\n", private=True)
        return bytes.fromhex(path.read_text(encoding="ascii"))

    def rules(self) -> Policy:
        """What this site answers, as it stands now.  Raises SettingError, PrivacyError."""
        asked = {
            "budget_epsilon": self.budget_epsilon,
            "budget_delta": self.budget_delta,
            "largest_epsilon": self.most_epsilon,
        }
        changes = {name: value for name, value in asked.items() if value}
        return read_policy(self.policy, **changes) if self.policy else policy_from(changes)

    def member(self) -> Member:
        """What it brings to secure sums.  Raises PolicyError where its policy pins no keys, SettingError for no key."""
        rules = self.rules().sums()
        if self.key is None:
            raise PolicyError("a secure sum", "this site's own key", "pass --key client-N.key at the site")
        return Member(rules, Identity.read(self.key), self.state and self.state / "summed")

    def source(self) -> SourceLedger:
        """The ledger of this site's images, with the budget of its rules."""
        return SourceLedger(self.ledger, self.rules().budget())

    def local(self, settings: Settings, network: str = "") -> Settings:
        """Public settings with what is this machine's own: feature files and device.

        network: SHA-256 of what is matched, once it is known.  Raises PolicyError for a run beyond this site's rules,
        and where the run matches a network that is in a file of no known place.
        """
        self.rules().check(settings, self.source(), network, persons=bool(self.people))
        name = settings.features.network
        if settings.data.people and settings.data.partition != "given":
            raise PolicyError(
                "a run that deals persons to clients on other machines",
                "partition given, each client with its own",
                "leave --people out at the server",
            )
        if name == "file" and not self.features:
            raise PolicyError("a run that matches a network in a file", "that file here too", "pass --features FILE")
        running = Running(device=self.device, cache_dir=str(self.state) if self.state else "")
        return replace(settings, features=self.matched(name), running=running)

    def matched(self, name: str) -> Features:
        """The network that a run names, `file` for one in a file, with the file that this site has of it."""
        mine = Features(self.features)
        return Features(name) if name != mine.network and name != "file" else mine

    def note(self, **fields: Any) -> None:
        """A line of the site's own log of what it answered; it never leaves.  Raises PrismError subclasses."""
        if self.state is None:
            return
        chain = Chain(self.state / AUDIT, "audit log")
        with alone(self.state / f".{AUDIT}.lock", "the audit log", _PATIENCE):
            chain.append({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "server": self.server, **fields})


def asked_of(settings: str) -> dict[str, str]:
    """What the log says of settings: their SHA-256."""
    return {"settings": hashlib.sha256(settings.encode()).hexdigest()}
