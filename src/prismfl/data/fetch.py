"""Fetches published data sets, and keeps only what has the published checksum."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prismfl.data.download import pieces
from prismfl.errors import DataError

_MOST_BYTES = 2**30  # no file here has a fifth of that


@dataclass(frozen=True)
class Remote:
    """A published file: its name, MD5 sum in hexadecimal, and the addresses it lies below."""

    name: str
    md5: str
    bases: tuple[str, ...]


def _family(bases: tuple[str, ...], sums: tuple[str, str, str, str]) -> tuple[Remote, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(Remote(f"{name}-ubyte.gz", md5, bases) for name, md5 in zip(names, sums, strict=True))


# Sums as the data sets' own pages and torchvision list them.  MD5 finds damage and stops whoever
# has no file of their own making under the same sum; nothing stronger is published.
PUBLISHED: dict[str, tuple[Remote, ...]] = {
    "mnist": _family(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fmnist": _family(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "kmnist": _family(
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    "cifar10": (
        Remote("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", ("https://www.cs.toronto.edu/~kriz/",)),
    ),
}


def fetch(name: str, folder: Path, mirror: str = "") -> Iterator[Path]:
    """Bring a data set's files into a folder, giving each as it is there and right.

    name: one of `PUBLISHED`; mirror: an address (http, https, file) to use instead of the
    publishers'.  Files that are there with the right sum are left alone.  Raises DataError
    where a file cannot be had, written, or has another sum; nothing of it is left then.
    """
    if name not in PUBLISHED:
        raise DataError(f"data set {name!r}", f"one of {', '.join(PUBLISHED)}", "name one of these")
    for remote in PUBLISHED[name]:
        path = folder / remote.name
        if _sum_of(path) != remote.md5:
            _bring(remote, path, (mirror.rstrip("/") + "/",) if mirror else remote.bases)
        yield path


def _sum_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _no_place(path, error) from None


def _bring(remote: Remote, path: Path, bases: tuple[str, ...]) -> None:
    """From the first address that has it; the last one's failure is the one told."""
    for base in bases[:-1]:
        with contextlib.suppress(DataError):
            _download(base + remote.name, path, remote.md5)
            return
    _download(bases[-1] + remote.name, path, remote.md5)


def _download(url: str, path: Path, md5: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _check(url, _copied(url, file), md5)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _no_place(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _copied(url: str, file: IO[bytes]) -> str:
    """Stream an address into a file; the MD5 sum of what came."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces(url, "go online, or name a --mirror", _MOST_BYTES):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def _check(url: str, got: str, md5: str) -> None:
    if got != md5:
        raise DataError(f"{url} has MD5 sum {got}", md5, "fetch it again, or from a --mirror; it was not kept")


def _no_place(path: Path, error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DataError(
        f"cannot write {path} ({error.strerror})",
        "a disk with room" if full else "a writable folder",
        "free space or choose another --data-dir" if full else "choose another --data-dir",
    )
