"""The audit finds planted bugs in the path that runs take, bounds honest releases well, and seldom accuses them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from prismfl.data.images import ImageSet
from prismfl.errors import SettingError
from prismfl.features.networks import load_features
from prismfl.moments import FeatureMap
from prismfl.privacy import noise, release, source, store
from prismfl.privacy.audit import (
    audit_release,
    audit_training,
    chance,
    many_runs,
    many_runs_if_gaussian,
    noise_at_size,
    one_run,
)
from prismfl.privacy.ledger import calibrate
from prismfl.privacy.probe import needed
from prismfl.privacy.release import NORM, Grid
from prismfl.settings.resolve import matching_of
from prismfl.settings.schema import Privacy, Settings

TEN = Privacy(epsilon=9.8, delta=1e-5, noise="fast")
RUNS, CANARIES = 60, 1_000


# -------------------------------------------------------------------------------- planted bugs


def scaled(factor):
    """Noise of another size, where a client's release is one that `factor` speaks of: (images, client) → factor."""

    def plant(patch, real=release.release):
        def released(features, images, labels, classes, privacy, client=0, people=None):
            with pytest.MonkeyPatch.context() as inner:
                times = factor(len(images), client)
                noisy = release.noisy
                inner.setattr(
                    release, "noisy", lambda sums, scale, sampler: noisy(sums, max(1, int(scale * times)), sampler)
                )
                return real(features, images, labels, classes, privacy, client, people)

        patch.setattr(store, "release", released)

    return plant


def noise_discarded(patch):
    patch.setattr(release, "noisy", lambda sums, *_: sums)


def half_the_noise(patch):
    scaled(lambda *_: 0.5)(patch)


def half_the_noise_of_large_clients(patch):
    scaled(lambda images, _: 0.5 if images > 700 else 1)(patch)


def half_the_noise_of_other_clients(patch):
    scaled(lambda _, client: 0.5 if client else 1)(patch)


def sensitivity_too_small(patch):
    patch.setattr(Grid, "sensitivity", property(lambda _: math.sqrt(2) * NORM / 4))


def noise_from_a_public_seed(patch):
    def seeded(count, scale):
        return np.rint(np.random.default_rng(0).normal(0.0, scale, count)).astype(np.int64)

    patch.setattr(noise, "_rounded", seeded)


def noise_that_clients_share(patch):
    """Drawn once a run: two clients' releases differ by the bare difference of their sums."""
    state = {}

    def noisy(sums, scale, _sampler):
        unit = state.setdefault("noise", np.random.default_rng().normal(size=sums.shape))
        state["drawn"] = state.get("drawn", 0) + 1
        if state["drawn"] % 3 == 0:
            state.pop("noise")
        return sums + np.rint(unit * scale).astype(np.int64)

    patch.setattr(release, "noisy", noisy)


def noise_that_labels_share(patch):
    def noisy(sums, scale, _sampler):
        return sums + np.rint(np.random.default_rng().normal(size=sums.shape[1:]) * scale).astype(np.int64)

    patch.setattr(release, "noisy", noisy)


def label_counts_without_noise(patch, real=release.noisy):
    def noisy(sums, scale, sampler):
        drawn = real(sums, scale, sampler)
        if sums.ndim > 1 and len(sums) > 1:
            drawn[:, -1] = sums[:, -1]
        return drawn

    patch.setattr(release, "noisy", noisy)


def labels_dropped_by_true_counts(patch, real=release.to_target):
    true = {}

    def listening(*arguments, sums=release.integer_sums):
        true["counts"] = (found := sums(*arguments))[:, -1]
        return found

    def to_target(drawn, grid, scale, images):
        target = real(drawn, grid, scale, images)
        if not grid.classes:
            return target
        kept = true["counts"] > 0
        means = drawn[:, :-1] / (images * grid.scale * grid.stretch)
        moments = np.where(kept[:, None], means, 0).astype(np.float32).ravel()
        return replace(target, moments=moments)

    patch.setattr(release, "integer_sums", listening)
    patch.setattr(release, "to_target", to_target)


def an_image_counted_twice(patch, real=release.integer_sums):
    def sums(features, grid, images, labels, _people):
        twice = np.concatenate((images, images[:1])), np.concatenate((labels, labels[:1]))
        return real(features, grid, *twice)

    patch.setattr(release, "integer_sums", sums)


def norms_that_nobody_holds(patch):
    patch.setattr(release, "enforce", lambda whole, _bound: whole)


def a_release_drawn_anew_each_time(patch, real=source.SourceLedger.once):
    def once(self, definition, dealing, entry, draw):
        return real(self, definition, dealing, entry, draw)[0], draw()

    patch.setattr(source.SourceLedger, "once", once)


def a_release_that_no_ledger_knows(patch):
    """Kept in its file, and entered nowhere."""

    def once(self, definition, dealing, entry, draw):
        self.folder.mkdir(exist_ok=True)
        path = self.folder / definition
        path.exists() or path.write_bytes(draw())
        return source.Release(definition, definition, dealing, "", entry), path.read_bytes()

    patch.setattr(source.SourceLedger, "once", once)


def a_delta_that_is_larger(patch):
    patch.setattr(release, "calibrate", lambda epsilon, _, *rest: calibrate(epsilon, 0.1, *rest))


BUGS = [
    noise_discarded,
    half_the_noise,
    half_the_noise_of_large_clients,
    half_the_noise_of_other_clients,
    sensitivity_too_small,
    noise_from_a_public_seed,
    noise_that_clients_share,
    noise_that_labels_share,
    label_counts_without_noise,
    labels_dropped_by_true_counts,
    an_image_counted_twice,
    norms_that_nobody_holds,
    a_release_drawn_anew_each_time,
    a_release_that_no_ledger_knows,
    a_delta_that_is_larger,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(monkeypatch, plant):
    plant(monkeypatch)
    # That a label is never heard which nobody has takes many releases to be unlikely.
    found = audit_release(TEN, 4 * RUNS if plant is labels_dropped_by_true_counts else RUNS, CANARIES)
    assert found.broken, found


def test_noise_for_one_image_where_a_person_has_three_is_found(monkeypatch):
    three = replace(TEN, images_per_person=3)
    assert not audit_release(three, RUNS, CANARIES).broken
    real = release._planned
    monkeypatch.setattr(
        release,
        "_planned",
        lambda grid, asked, *rest, **how: real(grid, replace(asked, images_per_person=1), *rest, **how),
    )
    assert audit_release(three, RUNS, CANARIES).broken


# ------------------------------------------------------------------------------ honest releases


@pytest.mark.parametrize("privacy", [replace(TEN, noise="exact"), replace(TEN, epsilon=1.0)], ids=["exact", "one"])
def test_an_honest_release_is_bounded_and_not_accused(privacy):
    found = audit_release(privacy, 120, 2_000)
    assert not found.defects, found
    assert 0.99 < found.noise < 1.05 and 0.98 < found.counts < 1.6
    assert found.one_run >= (2 if privacy.epsilon == 9.8 else 0)


def test_who_knows_all_other_images_learns_much_of_many_releases():
    assert 1.5 <= audit_release(TEN, 200, 1_000).many_runs_if_gaussian <= 9.8  # 2.5 to 5, for noise is the system's


@pytest.mark.long
def test_of_twenty_honest_audits_at_most_four_accuse():
    found = [audit_release(replace(TEN, epsilon=1.0), 60, 1_000, seed=turn) for turn in range(20)]
    assert all(one.fresh and one.true and one.kept for one in found)
    assert sum(one.broken for one in found) <= 4


@pytest.mark.usefixtures("full_world")
def test_a_release_of_a_real_feature_map_has_the_noise_that_it_needs():
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16), np.uint8)
    mine = ImageSet(images, np.arange(60) % 2, ("a", "b"))
    asked = replace(TEN, delta=1e-3)
    features = FeatureMap(load_features("vgg"), matching_of(Settings(privacy=asked), labelled=True), 1, 16)
    assert 0.98 < noise_at_size(features, mine, 2, asked) < 1.03


@pytest.mark.parametrize(("epsilon", "delta"), [(9.8, 1e-5), (1.0, 1e-5), (0.2, 1e-6), (3.0, 1e-3)])
def test_what_noise_is_needed_is_told_by_two_ways(epsilon, delta):
    assert needed(epsilon, delta) == pytest.approx(calibrate(epsilon, delta), rel=1e-6)


# --------------------------------------------------------------------------------------- bounds


def test_no_difference_is_no_privacy_lost():
    same = np.random.default_rng(0).normal(size=4_000)
    assert many_runs(same[::2], same[1::2], 1e-5) < 0.3
    assert many_runs_if_gaussian(same[::2], same[1::2], 1e-5) < 0.3
    assert one_run(50, 100, 1_000, 0.0) == 0.0


def test_a_clear_difference_bounds_by_the_number_of_runs():
    """Without one error in N, ε is at least log(N / 4) or so, and no more can be said."""
    found = many_runs(np.full(2_000, 2.0) + np.arange(2_000) * 1e-6, np.arange(2_000) * 1e-6, 0.0)
    assert math.log(1_000 / 5) < found < math.log(1_000)


def test_bounds_of_one_run_are_those_of_coins():
    """Randomised response at ε: right guesses are exactly Binomial, and rejected as such."""
    assert one_run(1_000, 1_000, 1_000, 0.0) == pytest.approx(-math.log(0.05 ** (-1 / 1000) - 1), rel=1e-6)
    assert chance(731, 1_000, 1_000, 1.0, 0.0) == pytest.approx(0.5, abs=0.03)
    rng = np.random.default_rng(0)
    above = [one_run(int(rng.binomial(500, 1 / (1 + math.exp(-2.0)))), 500, 500, 0.0) > 2.0 for _ in range(50)]
    assert sum(above) <= 8


def test_delta_only_ever_weakens_a_bound():
    bounds = [one_run(480, 500, 5_000, delta) for delta in (0.0, 1e-7, 1e-6, 1e-5)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[-1]


@pytest.mark.parametrize("numbers", [(3, 2, 10), (2, 11, 10), (-1, 2, 10), (0, 0, 10)])
def test_impossible_guesses_are_refused(numbers):
    with pytest.raises(SettingError, match="guesses"):
        one_run(*numbers, 0.0)


def test_too_few_runs_are_refused():
    with pytest.raises(SettingError, match="at least 24"):
        audit_release(TEN, 10, 100)


# --------------------------------------------------------------------------------- whole training


def test_a_training_that_copies_its_images_is_found(feature_map, blobs):
    found = audit_training(lambda images: images, blobs, feature_map, replace(TEN, epsilon=1.0), 40)
    assert found.many_runs > 1.0 and found.many_runs_if_gaussian > 1.0


def test_a_training_that_takes_nothing_of_its_images_is_not_accused(feature_map, blobs):
    rng = np.random.default_rng(0)
    found = audit_training(lambda _: blobs[rng.integers(0, 30, 10)], blobs, feature_map, replace(TEN, epsilon=1.0), 40)
    assert found.many_runs < 0.5 and found.many_runs_if_gaussian < 1.5
    with pytest.raises(SettingError, match="3 training runs"):
        audit_training(lambda images: images, blobs, feature_map, replace(TEN, epsilon=1.0), 3)
