"""What a site asks of a sum that it takes part in: whose keys it knows, and how many of them may fail."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from prismfl.errors import PolicyError, SettingError
from prismfl.sums.frames import MOST_SITES
from prismfl.sums.secrets import public_key

_HIDDEN = 2  # honest vectors, at least, that a sum without noise must be of


def usual(sites: int) -> tuple[int, int]:
    """Colluders and drop-outs where a site's policy leaves them open: a fifth, one at least of three; and a tenth.

    Examples:
        >>> [usual(sites) for sites in (2, 3, 5, 10, 100)]
        [(0, 0), (1, 0), (1, 0), (2, 1), (20, 10)]
    """
    return max(sites // 5, int(sites >= 3)), sites // 10


@dataclass(frozen=True)
class Rules:
    """Of one site's own policy; a server has no say in it.

    Attributes:
        keys: public keys of all N sites, in order of their numbers, the site's own among them.
        colluders: t, sites that may tell the server all that they know.
        dropouts: d, sites that may vanish.

    Raises:
        SettingError: for keys that are none or come twice, and for numbers with which no sum could open.

    Examples:
        >>> from prismfl.sums.secrets import Identity
        >>> rules = Rules(tuple(Identity.made().public for _ in range(5)), colluders=1, dropouts=1)
        >>> rules.threshold(5), rules.least(5), rules.noises(5)  # 2 · 4 > 5 + 1, and four are left
        (4, 4, 3)
    """

    keys: tuple[str, ...]
    colluders: int
    dropouts: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(map(public_key, self.keys)))
        if len(set(self.keys)) < len(self.keys):
            raise SettingError("one key of two sites", "a key of its own for each", "mend `sites` in the policy")
        if min(self.colluders, self.dropouts) < 0:
            raise SettingError(
                f"colluders = {self.colluders}, dropouts = {self.dropouts}", "numbers ≥ 0", "mend the policy"
            )
        self.check(len(self.keys))

    @cached_property
    def roster(self) -> bytes:
        """Names the keys and their order: SHA-256."""
        return hashlib.sha256("\n".join(self.keys).encode()).digest()

    def threshold(self, members: int) -> int:
        """Shares that give a secret back: the least T with 2 T > members + t.

        The server cannot then have two lists of survivors signed by so many, for each honest site signs one.
        """
        return (members + self.colluders) // 2 + 1

    def least(self, members: int) -> int:
        """Survivors without whom a sum of so many members does not open."""
        return members - self.dropouts

    def noises(self, members: int) -> int:
        """Honest survivors at least, whose noise or vectors hide each other: members - t - d."""
        return members - self.colluders - self.dropouts

    def check(self, members: int, *, group: int | None = None) -> None:
        """Raises SettingError where so many members cannot sum.

        group: members of the smallest sum, where that has no noise.
        """
        if not 2 <= members <= MOST_SITES:
            raise SettingError(f"a secure sum of {members} sites", f"2 … {MOST_SITES}", "change the number of clients")
        if self.noises(members) < 1 or self.threshold(members) > self.least(members):
            raise SettingError(
                f"{members} sites of which {self.colluders} may collude and {self.dropouts} drop out",
                "more sites than colluders and twice the drop-outs",
                "lower one of the two in the policy",
            )
        if group is not None and self.noises(group) < _HIDDEN:
            raise PolicyError(
                f"a sum of {group} sites of which {self.colluders} may collude and {self.dropouts} drop out",
                f"{_HIDDEN} honest ones at least, for a sum of one hides nothing",
                "ask for --uplink whole, for more clients, or lower one of the two in the policy",
            )
