"""The ledger of a source: written before anything is drawn, whole or refused, and never past its budget."""

import hashlib
import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from prismfl.data.lock import alone, is_held
from prismfl.errors import BudgetError, PrivacyError, RunFolderError
from prismfl.privacy import source as room
from prismfl.privacy.ledger import Entry, calibrate, compose, epsilon_of, rounding_distance
from prismfl.privacy.source import Budget, SourceLedger, as_json, as_text, read_ledger, spent_of


def entry(epsilon=1.0, client=0, images_per_person=1):
    multiplier = calibrate(epsilon, 1e-5)
    return Entry(
        client, "gaussian", "exact", epsilon, 1e-5, multiplier, multiplier, 1.0, 0.0, 100, images_per_person, 10
    )


def once(ledger, name, one=None, dealing="", raw=b"noise"):
    return ledger.once(name, dealing or name, one or entry(), lambda: raw)


@pytest.fixture
def ledger(tmp_path):
    return SourceLedger(tmp_path / "ledger.jsonl")


# ------------------------------------------------------------------------------ drawn once, stored


def test_what_is_asked_again_is_read_and_costs_nothing(ledger):
    first, raw = once(ledger, "a", raw=b"one")
    again, same = once(SourceLedger(ledger.path), "a", raw=b"two")
    assert (raw, same) == (b"one", b"one") and again.id == first.id
    assert len(ledger.releases()) == 1


def test_its_line_is_on_disk_before_noise_is_drawn(ledger):
    def draw():
        assert [one.stored for one in read_ledger(ledger.path)] == [""]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.once("a", "a", entry(), draw)
    assert not list(ledger.folder.glob("*.safetensors"))
    assert once(ledger, "a", raw=b"two")[1] == b"two"
    assert len(ledger.releases()) == 2, "noise that may have been drawn is counted, and drawn anew"


@pytest.mark.parametrize("harm", ["missing", "damaged", "another's"])
def test_a_release_that_is_not_as_it_was_stored_is_refused_and_not_drawn_again(ledger, harm):
    once(ledger, "a"), once(ledger, "b", raw=b"other")
    path = ledger.folder / "a.safetensors"
    path.unlink() if harm == "missing" else path.write_bytes(b"nois" if harm == "damaged" else b"other")
    with pytest.raises(PrivacyError, match="release the images twice"):
        once(ledger, "a")
    assert len(ledger.releases()) == 2


def test_releases_whose_ledger_is_gone_are_refused(ledger):
    once(ledger, "a")
    ledger.path.unlink()
    for name in ("a", "b"):
        with pytest.raises(PrivacyError, match="says nothing of"):
            once(SourceLedger(ledger.path), name)


def test_an_earlier_copy_of_the_ledger_is_refused(ledger):
    once(ledger, "a")
    before = ledger.path.read_bytes()
    once(ledger, "b")
    ledger.path.write_bytes(before)
    with pytest.raises(PrivacyError, match="1 releases"):
        once(SourceLedger(ledger.path), "c")


def changed(lines):
    yield [lines[0], lines[1].replace(b'"images": 100', b'"images": 101'), *lines[2:]]
    yield [lines[0], *lines[2:]]
    yield [*lines[:2], lines[3], lines[2], *lines[4:]]
    yield [lines[0].replace(b"ledger", b"record"), *lines[1:]]
    yield [*lines, b"not a line\n"]
    yield [*lines, lines[-1]]


def test_whatever_is_changed_in_a_ledger_breaks_its_chain(ledger):
    for name in "abc":
        once(ledger, name)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for number, other in enumerate(changed(lines)):
        assert other != lines, number
        ledger.path.write_bytes(b"".join(other))
        with pytest.raises(PrivacyError, match=r"line \d|restore"):
            SourceLedger(ledger.path).releases()


def test_a_line_that_a_crash_cut_short_was_never_written(ledger):
    once(ledger, "a")
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b'{"previous": "12')
    fresh = SourceLedger(ledger.path)
    assert len(fresh.releases()) == 1
    once(fresh, "b")
    assert len(read_ledger(ledger.path)) == 2 and ledger.path.read_bytes().startswith(whole)


def test_nobody_else_reads_it(ledger):
    once(ledger, "a")
    for path in (ledger.path, *ledger.folder.glob("*.safetensors")):
        assert path.stat().st_mode & 0o777 == 0o600
    assert ledger.folder.stat().st_mode & 0o777 == 0o700


# ------------------------------------------------------------------------------------- at a time


def test_of_many_at_a_time_one_draws(ledger):
    def go(number):
        return SourceLedger(ledger.path).once("a", "a", entry(), lambda: str(number).encode())[1]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(go, range(8)))) == 1
    assert len(read_ledger(ledger.path)) == 1


def _ask(path, name, queue):
    ledger = SourceLedger(path)
    queue.put(ledger.once(name, name, entry(), lambda: hashlib.sha256(name.encode()).digest() * 1000)[1])


def test_processes_that_ask_at_a_time_leave_a_whole_ledger(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    asked = [context.Process(target=_ask, args=(tmp_path / "l", name, queue)) for name in "aabb"]
    for process in asked:
        process.start()
    found = {queue.get(timeout=60) for _ in asked}
    for process in asked:
        process.join()
    assert len(found) == 2 and len(read_ledger(tmp_path / "l")) == 2


def test_who_holds_a_lock_is_named(tmp_path):
    with alone(tmp_path / ".lock", "the run folder"):
        assert is_held(tmp_path / ".lock")
        with (
            pytest.raises(RunFolderError, match=r"the run folder in use by process \d+ since 20"),
            alone(tmp_path / ".lock", "the run folder"),
        ):
            pass
    assert not is_held(tmp_path / ".lock")


# ------------------------------------------------------------------------------------ what it costs


def test_whatever_is_released_adds_up_and_stops_at_the_budget(ledger, monkeypatch):
    drawn = []
    held = SourceLedger(ledger.path, Budget(2.0, 1e-5))
    for number in range(64):
        try:
            held.once(f"r{number}", f"r{number}", entry(), lambda: drawn.append(1) or b"x")
        except BudgetError as error:
            assert "at most its budget, ε = 2" in str(error)
    most = next(k for k in range(1, 64) if epsilon_of(calibrate(1.0, 1e-5) / (k + 1) ** 0.5, 1e-5) > 2.0)
    assert len(drawn) == len(held.releases()) == most < 64
    monkeypatch.setattr(room, "_now", lambda: "")
    assert once(held, "r0")[1] == b"x", "what was released is there, whatever is left"


def test_a_budget_has_room_for_the_release_that_it_was_made_for(tmp_path):
    for epsilon in (0.2, 1.0, 9.8):
        for sampler in ("exact", "fast"):
            steps = 2**24 * 2**0.5
            multiplier = calibrate(epsilon, 1e-5, 1000 * (sampler == "exact"), steps)
            slack = rounding_distance(1000, multiplier * steps) if sampler == "exact" else 0.0
            one = replace(entry(epsilon), noise_multiplier=multiplier, sigma=multiplier, slack=slack, sampler=sampler)
            ledger = SourceLedger(tmp_path / f"{epsilon}-{sampler}", Budget(epsilon, 1e-5))
            once(ledger, "a", one)


def test_clients_of_one_dealing_compose_in_parallel_and_dealings_in_sequence(ledger):
    for client in range(3):
        once(ledger, f"first-{client}", entry(client=client), "first")
    assert spent_of(ledger.releases()).epsilon == pytest.approx(1.0, rel=1e-6)
    for client in range(3):
        once(ledger, f"second-{client}", entry(client=client), "second")
    two = compose([entry(), entry()]).epsilon
    assert spent_of(ledger.releases()).epsilon == pytest.approx(two, rel=1e-9)
    once(ledger, "more", entry(client=1), "second")
    assert spent_of(ledger.releases()).epsilon == pytest.approx(compose([entry()] * 3).epsilon, rel=1e-9)


def test_entries_count_for_persons_of_the_most_images(ledger):
    """A release for one image, and one for three: of three images the first moves three times as far."""
    entries = [entry(1.0), entry(1.0, images_per_person=3)]
    z = calibrate(1.0, 1e-5)
    true = epsilon_of((1 / (z / 3) ** 2 + 1 / z**2) ** -0.5, 1e-5)
    assert compose(entries).epsilon == pytest.approx(true, rel=1e-9) and 3.5 < true < 3.7
    for number, one in enumerate(entries):
        once(ledger, str(number), one)
    assert spent_of(ledger.releases()).epsilon == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (float("nan"), 1e-5)])
def test_a_budget_is_both_numbers(epsilon, delta):
    with pytest.raises(PrivacyError, match="--budget-epsilon and --budget-delta"):
        Budget(epsilon, delta)


def test_it_is_told_to_people_and_programs(ledger):
    once(ledger, "a"), once(ledger, "b", entry(2.0))
    text, plain = as_text(ledger.releases()), json.loads(as_json(ledger.releases()))
    assert "releases: 2, ways to deal the images to clients: 2; the chain is whole" in text
    assert f"ε = {plain['epsilon']:.4g}" in text and [one["epsilon"] for one in plain["releases"]] == [1.0, 2.0]
