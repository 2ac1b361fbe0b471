"""Published weights from the network, checked against the digits of SHA-256 that their names carry."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from prismfl.data.download import pieces
from prismfl.data.files import check_writable, write_atomic
from prismfl.errors import DataError, SettingError
from prismfl.features.vgg19 import PUBLISHED

_TORCHVISION = "https://download.pytorch.org/models/"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"

# By name: where the file is published.  The last digits of a file's name begin its SHA-256.
SOURCES = {name: _TORCHVISION + file for name, file in PUBLISHED.items()} | {
    "inception": _FIDELITY + "weights-inception-2015-12-05-6726825d.pth"
}
_REMEDY = "fetch the file on another machine and copy it here"


def fetch(name: str, out: Path, url: str = "") -> str:
    """Download the weights of that name to `out`; returns their SHA-256.

    url: another place that has the same file.  What stood at `out` is kept unless the new file is
    whole and right.  Raises SettingError for an unknown name or URL, DataError when there is no
    connection, the file breaks off, or its SHA-256 does not begin with the published digits.
    """
    if name not in SOURCES:
        raise SettingError(f"weights {name!r}", f"one of {', '.join(SOURCES)}", "name one of these")
    source = url or SOURCES[name]
    if not re.match(r"https?://", source):
        raise SettingError(f"url {source!r}", "one that begins with https:// or http://", "mend the URL")
    check_writable(out)
    digest = hashlib.sha256()
    write_atomic(out, _checked(source, SOURCES[name].removesuffix(".pth")[-8:], digest))
    return digest.hexdigest()


def _checked(source: str, digits: str, digest: "hashlib._Hash") -> Iterator[bytes]:
    """A file's bytes, piece by piece, hashed; an error at the end when they are not the published ones."""
    for piece in pieces(source, _REMEDY):
        digest.update(piece)
        yield piece
    if not digest.hexdigest().startswith(digits):
        raise DataError(
            f"{source} with SHA-256 {digest.hexdigest()}",
            f"one that begins with {digits}",
            "fetch it anew, or from where it is published",
        )
