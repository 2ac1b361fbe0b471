"""The model file: round trip, size, and one error for every kind of damage."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from prismfl.errors import ModelFileError, RunFolderError
from prismfl.generator.layout import Layout, frozen_weights, kept_weights
from prismfl.generator.modelfile import Model, _content_hash, load_model, save_model
from prismfl.settings.toml import to_toml

LAYOUTS = [
    Layout(16, 1, 2, 8),
    Layout(16, 3, 3, 5),
    Layout(32, 1, 16, 64),
    Layout(64, 3, 4, 16),
    Layout(32, 1, 64, 128),
    Layout(16, 3, 3, 5, classes=3),
]


def model_of(layout, seed=3, text="", ledger=()):
    rng = np.random.default_rng(seed)
    mean, var = rng.random((2, sum(layout.norms)), np.float32)
    labels = ("0", "ünï/cörn", "")[: layout.classes]
    return Model(layout, seed, rng.random(layout.count) < 0.5, mean, var, text, ledger, labels)


@pytest.fixture(scope="module")
def raw(tmp_path_factory, tiny):
    """The bytes of a small model file."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(model_of(Layout(16, 1, 2, 8), text=to_toml(tiny()), ledger=({"epsilon": 9.8},)), path)
    return path.read_bytes()


@pytest.fixture
def load_bytes(tmp_path):
    def load(content):
        path = tmp_path / "m.safetensors"
        path.write_bytes(content)
        return load_model(path)

    return load


def header_end(raw):
    return 8 + int.from_bytes(raw[:8], "little")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_comes_back_from_a_small_file(tmp_path, tiny, layout):
    path = tmp_path / "deep" / "model.safetensors"
    ledger = ({"epsilon": 9.8, "delta": 1e-5},)
    model = model_of(layout, text=to_toml(tiny()) + '# "ünï"\n', ledger=ledger)
    size = save_model(model, path)
    assert size == path.stat().st_size
    assert 8 * size <= 1.02 * layout.count + 8 * 16_384
    found = load_model(str(path))
    assert (found.layout, found.seed, found.settings, found.ledger) == (layout, 3, model.settings, ledger)
    assert found.labels == model.labels and len(found.labels) == layout.classes
    np.testing.assert_array_equal(found.mask, model.mask)
    np.testing.assert_array_equal(found.norm_mean, model.norm_mean)
    np.testing.assert_array_equal(found.norm_var, model.norm_var)


@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_a_soft_mask_comes_back_from_half_a_byte_a_weight(tmp_path, load_bytes, layout):
    soft = np.random.default_rng(0).integers(0, 16, layout.count, np.uint8)
    size = save_model(replace(model_of(layout), mask=soft), tmp_path / "m")
    assert size <= layout.count / 2 + 16_384
    found = load_model(tmp_path / "m")
    assert found.mask.dtype == np.uint8
    np.testing.assert_array_equal(found.mask, soft)
    np.testing.assert_allclose(
        kept_weights(layout, 3, found.mask), frozen_weights(layout, 3) * soft / 15, rtol=1e-6, atol=0
    )


def test_soft_masks_of_another_length_or_type_are_refused(tmp_path, load_bytes):
    layout = LAYOUTS[-1]
    assert layout.count % 2, "a last byte that is half full"
    save_model(replace(model_of(layout), mask=np.full(layout.count, 15, np.uint8)), tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    soft, start = load_tensors(raw)["soft"], header_end(raw)
    odd = soft.copy()
    odd[-1] |= 0xF0
    for changed in (odd, soft[:-1], np.append(soft, 0), soft.astype(np.int8), soft.reshape(1, -1)):
        tensors = load_tensors(raw) | {"soft": changed}
        about = json.loads(json.loads(raw[8:start])["__metadata__"]["prismfl"])
        about.pop("sha256")
        about["sha256"] = _content_hash(about, tensors)
        with pytest.raises(ModelFileError):
            load_bytes(save_tensors(tensors, {"prismfl": json.dumps(about)}))


def test_a_model_of_the_papers_size_takes_little_more_than_a_bit_a_weight(tmp_path, tiny):
    """7.25 MB as published: here the mask's bits, the statistics, and some text."""
    layout = Layout(32, 1, 64, 128)
    assert layout.count == 3_543_616
    assert save_model(model_of(layout, text=to_toml(tiny())), tmp_path / "m") <= 470_000


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_extreme_seeds_come_back(tmp_path, seed):
    model = Model(**(vars(model_of(Layout(16, 1, 2, 8))) | {"seed": seed}))
    save_model(model, tmp_path / "m")
    assert load_model(tmp_path / "m").seed == seed


def test_equal_models_are_equal_files(tmp_path):
    for name in "ab":
        save_model(model_of(LAYOUTS[0]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ------------------------------------------------------------------------------------------ damage


def test_missing_files_folders_and_empty_files_are_refused(tmp_path, load_bytes):
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_model(tmp_path / "none")
    with pytest.raises(ModelFileError, match=r"is a folder without model\.safetensors"):
        load_model(tmp_path)
    with pytest.raises(ModelFileError):
        load_bytes(b"")


def test_impossible_paths_are_refused():
    with pytest.raises(ModelFileError):
        load_model("a\0b")


def test_every_truncation_is_refused(raw, load_bytes):
    for end in {*range(20), *range(0, len(raw), 41), header_end(raw) - 1, header_end(raw), len(raw) - 1}:
        with pytest.raises(ModelFileError):
            load_bytes(raw[:end])


def test_added_bytes_are_refused(raw, load_bytes):
    for content in (raw + b"\0", b"\0" + raw, raw + raw):
        with pytest.raises(ModelFileError):
            load_bytes(content)


@pytest.fixture(scope="module")
def survivors(raw, tmp_path_factory):
    """Places at which a flipped bit goes unnoticed; another exception than ModelFileError passes through."""
    path, found = tmp_path_factory.mktemp("flips") / "m", []
    for place in [*range(0, header_end(raw), 3), *range(header_end(raw), len(raw))]:
        changed = bytearray(raw)
        changed[place] ^= 1 << place * 5 % 8
        path.write_bytes(changed)
        try:
            load_model(path)
        except ModelFileError:
            continue
        found.append(place)
    return found


def test_flipped_bits_in_mask_and_statistics_are_refused(raw, survivors):
    assert all(place < header_end(raw) for place in survivors)


def test_flipped_bits_anywhere_are_refused(survivors):
    assert survivors == []


@pytest.mark.parametrize("claim", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_claimed_header_lengths_are_checked(raw, load_bytes, claim):
    with pytest.raises(ModelFileError):
        load_bytes(claim.to_bytes(8, "little") + raw[8:])


@pytest.mark.parametrize("noise", [b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"{}", b"\x80\x04K\x01.", b"PRSM"])
def test_files_of_other_kinds_are_refused(load_bytes, noise):
    for content in (noise, noise + bytes(5000), noise * 999):
        with pytest.raises(ModelFileError):
            load_bytes(content)


def rewritten(raw, tensors=None, **changes):
    """The file with changed tensors or metadata, and a right checksum unless it is changed too."""
    from prismfl.generator.modelfile import _content_hash

    held = load_tensors(raw) | (tensors or {})
    held = {name: array for name, array in held.items() if array is not None}
    about = json.loads(json.loads(raw[8 : header_end(raw)])["__metadata__"]["prismfl"])
    about = {k: v for k, v in (about | changes).items() if v is not None and k != "sha256"}
    about |= {"sha256": _content_hash(about, held)} | {k: v for k, v in changes.items() if k == "sha256" and v}
    if "sha256" in changes and changes["sha256"] is None:
        del about["sha256"]
    return save_tensors(held, {"prismfl": json.dumps(about)})


def test_an_unchanged_copy_is_accepted(raw, load_bytes):
    assert load_bytes(rewritten(raw)).seed == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "another"},
        {"format": "prismfl-model-1"},
        {"format": None},
        {"seed": 4},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": "3"},
        {"seed": 3.5},
        {"seed": None},
        {"layout": None},
        {"layout": {}},
        {"layout": 7},
        {"layout": {"size": 16, "channels": 1, "width": 2, "latent": 8, "depth": 1}},
        {"layout": {"size": 17, "channels": 1, "width": 2, "latent": 8}},
        {"layout": {"size": 32, "channels": 1, "width": 2, "latent": 8}},
        {"layout": {"size": 16, "channels": 1, "width": 1, "latent": 8}},
        {"layout": {"size": 16, "channels": 1, "width": 2, "latent": 10**12}},
        {"layout": {"size": 16, "channels": 1, "width": 10**300, "latent": 8}},
        {"layout": {"size": 16, "channels": 1, "width": "2", "latent": 8}},
        {"layout": {"size": 16, "channels": 1, "width": 2, "latent": 8.5}},
        {"signs_sha256": "0" * 32},
        {"signs_sha256": None},
        {"sha256": "0" * 32},
        {"sha256": None},
        {"settings": None},
        {"ledger": None},
        {"ledger": 3},
        {"labels": None},
        {"labels": ["a"]},
    ],
    ids=str,
)
def test_foreign_metadata_is_refused(raw, load_bytes, changes):
    with pytest.raises(ModelFileError):
        load_bytes(rewritten(raw, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": {"size": 16.0, "channels": 1, "width": 2, "latent": 8, "classes": 0}},
        {"settings": 7},
        {"ledger": "none"},
    ],
    ids=str,
)
def test_metadata_of_other_types_is_refused(raw, load_bytes, changes):
    with pytest.raises(ModelFileError):
        load_bytes(rewritten(raw, **changes))


@pytest.mark.parametrize(
    "labels",
    [[], ["a", "b"], ["a", "b", "c", "d"], [0, 1, 2], ["a", "b", None], ["a", "b", ["c"]], "abc", {"a": 0, "b": 1}, 3],
    ids=str,
)
def test_labels_that_are_not_one_name_each_are_refused(tmp_path, load_bytes, labels):
    save_model(model_of(Layout(16, 1, 2, 8, classes=3)), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    assert load_bytes(rewritten(whole, labels=["a", "b", "c"])).labels == ("a", "b", "c")
    with pytest.raises(ModelFileError):
        load_bytes(rewritten(whole, labels=labels))


@pytest.mark.parametrize(
    "tensors",
    [
        {"mask": None},
        {"norm_mean": None},
        {"mask": np.zeros(0, np.uint8)},
        {"mask": np.zeros(202, np.uint8)},
        {"mask": np.zeros(204, np.uint8)},
        {"mask": np.full(203, 255, np.uint8)},
        {"mask": np.zeros(203, np.float32)},
        {"norm_var": np.zeros(3, np.float32)},
        {"norm_var": np.zeros(0, np.float32)},
        {"norm_mean": np.full(20, np.nan, np.float32)},
        {"norm_var": np.full(20, np.inf, np.float32)},
        {"norm_mean": np.zeros(20, np.float64)},
        {"norm_mean": np.zeros((20, 1), np.float32)},
    ],
    ids=lambda tensors: "-".join(f"{k}{'' if v is None else v.shape}" for k, v in tensors.items()),
)
def test_foreign_tensors_are_refused(raw, load_bytes, tensors):
    layout = Layout(16, 1, 2, 8)
    assert ((layout.count + 7) // 8, sum(layout.norms)) == (203, 20)
    with pytest.raises(ModelFileError):
        load_bytes(rewritten(raw, tensors))


def test_safetensors_of_others_are_refused(load_bytes):
    zeros = {"a": np.zeros(3)}
    for metadata in (None, {}, {"other": "x"}, {"prismfl": ""}, {"prismfl": "[]"}, {"prismfl": "{}"}, {"prismfl": "7"}):
        with pytest.raises(ModelFileError):
            load_bytes(save_tensors(zeros, metadata))


def test_deeply_nested_metadata_is_refused(load_bytes):
    with pytest.raises(ModelFileError):
        load_bytes(save_tensors({"a": np.zeros(3)}, {"prismfl": "[" * 200_000}))


def test_negative_variances_are_refused(raw, load_bytes):
    with pytest.raises(ModelFileError):
        load_bytes(rewritten(raw, {"norm_var": np.full(20, -1, np.float32)}))


def test_a_model_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match="cannot write"):
        save_model(model_of(LAYOUTS[0]), tmp_path / "file" / "model.safetensors")
