"""Settings: TOML out and in, refusals that name key, value and range, and the command line's options."""

import inspect
import math
import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prismfl.cli import main as cli
from prismfl.errors import SettingError
from prismfl.settings.schema import SECTIONS, Data, Search, Settings
from prismfl.settings.toml import images_of, load_settings, merged, read_toml, settings_from, to_toml

FOLLOWED = {"shards": ":7", "dirichlet": ":0.25"}
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
    clients = draw(st.integers(1, 32767))
    partition = draw(st.sampled_from(["iid", "shards", "dirichlet", "attribute", "given"]))
    return {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "data": {
            "dataset": draw(
                st.sampled_from(["digits", "mnist", "fmnist", "kmnist", "cifar10", "celeba", "folder", "hf"])
            ),
            "data_dir": draw(texts.filter(lambda text: "*" not in text)),
            "attribute": draw(texts),
            "clients": clients,
            "partition": partition + draw(st.sampled_from(["", FOLLOWED.get(partition, "")])),
        },
        "generator": {
            "size": draw(st.sampled_from([0, 16, 32, 64])),
            "width": draw(st.integers(1, 1024)),
            "conditional": draw(st.booleans()),
        },
        "features": {"features": draw(texts)},
        "search": {"learning_rate": draw(floats(0.0, 1000.0))},
        "federation": {
            "cohort": draw(st.integers(0, clients)),
            "uplink": draw(st.sampled_from(["auto", "whole", "half", "fewest"])),
            "initial_certainty": draw(st.floats(0, 1)),
            "alpha": draw(st.floats(0, 1)),
        },
        "privacy": {"delta": draw(floats(0.0, 0.5))},
        "running": {"cache_dir": draw(texts), "distance_every": draw(st.integers(0, 2**40))},
    }


# ------------------------------------------------------------------------------------------ TOML


@given(valid_settings())
@example({"search": {"learning_rate": 1e-05}, "privacy": {"delta": 5e-324}, "seed": 2**64 - 1})
@example({"search": {"learning_rate": 1e-100}, "data": {"partition": "dirichlet:1e6"}})
@example({"running": {"distance_every": 10**30}})
@example({"data": {"data_dir": "".join(HARD_TEXTS)}})
def test_settings_survive_toml(values):
    settings = settings_from(values)
    parsed = tomllib.loads(to_toml(settings))
    assert settings_from(parsed) == settings
    assert to_toml(settings_from(parsed)) == to_toml(settings)
    # What was asked for is what stands in the file, not only what comes back.
    for section, asked in values.items():
        if isinstance(asked, dict):
            for key, value in asked.items():
                assert parsed[section][key] == value
        else:
            assert parsed[section] == asked


def test_a_quiet_setting_is_written_where_it_is_no_default():
    assert "fit" not in to_toml(Settings())
    settings = settings_from({"data": {"fit": "pad"}})
    assert settings_from(tomllib.loads(to_toml(settings))) == settings != Settings()


def test_toml_on_disk_is_read_with_changes_over_it(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        'seed = 18446744073709551615\n[data]\ndata_dir = "a\\\\b \\u00fc"\nclients = 4\npartition = "iid"\n'
        "[search]\nlearning_rate = 1e-05\n[federation]\nrounds = 7\nalpha = 1\n",
        encoding="utf-8",
    )
    settings = load_settings(path, {"rounds": 9})
    assert (settings.seed, settings.data.data_dir, settings.data.clients) == (2**64 - 1, "a\\b ü", 4)
    assert (settings.search.learning_rate, settings.federation.rounds) == (0.00001, 9)
    # A whole number may stand for a float.
    assert settings.federation.alpha == 1.0 and isinstance(settings.federation.alpha, float)


def test_nothing_given_is_the_default():
    assert settings_from({}) == Settings()
    assert tomllib.loads(to_toml(Settings()))["federation"]["mada"] == "off"


_NO_TOML = [
    *(b"seed = ", b"[data\nclients = 3", b"\xff\xfe", b"seed = 1\nseed = 2\n"),
    *(b"seed = 1" + b"0" * 5000, b"seed = " + b"[" * 3000 + b"]" * 3000),
]


@pytest.mark.parametrize("raw", _NO_TOML)
def test_damaged_toml_is_refused_by_name(tmp_path, raw):
    path = tmp_path / "damaged.toml"
    path.write_bytes(raw)
    with pytest.raises(SettingError, match=r"damaged\.toml") as caught:
        load_settings(path)
    assert "expected a TOML file" in str(caught.value)


def test_a_byte_order_mark_before_toml_is_no_damage(tmp_path):
    (tmp_path / "a.toml").write_text("seed = 3\n", encoding="utf-8-sig")
    assert load_settings(tmp_path / "a.toml").seed == 3


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
    ("data", "partition", "random", "iid, shards, shards:NUMBER a client"),
    *(
        ("data", "partition", value, "dirichlet:CONCENTRATION")
        for value in [
            *("dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:inf", "dirichlet:nan", "dirichlet:1e7"),
            *("dirichlet:one", "dirichlet:0.1:2", "shards:", "shards:0", "shards:2.5", "shards:-2", "shards:1e2"),
            *("iid:1", "given:3", "attribute:Male", "", ":4"),
        ]
    ),
    ("generator", "size", 28, "one of 0, 16, 32, 64"),
    ("generator", "size", 128, "one of 0, 16, 32, 64"),
    ("generator", "size", False, "one of 0, 16, 32, 64"),
    ("generator", "size", 16.0, "one of 0, 16, 32, 64"),
    ("generator", "width", -1, "≥ 0"),
    ("search", "local_steps", -1, "≥ 0"),
    ("search", "batch_size", -1, "≥ 0"),
    ("search", "learning_rate", -0.1, "≥ 0"),
    ("search", "learning_rate", math.inf, "≤ 1000"),
    ("search", "learning_rate", math.nan, "float"),
    ("search", "final_rate", 1.5, "≤ 1"),
    ("search", "final_rate", -0.5, "≥ 0"),
    ("search", "batch_size", 1, "at least 2"),
    ("running", "client_threads", -1, "≥ 0"),
    ("federation", "rounds", 0, "≥ 1"),
    ("federation", "cohort", -1, "≥ 0"),
    ("federation", "cohort", 11, "0 … 10, the clients"),
    ("generator", "conditional", "false", "bool"),
    ("federation", "alpha", -0.1, "≥ 0"),
    ("federation", "alpha", 1.01, "≤ 1"),
    ("federation", "alpha", math.nan, "float"),
    ("federation", "alpha", -math.inf, "≥ 0"),
    ("federation", "uplink", "third", "one of auto, whole, half, fewest"),
    ("federation", "initial_certainty", -0.5, "≥ 0"),
    ("privacy", "epsilon", math.inf, "≤ 100"),
    ("privacy", "epsilon", -1.0, "≥ 0"),
    ("privacy", "images_per_person", 0, "≥ 1"),
    ("privacy", "noise", "none", "one of exact, fast"),
    ("privacy", "delta", 0.0, "> 0"),
    ("running", "device", 0, "str"),
    ("running", "workers", -1, "≥ 0"),
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
    }
    assert f"{section}.{key}" in text and spelt.get(allowed, allowed) in text
    assert (repr(value) if not isinstance(value, list) else repr(value[-1])) in text


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, True, "1", None])
def test_impossible_seeds_are_refused(value):
    with pytest.raises(SettingError) as caught:
        settings_from({"seed": value})
    assert f"seed = {value!r}" in str(caught.value) and str(2**64 - 1) in str(caught.value)


def test_a_whole_number_past_all_floats_is_refused():
    for sign in (1, -1):
        with pytest.raises(SettingError, match=r"privacy\.epsilon = -?inf; expected a number ≥ 0"):
            settings_from({"privacy": {"epsilon": sign * 10**400}})


def test_clients_by_pattern_set_what_follows_from_it():
    data = settings_from({"data": {"data_dir": "sites/*"}}).data
    assert (data.dataset, data.partition, data.clients) == ("folder", "given", 0)
    assert (data.pattern, data.place) == ("sites/*", "")
    assert settings_from({"data": {"data_dir": "sites/*", "clients": 3}}).data.clients == 3
    again = settings_from(tomllib.loads(to_toml(settings_from({"data": {"data_dir": "sites/*"}}))))
    assert again.data == data
    settings_from({"data": {"data_dir": "sites/*"}, "federation": {"cohort": 15}})  # checked once they are counted


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("dataset", "mnist", "'folder'"), ("partition", "iid", "'given'")],
)
def test_what_contradicts_clients_by_pattern_is_refused(key, value, says):
    with pytest.raises(
        SettingError, match=rf"data\.{key} = '{value}' with data\.data_dir = 'sites/\*'; expected {says}"
    ):
        settings_from({"data": {"data_dir": "sites/*", key: value}})


@pytest.mark.parametrize(
    "data",
    [
        {"data_dir": "/secret/*", "clients": 3, "attribute": "Young"},
        {"data_dir": "/secret", "dataset": "celeba", "attribute": "Young"},
    ],
)
def test_paths_are_not_public_and_what_labels_mean_is(data):
    public = settings_from({"data": data, "running": {"cache_dir": "/secret/cache"}}).public()
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
    from prismfl.settings.schema import Data

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
def test_public_settings_name_a_network_and_no_path(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    made = settings_from({"features": {"features": f"{name}:~/w.pth"}})
    assert (made.features.network, made.features.weights) == (name, "/home/me/w.pth")
    assert (made.public().features.features, made.public().features.weights) == (name, "")


def test_a_network_in_a_file_is_public_as_a_file():
    made = settings_from({"features": {"features": "/home/me/net"}, "data": {"classes": "0-4"}})
    assert "/home" not in to_toml(made.public())
    assert made.public().features.features == "file" and made.public().data.classes == "0-4"
    assert made.public() == settings_from(tomllib.loads(to_toml(made.public())))


@pytest.mark.parametrize(
    ("choice", "changes"),
    [
        ("soft", {"search": {"mask": "soft"}, "federation": {"alpha": 0.5}}),
        ("soft", {"search": {"mask": "soft"}, "federation": {"uplink": "fewest"}}),
        ("soft", {"search": {"mask": "soft"}, "federation": {"finished_mask": "half"}}),
        ("one-shot", {"federation": {"mode": "one-shot", "alpha": 0.5}}),
        ("one-shot", {"federation": {"mode": "one-shot", "uplink": "half"}}),
        ("one-shot", {"federation": {"mode": "one-shot", "draws": "independent"}}),
        ("one-shot", {"federation": {"mode": "one-shot", "screen": 3.0}}),
        ("one-shot", {"federation": {"mode": "one-shot", "mada": "published"}}),
    ],
    ids=str,
)
def test_what_has_no_effect_beside_a_choice_is_refused_with_it(choice, changes):
    with pytest.raises(SettingError, match=choice):
        settings_from(changes)


def test_what_a_partition_is_followed_by_is_read():
    dealt = [Data(partition=text).dealt for text in ("shards", "shards:2", "dirichlet", "dirichlet:5e-3", "iid")]
    assert dealt == [("shards", 4), ("shards", 2), ("dirichlet", 0.005), ("dirichlet", 0.005), ("iid", 0)]


# ------------------------------------------------------------------------------- earlier versions


@pytest.mark.parametrize(
    ("section", "key", "now"),
    [
        ("output", "workers", "running.workers"),
        ("search", "precision", "running.precision"),
        ("deployment", "join_wait", "running.deadline"),
        ("data", "label_column", "data.attribute"),
        ("federation", "parts", "uplink"),
        ("federation", "control_variate", "uplink"),
        ("privacy", "mechanism", "one release"),
        ("features", "pool", "network"),
    ],
)
def test_a_setting_of_earlier_versions_is_refused_with_what_is_there_instead(section, key, now, monkeypatch, capsys):
    with pytest.raises(SettingError, match=rf"{section}\.{key} = 1") as caught:
        settings_from({section: {key: 1}})
    assert now in str(caught.value)
    if section not in ("output", "search"):  # these are options still
        monkeypatch.setattr("sys.argv", ["prismfl", "train", f"--{key.replace('_', '-')}", "1"])
        with pytest.raises(SystemExit):
            cli.main()
        told = capsys.readouterr().err
        assert now in told or f"--{now.rpartition('.')[2].replace('_', '-')}" in told


def test_a_models_settings_of_earlier_versions_are_read_as_far_as_they_are_known():
    old = {
        "seed": 3,
        "data": {"dataset": "hf", "label_column": "kind", "image_column": "photo", "attribute": "Male"},
        "output": {"device": "cpu", "grid_every": 3},
        "features": {"features": "vgg", "layers": [1]},
        "federation": {"mada": "coupled", "rounds": 4},
    }
    found = images_of(old)
    assert (found.data.dataset, found.data.attribute, found.features.features) == ("hf", "kind", "vgg")
