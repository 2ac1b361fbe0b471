"""Images from a finished model with NumPy alone: `load(path).sample(n)`, wherever Python runs.

The same latents give the same images as PyTorch does, but for a rounding of one grey level.  What makes
it quick: BatchNorm is folded into the weights once; a doubling and the 3×3 convolution behind it are one
2×2 convolution with four times the channels; the batch is the innermost axis, so that every copy and sum
runs over contiguous memory; and matrices are worked on in strips that fit the processor's cache.

    python -m prismfl.runtime MODEL --count 8 --out grid.png
"""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from prismfl.data.files import write_atomic
from prismfl.errors import DependencyError, PrismError
from prismfl.generator.layout import Layout, kept_weights
from prismfl.generator.modelfile import Model, load_model
from prismfl.generator.pictures import image_grid, save_picture
from prismfl.generator.sampler import ModelSampler
from prismfl.seeding.philox import Purpose, Stream

EPSILON = 1e-5  # of BatchNorm, as in training
_BATCH = 32  # images together: contiguous runs of a few vector registers
_STRIP = 120_000  # entries of the matrix of windows made at a time: half a megabyte

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Runtime(ModelSampler):
    """A finished model ready to make images without PyTorch.

    Attributes:
        model: what the model file holds.
    """

    def render(self, seed: int, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images of the public latents of a seed, by label.

        Args:
            seed: of the latents.
            labels: int64 `[n]`, below the model's number of labels; 0 where it takes none.

        Returns:
            uint8 `[n, C, H, W]`, within one grey level of PyTorch's.
        """
        layout, count = self.model.layout, len(labels)
        latents = Stream(seed, Purpose.LATENT).normals(count * layout.latent).reshape(count, layout.latent)
        found = np.empty((count, layout.channels, layout.size, layout.size), np.uint8)
        for index, rows in self.turns(seed, labels):
            net = self._nets[index]
            plan = _Plan(net, min(len(rows), _BATCH))
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                if len(part) != plan.batch:
                    plan = _Plan(net, len(part))
                found[part] = plan.images(latents[part], labels[part])
        return found

    @cached_property
    def _nets(self) -> "tuple[_Net, ...]":
        return tuple(_folded(self.model.of_parts((part,))) for part in self.model.parts)


def load(path: str | Path) -> Runtime:
    """Load a model file to sample from with NumPy alone.

    Args:
        path: what a run wrote as `model.safetensors`.

    Returns:
        A sampler: `sample`, `labelled` and `per_class` make images, `model` is what the file holds.

    Raises:
        ModelFileError: for a file that is missing, damaged or no model.

    Examples:
        >>> import tempfile
        >>> from prismfl.generator.modelfile import save_model
        >>> layout = Layout(size=16, channels=1, width=2, latent=8)
        >>> mean, var = np.zeros(sum(layout.norms), np.float32), np.ones(sum(layout.norms), np.float32)
        >>> model = Model(layout, 0, np.ones(layout.count, np.bool_), mean, var, settings="")
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = Path(root) / "model.safetensors"
        ...     size = save_model(model, path)
        ...     images = load(path).sample(4, seed=1)
        >>> images.shape, images.dtype
        ((4, 1, 16, 16), dtype('uint8'))
    """
    return Runtime(load_model(path))


# ------------------------------------------------------------------------- weights, folded once


@dataclass(frozen=True)
class _Weights:
    """One block with its BatchNorms folded in, from `b` to `a` channels.

    first: `[4a, 4b + 1]`, rows by phase (2·row + column) of the doubled image, columns by place in a 2×2
    window, the last one the bias; second: `[a, 9a + 1]`; short: `[a, b]`; label: `[classes or 1, a]`.
    """

    first: Array
    second: Array
    short: Array
    label: Array


@dataclass(frozen=True)
class _Net:
    """All weights.  Maps are kept less the mean of the BatchNorm that follows, which then is a mere scale.

    input: `[16 w, latent]`; label: `[classes or 1, 16 w]`; output: `[9 C, w]`, rows by place in the window.
    """

    layout: Layout
    input: Array
    label: Array
    blocks: tuple[_Weights, ...]
    output: Array


def _folded(model: Model) -> _Net:
    layout = model.layout
    flat = kept_weights(layout, model.seed, model.mask)
    weights = {layer.name: flat[layer.span].reshape(layer.shape).astype(np.float64) for layer in layout.layers}
    ends = np.cumsum(layout.norms)[:-1]
    means = np.split(model.norm_mean.astype(np.float64), ends)
    scales = np.split(1 / np.sqrt(model.norm_var.astype(np.float64) + EPSILON), ends)
    blocks = []
    for index in range(len(layout.widths) - 1):
        mine = slice(2 * index, 2 * index + 3)
        blocks.append(_folded_block(weights, f"block{index}", means[mine], scales[mine]))
    output = weights["output"] * scales[-1][:, None, None]
    entries = layout.widths[0] * 16
    label = weights["input.label"].reshape(-1, entries) if layout.classes else np.zeros((1, entries))
    return _Net(
        layout,
        _single(weights["input"].reshape(layout.latent, -1).T),
        _single(label - np.repeat(means[0], 16)),
        tuple(blocks),
        _single(output.transpose(2, 3, 0, 1).reshape(-1, layout.widths[-1])),
    )


def _folded_block(
    weights: dict[str, NDArray[np.float64]],
    name: str,
    means: Sequence[NDArray[np.float64]],
    scales: Sequence[NDArray[np.float64]],
) -> _Weights:
    """A block's weights; means and scales of the BatchNorms before, inside and behind it."""
    short = weights[f"{name}.short"][:, :, 0, 0]
    first = weights[f"{name}.first"] * scales[0][:, None, None] * scales[1][:, None, None, None]
    second, after = weights[f"{name}.second"], len(short)
    return _Weights(
        _with_bias(_doubling(first), np.tile(-means[1] * scales[1], 4)),
        _with_bias(second.transpose(0, 2, 3, 1).reshape(after, -1), short @ means[0] - means[2]),
        _single(short),
        _single(weights.get(f"{name}.label", np.zeros((1, after)))),
    )


def _doubling(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nearest-neighbour doubling, then a 3×3 convolution `[a, b, 3, 3]`, as a matrix `[4a, 4b]` for 2×2 windows.

    Of the doubled image's rows 2y and 2y + 1, the one sees rows y - 1, y, y and the other y, y, y + 1.
    """
    merge = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float64)  # [phase, place, row]
    whole: NDArray[np.float64] = np.einsum("pir,qjs,abrs->pqaijb", merge, merge, kernel)
    return whole.reshape(4 * kernel.shape[0], 4 * kernel.shape[1])


def _with_bias(matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> Array:
    return _single(np.concatenate((matrix, bias[:, None]), 1))


def _single(values: NDArray[np.float64]) -> Array:
    return np.ascontiguousarray(values, np.float32)


# ------------------------------------------------------------------------------------- forward


class _Plan:
    """Everything that a batch of one size needs, reserved once."""

    def __init__(self, net: _Net, batch: int) -> None:
        self.net, self.batch = net, batch
        layout = net.layout
        sides = (4 << index for index in range(len(net.blocks)))
        self.blocks = [_Block(weights, side, batch) for weights, side in zip(net.blocks, sides, strict=True)]
        self.last = np.zeros((layout.widths[-1], layout.size + 2, layout.size + 2, batch), np.float32)

    def images(self, latents: Array, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images uint8 `[B, C, H, W]` of latents `[B, latent]` and labels int64 `[B]`."""
        x = self.net.input @ latents.T
        x += self.net.label[labels].T
        x = x.reshape(-1, 4, 4, self.batch)
        for block in self.blocks:
            x = block.forward(x, labels)
        np.maximum(x, 0, out=_inside(self.last))
        pixels = np.tanh(self._output())
        pixels += 1
        pixels *= 127.5
        return np.rint(pixels).astype(np.uint8).transpose(3, 0, 1, 2)

    def _output(self) -> Array:
        """The last convolution: each of nine places' products first, shifted sums then, for it has few channels."""
        layout, side = self.net.layout, self.net.layout.size
        found = np.zeros((layout.channels, side, side, self.batch), np.float32)
        rows = max(1, _STRIP // (len(self.net.output) * (side + 2) * self.batch))
        for top in range(0, side, rows):
            strip = self.last[:, top : min(side, top + rows) + 2]
            parts = (self.net.output @ strip.reshape(len(strip), -1)).reshape(3, 3, layout.channels, *strip.shape[1:])
            high = strip.shape[1] - 2
            for row in range(3):
                for column in range(3):
                    found[:, top : top + high] += parts[row, column, :, row : row + high, column : column + side]
        return found


class _Block:
    """An upsampling residual block of `side` × `side` maps, and the memory it works in."""

    def __init__(self, weights: _Weights, side: int, batch: int) -> None:
        self.weights, self.side, self.batch = weights, side, batch
        after, before = weights.short.shape
        self.low = np.zeros((before, side + 2, side + 2, batch), np.float32)
        self.high = np.zeros((after, 2 * side + 2, 2 * side + 2, batch), np.float32)
        self.first = _Convolution(weights.first, self.low, 2)
        self.second = _Convolution(weights.second, self.high, 3)

    def forward(self, x: Array, labels: NDArray[np.int64]) -> Array:
        """Maps `[b, side, side, B]` → `[a, 2 side, 2 side, B]`, overwritten by the next call."""
        np.maximum(x, 0, out=_inside(self.low))
        self._interleave(self.first.run())
        found = self.second.run()
        short = (self.weights.short @ x.reshape(len(x), -1)).reshape(-1, self.side, self.side, self.batch)
        short += self.weights.label[labels].T[:, None, None]
        for row in range(2):
            for column in range(2):
                found[:, row::2, column::2] += short
        return found

    def _interleave(self, phases: Array) -> None:
        """Four phases' windows `[4a, side + 1, side + 1, B]`, ReLU, to the pixels of the doubled map."""
        side, phases = self.side, phases.reshape(2, 2, -1, *phases.shape[1:])
        for row in range(2):
            for column in range(2):
                part = phases[row, column, :, row : row + side, column : column + side]
                np.maximum(part, 0, out=_inside(self.high)[:, row::2, column::2])


class _Convolution:
    """A convolution of padded maps `[b, h, w, B]` by `size` × `size` windows, strip by strip.

    matrix: `[a, size² · b + 1]`, columns by row, column and channel of a window, the last one the bias.
    """

    def __init__(self, matrix: Array, maps: Array, size: int) -> None:
        self.matrix = matrix
        # A view: [row, column, b, h - size + 1, w - size + 1, B].
        self.windows = sliding_window_view(maps, (size, size), (1, 2)).transpose(4, 5, 0, 1, 2, 3)
        self.height, *row = self.windows.shape[3:]
        self.line = row[0] * row[1]
        self.rows = min(self.height, max(1, _STRIP // (matrix.shape[1] * self.line)))
        self.columns = np.ones((matrix.shape[1], self.rows * self.line), np.float32)
        self.out = np.empty((len(matrix), self.height, *row), np.float32)

    def run(self) -> Array:
        """Of what stands in the maps now: `[a, h - size + 1, w - size + 1, B]`, overwritten by the next call."""
        flat = self.out.reshape(len(self.out), -1)
        for top in range(0, self.height, self.rows):
            part = self.windows[:, :, :, top : top + self.rows]
            span = part.shape[3] * self.line
            columns = self.columns[:, :span]
            np.copyto(columns[:-1].reshape(part.shape), part)
            np.matmul(self.matrix, columns, out=flat[:, top * self.line : top * self.line + span])
        return self.out


def _inside(padded: Array) -> Array:
    """Maps without their border."""
    return padded[:, 1:-1, 1:-1]


# ------------------------------------------------------------------------------------ command


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m prismfl.runtime`: images to a .png grid or a .npy array; 0, or 2 with one line."""
    parser = argparse.ArgumentParser("python -m prismfl.runtime", description="Make images with NumPy alone.")
    parser.add_argument("model", type=Path, help="model file, or a run's folder")
    parser.add_argument("--count", type=int, default=64, help="number of images [64]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents [0]")
    parser.add_argument("--label", default="", help="make images of this label only")
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="a .png, or a .npy: uint8 [n, C, H, W]")
    asked = parser.parse_args(arguments)
    model, out = asked.model.expanduser(), asked.out.expanduser()
    try:
        print(_written(model, asked.count, asked.seed, asked.label, out))
    except PrismError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _written(model: Path, count: int, seed: int, label: str, out: Path) -> Path:
    runtime = load(model)
    images = runtime.sample(count, seed=seed, labels=runtime.labelled(label, count) if label else None)
    if out.suffix.lower() != ".npy":
        try:
            save_picture(image_grid(images, 0 if label else runtime.columns), out)
            return out
        except DependencyError:
            out = out.with_suffix(".npy")
            print("Pillow is not there: an array instead of a picture", file=sys.stderr)
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    write_atomic(out, buffer.getvalue())
    return out


if __name__ == "__main__":
    sys.exit(main())
