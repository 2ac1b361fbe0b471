"""Standard output and error that take whatever is printed: in any encoding, closed, or read by nobody any more."""

import codecs
import io
import os
import sys
from typing import IO

_ERRORS = "prismfl"  # name of how characters are written that a stream's encoding does not have
_PLAIN = {
    **{"α": "alpha", "β": "beta", "δ": "delta", "Δ": "Delta", "ε": "epsilon", "θ": "theta", "λ": "lambda"},
    **{"σ": "sigma", "≥": ">=", "≤": "<=", "×": "x", "…": "...", "–": "-", "†": "+", "é": "e", "→": "->"},
}


def steady() -> None:
    """Have printing never fail: a run that takes hours does not end because of where its lines go."""
    codecs.register_error(_ERRORS, _plainly)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nowhere(number, "r" if number == 0 else "w"))
        elif number and getattr(stream, "name", "") == f"<{name}>":
            setattr(sys, name, _wrapped(stream, number))


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, in words where there are some, else as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or ascii(one)[1:-1] for one in part), error.end


def _nowhere(number: int, mode: str) -> IO[str]:
    """The null device as a stream that was closed, and as its file: no file opened later may take its number."""
    handle = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(handle, number)
    return os.fdopen(handle, mode, encoding="utf-8", errors=_ERRORS)


def _wrapped(stream: io.TextIOWrapper, number: int) -> io.TextIOWrapper:
    if os.name != "posix":  # a console of Windows has a way of its own to be written to
        stream.reconfigure(errors=_ERRORS)
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Steady(number, "wb", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, _ERRORS, line_buffering=stream.line_buffering or number == 2)


class _Steady(io.FileIO):
    """A stream's file, replaced by the null device once it takes no more."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.fileno() == 1:
                print(f"note: standard output takes no more ({error.strerror}); going on without", file=sys.stderr)
            return len(memoryview(data))  # type: ignore[arg-type]
