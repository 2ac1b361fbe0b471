"""Addresses of tensors, which the callers in fused.py have checked, and their sizes."""

def match(
    places: tuple[int, ...],
    groups: int,
    width: int,
    scale1: float,
    scale2: float,
    totals: int,
    later: int,
    into: int,
    half: bool,
    rectify: bool,
) -> None: ...
def unmatch(
    places: tuple[int, ...],
    groups: int,
    width: int,
    scale1: float,
    scale2: float,
    totals: int,
    later: int,
    into: int,
    half: bool,
    rectify: bool,
) -> None: ...
def norm(places: tuple[int, ...], rows: int, channels: int, epsilon: float, half: bool, back: bool) -> None: ...
def tile(channels: int) -> int: ...
def doubled(places: tuple[int, ...], lines: int, width: int, channels: int, half: bool, back: bool) -> None: ...
def pooled(places: tuple[int, ...], lines: int, width: int, channels: int, half: bool, back: bool) -> None: ...
def kept(places: tuple[int, ...], count: int, half: bool) -> None: ...
def scored(places: tuple[int, ...], count: int, half: bool, plain: bool) -> None: ...
def adam(
    places: tuple[int, ...],
    count: int,
    beta1: float,
    beta2: float,
    rate: float,
    correction: float,
    tiny: float,
) -> None: ...
def limit(most: int) -> int: ...
