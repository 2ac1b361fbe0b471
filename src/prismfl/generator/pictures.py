"""Images as pictures: grids and PNG files.  Needs NumPy, and Pillow when a picture is made."""

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prismfl.data.files import write_atomic
from prismfl.errors import DependencyError, RunFolderError

if TYPE_CHECKING:
    from PIL.Image import Image


def image_grid(images: NDArray[np.uint8], columns: int = 0, scale: int = 2) -> "Image":
    """Images uint8 `[n, C, H, W]` side by side, a pixel apart, enlarged `scale` times.

    columns: 0 for a grid as good as square.  Raises DependencyError without Pillow.
    """
    count, channels, height, width = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 64, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    sheet = sheet.repeat(scale, 0).repeat(scale, 1)
    return _picture(sheet.transpose(2, 0, 1))


def save_picture(picture: "Image", path: Path) -> None:
    """Write a picture whole, as PNG.  Raises RunFolderError."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def save_pictures(images: NDArray[np.uint8], folder: Path) -> None:
    """Images uint8 `[n, C, H, W]` as numbered PNG files of a new folder.  Raises as `save_folders`."""
    save_folders({"": images}, folder)


def save_folders(parts: Mapping[str, NDArray[np.uint8]], folder: Path) -> None:
    """Images uint8 `[n, C, H, W]` by name, as numbered PNG files of `folder/NAME`, which `--dataset folder` reads.

    The folder appears whole or not at all: it is filled under another name.  Raises RunFolderError when it
    has files already, which would be taken for these, or cannot be written; DependencyError without Pillow.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp") if folder.name else folder
    try:
        if not folder.name or not _free(folder):
            raise RunFolderError(f"files in {folder}", "a new or empty folder", "choose another --out")
        for name, images in parts.items():
            _fill(temporary / name, images)
        temporary.replace(folder)
    except UnicodeEncodeError as error:
        raise RunFolderError(
            f"a label that the {error.encoding} names of this system's files cannot say",
            "names of files in UTF-8",
            "set LC_ALL to a locale of UTF-8",
        ) from None
    except OSError as error:
        raise RunFolderError(
            f"cannot write {folder} ({error.strerror})", "a writable place with room", "choose another folder"
        ) from None
    finally:
        if temporary != folder:
            shutil.rmtree(temporary, ignore_errors=True)


def _free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _fill(folder: Path, images: NDArray[np.uint8]) -> None:
    # Not synced file by file: ten thousand waits for the disk would take a minute, and images can be made again.
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        _picture(image).save(folder / f"{index:06d}.png", "PNG")


def _picture(image: NDArray[np.uint8]) -> "Image":
    """One image uint8 `[C, H, W]`, grey or in colours, as a picture."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DependencyError(f"Pillow does not import ({error})", "it, for pictures", "pip install pillow") from None
    return Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
