"""How far honest clients' masks lie from the cohort's median, which says where a screen may draw its line.

    PRISMFL_DATA=data python experiments/honest.py experiments/screen/*.toml --seeds 0 1 2

A line a client and round goes to `--out`: the surprise of its mask over the cohort's median (see
`prismfl.federation.screen`), and how it agrees with the others: its flips times the sum of theirs, in standard
deviations of chance.
"""

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from run import load_row, provenance, row_settings

import prismfl
from prismfl.engines.processes import keep_freed_memory
from prismfl.federation import round as rounds
from prismfl.federation.screen import Screen, Vote
from prismfl.server import Tally

_NAMES = ("row", "seed", "round", "client", "surprise", "ratio", "agreement", "left_out", "commit", "date", "hardware")


class Watched(Screen):
    """A screen that notes what it is shown."""

    lines: ClassVar[list[dict[str, Any]]] = []
    flips: ClassVar[dict[int, NDArray[np.int8]]] = {}
    shown: ClassVar[dict[int, Vote]] = {}

    def add(self, tally: Tally, client: int, vote: Vote) -> Tally:
        """Note it, and take it in."""
        Watched.shown[client] = vote
        return super().add(tally, client, vote)

    def close(self, tally: Tally) -> tuple[Tally, dict[int, str]]:
        """Note all of them together."""
        tally, out = super().close(tally)
        middle = median(vote.surprise for vote in Watched.shown.values())
        total = np.sum([flips.astype(np.int32) for flips in Watched.flips.values()], axis=0)
        for client, vote in sorted(Watched.shown.items()):
            mine = Watched.flips[client].astype(np.int32)
            others = total - mine
            spread = float(np.sqrt(np.sum((mine * others) ** 2))) or 1.0
            Watched.lines.append(
                {
                    "client": client,
                    "surprise": round(vote.surprise, 6),
                    "ratio": round(vote.surprise / middle, 3),
                    "agreement": round(float(np.sum(mine * others)) / spread, 1),
                    "left_out": int(client in out),
                }
            )
        Watched.shown, Watched.flips = {}, {}
        return tally, out


def watched_heard(heard: Any) -> Any:
    """`_heard` of a round, which notes flips besides: 1 where a client keeps an entry that θ_t would not, else -1."""

    def around(agreement: Any, state: Any, client: int, rank: int, size: int, reply: bytes) -> Any:
        vote, news = heard(agreement, state, client, rank, size, reply)
        draws = agreement.draws(state.round, size)
        sent = draws.chosen(rank)
        foretold = np.zeros(agreement.masked, np.bool_)
        foretold[sent] = draws.uniforms(client, rank)[sent] < state.q[: agreement.masked][sent]
        Watched.flips[client] = vote.mask.astype(np.int8) - foretold.astype(np.int8)
        return vote, news

    return around


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, default=0, help="0: those of the row")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/honest.csv"))
    args = parser.parse_args()
    keep_freed_memory()
    rounds.Screen, rounds._heard = Watched, watched_heard(rounds._heard)  # type: ignore[misc,attr-defined]
    for path in args.rows:
        for seed in args.seeds:
            append(args.out, one_run(path, seed, args.rounds))


def one_run(path: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """A line a client and round."""
    with tempfile.TemporaryDirectory() as root:
        settings = row_settings(load_row(path)[0], seed, Path(root) / "targets")
        settings = replace(settings, running=replace(settings.running, distance_samples=0))
        if count:
            settings = replace(settings, federation=replace(settings.federation, rounds=count))
        Watched.lines = []
        prismfl.train(settings, out=Path(root) / "run")
        lines, number = [], 0
        for before, line in zip([{"client": -1}, *Watched.lines], Watched.lines, strict=False):
            number += line["client"] <= before["client"]
            lines.append({"row": path.stem, "seed": seed, "round": number, **line, **provenance()})
    ratios, agreements = [line["ratio"] for line in lines], [line["agreement"] for line in lines]
    print(f"{path.stem} {seed}: {len(lines)} of clients and rounds, at most {max(ratios)} times the median,"
          f" agreement {min(agreements)} and more", flush=True)  # fmt: skip
    return lines


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a table, and its header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, _NAMES, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
