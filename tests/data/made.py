"""Made-up images and trees of them, and the folder of real ones."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def data_folder(*parts):
    root = os.environ.get("PRISMFL_DATA")
    if not root:
        pytest.skip("PRISMFL_DATA is unset")
    if not (path := Path(root, *parts).resolve()).exists():  # some make links to it
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
