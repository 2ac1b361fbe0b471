"""Images from a finished model, with PyTorch, and grids of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prismfl.data.images import ImageSet
from prismfl.generator.layout import Layout, Mask, kept_weights
from prismfl.generator.modelfile import Model, load_model
from prismfl.generator.network import Statistics, check_device, latent_batch, recompute_statistics, render
from prismfl.generator.pictures import image_grid, save_folders, save_picture, save_pictures
from prismfl.generator.sampler import ModelSampler, columns_of
from prismfl.seeding.philox import Purpose, Stream

__all__ = [
    "Sampler", "finish", "grid_of", "grid_of_real", "image_grid", "label_columns", "labels_like", "load",
    "save_folders", "save_picture", "save_pictures",
]  # fmt: skip

_EMPTY = 64  # a place in a grid without an image, in the grey of its lines


@dataclass(frozen=True)
class Sampler(ModelSampler):
    """A finished model ready to make images with PyTorch.

    Attributes:
        model: what the model file holds.
        device: torch device that computes the images.

    Examples:
        >>> layout = Layout(size=16, channels=1, width=2, latent=8)
        >>> sampler = Sampler(finish(layout, seed=0, mask=np.ones(layout.count, np.bool_), settings=""))
        >>> images = sampler.sample(4, seed=1)
        >>> images.shape, images.dtype
        ((4, 1, 16, 16), dtype('uint8'))
    """

    device: str = "cpu"

    def render(self, seed: int, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images of the public latents of a seed, by label.

        Args:
            seed: of the latents.
            labels: int64 `[n]`, below the model's number of labels; 0 where it takes none.

        Returns:
            uint8 `[n, C, H, W]`.

        Raises:
            SettingError: for a device that torch cannot use here.
        """
        layout = self.model.layout
        check_device(self.device)
        latents = latent_batch(layout, Stream(seed, Purpose.LATENT), len(labels))
        found = np.empty((len(labels), layout.channels, layout.size, layout.size), np.uint8)
        for index, rows in self.turns(seed, labels):
            part = self.model.parts[index]
            flat = torch.from_numpy(kept_weights(layout, self.model.seed, part.mask)).to(self.device)
            statistics = Statistics(part.norm_mean, part.norm_var)
            found[rows] = render(layout, flat, statistics, latents[rows], torch.from_numpy(labels[rows]))
        return found


def load(path: str | Path, device: str = "cpu") -> Sampler:
    """Load a model file to sample from.

    Args:
        path: what a run wrote as `model.safetensors`, or the run's folder.
        device: torch device that computes the images.

    Returns:
        A sampler: `sample`, `labelled` and `per_class` make images, `model` is what the file holds.

    Raises:
        ModelFileError: for a file that is missing, damaged or no model.

    Examples:
        >>> load("nowhere/model.safetensors")
        Traceback (most recent call last):
        prismfl.errors.ModelFileError: model file nowhere/model.safetensors cannot be read (...); ...
    """
    return Sampler(load_model(path), device)


def finish(
    layout: Layout, seed: int, mask: Mask, settings: str, labels: tuple[str, ...] = (), device: str = "cpu"
) -> Model:
    """A model of a mask: its BatchNorm statistics are recomputed from public latents.

    Args:
        layout: the generator's shape.
        seed: of the frozen weights.
        mask: bool `[N]`, or soft uint8 `[N]` of 0 … 15.
        settings: TOML text of the run, kept in the model.
        labels: names of the labels, as many as the layout has classes.
        device: torch device that computes the statistics.

    Returns:
        The finished model, with no ledger.
    """
    flat = torch.from_numpy(kept_weights(layout, seed, mask)).to(device)
    statistics = recompute_statistics(layout, flat, seed)
    return Model(layout, seed, mask, statistics.mean, statistics.var, settings, labels=labels)


def labels_like(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` labels in the shares of given ones int64 `[n]`, each within 1 of its share: int64 `[count]`."""
    return np.asarray(np.sort(labels)[np.arange(count) * len(labels) // count], np.int64)


def grid_of(sampler: ModelSampler, seed: int = 0) -> Image.Image:
    """Eight rows of samples: a column a label where there are up to 16, else eight columns."""
    columns = label_columns(sampler) or 8
    return image_grid(sampler.sample(8 * columns, seed=seed), columns)


def grid_of_real(images: ImageSet, layout: Layout) -> Image.Image:
    """Real images where `grid_of` has samples: of each label some evenly from first to last, else empty places."""
    columns = columns_of(layout.classes) or 8
    tags = np.arange(8 * columns) % max(1, layout.classes)
    labels = images.labels if layout.classes else np.zeros(len(images), np.int64)
    shown = np.full((len(tags), *images.images.shape[1:]), _EMPTY, np.uint8)
    for tag in np.unique(tags):
        places, members = np.flatnonzero(tags == tag), np.flatnonzero(labels == tag)
        count = min(len(places), len(members))
        shown[places[:count]] = images.images[members[np.arange(count) * len(members) // max(1, count)]]
    return image_grid(shown, columns)


def label_columns(sampler: ModelSampler) -> int:
    """Columns of a grid in which labels take turns: one each, where there are 2 to 16; else 0."""
    return sampler.columns
