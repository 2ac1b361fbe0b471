"""A whole run over any engine: rounds, checkpoints, sample grids, the finished model, its figures."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Protocol

from prismfl.data.datasets import ImageSet
from prismfl.data.files import write_atomic
from prismfl.federation.agreement import Agreement, Exchange, init
from prismfl.federation.client import ClientKit
from prismfl.federation.finished_mask import preview_mask
from prismfl.federation.record import RoundRecord, Traffic
from prismfl.generator.layout import Mask
from prismfl.generator.modelfile import Model, save_model
from prismfl.generator.sampling import Sampler, finish, grid_of, grid_of_real, labels_like, save_picture
from prismfl.metrics.distances import Reference, few
from prismfl.privacy.ledger import from_json, summary_of
from prismfl.run import folder as runfolder
from prismfl.run.course import Course, course_of
from prismfl.run.environment import hardware, versions
from prismfl.run.folder import RunFolder
from prismfl.run.progress import begun
from prismfl.server import ServerState
from prismfl.settings.toml import to_toml
from prismfl.sums.server import Enough
from prismfl.wire.frames import HEADER_BYTES

_GRIDS = 5  # of a run, to be looked at one after another
_MEANS = ("uplink_bits_per_parameter", "downlink_bits_per_parameter")


class Engine(Protocol):
    """What an engine offers: carry frames to clients, yield their replies in any order.

    attempts: times that a round is worth trying before the run stops.
    """

    attempts: int

    def train(self, round_index: int) -> Exchange:
        """Carry a round's broadcasts."""

    def compare(self) -> Exchange:
        """Carry the final θ for the comparison of candidate masks."""

    def sum(self, round_index: int, enough: Enough) -> Exchange:
        """Carry messages of a secure sum; `enough` says how many replies are."""

    def keep(self, round_index: int, clients: Iterable[int]) -> None:
        """Have these clients keep what they remember of a round that counts."""


class Watcher(Protocol):
    """What is told of a run as it goes; the progress display is one.

    Examples:
        >>> class Losses(Silent):
        ...     def round_done(self, record, rounds):
        ...         print(record["round"] + 1, "of", rounds, record["loss"])
        >>> Losses().round_done({"round": 0, "loss": 0.25}, rounds=20)
        1 of 20 0.25
    """

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk.

        Args:
            record: its line of `rounds.jsonl`.
            rounds: of the whole run.
        """

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """A watcher that says nothing."""

    def started(self, done: int, rounds: int) -> None:
        """Nothing."""

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Finished:
    """Where a finished run's model lies, and its closing figures.

    Attributes:
        folder: the run's folder; `folder.model` is the finished model's file, `folder.rounds` the log.
        summary: closing figures by name, as `summary.json` holds them.
    """

    folder: RunFolder
    summary: Mapping[str, Any]


def run(
    agreement: Agreement,
    engine: Engine,
    folder: RunFolder,
    watcher: Watcher,
    test: ImageSet | None = None,
    kit: ClientKit | None = None,
) -> Finished:
    """All rounds that are left, then the finished model.

    test: images that distances are measured against and that are shown beside samples; without them neither
    is done.  kit: what a server computes with that has a target of its own.  A kill at any moment loses at most the
    round under way.
    """
    course = course_of(agreement, engine, folder, watcher, kit)
    real = None if test is None else Reference(test, agreement.settings.running.device)
    rounds, going = agreement.settings.federation.rounds, _Run(agreement, course, folder, watcher, real)
    state = runfolder.load_state(folder, agreement.layout.count, agreement.settings.data.clients) or init(agreement)
    watcher.started(state.round, rounds)
    if test is not None and len(test):
        save_picture(grid_of_real(test, agreement.layout), folder.real)
    while state.round < rounds:
        state = going.play(state)
    return going.finish(state)


@dataclass(frozen=True)
class _Run:
    """A run under way; real: what distances are measured against, None for no distance."""

    agreement: Agreement
    course: Course
    folder: RunFolder
    watcher: Watcher
    real: Reference | None

    def play(self, state: ServerState) -> ServerState:
        """One round, on disk when it is back."""
        begun = time.monotonic()
        after, record = self.course.play(state)
        for client, why in record.left_out.items():
            self.watcher.note(f"round {state.round + 1}: client {client} is left out: {why}")
        line = _line(self.agreement, record, time.monotonic() - begun)
        self._look(after, line)
        runfolder.save_state(self.folder, after, line)
        self.watcher.round_done(line, self.agreement.settings.federation.rounds)
        return after

    def _look(self, state: ServerState, line: dict[str, Any]) -> None:
        """A grid and a distance of the model as it is after a round but the last, where one of them is due."""
        running, rounds = self.agreement.settings.running, self.agreement.settings.federation.rounds
        every = -(-rounds // _GRIDS)
        grid, distance = (due > 0 and state.round % due == 0 for due in (every, running.distance_every))
        if state.round == rounds or not (grid or distance):
            return
        sampler = Sampler(self._model(preview_mask(self.agreement, state.q), ""), running.device)
        if grid:
            save_picture(grid_of(sampler), self.folder.samples(state.round))
        if distance and self.real is not None and running.distance_samples:
            line["distance"] = self._distance(sampler, self.real)

    def _model(self, mask: Mask, settings: str) -> Model:
        agreement = self.agreement
        seed, device = agreement.settings.seed, agreement.settings.running.device
        model = finish(agreement.layout, seed, mask, settings, agreement.labels, device)
        return model.of_parts((*self.course.before(), *model.parts))

    def _distance(self, sampler: Sampler, real: Reference, *, shown: bool = False) -> float:
        """shown: whether the watcher is told how far it is."""
        count = self.agreement.settings.running.distance_samples
        labels = labels_like(real.test.labels, count) if self.agreement.labels else None
        images = sampler.sample(count, labels=labels)
        after = begun(self.watcher, f"measuring the distance on {count} samples", count) if shown else int
        return real.distance(images, after)

    def _cautions(self, real: int) -> list[str]:
        """Where the closing distances are of too few of the real images."""
        count = min(self.agreement.settings.running.distance_samples, real)
        return few(count) or few(real // 2, "the distance of the real images' two halves")

    def finish(self, state: ServerState) -> Finished:
        """The finished model and its figures."""
        self.watcher.note("choosing the finished model's mask")
        folder, settings, closing = self.folder, self.agreement.settings, Traffic()
        mask = self.course.choose(state, closing)
        ledger = runfolder.gather_ledger(folder)
        model = replace(self._model(mask, to_toml(settings.public())), ledger=tuple(ledger))
        size = save_model(model, folder.model)
        sampler = Sampler(model, settings.running.device)
        save_picture(grid_of(sampler), folder.samples(state.round))
        summary = _summary(self.agreement, folder, size, closing) | {"privacy": summary_of(from_json(ledger))}
        if self.real is not None and settings.running.distance_samples:
            self.watcher.note(f"making {settings.running.distance_samples} samples")
            summary["fid_judge"] = self._distance(sampler, self.real, shown=True)
            summary["fid_judge_of_halves"] = self.real.halves
            summary["cautions"] = self._cautions(len(self.real.test))
            summary |= {"outside_guarantee": ["fid_judge", "fid_judge_of_halves"]} if ledger else {}
        write_atomic(folder.summary, json.dumps(summary, indent=1) + "\n")
        return Finished(folder, summary)


def _line(agreement: Agreement, record: RoundRecord, seconds: float) -> dict[str, Any]:
    """A round as it stands in `rounds.jsonl`; bits a parameter are means over clients, of whole frames."""
    per, traffic = 8 / (agreement.layout.count * record.asked), record.traffic
    return {
        "round": record.round,
        "loss": record.loss,
        "lambda": record.kept_share,
        "density": record.density,
        "theta_variance": record.theta_variance,
        "mask_entropy": record.mask_entropy,
        "flips": record.flips,
        "local_divergence": record.local_divergence,
        "theta_by_layer": {name: round(mean, 5) for name, mean in record.theta_by_layer.items()},
        "cohort": list(record.replied),
        "left_out": {str(client): why for client, why in record.left_out.items()},
        "seconds": round(seconds, 3),
        **_bytes_of(traffic),
        "uplink_bits_per_parameter": traffic.uplink_bytes * per,
        "downlink_bits_per_parameter": traffic.downlink_bytes * per,
    }


def _bytes_of(traffic: Traffic) -> dict[str, int]:
    """Bytes of whole frames, and those of them that are headers."""
    return {
        "uplink_bytes": traffic.uplink_bytes,
        "downlink_bytes": traffic.downlink_bytes,
        "uplink_framing_bytes": traffic.uplink_frames * HEADER_BYTES,
        "downlink_framing_bytes": traffic.downlink_frames * HEADER_BYTES,
    }


def _summary(agreement: Agreement, folder: RunFolder, size: int, closing: Traffic) -> dict[str, Any]:
    lines = runfolder.read_rounds(folder)
    ends = _bytes_of(closing)
    return {
        "rounds": len(lines),
        "parameters": agreement.layout.count,
        "features_sha256": agreement.network,
        "model_bytes": size,
        "model_bits_per_parameter": 8 * size / agreement.layout.count,
        **{name: sum(line.get(name, 0) for line in lines) + value for name, value in ends.items()},
        "closing_bytes": closing.uplink_bytes + closing.downlink_bytes,
        **{name: fmean(line[name] for line in lines) if lines else None for name in _MEANS},
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "loss": lines[-1]["loss"] if lines else None,
        "grid": str(folder.samples(agreement.settings.federation.rounds).relative_to(folder.root)),
        "versions": versions(),
        "hardware": hardware(agreement.settings.running.device),
    }
