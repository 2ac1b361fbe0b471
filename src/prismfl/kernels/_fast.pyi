"""Addresses of tensors, which the callers in fused.py have checked, their sizes, and threads to use."""

def match(
    places: tuple[int, ...],
    groups: int,
    width: int,
    scale1: float,
    scale2: float,
    pool: tuple[int, ...],
    ends: tuple[int, ...],
    half: bool,
    rectify: bool,
    back: bool,
    threads: int,
) -> None: ...
def norm(
    places: tuple[int, ...], rows: int, channels: int, tile: int, epsilon: float, half: bool, back: bool, threads: int
) -> None: ...
def doubled(
    places: tuple[int, ...], lines: int, height: int, width: int, channels: int, half: bool, back: bool, threads: int
) -> None: ...
def each(
    places: tuple[int, ...],
    ends: tuple[int, ...],
    route: tuple[int, ...],
    counts: tuple[int, ...],
    half: bool,
    back: bool,
    threads: int,
) -> None: ...
def adam(
    places: tuple[int, ...],
    count: int,
    beta1: float,
    beta2: float,
    rate: float,
    correction: float,
    tiny: float,
    threads: int,
) -> None: ...
def use(parallel: int) -> None: ...
def limit(most: int) -> int: ...
