"""What can be asked of a finished model, whatever computes its images; needs NumPy alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import SettingError
from prismfl.generator.modelfile import Model
from prismfl.seeding.philox import Purpose, Stream

_MOST_NUMBERS = 2**31  # latent normals in one call: what memory can be expected to hold


@dataclass(frozen=True)
class ModelSampler(ABC):
    """A finished model ready to make images.

    Latents are public normals of (seed, LATENT): the same seed gives the same latents
    everywhere, and on one machine the same images.

    Attributes:
        model: what the model file holds.

    Examples:
        >>> from prismfl.generator.layout import Layout
        >>> from prismfl.generator.sampling import Sampler, finish
        >>> layout = Layout(size=16, channels=1, width=2, latent=8, classes=2)
        >>> model = finish(layout, 0, np.ones(layout.count, np.bool_), "", labels=("cat", "dog"))
        >>> sampler = Sampler(model)
        >>> sampler.sample(5, seed=3).shape
        (5, 1, 16, 16)
        >>> dogs = sampler.sample(2, labels=sampler.labelled("dog", 2))
        >>> {name: len(images) for name, images in sampler.per_class(3).items()}
        {'cat': 3, 'dog': 3}
    """

    model: Model

    @abstractmethod
    def render(self, seed: int, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images of the public latents of a seed, by label.

        Args:
            seed: of the latents.
            labels: int64 `[n]`, below the model's number of labels; 0 where it takes none.

        Returns:
            uint8 `[n, C, H, W]`.
        """

    def turns(self, seed: int, labels: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Which of the model's masks makes which images: the mask's number, and rows of `labels`, ascending.

        Within a label masks take turns, from one that the seed chooses: any number of images has all of them alike.

        Args:
            seed: of the latents.
            labels: int64 `[n]`, below the model's number of labels; 0 where it takes none.

        Yields:
            A mask that makes any image, and int64 rows; each row comes once.
        """
        masks, places = len(self.model.parts), np.arange(len(labels))
        first = Stream(seed, Purpose.TURNS).halves(max(1, self.model.layout.classes)).astype(np.int64)
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], labels[order])  # of each label, among the sorted ones
        turn = np.empty(len(labels), np.int64)
        turn[order] = (places - starts + first[labels[order]]) % masks
        for mask in range(masks):
            if len(rows := np.flatnonzero(turn == mask)):
                yield mask, rows

    def sample(self, count: int, *, seed: int = 0, labels: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Make images.

        Args:
            count: how many.
            seed: of the public latents; the same seed gives the same images on one machine.
            labels: int64 `[count]`, numbers of the model's labels; without them labels take turns.

        Returns:
            uint8 `[count, C, H, W]`.

        Raises:
            SettingError: when count < 1, and for labels that the model does not have.
        """
        self._check_count(count)
        return self.render(seed, self._tags(count, labels))

    def labelled(self, name: str, count: int) -> NDArray[np.int64]:
        """The number of a label, `count` times, as `sample` takes it.

        Args:
            name: one of `model.labels`.
            count: how often.

        Returns:
            int64 `[count]`.

        Raises:
            SettingError: for a label that the model does not have.
        """
        names = self.model.labels
        if name not in names:
            known = ", ".join(map(repr, names)) or "none: this model takes no label"
            raise SettingError(f"label {name!r}", f"one of {known}", "name a label of the model")
        self._check_count(count)
        return np.full(count, names.index(name), np.int64)

    def per_class(self, count: int, *, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
        """Make as many images of each label.

        Args:
            count: how many of each.
            seed: of the public latents.

        Returns:
            By the label's name: uint8 `[count, C, H, W]` each.

        Raises:
            SettingError: when the model takes no label, or a label cannot name a folder.
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

    @property
    def columns(self) -> int:
        """Columns of a grid in which labels take turns: one each, where there are 2 to 16; else 0."""
        return columns_of(self.model.layout.classes)

    def _check_count(self, count: int) -> None:
        most = _MOST_NUMBERS // self.model.layout.latent
        if not 1 <= count <= most:
            raise SettingError(f"count {count}", f"1 … {most}", "ask for fewer at a time, with several seeds")

    def _tags(self, count: int, labels: NDArray[np.int64] | None) -> NDArray[np.int64]:
        classes = self.model.layout.classes
        if labels is None:
            return np.arange(count) % max(1, classes)
        tags = np.asarray(labels)
        if not classes or tags.shape != (count,) or not np.issubdtype(tags.dtype, np.integer):
            raise SettingError(
                f"labels {tags.dtype} {list(tags.shape)} for {count} images of a model of {classes} labels",
                "one whole number an image, and a model that takes labels",
                "leave the labels out or mend them",
            )
        if tags.min() < 0 or tags.max() >= classes:
            raise SettingError(
                f"labels {tags.min()} … {tags.max()}", f"0 … {classes - 1}", "name labels that the model has"
            )
        return tags.astype(np.int64)


def columns_of(classes: int) -> int:
    """Columns of a grid in which so many labels take turns: one each, where there are 2 to 16; else 0."""
    return classes if classes <= 16 else 0


def _unsafe(name: str) -> bool:
    """Whether a label, which a foreign file may have chosen, would lead out of a folder."""
    dots = {".", ".."} & set(name.split("/"))
    return not name.isprintable() or name.startswith("/") or bool(dots) or any(mark in name for mark in "\\\0:")
