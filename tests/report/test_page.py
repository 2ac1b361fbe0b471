"""The page: whole in itself, escaped, small, and honest about what a guarantee covers."""

import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from prismfl.errors import PrismError, RunFolderError
from prismfl.report import grids
from prismfl.report.grids import read_grids, spread
from prismfl.report.look import OUTSIDE
from prismfl.report.page import ROOM, build_report
from prismfl.report.runs import read_runs

NASTY = (
    '<script>alert("x")</script>',
    "$\\frac{",
    '"><img src=x onerror=alert(1)>',
    "&amp; ' `",
    "ä\u202e犬",
    "]]>-->",
)


class Page(HTMLParser):
    """Tags with their attributes, ids, and text by tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def every(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, fabricate, evaluate_as):
    """The page of a finished run without ε that was evaluated."""
    folder = fabricate(tmp_path_factory.mktemp("page") / "digits")
    evaluate_as(folder, class_shares=[0.1] * 10, class_names=list("0123456789"), fid_judge=4.5, later_figure=0.25)
    (folder.root / "data.json").write_text(json.dumps({"line": "17 images were read"}))
    return build_report([folder.root])


@pytest.fixture(scope="module")
def private(tmp_path_factory, fabricate, evaluate_as):
    """The text of the page of a run with ε, in whose folder labels of clients lie all the same."""
    folder = fabricate(tmp_path_factory.mktemp("page") / "private", epsilon=9.8)
    folder.labels.write_text(json.dumps({"classes": ["secret", "b"], "counts": [[1, 2], [3, 4]]}))
    evaluate_as(folder, fid_judge=4.5, warnings=["a warning"])
    return build_report([folder.root]).read_text()


def test_the_page_and_its_plots_lie_in_the_run_folder(plain):
    assert plain.name == "report.html"
    names = {path.name for path in (plain.parent / "plots").iterdir()}
    assert {"loss.png", "theta_variance.png", "local_divergence.png", "flips.png", "mask_entropy.png"} < names
    assert {"density-by-layer.png", "bytes.png", "labels-of-samples.png", "labels-of-clients.png"} < names
    for path in (plain.parent / "plots").iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


def test_nothing_is_fetched(plain):
    page = Page(plain.read_text())
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert re.match(r"data:|#", attributes.get(name, "#")), (tag, attributes[name][:60])
    assert "@import" not in plain.read_text() and not re.search(r"url\((?!#)", plain.read_text())
    (policy,) = [one["content"] for one in page.every("meta") if "http-equiv" in one]
    assert "default-src 'none'" in policy


def test_ids_are_unique_and_what_they_name_is_there(plain):
    page = Page(plain.read_text())
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    told = {attributes.get(key, "") for _, attributes in page.tags for key in ("for", "aria-labelledby")} - {""}
    told |= {attributes["xlink:href"][1:] for _, attributes in page.tags if "xlink:href" in attributes} - {""}
    assert {one for one in told if not one.startswith("ata:")} <= set(names)


def test_what_is_said_is_there(plain):
    text = Page(plain.read_text()).text
    for words in ("12.50", "said of privacy", "9.9.9", "a processor", "Mean θ(1 - θ)", "Local divergence", "Flips"):
        assert words in text
    assert "no promise" in text and "17 images were read" in text
    assert "known in simulation alone" in text and "later_figure" in text and OUTSIDE not in text
    assert "700 B were for choosing" in text and "19.5 kB" in text, "payload is frames less framing"


def test_every_svg_is_whole_and_titled(plain):
    found = re.findall(r"<svg .*?</svg>", plain.read_text(), re.S)
    assert len(found) > 10
    for svg in found:
        assert 'role="img"' in svg and "aria-labelledby" in svg
        ElementTree.fromstring(
            svg.replace("xlink:", "").replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        )


def test_the_slider_has_a_label_and_every_grid_words(plain):
    page = Page(plain.read_text())
    (slider,) = page.every("input")
    assert slider["type"] == "range" and slider["max"] == "1"
    assert slider["id"] in {one["for"] for one in page.every("label")}
    pictures = [one for one in page.every("img") if "data-told" in one]
    assert [one["data-told"] for one in pictures] == ["after round 3", "after round 6"]
    assert all(one["alt"] for one in page.every("img"))
    assert ["hidden" in one for one in pictures] == [True, False], "without scripts the last grid shows"


def test_the_same_run_gives_the_same_page(plain):
    before = plain.read_bytes()
    assert build_report([plain.parent]).read_bytes() == before


def test_the_script_is_the_one_that_the_page_allows(plain):
    import base64
    import hashlib

    text = plain.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_a_distance_is_told_beside_that_of_two_halves_of_real_images(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run")
    summary = json.loads(folder.summary.read_text()) | {"fid_judge_of_halves": 2.5}
    folder.summary.write_text(json.dumps(summary))
    words = "visibly different: 5.0 times as far as real images are from each other (2.50)"
    assert words in Page(build_report([folder.root]).read_text()).text
    folder.summary.write_text(json.dumps(summary | {"cautions": ["fid_judge of 40 images"]}))
    text = Page(build_report([folder.root]).read_text()).text
    assert words not in text and "of too few images to say much" in text and "fid_judge of 40 images" in text


def test_tables_have_their_numbers(plain):
    labels, layers = (
        re.search(rf'id="title-{name}".*?</svg>', plain.read_text(), re.S).group()
        for name in ("labels-of-clients", "density-by-layer")
    )
    assert labels.count(">3<") == 11 and labels.count(">7<") >= 2, "images of each label, and the axis' own"
    assert layers.count(">0.50<") + layers.count(">0.49<") + layers.count(">0.45<") >= 3


# ---------------------------------------------------------------------------------------- privacy


def test_what_is_outside_the_guarantee_is_marked(private):
    text = Page(private).text
    assert "0 is best; outside the guarantee" in text and OUTSIDE in text
    assert "Outside the guarantee" in text and "a warning" in text
    assert "gaussian" in text and "0.508" in text


def test_labels_of_clients_are_never_shown_with_epsilon(private):
    assert "secret" not in private and "labels-of-clients" not in private


def test_paths_of_the_machine_are_not_in_the_page(tmp_path, fabricate):
    folder = fabricate(
        tmp_path / "run", done=0, grids=0, data={"dataset": "mnist", "data_dir": "/somewhere/private", "clients": 2}
    )
    page = build_report([folder.root]).read_text()
    assert "/somewhere" not in page and str(tmp_path) not in page


# ------------------------------------------------------------------------------------ hostile names


def test_names_of_classes_are_text_and_nothing_else(tmp_path, fabricate, evaluate_as):
    folder = fabricate(tmp_path / "<b>run</b>", classes=NASTY, rounds=2)
    lines = [json.loads(text) for text in folder.rounds.read_text().splitlines()]
    lines[1]["left_out"] = {"1": NASTY[0]}
    lines[1]["theta_by_layer"] = {NASTY[2]: 0.5, NASTY[0]: 0.5}
    folder.rounds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate_as(folder, class_shares=[1 / 6] * 6, class_names=list(NASTY), warnings=[NASTY[2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Page(build_report([folder.root]).read_text())
    assert len(page.every("script")) == 1 and not page.every("b")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    words = "".join(page.words)
    assert all(name in words for name in (NASTY[0], "犬", "$\\frac{"))


# ------------------------------------------------------------------------------------ several runs


def test_several_runs_share_a_page(tmp_path, fabricate, monkeypatch):
    roots = [fabricate(tmp_path / "_one").root, fabricate(tmp_path / "two", rounds=9, done=4, grids=1).root]
    monkeypatch.chdir(tmp_path)
    page = build_report(roots)
    assert page.name == "comparison.html" and (tmp_path / "comparison-plots" / "loss.png").is_file()
    text = Page(page.read_text()).text
    assert "unfinished: 4 of 9 rounds" in text and "federation.rounds" in text
    assert "Share of weights kept, by layer: two" in text
    assert not (roots[0] / "report.html").exists()
    (loss,) = re.findall(r'<h3 id="title-loss">.*?</svg>', page.read_text(), re.S)
    assert "_one" in loss and "two" in loss, "the legend names both, underscores and all"


def test_a_page_elsewhere_leaves_the_run_folder_alone(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run", done=0, grids=0)
    before = sorted(folder.root.rglob("*"))
    page = build_report([folder.root], tmp_path / "new" / "page.html")
    assert page.is_file() and sorted(folder.root.rglob("*")) == before
    assert "0 of 6 rounds" in Page(page.read_text()).text


def test_a_page_that_cannot_be_written_is_refused(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run", done=0, grids=0)
    with pytest.raises(RunFolderError, match="cannot write"):
        build_report([folder.root], tmp_path / "run")


# ------------------------------------------------------------------------------------------- grids


def test_a_doubled_grid_is_shown_by_its_own_pixels(tmp_path, fabricate):
    found = read_grids(read_runs([fabricate(tmp_path / "run").root])[0].grids, ROOM)
    assert [grid.rounds for grid in found.shown] == [3, 6] and not found.lossy
    assert (found.shown[0].width, found.shown[0].height) == (136, 136), "34 pixels, four times"


def test_a_hundred_rounds_and_twenty_grids_fit_five_megabytes(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run", rounds=100, grids=20, size=170)
    assert build_report([folder.root]).stat().st_size < 5_000_000


def test_grids_that_are_too_large_are_compressed_and_then_left_out(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run", rounds=20, grids=10, size=60, mode="RGB")
    files = read_runs([folder.root])[0].grids
    whole, packed, fewer = (read_grids(files, room) for room in (10**6, 10**5, 10**4))
    assert (whole.lossy, packed.lossy, fewer.lossy) == (False, True, True)
    assert len(whole.shown) == len(packed.shown) == 10 and 1 <= len(fewer.shown) < 10
    for room, found in ((10**6, whole), (10**5, packed), (10**4, fewer)):
        assert found.count == 10 and sum(len(grid.uri) for grid in found.shown) < room + 100 * len(found.shown)
    assert (fewer.shown[0].rounds, fewer.shown[-1].rounds) == (2, 20)


def test_of_many_grids_the_first_and_the_last_stay():
    for most in range(2, 12):
        found = spread(range(100), most)
        assert len(set(found)) == most and (found[0], found[-1]) == (0, 99)
    assert spread(range(5), 7) == [0, 1, 2, 3, 4] and spread("abc", 1) == ["c"]


def test_one_grid_too_large_still_shows(tmp_path, fabricate, monkeypatch):
    folder = fabricate(tmp_path / "run", grids=3)
    assert [grid.rounds for grid in read_grids(read_runs([folder.root])[0].grids, 10).shown] == [6]
    monkeypatch.setattr(grids, "MOST_GRIDS", 2)
    assert [grid.rounds for grid in read_grids(read_runs([folder.root])[0].grids, ROOM).shown] == [2, 6]


@pytest.mark.parametrize("raw", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_grid_that_is_no_picture_is_named(tmp_path, fabricate, raw):
    folder = fabricate(tmp_path / "run")
    folder.samples(3).write_bytes(raw)
    with pytest.raises(RunFolderError, match=r"round-00003\.png is no picture"):
        build_report([folder.root])
    assert not folder.report.exists()


# ------------------------------------------------------------------------------------------ real images


@pytest.mark.parametrize(
    ("privacy", "shown"), [({}, True), ({"epsilon": 9.8}, False), ({"epsilon": 9.8, "distances": True}, True)]
)
def test_real_images_stand_beside_unless_epsilon_makes_them_private(tmp_path, fabricate, privacy, shown):
    folder = fabricate(tmp_path / "run", epsilon=privacy.get("epsilon", 0.0), privacy=privacy)
    Image.fromarray(np.eye(34, dtype=np.uint8)).save(folder.real)
    page = Page(build_report([folder.root]).read_text())
    real = [one["alt"] for one in page.every("img") if "data-told" not in one]
    assert real == (["Grid of held-back real images of run"] if shown else [])
    assert ("with ε held-back ones are private too" in page.text) == (not shown)
    assert ("whoever passes this page on shows them" in page.text) == shown
    assert (f"shows them. {OUTSIDE}" in page.text) == (shown and "epsilon" in privacy)


# ------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("name", ["../pairs.png", "/etc/passwd", "missing.png", "pairs.txt", 3])
def test_no_other_file_than_a_picture_of_the_folder_is_taken_for_pairs(tmp_path, fabricate, evaluate_as, name):
    folder = fabricate(tmp_path / "run", done=0, grids=0)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "pairs.png")
    evaluate_as(folder, pairs={"file": name})
    assert "Nearest training images" not in build_report([folder.root]).read_text()


def test_pairs_are_shown_with_a_warning(tmp_path, fabricate, evaluate_as):
    folder = fabricate(tmp_path / "run", done=0, grids=0)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder.root / "pairs.png")
    evaluate_as(folder, nearest_of_samples=1.0, pairs={"file": "pairs.png"})
    assert "shows real training images" in Page(build_report([folder.root]).read_text()).text


def test_an_error_is_a_typed_one(tmp_path):
    with pytest.raises(PrismError):
        build_report([tmp_path])
