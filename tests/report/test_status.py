"""The live page: what the server knows, as it is now, and nothing of a site's data."""

import json

import pytest
from PIL import Image

from prismfl.report import status
from prismfl.report.status import Status
from prismfl.run import folder as runfolder
from prismfl.run.loop import Silent
from prismfl.settings.toml import settings_from


@pytest.fixture
def folder(tmp_path, fabricate):
    """A run of ten rounds before its first one."""
    return fabricate(tmp_path / "run", rounds=10, done=0, grids=0)


@pytest.fixture
def rounds(tmp_path, fabricate):
    """Lines of a log."""
    return runfolder.read_rounds(fabricate(tmp_path / "other", rounds=10, grids=0))


def page_of(folder):
    return (folder.root / "status.html").read_text()


def test_a_page_is_there_from_the_start_and_follows_every_round(folder, rounds, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Status(Silent(), folder.root) as page:
        page.started(0, 10)
        assert "0 of 10" in page_of(folder) and 'http-equiv="refresh"' in page_of(folder)
        for done, record in enumerate(rounds[:4], 1):
            now[0] += 30
            page.round_done(record, 10)
            assert f"{done} of 10" in page_of(folder)
        text = page_of(folder)
        assert "3 min" in text and "12.0 kB" in text and "36.0 kB" in text, "time left, bytes both ways"
        assert "<script" not in text and "default-src 'none'" in text
    assert "finished" in page_of(folder) and "refresh" not in page_of(folder)


def test_who_is_left_out_is_named_with_the_reason_as_text(folder, rounds):
    page = Status(Silent(), folder.root)
    page.started(0, 10)
    page.round_done(rounds[0], 10)
    page.round_done(rounds[1] | {"cohort": [0], "left_out": {"1": "no reply within <b>600 s</b>"}}, 10)
    assert "left out now" in page_of(folder) and "no reply within &lt;b&gt;600 s" in page_of(folder)
    page.round_done(rounds[2], 10)
    assert "left out now" not in page_of(folder) and "no reply within" in page_of(folder), "the last reason stays"


def test_a_run_that_goes_on_counts_what_was_before(folder, rounds):
    folder.rounds.write_text("".join(json.dumps(record) + "\n" for record in rounds[:5]))
    Status(Silent(), folder.root).started(4, 10)
    assert "4 of 10" in page_of(folder) and "12.0 kB" in page_of(folder)


def test_the_newest_grid_is_shown_and_real_images_are_not(folder, rounds):
    page = Status(Silent(), folder.root)
    page.started(0, 10)
    folder.real.parent.mkdir()
    Image.new("L", (34, 34), 200).save(folder.real)
    page.round_done(rounds[0], 10)
    assert "<img" not in page_of(folder) and "labels" not in page_of(folder)
    for done in (1, 2):
        Image.new("L", (34, 34), done).save(folder.samples(done))
        page.round_done(rounds[done], 10)
        assert f"Grid of samples after round {done}" in page_of(folder) and page_of(folder).count("<img") == 1


def test_privacy_is_told_as_it_is_spent(tmp_path, fabricate, rounds):
    folder = fabricate(tmp_path / "private", rounds=10, done=0, grids=0, epsilon=9.8)
    ledger = folder.ledger.read_text()
    folder.ledger.write_text('{"releases": []}')
    page = Status(Silent(), folder.root)
    page.started(0, 10)
    assert "nothing yet" in page_of(folder)
    folder.ledger.write_text(ledger)
    page.round_done(rounds[0], 10)
    assert "ε = 9.8" in page_of(folder)


@pytest.mark.parametrize(("error", "told"), [(KeyboardInterrupt(), "interrupted"), (ValueError("<i>lost"), "lost")])
def test_a_run_that_stops_says_so(folder, rounds, error, told):
    with pytest.raises(type(error)), Status(Silent(), folder.root) as page:
        page.started(0, 10)
        page.round_done(rounds[0], 10)
        raise error
    assert f"stopped: {told}" in page_of(folder).replace("&lt;i&gt;", "") and "refresh" not in page_of(folder)


class Display(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        """One more."""
        self.notes.append(text)


def test_a_page_that_cannot_be_written_is_left_out_and_the_run_goes_on(folder, rounds, monkeypatch):
    def full(*_):
        raise OSError("no room")

    monkeypatch.setattr(status, "write_atomic", full)
    display = Display()
    with Status(display, folder.root) as page:
        page.started(0, 10)
        page.round_done(rounds[0], 10)
    assert display.notes == ["status.html is left out from here on (no room)"]


def test_a_run_that_is_refused_leaves_anothers_page_alone(folder):
    (folder.root / "status.html").write_text("another's")
    with pytest.raises(ValueError, match="refused"), Status(Silent(), folder.root):
        raise ValueError("refused")
    assert page_of(folder) == "another's"


def test_a_thousand_notes_are_not_a_thousand_pages(folder, monkeypatch):
    written = []
    monkeypatch.setattr(status, "write_atomic", lambda *_: written.append(1))
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    page = Status(Silent(), folder.root)
    page.started(0, 10)
    for client in range(1000):
        page.note(f"client {client} is left out")
    assert 2 < len(written) < 30


def test_notes_are_shown_to_both_and_before_a_folder_is_there_nothing_is_made(tmp_path):
    display = Display()
    page = Status(display, tmp_path / "run")
    page.note("a client is late")
    assert display.notes == ["a client is late"] and not (tmp_path / "run").exists()
    runfolder.create(tmp_path / "run", settings_from({}))
    page.started(0, 20)
    assert "a client is late" in (tmp_path / "run" / "status.html").read_text()
