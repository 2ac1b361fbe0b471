"""What is compiled gives, byte for byte, what NumPy and constriction give, and takes no argument that does not fit."""

import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl import server
from prismfl.errors import MessageError
from prismfl.wire import codec, coder, draws, native
from prismfl.wire.codec import Entries
from prismfl.wire.draws import Draws
from prismfl.wire.flags import FlagReader, FlagWriter

pytestmark = pytest.mark.skipif(native.fast is None, reason="prismfl.wire._fast is not built")

SHAPE, CELLS = (5, 4, 3), 60
seeds = st.integers(0, 2**32)
draws_kinds = "stratified", "independent"


def both(work):
    """What the work gives, compiled and not; or that it was refused."""
    found, kept = [], native.fast
    for native.fast in (kept, None):
        codec._packed_theta.cache_clear()
        codec._unpacked_theta.cache_clear()
        try:
            found.append(work())
        except MessageError as error:
            found.append(str(error))
        finally:
            native.fast = kept
    return found


def alike(work):
    """The one thing that the work gives both ways."""
    fast, slow = both(work)
    assert type(fast) is type(slow)
    for one, other in zip(fast, slow, strict=True) if isinstance(fast, tuple) else [(fast, slow)]:
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        np.testing.assert_array_equal(one, other)
    return fast


def world(seed, count, moved=0.1, depth=3):
    """θ_t, θ_k about `moved` away from it, and u."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 65536, count)
    mine = np.clip(q + rng.normal(0, moved * 65536, count), 0, 65535).astype(np.uint16)
    layers = np.sort(rng.integers(0, depth, count)).astype(np.uint8)
    return Entries(q.astype(np.uint16), layers, depth), mine, rng.integers(0, 65536, count).astype(np.uint16)


def damaged(raw, rng):
    """Some bytes changed, or words cut off or added."""
    raw = bytearray(raw)
    for _ in range(rng.integers(0, 4)):
        if raw:
            raw[rng.integers(len(raw))] = rng.integers(256)
    return bytes(raw[: len(raw) - 4 * rng.integers(0, 2)] + rng.bytes(4 * rng.integers(0, 2)))


# --------------------------------------------------------------------------------------- whole messages


@settings(max_examples=80, deadline=None)
@given(seeds, st.integers(0, 3000), st.sampled_from([0.0, 0.003, 0.03, 0.2, 1.0]))
def test_masks_are_the_same_bytes_and_come_back_the_same_even_damaged(seed, count, moved):
    known, mine, u = world(seed, count, moved)
    mask, rng = u < mine, np.random.default_rng(seed)
    raw = alike(lambda: codec.encode_mask(mask, u, known))
    np.testing.assert_array_equal(alike(lambda: codec.decode_mask(raw, u, known)), mask)
    for _ in range(3):
        changed = damaged(raw, rng)
        alike(lambda changed=changed: codec.decode_mask(changed, u, known))


@pytest.mark.parametrize("moved", [0.002, 0.02, 0.4])
def test_large_masks_are_the_same_bytes(moved):
    known, mine, u = world(1, 700_000, moved, 12)
    raw = alike(lambda: codec.encode_mask(u < mine, u, known))
    alike(lambda: codec.decode_mask(raw, u, known))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(0, 1500), st.integers(0, 7), st.integers(1, 3), st.sampled_from(draws_kinds))
def test_baselines_and_steps_are_the_same(seed, count, clients, parts, kind):
    known, mine, _ = world(seed, count)
    drawn = Draws(kind, ((count // 3, parts), (count - count // 3, 4 - parts)), seed, 1, 7)
    replied = [(k, k) for k in range(clients)]

    def based():
        base = draws.baseline(drawn, known.q, replied)
        return base.clients, base.kept, base.below, base.above

    base = draws.Baseline(*alike(based))
    net = -base.kept.astype(np.int64)
    for k, _ in replied:
        net += (drawn.uniforms(k, k) < mine) & drawn.sent(k)
    changes = np.random.default_rng(seed).integers(-70_000, 70_000, count // 3) // 3
    more = Entries(
        np.concatenate((known.q, np.full(len(changes), 9, np.uint16))), np.zeros(count + len(changes), np.uint8), 3
    )
    raw = alike(lambda: codec.encode_step(net, changes, base, more))
    np.testing.assert_array_equal(alike(lambda: codec.decode_step(raw, base, more))[0], net)
    changed = damaged(raw, np.random.default_rng(seed))
    alike(lambda: codec.decode_step(changed, base, more))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(0, 1500), st.integers(1, 300))
def test_thetas_and_moments_are_the_same_bytes(seed, count, kinds):
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 65536, kinds)[rng.integers(0, kinds, count)].astype(np.uint16)
    raw = alike(lambda: codec.pack_theta(q))
    np.testing.assert_array_equal(alike(lambda: codec.unpack_theta(raw, count)), q)
    changed = damaged(raw, rng)
    alike(lambda: codec.unpack_theta(changed, count))
    moments = rng.normal(0, 1, count + 1).astype(np.float32)
    step, raw = alike(lambda: codec.encode_moments(moments, 64))
    alike(lambda: codec.decode_moments(raw, step, count + 1))


@settings(max_examples=40)
@given(seeds, st.integers(0, 1200), st.integers(1, 2**20))
def test_votes_and_surprise_are_the_same(seed, count, weight):
    known, mine, u = world(seed, count)
    mask = u < mine
    alike(lambda: server.surprise(mask, u, known.q))
    alpha = np.arange(7, dtype=np.uint16)
    alike(lambda: server.add_reply(server.empty_tally(count + 7, 2), mask, alpha, weight, 1).votes)


# ------------------------------------------------------------------------------------------- the coder


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 6000))
def test_flags_and_integers_are_the_same_bytes(seed, count):
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, CELLS, count).astype(np.uint16)
    bits = rng.random(count) < rng.random(CELLS)[contexts] ** 6
    values = rng.integers(1, 2 ** rng.integers(1, 32, count))

    def write():
        writer = FlagWriter()
        writer.flags(bits, contexts, SHAPE)
        writer.integers(values * np.where(bits, -1, 1), contexts, SHAPE)
        return writer.done() + writer.done()

    raw = alike(write)
    raw = raw[: len(raw) // 2]
    for words in (raw, damaged(raw, rng), rng.bytes(4 * rng.integers(0, 40))):

        def read(words=words):
            reader = FlagReader(words)
            found = reader.flags(contexts, SHAPE), reader.integers(contexts, SHAPE)
            return (*found, reader._coder.finished())

        found = alike(read)
        if words is raw:
            np.testing.assert_array_equal(found[0], bits)
            assert found[2]


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_any_rungs_in_any_order_are_the_same_bytes(seed):
    """Also those flags that a rung makes nearly impossible."""
    rng = np.random.default_rng(seed)
    rungs = rng.integers(0, len(coder.ladder()), CELLS).astype(np.uint8)
    calls = []
    for _ in range(rng.integers(1, 5)):
        count = int(rng.integers(1, 400))
        contexts = rng.integers(0, CELLS, count).astype(np.uint16)
        piece = slice(int(rng.integers(0, 3)), count, int(rng.integers(1, 5)))
        calls.append((rng.random(count) < rng.random(), contexts, piece, rng.integers(0, 2**20, 9)))

    def write():
        writer, seen = coder.writer(), np.zeros(2 * CELLS, np.int64)
        for flags, contexts, piece, values in calls:
            writer.flags(flags, coder.Piece(contexts, piece, rungs, seen))
            writer.bits(values, 3, 1 + seed % 8)
        return writer.done(), seen

    raw, seen = alike(write)

    def read(words):
        reader, counted, found = coder.reader(words), np.zeros(2 * CELLS, np.int64), []
        for flags, contexts, piece, values in calls:
            found.append(np.zeros(len(flags), np.bool_))
            reader.flags(found[-1], coder.Piece(contexts, piece, rungs, counted))
            low = np.zeros(len(values), np.int64)
            reader.bits(low, 1 + seed % 8)
            found.append(low)
        return (*found, counted, reader.finished())

    found = alike(lambda: read(np.frombuffer(raw, "<u4").astype(np.uint32)))
    np.testing.assert_array_equal(found[-2], seen)
    assert found[-1]
    for (flags, _, piece, _), read_back in zip(calls, found[::2], strict=False):
        np.testing.assert_array_equal(read_back[piece], flags[piece])
    noise = rng.integers(0, 2**32, rng.integers(0, 60)).astype(np.uint32)
    alike(lambda: read(noise))


@pytest.mark.parametrize("resolved", [-1, 1])
@pytest.mark.parametrize("steps", [1, 4, 5, 12, 40])
def test_words_are_held_back_until_it_is_known_whether_one_is_carried(resolved, steps):
    """Each byte is chosen so that the interval goes on holding a word's border; the last one decides."""
    writer, values, rng = coder.FastWriter(), [], np.random.default_rng(steps)
    most = 0
    while most * 4 < steps:
        lower, span, held, _ = map(int, writer._state)
        inside = (2**64 - lower) // ((span >> 24) << 16) if held else int(rng.integers(0, 256))
        values.append(min(inside, 255))
        writer.bits(np.array(values[-1:]), 0, 8)
        most = max(most, int(writer._state[2]))
    values.append(int(np.clip(values[-1] + resolved, 0, 255)))

    def write():
        found = coder.writer()
        found.bits(np.array(values), 0, 8)
        whole = found.done()
        found.bits(np.array([255 if resolved > 0 else 0] * 9), 0, 8)
        return whole, found.done()

    raw = alike(write)[1]

    def read():
        back = np.zeros(len(values) + 9, np.int64)
        reader = coder.reader(np.frombuffer(raw, "<u4").astype(np.uint32))
        reader.bits(back, 8)
        return back, reader.finished()

    back, finished = alike(read)
    assert back[: len(values)].tolist() == values and finished


def test_the_tables_are_constrictions_models():
    cuts, ones, starts = coder.tables()
    assert cuts.shape == (len(coder.ladder()), 257) and starts.shape == (len(coder.ladder()), 1024)
    assert (cuts[:, 0] == 0).all() and (cuts[:, 256] == 1 << 24).all()
    assert (np.diff(cuts.astype(int), axis=1) > 0).all() and (ones > 0).all() and (ones < 1 << 24).all()
    np.testing.assert_allclose(1 - ones / 2**24, coder.ladder() / 8192, atol=1e-6)


def test_other_threads_run_meanwhile():
    u, layers, cells = np.zeros(4_000_000, np.uint16), np.zeros(4_000_000, np.uint8), np.empty(4_000_000, np.uint16)
    go, turns, interval = threading.Event(), [], sys.getswitchinterval()
    other = threading.Thread(target=lambda: (go.wait(), turns.append(1)))
    other.start()
    sys.setswitchinterval(1000)  # nobody is made to give way: the other runs only where the interpreter is released
    try:
        go.set()
        for _ in range(500):
            if not turns:
                native.fast.flip_cells(u, u, layers, 3, codec.levels(), 9, layers, cells)
        assert turns
    finally:
        sys.setswitchinterval(interval)
        other.join()


# --------------------------------------------------------------------------------------- bad arguments


def arguments():
    """Of each function, arguments that it takes."""
    state, words = np.array([0, 2**64 - 1, 0, 0], np.uint64), np.zeros(4, np.uint32)
    flags, contexts, seen = np.zeros(9, np.bool_), np.zeros(9, np.uint16), np.zeros(4, np.int64)
    piece = flags, contexts, 0, 9, 1, np.zeros(2, np.uint8), seen, *coder.tables()
    u, layers = np.arange(9, dtype=np.uint16), np.zeros(9, np.uint8)
    return {
        "write_flags": (state.copy(), *piece),
        "read_flags": (state.copy(), words, *piece),
        "write_bits": (state.copy(), np.arange(9), 0, 8),
        "read_bits": (state.copy(), words, np.arange(9), 8),
        "flip_cells": (u, u, layers, 3, codec.levels(), 256, flags, contexts.copy()),
        "pick": (flags, flags, flags.copy()),
        "spread": (flags, flags.copy(), flags),
        "phase_cells": (u, u, u, layers, 3, contexts.copy()),
        "meet": (u, u, u, 0, *np.zeros((4, 9), np.uint16)),
        "surprise": (flags, u, u),
        "vote": (flags, np.zeros(9, np.int64), 3),
    }


NAMES = [
    "write_flags", "read_flags", "write_bits", "read_bits", "flip_cells", "pick", "spread", "phase_cells", "meet",
    "surprise", "vote",
]  # fmt: skip
CASES = [(name, place) for name in NAMES for place in range(12)]


def worse(value):
    """What an argument must not be."""
    if isinstance(value, int):
        return ["x", None, 1.5, 2**70]
    other = np.float32 if value.itemsize == 2 else np.uint16
    unaligned = np.frombuffer(bytes(value.nbytes + 1), np.uint8)[1:].view(value.dtype) if value.itemsize > 1 else None
    return [7, "text", value.astype(other), np.repeat(value, 2)[::2], *([unaligned] if unaligned is not None else [])]


def test_every_function_is_tried():
    assert set(arguments()) == set(NAMES) == {name for name in dir(native.fast) if not name.startswith("_")}


@pytest.mark.parametrize(("name", "place"), CASES)
def test_what_does_not_fit_is_an_error(name, place):
    function, given = getattr(native.fast, name), list(arguments()[name])
    if place >= len(given):
        return
    function(*given)
    for bad in worse(given[place]):
        changed = [*given[:place], bad, *given[place + 1 :]]
        with pytest.raises((TypeError, ValueError, OverflowError, BufferError)):
            function(*changed)


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_arguments_is_an_error(name):
    given = arguments()[name]
    for some in ((), given[:-1], (*given, 1)):
        with pytest.raises(TypeError, match="number of arguments"):
            getattr(native.fast, name)(*some)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_another_length_are_an_error(name):
    given = arguments()[name]
    free = {"read_flags": {1}, "write_bits": {1}, "read_bits": {1, 2}, "spread": {2}}.get(name, set())
    for place, value in enumerate(given):
        if isinstance(value, np.ndarray) and place not in free:
            with pytest.raises(ValueError):
                getattr(native.fast, name)(*given[:place], value.reshape(-1)[:-1].copy(), *given[place + 1 :])


@pytest.mark.parametrize("change", [(0, -1), (1, -1), (1, 10), (2, 0), (2, -1), (0, 2**62), (1, 2**62)])
def test_a_piece_beyond_the_flags_is_an_error(change):
    for name, first in (("write_flags", 3), ("read_flags", 4)):
        given = list(arguments()[name])
        given[first + change[0]] = change[1]
        with pytest.raises(ValueError, match="piece"):
            getattr(native.fast, name)(*given)


@pytest.mark.parametrize("part", ["context", "rung"])
def test_a_context_or_a_rung_that_there_is_not_is_an_error(part):
    for name, first in (("write_flags", 2), ("read_flags", 3)):
        given = arguments()[name]
        given[first][4], given[first + 4][1] = (2, 0) if part == "context" else (1, len(coder.ladder()))
        with pytest.raises(IndexError, match="beyond"):
            getattr(native.fast, name)(*given)


def test_a_long_step_takes_the_first_flag_alone():
    given = list(arguments()["write_flags"])
    given[5] = 2**62
    native.fast.write_flags(*given)
    assert given[7].sum() == 1


@settings(max_examples=100)
@given(seeds)
def test_states_and_tables_of_noise_do_no_harm(seed):
    rng = np.random.default_rng(seed)
    for name, places in (("read_flags", (0, 9, 10, 11)), ("write_flags", (0, 8, 9, 10)), ("read_bits", (0,))):
        given = list(arguments()[name])
        for place in places:
            given[place] = np.frombuffer(rng.bytes(given[place].nbytes), given[place].dtype).reshape(-1).copy()
        if name == "write_flags":
            given[0][2] %= 50
        getattr(native.fast, name)(*given)
    given = list(arguments()["write_bits"])
    given[0][2] = 2**40
    with pytest.raises(ValueError, match="state"):
        native.fast.write_bits(*given)
