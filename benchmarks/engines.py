"""Seconds a round over Flower: this project's engine beside Flower's own loop, simulated and deployed.

    python benchmarks/engines.py [--clients 10] [--rounds 4] [--steps 20] [--where simulation,deployment]

Both do the same local steps on the digits, at the same sizes.  Flower's own round is a
ServerApp that sends θ as float32 arrays with `grid.send_and_receive`, and a ClientApp that imports torch, searches,
and sends its θ back.  Clients share this machine: a deployment of ten starts ten processes a round.
Rounds after the first count; ours are those of `rounds.jsonl`.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prismfl.data.files import write_atomic
from prismfl.engines.flower import processes
from prismfl.federation.agreement import agree
from prismfl.run import folder as runfolder
from prismfl.run.loop import Silent
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from, to_toml

SERVER = """
import json, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    out = Path(context.run_config["out"])
    plan = json.loads((out / "plan.json").read_text())
    theta = np.full(plan["count"], 0.5, np.float32)
    while len(nodes := list(grid.get_node_ids())) < plan["clients"]:
        time.sleep(0.2)
    seconds = []
    for turn in range(plan["rounds"]):
        begun = time.monotonic()
        content = lambda: RecordDict(
            {"theta": ArrayRecord({"q": Array(theta)}), "plan": ConfigRecord({"settings": plan["settings"]})}
        )
        messages = [Message(content(), dst_node_id=node, message_type="train", group_id=str(turn)) for node in nodes]
        replies = [reply for reply in grid.send_and_receive(messages) if reply.has_content()]
        theta = np.mean([reply.content["theta"]["q"].numpy() for reply in replies], 0)
        seconds.append(time.monotonic() - begun)
    (out / "seconds.json.tmp").write_text(json.dumps(seconds))
    (out / "seconds.json.tmp").rename(out / "seconds.json")
"""

CLIENT = """
from functools import lru_cache
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from prismfl.settings.toml import settings_from, toml_from
from prismfl.seeding.device import Tape
from prismfl.run.prepare import prepare
from prismfl.search import local_search
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import plan_of

app = ClientApp()
ready_of = lru_cache(maxsize=1)(lambda text: prepare(settings_from(toml_from(text))))
target_of = lru_cache(maxsize=1)(lambda text, client: target(ready_of(text), client))

def target(ready, client):
    mine = ready.clients[client]
    return ready.kit.features.target(mine.images, mine.labels, ready.agreement.layout.classes)

@app.train()
def train(message, context):
    text = message.content["plan"]["settings"]
    client, ready = context.node_config["partition-id"], ready_of(text)
    torch.set_num_threads(1)
    agreement, kit = ready.agreement, ready.kit
    q = (message.content["theta"]["q"].numpy() * 65536).clip(1, 65535).astype(np.uint16)
    draws = Tape(Stream(0, Purpose.SEARCH, 0, client))
    found = local_search(agreement.layout, kit.weights, kit.features, q, target_of(text, client),
                         plan_of(agreement.settings), 1.0, draws)
    theta = (found.q / 65536).astype(np.float32)
    return Message(RecordDict({"theta": ArrayRecord({"q": Array(theta)})}), reply_to=message)
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--where", default="simulation,deployment")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = settings_from(
        {
            "data": {"clients": args.clients, "partition": "iid"},
            "generator": {"width": args.width},
            "search": {"local_steps": args.steps},
            "federation": {"rounds": args.rounds, "finished_mask": "half"},
            "running": {"distance_samples": 0},
        }
    )
    print(f"{args.clients} clients, {args.steps} local steps, {os.cpu_count()} cores; median seconds a round")
    for where in args.where.split(","):
        with tempfile.TemporaryDirectory() as root:
            ours, theirs = both(Path(root), settings, where == "simulation")
        print(f"{where:<12} prismfl {ours:.2f}   Flower's own loop {theirs:.2f}", flush=True)


def both(root: Path, settings: Settings, simulation: bool) -> tuple[float, float]:
    """Median seconds of a round after the first: ours, and Flower's own."""
    clients = settings.data.clients
    link = processes.Link("127.0.0.1", processes.free_port(), simulation=simulation)
    more = processes.simulated(clients, 1) if simulation else []
    with processes.superlink(link, root / "flower", lambda _: None) as link_process:
        with nodes(root, link, 0 if simulation else clients, ours=True):
            out = root / "ours"
            runfolder.create(out, settings)
            processes.submit(out, root / "flower", lambda _: None, more=more)
            processes.follow(out, 0, link_process, Silent())
        seconds = [line["seconds"] for line in runfolder.read_rounds(runfolder.RunFolder(out))]
    with (
        processes.superlink(link, root / "flower", lambda _: None),
        nodes(root, link, 0 if simulation else clients, ours=False),
    ):
        return statistics.median(seconds[1:]), statistics.median(plain(root, settings, more)[1:])


@contextlib.contextmanager
def nodes(root: Path, link: processes.Link, clients: int, ours: bool) -> Iterator[None]:
    """A SuperNode a client, as `prismfl federate client` starts it or as Flower does."""
    with contextlib.ExitStack() as exits:
        for client in range(clients):
            state = root / f"state-{client}"
            node = processes.Node(link.address, state, {"partition-id": client, "state-dir": str(state)})
            log = exits.enter_context((root / f"node-{client}.log").open("ab"))
            flowers = processes.child(node.words(processes.free_port()), state / "flower", log)
            exits.enter_context(processes.supernode(node, lambda _: None, log) if ours else flowers)
        yield


def plain(root: Path, settings: Settings, more: list[str]) -> list[float]:
    """Seconds of Flower's own rounds."""
    app, out = root / "app", root / "theirs"
    about = (processes.APP / "pyproject.toml").read_text()
    for name, text in {"pyproject.toml": about, "server_app.py": SERVER, "client_app.py": CLIENT}.items():
        write_atomic(app / name, text.replace("prismfl-app", "plain-app"))
    count = agree(settings, 1, tuple("0123456789")).layout.count
    plan = {
        "clients": settings.data.clients,
        "rounds": settings.federation.rounds,
        "count": count,
        "settings": to_toml(settings),
    }
    write_atomic(out / "plan.json", json.dumps(plan))
    processes.submit(out, root / "flower", lambda _: None, app, more)
    return waited(out / "seconds.json")


def waited(path: Path) -> list[float]:
    """What stands in a file once it is there."""
    end = time.monotonic() + 1800
    while not path.exists():
        if time.monotonic() > end:
            raise SystemExit(f"{path} did not come within half an hour")
        time.sleep(0.5)
    return list(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
