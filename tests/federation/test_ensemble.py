"""Several masks of one network: what each is searched for, whose turn it is, and that a stopped run goes on."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import prismfl
from prismfl.errors import ModelFileError, RunFolderError, SettingError
from prismfl.federation import ensemble
from prismfl.federation.agreement import init
from prismfl.federation.ensemble import labels_in, missing, moments_of
from prismfl.federation.one_shot import Gathered, choose_mask, pool, search_round
from prismfl.federation.record import Traffic
from prismfl.generator import numpy_runtime
from prismfl.generator.layout import Layout
from prismfl.generator.modelfile import load_model, save_model
from prismfl.generator.sampling import Sampler, finish
from prismfl.run.folder import read_rounds
from prismfl.run.loop import Silent
from prismfl.search import phase_of, rate_at
from prismfl.settings import resolve
from prismfl.settings.resolve import resolved
from prismfl.settings.toml import settings_from

LAYOUT = Layout(16, 1, 2, 8, classes=3)
THREE = {"federation": {"mode": "one-shot", "rounds": 5}, "search": {"ensemble": 3, "local_steps": 2, "batch_size": 8}}


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """A mask's moments are those of some hundreds of images."""
    monkeypatch.setattr(ensemble, "_LOOKED_AT", 300)


def model_of(masks, layout=LAYOUT):
    rng = np.random.default_rng(masks)
    models = [
        finish(layout, 0, rng.random(layout.count) < 0.5, "", tuple("abc")[: layout.classes]) for _ in range(masks)
    ]
    return models[0].of_parts(tuple(part for model in models for part in model.parts))


# ----------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize("count", [1, 2, 31])
@pytest.mark.parametrize("made", [Sampler, numpy_runtime.Runtime], ids=["torch", "numpy"])
def test_each_image_is_that_of_the_mask_whose_turn_it_is(made, count):
    model = model_of(2)
    labels = np.random.default_rng(count).integers(0, 3, count)
    images = made(model).sample(count, seed=5, labels=labels)
    alone = [made(model.of_parts((part,))).sample(count, seed=5, labels=labels) for part in model.parts]
    turns = {mask: rows.tolist() for mask, rows in Sampler(model).turns(5, labels)}
    assert sorted(row for rows in turns.values() for row in rows) == list(range(count))
    for mask, rows in turns.items():
        np.testing.assert_allclose(images[rows].astype(int), alone[mask][rows], atol=1)


def test_masks_take_equal_turns_within_every_label_and_seeds_begin_with_another():
    sampler, labels = Sampler(model_of(3)), np.arange(90) % 3
    for seed in range(5):
        turns = dict(sampler.turns(seed, labels))
        assert [np.bincount(labels[turns[mask]], minlength=3).tolist() for mask in range(3)] == [[10] * 3] * 3
    first = {mask for seed in range(40) for mask, _ in sampler.turns(seed, np.zeros(1, np.int64))}
    assert first == {0, 1, 2}, "whoever makes one image at a time gets all masks as well"


# ------------------------------------------------------------------------------------- the file


def test_an_ensemble_comes_back_from_a_file_of_its_own_format(tmp_path):
    model = model_of(3)
    size, one = (save_model(each, tmp_path / "m") for each in (model, model.of_parts(model.parts[:1])))
    assert size < 3 * one
    save_model(model, tmp_path / "m")
    found = load_model(tmp_path / "m")
    for mine, theirs in zip(model.parts, found.parts, strict=True):
        for name in ("mask", "norm_mean", "norm_var"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert b"prismfl-model-3" in (tmp_path / "m").read_bytes()[:10_000]


def test_a_lost_mask_is_damage(tmp_path):
    model = model_of(2)
    save_model(model, tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    for spoilt in (raw.replace(b'\\"masks\\": 2', b'\\"masks\\": 3'), raw.replace(b"mask.1", b"mask.7"), raw[:-1]):
        assert spoilt != raw
        (tmp_path / "m").write_bytes(spoilt)
        with pytest.raises(ModelFileError):
            load_model(tmp_path / "m")


# ----------------------------------------------------------------------------------- the search


def test_each_mask_is_searched_for_what_those_before_it_miss(feature_map):
    labels = np.array([0, 1, 1, 2, 2, 2])
    images = Sampler(model_of(1)).sample(6, seed=9, labels=labels)
    target = feature_map.target(images, labels, 3)
    masks = tuple(model_of(1).of_parts((part,)) for part in model_of(2).parts)
    wanted = 3 * target.moments.astype(np.float64)
    for number, model in enumerate(masks):
        many = labels_in(target.shares, 300)
        wanted -= feature_map.target(Sampler(model).sample(300, seed=2**63 + number, labels=many), many, 3).moments
    towards = missing(target, [moments_of(feature_map, target, model, number) for number, model in enumerate(masks)])
    np.testing.assert_allclose(towards.moments, wanted, atol=1e-6)
    assert towards.real is target.moments


def test_labels_are_dealt_in_their_shares():
    found = np.bincount(labels_in(np.array([0.1, 0.0, 0.25, 0.65]), 1000), minlength=4)
    assert found.tolist() == [100, 0, 250, 650]


@pytest.mark.parametrize(("rounds", "masks"), [(1, 1), (5, 3), (7, 7), (100, 3)])
def test_every_round_is_one_masks_and_the_rate_falls_with_each_from_half_after_the_first(rounds, masks):
    asked = {"federation": {"mode": "one-shot", "rounds": rounds}, "search": {"ensemble": masks, "local_steps": 10}}
    settings = resolved(settings_from(asked), 1)
    found = [phase_of(settings, turn) for turn in range(rounds)]
    assert [mask for mask, _, _ in found] == sorted(mask for mask, _, _ in found)
    assert {mask for mask, _, _ in found} == set(range(masks))
    for turn, (mask, first, length) in enumerate(found):
        assert first <= turn < first + length and found[first][0] == mask
        if turn == first:
            assert rate_at(settings, turn) == settings.search.learning_rate * (0.5 if mask else 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"search": {"ensemble": 2}}, "federation.mode = 'masks' with search.ensemble = 2"),
        ({"search": {"ensemble": 4}, "federation": {"mode": "one-shot", "rounds": 3}}, "at least a round a mask"),
        ({"search": {"ensemble": 65}, "federation": {"mode": "one-shot"}}, "search.ensemble = 65"),
    ],
    ids=str,
)
def test_ensembles_that_cannot_be_are_refused(changes, says):
    with pytest.raises(SettingError) as told:
        settings_from(changes)
    assert says in str(told.value)


# --------------------------------------------------------------------------------------- whole runs


class Killed(Silent):
    """Stops a run after a round."""

    def __init__(self, after):
        self.after = after

    def round_done(self, record, rounds):  # noqa: ARG002
        if record["round"] == self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "_LOOKED_AT", 300)
        return prismfl.train(tiny(**THREE), out=tmp_path_factory.mktemp("ensemble") / "run")


@pytest.mark.parametrize("after", [0, 1])
def test_a_killed_run_goes_on_to_the_same_bytes(tiny, tmp_path, whole, after):
    with pytest.raises(KeyboardInterrupt):
        prismfl.train(tiny(**THREE), out=tmp_path / "run", watcher=Killed(after))
    again = prismfl.resume(tmp_path / "run")
    assert again.folder.model.read_bytes() == whole.folder.model.read_bytes()
    assert len(read_rounds(again.folder)) == 5


def test_the_last_masks_are_kept_where_there_are_steps_for_more(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(resolve, "_STEPS_A_MASK", 2)
    two = tiny(**THREE | {"search": THREE["search"] | {"ensemble": 2}, "features": {"features": "efficientnet-lite0"}})
    assert [phase_of(two, turn)[0] for turn in range(5)] == [0, 1, 2, 3, 4]
    whole = prismfl.train(two, out=tmp_path / "whole").folder
    kept = [load_model(whole.masks / f"{number}.safetensors").mask for number in range(4)]
    found = [part.mask for part in load_model(whole.model).parts]
    assert len(found) == 2 and np.array_equal(found[0], kept[3])
    with pytest.raises(KeyboardInterrupt):
        prismfl.train(two, out=tmp_path / "run", watcher=Killed(3))
    assert prismfl.resume(tmp_path / "run").folder.model.read_bytes() == whole.model.read_bytes()


def test_each_mask_of_the_model_goes_on_from_the_one_before(whole):
    masks = [part.mask for part in load_model(whole.folder.model).parts]
    changed = [(before != after).mean() for before, after in pairwise(masks)]
    assert len(changed) == 2
    assert 0 < max(changed) < 0.2  # of masks begun anew half would differ


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_whose_finished_masks_are_gone_says_so(tiny, tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        prismfl.train(tiny(**THREE), out=tmp_path / "run", watcher=Killed(after))
    (tmp_path / "run" / "masks" / "0.safetensors").unlink()
    with pytest.raises(RunFolderError, match="0 finished masks"):
        prismfl.resume(tmp_path / "run")


def test_together_masks_come_nearer_to_the_target_than_one(make_world):
    asked = {"search": {"local_steps": 40, "batch_size": 16, "ensemble": 3, "loss": "unbiased"}}
    agreement, kit, targets = make_world(**asked, federation={"mode": "one-shot", "rounds": 3})
    target, state, masks, apart = pool(list(targets.values())), init(agreement), [], []
    for _ in range(3):
        found = [moments_of(kit.features, target, model, place) for place, model in enumerate(masks)]
        mine = Gathered(missing(target, found) if found else target, (0, 1, 2), {}, Traffic())
        state = replace(state, memory=None)
        state, _ = search_round(agreement, kit, state, mine)
        mask = choose_mask(agreement, kit, state, mine.target)
        masks.append(finish(agreement.layout, agreement.settings.seed, mask, ""))
        together = masks[0].of_parts(tuple(part for model in masks for part in model.parts))
        moments = kit.features.target(Sampler(together).sample(1000, seed=77)).moments
        apart.append(float(((moments - target.moments) ** 2).sum()))
    assert apart[2] < apart[0] and apart[1] < apart[0], apart
