"""What a simulator keeps in memory of its clients' θ: as much as has room, however many clients there are."""

import threading
from weakref import WeakValueDictionary

from prismfl.federation.agreement import KnownTheta


class KeptThetas:
    """θ that each client holds: one array for all that hold the same, gone with the last of them.

    Where the arrays take more than `most` bytes, those of the earliest rounds go: their clients then ask
    for a snapshot.
    """

    def __init__(self, most: int) -> None:
        self.most, self._held = most, dict[int, KnownTheta]()
        self._shared = WeakValueDictionary[tuple[int, bytes], KnownTheta]()
        self._lock = threading.Lock()

    def get(self, client: int) -> KnownTheta | None:
        """What the client holds; None if it holds nothing, or no more."""
        return self._held.get(client)

    def put(self, client: int, held: KnownTheta) -> None:
        """The client holds this θ from now on, in place of what it held."""
        with self._lock:
            self._held[client] = self._shared.setdefault((held.round, held.digest), held)
            while sum(one.q.nbytes for one in self._shared.values()) > self.most and len(self._shared) > 1:
                gone = self._shared.pop(min(self._shared))
                self._held = {other: kept for other, kept in self._held.items() if kept is not gone}
