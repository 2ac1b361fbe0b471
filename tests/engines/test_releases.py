"""Private runs: one release a client, stored and reused, and no other way from images to the model."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from prismfl.data.datasets import ImageSet
from prismfl.engines import simulator as inprocess
from prismfl.engines.simulator import resume, train
from prismfl.errors import ClientError, PrivacyError, RunFolderError
from prismfl.generator.modelfile import load_model
from prismfl.moments import FeatureMap
from prismfl.privacy import source as source_room
from prismfl.privacy import store
from prismfl.privacy.ledger import compose, from_json
from prismfl.privacy.release import from_bytes
from prismfl.privacy.source import SourceLedger, spent_of
from prismfl.run import prepare as preparation
from prismfl.run.folder import RunFolder, gather_ledger, read_rounds, reopen
from prismfl.run.loop import Silent
from prismfl.run.prepare import prepare
from prismfl.run.source import source_of
from prismfl.settings.toml import to_toml

LABELS = np.arange(30) % 3


@pytest.fixture(scope="module")
def private(tiny):
    def make(privacy=None, **changes):
        asked = {"epsilon": 9.8, "delta": 1e-3, "noise": "fast"} | (privacy or {})
        federation = {"finished_mask": "best"} | changes.pop("federation", {})
        return tiny(privacy=asked, federation=federation, **changes)

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, private, blobs):
    root = tmp_path_factory.mktemp("private") / "run"
    return train(private(), blobs, LABELS, out=root)


def ledger_in(root):
    """The ledger of a run on arrays."""
    return SourceLedger(root / "source-ledger.jsonl")


def stored(root, client):
    ledger = ledger_in(root)
    (one,) = [line for line in ledger.releases() if line.entry.client == client]
    return ledger.folder / f"{one.definition}.safetensors"


def entries_of(root):
    return from_json(json.loads((root / "ledger.json").read_text())["releases"])


class Kill(Silent):
    """A watcher that ends the run after its first round."""

    def round_done(self, record, rounds):
        raise KeyboardInterrupt(f"{record['round']} of {rounds}")


def never(*_, **__):
    raise AssertionError("not to be called")


# ---------------------------------------------------------------------------------- what is said


def test_the_ledger_is_in_the_folder_in_the_model_and_in_the_summary(finished):
    root = finished.folder.root
    entries = entries_of(root)
    assert [entry.client for entry in entries] == [0, 1, 2]
    assert {(entry.images, entry.epsilon, entry.sampler) for entry in entries} == {(9, 9.8, "fast")}
    assert 9.7 < compose(entries).epsilon <= 9.8
    assert from_json(list(load_model(finished.folder.model).ledger)) == entries
    assert "(9.8, 0.001)-differentially private for one image" in finished.summary["privacy"]


def test_a_run_without_epsilon_says_that_it_guarantees_nothing(tiny, blobs, tmp_path):
    done = train(tiny(), blobs, out=tmp_path / "run")
    assert "no formal guarantee" in done.summary["privacy"] and load_model(done.folder.model).ledger == ()
    assert not list((tmp_path / "run").rglob("*ledger.jsonl*"))
    assert done.folder.labels.is_file(), "without ε a simulator tells how labels are dealt"


def test_exact_noise_is_the_default(tiny, blobs, tmp_path):
    train(tiny(privacy={"epsilon": 9.8, "delta": 1e-3}), blobs, out=tmp_path / "run")
    assert {entry.sampler for entry in entries_of(tmp_path / "run")} == {"exact"}


# -------------------------------------------------------------------------------- no other path


def test_raw_moments_are_never_computed(private, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureMap, "target", never)
    train(private(federation={"client_weights": "size"}), blobs, LABELS, out=tmp_path / "run")


def test_search_and_choice_of_the_mask_see_what_was_released(private, blobs, tmp_path, monkeypatch):
    seen = []

    def listening(real):
        def listen(agreement, kit, frame, *rest):
            seen.append(next((one, rest[place - 1]) for place, one in enumerate(rest) if hasattr(one, "moments")))
            return real(agreement, kit, frame, *rest)

        return listen

    for name in ("client_update", "client_distances"):
        monkeypatch.setattr(inprocess, name, listening(getattr(inprocess, name)))
    train(private(), blobs, LABELS, out=tmp_path / "run")
    assert len(seen) == 3 * (2 + 1)
    for target, client in seen:
        held = from_bytes(stored(tmp_path / "run", client).read_bytes()).target
        np.testing.assert_array_equal(target.moments, held.moments)
        np.testing.assert_array_equal(target.shares, held.shares)


def test_distances_to_private_images_are_off_unless_asked_for(private, blobs, tmp_path):
    running = {"distance_samples": 20, "distance_every": 1}
    quiet = train(private(running=running), blobs, LABELS, out=tmp_path / "quiet")
    assert "fid_judge" not in quiet.summary
    assert not any("distance" in line for line in read_rounds(quiet.folder))
    asked = train(private({"distances": True}, running=running), blobs, LABELS, out=tmp_path / "asked")
    assert asked.summary["outside_guarantee"] == ["fid_judge", "fid_judge_of_halves"] and asked.summary["fid_judge"] > 0


def test_the_same_seed_has_other_noise(private, blobs, finished, tmp_path):
    train(private(), blobs, LABELS, out=tmp_path / "again")
    # One client's noise may leave none of its labels with an image, and then its moments are 0 in both.
    one, two = (
        np.concatenate([from_bytes(stored(root, client).read_bytes()).target.moments for client in (0, 1)])
        for root in (finished.folder.root, tmp_path / "again")
    )
    assert not np.array_equal(one, two)


def test_labels_of_clients_are_not_recorded_with_epsilon(finished):
    assert not finished.folder.labels.exists()


def test_nothing_of_the_images_names_anything_that_travels(finished):
    key = stored(finished.folder.root, 0).stem
    for path in (finished.folder.model, finished.folder.ledger, finished.folder.summary, finished.folder.rounds):
        assert key.encode() not in path.read_bytes()


# ------------------------------------------------------------------------------------ one release


def test_a_killed_run_goes_on_with_the_noise_it_had(private, blobs, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train(private(), blobs, LABELS, out=tmp_path / "run", watcher=Kill())
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    monkeypatch.setattr(store, "release", never)
    models = [resume(tmp_path / name, blobs, LABELS).folder.model.read_bytes() for name in ("run", "copy")]
    assert models[0] == models[1]
    assert len(entries_of(tmp_path / "run")) == 3


def test_noise_is_stored_before_it_is_used(private, blobs, tmp_path, monkeypatch):
    def full(path, raw, *, private=False):
        raise RunFolderError("no room", "room", "make room")

    monkeypatch.setattr(source_room, "write_atomic", full)
    monkeypatch.setattr(inprocess, "client_update", never)
    with pytest.raises(ClientError, match="no room"):
        train(private(), blobs, LABELS, out=tmp_path / "run")


def edited(root, **privacy):
    folder, settings = reopen(root)
    folder.config.write_text(to_toml(replace(settings, privacy=replace(settings.privacy, **privacy))))
    for path in (folder.checkpoint, folder.rounds, folder.resolved):
        path.unlink()


def test_other_settings_or_images_are_one_more_release_and_all_of_them_stop_at_the_budget(finished, blobs, tmp_path):
    root = shutil.copytree(finished.folder.root, tmp_path / "copy")
    edited(root, epsilon=5.0)
    done = resume(root, blobs, LABELS)
    assert [(one.entry.client, one.entry.epsilon) for one in ledger_in(root).releases()] == [
        *((client, 9.8) for client in range(3)),
        *((client, 5.0) for client in range(3)),
    ]
    spent = spent_of(ledger_in(root).releases()).epsilon
    assert spent == compose(entries_of(root)).epsilon > 9.8, "this run used both"
    assert len(load_model(done.folder.model).ledger) == 6
    edited(root)
    with pytest.raises(ClientError, match=r"from ε = [\d.]+ to [\d.]+; expected at most its budget, ε = 12"):
        resume(root, 255 - blobs, LABELS, changes={"budget_epsilon": 12.0})
    assert len(ledger_in(root).releases()) == 6


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_release_that_is_lost_is_not_drawn_again(finished, blobs, tmp_path, monkeypatch, harm):
    root = shutil.copytree(finished.folder.root, tmp_path / "copy")
    edited(root)
    for client in range(3):
        path = stored(root, client)
        path.unlink() if harm == "missing" else path.write_bytes(path.read_bytes()[:-4])
    monkeypatch.setattr(store, "release", never)
    with pytest.raises(ClientError, match="twice"):
        resume(root, blobs, LABELS)


def test_clients_with_the_same_images_have_noise_of_their_own(private, tmp_path):
    """Noise that they shared would tell that their images are the same."""
    same = np.zeros((30, 1, 16, 16), np.uint8)
    train(private(), same, out=tmp_path / "run")
    found = [from_bytes(stored(tmp_path / "run", client).read_bytes()).target.moments for client in range(3)]
    assert not any(np.array_equal(one, other) for one, other in [found[:2], found[1:], found[::2]])


def test_a_damaged_ledger_of_a_client_is_not_passed_over(finished, tmp_path):
    root = shutil.copytree(finished.folder.root, tmp_path / "copy")
    (root / "clients" / "1" / "ledger.json").write_text("{")
    with pytest.raises(RunFolderError, match="restore"):
        gather_ledger(RunFolder(root))


def test_a_source_is_released_once_whatever_the_run_and_the_ledger_adds_up_the_rest(
    private, tmp_path, monkeypatch, write_sites
):
    """Another folder with the same settings costs nothing; another size, class or partition is one more release."""
    sites = write_sites(tmp_path / "images", {"x": 30})
    data = {"dataset": "folder", "data_dir": str(sites / "x"), "clients": 3, "partition": "iid"}

    def go(name, seed=0, **changes):
        generator = {"channels": 1} | changes.pop("generator", {})
        made = private(data=data | changes.pop("data", {}), generator=generator, seed=seed, **changes)
        return train(made, out=tmp_path / name).folder

    first = go("first")
    with monkeypatch.context() as patched:
        patched.setattr(store, "release", never)
        again = go("again")
    assert again.model.read_bytes() == first.model.read_bytes()
    assert entries_of(again.root) == entries_of(first.root)
    ledger = source_of(reopen(first.root)[1], first.root)
    assert not ledger.path.is_relative_to(sites) and len(ledger.releases()) == 3
    go("larger", generator={"size": 32}), go("dealt", seed=1), go("colour", generator={"channels": 3})
    spent = spent_of(ledger.releases())
    assert (spent.releases, spent.clients) == (12, 4) and spent.epsilon > 20
    assert len(entries_of(tmp_path / "dealt")) == 3, "a model's ledger states its own run"
    budget = {"budget_epsilon": 20.0}
    with pytest.raises(ClientError, match="budget"):
        go("refused", seed=2, running=budget)
    (tmp_path / "link").symlink_to(sites / "x")
    with pytest.raises(ClientError, match="budget"):
        go("linked", seed=3, data={"data_dir": str(tmp_path / "link")}, running=budget)


# ---------------------------------------------------------------------- refused before it begins


def test_what_would_void_the_guarantee_is_refused_before_a_feature_is_computed(private, blobs, monkeypatch):
    monkeypatch.setattr(FeatureMap, "vectors", never)
    with pytest.raises(PrivacyError, match="below 1 / 9"):
        prepare(private({"delta": 0.2}), blobs)
    with pytest.raises(PrivacyError, match="client 0 with 1 images"):
        prepare(private(data={"clients": 27}), blobs)
    monkeypatch.setattr(preparation, "overlaps", lambda *_: True)
    with pytest.raises(PrivacyError, match="trained on CIFAR-10"):
        prepare(private(), blobs)


def test_a_client_whose_images_cannot_be_released_is_left_out(private, blobs, tmp_path):
    ready = prepare(private(), blobs, LABELS)
    broken = ImageSet(np.zeros((5, 2, 16, 16), np.uint8), np.zeros(5, np.int64), ready.clients[1].classes)
    clients = [broken if index == 1 else mine for index, mine in enumerate(ready.clients)]
    folder = inprocess.runfolder.create(tmp_path / "run", ready.agreement.settings)
    inprocess._run(replace(ready, clients=clients), folder, None)
    assert [list(line["left_out"]) for line in read_rounds(folder)] == [["1"]] * 2
    assert [entry.client for entry in entries_of(folder.root)] == [0, 2]
