"""A file from the network, piece by piece."""

import http.client
import urllib.request
from collections.abc import Iterator

from prismfl.errors import DataError

_PIECE, _PATIENCE = 1 << 20, 60.0  # bytes; seconds without one


def pieces(url: str, remedy: str, most: int = 2**32) -> Iterator[bytes]:
    """The bytes at an address (http, https, file).

    remedy: what to do where there is no connection.  Raises DataError when there is none, when
    the file breaks off, or when it is longer than `most` bytes.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "prismfl"})
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            told, got = answer.headers.get("Content-Length"), 0
            while piece := answer.read(_PIECE):
                got += len(piece)
                if got > most:
                    raise OSError(f"it sends more than {most} bytes")
                yield piece
            if told is not None and got != int(told):
                raise OSError(f"it breaks off after {got} of {told} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"cannot fetch {url} ({error})", "a network and the published file", remedy) from None
