def match(
    phi: int,
    starts: int,
    goals1: int,
    goals2: int,
    rests1: int,
    rests2: int,
    scales: int,
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
    phi: int,
    starts: int,
    goals1: int,
    goals2: int,
    rests1: int,
    rests2: int,
    scales: int,
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
def norm(
    x: int, given: int, into: int, figures: int, rows: int, channels: int, epsilon: float, half: bool, back: bool
) -> None: ...
def tile(channels: int) -> int: ...
def doubled(x: int, y: int, lines: int, width: int, channels: int, half: bool, back: bool) -> None: ...
