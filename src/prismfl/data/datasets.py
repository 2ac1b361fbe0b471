"""One loader a format: scikit-learn's digits, IDX files, and folders or zips of class folders."""

import functools
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from prismfl.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

IDX_FAMILIES = {"mnist": "MNIST", "fmnist": "Fashion-MNIST", "kmnist": "KMNIST"}
DATASETS = ("digits", *IDX_FAMILIES, "folder")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageSet:
    """Labelled images held in memory.

    images: uint8 `[N, C, H, W]`; labels: int64 `[N]` in `0 … len(classes) - 1`;
    owners: int64 `[N]`, the client that a folder-per-client data set names, else None.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    owners: Labels | None = None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: NDArray[np.int64]) -> "ImageSet":
        """The images and labels of some rows, int64 `[n]`; classes stay numbered as they are."""
        return ImageSet(self.images[rows], self.labels[rows], self.classes)


def load_dataset(name: str, data_dir: Path | None, size: int, split: str, *, per_client: bool = False) -> ImageSet:
    """Load one split of a data set, scaled to `size` × `size` pixels.

    name: one of `DATASETS`; split: `train` or `test`; per_client: the top folders of a
    `folder` data set are clients ("as given").  Returns uint8 images `[N, C, size, size]`.
    Raises DataError when anything is missing, damaged, empty or of mixed size.
    """
    if split not in ("train", "test"):
        raise DataError(f"split {split!r}", "train or test", "name one of the two")
    if name == "digits":
        found = _digits(split)
    elif data_dir is None:
        raise DataError(f"no folder for data set {name!r}", "a folder", "pass --data-dir DIR")
    elif name in IDX_FAMILIES:
        found = _idx_pair(Path(data_dir), name, split)
    elif name == "folder":
        found = _folder(Path(data_dir), split, per_client)
    else:
        raise DataError(f"data set {name!r}", f"one of {', '.join(DATASETS)}", "name one of these")
    return ImageSet(fit(found.images, size), found.labels, found.classes, found.owners)


def fit(images: Images, size: int) -> Images:
    """Bring uint8 `[N, C, H, W]` to `[N, C, size, size]`.

    Images up to an eighth smaller are padded with zeros (28 → 32 keeps MNIST's pixels as they
    are); all others are resampled, by area when they shrink and bicubically when they grow.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    if height == width and size * 7 // 8 <= height < size:
        low = (size - height) // 2
        return np.pad(images, ((0, 0), (0, 0), (low, size - height - low), (low, size - height - low)))
    method = Image.Resampling.BOX if min(height, width) >= size else Image.Resampling.BICUBIC
    flat = images.reshape(-1, height, width)
    scaled = [np.asarray(Image.fromarray(plane).resize((size, size), method)) for plane in flat]
    return np.stack(scaled).reshape(len(images), -1, size, size)


def _digits(split: str) -> ImageSet:
    """Scikit-learn's 1,797 scanned digits, 8×8; every fifth is kept for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.clip(np.round(pixels * (255 / 16)), 0, 255).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = np.arange(len(images)) % 5 == 4
    keep = test if split == "test" else ~test
    return ImageSet(images[keep], labels[keep].astype(np.int64), tuple("0123456789"))


# ---------------------------------------------------------------------------------------- IDX


def _idx_pair(folder: Path, name: str, split: str) -> ImageSet:
    prefix = "train" if split == "train" else "t10k"
    pixels = read_idx(_find_idx(folder, f"{prefix}-images-idx3-ubyte", name), rank=3)
    labels = read_idx(_find_idx(folder, f"{prefix}-labels-idx1-ubyte", name), rank=1)
    if len(pixels) != len(labels):
        raise DataError(
            f"{len(pixels)} images and {len(labels)} labels in {folder} ({prefix})",
            "one label an image",
            "fetch both files anew from one source",
        )
    count = int(labels.max()) + 1
    return ImageSet(pixels[:, None], labels.astype(np.int64), tuple(str(c) for c in range(count)))


def _find_idx(folder: Path, stem: str, name: str) -> Path:
    dotted = stem.replace("-idx", ".idx")
    for candidate in (stem, f"{stem}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(
        f"no {stem} or {stem}.gz in {folder}",
        f"{IDX_FAMILIES[name]}'s IDX files",
        "point --data-dir at the folder that holds them",
    )


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, plain or gzipped: uint8 with `rank` axes.

    The header is checked against the bytes present before anything is interpreted.
    Raises DataError naming the file.
    """
    raw = _read_bytes(path)
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} does not decompress ({error})", "a whole gzip file", "fetch it anew") from None
    header = 4 + 4 * rank
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, rank)):
        raise DataError(
            f"{path} begins with {raw[:4].hex() or 'nothing'}",
            f"an IDX header of unsigned bytes with {rank} axes",
            "check that the file is what its name says",
        )
    shape = struct.unpack(f">{rank}I", raw[4:header])
    want = int(np.prod(shape, dtype=object))
    if want != len(raw) - header or want == 0:
        raise DataError(
            f"{path} claims shape {shape} and holds {len(raw) - header} bytes",
            f"{want} bytes, more than none",
            "fetch the file anew; it is cut short or damaged",
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})", "a readable file", "check the path") from None


# ------------------------------------------------------------------------------------- folders

_ZIP_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError,
)  # fmt: skip

_Entry = tuple[PurePosixPath, Callable[[], bytes]]


def _folder(root: Path, split: str, per_client: bool) -> ImageSet:
    """An image folder or zip: `[train|test/]class/*.png`, or `client/[class/]*.png` as given.

    Classes are numbered over both splits together, so that a label means one thing.
    """
    entries = sorted(_entries(root), key=lambda entry: entry[0].parts)
    splits, marked = _by_split(entries)
    if not marked and not per_client:
        splits = {name: _hold_out(entries, name) for name in splits}
    if not splits[split]:
        raise DataError(f"no {split} images in {root}", "PNG or JPEG files in class folders", "check --data-dir")
    every = [path for name in splits for path, _ in splits[name]]
    classes = sorted(set(_names(every, per_client)[1]))
    owner_names, class_names = _names([path for path, _ in splits[split]], per_client)
    images, labels = _decode_all(root, splits[split]), _numbered(class_names, classes)
    owners = _numbered(owner_names, sorted(set(owner_names))) if per_client else None
    return ImageSet(images, labels, tuple(classes), owners)


def _numbered(names: list[str], known: list[str]) -> Labels:
    number = {name: index for index, name in enumerate(known)}
    return np.array([number[name] for name in names], np.int64)


def _names(paths: list[PurePosixPath], per_client: bool) -> tuple[list[str], list[str]]:
    """Client and class name of each path; what a path does not name is one shared empty name."""
    parents = [path.parts[:-1] for path in paths]
    if per_client:
        return [p[0] if p else "" for p in parents], [p[1] if len(p) > 1 else "" for p in parents]
    return [""] * len(paths), ["/".join(p) for p in parents]


def _entries(root: Path) -> Iterator[_Entry]:
    if root.is_dir():
        for path in root.rglob("*"):
            if _is_image(path) and path.is_file():
                yield PurePosixPath(path.relative_to(root).as_posix()), functools.partial(_read_bytes, path)
    elif root.is_file():
        yield from _zip_entries(root)
    else:
        raise DataError(f"{root} does not exist", "an image folder or a zip", "check --data-dir")


def _is_image(path: PurePath) -> bool:
    """By its suffix; files whose name begins with a dot are leftovers of file managers."""
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _zip_entries(root: Path) -> Iterator[_Entry]:
    try:
        archive = zipfile.ZipFile(root)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise DataError(
            f"{root} is not a readable zip ({error})", "a whole zip file", "pack or fetch it anew"
        ) from None
    for name in archive.namelist():
        path = PurePosixPath(name)
        if _is_image(path):
            yield path, functools.partial(_read_member, archive, root, name)


def _read_member(archive: zipfile.ZipFile, root: Path, name: str) -> bytes:
    try:
        return archive.read(name)
    except _ZIP_DAMAGE as error:
        raise DataError(f"{root}:{name} does not unpack ({error})", "a whole zip member", "pack the zip anew") from None


def _by_split(entries: list[_Entry]) -> tuple[dict[str, list[_Entry]], bool]:
    """Entries below `train/` and `test/` where the tree has nothing else; says whether it has."""
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path, _ in entries}
    if not tops or not tops <= {"train", "test"}:
        return {"train": entries, "test": []}, False
    parted = {
        name: [(path.relative_to(name), read) for path, read in entries if path.parts[0] == name]
        for name in ("train", "test")
    }
    return parted, True


def _hold_out(entries: list[_Entry], split: str) -> list[_Entry]:
    """Of a folder without splits, every tenth image in name order is kept for testing."""
    return [e for i, e in enumerate(entries) if (i % 10 == 9) == (split == "test") or len(entries) < 10]


def _decode_all(root: Path, entries: list[_Entry]) -> Images:
    first, grey = _decode(root, entries[0]), True
    planes = np.empty((len(entries), *first.shape), np.uint8)
    for index, entry in enumerate(entries):
        image = _decode(root, entry)
        if image.shape != first.shape:
            raise DataError(
                f"{root}/{entry[0]} has {image.shape[2]}×{image.shape[1]} pixels, "
                f"{entries[0][0]} has {first.shape[2]}×{first.shape[1]}",
                "images of one size",
                "scale or crop them to one size first",
            )
        grey = grey and bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
        planes[index] = image
    return planes[:, :1].copy() if grey else planes


def _eight_bit(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight; Pillow alone would cut it off at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.uint16) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
    return image


def _decode(root: Path, entry: _Entry) -> Images:
    path, read = entry
    try:
        with Image.open(io.BytesIO(read())) as image:
            return np.asarray(_eight_bit(image).convert("RGB")).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{root}/{path} does not decode ({error})", "a whole image file", "replace or remove it"
        ) from None
