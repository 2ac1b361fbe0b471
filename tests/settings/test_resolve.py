"""What settings come to where they leave something open."""

from dataclasses import replace

import pytest

from prismfl.cli.options import asked
from prismfl.errors import SettingError
from prismfl.settings.resolve import Matching, masks_searched, matching_of, notes_of, plan_of, resolved
from prismfl.settings.toml import load_settings, settings_from, to_toml

LITE, EMBEDDED = "efficientnet-lite0", "vgg"


@pytest.mark.parametrize(
    ("channels", "epsilon", "labelled", "asked", "wanted"),
    [
        (1, 0.0, True, {}, (EMBEDDED, Matching())),
        (1, 3.0, True, {}, (EMBEDDED, Matching(pool=8, second_weight=0.0))),
        (3, 0.0, True, {}, (LITE, Matching(2, 2, 0, (), 4, 0.0, 0.3))),
        (3, 3.0, False, {}, (LITE, Matching(2, 2, 3, (), 2, 0.0, 0.3))),
        (3, 0.0, True, {"features": "vgg"}, (EMBEDDED, Matching())),
        (1, 0.0, True, {"features": LITE}, (LITE, Matching(2, 2, 0, (), 4, 0.0, 0.3))),
    ],
    ids=str,
)
def test_what_is_matched_follows_from_network_images_and_epsilon(channels, epsilon, labelled, asked, wanted):
    asked = settings_from({"generator": {"size": 32}, "privacy": {"epsilon": epsilon}, "features": asked})
    found = resolved(asked, channels)
    assert (found.features.features, matching_of(found, labelled=labelled)) == wanted


def test_releases_without_summaries_keep_the_names_that_they_had():
    assert repr(Matching(pool=8)) == (
        "Matching(scale=1, shift=0, windows=0, layers=(), pool=8, second_weight=0.05, tone_weight=0.0)"
    )
    assert repr(Matching(summary=3)).endswith("tone_weight=0.0, summary=3, shared)")


@pytest.mark.parametrize(
    ("mode", "loss", "epsilon", "secure_sum", "numbers"),
    [
        ("one-shot", "auto", 0.0, False, 64),
        ("one-shot", "auto", 9.8, True, 64),
        ("one-shot", "auto", 9.8, False, 0),
        ("one-shot", "moving", 0.0, False, 0),
        ("masks", "auto", 0.0, False, 0),
    ],
)
def test_images_are_summed_up_where_the_server_searches_and_little_noise_is(mode, loss, epsilon, secure_sum, numbers):
    asked = {"federation": {"mode": mode, "secure_sum": secure_sum, "rounds": 40}, "search": {"loss": loss}}
    found = resolved(settings_from(asked | {"privacy": {"epsilon": epsilon}}), 3)
    assert matching_of(found, labelled=False).summary == numbers
    assert (masks_searched(found) > 1) == (numbers > 0)
    few = replace(found, federation=replace(found.federation, rounds=2))
    assert (masks_searched(few), matching_of(few, labelled=False).summary) == (1, 0)  # no second mask would match it
    assert matching_of(resolved(found, 1), labelled=True) == matching_of(found, labelled=True)


@pytest.mark.parametrize(
    ("channels", "images", "asked", "wanted"),
    [
        (1, 6000.0, {}, (16, 64, 25)),
        (1, 144.0, {}, (16, 16, 100)),
        (3, 144.0, {}, (32, 32, 100)),
        (3, None, {}, (32, 64, 50)),
        (3, 400.0, {"batch_size": 128, "local_steps": 7}, (32, 128, 7)),
    ],
    ids=str,
)
def test_width_batch_and_steps_follow_from_the_images_unless_asked_for(channels, images, asked, wanted):
    found = resolved(settings_from({"search": asked}), channels, images)
    assert (found.generator.width, found.search.batch_size, found.search.local_steps) == wanted


def test_what_soft_masks_change_follows_unless_asked_for():
    soft = settings_from({"search": {"mask": "soft"}})
    found, alone = resolved(soft, 3), resolved(settings_from({"federation": {"mode": "one-shot"}}), 3)
    assert (found.search.learning_rate, found.search.final_rate, found.federation.initial_certainty) == (
        0.15,
        0.05,
        0.25,
    )
    assert (soft.alpha, alone.alpha, alone.search.local_steps) == (1.0, 0.0, 4 * found.search.local_steps)
    told = {"mask": "soft", "final_rate": 0.0, "learning_rate": 0.5}
    found = resolved(settings_from({"search": told, "federation": {"initial_certainty": 0.0}}), 3)
    assert (found.search.learning_rate, found.search.final_rate, found.federation.initial_certainty) == (0.5, 0.0, 0.0)


@pytest.mark.parametrize(
    ("federation", "steps", "channels", "wanted"),
    [
        ({}, 10, 1, (1.0, 0.3)),
        ({"rounds": 200}, 10, 1, (0.15, 0.3)),
        ({"rounds": 200}, 10, 3, (0.2, 0.3)),
        ({"mode": "one-shot", "rounds": 200}, 10, 1, (1.0, 0.3)),
        ({"uplink": "fewest"}, 10, 1, (1.3, 0.6)),
    ],
    ids=str,
)
def test_rates_follow_from_the_steps_of_the_run(federation, steps, channels, wanted):
    found = resolved(settings_from({"federation": federation, "search": {"local_steps": steps}}), channels).search
    assert (found.learning_rate, found.final_rate) == wanted


@pytest.mark.parametrize(
    ("federation", "keeps"),
    [({}, True), ({"cohort": 10}, True), ({"cohort": 5}, False), ({"mode": "one-shot"}, True)],
    ids=str,
)
def test_adam_is_kept_where_all_clients_take_part(federation, keeps):
    """Where it is, its first decay is longer."""
    plan = plan_of(resolved(settings_from({"federation": federation}), 1))
    assert (plan.keeps_adam, plan.beta1) == (keeps, 0.9 if keeps else 0.5)


@pytest.mark.parametrize(
    ("asked", "screen"),
    [
        ({}, 3.0),
        ({"data": {"clients": 3}}, 0.0),
        ({"data": {"clients": 40}, "federation": {"cohort": 3}}, 0.0),
        ({"federation": {"screen": 0.0}}, 0.0),
        ({"federation": {"screen": 1.5}}, 1.5),
        ({"federation": {"mode": "one-shot"}}, 0.0),
        ({"federation": {"secure_sum": True}}, 0.0),
        ({"federation": {"secure_sum": True}, "privacy": {"epsilon": 3.0}}, 3.0),
        ({"search": {"mask": "soft"}}, 3.0),
        ({"federation": {"initial_certainty": 0.0}}, 0.0),
    ],
    ids=str,
)
def test_the_screen_is_on_where_the_server_sees_enough_masks(asked, screen):
    assert resolved(settings_from(asked), 1).federation.screen == screen


@pytest.mark.parametrize("values", [{}, {"privacy": {"epsilon": 3.0}}, {"search": {"mask": "soft"}}], ids=str)
def test_resolving_again_changes_nothing_and_reasons_are_comments(values, tmp_path):
    asked = settings_from(values)
    found, path = resolved(asked, 3, 100.0), tmp_path / "resolved.toml"
    assert resolved(found, 3) == found
    path.write_text(to_toml(found, notes_of(asked, found)))
    assert load_settings(path) == found
    assert "batch_size = 32  # asked: 0; 0: 64, and where clients have fewer than 500 images 16" in path.read_text()


def test_more_rounds_of_what_was_asked_are_resolved_anew():
    """Values that were filled in for 20 rounds must not be taken for wishes in 200."""
    short, long = ({"search": {"local_steps": 25}, "federation": {"rounds": rounds}} for rounds in (20, 200))
    assert (
        resolved(settings_from(long), 1).search.learning_rate < resolved(settings_from(short), 1).search.learning_rate
    )


def test_the_papers_preset_is_the_published_form_and_others_go_over_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[federation]\nrounds = 7\ndraws = 'stratified'\n")
    found = asked(path, {"rounds": 9}, "paper")
    assert (found.federation.mada, found.federation.initial_certainty, found.search.loss) == (
        "published",
        0.0,
        "moving",
    )
    assert (found.federation.rounds, found.federation.draws, found.generator.conditional) == (9, "stratified", False)
    assert found.features.features == "auto"
    with pytest.raises(SettingError, match="preset 'papers'; expected one of long, paper"):
        asked(None, {}, "papers")


@pytest.mark.parametrize(("channels", "masks"), [(1, 4), (3, 8)])
def test_the_long_preset_keeps_the_last_four_masks_of_a_server_alone(channels, masks):
    found = resolved(asked(None, {"epsilon": 9.8, "secure_sum": True}, "long"), channels)
    assert (found.federation.mode, found.search.mask, found.search.ensemble) == ("one-shot", "soft", 4)
    assert (masks_searched(found), found.generator.width, found.search.loss) == (masks, 32, "unbiased")
