"""What a simulator keeps in memory of its clients: as much as has room, however many there are."""

import threading
from collections import Counter, OrderedDict

from prismfl.federation.agreement import KnownTheta
from prismfl.moments import Target

_Name = tuple[int, bytes]


class KeptThetas:
    """θ that each client holds: one array for all that hold the same, and a name for each client.

    Where the arrays take more than `most` bytes, those of the earliest rounds go: their clients then ask
    for a snapshot.
    """

    def __init__(self, most: int) -> None:
        self.most, self._names = most, dict[int, _Name]()
        self._shared, self._users = dict[_Name, KnownTheta](), Counter[_Name]()
        self._lock = threading.Lock()

    def get(self, client: int) -> KnownTheta | None:
        """What the client holds; None if it holds nothing, or no more."""
        with self._lock:
            return self._shared.get(self._names.get(client, (-1, b"")))

    def put(self, client: int, held: KnownTheta) -> None:
        """The client holds this θ from now on, in place of what it held."""
        name = held.round, held.digest
        with self._lock:
            before, self._names[client] = self._names.get(client), name
            self._shared.setdefault(name, held)
            self._users[name] += 1
            if before is not None:
                self._leave(before)
            while sum(one.q.nbytes for one in self._shared.values()) > self.most and len(self._shared) > 1:
                del self._shared[min(self._shared)]

    def _leave(self, name: _Name) -> None:
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]
            self._shared.pop(name, None)


class KeptTargets:
    """The targets used last, of `most` bytes together (one at least); all are on disk, to be read again."""

    def __init__(self, most: int) -> None:
        self.most, self._size = most, 0
        self._targets: OrderedDict[int, Target] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, client: int) -> Target | None:
        """The client's target, if it is still here."""
        with self._lock:
            if client in self._targets:
                self._targets.move_to_end(client)
            return self._targets.get(client)

    def put(self, client: int, target: Target) -> None:
        """Keep a client's target."""
        with self._lock:
            before = self._targets.pop(client, None)
            self._targets[client] = target
            self._size += target.moments.nbytes - (before.moments.nbytes if before else 0)
            while self._size > self.most and len(self._targets) > 1:
                self._size -= self._targets.popitem(last=False)[1].moments.nbytes
