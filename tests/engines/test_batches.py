"""Rounds whose clients are searched as one batch: as good as one after another, and as hard to break."""

import json
from dataclasses import replace

import numpy as np
import pytest

from prismfl import federation, runfolder
from prismfl.data.images import ImageSet
from prismfl.engines import inprocess
from prismfl.engines.inprocess import resume, train
from prismfl.federation import Member, broadcast, client_update, client_updates, init
from prismfl.modelfile import load_model
from prismfl.preparation import prepare
from prismfl.runfolder import RunFolder, read_rounds
from prismfl.wire import message


def settings_of(tiny, **changes):
    search = {"batching": "vmap", "precision": "float32"} | changes.pop("search", {})
    return tiny(search=search, **changes)


def test_one_round_together_sends_nearly_what_each_would_send_alone(make_world):
    agreement, kit, targets = make_world(search={"precision": "float32", "learning_rate": 0.05})
    frames = broadcast(agreement, init(agreement))
    together = client_updates(
        agreement, kit, 0, [Member(client, frame, targets[client]) for client, frame in frames.items()]
    )
    size = -(-agreement.layout.count // 8) + 64
    for (client, frame), answer in zip(frames.items(), together, strict=True):
        alone = client_update(agreement, kit, frame, 0, client, targets[client])
        place = agreement.place(0, client)
        one, two = (message.open_update(found.frame, place, size, 64) for found in (alone, answer))
        assert one.digest == two.digest
        assert one.loss == pytest.approx(two.loss, rel=1e-5)
        assert answer.held.q.tobytes() == alone.held.q.tobytes()


def test_the_lost_the_foreign_and_the_diverged_fail_alone(make_world, monkeypatch):
    agreement, kit, targets = make_world()
    frames = broadcast(agreement, init(agreement))
    astray = federation.Held(~init(agreement).q, 0)
    short = replace(targets[1], moments=targets[1].moments[:-1])
    members = [
        Member(0, frames[0], targets[0]),
        Member(1, frames[1], targets[1], held=astray),
        Member(2, frames[2][:-1], targets[2]),
        Member(1, frames[1], short),
    ]
    found = client_updates(agreement, kit, 0, members)
    assert message.open_update(found[0].frame, agreement.place(0, 0), 10**6, 64).weight == 1
    assert message.is_lost(found[1].frame, agreement.place(0, 1)) and found[1].held is astray
    assert "bytes" in str(found[2])
    assert "entries" in str(found[3])
    nothing = client_updates(agreement, kit, 0, members[1:])
    assert [type(one) for one in nothing] == [type(one) for one in found[1:]]
    diverged = replace(targets[0], moments=np.full_like(targets[0].moments, np.inf))
    one, two = client_updates(agreement, kit, 0, [Member(0, frames[0], diverged), Member(2, frames[2], targets[2])])
    assert "diverged" in str(one) and isinstance(two, federation.Answer)


@pytest.mark.parametrize("adam", ["reset", "keep"])
@pytest.mark.parametrize("labels", [None, np.arange(30) % 3], ids=["no labels", "labels"])
def test_a_run_in_batches_is_a_run(tiny, blobs, tmp_path, adam, labels):
    settings = settings_of(tiny, search={"adam": adam, "batch_clients": 2}, federation={"shipped": "best"})
    done = train(settings, blobs, labels, out=tmp_path / "run")
    lines = read_rounds(done.folder)
    assert [line["cohort"] for line in lines] == [[0, 1, 2]] * 2
    again = train(settings, blobs, labels, out=tmp_path / "again")
    assert again.folder.model.read_bytes() == done.folder.model.read_bytes()
    plain = train(
        replace(settings, search=replace(settings.search, batching="none")), blobs, labels, out=tmp_path / "plain"
    )
    first, other = lines[0], read_rounds(plain.folder)[0]
    assert first["loss"] == pytest.approx(other["loss"], rel=1e-5)  # the first step's images are the same
    masks = [load_model(folder.model).mask for folder in (done.folder, plain.folder)]
    assert np.mean(masks[0] == masks[1]) > 0.95


def test_how_clients_were_batched_is_written_down_and_kept_on_resume(tiny, blobs, tmp_path):
    train(settings_of(tiny), blobs, out=tmp_path / "run")
    kept = runfolder.reopen(tmp_path / "run")[1].search
    assert (kept.batching, kept.batch_clients) == ("vmap", 3)
    resume(tmp_path / "run", blobs)
    assert runfolder.reopen(tmp_path / "run")[1].search == kept


def test_auto_is_none_on_a_processor_and_says_so(tiny, blobs):
    ready = prepare(tiny(search={"batching": "auto"}), blobs)
    assert ready.agreement.settings.search.batching == "none"


def test_a_client_with_broken_images_leaves_its_batch(tiny, blobs, tmp_path):
    ready = prepare(settings_of(tiny), blobs)
    images = np.zeros((5, 2, 16, 16), np.uint8)
    broken = ImageSet(images, np.zeros(5, np.int64), ("0",))
    clients = [broken if index == 1 else mine for index, mine in enumerate(ready.clients)]
    folder = runfolder.create(tmp_path / "run", ready.agreement.settings)
    inprocess._run(replace(ready, clients=clients), folder, None)
    assert [(line["cohort"], list(line["left_out"])) for line in read_rounds(folder)] == [([0, 2], ["1"])] * 2


def test_a_batch_that_fails_names_every_client_of_it(tiny, blobs, tmp_path, monkeypatch):
    real = inprocess.client_updates

    def failing(agreement, kit, turn, members):
        if any(member.client == 2 for member in members):
            raise MemoryError("too many")
        return real(agreement, kit, turn, members)

    monkeypatch.setattr(inprocess, "client_updates", failing)
    train(settings_of(tiny, search={"batch_clients": 2}), blobs, out=tmp_path / "run")
    (first, _) = read_rounds(RunFolder(tmp_path / "run"))
    assert first["cohort"] == [0, 1] and "MemoryError" in first["left_out"]["2"]


def test_private_runs_in_batches_keep_their_ledger(tiny, blobs, tmp_path):
    privacy = {"epsilon": 9.8, "delta": 1e-3, "noise": "fast"}
    done = train(settings_of(tiny, privacy=privacy), blobs, np.arange(30) % 3, out=tmp_path / "run")
    entries = json.loads(done.folder.ledger.read_text())["releases"]
    assert [one["client"] for one in entries] == [0, 1, 2]
