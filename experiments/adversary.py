"""What one adversary of the cohort does to the distance, with and without the server's screen.

    python experiments/adversary.py experiments/yardstick.toml --seeds 0 --screens 0 1.5

Client 0 sends, in place of the mask that its search found: nothing (`absent`, what the others are compared with),
all ones, all zeros, a random mask, the complement of the mask that the server foretells, or (`reversed`, with as many
flips as an honest client) a mask of the way back: θ_t - (θ_k - θ_t).  Prints a line a run, and writes it to `--out`.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from run import load_row, provenance, row_settings

from prismfl.data.files import write_atomic
from prismfl.engines.processes import keep_freed_memory
from prismfl.engines.simulator import InProcess
from prismfl.errors import ClientError
from prismfl.federation.agreement import Exchange, Reply
from prismfl.federation.client import client_update, receive
from prismfl.run import folder as runfolder
from prismfl.run import loop as coordinator
from prismfl.run.folder import RunFolder, read_rounds
from prismfl.run.loop import Silent
from prismfl.run.prepare import prepare
from prismfl.search import SearchResult, local_search
from prismfl.settings.schema import Settings

Theta = NDArray[np.uint16]
ATTACKS = ("ones", "zeros", "random", "flipped", "reversed")


def attacked(attack: str, found: Theta, q: Theta, u: Theta) -> Theta:
    """The θ_k that the adversary draws its mask with, uint16 `[N]`, from the one that its search found."""
    if attack in ("ones", "zeros"):
        return np.full(len(q), 65535 if attack == "ones" else 0, np.uint16)
    if attack == "random":
        return (65535 * np.random.default_rng(int(q.sum())).integers(0, 2, len(q))).astype(np.uint16)
    if attack == "flipped":
        return np.where(u < q, 0, 65535).astype(np.uint16)
    return np.clip(2 * q.astype(np.int64) - found, 0, 65535).astype(np.uint16)


class Attacked(InProcess):
    """The simulator with an adversary for client 0."""

    attack = "absent"

    def train(self, round_index: int) -> Exchange:
        """Carry a round's broadcasts, client 0's to the adversary."""
        honest = super().train(round_index)

        def exchange(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
            yield from honest({client: frame for client, frame in frames.items() if client})
            if 0 in frames:
                yield 0, self.adversary(round_index, frames[0])

        return exchange

    def adversary(self, round_index: int, frame: bytes) -> Reply:
        """Client 0's reply."""
        if self.attack == "absent":
            return ClientError("client 0 is absent", "an update", "it is left out")
        agreement, kit = self.agreement, self.kit
        told, now = receive(agreement, kit, frame, agreement.place(round_index, 0), self.held.get(0))
        if now is None:
            raise SystemExit("the adversary lost its way")
        u = np.zeros(len(now.q), np.uint16)
        u[: agreement.masked] = agreement.draws(round_index, told.cohort).uniforms(0, told.rank)

        def search(*asked: Any) -> SearchResult:
            found = (kit.search or local_search)(*asked)
            return replace(found, q=attacked(self.attack, found.q, now.q, u))

        changed = replace(kit, search=search)
        answer = client_update(agreement, changed, frame, round_index, 0, self.target(0), None, self.held.get(0))
        return self._remembered(0, answer)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--screens", nargs="+", type=float, default=[0.0, 1.5])
    parser.add_argument("--attacks", nargs="+", default=["absent", *ATTACKS])
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    args = parser.parse_args()
    keep_freed_memory()
    for path in args.rows:
        for seed in args.seeds:
            for screen in args.screens:
                settings = row_settings(load_row(path)[0], seed, args.runs / "targets")
                settings = replace(settings, federation=replace(settings.federation, screen=screen))
                for attack in args.attacks:
                    found = {"row": path.stem, "seed": seed, "screen": screen, "attack": attack}
                    found |= {**one_run(settings, attack), **provenance()}
                    name = f"{path.stem}-{seed}-{screen:g}-{attack}.json"
                    write_atomic(args.out / "adversary" / name, json.dumps(found) + "\n")
                    print(json.dumps(found), flush=True)


def one_run(settings: Settings, attack: str) -> dict[str, Any]:
    """Distance at the end, and the share of rounds in which client 0 and any other were left out."""
    ready = prepare(settings)
    with tempfile.TemporaryDirectory() as root:
        folder = runfolder.create(Path(root) / "run", ready.agreement.settings)
        engine = Attacked(ready.agreement, ready.kit, ready.clients, folder)
        engine.attack = attack
        finished = coordinator.run(ready.agreement, engine, folder, Silent(), ready.test)
        engine.close()
        return {"fid_judge": finished.summary["fid_judge"], **left_out(folder)}


def left_out(folder: RunFolder) -> dict[str, float]:
    """Shares of rounds."""
    names = [set(line["left_out"]) for line in read_rounds(folder)]
    others = [len(one - {"0"}) for one in names]
    return {"adversary_left_out": mean("0" in one for one in names), "others_left_out": mean(others)}


if __name__ == "__main__":
    main()
