"""The counter generator against published vectors, an independent scalar version, and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prismfl.errors import SettingError
from prismfl.seeding import philox as seeding
from prismfl.seeding.philox import Purpose, Stream, normal_table, philox, torch_philox

# Random123, kat_vectors, philox4x32 10: counter, key, output.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

streams = st.builds(
    Stream,
    seed=st.integers(0, 2**64 - 1),
    purpose=st.sampled_from(Purpose),
    round=st.integers(0, 2**32 - 1),
    client=st.integers(0, 2**32 - 1),
)
counts = st.integers(0, 97)


def scalar_philox(counter, key):
    """One block with Python's integers, as the paper's pseudocode has it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = divmod(0xD2511F53 * c[0], 2**32), divmod(0xCD9E8D57 * c[2], 2**32)
        c = [right[0] ^ c[1] ^ k[0], right[1], left[0] ^ c[3] ^ k[1], left[1]]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "output"), PUBLISHED)
def test_published_vectors(counter, key, output):
    columns = tuple(np.array([word], np.uint64) for word in counter)
    assert tuple(philox(columns, key)[0].tolist()) == output
    tensors = tuple(torch.tensor([word], dtype=torch.int64) for word in counter)
    assert tuple(torch_philox(tensors, key)[0].tolist()) == output


@given(streams)
def test_words_are_the_blocks_that_the_docstring_names(stream):
    words = stream.words(11).tolist()
    key = (stream.seed % 2**32, stream.seed >> 32)
    for index in (0, 3, 4, 10):
        block = scalar_philox((index // 4, stream.round, stream.client, stream.purpose), key)
        assert words[index] == block[index % 4]


@given(streams, counts)
def test_torch_and_numpy_agree(stream, count):
    np.testing.assert_array_equal(stream.torch_words(count).numpy(), stream.words(count))


@given(streams, counts, counts)
def test_a_shorter_draw_is_the_start_of_a_longer_one(stream, few, more):
    for draw in (stream.words, stream.halves, stream.bits, stream.normals):
        np.testing.assert_array_equal(draw(few), draw(few + more)[:few])


@given(streams)
def test_halves_and_bits_are_cut_from_the_words(stream):
    words = [int(word) for word in stream.words(5)]
    assert stream.halves(10).tolist() == [part for word in words for part in (word % 65536, word // 65536)]
    assert stream.bits(160).tolist() == [word >> place & 1 for word in words for place in range(32)]


@pytest.mark.parametrize(
    "other",
    [
        Stream(8, Purpose.MASK, 3, 4),
        Stream(7 + 2**32, Purpose.MASK, 3, 4),
        Stream(7, Purpose.SEARCH, 3, 4),
        Stream(7, Purpose.MASK, 4, 4),
        Stream(7, Purpose.MASK, 3, 5),
        Stream(7, Purpose.MASK, 4, 3),
    ],
)
def test_streams_that_differ_in_one_number_share_nothing(other):
    mine, theirs = Stream(7, Purpose.MASK, 3, 4).words(2000), other.words(2000)
    assert (mine == theirs).sum() == 0
    flips = np.unpackbits((mine ^ theirs).view(np.uint8)).mean()
    assert abs(flips - 0.5) < 0.01  # 64,000 fair bits: five standard deviations


def test_words_are_uniform():
    words = Stream(1, Purpose.MASK).halves(200_000)
    assert stats.chisquare(np.bincount(words >> 8, minlength=256)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(words & 255, minlength=256)).pvalue > 1e-4
    assert abs(np.corrcoef(words[:-1], words[1:])[0, 1]) < 0.012


def test_normals_follow_the_normal_distribution():
    draws = Stream(3, Purpose.LATENT).normals(200_000).astype(np.float64)
    assert abs(draws.mean()) < 0.012
    assert abs(draws.var() - 1) < 0.02
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    levels = np.array([0.001, 0.025, 0.5, 0.975, 0.999])
    np.testing.assert_allclose(np.quantile(draws, levels), stats.norm.ppf(levels), atol=0.08)


def test_normal_table_is_scipys_quantiles_and_odd():
    table = normal_table()
    np.testing.assert_allclose(table, stats.norm.ppf((np.arange(65536) + 0.5) / 65536), rtol=2e-7)
    np.testing.assert_array_equal(table, -table[::-1])
    assert (np.diff(table) > 0).all()


@given(streams, st.integers(1, 200))
def test_permutation_is_one(stream, count):
    assert sorted(stream.permutation(count).tolist()) == list(range(count))


def test_permutations_are_fair():
    places = np.zeros((4, 4), int)
    for turn in range(2000):
        places[np.arange(4), Stream(0, Purpose.RANKS, turn).permutation(4)] += 1
    assert stats.chisquare(places.reshape(-1)).pvalue > 1e-4


@given(streams, st.integers(0, 300), st.integers(0, 2**31))
def test_compiled_words_are_numpys(stream, count, block):
    compiled = stream.words(count, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeding, "_philox", None)
        np.testing.assert_array_equal(compiled, stream.words(count, block))
    np.testing.assert_array_equal(compiled, stream.torch_words(count, block=block))


@given(streams, st.integers(0, 90), st.integers(0, 40))
def test_a_block_is_where_a_stream_is_read_on(stream, count, block):
    np.testing.assert_array_equal(stream.words(count, block), stream.words(4 * block + count)[4 * block :])
    np.testing.assert_array_equal(stream.halves(count, block), stream.halves(8 * block + count)[8 * block :])


@pytest.mark.skipif(seeding._philox is None, reason="no compiler was there")
@pytest.mark.parametrize(
    ("out", "block", "error"),
    [
        (np.zeros(4, np.uint64), 0, ValueError),
        (np.zeros(9, np.uint8)[1:], 0, ValueError),
        (np.zeros(8, np.uint32)[::2], 0, TypeError),
        (np.frombuffer(bytes(16), np.uint32), 0, TypeError),
        (np.zeros(64, np.uint32), 2**32 - 2, ValueError),
        (np.zeros(4, np.uint32), -1, ValueError),
        (np.zeros(4, np.uint32), 2**40, ValueError),
    ],
    ids=[
        "eight bytes",
        "unaligned",
        "strided",
        "constant",
        "to beyond the last block",
        "negative",
        "beyond the last block",
    ],
)
def test_what_the_compiled_words_cannot_be_written_to_is_refused(out, block, error):
    with pytest.raises(error):
        seeding._philox.words(out, block, 0, 0, 0, 0, 0)


def test_torch_generator_repeats_itself_and_differs_between_streams():
    def draw(stream):
        return torch.rand(8, generator=stream.torch_generator())

    assert torch.equal(draw(Stream(1, Purpose.SEARCH)), draw(Stream(1, Purpose.SEARCH)))
    assert not torch.equal(draw(Stream(1, Purpose.SEARCH)), draw(Stream(1, Purpose.SEARCH, 1)))


@pytest.mark.parametrize(
    ("seed", "turn", "client"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 2**32, 0), (0, 0, -1), (0, 0, 2**32)]
)
def test_numbers_that_do_not_fit_are_refused(seed, turn, client):
    with pytest.raises(SettingError, match="expected a whole number ≥ 0 and < 2"):
        Stream(seed, Purpose.MASK, turn, client)


def test_the_largest_numbers_fit():
    assert len(Stream(2**64 - 1, Purpose.MASK, 2**32 - 1, 2**32 - 1).words(3)) == 3


def test_purposes_keep_their_numbers():
    numbers = {
        "WEIGHTS": 0,
        "MASK": 1,
        "RANKS": 2,
        "ROUNDING": 3,
        "LATENT": 4,
        "COHORT": 5,
        "SEARCH": 6,
        "PARTITION": 7,
        "STATISTICS": 8,
        "SHIPPED": 9,
        "CLASSIFIER": 10,
    }
    assert {name: int(Purpose[name]) for name in numbers} == numbers


def test_the_cached_table_cannot_be_changed():
    assert not normal_table().flags.writeable
