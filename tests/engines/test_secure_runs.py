"""Runs whose server sees sums alone: the model of a plain run, one release of all clients, and resuming."""

import json

import numpy as np
import pytest

from prismfl.engines import simulator
from prismfl.errors import ClientError
from prismfl.federation import secure_sum
from prismfl.generator.modelfile import load_model
from prismfl.moments import FeatureMap
from prismfl.privacy import pooled
from prismfl.run.folder import RunFolder, load_arrays, read_rounds
from prismfl.run.loop import Silent
from prismfl.sums.frames import Step, step_of

PRIVATE = {"epsilon": 5.0, "delta": 1e-3}
CLIENTS = {"clients": 5}


class Kill(Silent):
    """Ends a run after so many rounds."""

    def __init__(self, after):
        self.after = after

    def round_done(self, record, _rounds):
        if record["round"] + 1 == self.after:
            raise KeyboardInterrupt


@pytest.fixture
def settings(tiny):
    def make(secure=True, **changes):
        federation = {"secure_sum": secure, "rounds": 3} | changes.pop("federation", {})
        return tiny(data=CLIENTS | changes.pop("data", {}), federation=federation, **changes)

    return make


def lines_of(root, *names):
    return [[line[name] for name in names] for line in read_rounds(RunFolder(root))]


@pytest.mark.parametrize("chosen", ["half", "best"])
def test_the_model_is_that_of_a_run_whose_masks_travel(settings, blobs, tmp_path, chosen):
    for secure in (True, False):
        made = settings(secure, federation={"finished_mask": chosen})
        simulator.train(made, blobs, out=tmp_path / str(secure))
    mine, plain = (RunFolder(tmp_path / str(secure)) for secure in (True, False))
    assert np.array_equal(load_model(mine.model).mask, load_model(plain.model).mask)
    same = ("density", "theta_variance", "mask_entropy", "cohort")
    assert lines_of(mine.root, *same) == lines_of(plain.root, *same)


@pytest.mark.parametrize("mode", ["masks", "one-shot"])
@pytest.mark.parametrize("epsilon", [0.0, 5.0])
def test_a_killed_run_goes_on_with_the_sum_that_it_had(settings, blobs, tmp_path, mode, epsilon, monkeypatch):
    private = {"privacy": PRIVATE} if epsilon else {}
    made = settings(federation={"mode": mode}, **private)
    drawn = []
    real = pooled.noisy
    monkeypatch.setattr(pooled, "noisy", lambda *args: drawn.append(1) or real(*args))
    for step in (Step.LIST, Step.INBOX, Step.SURVIVORS, Step.SIGNATURES):
        root, stop = tmp_path / f"{int(step)}", [True]
        answer = simulator.answer_sum

        def killed(disk, member, client, frame, *rest, answer=answer, step=step, stop=stop):
            found = answer(disk, member, client, frame, *rest)  # what it keeps is on its disk, and nobody hears of it
            if client == 3 and step_of(frame) == step and stop:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(simulator, "answer_sum", killed)
        with pytest.raises(KeyboardInterrupt):
            simulator.train(made, blobs, out=root)
        stop.clear()
        finished = simulator.resume(root, blobs)
        assert finished.summary["rounds"] == 3
        monkeypatch.setattr(simulator, "answer_sum", answer)
    assert len(drawn) == (4 * 5 if epsilon else 0)  # once a client and run


def test_one_release_of_all_clients_is_all_that_a_private_run_computes(settings, blobs, tmp_path, monkeypatch):
    seen, real = [], FeatureMap.target
    monkeypatch.setattr(FeatureMap, "target", lambda *args: seen.append(1) or real(*args))
    made = settings(privacy=PRIVATE, federation={"finished_mask": "best"})
    finished = simulator.train(made, blobs, out=tmp_path / "run")
    assert not seen
    ledger = json.loads(finished.folder.ledger.read_text())["releases"]
    assert [entry["client"] for entry in ledger] == [0, 1, 2, 3, 4]
    assert all((entry["sites"], entry["images"]) == (5, len(blobs) - len(blobs) // 10) for entry in ledger)
    assert "against the server and any 1 of the 5 sites" in finished.summary["privacy"]
    assert load_model(finished.folder.model).ledger[0]["sites"] == 5


def test_all_clients_share_the_noise_also_where_few_take_part_in_a_round(settings, blobs, tmp_path):
    made = settings(privacy=PRIVATE, federation={"cohort": 3})
    finished = simulator.train(made, blobs, out=tmp_path / "run")
    ledger = json.loads(finished.folder.ledger.read_text())["releases"]
    assert [entry["client"] for entry in ledger] == [0, 1, 2, 3, 4] and {entry["sites"] for entry in ledger} == {5}
    assert all(len(line[0]) == 3 for line in lines_of(finished.folder.root, "cohort"))


def test_every_client_searches_towards_the_sum(settings, blobs, tmp_path, monkeypatch):
    targets, real = [], simulator.client_update

    def noted(*args):
        targets.append(args[5])
        return real(*args)

    monkeypatch.setattr(simulator, "client_update", noted)
    finished = simulator.train(settings(privacy=PRIVATE), blobs, out=tmp_path / "run")
    held = load_arrays(finished.folder.gathered)
    assert len(targets) == 15 and all(target is targets[0] for target in targets)
    near = np.abs(targets[0].moments - held["moments"]).max()
    assert near < np.sqrt(np.square(held["moments"]).mean()) / 32  # but for how it is coded
    assert targets[0].images == int(held["images"][0])


def test_a_client_resumed_without_the_target_is_handed_it_again(settings, blobs, tmp_path):
    made = settings(privacy=PRIVATE)
    with pytest.raises(KeyboardInterrupt):
        simulator.train(made, blobs, out=tmp_path / "run", watcher=Kill(2))
    finished = simulator.resume(tmp_path / "run", blobs)
    assert [line[0] for line in lines_of(finished.folder.root, "cohort")] == [[0, 1, 2, 3, 4]] * 3


def test_a_lost_or_damaged_state_is_refused_and_not_begun_anew(settings, blobs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulator.train(settings(), blobs, out=tmp_path / "run", watcher=Kill(1))
    for client in (1, 2):
        (tmp_path / "run" / "clients" / str(client) / "sum-masks.safetensors").write_bytes(b"damaged")
    with pytest.raises(ClientError, match="is damaged"):
        simulator.resume(tmp_path / "run", blobs)


def test_noise_is_as_much_less_as_sites_share_it(settings, blobs, tmp_path, monkeypatch):
    """The opened sum differs from the exact one by the survivors' noise and nothing else."""
    told = []
    real = secure_sum.pooled_target
    monkeypatch.setattr(secure_sum, "pooled_target", lambda *args: told.append(args) or real(*args))
    made = settings(privacy=PRIVATE, federation={"mode": "one-shot"})
    simulator.train(made, blobs, out=tmp_path / "run")
    sums, grid, images, sites, own = told[0]
    train = blobs[np.arange(len(blobs)) % 10 != 9]
    kit = simulator.prepare(simulator.for_arrays(made, blobs), blobs).kit
    exact = pooled.site_sums(kit.features, grid, train, np.zeros(len(train), np.int64), 0)
    assert (images, sites) == (len(train), 5)
    assert np.std(sums - exact) == pytest.approx(own * np.sqrt(5), rel=0.2)
