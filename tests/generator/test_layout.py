"""Shapes, offsets and scales; and golden hashes of the frozen signs, which hold for ever."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.errors import SettingError
from prismfl.generator.layout import Layout, frozen_signs, frozen_weights

# A change here breaks every model file ever written.
GOLDEN = [
    (Layout(16, 1, 2, 8), 0, "4601ad9f97b832e6f9c71d4a821cc7216943f8cbb2aa05eebf10c3951486d828"),
    (Layout(16, 3, 4, 8), 1, "ba325717acff30a675b6457aa44f264651bb2298cada910e438baf08c2ea5051"),
    (Layout(32, 1, 4, 16), 0, "eb4ce34a86376d703de5496160ccb11f14c65a3cc353209e150f972213a3b044"),
    (Layout(32, 3, 2, 8, 10), 2**64 - 1, "ba31f23816eff8382b0b95be94509dba5f75ea94ec65291083e7b21de2b32595"),
    (Layout(64, 1, 2, 8), 7, "1b4049c290337ab4fa5e81c1f30c3a91b1217d28d0e2e257e1ea48bbb382daea"),
    (Layout(64, 3, 2, 8), 0, "a179e8d8f733968f1920845c9e0b01cc99dea5666180ab60e53d965c09fbe186"),
    (Layout(32, 1, 64, 128), 0, "c761256acef59a2dedc35c47398b6e76687e14c503d96019bef41099e1b87356"),
]

layouts = st.builds(
    Layout,
    size=st.sampled_from((16, 32, 64)),
    channels=st.sampled_from((1, 3)),
    width=st.integers(1, 9),
    latent=st.integers(1, 40),
    classes=st.sampled_from((0, 1, 10)),
)


@pytest.mark.parametrize(("layout", "seed", "digest"), GOLDEN)
def test_frozen_signs_never_change(layout, seed, digest):
    assert hashlib.sha256(frozen_signs(layout, seed).tobytes()).hexdigest() == digest


def test_signs_are_fair_and_differ_between_seeds():
    layout = Layout(32, 1, 16, 64)
    signs = frozen_signs(layout, 0)
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 5 / math.sqrt(layout.count)
    assert abs((signs == frozen_signs(layout, 1)).mean() - 0.5) < 3 / math.sqrt(layout.count)


def test_the_papers_generator_has_about_three_and_a_half_million_weights():
    layout = Layout(32, 1, 64, 128)
    assert layout.widths == (512, 256, 128, 64)
    by_hand = 128 * 512 * 16 + 64 * 9
    by_hand += sum(9 * a * b + 9 * b * b + a * b for a, b in ((512, 256), (256, 128), (128, 64)))
    assert layout.count == by_hand
    assert 3.4e6 < layout.count < 3.6e6


def test_labels_add_a_map_and_a_shift_a_block():
    plain, labelled = Layout(32, 1, 16, 64), Layout(32, 1, 16, 64, classes=10)
    assert labelled.count - plain.count == 10 * (128 * 16 + 64 + 32 + 16)
    assert {layer.scale for layer in labelled.layers if layer.name.endswith(".label")} == {1.0}
    assert labelled.norms == plain.norms


@given(layouts)
def test_layers_tile_the_flat_vector(layout):
    end = 0
    for layer in layout.layers:
        assert layer.offset == end
        assert layer.count == math.prod(layer.shape) == layer.span.stop - layer.span.start
        end = layer.span.stop
    assert layout.count == end
    assert len({layer.name for layer in layout.layers}) == len(layout.layers)


@given(layouts)
def test_each_norm_has_the_channels_of_its_convolutions_input(layout):
    convolutions = [layer for layer in layout.layers if layer.name.endswith(("first", "second", "output"))]
    assert layout.norms == tuple(layer.shape[1] for layer in convolutions)


def test_scales_keep_the_variance_of_a_relu_layer():
    for layer in Layout(32, 3, 4, 16).layers:
        fan_in = layer.shape[0] if layer.name == "input" else math.prod(layer.shape[1:])
        assert layer.scale**2 * fan_in == pytest.approx(2)


def test_frozen_weights_are_signs_times_scales():
    layout = Layout(16, 3, 3, 5)
    weights, signs = frozen_weights(layout, 4), frozen_signs(layout, 4)
    for layer in layout.layers:
        np.testing.assert_array_equal(weights[layer.span], signs[layer.span] * np.float32(layer.scale))
    assert weights.dtype == np.float32


def test_cached_weights_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        frozen_weights(Layout(16, 1, 2, 8), 0)[0] = 0


def test_cached_signs_cannot_be_changed():
    assert not frozen_signs(Layout(16, 1, 2, 8), 0).flags.writeable


def test_smaller_stages_are_dealt_into_fewer_parts():
    layout = Layout(32, 1, 16, 64, 10)
    parts = {layer.name: parts for layer, (_, parts) in zip(layout.layers, layout.dealt(10), strict=True)}
    assert {name: number for name, number in parts.items() if ".label" not in name} == {
        "input": 10,
        **dict.fromkeys(("block0.first", "block0.second", "block0.short"), 10),
        **dict.fromkeys(("block1.first", "block1.second", "block1.short"), 5),
        **dict.fromkeys(("block2.first", "block2.second", "block2.short"), 2),
        "output": 1,
    }
    assert {number for name, number in parts.items() if ".label" in name} == {1}


@given(layouts, st.integers(1, 40))
def test_the_largest_stage_is_dealt_into_all_parts(layout, parts):
    dealt = layout.dealt(parts)
    assert [count for count, _ in dealt] == [layer.count for layer in layout.layers]
    assert min(number for _, number in dealt) >= 1 and max(number for _, number in dealt) == parts
    sizes, numbers = {}, {}
    for layer, (count, number) in zip(layout.layers, dealt, strict=True):
        if not layer.of_labels:
            sizes[layer.stage] = sizes.get(layer.stage, 0) + count
            assert numbers.setdefault(layer.stage, number) == number, "a stage is dealt as a whole"
    ordered = [numbers[stage] for stage in sorted(sizes, key=sizes.__getitem__)]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(("alpha", "taken"), [(0, 0), (0.01, 1), (1 / 8, 1), (0.126, 2), (0.5, 4), (0.8, 7), (1, 8)])
def test_alpha_takes_its_share_of_the_layers_from_the_output(alpha, taken):
    layout = Layout(16, 1, 2, 8)
    assert len(layout.layers) == 8
    assert layout.count - layout.alpha_start(alpha) == sum(layer.count for layer in layout.layers[8 - taken :])


def test_alpha_is_not_fooled_by_rounding():
    layout = Layout(32, 1, 2, 8)
    offsets = [layer.offset for layer in layout.layers] + [layout.count]
    for taken in range(12):
        assert layout.alpha_start(taken / 11) == offsets[11 - taken]
    alpha = sum([1 / 11] * 6)
    assert alpha * 11 > 6  # by one part in 10^16
    assert layout.alpha_start(alpha) == offsets[5]


@pytest.mark.parametrize(
    "numbers",
    [(8, 1, 2, 8), (33, 1, 2, 8), (32, 2, 2, 8), (32, 0, 2, 8), (32, 1, 0, 8), (32, 1, 2, 0), (32, 1, 2, 8, -1)],
)
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(SettingError):
        Layout(*numbers)
