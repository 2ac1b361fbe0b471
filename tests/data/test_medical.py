"""Medical files: real ones that pydicom and nibabel ship, read as they are to be seen, and nothing told of headers."""

import gzip
import io
import warnings
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from made import Tree, pixels, png
from pydicom.data import get_testdata_file

from prismfl.data import medical
from prismfl.data.datasets import load_dataset
from prismfl.engines import simulator
from prismfl.errors import DataError, DependencyError, SettingError
from prismfl.settings.check import slices_from, window_from
from prismfl.settings.schema import Data

NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
SECRET = "Doe^Jane"


def dicom(name):
    return Path(get_testdata_file(name, download=False)).read_bytes()


def changed(name="CT_small.dcm", pixel_array=None, **tags):
    """A real file with some tags, and perhaps pixels, of our own."""
    whole = pydicom.dcmread(io.BytesIO(dicom(name)))
    whole.PatientName = SECRET
    for tag, value in tags.items():
        setattr(whole, tag, value)
    if pixel_array is not None:
        whole.Rows, whole.Columns = pixel_array.shape
        whole.PixelData = pixel_array.tobytes()
    buffer = io.BytesIO()
    whole.save_as(buffer)
    return buffer.getvalue()


def read(root, files, split="train", size=64, packed=False, private=False, **data):
    path = Tree(root / "images", packed).write(files)
    return load_dataset("folder", path, size, split, settings=Data(dataset="folder", **data), private=private)


# --------------------------------------------------------------------------------------------- DICOM


def test_of_one_image_all_encodings_show_the_same(tmp_path):
    kinds = ["", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_padded"]
    found = read(tmp_path, {f"{kind}x.dcm": dicom(f"MR_small{kind}.dcm") for kind in kinds})
    assert found.images.shape == (len(kinds), 1, 64, 64) and len(np.unique(found.images, axis=0)) == 1
    assert found.people.tolist() == [0] * len(kinds), "all are of one PatientID"


def test_a_window_is_the_files_own_or_the_one_asked_for(tmp_path):
    ramp = np.arange(64 * 64, dtype=np.int16).reshape(64, 64)
    told = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    all_of_it = changed(pixel_array=ramp, **told)
    own = changed(pixel_array=ramp, WindowCenter=[0, 50], WindowWidth=[1000, 60], **told)
    exact = changed(pixel_array=ramp, WindowCenter=0, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT", **told)
    values = ramp.astype(float) - 1024

    def shown(low, high):
        return np.round((values.clip(low, high) - low) / (high - low) * 255)

    found = read(tmp_path / "1", {"a.dcm": all_of_it, "b.dcm": own, "c.dcm": exact}).images[:, 0].astype(float)
    # PS3.3 C.11.2.1.2: (x - (c - 0.5)) / (w - 1) + 0.5 from 0 to 1; exactly, (x - c) / w + 0.5.
    wanted = [shown(-1024, 64 * 64 - 1025), shown(-0.5 - 499.5, -0.5 + 499.5), shown(-500, 500)]
    assert np.abs(found - np.array(wanted)).max() <= 1
    asked = read(tmp_path / "2", {"a.dcm": own}, window="-524,500").images[0, 0].astype(float)
    assert np.abs(asked - shown(-774.5 + 0.5, -274.5 - 0.5)).max() <= 1


def test_white_is_black_where_the_header_says_so_and_padding_stands_for_nothing(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.int16), (64, 1))
    ramp[0] = -2000
    files = {
        "plain.dcm": changed(pixel_array=ramp, PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=0),
        "turned.dcm": changed(
            pixel_array=ramp, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0
        ),
    }
    plain, turned = read(tmp_path, files).images[:, 0].astype(int)
    assert (plain + turned == 255).all() and plain[1:].max() == 255 and plain[1:, 0].max() == 0


def test_colour_palettes_and_sixteen_bits_are_colours(tmp_path):
    names = ["SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_palette.dcm"]
    found = read(tmp_path, {f"train/{name}": dicom(name) for name in names} | {"test/a.dcm": dicom("CT_small.dcm")})
    assert found.images.shape[1] == 3
    shown = dict(zip(sorted(names), found.images.astype(int), strict=True))
    eight, sixteen, lossy = (shown[name] for name in names[:3])
    assert np.abs(eight - sixteen).max() <= 1 and np.abs(eight - lossy).mean() < 3
    assert eight[:, 0, 0].tolist() == [255, 0, 0], "the first stripe is red"


@pytest.mark.parametrize("packed", [False, True])
def test_a_person_is_a_patient_and_whole_patients_are_held_back(tmp_path, packed):
    files = {
        f"{'ab'[patient % 2]}/IM{patient}{number}": changed(PatientID=f"id{patient}", SeriesInstanceUID=f"1.{patient}")
        for patient in range(3)
        for number in range(patient + 1)
    }
    files["a/plan.dcm"], files["README"] = dicom("rtplan.dcm"), b"no image"
    train = read(tmp_path, files, packed=packed)
    assert train.classes == ("a", "b") and train.people.tolist() == [0, 1, 1] and train.reading.held_back == 3
    assert train.reading.skipped == (("README", "no suffix"), ("a/plan.dcm", "DICOM without an image"))


def test_folders_of_patients_are_no_classes(tmp_path):
    files = {f"P{patient}/S{patient}/IM0": changed(PatientID=f"id{patient}") for patient in range(4)}
    with pytest.raises(DataError, match=r"4 folders in .* with scans of one person each.*pass --attribute none"):
        read(tmp_path / "1", files)
    found = read(tmp_path / "2", files, attribute="none", split="test")
    assert found.classes == ("",) and len(found) == 1 and found.people.tolist() == [0]


def test_of_a_series_and_of_frames_every_so_many_count(tmp_path):
    black = np.zeros((64, 64), np.int16)
    shades = [black + shade for shade in range(6)]
    files = {  # in another order than that of their numbers
        f"train/{5 - number}.dcm": changed(
            pixel_array=shade, InstanceNumber=number, SeriesInstanceUID="1.2", RescaleIntercept=0
        )
        for number, shade in enumerate(shades)
    }
    files |= {"train/film.dcm": dicom("examples_ybr_color.dcm"), "test/a.dcm": dicom("CT_small.dcm")}
    found = read(tmp_path, files, slices="axial/3", window="3,6")
    assert len(found) == 2 + 10, "of six files numbers 0 and 3, of thirty frames ten"
    assert found.images[:2, 0].mean((1, 2)).tolist() == [153, 0], "grey of 0 … 5"


@pytest.mark.parametrize("told", ["", "people.csv", "pattern"])
def test_which_files_of_a_series_count_follows_from_its_persons_files_alone(tmp_path, told):
    """However an anonymiser numbers series: one person's files must not decide what is taken of another's."""
    tags = {"SeriesInstanceUID": "1.2", "RescaleIntercept": 0}

    def taken(place, moved):
        files = {
            f"train/{name}{number}.dcm": changed(
                pixel_array=np.full((64, 64), 10 * number, np.int16),
                InstanceNumber=number + moved * (name == "a"),
                PatientID="" if told else name,
                **tags,
            )
            for name in "ab"
            for number in range(4)
        }
        files["test/c0.dcm"] = dicom("CT_small.dcm")
        people = "^([a-c])[0-9]" if told == "pattern" else ""
        if told == "people.csv":
            files[told] = "".join(f"{name},{name.split('/')[1][0]}\n" for name in files).encode()
        found = read(tmp_path / place, files, slices="axial/2", window="20,40", people=people)
        return found.people, found.images[found.people == 1]

    (people, one), (_, other) = taken("1", 0), taken("2", 7)
    assert people.tolist() == [0, 0, 1, 1] and np.array_equal(one, other)


def test_values_and_windows_of_a_frame_are_those_of_its_own_groups(tmp_path):
    def groups(**told):
        item = pydicom.Dataset()
        for name, tags in told.items():
            inner = pydicom.Dataset()
            for tag, value in tags.items():
                setattr(inner, tag, value)
            setattr(item, name, pydicom.Sequence([inner]))
        return pydicom.Sequence([item])

    ramp = np.arange(64 * 64, dtype=np.int16).reshape(64, 64)
    plain = changed(pixel_array=ramp, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=1000)
    moved = groups(PixelValueTransformationSequence={"RescaleIntercept": -1024, "RescaleSlope": 1})
    window = groups(FrameVOILUTSequence={"WindowCenter": 0, "WindowWidth": 1000})
    grouped = changed(
        pixel_array=ramp,
        RescaleIntercept=0,
        SharedFunctionalGroupsSequence=moved,
        PerFrameFunctionalGroupsSequence=window,
        VOILUTSequence=pydicom.Sequence([]),
    )
    one, other = read(tmp_path, {"a.dcm": plain, "b.dcm": grouped}).images
    assert np.array_equal(one, other) and one.min() == 0 and one.max() == 255


def test_colours_of_fewer_bits_than_their_words_are_as_bright(tmp_path):
    whole = pydicom.dcmread(io.BytesIO(dicom("SC_rgb_rle_16bit.dcm")))
    colours = pydicom.pixels.pixel_array(whole)
    whole.decompress()
    whole.PixelData, whole.BitsStored, whole.HighBit = (colours >> 4).tobytes(), 12, 11
    buffer = io.BytesIO()
    whole.save_as(buffer)
    one, other = read(tmp_path, {"a.dcm": dicom("SC_rgb_rle_16bit.dcm"), "b.dcm": buffer.getvalue()}).images
    assert np.abs(one.astype(int) - other).max() <= 1


def test_a_header_that_claims_more_than_there_can_be_is_refused_before_room_is_made(tmp_path):
    with pytest.raises(DataError, match=r"a\.dcm, of 2000000000 frames; expected at most 99999"):
        read(tmp_path, {"a.dcm": changed(NumberOfFrames=2_000_000_000)})


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "no_meta.dcm"])
def test_a_damaged_file_is_named_and_nothing_of_its_header(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name} does not decode \(ValueError\)"):
        read(tmp_path, {name: dicom(name)})


def test_nothing_of_a_header_is_said_or_kept(tmp_path, tiny, capfd):
    files = {
        f"{number}.dcm": changed(PatientID=f"id-{number}", StudyDescription=SECRET, PatientBirthDate="not a date")
        for number in range(24)
    }
    path = Tree(tmp_path / "images", False).write(files)
    asked = tiny(
        data={"dataset": "folder", "data_dir": str(path)},
        generator={"channels": 1},
        privacy={"epsilon": 5.0, "delta": 1e-2, "noise": "fast"},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        simulator.train(asked, out=tmp_path / "run")
    told = capfd.readouterr()
    said = [told.out.encode(), told.err.encode(), *(str(one.message).encode() for one in caught)]
    said += [one.read_bytes() for one in (tmp_path / "run").rglob("*") if one.is_file()]
    assert not [one for one in said if SECRET.encode() in one or b"id-1" in one or b"not a date" in one]
    assert b"images of 24 persons" in (tmp_path / "run" / "data.json").read_bytes()


def test_files_that_tell_no_patient_are_of_nobody_but_not_beside_others_with_epsilon(tmp_path):
    files = {"1.dcm": changed(PatientID=""), "2.dcm": changed(PatientID="a")}
    assert read(tmp_path / "1", files).people is None
    with pytest.raises(DataError, match="1 of 2 images that do not tell whose they are"):
        read(tmp_path / "2", files, private=True)
    with pytest.raises(DataError, match="1 of 1 images that do not tell whose they are"):
        read(tmp_path / "3", {"train/1.dcm": files["1.dcm"], "test/2.dcm": files["2.dcm"]}, private=True)


# --------------------------------------------------------------------------------------------- NIfTI


def test_real_volumes_are_sliced_along_each_axis(tmp_path):
    raw = (NIFTI / "anatomical.nii").read_bytes()
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(raw)).get_fdata()
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        found = read(tmp_path / name, {"one.nii": raw}, size=64, slices=f"{name}/10")
        assert len(found) + found.reading.held_back == len(range(0, turned.shape[axis], 10))
    plain = read(tmp_path / "a", {"one.nii": raw})
    packed = read(tmp_path / "b", {"one.nii.gz": gzip.compress(raw)})
    assert np.array_equal(plain.images, packed.images)
    again = read(tmp_path / "c", {"one.nii": (NIFTI / "example_nifti2.nii.gz").read_bytes()})
    assert again.images.shape[1] == 1, "a packed one by its bytes, and NIfTI-2"


def test_however_voxels_are_stored_a_slice_shows_the_same(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 1000, (16, 14, 12)).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.0, 1.0]))
    wanted = None
    for number, (axes, flips) in enumerate(product(permutations(range(3)), [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])):
        turned = image.as_reoriented(np.array(list(zip(axes, flips, strict=True))))
        found = read(
            tmp_path / str(number), {"a.nii": turned.to_bytes()}, slices="coronal/2", size=16, fit="pad"
        ).images
        wanted = found if wanted is None else wanted
        assert np.array_equal(found, wanted)
    # The right side at the left and the head up: voxel (i, j, k) of the picture's row is 11 - k, of its column 15 - i.
    low, high = np.percentile(voxels, (1, 99))
    shown = ((voxels[:, 0].astype(float).clip(low, high) - low) / (high - low) * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(wanted[0, 0, 2:14], shown[::-1, ::-1].T)


def test_voxels_that_are_no_cubes_make_square_pixels_and_names_tell_persons(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((8, 8, 4), np.uint8), np.diag([1.0, 1.0, 4.0, 1.0]))
    names = ["sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T2w.nii", "sub-02/anat/sub-02_T1w.nii"]
    with pytest.raises(DataError, match="folders of the same names"):
        read(tmp_path / "0", dict.fromkeys(names, image.to_bytes()))
    found = read(tmp_path, dict.fromkeys(names, image.to_bytes()), slices="coronal/8", size=16, attribute="none")
    assert found.classes == ("",)
    assert found.reading.sides[0] == (8, 16) and found.people.tolist() == [0, 0]  # the other subject is held back
    alone = read(tmp_path / "2", dict.fromkeys(("a.nii", "b.nii"), image.to_bytes()), slices="axial/4", size=16)
    assert alone.people.tolist() == [0] and alone.reading.held_back == 1


def flat_volume():
    """A volume whose affine leaves no place for one axis."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([1.0, 1.0, 1.0, 1.0]))
    image.header["srow_z"], image.header["qform_code"] = 0, 0
    return image.header.binaryblock + bytes(4 + 64)


@pytest.mark.parametrize("raw", [b"", b"\x1f\x8b\x08broken", (348).to_bytes(4, "little") + bytes(2000), flat_volume()])
def test_a_damaged_volume_is_named(tmp_path, raw):
    with pytest.raises(DataError, match=r"a\.nii\.gz(, of a shape or an affine that is none| does not decode)"):
        read(tmp_path, {"a.nii.gz": raw})


# ------------------------------------------------------------------------------------------ settings


WRONG = [(slices_from, "front"), (slices_from, "axial/0")]
WRONG += [(window_from, text) for text in ("40", "1,0", "nan,1", "a,b")]


@pytest.mark.parametrize(("read_by", "text"), WRONG)
def test_what_is_no_window_or_slice_is_refused_before_anything_is_read(read_by, text):
    name = "slices" if read_by is slices_from else "window"
    with pytest.raises(SettingError, match=rf"data\.{name} = "):
        read_by(text)


@pytest.mark.parametrize(("library", "file"), [("pydicom", "a.dcm"), ("nibabel", "a.nii")])
def test_without_its_library_a_file_says_what_to_install(tmp_path, monkeypatch, library, file):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    getattr(medical, f"_{library}").cache_clear()
    with pytest.raises(DependencyError, match=r"pip install 'prismfl\[medical\]'"):
        read(tmp_path, {file: b"x" * 200})


def test_photographs_beside_scans_are_read_as_ever(tmp_path):
    found = read(tmp_path, {"a/1.png": png(pixels(1, grey=True)[0]), "b/1.dcm": dicom("CT_small.dcm")}, size=16)
    assert found.classes == ("a", "b") and found.people is None
