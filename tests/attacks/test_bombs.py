"""Files that claim to be more than they can be: refused, in little memory."""

import gzip
import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from PIL import Image

from prismfl.data.decoding import MOST_PIXELS, read_picture
from prismfl.data.folder import load_folder
from prismfl.data.idx import read_idx
from prismfl.errors import DataError, PrismError
from prismfl.generator.modelfile import load_model, save_model
from prismfl.generator.sampling import finish
from prismfl.settings.schema import Settings
from prismfl.settings.toml import to_toml

MUTATED = int(os.environ.get("PRISMFL_FUZZ", "100000")) // 50  # images and zips; five times as many models


def picture(width, height):
    """A PNG of one colour, of a few bytes, that claims so many pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, rows = zlib.compressobj(9), bytearray()
    for _ in range(height):
        rows += packer.compress(bytes(1 + width))
    rows += packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", bytes(rows)) + chunk(b"IEND", b"")


@contextmanager
def refused(says):
    """What is refused so, in no more than 16 MB."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=says):
            yield
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_picture_of_too_many_pixels_is_refused():
    raw = picture(20_000, 20_000)
    assert len(raw) < 500_000 and MOST_PIXELS < 20_000**2
    with refused("pixels"):
        read_picture(raw, "bomb.png", 16)


def test_a_gzip_file_that_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    shape = struct.pack(">BBBBIII", 0, 0, 8, 3, 600_000, 28, 28)
    with gzip.open(path, "wb") as file:
        file.write(shape)
        for _ in range(450):
            file.write(bytes(2**20))
    with refused("claim to be"):
        read_idx(path, 3)
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">BBBBIII", 0, 0, 8, 3, 1, 28, 28) + bytes(2**28))
    with refused("holds 785 bytes"):
        read_idx(path, 3)


def test_a_zip_of_bombs_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            archive.writestr(f"{name}/image.png", bytes(2**27))
    with refused("claim to be"):
        load_folder(tmp_path / "all.zip", "train", False, 16)


# ------------------------------------------------------------------------------------ mutated files


def mutated(raw, rng):
    """A few of the bytes changed, cut or doubled."""
    body = bytearray(raw)
    kind = rng.integers(4)
    at = int(rng.integers(len(body)))
    if kind == 0:
        del body[at:]
    elif kind == 1:
        body[at:at] = body[: int(rng.integers(64))]
    else:
        for place in rng.integers(len(body), size=int(rng.integers(1, 9))):
            body[place] = rng.integers(256)
    return bytes(body)


@pytest.mark.slow
def test_mutated_images_and_zips_are_read_or_refused(tmp_path, write_sites):
    rng, raws = np.random.default_rng(0), []
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000"):
        image.save(file := io.BytesIO(), kind)
        raws.append(file.getvalue())
    write_sites(tmp_path / "in", {"x": 4})
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in (tmp_path / "in").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "in" / "x"))
    whole = (tmp_path / "in.zip").read_bytes()
    for turn in range(MUTATED):
        with suppress(DataError):
            read_picture(mutated(raws[turn % len(raws)], rng), "image", 16)
        (tmp_path / "out.zip").write_bytes(mutated(whole, rng))
        with suppress(DataError):
            load_folder(tmp_path / "out.zip", "train", False, 16)


@pytest.mark.slow
def test_mutated_models_are_read_or_refused(tmp_path, layout):
    rng, path = np.random.default_rng(0), tmp_path / "model.safetensors"
    save_model(finish(layout, 0, np.arange(layout.count) % 3 == 0, to_toml(Settings())), path)
    whole = path.read_bytes()
    for _ in range(5 * MUTATED):
        path.write_bytes(mutated(whole, rng))
        with suppress(PrismError):
            load_model(path)
