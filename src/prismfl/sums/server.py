"""The server's part in a secure sum: it carries messages, and opens the sum once enough sites unmask it.

What it was told is kept after each step, so that a server that was started again goes on with the same sum.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property

from prismfl.errors import ClientError, MessageError, PrismError
from prismfl.sums.frames import NAME, TAG, WIDTHS, Advert, Step, Sum, open_step, seal_step
from prismfl.sums.ring import Ring, Words, add
from prismfl.sums.secrets import SECRET, join, public_of
from prismfl.sums.site import own_key, own_tag, pair_key, pair_sign, share_tag

Replies = Callable[[Mapping[int, bytes]], Iterator[tuple[int, bytes | PrismError]]]
Enough = Callable[[], int]  # replies that are enough, as far as is known by now
# What follows the shares in each site's INBOX message; the argument: sites that have lost their way, None for all.
Rests = Callable[[Collection[int] | None], Mapping[int, bytes]]


@dataclass
class Memory:
    """What a server keeps of a sum: its name, and the rows or vectors of each step that is done, by site.

    keep: puts it on the disk; called after each step.
    """

    name: bytes = field(default_factory=lambda: os.urandom(NAME))
    steps: MutableMapping[Step, dict[int, bytes]] = field(default_factory=dict)
    keep: Callable[["Memory"], None] = lambda _: None

    def adverts(self) -> dict[int, Advert]:
        """What the sites said of themselves."""
        return {client: Advert.from_bytes(row) for client, row in self.steps[Step.KEYS].items()}


@dataclass(frozen=True)
class Opened:
    """A sum that is open.

    Attributes:
        survivors: whose vectors are in it, ascending.
        totals: the words of each group's sum.
        adverts: what the survivors said of themselves.
        left_out: sites that are not in it, and why.
        wrong: sites in it that told a wrong share, and of whom.
    """

    survivors: tuple[int, ...]
    totals: Mapping[int, Words]
    adverts: Mapping[int, Advert]
    left_out: Mapping[int, str]
    wrong: Mapping[int, str]


class SumServer:
    """One sum, from the first message to the opened total.

    Args:
        of: the sum, with any client in its place; its name is the memory's.
        groups: the group of each member of the cohort: vectors of one group are added up.
        rings: where the vectors of each group live, once the sites' keys are known.
        exchange: carries frames to sites and yields their replies; it may ask how many of them are enough.
        memory: of the sum as far as it got.
        rests: see `Rests`.
        lost: whether a reply says that its sender has lost its way.
        at_least: survivors that whoever runs the server wants besides.
    """

    def __init__(
        self,
        of: Sum,
        groups: Mapping[int, int],
        rings: Callable[[Mapping[int, Advert]], Mapping[int, Ring]],
        exchange: Callable[[Enough], Replies],
        memory: Memory,
        rests: Rests = lambda _: {},
        lost: Callable[[int, bytes], bool] = lambda *_: False,
        at_least: int = 1,
    ) -> None:
        self.of, self.groups, self._made_rings, self.exchange = of, groups, rings, exchange
        self.memory, self.rests, self.lost, self.at_least = memory, rests, lost, at_least
        self.left_out, self.wrong = dict[int, str](), dict[int, str]()

    def run(self) -> Opened:
        """All steps that are left.  Raises ClientError where too few sites are left, MessageError for a wrong sum."""
        keys = self._step(Step.KEYS, lambda: self._each(Step.OPEN, self.groups, {}), self._alike)
        shares = self._step(Step.SHARES, lambda: self._each(Step.LIST, keys, keys))
        masked = self._step(Step.MASKED, lambda: self._inboxes(shares))
        signed = self._signed(masked)
        told = self._step(Step.UNMASK, lambda: self._each(Step.SIGNATURES, masked, signed))
        return self._opened(masked, told)

    @cached_property
    def rings(self) -> Mapping[int, Ring]:
        """Where the vectors of each group live."""
        return self._made_rings(self.memory.adverts())

    def _signed(self, masked: Mapping[int, bytes]) -> dict[int, bytes]:
        """Signatures of the survivors, and once a sum goes on those of sites that had vanished before they signed.

        For a site unmasks only after it has signed, and without it there may be too few.
        """

        def asked(clients: Collection[int]) -> dict[int, bytes]:
            return self._each(Step.SURVIVORS, clients, dict.fromkeys(masked, b""))

        before = self.memory.steps.get(Step.SIGNED)
        if before is None or Step.UNMASK in self.memory.steps:
            return self._step(Step.SIGNED, lambda: asked(masked))
        late = [client for client in masked if client not in before]
        more = self._replies(Step.SIGNED, asked(late), lambda: 0) if late else {}
        self.memory.steps[Step.SIGNED] = dict(sorted({**before, **more}.items()))
        self.memory.keep(self.memory)
        return self.memory.steps[Step.SIGNED]

    # ------------------------------------------------------------------------------------ steps

    def _step(
        self,
        step: Step,
        ask: Callable[[], Mapping[int, bytes]],
        checked: Callable[[dict[int, bytes]], dict[int, bytes]] = lambda found: found,
    ) -> dict[int, bytes]:
        """What each site answered: as it was kept, or asked for now."""
        if step in self.memory.steps:
            return self.memory.steps[step]
        found = checked(self._replies(step, ask()))
        least = self._least(step, found)
        if len(found) < least:
            raise ClientError(
                f"{len(found)} of {len(self.groups)} sites in a secure sum ({self._why()})",
                f"at least {least}, by the sites' own policies",
                "start those that are missing, ask those that refused, and resume the run",
            )
        self.memory.steps[step] = found
        self.memory.keep(self.memory)
        return found

    def _why(self) -> str:
        """Who is left out, and why: a word for those of whom it is the same."""
        same = dict[str, list[str]]()
        for client, why in sorted(self.left_out.items()):
            same.setdefault(why, []).append(str(client))
        return "; ".join(f"client {', '.join(clients)}: {why}" for why, clients in same.items()) or "none came"

    def _replies(self, step: Step, frames: Mapping[int, bytes], enough: Enough | None = None) -> dict[int, bytes]:
        found, lost = dict[int, bytes](), list[int]()
        for client, reply in self.exchange(enough or (lambda: self._least(step, found)))(frames):
            if isinstance(reply, bytes) and step == Step.MASKED and client in frames and self.lost(client, reply):
                lost.append(client)
            elif client in frames and client not in found:
                self._hear(step, client, reply, found)
        if lost:
            again = self._inboxes(self.memory.steps[Step.SHARES], lost)
            there = len(found)
            for client, reply in self.exchange(lambda: self._least(step, found) - there)(again):
                if client in again and client not in found:
                    self._hear(step, client, reply, found)
        return dict(sorted(found.items()))

    def _hear(self, step: Step, client: int, reply: bytes | PrismError, found: dict[int, bytes]) -> None:
        try:
            if isinstance(reply, PrismError):
                raise reply
            found[client] = self._opened_reply(step, client, reply)
            self.left_out.pop(client, None)
        except PrismError as error:
            self.left_out[client] = str(error)

    def _opened_reply(self, step: Step, client: int, reply: bytes) -> bytes:
        """What is kept of a reply: its row, its rows one after the other, or the vector."""
        most = self.rings[self.groups[client]].size if step == Step.MASKED else 0
        rows, rest = open_step(reply, step, self.of.of(client), most)
        if step == Step.MASKED:
            self.rings[self.groups[client]].unpack(rest)
            return rest
        if step in (Step.KEYS, Step.SIGNED):
            if set(rows) != {client}:
                raise MessageError(f"rows of sites {sorted(rows)}", f"one of site {client}")
            return rows[client]
        expected = set(self.memory.steps[Step.KEYS if step == Step.SHARES else Step.SHARES])
        if set(rows) != expected:
            raise MessageError(f"rows of {len(rows)} sites", f"one of each of {len(expected)}")
        return b"".join(rows[site] for site in sorted(rows))

    def _alike(self, keys: dict[int, bytes]) -> dict[int, bytes]:
        """The keys of those whose policies say what most policies say."""
        adverts = {client: Advert.from_bytes(row) for client, row in keys.items()}
        counts = Counter(advert.rules for advert in adverts.values())
        usual = counts.most_common(1)[0][0] if counts else None
        for client, advert in adverts.items():
            if advert.rules != usual:
                self.left_out[client] = "its policy has other keys, colluders or drop-outs than most"
        return {client: row for client, row in keys.items() if adverts[client].rules == usual}

    def _least(self, step: Step, found: Mapping[int, bytes]) -> int:
        """Sites that are enough for a step: all, until the first of them has said how many may be missing."""
        keys = found if step == Step.KEYS else self.memory.steps[Step.KEYS]
        return self._rules(keys)[step == Step.UNMASK] if keys else len(self.groups)

    def _rules(self, keys: Mapping[int, bytes]) -> tuple[int, int]:
        """Survivors and shares that are needed."""
        adverts, members = [Advert.from_bytes(row) for row in keys.values()], len(self.groups)
        dropouts, colluders = min(one.dropouts for one in adverts), max(one.colluders for one in adverts)
        return max(members - dropouts, self.at_least), (members + colluders) // 2 + 1

    def _each(self, step: Step, to: Collection[int], rows: Mapping[int, bytes]) -> dict[int, bytes]:
        return {client: seal_step(step, self.of.of(client), rows) for client in to}

    def _inboxes(self, shares: Mapping[int, bytes], lost: Collection[int] | None = None) -> dict[int, bytes]:
        """For each site the shares that the others dealt it, and what else it needs."""
        size, dealt = WIDTHS[Step.INBOX], sorted(self.memory.steps[Step.KEYS])
        rests, found = self.rests(lost), {}
        for client in shares if lost is None else lost:
            at = dealt.index(client) * WIDTHS[Step.SHARES]
            rows = {site: row[at : at + size] for site, row in shares.items() if site != client}
            found[client] = seal_step(Step.INBOX, self.of.of(client), rows, rests.get(client, b""))
        return found

    # ---------------------------------------------------------------------------------- opening

    def _opened(self, masked: Mapping[int, bytes], told: Mapping[int, bytes]) -> Opened:
        """Each group's vectors without their masks."""
        adverts = self.memory.adverts()
        secrets = self._secrets(set(masked), told)
        gone = set(secrets) - set(masked)
        totals = {}
        for group, ring in self.rings.items():
            mine = [client for client in masked if self.groups[client] == group]
            total = ring.sum(ring.unpack(masked[client]) for client in mine)
            for client in mine:
                add(total, ring.stream(own_key(self.of, client, secrets[client])), -1)
            for lost in (client for client in gone if self.groups[client] == group):
                for client in mine:
                    key = pair_key(self.of, secrets[lost], lost, client, adverts[client].masking)
                    add(total, ring.stream(key), -pair_sign(client, lost))
            totals[group] = ring.unpack(ring.pack(total))
        heard = {client: adverts[client] for client in masked}
        why = {client: self.left_out.get(client, "not in the sum") for client in self.groups if client not in masked}
        return Opened(tuple(sorted(masked)), totals, heard, why, self.wrong)

    def _secrets(self, left: set[int], told: Mapping[int, bytes]) -> dict[int, bytes]:
        """Of survivors the secret behind their own masks, of others that dealt shares the key of their common ones."""
        keys, shares = self.memory.steps[Step.KEYS], self.memory.steps[Step.SHARES]
        places = {client: place for place, client in enumerate(sorted(keys))}
        needed, found = self._rules(keys)[1], dict[int, bytes]()
        for number, dealer in enumerate(sorted(shares)):
            which = 0 if dealer in left else 1
            valid = dict[int, bytes]()
            for holder, rows in told.items():
                share = rows[number * SECRET : (number + 1) * SECRET]
                at = places[holder] * WIDTHS[Step.SHARES] + WIDTHS[Step.INBOX] + which * TAG
                if share_tag(self.of, dealer, holder, which, share) == shares[dealer][at : at + TAG]:
                    valid[places[holder]] = share
                else:
                    self.wrong[holder] = f"client {holder} told a wrong share of client {dealer}'s secret"
            found[dealer] = self._joined(dealer, which, dict(list(valid.items())[:needed]), needed)
        return found

    def _joined(self, dealer: int, which: int, valid: dict[int, bytes], needed: int) -> bytes:
        if len(valid) < needed:
            raise ClientError(
                f"{len(valid)} right shares of client {dealer}'s secret",
                f"{needed}",
                "start the sites that are missing, and resume the run",
            )
        secret, advert = join(valid), Advert.from_bytes(self.memory.steps[Step.KEYS][dealer])
        named = own_tag(self.of, dealer, secret) == advert.own if which == 0 else public_of(secret) == advert.masking
        if not named:
            raise ClientError(f"shares of client {dealer} that give another secret", "its own", "start the run anew")
        return secret
