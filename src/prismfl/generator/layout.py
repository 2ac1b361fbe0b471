"""Shapes, offsets and scales of a generator's layers: pure data, needing NumPy alone.

The generator is the paper's: a 4×4 transposed convolution, then one upsampling residual block a
doubling of the size, BatchNorm and ReLU, a 3×3 convolution, tanh.  Its weights are one flat
vector; a layer is a stretch of it.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import SettingError
from prismfl.seeding.philox import Purpose, Stream

SIZES = (16, 32, 64)
SOFT_ONE = 15  # of a soft mask: a weight that is kept whole

# A binary mask, bool `[N]`; or a soft one, uint8 `[N]`, by how many fifteenths each weight is kept.
Mask = NDArray[np.bool_] | NDArray[np.uint8]
# A label's shift of ±1 or 0 has, over kept and dropped weights, half the variance that latents have.
_LABEL_FAN_IN = 2


@dataclass(frozen=True)
class Layer:
    """One weight tensor: a stretch of the flat vector, and the size of its frozen weights."""

    name: str
    shape: tuple[int, ...]
    offset: int
    scale: float

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def stage(self) -> str:
        """What it belongs to: `input`, `block0` …, `output`."""
        return self.name.partition(".")[0]

    @property
    def of_labels(self) -> bool:
        """Whether its weights say what a label changes."""
        return self.name.endswith(".label")

    @property
    def span(self) -> slice:
        """Where the layer lies in the flat vector."""
        return slice(self.offset, self.offset + self.count)


@dataclass(frozen=True)
class Layout:
    """The shape of a generator: what its layers are, and where each lies in the flat vector of N weights.

    Attributes:
        size: pixels a side, 16, 32 or 64.
        channels: of the images, 1 or 3.
        width: channels of the last block.
        latent: normals an image is made from.
        classes: 0, or the number of labels, each of which shifts the first map entry by entry and every
            block's output channel by channel.

    Raises:
        SettingError: when a number is impossible.

    Examples:
        >>> layout = Layout(size=32, channels=3, width=8, latent=64)
        >>> layout.widths, layout.count
        ((64, 32, 16, 8), 104728)
        >>> [layer.name for layer in layout.layers[:4]]
        ['input', 'block0.first', 'block0.second', 'block0.short']
    """

    size: int
    channels: int
    width: int
    latent: int
    classes: int = 0

    def __post_init__(self) -> None:
        if any(type(value) is not int for value in (self.size, self.channels, self.width, self.latent, self.classes)):
            raise SettingError(f"a layout of {self}", "whole numbers", "change them")
        if self.size not in SIZES or self.channels not in (1, 3):
            raise SettingError(
                f"size {self.size}, channels {self.channels}",
                "size 16, 32 or 64, channels 1 or 3",
                "choose one of these",
            )
        if min(self.width, self.latent) < 1 or self.classes < 0:
            raise SettingError(
                f"width {self.width}, latent {self.latent}, classes {self.classes}",
                "width ≥ 1, latent ≥ 1, classes ≥ 0",
                "raise them",
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first block and after each: `(8w, 4w, 2w, w)` at 32 pixels."""
        blocks = int(math.log2(self.size)) - 2
        return tuple(self.width << power for power in range(blocks, -1, -1))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers in forward order."""
        widths, found, offset = self.widths, list[Layer](), 0
        shapes: list[tuple[str, tuple[int, ...], int]] = []
        shapes.append(("input", (self.latent, widths[0], 4, 4), self.latent))
        if self.classes:
            shapes.append(("input.label", (self.classes, widths[0], 4, 4), _LABEL_FAN_IN))
        for index, (before, after) in enumerate(pairwise(widths)):
            shapes.append((f"block{index}.first", (after, before, 3, 3), 9 * before))
            shapes.append((f"block{index}.second", (after, after, 3, 3), 9 * after))
            shapes.append((f"block{index}.short", (after, before, 1, 1), before))
            if self.classes:
                shapes.append((f"block{index}.label", (self.classes, after), _LABEL_FAN_IN))
        shapes.append(("output", (self.channels, widths[-1], 3, 3), 9 * widths[-1]))
        for name, shape, fan_in in shapes:
            found.append(Layer(name, shape, offset, math.sqrt(2 / fan_in)))
            offset += found[-1].count
        return tuple(found)

    @property
    def count(self) -> int:
        """Number of weights N."""
        last = self.layers[-1]
        return last.offset + last.count

    @cached_property
    def layer_numbers(self) -> NDArray[np.uint8]:
        """The number of each weight's layer, in forward order: uint8 `[N]`."""
        return np.repeat(np.arange(len(self.layers), dtype=np.uint8), [layer.count for layer in self.layers])

    def dealt(self, parts: int) -> tuple[tuple[int, int], ...]:
        """Weights and parts of each layer where they are dealt by stages.

        A stage is what has one map size: the input, a block, the output.  The largest is dealt into `parts`, others
        into fewer by the square root of their size; the labels' weights, which few clients move, into one.
        """
        sizes: dict[str, int] = {}
        for layer in self.layers:
            sizes[layer.stage] = sizes.get(layer.stage, 0) + layer.count * (not layer.of_labels)
        most = max(sizes.values())
        return tuple(
            (layer.count, 1 if layer.of_labels else max(1, round(parts * (sizes[layer.stage] / most) ** 0.5)))
            for layer in self.layers
        )

    @cached_property
    def norms(self) -> tuple[int, ...]:
        """Channels of each BatchNorm in forward order: two a block, one before the output."""
        widths = self.widths
        return (*(channels for pair in pairwise(widths) for channels in pair), widths[-1])

    def alpha_start(self, alpha: float) -> int:
        """First weight of the last `alpha` share of the layers, which send keep-probabilities.

        Layers are counted from the output; `ceil(alpha × layers)` of them belong to the share.
        """
        taken = math.ceil(alpha * len(self.layers) - 1e-9)
        return self.layers[len(self.layers) - taken].offset if taken else self.count


@lru_cache(maxsize=4)
def frozen_signs(layout: Layout, seed: int) -> NDArray[np.int8]:
    """Signs of the frozen weights, from the seed alone: int8 `[N]` of -1 and +1."""
    signs = (2 * Stream(seed, Purpose.WEIGHTS).bits(layout.count).astype(np.int8) - 1).astype(np.int8)
    signs.setflags(write=False)
    return signs


@lru_cache(maxsize=4)
def frozen_weights(layout: Layout, seed: int) -> NDArray[np.float32]:
    """Frozen weights ±sqrt(2 / fan_in), Kaiming-constant as in PRISM.

    Args:
        layout: the generator's shape.
        seed: of the signs.

    Returns:
        float32 `[N]`, not to be written to.

    Examples:
        >>> layout = Layout(size=16, channels=1, width=2, latent=8)
        >>> weights = frozen_weights(layout, seed=0)
        >>> np.unique(weights[layout.layers[0].span]).tolist()
        [-0.5, 0.5]
    """
    weights = frozen_signs(layout, seed).astype(np.float32)
    for layer in layout.layers:
        weights[layer.span] *= np.float32(layer.scale)
    weights.setflags(write=False)
    return weights


def soft_mask(q: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """θ = q / 65536 as a soft mask: uint8 `[N]` of 0 … 15."""
    return ((q.astype(np.uint32) * SOFT_ONE + 32768) >> 16).astype(np.uint8)


def kept_weights(layout: Layout, seed: int, mask: Mask) -> NDArray[np.float32]:
    """What a finished network computes with: frozen weights as far as a mask keeps them.

    Args:
        layout: the generator's shape.
        seed: of the frozen weights.
        mask: bool `[N]`, or soft uint8 `[N]` of 0 … 15.

    Returns:
        float32 `[N]`.
    """
    weights = frozen_weights(layout, seed)
    return weights * mask if mask.dtype == np.bool_ else weights * (mask.astype(np.float32) / np.float32(SOFT_ONE))
