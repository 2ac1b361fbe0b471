"""Secure sums over Flower's messages: the simulator's model, sites that pin keys, and who is refused."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from prismfl.engines import simulator
from prismfl.engines.flower.envelope import Ask, Request, Terms, response_from
from prismfl.errors import ClientError
from prismfl.generator.modelfile import load_model
from prismfl.privacy import pooled
from prismfl.privacy.policy import read_policy
from prismfl.privacy.source import SourceLedger
from prismfl.run.folder import RunFolder, load_arrays, read_rounds
from prismfl.settings.toml import to_toml, toml_value
from prismfl.sums.secrets import Identity

PRIVATE = {"epsilon": 9.0, "delta": 1e-2}


@pytest.fixture(scope="module")
def identities():
    return [Identity.made() for _ in range(3)]


@pytest.fixture
def nodes(site_nodes, identities, tmp_path):
    """The three sites, with a key each and all of them pinned in the policy."""
    policy = Path(site_nodes[100]["policy"])
    keys = toml_value([one.public for one in identities])
    text = policy.read_text().replace("sites = []", f"sites = {keys}")
    assert 'sites = ["ecdsa' in text
    policy.write_text(text)
    for number, one in enumerate(identities):
        path = tmp_path / f"client-{number}.key"
        path.write_bytes(one.private())
        site_nodes[100 + number]["key"] = str(path)
    return site_nodes


def fixed_noise(sums, own, _sampler):
    """Noise that is no noise, for two engines that are to come to the same."""
    return sums + np.int64(own) // 7 if own else sums


@pytest.mark.parametrize("mode", ["masks", "one-shot"])
@pytest.mark.parametrize("private", [{}, PRIVATE])
def test_the_model_is_the_simulators(mode, private, fake, nodes, site_settings, serve, sites, tmp_path, monkeypatch):
    monkeypatch.setattr(pooled, "noisy", fixed_noise)
    more = {"privacy": private} if private else {}
    settings = site_settings(federation={"secure_sum": True, "mode": mode, "finished_mask": "best"}, **more)
    serve(fake(nodes), tmp_path / "flower", settings)
    data = replace(settings.data, data_dir=str(sites / "*"))
    simulator.train(replace(settings, data=data), out=tmp_path / "plain")
    mine, plain = RunFolder(tmp_path / "flower"), RunFolder(tmp_path / "plain")
    assert mine.model.read_bytes() == plain.model.read_bytes()
    lines = [[line | {"seconds": 0} for line in read_rounds(folder)] for folder in (mine, plain)]
    assert lines[0] == lines[1]
    if private or mode == "one-shot":
        assert np.array_equal(load_arrays(mine.gathered)["moments"], load_arrays(plain.gathered)["moments"])
    if private:
        assert [entry["sites"] for entry in load_model(mine.model).ledger] == [3, 3, 3]
        for node in nodes.values():
            (line,) = SourceLedger(Path(node["ledger"])).releases()
            assert (line.entry.mechanism, line.entry.colluders) == ("distributed-gaussian", 1)


def asked(node, fake, settings, ask=Ask.HELLO, run=bytes(16)):
    """What a site says to a server's greeting, or to another request."""
    from flwr.app import Context, Message, RecordDict

    from prismfl.engines.flower import client
    from prismfl.engines.flower.envelope import to_records

    terms = Terms(to_toml(settings.public()), ("",) * (ask != Ask.HELLO))
    request = Request(ask, run, 0, -1, 60.0, b"", terms)
    message = Message(to_records(request), dst_node_id=1, message_type="query")
    message.metadata.__dict__["_message_id"] = "m"
    return str(response_from(client.answer(message, Context(1, 1, node, RecordDict(), {})).content, 10**6).error)


def test_a_site_sums_with_those_whose_keys_it_pins_and_with_nobody_else(nodes, fake, site_settings, identities):
    settings = site_settings(federation={"secure_sum": True})
    node, policy = nodes[100], Path(nodes[100]["policy"])
    assert asked(node, fake, settings) == "None"
    for clients in (2, 4):  # a server that leaves one out, or invents one
        other = site_settings(data={"clients": clients}, federation={"secure_sum": True})
        assert "3, whose keys are pinned" in asked(node, fake, other)
    assert "pass --key" in asked({**node, "key": ""}, fake, settings)
    assert "the same key" in asked({**node, "key": nodes[101]["key"]}, fake, settings)
    text = policy.read_text()
    policy.write_text(text.replace("sums_alone = false", "sums_alone = true"))
    assert "a run without secure_sum" in asked(node, fake, site_settings())
    policy.write_text(text.replace("sites = [", "sites = [] # ["))
    assert "the keys of all sites" in asked(node, fake, settings)
    policy.write_text(text)
    assert read_policy(policy).sums().keys == tuple(one.public for one in identities)


def test_a_site_whose_policy_says_otherwise_is_left_out_and_named(nodes, fake, site_settings, serve, tmp_path, notes):
    other = tmp_path / "other.toml"
    text = Path(nodes[102]["policy"]).read_text()
    other.write_text(text.replace("colluders = -1", "colluders = 0"))
    nodes[102]["policy"] = str(other)
    with pytest.raises(ClientError, match="its policy has other keys, colluders or drop-outs"):
        serve(fake(nodes), tmp_path / "run", site_settings(federation={"secure_sum": True}), notes)


@pytest.mark.parametrize(("mode", "private"), list(product(("masks", "one-shot"), (False, True))))
def test_in_a_run_of_secure_sums_nothing_of_one_site_is_answered(nodes, fake, site_settings, mode, private):
    privacy = {"privacy": {"epsilon": 5.0, "delta": 1e-3}} if private else {}
    settings = site_settings(federation={"secure_sum": True, "mode": mode}, **privacy)
    for ask in (Ask.TRAIN, Ask.COMPARE):
        told = asked(nodes[100], fake, settings, ask)
        run = bytes.fromhex(re.search(r"expected run ([0-9a-f]{32})", told)[1])  # which the server knows
        handed = mode == "masks" and private and ask == Ask.TRAIN  # towards the opened sum, once it is handed out
        assert (
            "in a run with secure_sum; expected sums alone" in asked(nodes[100], fake, settings, ask, run)
        ) != handed
    assert not list(Path(nodes[100]["state-dir"]).rglob("target*"))
