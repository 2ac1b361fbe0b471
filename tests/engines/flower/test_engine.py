"""Runs over Flower's messages, without its processes: the same bytes as the simulator's, whatever goes wrong."""

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")

from flwr.app import Error, Message

from prismfl.engines import simulator as inprocess
from prismfl.engines.flower import client as client_room
from prismfl.engines.flower.envelope import Response, to_records
from prismfl.errors import ClientError, DataError, RunFolderError
from prismfl.generator.modelfile import load_model
from prismfl.moments import FeatureMap
from prismfl.privacy import store
from prismfl.privacy.ledger import from_json
from prismfl.privacy.release import from_bytes
from prismfl.privacy.source import SourceLedger, read_ledger
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder, read_rounds

PRIVATE = {"epsilon": 9.0, "delta": 1e-2, "noise": "fast"}


def with_response(response):
    """A fault: another response in place of the client's."""

    def fault(reply):
        reply.content = to_records(response)
        return reply

    return fault


def lines_of(root):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_rounds(RunFolder(root))]


def in_process(settings, sites, root):
    data = replace(settings.data, data_dir=str(sites / "*"))
    return inprocess.train(replace(settings, data=data), out=root)


KINDS = {
    "as it comes": {},
    "adam kept, mask compared": {"federation": {"rounds": 3, "finished_mask": "best"}},
    "two a round, by size": {"federation": {"rounds": 4, "cohort": 2, "client_weights": "size"}},
    "soft masks": {"search": {"mask": "soft"}},
    "one-shot": {"federation": {"mode": "one-shot", "rounds": 3}},
    "alpha, labels off": {"federation": {"alpha": 0.5}, "generator": {"conditional": False}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_the_simulators(kind, fake, site_nodes, site_settings, serve, sites, tmp_path):
    settings = site_settings(**KINDS[kind])
    shuffled = lambda names: random.Random(len(names)).sample(names, len(names))  # noqa: E731
    serve(fake(site_nodes, order=shuffled), tmp_path / "flower", settings)
    in_process(settings, sites, tmp_path / "plain")
    mine, plain = RunFolder(tmp_path / "flower"), RunFolder(tmp_path / "plain")
    assert mine.model.read_bytes() == plain.model.read_bytes()
    assert lines_of(mine.root) == lines_of(plain.root)


def test_private_runs_agree_from_the_same_releases(
    fake, site_nodes, site_settings, serve, sites, tmp_path, monkeypatch
):
    settings = site_settings(privacy=PRIVATE)
    serve(fake(site_nodes), tmp_path / "flower", settings)

    def theirs(*arguments):
        ledger = SourceLedger(Path(site_nodes[100 + arguments[5]]["ledger"]))
        (path,) = ledger.folder.glob("*.safetensors")
        return from_bytes(path.read_bytes())

    monkeypatch.setattr(store, "release", theirs)
    in_process(settings, sites, tmp_path / "plain")
    mine, plain = RunFolder(tmp_path / "flower"), RunFolder(tmp_path / "plain")
    assert mine.model.read_bytes() == plain.model.read_bytes()
    assert mine.ledger.read_bytes() == plain.ledger.read_bytes()
    assert [entry["client"] for entry in load_model(mine.model).ledger] == [0, 1, 2]


@pytest.mark.parametrize("planted", [False, True], ids=["as it is", "planted"])
def test_nothing_but_releases_is_told_of_private_images(
    planted, fake, site_nodes, site_settings, serve, tmp_path, notes, monkeypatch
):
    """Neither updates nor distances at the end come of raw moments, and the check would see it if they did."""
    seen = []
    real = FeatureMap.target
    monkeypatch.setattr(FeatureMap, "target", lambda *arguments: seen.append(1) or real(*arguments))
    if planted:
        distances = client_room.client_distances

        def raw(agreement, kit, frame, client, target, held):
            mine = client_room._images(client_room.Site(client, data_dir=sites[client]), agreement.settings)
            return distances(agreement, kit, frame, client, kit.features.target(mine.images, mine.labels, 2), held)

        sites = {config["partition-id"]: Path(config["data-dir"]) for config in site_nodes.values()}
        monkeypatch.setattr(client_room, "client_distances", raw)
    settings = site_settings(privacy=PRIVATE, federation={"finished_mask": "best"})
    serve(fake(site_nodes), tmp_path / "run", settings, notes)
    assert bool(seen) == planted and not any("left out" in line for line in notes.lines)


@pytest.mark.parametrize("told", ["", "[" * 100_000, "huge"])
def test_a_reply_without_a_ledger_does_not_count(fake, site_nodes, site_settings, serve, tmp_path, notes, told):
    def silent(reply):
        if told == "huge":  # a whole number that no float is
            entries = json.loads(str(reply.content["prismfl"]["ledger"]))
            reply.content["prismfl"]["ledger"] = json.dumps([entry | {"sigma": 10**400} for entry in entries])
        else:
            reply.content["prismfl"]["ledger"] = told
        return reply

    private = {"epsilon": 9.0, "delta": 1e-2, "noise": "fast"}
    serve(fake(site_nodes, wrong={(1, 0): silent}), tmp_path / "flower", site_settings(privacy=private), notes)
    assert [line["cohort"] for line in lines_of(tmp_path / "flower")] == [[0, 2], [0, 1, 2]]
    assert any("client 1 is left out" in line and "ledger" in line for line in notes.lines)


# ----------------------------------------------------------------------------------------- faults


def flipped(reply):
    frame = bytearray(reply.content["prismfl"]["frame"])
    frame[-1] ^= 1
    reply.content["prismfl"]["frame"] = bytes(frame)
    return reply


def without_content(reply):
    made = Message(to_records(Response()), dst_node_id=1, message_type="train")
    error = Message(Error(code=0, reason="the app crashed\n"), reply_to=made)
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return error


FAULTS = {
    "garbage": (with_response(Response(b"garbage" * 9)), "format"),
    "damage": (flipped, "checksum"),
    "too much": (with_response(Response(bytes(10_000_000))), "10000000 bytes"),
    "an error": (with_response(Response(error=DataError("no disk", "room", "free some"))), "no disk"),
    "a crash": (without_content, "Flower's error 0"),
    "nothing": (with_response(Response()), "0 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_others_go_on(fault, fake, site_nodes, site_settings, serve, tmp_path, notes):
    wrong, says = FAULTS[fault]
    serve(fake(site_nodes, wrong={(1, 0): wrong}), tmp_path / "run", site_settings(), notes)
    assert [line["cohort"] for line in lines_of(tmp_path / "run")] == [[0, 2], [0, 1, 2]]
    assert any("client 1 is left out" in line and says in line for line in notes.lines)


def test_a_round_waits_until_its_deadline_and_no_longer(fake, site_nodes, site_settings, serve, tmp_path, notes):
    settings = site_settings(running={"deadline": 0.5})
    serve(fake(site_nodes, wrong={(2, 1): "silence"}), tmp_path / "run", settings, notes)
    assert [line["cohort"] for line in lines_of(tmp_path / "run")] == [[0, 1, 2], [0, 1]]
    assert any("no reply within 0.5 s" in line for line in notes.lines)


def test_a_client_that_missed_a_round_keeps_the_memory_of_its_last(
    fake, site_nodes, site_settings, serve, sites, tmp_path
):
    """Its search of the round that did not count left a memory, which must not be used."""

    def lost(reply):
        return with_response(Response(b"lost on the way"))(reply)

    settings = site_settings(federation={"rounds": 3})
    serve(fake(site_nodes, wrong={(1, 1): lost}), tmp_path / "run", settings)
    kept = sorted(path.name for path in (tmp_path / "state" / "b").rglob("adam-*"))
    assert kept == ["adam-00000000.safetensors", "adam-00000002.safetensors"]


def test_too_few_replies_do_not_count(fake, site_nodes, site_settings, serve, tmp_path, notes):
    calls = []

    def once(reply):
        calls.append(1)
        return with_response(Response(b""))(reply) if len(calls) == 1 else reply

    settings = site_settings(running={"least_cohort": 3})
    serve(fake(site_nodes, wrong={(1, 1): once}), tmp_path / "run", settings, notes)
    assert [line["cohort"] for line in lines_of(tmp_path / "run")] == [[0, 1, 2]] * 2
    assert any("round 2 does not count" in line for line in notes.lines)


def test_a_run_that_stopped_goes_on(fake, site_nodes, site_settings, serve, tmp_path):
    settings = site_settings(federation={"rounds": 3}, running={"least_cohort": 3})
    serve(fake(site_nodes), tmp_path / "whole", settings)
    shutil.rmtree(tmp_path / "state")
    broken = fake(site_nodes, wrong={(1, 1): with_response(Response(b""))})
    with pytest.raises(ClientError, match="at least 3"):
        serve(broken, tmp_path / "run", settings)
    assert len(lines_of(tmp_path / "run")) == 1
    serve(fake(site_nodes), tmp_path / "run", settings)
    model = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert model == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_client_that_lost_its_disk_asks_for_what_it_needs(fake, site_nodes, site_settings, serve, tmp_path):
    def forget(reply):
        shutil.rmtree(tmp_path / "state" / "c")
        return reply

    settings = site_settings(federation={"rounds": 3})
    grid = fake(site_nodes, wrong={(2, 0): forget})
    serve(grid, tmp_path / "run", settings)
    assert [line["cohort"] for line in lines_of(tmp_path / "run")] == [[0, 1, 2]] * 3
    assert sum(client == 2 and request.terms is not None for request, client in grid.asked if request.round) == 1


def test_a_target_that_cannot_be_written_anew_is_not_the_one_of_a_run_before(
    fake, site_nodes, site_settings, serve, tmp_path, notes, monkeypatch
):
    serve(fake(site_nodes), tmp_path / "one", site_settings())
    real = runfolder.save_arrays

    def full(path, arrays):
        if path.name == "run-target.safetensors" and "/b/" in str(path):
            raise RunFolderError(f"cannot write {path}", "room", "free some")
        real(path, arrays)

    monkeypatch.setattr(runfolder, "save_arrays", full)
    serve(fake(site_nodes), tmp_path / "two", site_settings(), notes)
    assert [line["cohort"] for line in lines_of(tmp_path / "two")] == [[0, 2]] * 2
    assert sum("client 1 is left out: one RunFolderError at the site" in line for line in notes.lines) == 2


def test_terms_travel_once(fake, site_nodes, site_settings, serve, tmp_path):
    grid = fake(site_nodes)
    serve(grid, tmp_path / "run", site_settings(federation={"rounds": 3}))
    told = [client for request, client in grid.asked if request.ask != "hello" and request.terms]
    assert sorted(told) == [0, 1, 2]


def test_missing_clients_are_named(fake, site_nodes, site_settings, serve, tmp_path):
    del site_nodes[101]
    with pytest.raises(ClientError, match=r"2 clients after 0\.3 s, without 1"):
        serve(fake(site_nodes), tmp_path / "run", site_settings(running={"deadline": 0.3}))


def test_another_run_is_refused(fake, site_nodes, site_settings, serve, tmp_path, notes, monkeypatch):
    """A client computes the run's number of what it was told, and answers no other."""
    grid, plain = fake(site_nodes), fake.push_messages

    def changed(self, messages):
        for message in messages:
            if message.content["prismfl"].get("run"):
                message.content["prismfl"]["run"] = bytes(16)
        return plain(self, messages)

    monkeypatch.setattr(fake, "push_messages", changed)
    with pytest.raises(ClientError, match="a request of run 0000"):
        serve(grid, tmp_path / "run", site_settings(), notes)


# ---------------------------------------------------------------------------- what clients insist on


def refused(fake, site_nodes, settings, serve, root, notes, **config):
    site_nodes[101] |= config
    with pytest.raises(ClientError, match="without 1"):
        serve(fake(site_nodes), root, settings, notes)
    return next(line for line in notes.lines if "node 101 is refused" in line)


def test_a_client_may_insist_on_privacy(fake, site_nodes, site_settings, serve, tmp_path, notes):
    settings = site_settings(privacy=PRIVATE, running={"deadline": 0.3})
    said = refused(fake, site_nodes, settings, serve, tmp_path / "run", notes, **{"most-epsilon": 1.0})
    assert "epsilon = 9.0; expected at most 1, by this site's policy" in said


def test_a_run_may_not_search_a_clients_file_names(fake, site_nodes, site_settings, serve, tmp_path, notes):
    settings = site_settings(data={"partition": "iid", "people": "a"}, running={"deadline": 0.3})
    with pytest.raises(ClientError, match="without 0, 1, 2"):
        serve(fake(site_nodes), tmp_path / "run", settings, notes)
    assert any("is refused" in line and "deals persons" in line for line in notes.lines)


def test_a_site_that_knows_its_persons_protects_them_whole_beside_others(
    fake, site_nodes, site_settings, serve, tmp_path, notes, capfd
):
    """Its pattern finds two persons by class folder; the run's, which would find nobody, is not looked for."""
    site_nodes[101]["people"] = "^[ab]"
    settings = site_settings(data={"people": "nobody"}, privacy={"epsilon": 9.0, "delta": 1e-2, "noise": "fast"})
    serve(fake(site_nodes), tmp_path / "run", settings, notes)
    said = capfd.readouterr().out
    assert (
        len(re.findall(r"^images of 2 persons", said, re.M)) == 1 and len(re.findall(r"^\d+ images", said, re.M)) == 2
    )
    assert not any("2 persons" in line for line in notes.lines)
    told = from_json(load_model(RunFolder(tmp_path / "run").model).ledger)
    assert [entry.whole_persons for entry in told] == [False, True, False] and told[1].images == 2


def test_what_is_wrong_with_a_sites_images_stays_at_the_site(
    fake, site_nodes, site_settings, serve, tmp_path, notes, capfd
):
    """A name of a file can say who somebody is, and what they have."""
    broken = Path(site_nodes[101]["data-dir"]) / "a" / "name-1990-positive.png"
    broken.write_bytes(b"no image")
    settings = site_settings(privacy=PRIVATE, running={"deadline": 0.3})
    said = refused(fake, site_nodes, settings, serve, tmp_path / "run", notes)
    assert "one DataError at the site" in said
    assert "positive" not in "".join(notes.lines) and "name-1990-positive.png" in capfd.readouterr().err
    log = Path(site_nodes[101]["state-dir"]) / "audit.jsonl"
    assert "one DataError" in log.read_text() and "positive" not in log.read_text()


def test_releases_to_whatever_server_stop_at_the_sites_budget(fake, site_nodes, site_settings, serve, tmp_path):
    serve(fake(site_nodes), tmp_path / "one", site_settings(privacy=PRIVATE))
    serve(fake(site_nodes), tmp_path / "again", site_settings(privacy=PRIVATE, federation={"rounds": 3}))
    for config in site_nodes.values():
        assert len(read_ledger(Path(config["ledger"]))) == 1
        config["budget-epsilon"] = 10.0
    for number, changes in enumerate(({"size": 32}, {"channels": 3}, {"conditional": False})):
        with pytest.raises(ClientError, match="budget"):
            serve(fake(site_nodes), tmp_path / str(number), site_settings(privacy=PRIVATE, generator=changes))
    with pytest.raises(ClientError, match="without 0, 1, 2"):
        serve(fake(site_nodes), tmp_path / "plain", site_settings(running={"deadline": 0.3}))
    for config in site_nodes.values():
        assert len(read_ledger(Path(config["ledger"]))) == 1


def test_only_named_classes_are_told(fake, site_nodes, site_settings, serve, tmp_path):
    serve(fake(site_nodes), tmp_path / "run", site_settings(data={"classes": "a"}))
    assert json.loads((tmp_path / "run" / "agreement.json").read_text())["classes"] == ["a"]


# ---------------------------------------------------------------------------------------- simulated


def test_simulated_clients_take_their_part_of_the_settings_data(fake, tiny, serve, tmp_path):
    settings = tiny(data={"clients": 3}, federation={"finished_mask": "best"})
    nodes = {number: {"partition-id": number - 7, "num-partitions": 3} for number in (7, 8, 9)}
    serve(fake(nodes), tmp_path / "flower", settings)
    inprocess.train(settings, out=tmp_path / "plain")
    mine, plain = tmp_path / "flower" / "model.safetensors", tmp_path / "plain" / "model.safetensors"
    assert mine.read_bytes() == plain.read_bytes()


def test_memory_of_the_population_is_a_number_a_client(fake, tiny, serve, tmp_path):
    """Nothing is kept of clients that were not in a round but who they are."""
    settings = tiny(data={"clients": 60}, federation={"cohort": 2, "rounds": 3})
    nodes = {number: {"partition-id": number, "num-partitions": 60} for number in range(60)}
    grid = fake(nodes)
    serve(grid, tmp_path / "run", settings)
    assert len([1 for request, _ in grid.asked if request.ask != "hello"]) == 6
    assert len(list((tmp_path / "run" / "clients").iterdir())) <= 6
