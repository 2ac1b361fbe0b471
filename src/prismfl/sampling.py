"""Images from a finished model, with PyTorch, and grids of them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prismfl.errors import SettingError
from prismfl.files import write_atomic
from prismfl.layout import Layout, frozen_weights
from prismfl.modelfile import Model, load_model
from prismfl.nets.generator import Statistics, check_device, label_turns, latent_batch, recompute_statistics, render
from prismfl.seeding import Purpose, Stream

_MOST_NUMBERS = 2**31  # latent normals in one call: what memory can be expected to hold


@dataclass(frozen=True)
class Sampler:
    """A finished model ready to make images.

    Latents are public normals of (seed, LATENT): the same seed gives the same latents
    everywhere, and on one machine the same images.
    """

    model: Model
    device: str = "cpu"

    def sample(self, count: int, *, seed: int = 0, labels: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """`count` images: uint8 `[count, C, H, W]`.

        labels: int64 `[count]`, numbers of the model's labels; without them labels take turns.
        Raises SettingError when count < 1, or for labels that the model does not have.
        """
        layout = self.model.layout
        self._check_count(count)
        check_device(self.device)
        flat = torch.from_numpy(frozen_weights(layout, self.model.seed) * self.model.mask).to(self.device)
        statistics = Statistics(self.model.norm_mean, self.model.norm_var)
        latents = latent_batch(layout, Stream(seed, Purpose.LATENT), count)
        return render(layout, flat, statistics, latents, self._tags(count, labels))

    def _check_count(self, count: int) -> None:
        most = _MOST_NUMBERS // self.model.layout.latent
        if not 1 <= count <= most:
            raise SettingError(f"count {count}", f"1 … {most}", "ask for fewer at a time, with several seeds")

    def labelled(self, name: str, count: int) -> NDArray[np.int64]:
        """The number of a label, `count` times: int64 `[count]`.  Raises SettingError."""
        names = self.model.labels
        if name not in names:
            known = ", ".join(map(repr, names)) or "none: this model takes no label"
            raise SettingError(f"label {name!r}", f"one of {known}", "name a label of the model")
        self._check_count(count)
        return np.full(count, names.index(name), np.int64)

    def per_class(self, count: int, *, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
        """`count` images of each label, by its name: uint8 `[count, C, H, W]` each.

        Raises SettingError when the model takes no label, or a label cannot name a folder.
        """
        names = self.model.labels
        wrong = [name for name in names if _unsafe(name)]
        if not names or wrong:
            raise SettingError(
                f"a model with label {wrong[0]!r}" if wrong else "a model that takes no label",
                "labels that can name folders below the output",
                "sample without --per-class",
            )
        self._check_count(count * len(names))
        every = self.sample(count * len(names), seed=seed, labels=np.repeat(np.arange(len(names)), count))
        return {name: every[index * count : (index + 1) * count] for index, name in enumerate(names)}

    def _tags(self, count: int, labels: NDArray[np.int64] | None) -> torch.Tensor:
        layout = self.model.layout
        if labels is None:
            return label_turns(layout, count)
        tags = np.asarray(labels)
        if not layout.classes or tags.shape != (count,) or not np.issubdtype(tags.dtype, np.integer):
            raise SettingError(
                f"labels {tags.dtype} {list(tags.shape)} for {count} images of a model of {layout.classes} labels",
                "one whole number an image, and a model that takes labels",
                "leave the labels out or mend them",
            )
        if tags.min() < 0 or tags.max() >= layout.classes:
            raise SettingError(
                f"labels {tags.min()} … {tags.max()}", f"0 … {layout.classes - 1}", "name labels that the model has"
            )
        return torch.from_numpy(tags.astype(np.int64))


def load(path: str | Path, device: str = "cpu") -> Sampler:
    """Load a model file to sample from.  Raises ModelFileError."""
    return Sampler(load_model(path), device)


def finish(
    layout: Layout,
    seed: int,
    mask: NDArray[np.bool_],
    settings: str,
    labels: tuple[str, ...] = (),
    device: str = "cpu",
) -> Model:
    """A model of a mask bool `[N]`: its BatchNorm statistics are recomputed from latents."""
    flat = torch.from_numpy(frozen_weights(layout, seed) * mask).to(device)
    statistics = recompute_statistics(layout, flat, seed)
    return Model(layout, seed, mask, statistics.mean, statistics.var, settings, labels=labels)


def _unsafe(name: str) -> bool:
    """Whether a label, which a foreign file may have chosen, would lead out of a folder."""
    dots = {".", ".."} & set(name.split("/"))
    return not name.isprintable() or name.startswith("/") or bool(dots) or any(mark in name for mark in "\\\0:")


def labels_like(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` labels in the shares of given ones int64 `[n]`, each within 1 of its share: int64 `[count]`."""
    return np.asarray(np.sort(labels)[np.arange(count) * len(labels) // count], np.int64)


def grid_of(sampler: Sampler, seed: int = 0) -> Image.Image:
    """Eight rows of samples: a column a label where there are up to 16, else eight columns."""
    columns = label_columns(sampler) or 8
    return image_grid(sampler.sample(8 * columns, seed=seed), columns)


def label_columns(sampler: Sampler) -> int:
    """Columns of a grid in which labels take turns: one each, where there are 2 to 16; else 0."""
    classes = sampler.model.layout.classes
    return classes if classes <= 16 else 0


def image_grid(images: NDArray[np.uint8], columns: int = 0, scale: int = 2) -> Image.Image:
    """Images uint8 `[n, C, H, W]` side by side, a pixel apart, enlarged `scale` times."""
    count, channels, height, width = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 64, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture whole, as PNG.  Raises RunFolderError."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def save_pictures(images: NDArray[np.uint8], folder: Path) -> None:
    """Images uint8 `[n, C, H, W]` as numbered PNG files.  Raises RunFolderError."""
    for index, image in enumerate(images):
        save_picture(_single_picture(image), folder / f"{index:06d}.png")


def _single_picture(image: NDArray[np.uint8]) -> Image.Image:
    """One image uint8 `[C, H, W]` as a picture."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
