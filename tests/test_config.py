"""Settings: TOML out and in, refusals that name key, value and range, and the command line's options."""

import inspect
import math
import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prismfl import cli
from prismfl.config import SECTIONS, Search, Settings, load_settings, merged, read_toml, settings_from, to_toml
from prismfl.errors import SettingError
from prismfl.preparation import matching

HARD_TEXTS = [
    'a "quoted" word',
    "back\\slash\\",
    "\\u0041",
    "tab\tline\nend\r",
    "\x00\x1f\x7f",
    "Bilder für 佐藤 🙂",
    "'",
]

# Every TOML-able character: all of Unicode but surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(HARD_TEXTS)


def floats(low, high):
    return st.floats(low, high, allow_nan=False, exclude_min=low == 0.0)


@st.composite
def valid_settings(draw):
    """Nested values that are allowed alone and together."""
    clients, clip = draw(st.integers(1, 32767)), draw(floats(0.0001, 0.49))
    return {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "data": {
            "dataset": draw(
                st.sampled_from(["digits", "mnist", "fmnist", "kmnist", "cifar10", "celeba", "folder", "hf"])
            ),
            "data_dir": draw(texts),
            "attribute": draw(texts),
            "image_column": draw(texts),
            "clients": clients,
            "partition": draw(st.sampled_from(["iid", "shards", "dirichlet", "attribute", "given"])),
            "shards": clients * draw(st.integers(1, 9)),
            "concentration": draw(floats(0.0, 1e6)),
        },
        "generator": {
            "size": draw(st.sampled_from([0, 16, 32, 64])),
            "width": draw(st.integers(1, 1024)),
            "conditional": draw(st.booleans()),
        },
        "features": {"features": draw(texts), "layers": tuple(draw(st.lists(st.integers(0, 50), max_size=4)))},
        "search": {
            "learning_rate": draw(floats(0.0, 1000.0)),
            "adam": draw(st.sampled_from(["auto", "reset", "keep"])),
        },
        "federation": {
            "cohort": draw(st.integers(0, clients)),
            "control_variate": draw(st.booleans()),
            "clip": clip,
            "initial_theta": draw(st.floats(clip, 1 - clip)),
            "initial_certainty": draw(st.floats(0, 1)),
            "alpha": draw(st.floats(0, 1)),
        },
        "privacy": {"delta": draw(floats(0.0, 0.5))},
        "output": {"cache_dir": draw(texts), "grid_every": draw(st.integers(0, 2**40))},
    }


# ------------------------------------------------------------------------------------------ TOML


@given(valid_settings())
@example({"search": {"learning_rate": 1e-05}, "privacy": {"delta": 5e-324}, "seed": 2**64 - 1})
@example({"search": {"learning_rate": 1e-100}, "data": {"concentration": 1e6}})
@example({"output": {"grid_every": 10**30}})
@example({"features": {"layers": (0,)}, "data": {"data_dir": "".join(HARD_TEXTS)}})
def test_settings_survive_toml(values):
    settings = settings_from(values)
    parsed = tomllib.loads(to_toml(settings))
    assert settings_from(parsed) == settings
    assert to_toml(settings_from(parsed)) == to_toml(settings)
    # What was asked for is what stands in the file, not only what comes back.
    for section, asked in values.items():
        if isinstance(asked, dict):
            for key, value in asked.items():
                assert parsed[section][key] == (list(value) if isinstance(value, tuple) else value)
        else:
            assert parsed[section] == asked


def test_toml_on_disk_is_read_with_changes_over_it(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        'seed = 18446744073709551615\n[data]\ndata_dir = "a\\\\b \\u00fc"\nclients = 4\npartition = "iid"\n'
        "[search]\nlearning_rate = 1e-05\n[federation]\nrounds = 7\nalpha = 1\n[features]\nlayers = [2, 0]\n",
        encoding="utf-8",
    )
    settings = load_settings(path, {"rounds": 9, "layers": [1]})
    assert (settings.seed, settings.data.data_dir, settings.data.clients) == (2**64 - 1, "a\\b ü", 4)
    assert (settings.search.learning_rate, settings.federation.rounds) == (0.00001, 9)
    assert settings.features.layers == (1,)
    # A whole number may stand for a float.
    assert settings.federation.alpha == 1.0 and isinstance(settings.federation.alpha, float)


def test_nothing_given_is_the_default():
    assert settings_from({}) == Settings()
    assert tomllib.loads(to_toml(Settings()))["federation"]["mada"] == "off"


@pytest.mark.parametrize("raw", [b"seed = ", b"[data\nclients = 3", b"\xff\xfe", b"seed = 1\nseed = 2\n"])
def test_damaged_toml_is_refused_by_name(tmp_path, raw):
    path = tmp_path / "damaged.toml"
    path.write_bytes(raw)
    with pytest.raises(SettingError, match=r"damaged\.toml") as caught:
        load_settings(path)
    assert "expected a TOML file" in str(caught.value)


def test_missing_toml_is_refused_by_name(tmp_path):
    with pytest.raises(SettingError, match=r"nowhere\.toml.*No such file"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(SettingError, match="cannot read"):
        read_toml(tmp_path)


# -------------------------------------------------------------------------------------- refusals

# section, key, value, what the message must say is allowed
IMPOSSIBLE = [
    ("data", "clients", 0, "≥ 1"),
    ("data", "clients", 1_000_001, "≤ 1000000"),
    ("data", "clients", -3, "≥ 0"),
    ("data", "clients", True, "int"),
    ("data", "clients", 2.0, "int"),
    ("data", "clients", "2", "int"),
    ("data", "clients", None, "int"),
    ("data", "clients", [2], "int"),
    ("data", "clients", math.nan, "int"),
    ("data", "dataset", "imagenet", "one of digits, mnist"),
    ("data", "dataset", 3, "one of digits, mnist"),
    ("data", "dataset", ["digits"], "one of digits, mnist"),
    ("data", "data_dir", 5, "str"),
    ("data", "partition", "random", "one of iid, shards"),
    ("data", "shards", 45, "a multiple of the clients"),
    ("data", "concentration", 0.0, "> 0"),
    ("data", "concentration", -1.0, "> 0"),
    ("data", "concentration", math.inf, "≤ 1000000"),
    ("data", "concentration", math.nan, "float"),
    ("data", "concentration", True, "float"),
    ("data", "concentration", "0.5", "float"),
    ("generator", "size", 28, "one of 0, 16, 32, 64"),
    ("generator", "size", 128, "one of 0, 16, 32, 64"),
    ("generator", "size", False, "one of 0, 16, 32, 64"),
    ("generator", "size", 16.0, "one of 0, 16, 32, 64"),
    ("generator", "width", -1, "≥ 0"),
    ("generator", "latent", 0, "≥ 1"),
    ("features", "layers", [-1], "≥ 0"),
    ("features", "layers", [0, 1.5], "int"),
    ("features", "layers", [True], "int"),
    ("features", "layers", "0,1", "tuple"),
    ("features", "second_weight", -0.1, "≥ 0"),
    ("search", "local_steps", -1, "≥ 0"),
    ("search", "batch_size", -1, "≥ 0"),
    ("search", "learning_rate", -0.1, "≥ 0"),
    ("search", "learning_rate", math.inf, "≤ 1000"),
    ("search", "learning_rate", math.nan, "float"),
    ("search", "final_rate", 1.5, "≤ 1"),
    ("search", "beta1", 1.0, "≤ 0.9999"),
    ("search", "shrinkage", -0.1, "≥ 0"),
    ("search", "shrinkage", 0.6, "≤ 0.5"),
    ("search", "client_threads", -1, "≥ 0"),
    ("federation", "rounds", 0, "≥ 1"),
    ("federation", "cohort", -1, "≥ 0"),
    ("federation", "cohort", 11, "0 … 10, the clients"),
    ("generator", "conditional", "false", "bool"),
    ("federation", "control_variate", 1, "bool"),
    ("federation", "control_variate", "true", "bool"),
    ("federation", "alpha", -0.1, "≥ 0"),
    ("federation", "alpha", 1.01, "≤ 1"),
    ("federation", "alpha", math.nan, "float"),
    ("federation", "alpha", -math.inf, "≥ 0"),
    ("federation", "alpha_bits", 0, "≥ 1"),
    ("federation", "alpha_bits", 17, "≤ 16"),
    ("federation", "parts", -1, "≥ 0"),
    ("federation", "parts", 32768, "≤ 32767"),
    ("federation", "clip", 0.5, "≤ 0.49"),
    ("federation", "initial_theta", 0.001, "the clip range"),
    ("privacy", "epsilon", math.inf, "≤ 100"),
    ("privacy", "epsilon", -1.0, "≥ 0"),
    ("privacy", "images_per_person", 0, "≥ 1"),
    ("privacy", "noise", "none", "one of exact, fast"),
    ("privacy", "delta", 0.0, "> 0"),
    ("output", "device", 0, "str"),
    ("output", "workers", -1, "≥ 0"),
]


@pytest.mark.parametrize(("section", "key", "value", "allowed"), IMPOSSIBLE)
def test_impossible_values_are_refused_with_key_value_and_range(section, key, value, allowed):
    with pytest.raises(SettingError) as caught:
        settings_from({section: {key: value}})
    text = str(caught.value)
    spelt = {
        "int": "whole number",
        "float": "a number",
        "str": "text",
        "bool": "true or false",
        "tuple": "whole number",
    }
    assert f"{section}.{key}" in text and spelt.get(allowed, allowed) in text
    assert (repr(value) if not isinstance(value, list) else repr(value[-1])) in text


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, True, "1", None])
def test_impossible_seeds_are_refused(value):
    with pytest.raises(SettingError) as caught:
        settings_from({"seed": value})
    assert f"seed = {value!r}" in str(caught.value) and str(2**64 - 1) in str(caught.value)


def test_clients_by_pattern_set_what_follows_from_it():
    data = settings_from({"data": {"clients_from": "sites/*"}}).data
    assert (data.dataset, data.partition, data.clients) == ("folder", "given", 0)
    assert settings_from({"data": {"clients_from": "sites/*", "clients": 3}}).data.clients == 3
    assert settings_from({"data": {"clients_from": ""}}) == Settings()
    again = settings_from(tomllib.loads(to_toml(settings_from({"data": {"clients_from": "sites/*"}}))))
    assert again.data == data
    settings_from({"data": {"clients_from": "sites/*"}, "federation": {"cohort": 15}})  # checked once they are counted


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("dataset", "mnist", "'folder'"), ("partition", "iid", "'given'"), ("data_dir", "pictures", "''")],
)
def test_what_contradicts_clients_by_pattern_is_refused(key, value, says):
    with pytest.raises(SettingError, match=rf"data\.{key} = '{value}' with data\.clients_from; expected {says}"):
        settings_from({"data": {"clients_from": "sites/*", key: value}})


@pytest.mark.parametrize(
    "data",
    [
        {"clients_from": "/secret/*", "clients": 3, "attribute": "Young"},
        {"data_dir": "/secret", "dataset": "celeba", "attribute": "Young"},
    ],
)
def test_paths_are_not_public_and_what_labels_mean_is(data):
    public = settings_from({"data": data, "output": {"cache_dir": "/secret/cache"}}).public()
    assert "secret" not in to_toml(public) and public.data.attribute == "Young"
    assert settings_from(tomllib.loads(to_toml(public))) == public


@pytest.mark.parametrize("section", list(SECTIONS))
def test_unknown_keys_are_refused_with_the_known_ones(section):
    known = list(SECTIONS[section].__dataclass_fields__)
    with pytest.raises(SettingError, match=rf"{section}\.colour = 5") as caught:
        settings_from({section: {known[0]: getattr(SECTIONS[section](), known[0]), "colour": 5}})
    assert all(key in str(caught.value) for key in known)


@pytest.mark.parametrize("values", [{"training": {}}, {"clients": 3}, {"data": 3}, {"data": [1]}])
def test_unknown_sections_are_refused(values):
    with pytest.raises(SettingError, match=repr(next(iter(values)))) as caught:
        settings_from(values)
    assert "data, generator" in str(caught.value)


def test_one_value_at_each_end_of_a_range_is_allowed():
    low = settings_from({"data": {"clients": 1}, "federation": {"alpha": 0}, "search": {"batch_size": 2}, "seed": 0})
    high = settings_from(
        {"data": {"clients": 1_000_000, "partition": "iid"}, "federation": {"alpha": 1.0, "cohort": 32767}}
    )
    assert (low.data.clients, high.data.clients, high.federation.cohort) == (1, 1_000_000, 32767)


def test_all_of_too_many_clients_cannot_be_one_cohort():
    with pytest.raises(SettingError, match=r"federation\.cohort = 0 with 32768 clients"):
        settings_from({"data": {"clients": 32768, "partition": "iid"}})


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Settings().data.clients = 3


def test_settings_made_in_python_are_checked_too():
    """What is built from the classes obeys the same ranges as what comes from a file."""
    from prismfl.config import Data, Search

    with pytest.raises(SettingError, match=r"data\.clients"):
        Settings(data=Data(clients=0))
    with pytest.raises(SettingError, match=r"search\.batch_size"):
        Settings(search=Search(batch_size=1))


# ----------------------------------------------------------------------------- merged, and options


def test_merged_lays_flat_changes_over_nested_values():
    base = {"data": {"clients": 3}, "seed": 1}
    found = merged(base, {"clients": 5, "rounds": 2, "seed": 9})
    assert found == {"data": {"clients": 5}, "federation": {"rounds": 2}, "seed": 9}
    assert base == {"data": {"clients": 3}, "seed": 1}, "the base is left as it was"
    assert merged(base, {}) == base


def test_merged_refuses_unknown_names():
    with pytest.raises(SettingError, match=r"'colour'.*clients"):
        merged({}, {"colour": 1})


def test_changes_over_a_section_that_is_none_are_refused(tmp_path):
    path = tmp_path / "flat.toml"
    path.write_text("data = 3\n")
    with pytest.raises(SettingError, match="'data'"):
        load_settings(path, {"clients": 3})


@given(valid_settings())
def test_changes_one_by_one_equal_the_nested_values(values):
    flat = {k: v for s in values.values() if isinstance(s, dict) for k, v in s.items()} | {"seed": values["seed"]}
    assert settings_from(merged({}, flat)) == settings_from(values)


def test_every_setting_is_an_option_of_train(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prismfl", "train", "--help"])
    monkeypatch.setenv("COLUMNS", "240")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = set(capsys.readouterr().out.split())
    names = [name for kind in SECTIONS.values() for name in inspect.signature(kind).parameters]
    assert caught.value.code == 0 and len(names) == len(set(names))
    assert {f"--{name.replace('_', '-')}" for name in [*names, "seed"]} <= shown
    assert {"--config", "--out", "--resume", "--dry-run"} <= shown


@pytest.mark.parametrize("name", ["vgg", "vgg19", "random"])
def test_public_settings_name_a_network_and_no_path(name):
    made = settings_from({"features": {"features": name, "weights": "/home/me/w.pth", "features_sha256": "ab"}})
    found = made.public().features
    assert (found.features, found.weights, found.features_sha256) == (name, "", "ab")


def test_a_network_in_a_file_is_public_by_its_hash_alone():
    made = settings_from(
        {"features": {"features": "/home/me/net", "features_sha256": "ab"}, "data": {"classes": "0-4"}}
    )
    assert "/home" not in to_toml(made.public())
    assert made.public().features.features_sha256 == "ab" and made.public().data.classes == "0-4"
    assert made.public() == settings_from(tomllib.loads(to_toml(made.public())))


@pytest.mark.parametrize(
    ("channels", "epsilon", "asked", "wanted"),
    [
        (1, 0.0, {}, ("vgg", 1, 0, 0, 0.05, 0.0)),
        (1, 3.0, {}, ("vgg", 1, 0, 8, 0.0, 0.0)),
        (1, 3.0, {"pool": 0, "second_weight": 0.1}, ("vgg", 1, 0, 0, 0.1, 0.0)),
        (3, 0.0, {}, ("efficientnet-lite0", 2, 2, 4, 0.0, 0.3)),
        (3, 3.0, {}, ("efficientnet-lite0", 2, 2, 4, 0.0, 0.3)),
        (3, 0.0, {"shift": 0, "tone_weight": 0.0, "feature_scale": 3}, ("efficientnet-lite0", 3, 0, 4, 0.0, 0.0)),
        (3, 0.0, {"features": "vgg"}, ("vgg", 1, 0, 0, 0.05, 0.0)),
        (1, 0.0, {"features": "efficientnet-lite0"}, ("efficientnet-lite0", 2, 2, 4, 0.0, 0.3)),
    ],
    ids=str,
)
def test_what_is_matched_follows_from_images_and_epsilon_unless_asked_for(channels, epsilon, asked, wanted):
    features = matching(
        settings_from({"generator": {"size": 32}, "privacy": {"epsilon": epsilon}, "features": asked}), channels, "ab"
    ).features
    found = (features.features, features.feature_scale, features.shift, features.pool)
    assert (*found, features.second_weight, features.tone_weight) == wanted
    assert features.filled(32, lite="lite" in features.features) == features, "resolved once, it stays as it is"


@pytest.mark.parametrize(("conditional", "classes"), [(True, ()), (True, ("a",)), (False, ("a", "b"))])
def test_maps_of_images_without_labels_keep_more_places(conditional, classes):
    settings = settings_from({"generator": {"size": 32, "conditional": conditional}})
    assert matching(settings, 3, classes).features.pool == 8 and matching(settings, 1, classes).features.pool == 0


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
    found = settings_from({"search": asked}).sized(channels, images)
    assert (found.generator.width, found.search.batch_size, found.search.local_steps) == wanted


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("features", "second_weight", -0.5), ("features", "tone_weight", -0.01), ("search", "batch_size", 1)],
)
def test_numbers_between_auto_and_the_least_are_refused(section, key, value):
    with pytest.raises(SettingError, match=f"{section}.{key} = {value}"):
        settings_from({section: {key: value}})


def test_private_settings_come_back_from_their_text(tmp_path):
    path = tmp_path / "config.toml"
    for features in ({}, {"pool": 0, "second_weight": 0.05}):
        settings = settings_from({"privacy": {"epsilon": 3.0}, "features": features})
        path.write_text(to_toml(settings))
        assert load_settings(path) == settings


def test_what_soft_masks_change_follows_unless_asked_for():
    soft = settings_from({"search": {"mask": "soft"}})
    found, alone = soft.sized(3), settings_from({"federation": {"mode": "one-shot"}}).sized(3)
    assert (found.first_rate, found.search.final_rate, found.federation.initial_certainty) == (0.15, 0.05, 0.25)
    assert (soft.alpha, alone.alpha, alone.search.local_steps) == (1.0, 0.0, 4 * found.search.local_steps)
    asked = {
        "search": {"mask": "soft", "final_rate": 0.0, "learning_rate": 0.5},
        "federation": {"initial_certainty": 0.0},
    }
    told = settings_from(asked).sized(3)
    assert (told.first_rate, told.search.final_rate, told.federation.initial_certainty) == (0.5, 0.0, 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": {"alpha": 0.5}},
        {"federation": {"control_variate": True}},
        {"federation": {"screen": 3.0}},
        {"federation": {"shipped": "half"}, "privacy": {"epsilon": 1.0, "mechanism": "theta"}},
    ],
    ids=str,
)
def test_what_is_of_binary_masks_alone_is_refused_with_soft_ones(changes):
    with pytest.raises(SettingError, match="soft"):
        settings_from({"search": {"mask": "soft"}, **changes})


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"federation": {"cohort": 10}}, True),
        ({"federation": {"cohort": 5}}, False),
        ({"federation": {"mode": "one-shot"}}, True),
        ({"federation": {"cohort": 5}, "search": {"adam": "keep"}}, True),
        ({"search": {"adam": "reset"}}, False),
    ],
    ids=str,
)
def test_adam_is_kept_where_all_clients_take_part_unless_told(changes, kept):
    assert settings_from(changes).keeps_adam is kept


def test_adams_first_decay_is_longer_where_it_is_kept_unless_told():
    assert Search(adam="keep").first_decay == 0.9 and Search(adam="reset").first_decay == 0.5
    assert Search(adam="reset", beta1=0.25).first_decay == Search(adam="keep", beta1=0.25).first_decay == 0.25
