"""Who is which client: the first keeps its place, and a restarted one gets it back."""

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")

from prismfl.engines.flower.envelope import Ask, Request
from prismfl.engines.flower.roster import Roster


@pytest.fixture
def roster(fake, site_nodes, notes):
    grid = fake(site_nodes)
    return grid, Roster(grid, 3, Request(Ask.HELLO), notes.note)


def nodes(roster):
    return {client: seat.node for client, seat in sorted(roster.seats.items())}


def test_all_find_their_seats(roster):
    _, them = roster
    them.poll()
    assert nodes(them) == {0: 100, 1: 101, 2: 102}
    assert not them.missing(range(3)) and not them.greeting_out


def test_a_second_claimant_is_refused_until_the_first_is_gone(roster, notes, tmp_path):
    grid, them = roster
    them.poll()
    rival = grid.nodes[100][0] | {"state-dir": str(tmp_path / "rival")}
    grid.nodes[200] = (rival, "")
    for _ in range(3):
        them.poll()
    assert nodes(them)[0] == 100
    assert sum("node 200 is refused" in line and "second time" in line for line in notes.lines) == 1
    del grid.nodes[100]
    them.poll()
    them.poll()
    assert nodes(them)[0] == 200


def test_the_same_client_started_again_takes_its_place(roster, notes):
    grid, them = roster
    them.poll()
    grid.nodes[300] = grid.nodes[101]
    them.poll()
    assert nodes(them)[1] == 300
    assert "client 1 is back as node 300" in notes.lines


def test_a_node_that_connects_anew_is_greeted_anew(roster):
    grid, them = roster
    them.poll()
    grid.nodes[102] = (grid.nodes[102][0], "later")
    them.poll()
    assert them.seats[2].line == (102, "later")


def test_impossible_claims_are_refused(roster, notes, tmp_path):
    grid, them = roster
    grid.nodes = {
        1: ({"partition-id": 3, "state-dir": str(tmp_path / "x")}, ""),
        2: ({"partition-id": "two", "state-dir": str(tmp_path / "y")}, ""),
        3: ({"partition-id": 0}, ""),
    }
    them.poll()
    assert not them.seats
    assert all(any(f"node {node} is refused" in line for line in notes.lines) for node in (1, 2, 3))


def test_a_key_holds_for_the_client_that_it_was_made_for(roster, notes, monkeypatch):
    grid, them = roster
    plain = grid.get_nodes

    def named():
        for node in plain():
            node.name = "client-1" if node.node_id in (100, 101) else ""
            yield node

    monkeypatch.setattr(grid, "get_nodes", named)
    them.poll()
    assert nodes(them) == {1: 101, 2: 102}
    assert any("client 0 with the key of client-1" in line for line in notes.lines)


def test_whom_all_wait_for_is_said_now_and_then(roster, notes, monkeypatch):
    grid, them = roster
    del grid.nodes[102]
    them.poll()
    before = len(notes.lines)
    for now in (0.0, 29.0, 31.0, 40.0, 62.0):
        monkeypatch.setattr("prismfl.engines.flower.roster.time.monotonic", lambda now=now: 1e6 + now)
        them.remind("round 3", (1, 2), left=100 - now)
    assert notes.lines[before:] == [
        "round 3: waiting for client 1 (connected); client 2 (not connected); 69 s left",
        "round 3: waiting for client 1 (connected); client 2 (not connected); 38 s left",
    ]
