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
from prismfl.nets.generator import Statistics, check_device, latent_batch, recompute_statistics, render
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

    def sample(self, count: int, *, seed: int = 0) -> NDArray[np.uint8]:
        """`count` images: uint8 `[count, C, H, W]`.  Raises SettingError when count < 1."""
        layout, most = self.model.layout, _MOST_NUMBERS // self.model.layout.latent
        if not 1 <= count <= most:
            raise SettingError(f"count {count}", f"1 … {most}", "ask for fewer at a time, with several seeds")
        check_device(self.device)
        flat = torch.from_numpy(frozen_weights(layout, self.model.seed) * self.model.mask).to(self.device)
        statistics = Statistics(self.model.norm_mean, self.model.norm_var)
        latents = latent_batch(layout, Stream(seed, Purpose.LATENT), count)
        return render(layout, flat, statistics, latents)


def load(path: str | Path, device: str = "cpu") -> Sampler:
    """Load a model file to sample from.  Raises ModelFileError."""
    return Sampler(load_model(path), device)


def finish(layout: Layout, seed: int, mask: NDArray[np.bool_], settings: str, device: str = "cpu") -> Model:
    """A model of a mask bool `[N]`: its BatchNorm statistics are recomputed from latents."""
    flat = torch.from_numpy(frozen_weights(layout, seed) * mask).to(device)
    statistics = recompute_statistics(layout, flat, seed)
    return Model(layout, seed, mask, statistics.mean, statistics.var, settings)


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


def single_picture(image: NDArray[np.uint8]) -> Image.Image:
    """One image uint8 `[C, H, W]` as a picture."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
