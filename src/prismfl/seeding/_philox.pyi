import numpy as np
from numpy.typing import NDArray

def words(
    out: NDArray[np.uint32], block: int, round: int, client: int, purpose: int, key_low: int, key_high: int, /
) -> None:
    """Philox4x32-10 of counters (block, round, client, purpose), (block + 1, …), …: fills uint32 `[n]`."""
