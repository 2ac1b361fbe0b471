"""A grid without processes, and a real deployment on loopback."""

import contextlib
import itertools
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from prismfl.data.files import write_atomic
from prismfl.errors import DependencyError
from prismfl.privacy.policy import Policy, policy_text
from prismfl.run import folder as runfolder
from prismfl.run.loop import Silent
from prismfl.settings.toml import to_toml
from prismfl.sums.secrets import Identity

with contextlib.suppress(ImportError, DependencyError):  # without Flower, each module here skips itself by name
    from flwr.app import Context, RecordDict

    from prismfl.engines.flower import client, server
    from prismfl.engines.flower.processes import Link, Node, child, follow, free_port, submit, superlink, supernode

HERE = Path(__file__).parent


class Notes(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Tests look more often than servers do, and have the identity that Flower gives a process."""
    from flwr.supercore.task_identity import TaskIdentity

    monkeypatch.setattr("prismfl.engines.flower.roster._POLL", 0.0)
    monkeypatch.setattr("prismfl.engines.flower.server._WAIT", 0.01)
    monkeypatch.setattr("prismfl.engines.flower.engine._WAIT", 0.01)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class FakeGrid:
    """Nodes without Flower's processes: a message is answered when it is fetched, in an order of our choosing.

    nodes: node configurations by number; wrong: what to do instead of answering, by (client, round).
    """

    def __init__(self, nodes, order=reversed, wrong=None):
        self.nodes = {number: (config, "") for number, config in nodes.items()}
        self.order, self.wrong = order, wrong or {}
        self.sent, self.asked, self.count = {}, [], itertools.count()

    def get_nodes(self):
        return [SimpleNamespace(node_id=number, last_activated_at=at) for number, (_, at) in self.nodes.items()]

    def push_messages(self, messages):
        found = []
        for message in messages:
            name = f"m{next(self.count)}"
            message.metadata.__dict__["_message_id"] = name
            message.metadata.__dict__["_run_id"] = 1
            self.sent[name] = message
            found.append(name)
        return found

    def pull_messages(self, names):
        replies = [self._answer(name) for name in self.order(list(names)) if name in self.sent]
        return [reply for reply in replies if reply is not None]

    def _answer(self, name):
        message = self.sent[name]
        config, _ = self.nodes.get(message.metadata.dst_node_id, (None, ""))
        if config is None:
            return None
        request = client.request_from(message.content)
        fault = self.wrong.get((config["partition-id"], request.round)) if request.ask != "hello" else None
        if fault == "silence":
            return None
        del self.sent[name]
        self.asked.append((request, config["partition-id"]))
        context = Context(1, message.metadata.dst_node_id, config, RecordDict(), {})
        reply = client.answer(message, context)
        return fault(reply) if fault else reply


@pytest.fixture
def fake():
    return FakeGrid


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def sites(write_sites, tmp_path):
    """A folder of three sites' images."""
    return write_sites(tmp_path / "sites", {"a": 9, "b": 8, "c": 8})


@pytest.fixture
def site_nodes(sites, tmp_path):
    """Node configurations of the three sites."""
    policy = tmp_path / "policy.toml"
    rules = Policy(20.0, 1e-2, largest_delta=0.5, samplers=("exact", "fast"), least_cohort=1)
    policy.write_text(policy_text(replace(rules, one_shot_without_epsilon=True)))
    return {
        100 + number: {
            "partition-id": number,
            "data-dir": str(sites / name),
            "state-dir": str(tmp_path / "state" / name),
            "ledger": str(tmp_path / "ledgers" / name),
            "policy": str(policy),
        }
        for number, name in enumerate("abc")
    }


@pytest.fixture
def site_settings(tiny):
    """Settings of a run on the sites."""

    def make(**changes):
        data = {"dataset": "folder", "partition": "given", "clients": 3} | changes.pop("data", {})
        running = {"deadline": 30.0} | changes.pop("running", {})
        generator = {"channels": 1 if changes.get("privacy") else 0} | changes.pop("generator", {})
        return tiny(data=data, running=running, generator=generator, **changes)

    return make


@pytest.fixture
def serve():
    """A whole run over a grid."""

    def run(grid, root, settings, watcher=None):
        folder, settings = server.open_folder(root, to_toml(settings))
        return server.serve(grid, folder, settings, watcher or Silent())

    return run


# ----------------------------------------------------------------------------- a real deployment


class Deployment:
    """A SuperLink and SuperNodes as processes on loopback, on free ports."""

    def __init__(self, root, sites, exits, config=None):
        self.root, self.sites, self.exits = root, sites, exits
        self.config = config or (lambda _: {})
        self.link = Link("127.0.0.1", free_port())
        self.place, self.nodes, self.said = root / "flower", {}, []
        self.process = exits.enter_context(superlink(self.link, self.place, self.said.append))

    def start(self, number, name="", state="", prefix=()):
        """A client's SuperNode; prefix: words before its command."""
        state = self.root / (state or f"state-{number}")
        config = {"partition-id": number, "data-dir": str(self.sites / "abcde"[number]), "state-dir": str(state)}
        config |= {"ledger": str(state / "ledger.jsonl"), "budget-epsilon": 20.0, "budget-delta": 1e-2}
        config |= self.config(number)
        node = Node(self.link.address, state, config)
        log = self.exits.enter_context((self.root / f"node-{name or number}.log").open("ab"))
        # As the command does it; with a prefix, as Flower does.
        if prefix:
            plain = child([*prefix, *node.words(free_port())], state / "flower", log)
            self.nodes[name or number] = [self.exits.enter_context(plain)]
        else:
            self.nodes[name or number] = self.exits.enter_context(supernode(node, self.said.append, log))
        return state

    def kill(self, name):
        """As a machine that loses its power."""
        for process in self.nodes[name]:
            process.kill()
            process.wait()

    def fell(self, number):
        """Kill a client's machine once a fault says that it is to die."""
        dying = self.root / f"state-{number}" / "dying"
        end = time.monotonic() + 300
        while not (dying.exists() and dying.read_text()):
            assert time.monotonic() < end, f"client {number} was never asked"
            time.sleep(0.1)
        self.kill(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(dying.read_text()), signal.SIGKILL)
        dying.unlink()

    def faults(self, number, **faults):
        """What a client is to do wrong, by round."""
        path = self.root / f"state-{number}" / "faults.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name.removeprefix("r"): fault for name, fault in faults.items()}))

    def begin(self, settings, app=HERE / "faulty"):
        """A new run, under way."""
        out = self.root / f"run-{len(list(self.root.glob('run-*')))}"
        runfolder.create(out, settings)
        submit(out, self.place, self.said.append, app)
        return out

    def resume(self, out, app=HERE / "faulty"):
        """Go on with a run that stopped, and what its events begin with."""
        start = (out / "events.jsonl").stat().st_size
        submit(out, self.place, self.said.append, app)
        return start

    def finish(self, out, watcher=None, start=0):
        """The run's summary."""
        return follow(out, start, self.process, watcher or Silent())

    def notes(self, out):
        """What the log says."""
        lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        return [line["text"] for line in lines if line["event"] == "note"]


@contextlib.contextmanager
def deployed(root, sites, clients, config=None):
    """So many clients, connected."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PRISMFL_CLIENT_APP"] = str(HERE / "faulty" / "client_app.py")
    with contextlib.ExitStack() as exits:
        made = Deployment(root, sites, exits, config)
        for number in range(clients):
            made.start(number)
        yield made


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, write_sites):
    """Three clients, connected, for a module's tests one after another."""
    root = tmp_path_factory.mktemp("deployment")
    with deployed(root, write_sites(root / "sites", {"a": 9, "b": 8, "c": 8}), 3) as made:
        yield made


@pytest.fixture(scope="module")
def summing(tmp_path_factory, write_sites):
    """Five clients that pin each other's keys; of them one may collude and one drop out."""
    root = tmp_path_factory.mktemp("summing")
    sites = write_sites(root / "sites", {"a": 9, "b": 8, "c": 8, "d": 7, "e": 10})
    members, policy = [Identity.made() for _ in range(5)], root / "policy.toml"
    pinned = tuple(member.public for member in members)
    policy.write_text(policy_text(Policy(20.0, 1e-5, without_epsilon="always", sites=pinned, colluders=1, dropouts=1)))
    for number, member in enumerate(members):
        write_atomic(root / f"client-{number}.key", member.private(), private=True)

    def config(number):
        return {"key": str(root / f"client-{number}.key"), "policy": str(policy), "budget-delta": 1e-5}

    with deployed(root, sites, 5, config) as made:
        yield made
