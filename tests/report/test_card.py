"""The card: what it says of a run, from the run's own files, and no training image without leave."""

import hashlib
import json
import re

import pytest

import prismfl
from prismfl.errors import RunFolderError
from prismfl.report.card import PAIRS, Reading, build_card, plain

AUDIT = {"many_runs": 1.25, "many_runs_if_gaussian": 2.5, "one_run": 0.5, "broken": False, "defects": []}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The folder of a finished run with ε."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        asked = tiny(privacy={"epsilon": 9.8, "noise": "fast"}, data={"dataset": "digits"})
        return prismfl.train(asked, out=tmp_path_factory.mktemp("card") / "run").folder


def pages_of(folder, *arguments):
    """HTML and Markdown of a run's card."""
    page = build_card(folder.root, *arguments)
    return page.read_text(), page.with_suffix(".md").read_text()


def test_the_card_says_what_was_promised_to_whom_and_of_which_file(trained):
    digest = hashlib.sha256(trained.model.read_bytes()).hexdigest()
    network = json.loads(trained.summary.read_text())["features_sha256"]
    for text in pages_of(trained):
        for words in ("ε = 9.8", "δ = 1e-05", "the images of one person at one client", "replace-one", digest, network):
            assert words in text
        for words in ("NumPy's normals", "gaussian", "What is not protected", "opendp", "16 × 16"):
            assert words in text.replace("&#39;", "'")
        assert "By itself so large an ε bounds little" in text


def test_without_leave_no_training_image_is_read_or_shown(trained, monkeypatch):
    monkeypatch.setattr("prismfl.run.evaluate.load_dataset", None)
    page, text = pages_of(trained)
    assert "Not made: leave to read" in page and page.count("<img") == 1 and "card-pairs" not in text
    assert not (trained.root / PAIRS).exists()


def test_with_leave_membership_and_copies_are_tested_and_marked(trained):
    page, text = pages_of(trained, None, Reading(samples=20))
    for one in (page, text):
        assert re.search(r"told from one that was not used in \d+% of pairs", one)
        assert "no nearer than" in one and "no promise covers it" in one
    assert page.count("<img") == 2 and f"]({PAIRS})" in text and (trained.root / PAIRS).is_file()
    (trained.root / PAIRS).unlink()


@pytest.mark.parametrize("broken", [False, True])
def test_an_audit_is_told_with_its_verdict(trained, tmp_path, broken):
    found = AUDIT | {"broken": broken, "defects": ["noise is too small"] * broken}
    (tmp_path / "audit.json").write_text(json.dumps(found))
    for text in pages_of(trained, tmp_path / "audit.json"):
        assert "1.25" in text and "2.5" in text
        assert ("nothing contradicts the promise" in text) != broken and ("noise is too small" in text) == broken


@pytest.mark.parametrize("text", ["{}", '{"broken": 1}', "[1]", "no", json.dumps(AUDIT | {"one_run": "low"})])
def test_what_is_no_audit_is_refused(trained, tmp_path, text):
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"audit\.json"):
        build_card(trained.root, tmp_path / "audit.json")


def test_a_run_without_epsilon_promises_nothing(tiny, tmp_path):
    folder = prismfl.train(tiny(), out=tmp_path / "run").folder
    for text in pages_of(folder):
        assert "There is none" in text and "is not bounded" in text and "differentially" not in text.lower()


def test_an_unfinished_run_has_no_card(tmp_path, fabricate):
    with pytest.raises(RunFolderError, match="no finished model"):
        build_card(fabricate(tmp_path / "run", done=3).root)


def test_markdown_of_names_is_text():
    assert plain("<b>|*_`[x](y)`\n# z") == r"\<b\>\|\*\_\`\[x\](y)\` \# z"
