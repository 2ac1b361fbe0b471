"""One site's part in a secure sum (Bonawitz et al., CCS 2017): keys, shares, masked vector, survivors, unmasking.

Each answer is made once and kept: the same request gets the same bytes, and another in its place is refused.  A masked
vector so enters one sum, and a site that was started again goes on where it was.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from prismfl.errors import ClientError, MessageError, PolicyError
from prismfl.sums.frames import (
    TAG,
    Advert,
    Step,
    Sum,
    open_step,
    seal_step,
    site_bytes,
    step_of,
    sum_of,
    survivors_text,
)
from prismfl.sums.ring import Ring, Words, add
from prismfl.sums.rules import Rules
from prismfl.sums.secrets import SECRET, Identity, agreed, derived, fresh, opened, public_of, sealed, split, tag, verify
from prismfl.wire.frames import Place

State = dict[str, bytes]
_SEALED_ROW = 2 * SECRET + 16
_ASK = "start the run anew; tell the other sites if it comes again"


@dataclass(frozen=True)
class Vector:
    """What a site adds.

    Attributes:
        ring: where it lives.
        words: it itself.
        peers: sites whose vectors are added to the same sum, the site itself among them.
        hidden: whether noise hides it, of which all sites of the policy must add a share; else the sum must be of two
            honest vectors at least, and the vector enters no other.
    """

    ring: Ring
    words: Words
    peers: frozenset[int]
    hidden: bool = False


# The rest of the INBOX message and the sites that dealt shares → the vector, or the frame to answer with in its place.
MakeVector = Callable[[bytes, tuple[int, ...]], Vector | bytes]


class SumSite:
    """A site in one sum after another; `state` is all that it keeps, to be stored before an answer leaves.

    Examples:
        >>> from prismfl.sums.frames import Purpose
        >>> identities = [Identity.made() for _ in range(2)]
        >>> rules = Rules(tuple(one.public for one in identities), colluders=0, dropouts=0)
        >>> site = SumSite(rules, identities[0], 0, {})
        >>> of = Sum(Place(bytes(16), round=0, client=0), Purpose.RELEASE, bytes(16))
        >>> ask = seal_step(Step.OPEN, of, {})
        >>> site.answer(ask, of.place, (0, 1), lambda *_: b"") == site.answer(ask, of.place, (0, 1), lambda *_: b"")
        True
    """

    def __init__(
        self,
        rules: Rules,
        identity: Identity,
        client: int,
        state: State,
        images: int = 0,
        once: Callable[[bytes, bytes], bool] = lambda *_: True,
    ) -> None:
        if not (client < len(rules.keys) and rules.keys[client] == identity.public):
            raise ClientError(
                f"a key of client {client} that is not the one of number {client} in the policy",
                "the same key",
                "mend --key, --client or `sites` in the policy",
            )
        self.rules, self.identity, self.client, self.state, self.images = rules, identity, client, state, images
        self.once = once

    def answer(self, frame: bytes, place: Place, members: tuple[int, ...], vector: MakeVector) -> bytes:
        """The reply to any message of a sum.

        Args:
            frame: as it came.
            place: where this site is in its run.
            members: the round's cohort, ascending, whom the run's public settings name.
            vector: makes what the site adds, once it is asked for.

        Raises:
            MessageError: for a frame that does not read or is out of turn.
            ClientError: for keys, lists or shares that are not what they should be.
            PolicyError: for a sum that would hide too little.
        """
        step = step_of(frame)
        if step is None:
            raise MessageError("a frame that is no message of a sum", "one")
        of = sum_of(frame, step, place)
        if step == Step.OPEN:
            return self._open(of, members)
        if (self.state.get("name"), self.state.get("round")) != (of.name, _number(place.round)):
            raise MessageError("a message of another sum", "first that which opens it", "resume the run")
        match step:
            case Step.LIST:
                return self._answered("list", frame, lambda: self._shares(frame, of, members))
            case Step.INBOX:
                return self._masked(frame, of, members, vector)
            case Step.SURVIVORS:
                return self._answered("survivors", frame, lambda: self._signed(frame, of, members))
            case Step.SIGNATURES:
                if "signatures" in self.state:  # what was told of these survivors, whoever else has signed them since
                    return self.state["signatures"]
                told = self._answered("signatures", frame, lambda: self._unmasked(frame, of, members))
                self._forget()
                return told
        raise MessageError("a message that is not the server's", "one of a sum's five")

    def _answered(self, name: str, asked: bytes, make: Callable[[], bytes]) -> bytes:
        """The answer that was given to this request; a first one is made and kept."""
        digest, key = hashlib.sha256(asked).digest(), f"asked-{name}"
        if self.state.get(key, digest) != digest:
            raise ClientError(f"another {name} in a sum than before", "the same", _ASK)
        if key not in self.state:
            made = make()
            self.state |= {name: made, key: digest}
        if name not in self.state:
            raise ClientError("a vector of a sum that is open", "it once, before the sum was opened", "resume the run")
        return self.state[name]

    # ------------------------------------------------------------------------------- keys

    def _open(self, of: Sum, members: tuple[int, ...]) -> bytes:
        if (self.state.get("name"), self.state.get("round")) != (of.name, _number(of.place.round)):
            self._begin(of, members)
        return self.state["keys"]

    def _begin(self, of: Sum, members: tuple[int, ...]) -> None:
        self.rules.check(len(members))
        if self.client not in members:
            raise ClientError(f"client {self.client} outside the round's cohort", "its members", "resume the run")
        summed, hidden = self.state.get("summed", b""), self.state.get("hidden", b"")
        if summed and not hidden and of.place.round <= int.from_bytes(summed, "little"):
            raise ClientError(
                f"a second sum of round {of.place.round + 1}",
                "a later round: of two sums the difference would tell of one site",
                "begin a run with another --seed",
            )
        sealing, masking, own = fresh(), fresh(), fresh()
        rules = (len(self.rules.keys), self.rules.colluders, self.rules.dropouts, self.images)
        keys = (public_of(sealing), public_of(masking), own_tag(of, self.client, own))
        advert = Advert(*rules, self.rules.roster, *keys)
        signature = self.identity.sign(advert.signed_text(of))
        row = advert.to_bytes()[: -len(signature)] + signature
        self.state.clear()
        self.state |= {"name": of.name, "round": _number(of.place.round), "summed": summed, "hidden": hidden}
        self.state |= {"sealing": sealing, "masking": masking, "own": own, "advert": row}
        self.state["keys"] = seal_step(Step.KEYS, of, {self.client: row})

    def attempt(self, of: Sum) -> bytes:
        """Names what began when the sum was opened, sixteen bytes.

        Opened again it is another attempt, and takes another release: of two sums with one vector the difference would
        tell of a site.
        """
        return tag(b"prismfl attempt", of.context, self.state["advert"])[:16]

    # ------------------------------------------------------------------------------- shares

    def adverts(self) -> dict[int, Advert]:
        """What the sites of the sum said of themselves, once this site has checked it."""
        raw, size = self.state["adverts"], len(self.state["advert"])
        rows = [raw[at : at + 4 + size] for at in range(0, len(raw), 4 + size)]
        return {int.from_bytes(row[:4], "little"): Advert.from_bytes(row[4:]) for row in rows}

    def _shares(self, frame: bytes, of: Sum, members: tuple[int, ...]) -> bytes:
        rows, _ = open_step(frame, Step.LIST, of)
        self._check_adverts(rows, of, members)
        self.state["adverts"] = b"".join(site_bytes(client) + row for client, row in rows.items())
        adverts, threshold = self.adverts(), self.rules.threshold(len(members))
        secrets = (self.state["own"], self.state["masking"])
        dealt = zip(adverts, *(split(secret, threshold, len(adverts)) for secret in secrets), strict=True)
        found = {}
        for site, own, masking in dealt:
            tags = share_tag(of, self.client, site, 0, own) + share_tag(of, self.client, site, 1, masking)
            if site == self.client:
                self.state["kept"] = own + masking
                found[site] = bytes(_SEALED_ROW) + tags
            else:
                found[site] = sealed(self._sealing(of, self.client, site, adverts[site]), own + masking) + tags
        return seal_step(Step.SHARES, of, found)

    def _check_adverts(self, rows: dict[int, bytes], of: Sum, members: tuple[int, ...]) -> None:
        least, mine = self.rules.least(len(members)), Advert.from_bytes(self.state["advert"])
        if rows.get(self.client) != self.state["advert"] or not set(rows) <= set(members) or len(rows) < least:
            raise ClientError(
                f"keys of {len(rows)} sites",
                f"those of {least} of the cohort at least, this site's own among them",
                _ASK,
            )
        for client, row in rows.items():
            advert = Advert.from_bytes(row)
            if not verify(self.rules.keys[client], advert.signature, advert.signed_text(of.of(client))):
                raise ClientError(f"keys of site {client} signed by another key", "the one that this site pins", _ASK)
            if advert.rules != mine.rules:
                raise ClientError(
                    f"a policy of site {client} with {advert.sites} sites, {advert.colluders} colluders, "
                    f"{advert.dropouts} drop-outs" + ("" if advert.roster == mine.roster else " and other keys"),
                    f"{mine.sites}, {mine.colluders}, {mine.dropouts} and the same keys, as in this site's policy",
                    "agree on one policy of sums at all sites",
                )

    def _sealing(self, of: Sum, sender: int, receiver: int, peer: Advert) -> bytes:
        info = b"prismfl share" + of.context + site_bytes(sender, receiver)
        return agreed(self.state["sealing"], peer.sealing, info)

    # ------------------------------------------------------------------------------- masked vector

    def _masked(self, frame: bytes, of: Sum, members: tuple[int, ...], vector: MakeVector) -> bytes:
        rows, rest = open_step(frame, Step.INBOX, of, most=len(frame))
        inbox = seal_step(Step.INBOX, of, rows)  # what follows may differ: a site that has lost its way asks again
        if "asked-masked" in self.state:
            return self._answered("masked", inbox, lambda: b"")
        shares = self._inbox(rows, of, members)
        made = vector(rest, tuple(sorted((*rows, self.client))))
        if isinstance(made, bytes):
            return made
        self._check_group(made, [*rows, self.client], members)
        self.state |= {f"share-{site}": share for site, share in shares.items()}
        self.state["peers"] = site_bytes(*sorted(made.peers))
        self.state |= {"dealers": site_bytes(*sorted(shares)), "summed": _number(of.place.round)}
        self.state["hidden"] = b"noise" if made.hidden else b""
        self.state["vector"] = b"" if made.hidden else hashlib.sha256(made.words[0].tobytes()).digest()
        return self._answered("masked", inbox, lambda: seal_step(Step.MASKED, of, {}, self._hidden(of, made, shares)))

    def _inbox(self, rows: dict[int, bytes], of: Sum, members: tuple[int, ...]) -> dict[int, bytes]:
        """Shares of each dealer's two secrets, the site's own among them."""
        adverts, least = self.adverts() if "kept" in self.state else {}, self.rules.least(len(members))
        if not set(rows) <= set(adverts) - {self.client} or len(rows) + 1 < least:
            raise ClientError(
                f"shares of {len(rows) + 1} sites", f"those of {least} that had sent keys, at least", _ASK
            )
        found = {self.client: self.state["kept"]}
        for site, raw in rows.items():
            share = opened(self._sealing(of, site, self.client, adverts[site]), raw)
            if share is None:
                raise ClientError(f"a share that is not as site {site} sealed it", "its own bytes", _ASK)
            found[site] = share
        return found

    def _check_group(self, made: Vector, present: list[int], members: tuple[int, ...]) -> None:
        group = [site for site in members if site in made.peers]
        if made.hidden and len(group) != len(self.rules.keys):
            raise PolicyError(
                f"noise shared by {len(group)} sites", f"{len(self.rules.keys)}, all that the policy pins", _ASK
            )
        self.rules.check(len(members), group=None if made.hidden else len(group))
        self._check_left(set(present) & made.peers, len(group))

    def _check_left(self, left: set[int], group: int) -> None:
        if len(left) < self.rules.least(group):
            raise ClientError(
                f"{len(left)} of {group} sites of one sum left",
                f"at least {self.rules.least(group)}, by this site's policy",
                "start those that are missing, and resume the run",
            )

    def _hidden(self, of: Sum, made: Vector, shares: dict[int, bytes]) -> bytes:
        """The vector under the site's own mask and those that cancel out in the sum."""
        total = made.ring.sum([made.words, made.ring.stream(own_key(of, self.client, self.state["own"]))])
        for site in sorted(set(shares) & made.peers - {self.client}):
            key = pair_key(of, self.state["masking"], self.client, site, self.adverts()[site].masking)
            add(total, made.ring.stream(key), pair_sign(self.client, site))
        return made.ring.pack(total)

    # ------------------------------------------------------------------------------- unmasking

    def _signed(self, frame: bytes, of: Sum, members: tuple[int, ...]) -> bytes:
        rows, _ = open_step(frame, Step.SURVIVORS, of)
        dealers, left = sites_in(self.state.get("dealers", b"")), set(rows)
        if self.client not in left or not left <= set(dealers) or len(left) < self.rules.least(len(members)):
            raise ClientError(
                f"{len(left)} survivors",
                f"{self.rules.least(len(members))} of those that dealt shares, at least, this site among them",
                "start those that are missing, and resume the run",
            )
        peers = set(sites_in(self.state["peers"]))
        self._check_left(left & peers, len(peers))
        self._check_once(left & peers)
        self.state["left"] = site_bytes(*sorted(left))
        signature = self.identity.sign(survivors_text(of, tuple(sorted(left))))
        return seal_step(Step.SIGNED, of, {self.client: signature})

    def _check_once(self, left: set[int]) -> None:
        """Raises ClientError where the same vector, under no noise, was summed with other sites before, in any run."""
        vector, sites = self.state.get("vector", b""), sorted(self.rules.keys[site] for site in left)
        if vector and not self.once(vector, hashlib.sha256("\n".join(sites).encode()).digest()):
            raise ClientError(
                f"{len(left)} survivors, others than of an earlier sum of the same vector",
                "the same sites: the difference of the two sums would tell of one",
                "start those that are missing, and begin a new run",
            )

    def _unmasked(self, frame: bytes, of: Sum, members: tuple[int, ...]) -> bytes:
        rows, _ = open_step(frame, Step.SIGNATURES, of)
        left, needed = sites_in(self.state.get("left", b"")), self.rules.threshold(len(members))
        for site, signature in rows.items():
            if site not in left or not verify(self.rules.keys[site], signature, survivors_text(of, left)):
                raise ClientError(f"a list of survivors that site {site} did not sign", "one list at all sites", _ASK)
        if len(rows) < needed or not left:
            raise ClientError(f"{len(rows)} signatures of the survivors", f"at least {needed}", "resume the run")
        shares = {site: self.state[f"share-{site}"] for site in sites_in(self.state["dealers"])}
        told = {site: share[:SECRET] if site in left else share[SECRET:] for site, share in shares.items()}
        return seal_step(Step.UNMASK, of, told)

    def _forget(self) -> None:
        """What has been told of the sum may be asked for again; its secrets have done their work."""
        for name in list(self.state):
            if name in ("sealing", "masking", "own", "kept", "masked") or name.startswith("share-"):
                del self.state[name]


def _number(number: int) -> bytes:
    return number.to_bytes(4, "little")


# --------------------------------------------------------------------- what server and sites derive alike


def sites_in(raw: bytes) -> tuple[int, ...]:
    """Numbers of sites, of `site_bytes`."""
    return tuple(int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4))


def own_tag(of: Sum, site: int, secret: bytes) -> bytes:
    """Names the secret behind a site's own mask: 32 bytes."""
    return tag(b"prismfl own", of.context, site_bytes(site), secret)


def own_key(of: Sum, site: int, secret: bytes) -> bytes:
    """The key of a site's own mask."""
    return derived(secret, b"prismfl own" + of.context + site_bytes(site))


def pair_key(of: Sum, private: bytes, mine: int, other: int, public: bytes) -> bytes:
    """The key of the mask that two sites have in common."""
    return agreed(private, public, b"prismfl mask" + of.context + site_bytes(min(mine, other), max(mine, other)))


def pair_sign(mine: int, other: int) -> int:
    """1 where a site adds the common mask, -1 where it takes it away."""
    return 1 if mine < other else -1


def share_tag(of: Sum, dealer: int, holder: int, which: int, share: bytes) -> bytes:
    """Names a share, so that a wrong one is told from the right one: 16 bytes."""
    return tag(b"prismfl share", of.context, site_bytes(dealer, holder), bytes([which]), share)[:TAG]
