"""Medical images: DICOM files by pydicom, NIfTI volumes by nibabel, each slice or frame an image of its person.

Of what a header says nothing stands in an error, and nothing leaves but which images are of one person.
"""

import copy
import gzip
import io
import logging
import math
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prismfl.data.decoding import MOST_PIXELS, Picture, is_nifti, picture_of
from prismfl.data.tree import Entry, Folder, Tree
from prismfl.errors import DataError, DependencyError
from prismfl.settings.check import Slices, slices_from, window_from

_MOST_BYTES = 2**32  # of a volume's voxels
_MOST_IMAGES = 99_999  # of a file, which their names number by five digits
_TAGS = ("PatientID", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns", "Modality")
_NO_PHOTOGRAPHS = {"SEG", "RTDOSE"}  # masks and doses, which are drawn over images and are none
_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")  # whose a file is, by the Brain Imaging Data Structure

Planes = Iterator[Image.Image]


def opened(tree: Tree, slices: str, window: str) -> Tree:
    """The tree with an entry for each slice or frame of its medical files, and the person that each file is of.

    A DICOM file is of its PatientID; a NIfTI file of the `sub-…` in its path, and where there is none of itself alone.
    Series of single DICOM files are whole still: see `thinned`.  Raises DataError for a file that does not read,
    DependencyError for a library that is missing.
    """
    if not any(entry.medical for entry in tree.entries):
        return tree
    which, shown = slices_from(slices), window_from(window)
    files = [entry for entry in tree.entries if entry.medical]
    volumes = [entry for entry in files if is_nifti(entry.path[-1])]
    heads = [(entry, _header(entry)) for entry in files if not is_nifti(entry.path[-1])]
    found = [entry for entry in tree.entries if not entry.medical]
    found += [image for entry in volumes for image in _of_nifti(entry, which, shown)]
    found += [image for entry, head in heads if head is not None for image in _of_dicom(entry, head, which, shown)]
    without = [("/".join(entry.path), "DICOM without an image") for entry, head in heads if head is None]
    skipped = tuple(sorted((*tree.skipped, *without)))
    return replace(tree, entries=tuple(sorted(found, key=lambda entry: entry.path)), skipped=skipped)


class _Volume:
    """The images of one file, all made when the first is asked for, and each handed over once."""

    def __init__(self, entry: Entry, planes: Callable[[bytes], Planes]) -> None:
        self.entry, self.planes = entry, planes
        self._lock, self._made = threading.Lock(), dict[tuple[int, int, str], Picture]()

    def picture(self, number: int, size: int, how: str, look: bool) -> Picture:
        """The image of this number as `decoding.picture_of` makes it.  Raises DataError by the file's name alone."""
        with self._lock:
            if (number, size, how) not in self._made:
                made = self._all(size, how, look)
                self._made = {(place, size, how): picture for place, picture in enumerate(made)}
            return self._made.pop((number, size, how))

    def _all(self, size: int, how: str, look: bool) -> list[Picture]:
        try:
            return [picture_of(plane, size, how, look=look) for plane in self.planes(self.entry.read())]
        except (DataError, DependencyError):
            raise
        except Exception as error:  # its words may hold what the header says
            raise _undecodable(self.entry, error) from None


def _undecodable(entry: Entry, error: Exception | None = None) -> DataError:
    why = f" ({type(error).__name__})" if error is not None else ""
    remedy = "replace or remove it; where it is compressed, pip install 'prismfl[medical]' brings decoders"
    return DataError(f"{entry.name} does not decode{why}", "a whole DICOM or NIfTI file", remedy)


def _entries(entry: Entry, count: int, person: str, planes: Callable[[bytes], Planes]) -> list[Entry]:
    """An entry for each image of a file."""
    volume = _Volume(entry, planes)
    paths = [
        (*entry.path[:-1], f"{entry.path[-1]}#{number:05}" if count > 1 else entry.path[-1]) for number in range(count)
    ]
    return [
        entry._replace(
            path=path, picture=partial(volume.picture, number), person=person, file=entry.path, medical=False
        )
        for number, path in enumerate(paths)
    ]


def _stretched(plane: NDArray[np.floating[Any]], low: float, high: float) -> NDArray[np.uint8]:
    """Values from low to high as grey from black to white: uint8 `[H, W]`."""
    span = high - low
    scaled = (plane - low) / span if span > 0 else np.zeros_like(plane)
    return np.asarray(np.nan_to_num(scaled.clip(0, 1)) * 255 + 0.5, np.uint8)


# ------------------------------------------------------------------------------------------- DICOM


@cache
def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise _missing("pydicom", "DICOM", error) from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    _hush("pydicom")
    return pydicom


def _hush(library: str) -> None:
    """Nothing of what a library notices in files is said, for it may be what headers hold."""
    logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=rf"{library}|prismfl\.data\.medical")


def _missing(library: str, kind: str, error: ImportError) -> DependencyError:
    return DependencyError(
        f"{kind} files, and {library} does not import ({error})", "it", "pip install 'prismfl[medical]'"
    )


def _header(entry: Entry) -> Any:
    """What is asked of a DICOM file's header; None of one without an image.  Raises DataError."""
    _pydicom()
    try:
        head = _parsed(entry.read(), stop_before_pixels=True, specific_tags=list(_TAGS))
        rows, columns = _whole(head.get("Rows"), 0), _whole(head.get("Columns"), 0)
    except Exception as error:
        raise _undecodable(entry, error) from None
    if rows * columns > MOST_PIXELS:
        raise DataError(
            f"{entry.name}, of more than {MOST_PIXELS} pixels", "a smaller image", "scale it down, or remove it"
        )
    return head if rows * columns and str(head.get("Modality")) not in _NO_PHOTOGRAPHS else None


def _parsed(raw: bytes, **how: Any) -> Any:
    """A DICOM file, also of an old program that writes no head.  Raises what the library does, and ValueError."""
    library = _pydicom()
    whole = library.dcmread(io.BytesIO(raw), force=True, **how)
    if raw[128:132] != b"DICM" and "Rows" not in whole:
        raise ValueError("no DICOM")
    if "TransferSyntaxUID" not in whole.file_meta:
        implicit, little = whole.original_encoding
        explicit = library.uid.ExplicitVRLittleEndian if little else library.uid.ExplicitVRBigEndian
        whole.file_meta.TransferSyntaxUID = library.uid.ImplicitVRLittleEndian if implicit else explicit
    return whole


def _whole(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return otherwise


def _of_dicom(entry: Entry, head: Any, which: Slices, window: tuple[float, float] | None) -> list[Entry]:
    """The frames of a file, every so many.  Raises DataError for more than there can be."""
    frames, pixels = max(1, _whole(head.get("NumberOfFrames"), 1)), int(head.Rows) * int(head.Columns)
    if frames > _MOST_IMAGES or frames * pixels > _MOST_BYTES:
        raise DataError(
            f"{entry.name}, of {frames} frames", f"at most {_MOST_IMAGES}, of {_MOST_BYTES} pixels", "mend or remove it"
        )
    chosen = range(0, frames, which.every)
    person = str(head.get("PatientID") or "").strip()
    found = _entries(entry, len(chosen), person, partial(_dicom_planes, chosen, window))
    if frames > 1:
        return found
    series = str(head.get("SeriesInstanceUID") or "/".join(entry.path))
    return [one._replace(series=(series, _whole(head.get("InstanceNumber"), 0))) for one in found]


def thinned(entries: Sequence[Entry], slices: str, whose: Callable[[Entry], str]) -> tuple[Entry, ...]:
    """Of each person's series of single DICOM files every so many, by their numbers, as of the frames of one file.

    whose: gives an entry's person; what is taken of one must not follow from another's files.
    """
    every, series = slices_from(slices).every, defaultdict[tuple[Any, ...], list[Entry]](list)
    for entry in entries:
        if entry.series is not None:
            series[entry.file[:-1], entry.series[0], whose(entry)].append(entry)
    left = set[Folder]()
    for files in series.values():
        files.sort(key=lambda entry: (entry.series and entry.series[1], entry.file))
        left |= {entry.path for at, entry in enumerate(files) if at % every}
    return tuple(entry for entry in entries if entry.path not in left)


def _dicom_planes(chosen: Sequence[int], window: tuple[float, float] | None, raw: bytes) -> Planes:
    library, whole = _pydicom(), _parsed(raw)
    bits, meaning = int(whole.BitsStored), str(whole.PhotometricInterpretation)
    for frame in chosen:
        pixels = library.pixels.pixel_array(whole, index=frame)  # colour as RGB
        if meaning == "PALETTE COLOR":
            bits = int(whole.RedPaletteColorLookupTableDescriptor[2])
            pixels = library.pixels.apply_color_lut(pixels, whole)
        if pixels.ndim == 3:
            yield Image.fromarray(_eight_bits(pixels[..., :3], bits))
            continue
        head = _of_frame(whole, frame)
        grey = _windowed(library, np.asarray(library.pixels.apply_modality_lut(pixels, head)), head, window)
        yield Image.fromarray(255 - grey if meaning == "MONOCHROME1" else grey)


def _of_frame(whole: Any, frame: int) -> Any:
    """The header of one frame: what its own groups and the shared ones say goes over the file's."""
    groups = [*(whole.get("SharedFunctionalGroupsSequence") or [])[:1]]
    groups += [*(whole.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]]
    found = copy.copy(whole) if groups else whole
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for said in (group.get(name) or [])[:1]:
                found.update(said)
    return found


def _eight_bits(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Colours of so many bits; some files hold fewer in the upper ones of a word."""
    if pixels.dtype == np.uint8:
        return pixels
    most = 2**bits - 1
    most = most if pixels.max() <= most else np.iinfo(pixels.dtype).max
    return np.asarray((pixels / most).clip(0, 1) * 255 + 0.5, np.uint8)


def _windowed(library: Any, values: NDArray[Any], whole: Any, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Grey values as they are to be shown: by the window asked for, the file's table or its first window, or all."""
    if window is None and whole.get("VOILUTSequence"):
        bits = int(whole.VOILUTSequence[0].LUTDescriptor[2])
        return _stretched(library.pixels.apply_voi(values.astype(np.int64), whole).astype(np.float64), 0, 2**bits - 1)
    values, shape = values.astype(np.float64), str(whole.get("VOILUTFunction") or "LINEAR")
    if window is None:
        window = _own_window(whole)
    if window is None:
        return _stretched(values, *_range(values, whole))
    centre, width = window
    if shape == "SIGMOID":
        return _stretched(1 / (1 + np.exp((-4 * (values - centre) / width).clip(-700, 700))), 0, 1)
    if shape == "LINEAR" and width > 1:  # PS3.3 C.11.2.1.2.1: a window of pixels, which have a width of their own
        centre, width = centre - 0.5, width - 1
    return _stretched(values, centre - width / 2, centre + width / 2)


def _own_window(whole: Any) -> tuple[float, float] | None:
    """The first window in a header, if it is one."""
    try:
        centre, width = (float(np.atleast_1d(whole.get(name))[0]) for name in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError, IndexError):
        return None
    return (centre, width) if math.isfinite(centre) and 0 < width < math.inf else None


def _range(values: NDArray[np.float64], whole: Any) -> tuple[float, float]:
    """The least and the largest value, but for what stands for no value."""
    padding, seen = whole.get("PixelPaddingValue"), values
    if isinstance(padding, int):
        seen = values[values != padding * float(whole.get("RescaleSlope", 1)) + float(whole.get("RescaleIntercept", 0))]
    seen = seen if seen.size else values
    return float(seen.min()), float(seen.max())


# ------------------------------------------------------------------------------------------- NIfTI


@cache
def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise _missing("nibabel", "NIfTI", error) from None
    _hush("nibabel")
    _hush("nibabel.global")
    return nibabel


def _kind(raw: bytes) -> Any:
    """The class of a NIfTI file, and its header.  Raises ValueError."""
    library = _nibabel()
    for kind in (library.Nifti1Image, library.Nifti2Image):
        size = kind.header_class.sizeof_hdr
        if int.from_bytes(raw[:4], "little") == size or int.from_bytes(raw[:4], "big") == size:
            return kind, kind.header_class(raw[:size], check=False)
    raise ValueError("no NIfTI")


def _unpacked(raw: bytes, most: int) -> bytes:
    if raw[:2] != b"\x1f\x8b":
        return raw[:most]
    with gzip.open(io.BytesIO(raw)) as file:
        return file.read(most)


def _of_nifti(entry: Entry, which: Slices, window: tuple[float, float] | None) -> list[Entry]:
    """The slices of a volume.  Raises DataError."""
    library = _nibabel()
    try:
        _, head = _kind(_unpacked(entry.read(), 1024))
        shape, bytes_each = head.get_data_shape(), head.get_data_dtype().itemsize
        axes = library.orientations.io_orientation(head.get_best_affine())[:, 0]
    except Exception as error:
        raise _undecodable(entry, error) from None
    lost = len(shape) > 2 and which.axis not in axes  # by an affine that leaves no place for it
    if len(shape) < 2 or max(shape) > _MOST_IMAGES or not 1 <= math.prod(shape) * bytes_each <= _MOST_BYTES or lost:
        wanted = f"a volume of at most {_MOST_BYTES} bytes"
        raise DataError(f"{entry.name}, of a shape or an affine that is none", wanted, "mend or remove it")
    sides = (*shape, 1, 1)[:3]
    along = sides[int(np.flatnonzero(axes == which.axis)[0])] if len(shape) > 2 else 1
    count = len(range(0, along, which.every))
    subject = _SUBJECT.search("/".join(entry.path))
    person = subject[1] if subject else "/".join(entry.path)
    return _entries(entry, count, person, partial(_nifti_planes, which, window))


def _nifti_planes(which: Slices, window: tuple[float, float] | None, raw: bytes) -> Planes:
    """Slices as a radiologist looks at them: upright, the patient's right side at the left, pixels square."""
    library = _nibabel()
    kind, head = _kind(_unpacked(raw, 1024))
    needed = int(head.get_data_offset()) + math.prod(head.get_data_shape()) * head.get_data_dtype().itemsize
    image = kind.from_bytes(_unpacked(raw, needed))
    first = (slice(None),) * min(3, image.ndim) + (0,) * (image.ndim - 3)  # of many volumes in a file
    voxels = np.asarray(image.dataobj[first])
    voxels = voxels.reshape((*voxels.shape, 1)[:3])
    turned = library.orientations.io_orientation(image.affine)
    voxels = library.orientations.apply_orientation(voxels, turned)
    sizes = np.ones(3)
    sizes[turned[:, 0].astype(int)] = (*image.header.get_zooms(), 1.0, 1.0)[:3]
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    low, high = _limits(finite, window)
    across, up = [axis for axis in range(3) if axis != which.axis]
    for number in range(0, voxels.shape[which.axis], which.every):
        plane = np.take(voxels, number, which.axis)[::-1, ::-1].T
        yield _square_pixels(Image.fromarray(_stretched(plane.astype(np.float64), low, high)), sizes[across], sizes[up])


def _limits(values: NDArray[Any], window: tuple[float, float] | None) -> tuple[float, float]:
    """From what value to what: the window's, or all of a volume's but one in a hundred at either end."""
    if window is not None:
        return window[0] - window[1] / 2, window[0] + window[1] / 2
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 0.0)
    return (float(low), float(high)) if low < high else (float(values.min(initial=0)), float(values.max(initial=0)))


def _square_pixels(image: Image.Image, across: float, up: float) -> Image.Image:
    least = min(across, up)
    if not 0 < least < math.inf or max(across, up) < 1.01 * least:
        return image
    sides = (round(image.width * min(across / least, 16)), round(image.height * min(up / least, 16)))
    return image.resize(sides, Image.Resampling.BICUBIC)
