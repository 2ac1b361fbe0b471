"""Attacks of a site, or of somebody with its key, on a server and the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prismfl.engines.flower.envelope import Hello, Response, hello_from, response_from, to_records
from prismfl.engines.flower.processes import Link
from prismfl.errors import ClientError, SettingError
from prismfl.privacy.ledger import as_asked, from_json, to_json
from prismfl.privacy.source import read_ledger
from prismfl.run.folder import RunFolder, read_rounds
from prismfl.settings.schema import Privacy

PRIVATE = {"epsilon": 9.0, "delta": 1e-2, "noise": "fast"}


def saying(**changes):
    """A fault: the site's greeting with other words."""

    def fault(reply):
        hello = hello_from(reply.content)
        reply.content = to_records(replace(hello, **changes))
        return reply

    return fault


class Lying:
    """A grid whose first site answers as it likes."""

    def __init__(self, fake, nodes, hello=None, response=None):
        self.hello, self.response = hello, response

        class Grid(fake):
            def _answer(grid, name):  # noqa: N805
                request = grid.sent[name].content["prismfl"]["ask"]
                mine = grid.nodes[grid.sent[name].metadata.dst_node_id][0]["partition-id"] == 0
                reply = super()._answer(name)
                change = self.hello if request == "hello" else self.response
                return change(reply) if mine and change and reply is not None else reply

        self.grid = Grid(nodes)


LIES = {
    "a newline": {"classes": ("a\nb",)},
    "a thousand and one names": {"classes": tuple(map(str, range(1001)))},
    "a long name": {"classes": ("a" * 300,)},
    "another's number": {"client": 7},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_site_that_greets_wrongly_is_refused_and_the_others_go_on(
    lie, fake, site_nodes, site_settings, serve, tmp_path, notes
):
    stated = {"classes": "a,b"}
    settings = site_settings(data=stated, generator={"channels": 1}, running={"deadline": 2.0})
    serve(Lying(fake, site_nodes, saying(**LIES[lie])).grid, tmp_path / "run", settings, notes)
    assert [line["cohort"] for line in read_rounds(RunFolder(tmp_path / "run"))] == [[1, 2]] * 2
    assert any("is refused" in line for line in notes.lines)


WORDS = [{"channels": 3}, {"classes": tuple(f"name {number}" for number in range(400))}, {"simulated": True}]


@pytest.mark.parametrize("changes", WORDS, ids=lambda value: next(iter(value)))
def test_one_sites_word_changes_nothing_where_the_server_states_classes_and_channels(
    changes, fake, site_nodes, site_settings, serve, tmp_path
):
    settings = site_settings(data={"classes": "a,b"}, generator={"channels": 1}, running={"deadline": 5.0})
    serve(Lying(fake, site_nodes, saying(**changes)).grid, tmp_path / "run", settings)
    agreed = json.loads((tmp_path / "run" / "agreement.json").read_text())
    assert agreed == {"classes": ["a", "b"], "channels": 1}


def test_one_site_does_not_make_a_grey_run_coloured(fake, site_nodes, site_settings, serve, tmp_path):
    serve(Lying(fake, site_nodes, saying(channels=3)).grid, tmp_path / "run", site_settings())
    assert json.loads((tmp_path / "run" / "agreement.json").read_text())["channels"] == 1


FORGED = [{"noise_multiplier": 1e-4}, {"delta": 0.9}, {"epsilon": 0.1}, {"sampler": "exact"}, {"images_per_person": 9}]


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_a_ledger_that_does_not_say_what_was_asked_is_no_ledger(
    forged, fake, site_nodes, site_settings, serve, tmp_path, notes
):
    def change(reply):
        response = response_from(reply.content, 10**8)
        (entry,) = json.loads(response.ledger)
        entry |= forged
        entry["sigma"] = entry["noise_multiplier"] * entry["sensitivity"]
        reply.content = to_records(Response(response.frame, ledger=json.dumps([entry])))
        return reply

    serve(Lying(fake, site_nodes, None, change).grid, tmp_path / "run", site_settings(privacy=PRIVATE), notes)
    assert [line["cohort"] for line in read_rounds(RunFolder(tmp_path / "run"))] == [[1, 2]] * 2
    assert any("client 0 is left out" in line and "ledger" in line for line in notes.lines)


def test_an_honest_ledger_is_as_asked(fake, site_nodes, site_settings, serve, tmp_path):
    serve(fake(site_nodes), tmp_path / "run", site_settings(privacy=PRIVATE))
    for config in site_nodes.values():
        (line,) = read_ledger(Path(config["ledger"]))
        assert as_asked(line.entry, Privacy(**PRIVATE)) and not as_asked(line.entry, Privacy(epsilon=8.0))
        assert from_json(to_json([line.entry])) == (line.entry,)


@pytest.mark.parametrize("name", ["hospital-a.pub", "client-1b.pub", "client-.pub", "client-01.pub"])
def test_a_key_whose_name_binds_it_to_no_client_is_refused(name, tmp_path):
    for file in ("ca.crt", "server.crt", "server.key", "client-0.pub", name):
        (tmp_path / file).write_text("")
    with pytest.raises(SettingError, match=name):
        Link("127.0.0.1", 1, tmp_path, tmp_path).check(insecure=False)


def test_a_node_whose_key_has_another_name_is_no_client(fake, site_nodes, site_settings, serve, tmp_path):
    class Named(fake):
        def get_nodes(self):
            found = super().get_nodes()
            for node in found:
                node.name = "hospital-a"
            return found

    with pytest.raises(ClientError, match="without 0, 1, 2"):
        serve(Named(site_nodes), tmp_path / "run", site_settings(running={"deadline": 0.3}))


def test_hellos_are_checked_word_for_word():
    for wrong in ({"channels": 2}, {"classes": ("a", 1)}):
        with pytest.raises(Exception, match=r"channels|classes"):
            hello_from(to_records(replace(Hello(0, bytes(16), False), **wrong)))
