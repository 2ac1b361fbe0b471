"""Whole small runs: killed and resumed, on more threads, with broken clients, on a full disk."""

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prismfl.data.datasets import ImageSet
from prismfl.engines import simulator as inprocess
from prismfl.engines.clientdisk import ClientDisk
from prismfl.engines.simulator import InProcess, resume, train
from prismfl.errors import ClientError, DataError, ModelFileError, RunFolderError
from prismfl.features import networks as features
from prismfl.features.networks import load_features
from prismfl.federation.agreement import Agreement
from prismfl.generator.modelfile import load_model
from prismfl.generator.sampling import load
from prismfl.moments import FeatureMap
from prismfl.run import folder as runfolder
from prismfl.run import loop as coordinator
from prismfl.run.folder import RunFolder, load_arrays, read_rounds, save_arrays
from prismfl.run.loop import Silent
from prismfl.run.prepare import for_arrays, prepare
from prismfl.search import precision_of
from prismfl.settings.resolve import resolved
from prismfl.settings.toml import load_settings, read_toml, settings_from
from prismfl.wire.frames import is_lost

ROUNDS = 4


class Kill(Silent):
    """A watcher that ends the run once a round is on disk."""

    def __init__(self, after):
        self.after = after

    def round_done(self, record, rounds):
        assert rounds == ROUNDS
        if record["round"] + 1 == self.after:
            raise KeyboardInterrupt


class Listen(Silent):
    """A watcher that keeps what it hears."""

    def __init__(self):
        self.begun, self.notes = [], []

    def started(self, done, rounds):
        self.begun.append((done, rounds))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def run_settings(tiny):
    def make(adam="reset", **changes):
        return tiny(federation={"rounds": ROUNDS, "cohort": 2 if adam == "reset" else 0} | changes)

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_settings, blobs):
    """Folders of uninterrupted runs, by Adam's habit."""
    folders = {}
    for adam in ("reset", "keep"):
        root = tmp_path_factory.mktemp("whole") / adam
        train(run_settings(adam), blobs, out=root)
        folders[adam] = RunFolder(root)
    return folders


COSTS = {f"{way}_{what}" for way in ("uplink", "downlink") for what in ("bytes", "framing_bytes", "bits_per_parameter")}


def lines_of(folder, without=frozenset()):
    return [
        {key: value for key, value in line.items() if key not in without | {"seconds"}} for line in read_rounds(folder)
    ]


def same_run(root, folder, whole=ROUNDS):
    """The same model, rounds and files; from round `whole` on, a resumed run's clients may need more bytes."""
    mine = RunFolder(Path(root))
    assert mine.model.read_bytes() == folder.model.read_bytes()
    assert lines_of(mine, COSTS) == lines_of(folder, COSTS)
    assert lines_of(mine)[:whole] == lines_of(folder)[:whole]
    for later, straight in zip(read_rounds(mine)[whole:], read_rounds(folder)[whole:], strict=True):
        assert all(later[cost] >= straight[cost] for cost in COSTS)
    assert {path.name for path in mine.samples(0).parent.iterdir()} == {
        path.name for path in folder.samples(0).parent.iterdir()
    }


# ------------------------------------------------------------------------------------- whole runs


def test_a_run_leaves_what_it_promises(finished, run_settings):
    folder = finished["reset"]
    lines = read_rounds(folder)
    assert [line["round"] for line in lines] == list(range(ROUNDS))
    keys = (
        "round loss lambda density cohort seconds uplink_bytes downlink_bytes "
        "uplink_bits_per_parameter downlink_bits_per_parameter"
    )
    assert all(set(keys.split()) <= set(line) for line in lines)
    assert all(len(line["cohort"]) == 2 for line in lines)
    summary = json.loads(folder.summary.read_text())
    assert summary["rounds"] == ROUNDS
    assert summary["model_bytes"] == folder.model.stat().st_size
    assert summary["uplink_bytes"] == sum(line["uplink_bytes"] for line in lines)
    assert (folder.root / summary["grid"]).read_bytes().startswith(b"\x89PNG")
    kept = runfolder.reopen(folder.root)[1]
    asked = for_arrays(run_settings(), np.zeros((1, 1, 16, 16), np.uint8))
    assert load_settings(folder.config) == asked, "what was asked for stays as it was"
    assert kept == resolved(asked, 1), "a resumed run goes on with what it came to"
    told = read_toml(folder.resolved)
    assert told["resolved"]["network"] == summary["features_sha256"] == load_features("vgg").sha256
    assert told["running"]["precision"] == precision_of("auto", "cpu")
    images = load(folder.model).sample(5, seed=1)
    assert images.shape == (5, 1, 16, 16)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:3], load(folder.model).sample(3, seed=1))
    assert not np.array_equal(images, load(folder.model).sample(5, seed=2))


def test_habits_of_adam_make_different_models(finished):
    models = [load_model(folder.model).mask for folder in finished.values()]
    assert not np.array_equal(*models)


def test_the_same_settings_give_the_same_run(finished, run_settings, blobs, tmp_path):
    train(run_settings(), blobs, out=tmp_path / "again")
    same_run(tmp_path / "again", finished["reset"])


class Wire:
    """Counts the frames that clients are given and answer with, by round; from a round on they lose their θ."""

    def __init__(self, monkeypatch, forgetful=ROUNDS):
        self.down, self.up, self.lost = ([[] for _ in range(ROUNDS)] for _ in range(3))
        update = inprocess.client_update

        def counted(agreement, kit, frame, round_index, client, target, memory=None, held=None):
            held = replace(held, q=~held.q) if held is not None and round_index >= forgetful else held
            answer = update(agreement, kit, frame, round_index, client, target, memory, held)
            self.down[round_index].append(len(frame))
            self.up[round_index].append(len(answer.frame))
            self.lost[round_index] += [client] * is_lost(answer.frame, agreement.place(round_index, client))
            return answer

        monkeypatch.setattr(inprocess, "client_update", counted)


@pytest.mark.parametrize("forgetful", [2, ROUNDS])
def test_bytes_are_whole_frames(finished, run_settings, blobs, tmp_path, monkeypatch, forgetful):
    """What is logged is what clients were given and gave, snapshots and the pleas for them included."""
    wire = Wire(monkeypatch, forgetful)
    train(run_settings(), blobs, out=tmp_path / "run")
    count, folder = load_model(finished["reset"].model).layout.count, RunFolder(tmp_path / "run")
    for turn, line in enumerate(read_rounds(folder)):
        assert line["uplink_bytes"] == sum(wire.up[turn])
        assert line["downlink_bytes"] == sum(wire.down[turn])
        assert line["uplink_framing_bytes"] == 40 * len(wire.up[turn])
        assert line["downlink_framing_bytes"] == 40 * len(wire.down[turn])
        assert line["uplink_bits_per_parameter"] == pytest.approx(8 * line["uplink_bytes"] / 2 / count)
        assert line["downlink_bits_per_parameter"] == pytest.approx(8 * line["downlink_bytes"] / 2 / count)
        assert len(wire.lost[turn]) == (2 if turn >= forgetful else 0)
        # Coded masks take less than packed bits, and steps and snapshots than θ; who is lost is sent both.
        assert line["uplink_bytes"] < 2 * (40 + 20 + 40 + count / 8)
        assert len(wire.down[turn]) == (4 if turn >= forgetful else 2)
        assert line["downlink_bytes"] < 2 * 2 * count
    assert json.loads(folder.summary.read_text())["downlink_bytes"] == sum(map(sum, wire.down))
    same_run(tmp_path / "run", finished["reset"], forgetful)


# -------------------------------------------------------------------------------------- kill, resume


@pytest.mark.parametrize("adam", ["reset", "keep"])
@pytest.mark.parametrize(
    ("after", "tail"), [(1, ""), (2, '{"round": 2, "loss": 0.1}\n'), (3, '{"round": 3, "lo'), (4, "")]
)
def test_a_killed_run_resumes_to_the_same_bytes(finished, run_settings, blobs, tmp_path, adam, after, tail):
    root, watcher = tmp_path / "run", Listen()
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(adam), blobs, out=root, watcher=Kill(after))
    assert not RunFolder(root).model.exists()
    with RunFolder(root).rounds.open("a") as file:
        file.write(tail)
    resume(root, blobs, watcher=watcher)
    assert watcher.begun == [(after, ROUNDS)]
    same_run(root, finished[adam], after)


@pytest.mark.parametrize("adam", ["reset", "keep"])
def test_a_run_killed_within_a_commit_resumes_to_the_same_bytes(
    finished, run_settings, blobs, tmp_path, monkeypatch, adam
):
    """Memories and log line of the last round are on disk, its checkpoint is not."""
    write, root = runfolder.write_atomic, tmp_path / "run"

    def until(path, content, **options):
        if path.name.startswith("checkpoint") and len(read_rounds(RunFolder(root))) == 3:
            raise KeyboardInterrupt
        write(path, content, **options)

    monkeypatch.setattr(runfolder, "write_atomic", until)
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(adam), blobs, out=root)
    monkeypatch.undo()
    assert len(read_rounds(RunFolder(root))) == 3
    resume(root, blobs)
    same_run(root, finished[adam], 2)


def test_clients_of_a_resumed_run_ask_for_the_state_once(finished, run_settings, blobs, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(), blobs, out=tmp_path / "run", watcher=Kill(2))
    wire = Wire(monkeypatch)
    resume(tmp_path / "run", blobs)
    straight = [line["cohort"] for line in read_rounds(finished["reset"])]
    again = [client for round_lost in wire.lost for client in round_lost]
    assert len(again) == len(set(again)) and wire.lost[:2] == [[], []]
    assert set(again) <= {client for members in straight[2:] for client in members}
    assert again  # what the server had taught them is gone with their memory


def test_a_run_killed_at_its_end_resumes_to_the_same_bytes(finished, run_settings, blobs, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(coordinator, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        train(run_settings(), blobs, out=tmp_path / "run")
    monkeypatch.undo()
    resume(tmp_path / "run", blobs)
    same_run(tmp_path / "run", finished["reset"])
    resume(tmp_path / "run", blobs)  # a finished run may be resumed, too
    same_run(tmp_path / "run", finished["reset"])


def test_a_full_disk_ends_the_run_and_resuming_finishes_it(finished, run_settings, blobs, tmp_path, monkeypatch):
    replaced, root = Path.replace, tmp_path / "run"

    def full(path, target):
        if Path(target).name.startswith("checkpoint") and Path(target).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replaced(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunFolderError, match="No space left"):
        train(run_settings("keep"), blobs, out=root)
    monkeypatch.undo()
    assert runfolder.load_state(RunFolder(root), load_model(finished["keep"].model).layout.count, 3).round == 1
    resume(root, blobs)
    same_run(root, finished["keep"], 1)


def test_an_existing_run_is_refused(finished, run_settings, blobs):
    before = finished["reset"].model.read_bytes()
    with pytest.raises(RunFolderError, match="--resume"):
        train(run_settings(), blobs, out=finished["reset"].root)
    assert finished["reset"].model.read_bytes() == before


def test_nothing_is_not_resumed(tmp_path, blobs):
    with pytest.raises(RunFolderError):
        resume(tmp_path, blobs)


def test_unusable_images_are_refused_before_a_folder_is_made(tmp_path, run_settings, blobs):
    for images in (blobs.astype(np.float32), blobs[:, 0], blobs[:5]):
        with pytest.raises(DataError):
            train(run_settings(), images, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_with_labels_makes_a_model_of_them_and_resumes_to_the_same_bytes(run_settings, blobs, tmp_path):
    labels = np.array([40, 5, 7])[np.arange(30) % 3]
    settings = run_settings("keep", finished_mask="best")
    train(settings, blobs, labels, out=tmp_path / "whole")
    found = load(tmp_path / "whole" / "model.safetensors")
    assert found.model.labels == ("5", "7", "40") and found.model.layout.classes == 3
    assert not np.array_equal(*(found.sample(4, labels=found.labelled(name, 4)) for name in ("5", "40")))
    with pytest.raises(KeyboardInterrupt):
        train(settings, blobs, labels, out=tmp_path / "run", watcher=Kill(2))
    resume(tmp_path / "run", blobs, labels)
    same_run(tmp_path / "run", RunFolder(tmp_path / "whole"), 2)


@pytest.mark.parametrize("uplink", ["half", "fewest"])
def test_parts_and_alpha_layers_resume_to_the_same_bytes(tiny, blobs, tmp_path, uplink):
    few = {"uplink": uplink, "alpha": 0.3, "mada": "published"}
    settings = tiny(federation={"rounds": ROUNDS, **few})
    train(settings, blobs, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, blobs, out=tmp_path / "run", watcher=Kill(2))
    resume(tmp_path / "run", blobs)
    same_run(tmp_path / "run", RunFolder(tmp_path / "whole"), 2)


# ---------------------------------------------------------------------------------------- workers


@pytest.fixture(scope="module")
def by_workers(tmp_path_factory, tiny, blobs):
    folders = []
    for workers in (1, 2):
        settings = tiny(
            federation={"finished_mask": "best"},
            running={"workers": workers},
        )
        root = tmp_path_factory.mktemp("workers") / str(workers)
        train(settings, blobs, out=root)
        folders.append(RunFolder(root))
    return folders


def test_workers_change_nothing_of_the_network(by_workers):
    one, two = (load_model(folder.model) for folder in by_workers)
    assert one.mask.tobytes() == two.mask.tobytes()
    assert one.norm_mean.tobytes() == two.norm_mean.tobytes()
    assert one.norm_var.tobytes() == two.norm_var.tobytes()
    assert lines_of(by_workers[0]) == lines_of(by_workers[1])


def test_workers_change_no_byte_of_the_model(by_workers):
    one, two = (folder.model.read_bytes() for folder in by_workers)
    assert one == two


def test_two_workers_search_at_a_time(tiny, blobs, tmp_path):
    ready = prepare(tiny(running={"workers": 2}), blobs)
    engine = InProcess(ready.agreement, ready.kit, ready.clients, RunFolder(tmp_path))
    barrier = threading.Barrier(2, timeout=60)

    def meet(client, frame):
        barrier.wait()
        return frame

    assert dict(engine._carry(meet, {0: b"a", 1: b"b"})) == {0: b"a", 1: b"b"}
    engine.close()


# ----------------------------------------------------------------------------------- broken clients


@pytest.fixture
def run_with(tiny, blobs, tmp_path):
    """Run with one client's images replaced."""

    def run(images, client=1, **changes):
        ready, watcher = prepare(tiny(**changes), blobs), Listen()
        broken = None if images is None else ImageSet(images, np.zeros(len(images), np.int64), ("0",))
        clients = [broken if index == client else mine for index, mine in enumerate(ready.clients)]
        folder = runfolder.create(tmp_path / "run", ready.agreement.settings)
        done = inprocess._run(replace(ready, clients=clients), folder, watcher)
        return done.folder, watcher

    return run


BROKEN = {
    "two channels": np.zeros((5, 2, 16, 16), np.uint8),
    "another size": np.zeros((5, 1, 32, 32), np.uint8),
    "no images": np.zeros((0, 1, 16, 16), np.uint8),
    "no axes": np.zeros(5, np.uint8),
    "no array": None,
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_a_client_with_broken_images_is_left_out(run_with, what):
    folder, watcher = run_with(BROKEN[what], federation={"finished_mask": "best"})
    for line in read_rounds(folder):
        assert line["cohort"] == [0, 2]
        assert list(line["left_out"]) == ["1"]
    assert load_model(folder.model)
    assert sum("client 1 is left out" in note for note in watcher.notes) == 2


@pytest.mark.parametrize("labels", [np.full(9, 3), np.full(9, -1), np.zeros(8, np.int64), np.zeros(9), None], ids=repr)
def test_a_client_with_labels_that_were_not_agreed_on_is_left_out(tiny, blobs, tmp_path, labels):
    ready = prepare(tiny(), blobs, np.arange(30) % 3)
    broken = [replace(mine, labels=labels) if index == 1 else mine for index, mine in enumerate(ready.clients)]
    folder = runfolder.create(tmp_path / "run", ready.agreement.settings)
    inprocess._run(replace(ready, clients=broken), folder, None)
    assert [(line["cohort"], list(line["left_out"])) for line in read_rounds(folder)] == [([0, 2], ["1"])] * 2


def test_no_client_left_ends_the_run(tiny, blobs, tmp_path):
    ready = prepare(tiny(), blobs)
    folder = runfolder.create(tmp_path / "run", ready.agreement.settings)
    with pytest.raises(ClientError, match="no usable reply"):
        inprocess._run(replace(ready, clients=[None] * 3), folder, None)
    assert not folder.checkpoint.exists()


def test_a_client_that_fails_once_takes_part_again(tiny, blobs, tmp_path, monkeypatch):
    update = inprocess.client_update

    def failing(agreement: Agreement, kit, frame, round_index, client, *args):
        if (round_index, client) == (0, 2):
            raise MemoryError("too little")
        return update(agreement, kit, frame, round_index, client, *args)

    monkeypatch.setattr(inprocess, "client_update", failing)
    train(tiny(), blobs, out=tmp_path / "run")
    cohorts = [(line["cohort"], line["left_out"]) for line in read_rounds(RunFolder(tmp_path / "run"))]
    assert cohorts[0][0] == [0, 1]
    assert "MemoryError" in cohorts[0][1]["2"]
    assert cohorts[1] == ([0, 1, 2], {})


# ------------------------------------------------------------------------------- what clients store


@pytest.fixture
def engine_of(tiny, blobs, tmp_path):
    engines = []

    def make(change=None, labels=None, **running):
        ready = prepare(tiny(running=running), blobs, labels)
        clients = [change(mine) for mine in ready.clients] if change else ready.clients
        engines.append(InProcess(ready.agreement, ready.kit, clients, RunFolder(tmp_path / "run")))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


LABELS = np.arange(30) % 3


@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "labels"])
@pytest.mark.parametrize("shared", [False, True])
def test_moments_are_computed_once_and_kept(engine_of, tmp_path, monkeypatch, shared, labels):
    changes = {"labels": labels} | ({"cache_dir": str(tmp_path / "cache")} if shared else {})
    first = engine_of(**changes).target(0)
    assert any((tmp_path / ("cache" if shared else "run")).rglob("target*.safetensors"))

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(FeatureMap, "target", never)
    again = engine_of(**changes).target(0)
    np.testing.assert_array_equal(again.moments, first.moments)
    np.testing.assert_array_equal(again.shares, first.shares)
    assert again.images == first.images


def test_moments_of_other_images_are_computed_anew(engine_of):
    first = engine_of().target(0)
    other = engine_of(lambda mine: mine.part(np.arange(4))).target(0)
    assert other.images == 4
    assert not np.array_equal(first.moments, other.moments)


@pytest.mark.parametrize("shared", [False, True])
def test_moments_of_other_labels_are_computed_anew(engine_of, tmp_path, shared):
    changes = {"cache_dir": str(tmp_path / "cache")} if shared else {}
    first = engine_of(labels=LABELS, **changes).target(0)
    turned = engine_of(lambda mine: replace(mine, labels=(mine.labels + 1) % 3), LABELS, **changes).target(0)
    np.testing.assert_allclose(np.roll(first.shares, 1), turned.shares)
    blocks, moved = (found.moments.reshape(3, -1) for found in (first, turned))
    np.testing.assert_allclose(np.roll(blocks, 1, 0), moved, atol=1e-6)
    assert not np.array_equal(blocks, moved)


def test_moments_of_more_or_no_classes_are_computed_anew(engine_of, blobs):
    """The same images with the same labels, among three, four and no classes."""
    engine = engine_of()
    entries, mine = len(engine.target(0).moments), {image.tobytes() for image in engine.clients[0].images}
    others = LABELS.copy()
    others[next(row for row, image in enumerate(blobs) if image.tobytes() not in mine and row % 10 != 9)] = 3
    for labels, classes in ((LABELS, 3), (others, 4), (None, 1)):
        found = engine_of(labels=labels).target(0)
        assert len(found.moments) == classes * entries and len(found.shares) == classes


def test_a_damaged_cache_is_computed_anew(engine_of, tmp_path):
    first = engine_of().target(0)
    (path,) = (tmp_path / "run").rglob("target*.safetensors")
    for damage in (path.read_bytes()[:-4], b""):
        path.write_bytes(damage)
        np.testing.assert_array_equal(engine_of().target(0).moments, first.moments)


def test_a_memory_of_an_uncommitted_round_is_not_recalled(tiny, blobs, tmp_path):
    ready = prepare(tiny(), blobs)
    engine = InProcess(ready.agreement, ready.kit, ready.clients, RunFolder(tmp_path))
    count = ready.agreement.layout.count
    for turn in (1, 4, 6):
        engine.memories[0] = inprocess.Memory(*np.full((2, count), turn, np.float32), steps=turn)
        engine.keep(turn, [0])
    assert engine.disk.recall(0, 1) is None
    assert engine.disk.recall(0, 2).steps == 1
    assert engine.disk.recall(0, 6).steps == 4
    assert engine.disk.recall(0, 7).steps == 6
    assert engine.disk.recall(1, 7) is None
    engine.close()


def test_a_run_begins_with_what_is_to_be_warned_of(tiny, blobs, tmp_path):
    ready, watcher = replace(prepare(tiny(), blobs), warnings=("mind the overlap",)), Listen()
    inprocess._run(ready, runfolder.create(tmp_path / "run", ready.agreement.settings), watcher)
    assert watcher.notes[0].startswith("30 images, no classes, grey, 16 px, 3 held back")
    assert watcher.notes[1] == "mind the overlap"


def test_what_was_read_and_what_not_lies_in_the_run_folder(tiny, tmp_path, write_sites):
    place = write_sites(tmp_path / "in", {"x": 30})
    (place / "x" / "a" / "secret.cr2").write_text("")
    settings = tiny(data={"dataset": "folder", "data_dir": str(place)})
    folder = inprocess.train(settings, out=tmp_path / "run").folder
    told = json.loads(folder.data.read_text())
    assert told["line"].startswith("30 images, 2 classes (a 15, b 15), grey, 16 px, 3 held back, 1 file skipped (.cr2)")
    assert told["counts"] == [15, 15] and "secret" not in folder.data.read_text()
    assert folder.skipped.read_text() == ".cr2\t'x/a/secret.cr2'\n" and folder.skipped.stat().st_mode & 0o077 == 0


def test_a_run_with_another_network_is_not_resumed(run_settings, blobs, tmp_path):
    raw, path = features._file_bytes("vgg"), tmp_path / "net"
    path.write_bytes(raw)
    settings = run_settings("keep")
    settings = replace(settings, features=replace(settings.features, features=str(path)))
    with pytest.raises(KeyboardInterrupt):
        train(settings, blobs, out=tmp_path / "run", watcher=Kill(1))
    path.write_bytes(raw[:-4] + bytes(4))
    with pytest.raises(ModelFileError, match="of the network that the run began with"):
        resume(tmp_path / "run", blobs)
    path.write_bytes(raw)
    resume(tmp_path / "run", blobs)


@pytest.mark.parametrize(
    ("running", "threads", "wanted"),
    [
        ({}, 1, 6),
        ({}, 4, 1),
        ({}, 9, 1),
        ({"workers": 3}, 1, 3),
        ({"device": "cuda"}, 1, 5),  # ten clients in two turns
        ({"device": "cuda"}, 2, 3),
        ({"device": "cuda"}, 3, 2),
        ({"device": "cuda", "clients": 12}, 1, 6),
        ({"device": "cuda", "clients": 13}, 1, 5),
        ({"device": "cuda", "clients": 2}, 1, 2),
        ({"device": "cuda", "clients": 100, "cohort": 7}, 1, 4),
        ({"device": "cuda", "workers": 1}, 1, 1),
    ],
    ids=str,
)
def test_clients_are_searched_one_a_core_and_a_few_on_a_gpu(monkeypatch, running, threads, wanted):
    monkeypatch.setattr(inprocess, "cores", lambda: 6)
    groups = {"clients": "data", "cohort": "federation"}
    tables = {"data": {"partition": "iid"}, "federation": {}, "running": {"client_threads": threads}}
    for name, value in running.items():
        tables[groups.get(name, "running")][name] = value
    settings = settings_from(tables)
    assert inprocess.workers_of(settings) == wanted


def test_a_cached_target_of_another_kind_is_made_again(run_settings, blobs, tmp_path):
    settings = run_settings()
    root = train(settings, blobs, out=tmp_path / "one").folder.root
    want = load_arrays(root / "clients" / "0" / "target.safetensors")
    save_arrays(root / "clients" / "0" / "target.safetensors", {"other": np.zeros(3)})
    ready = prepare(settings, blobs)
    found = ClientDisk(ready.agreement, ready.kit, RunFolder(root)).target(0, ready.clients[0])
    np.testing.assert_array_equal(found.moments, want["moments"])
