"""Files from the network: published data sets and networks' weights, kept only with the published checksum."""

import contextlib
import hashlib
import http.client
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prismfl.data.files import check_writable, write_atomic
from prismfl.data.images import read_file
from prismfl.errors import DataError, SettingError

_MOST_BYTES = 2**30  # of a file; none here has as much
_PIECE, _PATIENCE = 1 << 20, 60.0  # bytes; seconds without one
_TORCHVISION = "https://download.pytorch.org/models/"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"


@dataclass(frozen=True)
class Remote:
    """A published file: its name, its sum, and the addresses it lies below.

    digits: MD5 sum in hexadecimal, or the first eight digits of the SHA-256: what the publisher tells.
    """

    name: str
    digits: str
    bases: tuple[str, ...]


# Sums as the data sets' own pages and torchvision list them.  MD5 finds damage and stops whoever
# has no file of their own making under the same sum; nothing stronger is published.
_IDX_SUMS = {  # training images and labels, test images and labels
    "mnist": (
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        "f68b3c2dcbeaaa9fbdd348bbdeb94873 d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3 ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fmnist": (
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d 25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79 bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "kmnist": (
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        "bdb82020997e1d708af4cf47b453dcf7 e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7 7320c461ea6c1c855c0b718fb2a4b134",
    ),
}
_IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
PUBLISHED = {
    name: tuple(
        Remote(f"{file}-ubyte.gz", digits, bases)
        for file, digits in zip(_IDX_FILES, f"{train} {test}".split(), strict=True)
    )
    for name, (bases, train, test) in _IDX_SUMS.items()
} | {
    "cifar10": (
        Remote("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", ("https://www.cs.toronto.edu/~kriz/",)),
    )
}

# The last digits of a file's name begin its SHA-256.
WEIGHTS = {
    "vgg19": Remote("vgg19-dcbb9e9d.pth", "dcbb9e9d", (_TORCHVISION,)),
    "vgg19_bn": Remote("vgg19_bn-c79401a0.pth", "c79401a0", (_TORCHVISION,)),
    "inception": Remote("weights-inception-2015-12-05-6726825d.pth", "6726825d", (_FIDELITY,)),
}


def fetch(name: str, folder: Path, mirror: str = "") -> Iterator[Path]:
    """Bring a data set's files into a folder, giving each as it is there and right.

    name: one of `PUBLISHED`; mirror: an address (http, https, file) to use instead of the
    publishers'.  Files that are there with the right sum are left alone.  Raises DataError
    where a file cannot be had or has another sum, RunFolderError where it cannot be written;
    nothing of it is left then.
    """
    if name not in PUBLISHED:
        raise DataError(f"data set {name!r}", f"one of {', '.join(PUBLISHED)}", "name one of these")
    for remote in PUBLISHED[name]:
        path = folder / remote.name
        if not path.is_file() or hashlib.md5(read_file(path), usedforsecurity=False).hexdigest() != remote.digits:
            _bring(remote, path, (mirror.rstrip("/") + "/",) if mirror else remote.bases)
        yield path


def fetch_weights(name: str, out: Path, url: str = "") -> str:
    """Download the weights of that name to `out`; returns their SHA-256.

    name: one of `WEIGHTS`; url: another place that has the same file.  What stood at `out` is kept unless the new
    file is whole and right.  Raises SettingError for an unknown name or URL, RunFolderError where `out` cannot be
    written, DataError when there is no connection, the file breaks off, or its SHA-256 is another.
    """
    if name not in WEIGHTS:
        raise SettingError(f"weights {name!r}", f"one of {', '.join(WEIGHTS)}", "name one of these")
    remote = WEIGHTS[name]
    source = url or remote.bases[0] + remote.name
    if not re.match(r"https?://", source):
        raise SettingError(f"url {source!r}", "one that begins with https:// or http://", "mend the URL")
    check_writable(out)
    return _download(source, out, remote.digits)


def _bring(remote: Remote, path: Path, bases: tuple[str, ...]) -> None:
    """From the first address that has it; the last one's failure is the one told."""
    for base in bases[:-1]:
        with contextlib.suppress(DataError):
            _download(base + remote.name, path, remote.digits)
            return
    _download(bases[-1] + remote.name, path, remote.digits)


def _download(url: str, path: Path, digits: str) -> str:
    """Write what an address has, if its sum begins with these digits; returns the whole sum."""
    digest = hashlib.md5(usedforsecurity=False) if len(digits) == 32 else hashlib.sha256()

    def checked() -> Iterator[bytes]:
        for piece in _pieces(url):
            digest.update(piece)
            yield piece
        if not digest.hexdigest().startswith(digits):
            raise DataError(
                f"{url} has {digest.name.upper()} sum {digest.hexdigest()}",
                f"one that begins with {digits}",
                "fetch it again, or from elsewhere; it was not kept",
            )

    write_atomic(path, checked())
    return digest.hexdigest()


def _pieces(url: str) -> Iterator[bytes]:
    """The bytes at an address (http, https, file), as they come.  Raises DataError."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "prismfl"})
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            told, got = answer.headers.get("Content-Length"), 0
            while piece := answer.read(_PIECE):
                got += len(piece)
                if got > _MOST_BYTES:
                    raise OSError(f"it sends more than {_MOST_BYTES} bytes")
                yield piece
            if told is not None and got != int(told):
                raise OSError(f"it breaks off after {got} of {told} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(
            f"cannot fetch {url} ({error})",
            "a network and the published file",
            "go online, name a mirror, or fetch it on another machine and copy it here",
        ) from None
