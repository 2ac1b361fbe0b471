"""Image files: every kind that is read, upright, on white, and squared as asked."""

import io

import numpy as np
import pytest
from made import png
from PIL import Image, features

from prismfl.data.decoding import gather, is_picture, picture_of, read_picture
from prismfl.data.images import fit
from prismfl.errors import DataError

RNG = np.random.default_rng(4)


def packed(image, kind, **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def wide(width, height):
    """Black, white in the middle third of the longer side."""
    image = np.zeros((height, width, 3), np.uint8)
    third = max(width, height) // 3
    image[(slice(third, -third), slice(None)) if height > width else (slice(None), slice(third, -third))] = 255
    return Image.fromarray(image)


KINDS = ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_usual_format_is_read(kind):
    codec = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind)
    if codec and not features.check(codec):
        pytest.skip(f"this Pillow has no {kind}")
    made = np.zeros((16, 16, 3), np.uint8)
    made[:, :8] = (200, 40, 40)
    found = read_picture(packed(Image.fromarray(made), kind), "x", 16)
    assert np.abs(found.pixels.astype(int) - made.transpose(2, 0, 1)).mean() < 12 and found.sides == (16, 16)


def test_suffixes_are_those_that_are_read():
    names = "png JPG jpeg jpe jfif bmp gif webp tif tiff ppm pgm jp2 tga avif heic jxl"
    for suffix in (f".{name}" for name in names.split()):
        assert is_picture(suffix), suffix
    assert not any(map(is_picture, ("", ".txt", ".pdf", ".eps", ".h5", ".cr2", ".mp4", ".zip", ".svg")))


def test_no_program_is_run_for_an_image():
    """PostScript, whatever its name: Pillow would ask Ghostscript."""
    with pytest.raises(DataError, match=r"x\.png does not decode \(it is empty, or of no format that is known\)"):
        read_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "x.png", 8)


def test_what_no_decoder_is_installed_for_says_which():
    raw = b"\x00\x00\x00\x18ftypxxxx" + bytes(40)
    with pytest.raises(DataError, match=r"a/1\.HEIC does not decode; expected a decoder of \.heic; pip install"):
        read_picture(raw, "a/1.HEIC", 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photographs_are_turned_upright(orientation, kind):
    upright = np.zeros((24, 16), np.uint8)
    upright[:12] = 200  # light above
    upright[:, :4] += 55  # lighter at the left
    back = {2: 0, 3: 1, 4: 5, 5: 6, 6: 2, 7: 3, 8: 4}  # what undoes it, as Pillow numbers them
    back |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    back |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    back |= {8: Image.Transpose.ROTATE_270}
    image = Image.fromarray(upright)
    image = image if orientation == 1 else image.transpose(back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_picture(packed(image, kind, exif=exif), "x", 16, "squash")
    expected = np.asarray(Image.fromarray(upright).resize((16, 16), Image.Resampling.BOX))
    assert np.abs(found.pixels[0].astype(int) - expected).mean() < 8 and found.sides == (16, 24)


def test_damaged_exif_harms_no_image():
    raw = packed(wide(16, 16), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + bytes(9))
    assert not read_picture(raw, "x", 16).turned


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(mode):
    hidden = RNG.integers(0, 256, (16, 16, 4), np.uint8)
    hidden[..., 3] = 0
    hidden[4:8, 4:8] = (0, 0, 0, 255)
    if mode in ("P", "RGB"):  # one colour stands for nothing there
        made = np.full((16, 16), 1, np.uint8)
        made[4:8, 4:8] = 0
        image = Image.fromarray(made, "L").convert("P") if mode == "P" else Image.fromarray(np.stack([made] * 3, -1))
        raw = packed(image, "PNG", transparency=1 if mode == "P" else (1, 1, 1))
    else:
        raw = packed(Image.fromarray(hidden).convert(mode), "PNG")
    found = read_picture(raw, "x", 16)
    assert found.transparent and (found.pixels[:, 4:8, 4:8] == 0).all()
    assert (found.pixels[:, :4] == 255).all() and (found.pixels[:, :, 8:] == 255).all()


def test_an_opaque_alpha_channel_changes_nothing():
    made = RNG.integers(0, 256, (16, 16, 4), np.uint8)
    made[..., 3] = 255
    found = read_picture(packed(Image.fromarray(made), "PNG"), "x", 16)
    assert not found.transparent and np.array_equal(found.pixels, made[..., :3].transpose(2, 0, 1))


@pytest.mark.parametrize("sides", [(48, 16), (16, 48), (47, 16)])
def test_what_is_not_square_is_cropped_padded_or_squashed(sides):
    found = {how: picture_of(wide(*sides), 16, how).pixels[0] for how in ("crop", "pad", "squash")}
    if sides[0] < sides[1]:
        found = {how: image.T for how, image in found.items()}
    assert found["crop"].mean() > 240, "the middle alone"
    assert found["squash"][:, 6:10].min() > 240 and found["squash"][:, :5].max() < 10
    assert found["pad"][[0, 1, 2, 3, 12, 13, 14, 15]].max() < 10 and found["pad"][7:9, 7:9].min() > 240
    array = np.asarray(wide(*sides)).transpose(2, 0, 1)[None]
    for how, image in found.items():
        same = fit(array, 16, how=how)[0, 0]
        assert np.array_equal(same if sides[0] > sides[1] else same.T, image), "arrays as files"


def test_images_of_many_sizes_are_read_together():
    raws = [png(np.full((side, side + add, 3), (9, 8, 7), np.uint8)) for side, add in [(16, 0), (300, 200), (8, 1)]]
    images, reading = gather([lambda look, raw=raw: read_picture(raw, "x", 16, look=look) for raw in raws], 16)
    assert images.shape == (3, 3, 16, 16) and (images == np.array([9, 8, 7])[:, None, None]).all()
    assert reading.sides == ((9, 8), (500, 300)) and reading.oblong == 2


def test_a_large_photograph_is_read_at_a_fraction_and_looks_the_same():
    coarse = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8))
    raw = packed(coarse.resize((1600, 1200), Image.Resampling.BICUBIC), "JPEG", quality=95)
    with Image.open(io.BytesIO(raw)) as whole:
        expected = picture_of(whole, 32).pixels
    found = read_picture(raw, "x", 32)
    assert np.abs(found.pixels.astype(int) - expected).max() < 8 and found.sides == (1600, 1200)


def test_what_fails_first_in_order_is_told():
    def job(look, at):
        if at > 40:
            raise DataError(f"image {at}", "a whole one", "mend")
        return picture_of(Image.new("L", (8, 8)), 8)

    with pytest.raises(DataError, match="image 41"):
        gather([lambda look, at=at: job(look, at) for at in range(200)], 8, threads=4)
