"""The engine: broadcasts to Flower's nodes, replies as they come, until all are here or time is up."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import DEFAULT_TTL, Message
from flwr.serverapp import Grid

from prismfl.engines.flower.envelope import Ask, Request, Response, Terms, response_from
from prismfl.engines.flower.roster import Line, Roster, content_of, message_to
from prismfl.errors import ClientError, PrismError, PrivacyError
from prismfl.federation.agreement import Agreement, Exchange, Reply
from prismfl.privacy.ledger import as_asked, from_json, to_json
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder
from prismfl.sums.frames import Step, step_of
from prismfl.sums.server import Enough

_WAIT = 0.1  # seconds between looks for replies
_SPARE = 60.0  # seconds that a message lives beyond the deadline: clocks differ
_NEVER = -1
_ATTEMPTS = 3  # times that a round is tried where too few replied


class Flower:
    """An engine whose clients are nodes of Flower, simulated or on machines of their own.

    A round ends when every client has replied, when those that have not are not connected (and enough have),
    or at the deadline.  Replies to earlier rounds are never fetched; their messages expire.
    """

    attempts = _ATTEMPTS

    def __init__(
        self,
        grid: Grid,
        agreement: Agreement,
        folder: RunFolder,
        roster: Roster,
        terms: Terms,
        dimension: int = 0,
    ) -> None:
        self.grid, self.agreement, self.folder = grid, agreement, folder
        self.roster, self.terms = roster, terms
        # Bytes of a reply at most: packed masks and uncoded α layers, or moments of eight bytes an entry and label.
        layout = agreement.layout
        self.most = 16 * layout.count + 8 * max(1, layout.classes) * (dimension + 1) + 2**16
        self.counted: dict[int, int] = {}  # last round of those on disk in which the client counted
        for line in runfolder.read_rounds(folder):
            self.keep(int(line["round"]), line.get("cohort", ()))
        self.informed: dict[int, bytes] = {}  # token of the client that has the terms

    def train(self, round_index: int) -> Exchange:
        """Carry a round's broadcasts to the clients and yield their updates as they come."""
        return lambda frames: self._carry(Ask.TRAIN, round_index, frames)

    def sum(self, round_index: int, enough: Enough) -> Exchange:
        """Carry messages of a secure sum to the clients and yield their answers: `enough` of them at least."""
        return lambda frames: self._carry(Ask.SUM, round_index, frames, enough)

    def compare(self) -> Exchange:
        """Carry the final θ to the clients and yield their distances."""
        return lambda frames: self._carry(Ask.COMPARE, self.agreement.settings.federation.rounds, frames)

    def keep(self, round_index: int, clients: Iterable[int]) -> None:
        """Remember who counted: each of them hears it in its next message, and keeps its memory of the round."""
        self.counted |= dict.fromkeys(clients, round_index)

    def _carry(
        self, ask: Ask, round_index: int, frames: Mapping[int, bytes], enough: Enough | None = None
    ) -> Iterator[tuple[int, Reply]]:
        running = self.agreement.settings.running
        seconds = running.deadline
        post = _Post(self, ask, round_index, dict(frames), seconds, enough or (lambda: running.least_cohort))
        end = time.monotonic() + seconds if seconds else float("inf")
        while post.frames and time.monotonic() < end:
            self.roster.poll()
            post.send()
            yield from post.fetch()
            if post.only_absent_left():
                break
            left = end - time.monotonic() if seconds else None
            if post.frames:
                self.roster.remind(self._what(ask, round_index), post.frames, left)
            time.sleep(_WAIT)
        for client in sorted(post.frames):
            late = ClientError(f"no reply within {seconds:g} s", "one in time", "raise --deadline if it is only slow")
            gone = ClientError("it is not connected", "a connection", "start its `prismfl federate client`")
            yield client, late if client in self.roster.seats else gone

    def _what(self, ask: Ask, round_index: int) -> str:
        """What clients are asked for, in the words of a note."""
        if ask == Ask.COMPARE or round_index == self.agreement.settings.federation.rounds:
            return "choice of the mask"
        name = f"round {round_index + 1}"
        return f"secure sum of {name}" if ask == Ask.SUM else name

    def heard(self, client: int, message: Message) -> Response:
        """A client's response, its releases entered in the run's ledger.  Raises PrismError."""
        response = response_from(content_of(message), self.most)
        if response.strange:
            self.informed.pop(client, None)
            return response
        self.informed[client] = self.roster.seats[client].hello.token if client in self.roster.seats else b""
        if response.ledger or self._releases(response.frame):
            self._enter(client, response.ledger)
        return response

    def _releases(self, frame: bytes) -> bool:
        """Whether a reply is of a client that has released something: in a pooled run by what it adds to the sum."""
        if not frame or not self.agreement.settings.privacy.epsilon:
            return False
        return step_of(frame) == Step.MASKED if self.agreement.pooled else True

    def _enter(self, client: int, ledger: str) -> None:
        try:
            entries = from_json(json.loads(ledger or "[]"))
        except (ValueError, RecursionError):
            entries = ()
        privacy = self.agreement.settings.privacy
        if not entries or any(entry.client != client or not as_asked(entry, privacy) for entry in entries):
            raise PrivacyError(
                f"a reply of client {client} without a ledger of releases of its own as they were asked for",
                "one",
                "it is left out",
            )
        runfolder.save_ledger(self.folder, client, to_json(entries))


@dataclass
class _Post:
    """One exchange under way: frames of clients that have not answered, and messages that are out."""

    engine: Flower
    ask: Ask
    round: int
    frames: dict[int, bytes]
    seconds: float
    enough: Enough
    out: dict[str, int] = field(default_factory=dict)
    lines: dict[int, Line] = field(default_factory=dict)
    strangers: set[int] = field(default_factory=set)
    answered: int = 0

    def send(self) -> None:
        """A message to each client that is connected and has none on this connection."""
        seats = self.engine.roster.seats
        due = [one for one in self.frames if one in seats and self.lines.get(one) != seats[one].line]
        life = self.seconds + _SPARE if self.seconds else float(DEFAULT_TTL)
        messages = [message_to(seats[client].node, self._request(client), life) for client in due]
        for client, message in zip(due, self.engine.grid.push_messages(messages) if messages else (), strict=True):
            self.lines[client] = seats[client].line
            if message:
                self.out[message] = client

    def _request(self, client: int) -> Request:
        """What one client is sent, with the terms if it does not have them."""
        engine = self.engine
        told = engine.informed.get(client) == engine.roster.seats[client].hello.token
        counted, terms = engine.counted.get(client, _NEVER), None if told else engine.terms
        return Request(self.ask, engine.agreement.run, self.round, counted, self.seconds, self.frames[client], terms)

    def fetch(self) -> Iterator[tuple[int, Reply]]:
        """Replies that have come."""
        for message in self.engine.grid.pull_messages(list(self.out)) if self.out else ():
            client = self.out.pop(message.metadata.reply_to_message_id, None)
            if client in self.frames and (reply := self._reply(client, message)) is not None:
                self.answered += isinstance(reply, bytes)
                del self.frames[client]
                yield client, reply

    def _reply(self, client: int, message: Message) -> Reply | None:
        """What a client has to say, or None when it is to be asked again, with the terms this time."""
        try:
            response = self.engine.heard(client, message)
        except PrismError as error:
            return error
        if response.strange and client not in self.strangers:
            self.strangers.add(client)
            self.lines.pop(client, None)
            return None
        return response.error or response.frame

    def only_absent_left(self) -> bool:
        """Whether nobody who could still answer is connected, and the round has enough without them."""
        roster = self.engine.roster
        absent = not roster.greeting_out and len(roster.missing(self.frames)) == len(self.frames)
        return absent and self.answered >= self.enough()
