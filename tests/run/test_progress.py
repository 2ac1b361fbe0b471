"""What a run shows of itself, on a terminal and in a log."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from prismfl.report.status import Status
from prismfl.run import progress
from prismfl.run.loggers import Logged
from prismfl.run.progress import LiveWatcher, PlainWatcher, figures, lasting, shown_parts, sized, within

RECORD = {"round": 0, "loss": 0.63459, "uplink_bytes": 502, "downlink_bytes": 6584}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (6584, "6.6 kB"), (1_234_567, "1.2 MB"), (5e9, "5.0 GB")],
)
def test_bytes_for_people(count, text):
    assert sized(count) == text


def test_what_is_beyond_the_largest_unit_keeps_it():
    assert sized(12_345_000_000_000) == "12345.0 GB"


@pytest.mark.parametrize("count", [999_960, 999_999, 999_999_999])
def test_rounding_never_shows_a_thousand_of_a_unit(count):
    assert not sized(count).startswith("1000")


def test_figures_show_a_distance_where_there_is_one():
    assert figures(RECORD) == "loss 0.6346  up 502 B  down 6.6 kB"
    assert figures(RECORD | {"distance": 12.34}) == "loss 0.6346  up 502 B  down 6.6 kB  distance 12.3"


def test_plain_lines_name_round_figures_and_what_is_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watcher = PlainWatcher()
    watcher.started(0, 4)
    now[0] += 10
    watcher.round_done(RECORD, 4)
    watcher.note("a note")
    assert capsys.readouterr().out.splitlines() == [
        "4 rounds",
        "round 1/4  loss 0.6346  up 502 B  down 6.6 kB  30 s left",
        "a note",
    ]


def test_a_resumed_run_reckons_with_its_own_rounds_only(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watcher = PlainWatcher()
    watcher.started(6, 10)
    now[0] = 5.0
    watcher.round_done(RECORD | {"round": 6}, 10)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "going on after 6 of 10 rounds"
    assert second.startswith("round 7/10") and second.endswith("  15 s left")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_times_for_people(seconds, text):
    assert lasting(seconds) == text


def test_parts_of_a_command_are_told_every_ten_seconds_where_there_is_no_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with shown_parts() as part:
        done = part("judge looks at samples", 40)
        for _ in range(30):
            now[0] += 1
            done(1)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines() == [
        "judge looks at samples  10/40  30 s left",
        "judge looks at samples  20/40  20 s left",
        "judge looks at samples  30/40  10 s left",
    ]


def test_parts_of_a_command_are_bars_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    with shown_parts() as part:
        part("judge [looks] at samples", 40)(40)
    assert "judge [looks] at samples" in screen.getvalue() and "40/40" in screen.getvalue()


def test_what_lasts_within_a_round_is_told_of_and_only_then(capsys, monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watcher = Logged(Status(PlainWatcher(), tmp_path), {})  # as the command has it
    with within(watcher, "round 1, replies of clients", 4) as advance:
        for _ in range(3):
            now[0] += 6
            advance(1)
    assert capsys.readouterr().out == "round 1, replies of clients  2/4  12 s left\n", "every ten seconds"
    screen = io.StringIO()
    with LiveWatcher(Console(file=screen, force_terminal=True, width=160)) as watcher:
        with pytest.raises(ValueError, match="lost"), within(watcher, "moments [of] clients", 4) as advance:
            advance(3)
            watcher.refresh()
            raise ValueError("lost")
        assert not watcher.tasks, "it goes, however it ends"
        watcher.started(0, 2)
        with within(watcher, "replies", 4):
            watcher.round_done(RECORD, 2)
            assert [task.completed for task in watcher.tasks] == [1, 0], "a round moves its own bar alone"
    assert "moments [of] clients" in screen.getvalue() and "3/4" in screen.getvalue()


def test_the_live_bar_counts_rounds_and_prints_notes_as_they_are():
    screen = io.StringIO()
    with LiveWatcher(Console(file=screen, force_terminal=True, width=160)) as watcher:
        watcher.round_done(RECORD, 4)  # before the start there is no bar to move
        watcher.started(1, 4)
        watcher.round_done(RECORD | {"round": 2}, 4)
        assert watcher.tasks[0].completed == 3
        watcher.note("client 1 is left out: features.layers = [1, 2]; see [docs]")
    shown = screen.getvalue()
    assert "3/4" in shown and "loss 0.6346" in shown
    assert "features.layers = [1, 2]; see [docs]" in shown, "square brackets are no markup"


def test_the_live_bar_lets_the_terminal_go_when_a_run_fails():
    screen = io.StringIO()
    with pytest.raises(ValueError, match="lost"), LiveWatcher(Console(file=screen, force_terminal=True)) as watcher:
        watcher.started(0, 2)
        raise ValueError("lost")
    assert watcher.live.is_started is False
    assert screen.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


def bars(watcher, width):
    """The lines of the display as a terminal of that width has them."""
    console = Console(file=io.StringIO(), width=width)
    console.print(watcher.get_renderable())
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_at_any_width_there_is_a_bar_the_round_and_the_time(width):
    with LiveWatcher(Console(file=io.StringIO(), width=width)) as watcher:
        watcher.started(0, 200)
        for done in range(120):
            watcher.round_done(RECORD | {"round": done}, 200)
        (line,) = bars(watcher, width)
    assert "━━" in line and "120/200" in line and "loss" in line and line.endswith(" left") and len(line) <= width


def test_after_the_last_round_it_says_what_is_done_still():
    with LiveWatcher(Console(file=io.StringIO(), width=80)) as watcher:
        watcher.started(0, 1)
        watcher.round_done(RECORD, 1)
        watcher.note("choosing [the] mask")
        watcher.note("measuring the distance")
        assert [task.finished for task in watcher.tasks] == [True, True, False]
        rounds, choosing, measuring = bars(watcher, 80)
    assert "1/1" in rounds and "choosing [the] mask" in choosing
    assert "measuring the distance" in measuring and measuring.endswith("0:00:00"), "it counts up"


def test_what_takes_long_at_the_end_is_told_as_it_goes(capsys, monkeypatch):
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    done = progress.begun(PlainWatcher(), "measuring", 40)
    for _ in range(4):
        done(10)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "measuring" and told[1].startswith("measuring  10/40") and told[1].endswith("left")
    notes = []
    assert progress.begun(SimpleNamespace(note=notes.append), "measuring", 40)(10) == 10 and notes == ["measuring"]
