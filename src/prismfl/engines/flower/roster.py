"""Which node is which client: asked of every node when it comes, and again when it comes back.

The first node that names a client keeps it while it is connected.  A second one is refused and named in the
log, unless it shows the first one's token: then it is the same client, started again, and takes over.
Memory is a few numbers a client, whatever the number of rounds.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from prismfl.engines.flower.envelope import Ask, Hello, Request, hello_from, printable, to_records
from prismfl.errors import ClientError, PrismError

_POLL = 1.0  # seconds between looks at who is connected
_HELLO_LIFE = 12 * 3600.0  # seconds that a greeting may take: a client reads all its images for it
_REMIND = 30.0  # seconds between lines that say whom all wait for
_MOST_NAMED = 20  # clients in such a line
_NAMED = "client-"  # how the name begins that a node's key is registered by: it may be that client alone
_LONGEST = 200  # letters of a class name

# A connection of a node: its number, and when it was last made.
Line = tuple[int, str]


@dataclass(frozen=True)
class Seat:
    """A client's connection, and what it said of itself."""

    line: Line
    hello: Hello

    @property
    def node(self) -> int:
        """The node's number."""
        return self.line[0]


class Roster:
    """The clients that are connected now: `seats` by client number."""

    def __init__(self, grid: Grid, clients: int, greeting: Request, note: Callable[[str], None]) -> None:
        self.grid, self.clients, self.greeting, self.note = grid, clients, greeting, note
        self.seats: dict[int, Seat] = {}
        self.refused: set[Line] = set()
        self.reasons: dict[str, None] = {}  # why nodes were refused, in the order in which it was first said
        self._names: dict[Line, str] = {}
        self._asked: dict[str, Line] = {}
        self._next, self._reminded, self._doing = 0.0, 0.0, ""

    def poll(self) -> None:
        """Look who is connected, greet who is new, hear who answers.  Cheap when called often."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _POLL
        self._names = {
            (int(node.node_id), str(node.last_activated_at)): str(getattr(node, "name", ""))
            for node in self.grid.get_nodes()
        }
        self._drop(set(self._names))
        self._greet()
        for reply in self.grid.pull_messages(list(self._asked)) if self._asked else ():
            line = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if line is not None:
                self._seat(line, reply)

    def _drop(self, connected: set[Line]) -> None:
        for client, seat in list(self.seats.items()):
            if seat.line not in connected:
                del self.seats[client]
                self.note(f"client {client} is disconnected")
                self.refused = set()  # whoever wanted its place is asked again
        self.refused &= connected
        self._asked = {message: line for message, line in self._asked.items() if line in connected}

    def _greet(self) -> None:
        known = {seat.line for seat in self.seats.values()} | set(self._asked.values()) | self.refused
        lines = [line for line in self._names if line not in known]
        messages = [message_to(line[0], self.greeting, _HELLO_LIFE) for line in lines]
        for line, message in zip(lines, self.grid.push_messages(messages) if messages else (), strict=True):
            if message:
                self._asked[message] = line

    def _seat(self, line: Line, reply: Message) -> None:
        try:
            hello = hello_from(content_of(reply))
            self._check(line, hello)
        except PrismError as error:
            self.refused.add(line)
            self.reasons[str(error)] = None
            self.note(f"node {line[0]} is refused: {error}")
            return
        before = self.seats.get(hello.client)
        self.seats[hello.client] = Seat(line, hello)
        self.note(f"client {hello.client} {'is back as' if before else 'is'} node {line[0]}")

    def _check(self, line: Line, hello: Hello) -> None:
        if not hello.client < self.clients:
            raise ClientError(f"client {hello.client}", f"0 … {self.clients - 1}", "mend its --client")
        name = self._names.get(line, "")
        if name and name != f"{_NAMED}{hello.client}":
            raise ClientError(f"client {hello.client} with the key of {name}", name, "mend its --client or --key")
        if odd := [name for name in hello.classes if not name.isprintable() or len(name) > _LONGEST]:
            raise ClientError(f"{len(odd)} class names", f"printable ones of at most {_LONGEST} letters", "rename them")
        before = self.seats.get(hello.client)
        if before and before.hello.token != hello.token:
            raise ClientError(
                f"client {hello.client} a second time",
                f"one node: {before.node} is connected as this client",
                "stop one of the two, or give it another --client",
            )

    @property
    def greeting_out(self) -> bool:
        """Whether a node is connected that has not said yet who it is."""
        return bool(self._asked)

    def remind(self, doing: str, clients: Iterable[int], left: float | None = None) -> None:
        """Say now and then whom all wait for, and for how many seconds more."""
        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._reminded = doing, now
        if now < self._reminded + _REMIND:
            return
        self._reminded, waited = now, list(clients)
        here, gone = (_listed([one for one in waited if (one in self.seats) == seated]) for seated in (True, False))
        parts = [f"{here} (connected)" if here else "", f"{gone} (not connected)" if gone else ""]
        parts += [] if left is None else [f"{left:.0f} s left"]
        self.note(f"{doing}: waiting for {'; '.join(filter(None, parts))}")

    def missing(self, clients: Iterable[int]) -> list[int]:
        """Those of the clients that are not connected."""
        return [client for client in clients if client not in self.seats]


def _listed(clients: Sequence[int]) -> str:
    """Clients by number, some of very many."""
    if not clients:
        return ""
    some = ", ".join(map(str, clients[:_MOST_NAMED])) + (" …" if len(clients) > _MOST_NAMED else "")
    return f"client {some}" if len(clients) == 1 else f"clients {some}"


def message_to(node: int, request: Request, life: float) -> Message:
    """A Flower message of a request, void after `life` seconds."""
    kind = "query" if request.ask == Ask.HELLO else "train"
    return Message(to_records(request), dst_node_id=node, message_type=kind, group_id=str(request.round), ttl=life)


def content_of(reply: Message) -> RecordDict:
    """A reply's records.  Raises ClientError where Flower sends an error in their place."""
    if reply.has_error():
        raise ClientError(
            f"no reply but Flower's error {reply.error.code} ({printable(reply.error.reason or 'no reason given')})",
            "a reply",
            "look at the client's own log",
        )
    return reply.content
