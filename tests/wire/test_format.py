"""The worked example of docs/wire-format.md is what this version writes and reads."""

import re
from pathlib import Path

import numpy as np
import pytest

from prismfl.seeding.philox import Purpose
from prismfl.server import Step, advance, public_dither
from prismfl.settings.schema import Federation
from prismfl.wire import frames as message
from prismfl.wire.frames import Place
from prismfl.wire.masks import SharedKnowledge, decode_mask, decode_step, encode_mask, encode_step, flip_contexts
from prismfl.wire.uniforms import Draws, baseline

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "wire-format.md"
Q = np.full(256, 32768, np.uint16)
MINE = np.repeat(np.array([34000, 31500], np.uint16), 128)
KNOWN = SharedKnowledge(Q, np.repeat(np.array([0, 1], np.uint8), 128), 2)
DRAWS = Draws("stratified", ((256, 1),), 0, 0, 1)
KEPT, DROPPED = [41, 70, 91, 99], [174, 243]


@pytest.fixture(scope="module")
def frames():
    """The two frames of the page, from its blocks of hexadecimal digits."""
    example = PAGE.read_text().split("## A worked example")[1]
    return [bytes.fromhex(block) for block in re.findall(r"```\n([0-9a-f \n]+)```", example)]


def test_the_update_is_the_one_on_the_page(frames):
    place = Place(message.run_id("example"), 0, 0)
    update = message.open_update(frames[0], place, 33, 0)
    assert (len(frames[0]), update.weight, update.loss, update.alpha) == (70, 1, 0.5, b"")
    assert update.digest == message.digest_of(Q)
    u = DRAWS.uniforms(0, 0)
    assert u[:4].tolist() == [29669, 11726, 57919, 4936]
    mask = decode_mask(update.mask, u, KNOWN)
    np.testing.assert_array_equal(mask, u < MINE)
    assert np.flatnonzero(mask != (u < Q)).tolist() == [*KEPT, *DROPPED]
    near, _, _ = flip_contexts(u, KNOWN, update.mask[1])
    assert (update.mask[:6], near.sum()) == (bytes((1, 6, 0, 0, 0, 0)), 10)
    assert encode_mask(mask, u, KNOWN) == update.mask
    assert message.seal_update(update, place) == frames[0]


def test_the_broadcast_is_the_one_on_the_page(frames):
    place = Place(message.run_id("example"), 1, 0)
    told = message.open_broadcast(frames[1], place, 256)
    assert (len(frames[1]), told.first, told.rank, told.cohort, len(told.steps)) == (85, 0, 0, 1, 1)
    cohort, replied, body = message.unpack_step(told.steps[0])
    assert (cohort, replied) == (1, [0])
    base = baseline(DRAWS, Q, [(0, 0)])
    net, alpha = decode_step(body, base, KNOWN)
    assert np.flatnonzero(net > 0).tolist() == KEPT and np.flatnonzero(net < 0).tolist() == DROPPED
    assert encode_step(net, alpha, base, KNOWN) == body
    dither = public_dither(0, Purpose.ROUNDING, 0, 256)
    assert told.digest == message.digest_of(advance(Q, Step(net, alpha), base, Federation(), dither).q)
