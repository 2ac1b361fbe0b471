"""Pickles: plain values and arrays are read back, and nothing is ever executed."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import python2_batch

from prismfl.data.pickled import read_pickle
from prismfl.errors import DataError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), plain), st.integers(2, 5))
def test_plain_values_are_read_back(values, protocol):
    assert read_pickle(pickle.dumps(values, protocol), "x") == values


@given(st.binary(max_size=300), st.integers(2, 5))
def test_bytes_are_read_back(raw, protocol):
    assert read_pickle(pickle.dumps({"raw": raw, b"key": [raw]}, protocol), "x") == {"raw": raw, "key": [raw]}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["u1", "i1", "<i2", ">i4", "<u8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_back(protocol, kind, order):
    array = np.asarray(np.random.default_rng(1).integers(0, 100, (5, 7)).astype(kind), order=order)
    found = read_pickle(pickle.dumps({"a": array, "again": array, "n": 1}, protocol), "x")
    assert np.array_equal(found["a"], array) and found["a"].dtype == array.dtype
    assert np.array_equal(found["again"], array), "the second is a reference to the first"


def test_what_python_2_wrote_is_read_back():
    pixels, labels = np.arange(2 * 3072).astype(np.uint8).reshape(2, -1), [3, 250]
    found = read_pickle(python2_batch(pixels, labels), "x")
    assert set(found) == {"batch_label", "labels", "data", "filenames"}
    assert np.array_equal(found["data"], pixels) and found["labels"] == labels
    assert found["filenames"] == ["a\xe9.png", "b.png"], "Latin-1"


class Evil:
    """Whatever unpickles this calls what it is made of."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def marker(path):
    return [
        Evil(os.system, f"touch {path}"),
        Evil(eval, f"open({str(path)!r}, 'w')"),
        Evil(exec, f"open({str(path)!r}, 'w')"),
        Evil(io.open, str(path), "w"),
        Evil(getattr, "text", "upper"),
        Evil(np.save, str(path), 1),
        Evil(np.memmap, str(path), "u1", "w+", 0, (1,)),
        Evil(np.frombuffer, b"12"),
        Evil(np.dtype, "O"),
        Evil(np.ndarray, (1 << 40,)),
        Evil(pickle.loads, b"N."),
        Evil(bytearray, 1 << 40),
    ]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("which", range(12))
def test_a_malicious_pickle_is_refused_and_executes_nothing(tmp_path, protocol, which):
    path = tmp_path / "executed"
    raw = pickle.dumps({"data": marker(path)[which]}, protocol)
    with pytest.raises(DataError, match="evil is refused as a pickle"):
        read_pickle(raw, "evil")
    assert not path.exists()


def test_the_malicious_pickle_of_these_tests_does_execute_elsewhere(tmp_path):
    """Otherwise the test above would prove nothing."""
    for index in (0, 1, 2, 3, 5, 6):
        path = tmp_path / str(index)
        pickle.loads(pickle.dumps(marker(path)[index]))
        assert path.exists() or path.with_suffix(".npy").exists()


def program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


REBUILD = b"cnumpy.core.multiarray\n_reconstruct\n"
NAMES = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy.core.multiarray\n_reconstruct.x\n"]
HAND_MADE = {
    "a name that is never called": [program(b"}", b"U\x01a", name, b"s") for name in NAMES],
    "a known name as a value": [program(b"}", b"U\x01a", b"cnumpy\nndarray\n", b"s")],
    "rebuilding another class": [program(b"}", b"U\x01a", REBUILD, REBUILD, b"\x85R", b"s")],
    "calling a value": [program(b"}", b"U\x01a", b"U\x01b", b")R", b"s")],
    "objects of a class": [program(b"}", b"U\x01a", b"cnumpy\nndarray\n", b")\x81", b"s")],
    "the extension registry": [program(b"}", b"U\x01a", b"\x82\x01", b"s")],
    "a persistent name": [program(b"}", b"U\x01a", b"Pfile\n", b"s")],
    "a buffer from outside": [program(b"}", b"U\x01a", b"\x97", b"s")],
    "the old way to make objects": [program(b"}", b"U\x01a", b"(ios\nsystem\n", b"s")],
    "an array without content": [program(b"}", b"U\x01a", REBUILD, b"cnumpy\nndarray\n", b"\x85R", b"s")],
    "an array of a number of bytes": [
        program(
            b"}U\x01a",
            REBUILD,
            b"cnumpy\nndarray\n",
            b"\x85R(K\x01K\x01\x85cnumpy\ndtype\nU\x02u1\x85R\x89J\xff\xff\xff\x7ftbs",
        )
    ],
    "objects as an array's type": [program(b"}U\x01a", b"cnumpy\ndtype\nU\x01O\x85R", b"s")],
    "no dictionary": [program(b"]"), program(b"K\x01"), program(b"N")],
    "a key that is a list": [program(b"}", b"]", b"N", b"s")],
    "a memo that is empty": [program(b"h\x07")],
    "a stack that is empty": [program(), program(b"s"), program(b"\x87"), program(b"t"), program(b"b"), program(b"R")],
    "no end": [program(b"}")[:-1], b"", b"\x80"],
    "a text that is cut short": [b"\x80\x02T" + struct.pack("<i", 100) + b"short"],
    "no pickle": [b"hello world", b"\xff\xd8\xff", b"<html>"],
}


@pytest.mark.parametrize(("what", "raw"), [(what, raw) for what, raws in HAND_MADE.items() for raw in raws])
def test_programs_that_are_no_data_are_refused(what, raw):
    with pytest.raises(DataError, match="x is refused as a pickle"):
        read_pickle(raw, "x")


WHOLE = python2_batch(np.zeros((2, 30), np.uint8), [1, 2])


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.binary(max_size=4))
def test_any_damage_is_read_or_refused(place, byte, tail):
    for raw in (WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :], WHOLE[:place] + tail):
        try:
            assert isinstance(read_pickle(raw, "x"), dict)
        except DataError as error:
            assert str(error).startswith("x is refused")


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(raw):
    try:
        assert isinstance(read_pickle(b"\x80\x02}" + raw, "x"), dict)
    except DataError as error:
        assert str(error).startswith("x is refused")
