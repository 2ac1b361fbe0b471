"""How a run goes: what a round of it is, and how the finished model's mask is chosen."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import ClientError, RunFolderError, SettingError
from prismfl.federation import ensemble, one_shot, secure_sum
from prismfl.federation.agreement import Agreement, Exchange, Reply
from prismfl.federation.client import ClientKit
from prismfl.federation.finished_mask import choose_mask
from prismfl.federation.handed import handing_out
from prismfl.federation.one_shot import Gathered
from prismfl.federation.record import RoundRecord, Traffic
from prismfl.federation.round import server_update
from prismfl.generator.layout import Mask
from prismfl.generator.modelfile import Part
from prismfl.generator.sampling import finish
from prismfl.moments import Target
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder
from prismfl.run.progress import within
from prismfl.search import phase_of
from prismfl.server import ServerState
from prismfl.settings.resolve import masks_searched
from prismfl.sums.frames import Purpose, Step
from prismfl.sums.server import Memory

if TYPE_CHECKING:
    from prismfl.run.loop import Engine, Watcher


@dataclass(frozen=True)
class Course:
    """How a run goes: a round of it, and the choice of the finished model's last mask, whose bytes are counted.

    before: the masks of an ensemble that are finished already.
    """

    play: Callable[[ServerState], tuple[ServerState, RoundRecord]]
    choose: Callable[[ServerState, Traffic], Mask]
    before: Callable[[], tuple[Part, ...]] = tuple


def course_of(
    agreement: Agreement, engine: "Engine", folder: RunFolder, watcher: "Watcher", kit: ClientKit | None
) -> Course:
    """What the settings ask for.

    kit: what a server computes with that has a target of its own.  Raises SettingError where it is missing.
    """
    federation = agreement.settings.federation
    if federation.mode != "one-shot" and not agreement.pooled:
        if federation.secure_sum:
            return _by_sums(agreement, engine, folder, watcher)
        return _by_masks(agreement, engine, watcher)
    if kit is None:
        raise SettingError("a server with a target and no kit", "what it computes with", "pass it")
    gathered = _gathered(agreement, engine, folder, watcher, kit)
    if federation.mode == "one-shot":
        alone = _Alone(agreement, kit, folder, gathered)
        return Course(alone.play, alone.choose, alone.before)
    return _towards(agreement, engine, watcher, kit, gathered)


def _by_masks(agreement: Agreement, engine: "Engine", watcher: "Watcher") -> Course:
    def play(state: ServerState) -> tuple[ServerState, RoundRecord]:
        after, record = _counted(agreement, engine, watcher, state)
        engine.keep(state.round, record.replied)
        return after, record

    return Course(play, lambda state, traffic: choose_mask(agreement, state, engine.compare(), traffic))


def _counted(
    agreement: Agreement, engine: "Engine", watcher: "Watcher", state: ServerState, pooled: Gathered | None = None
) -> tuple[ServerState, RoundRecord]:
    """A round that counts, tried again where too few clients replied.  Raises ClientError after the last attempt."""
    traffic = Traffic()

    def attempt() -> tuple[ServerState, RoundRecord]:
        exchange = _shown(engine.train(state.round), watcher, f"round {state.round + 1}, replies of clients")
        if pooled is not None:
            exchange = handing_out(agreement, state.round, pooled.target, exchange, traffic)
        return server_update(agreement, state, exchange, traffic)

    for _ in range(engine.attempts - 1):
        try:
            return attempt()
        except ClientError as error:
            watcher.note(f"round {state.round + 1} does not count and is tried again: {error.got}")
    return attempt()


def _shown(exchange: Exchange, watcher: "Watcher", name: str) -> Exchange:
    """The same exchange, of which a watcher is told how many have replied: in colour each may take minutes."""

    def carried(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
        with within(watcher, name, len(frames)) as advance:
            for reply in exchange(frames):
                advance(1)
                yield reply

    return carried


def _gathered(
    agreement: Agreement, engine: "Engine", folder: RunFolder, watcher: "Watcher", kit: ClientKit
) -> Gathered:
    """What clients sent of their images, once: it is stored before it is used."""
    held = runfolder.load_arrays(folder.gathered)
    if held is None:
        if agreement.settings.federation.secure_sum:
            watcher.note("secure sum: asking every client for its masked moments")
            found = secure_sum.gather_sum(agreement, kit.features, _sums(engine, folder, watcher))
            watcher.note(
                f"secure sum: the sum of {len(found.heard)} clients is open: "
                f"{found.target.images} images, or persons where these are known"
            )
        else:
            watcher.note("one-shot: asking every client for the moments of its images")
            replies = _shown(engine.train(0), watcher, "moments of clients")
            found = one_shot.gather(agreement, kit.features.dimension, replies)
        engine.keep(0, found.heard)
        runfolder.save_arrays(folder.gathered, held := one_shot.to_arrays(found))
    return one_shot.from_arrays(held, max(1, agreement.layout.classes) * kit.features.dimension)


class _Alone:
    """A server that searches alone: one mask, or those of an ensemble one after another."""

    def __init__(self, agreement: Agreement, kit: ClientKit, folder: RunFolder, gathered: Gathered) -> None:
        self.agreement, self.kit, self.folder, self.gathered = agreement, kit, folder, gathered
        self.masks = list(runfolder.load_masks(folder))
        self.kept = agreement.settings.search.ensemble - 1  # masks beside the one that is searched
        self.moments = dict[int, NDArray[np.float64]]()  # of finished masks, by their numbers

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """A round; at the first of a mask's the one before is finished."""
        mask, first, _ = phase_of(self.agreement.settings, state.round)
        if mask and state.round == first:
            self._finish(state, mask)
            state = replace(state, memory=None)  # θ goes on, towards another target
        gathered = replace(self.gathered, target=self._target(mask))
        return one_shot.search_round(self.agreement, self.kit, state, gathered)

    def choose(self, state: ServerState, _: Traffic) -> Mask:
        """The last mask."""
        count = masks_searched(self.agreement.settings) - 1
        return one_shot.choose_mask(self.agreement, self.kit, state, self._target(count))

    def before(self) -> tuple[Part, ...]:
        """Masks that are finished, and kept."""
        return tuple(part for model in self.masks[self._first(len(self.masks)) :] for part in model.parts)

    def _first(self, count: int) -> int:
        """The first mask that is kept beside the one of this number."""
        return max(0, count - self.kept)

    def _finish(self, state: ServerState, count: int) -> None:
        """Finish the mask before, unless a run that was stopped has: on disk, then in use."""
        if len(self.masks) == count:
            return
        agreement = self.agreement
        mask = one_shot.choose_mask(agreement, self.kit, state, self._target(count - 1))
        seed, device = agreement.settings.seed, agreement.settings.running.device
        model = finish(agreement.layout, seed, mask, "", agreement.labels, device)
        runfolder.save_mask(self.folder, len(self.masks), model)
        self.masks.append(model)

    def _target(self, count: int) -> Target:
        if len(self.masks) != count:
            got = f"{len(self.masks)} finished masks in {self.folder.masks}"
            raise RunFolderError(got, f"{count}, of the rounds that are done", "start the run anew")
        device, whole, first = self.agreement.settings.running.device, self.gathered.target, self._first(count)
        for number in range(first, count):
            if number not in self.moments:
                mask = self.masks[number]
                self.moments[number] = ensemble.moments_of(self.kit.features, whole, mask, number, device)
        return ensemble.missing(whole, [self.moments[number] for number in range(first, count)]) if count else whole


def _by_target(agreement: Agreement, kit: ClientKit, gathered: Gathered) -> Callable[[ServerState, Traffic], Mask]:
    return lambda state, _: one_shot.choose_mask(agreement, kit, state, gathered.target)


def _towards(agreement: Agreement, engine: "Engine", watcher: "Watcher", kit: ClientKit, gathered: Gathered) -> Course:
    """Rounds of masks, all of clients that search towards the pooled target, which the server has as well."""

    def play(state: ServerState) -> tuple[ServerState, RoundRecord]:
        after, record = _counted(agreement, engine, watcher, state, gathered)
        engine.keep(state.round, record.replied)
        if state.round == 0:
            _add(record.traffic, gathered.traffic)
        return after, record

    return Course(play, _by_target(agreement, kit, gathered))


def _add(traffic: Traffic, more: Traffic) -> None:
    for name, value in vars(more).items():
        setattr(traffic, name, getattr(traffic, name) + value)


def _by_sums(agreement: Agreement, engine: "Engine", folder: RunFolder, watcher: "Watcher") -> Course:
    """Rounds whose masks are summed.  One that does not count is not tried again: its sum goes on with the run."""
    sums = _sums(engine, folder, watcher)

    def play(state: ServerState) -> tuple[ServerState, RoundRecord]:
        after, record = secure_sum.sum_round(agreement, state, sums)
        engine.keep(state.round, record.replied)
        return after, record

    return Course(play, lambda state, traffic: secure_sum.choose_mask(agreement, state, sums, traffic))


# ------------------------------------------------------------------------------- sums under way


def _sums(engine: "Engine", folder: RunFolder, watcher: "Watcher") -> secure_sum.Sums:
    return secure_sum.Sums(engine.sum, lambda purpose, turn: _memory(folder, purpose, turn), watcher.note)


def _memory(folder: RunFolder, purpose: Purpose, round_index: int) -> Memory:
    """What the run folder holds of a sum; another one's is replaced once this one has got somewhere."""

    def keep(memory: Memory) -> None:
        about = {"purpose": int(purpose), "round": round_index, "name": memory.name.hex()}
        rows = {f"{int(step)}.{client}": row for step, found in memory.steps.items() for client, row in found.items()}
        arrays = {name: np.frombuffer(row, np.uint8) for name, row in rows.items()}
        runfolder.save_arrays(folder.sum, arrays | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)})

    held = runfolder.load_arrays(folder.sum) or {}
    about = json.loads(held.pop("about").tobytes()) if "about" in held else {}
    memory = Memory(keep=keep)
    if (about.get("purpose"), about.get("round")) != (purpose, round_index):
        return memory
    for name, row in held.items():
        step, client = map(int, name.split("."))
        memory.steps.setdefault(Step(step), {})[client] = row.tobytes()
    return replace(memory, name=bytes.fromhex(about["name"]))
