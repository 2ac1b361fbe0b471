"""What lies in a folder or a zip: what is read of it, what is not, and where links lead."""

import stat
import zipfile

import numpy as np
import pytest
from made import Tree, png

from prismfl.data.folder import load_folder
from prismfl.data.tree import look_into
from prismfl.errors import DataError

IMAGE = png(np.full((8, 8), 7, np.uint8))


@pytest.fixture(params=["folder", "zip"])
def tree(request, tmp_path):
    return Tree(tmp_path / "images", request.param == "zip")


def paths(tree):
    return ["/".join(entry.path) for entry in tree.entries]


def test_what_is_no_image_is_not_read_and_is_listed(tree):
    files = {
        "a/1.png": IMAGE,
        "a/2.JFIF": IMAGE,
        "a/notes.txt": b"",
        "a/label": b"7",
        "b/raw.cr2": b"",
        ".DS_Store": b"",
    }
    found = look_into(tree.write(files))
    assert paths(found) == ["a/1.png", "a/2.JFIF"] and found.folders == {("a",)}
    assert found.skipped == (("a/label", "no suffix"), ("a/notes.txt", ".txt"), ("b/raw.cr2", ".cr2"))


def test_leftovers_of_programs_are_no_images(tree):
    files = {"a/1.png": IMAGE, "a/._1.png": b"x", "__MACOSX/a/._1.png": b"x", ".ipynb_checkpoints/1.png": IMAGE}
    found = look_into(tree.write(files | {".git/deep/er/1.png": IMAGE}))
    assert paths(found) == ["a/1.png"] and found.tops == ["a"]
    assert {why for _, why in found.skipped} == {"hidden"} and len(found.skipped) == 4


def test_windows_paths_in_a_zip_name_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in (r"top\cat\1.png", r".\top\dog\1.png", "/top/dog/2.png", "top/../top/dog/3.png"):
            about = zipfile.ZipInfo("x")
            about.filename = name
            archive.writestr(about, IMAGE)
        archive.writestr("top\\empty\\", b"")
    found = look_into(tmp_path / "in.zip")
    assert paths(found) == ["top/cat/1.png", "top/dog/1.png", "top/dog/2.png", "top/top/dog/3.png"]
    assert ("top", "empty") in found.folders


def test_links_in_a_zip_are_never_followed(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a/1.png", IMAGE)
        about = zipfile.ZipInfo("a/2.png")
        about.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(about, str(tmp_path / "secret.png"))
    (tmp_path / "secret.png").write_bytes(IMAGE)
    found = look_into(tmp_path / "in.zip")
    assert paths(found) == ["a/1.png"] and found.skipped == (("a/2.png", "a link in a zip"),)


def test_of_members_of_one_name_the_last_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a/1.png", b"damaged")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/1.png", IMAGE)
    assert load_folder(tmp_path / "in.zip", "train", False, 8).images.max() == 7


def test_links_are_followed_once_and_counted_where_they_lead_out(tmp_path):
    for name in ("in/a", "out/deep"):
        for index in range(10):
            path = tmp_path / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(IMAGE)
    (tmp_path / "in" / "b").symlink_to(tmp_path / "out" / "deep")
    (tmp_path / "in" / "c").symlink_to(tmp_path / "in" / "a")
    (tmp_path / "in" / "a" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a" / "x.png").symlink_to(tmp_path / "out" / "deep" / "0.png")
    found = load_folder(tmp_path / "in", "train", False, 8)
    assert found.classes == ("a", "b", "c") and len(found) + found.reading.held_back == 32
    outside = [entry.path for entry in look_into(tmp_path / "in").entries if entry.elsewhere]
    assert outside == [("a", "x.png"), *(("b", f"{index}.png") for index in range(10)), ("c", "x.png")]
    assert found.reading.elsewhere == 11, "one of them is held back"
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="leads nowhere"):
        load_folder(tmp_path / "in", "train", False, 8)
    (tmp_path / "in" / "c.png").unlink()
    (tmp_path / "in" / "d.png").symlink_to("d.png")
    with pytest.raises(DataError, match=r"d\.png, a link that leads nowhere"):
        load_folder(tmp_path / "in", "train", False, 8)


def test_a_link_that_is_written_as_text_is_refused(tmp_path):
    for name in ("in/cat", "out/ship"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(IMAGE)
    (tmp_path / "in" / "ship").write_text("../out/ship")
    with pytest.raises(DataError, match=r"in/ship, a link that is written as text"):
        look_into(tmp_path / "in")
    (tmp_path / "in" / "ship").write_text("no path, but a licence of one long line" * 20)
    assert look_into(tmp_path / "in").skipped == (("ship", "no suffix"),)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"cannot look into .*in \(Permission denied\)"):
        look_into(tmp_path / "in")
