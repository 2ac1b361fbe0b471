"""Made-up images and trees of them, and the folder of real ones."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def data_folder(*parts):
    root = os.environ.get("PRISMFL_DATA")
    if not root:
        pytest.skip("PRISMFL_DATA is unset")
    if not (path := Path(root, *parts)).exists():
        pytest.skip(f"{'/'.join(parts)} is absent from PRISMFL_DATA")
    return path


def png(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def pixels(count, *, grey, size=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size) if grey else (count, size, size, 3), np.uint8)


def channels_first(array):
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


class Tree:
    """An image tree, as a folder or as a zip."""

    def __init__(self, path, packed):
        self.path, self.packed = (path.with_suffix(".zip") if packed else path), packed
        if not packed:
            path.mkdir(parents=True)

    def write(self, files):
        if self.packed:
            with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, raw in files.items():
                    archive.writestr(name, raw)
        for name, raw in () if self.packed else files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(raw)
        return self.path


def python2_batch(rows, labels):
    """One of CIFAR-10's Python batches as Python 2 wrote them, byte by byte.

    rows: uint8 `[N, D]`.  Strings are Python 2's (no text, any byte), and the layout follows the
    published files: label and file names first, protocol 2, a memo entry after each value.
    """

    def short(text):
        return b"U" + bytes([len(text)]) + text

    def number(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    array = b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09",
            b"(K\x01" + number(rows.shape[0]) + number(rows.shape[1]) + b"\x86",
            b"cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb",
        ]
    )
    names = (b"a\xe9.png", b"b.png")
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03",
            short(b"labels") + b"q\x04]q\x05(" + b"".join(map(number, labels)) + b"e",
            short(b"data") + b"q\x06" + array,
            short(b"filenames") + b"q\x0c]q\x0d(" + b"".join(map(short, names)) + b"eu.",
        ]
    )
