"""How figures of a finished model are grouped and named for people.  Importing this needs no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# A figure that no group names is still shown, among the others.
GROUPS = {
    "Distance to test images, in features of the judge": ("fid_judge", "kid_judge"),
    "Fidelity and diversity, in features of the judge": (
        *("precision_judge", "recall_judge", "density_judge", "coverage_judge"),
    ),
    "Tone and colour: shares of pixels, and how far a pixel's channels lie apart (0 … 255)": (
        *("black", "white", "midtone", "channel_range"),
    ),
    "Inception-v3, as others report": ("fid", "is"),
    "Readability, by a classifier of real images": (
        *("readable", "confidence", "label_agreement", "class_shares", "least_class", "label_imbalance"),
        "is_classifier",
    ),
    "That classifier on real test images": ("test_accuracy", "test_readable"),
    "A classifier trained on the samples alone, on real test images": ("synthetic_accuracy", "synthetic_by_class"),
    "The same, trained on as many real images": ("real_accuracy", "real_by_class"),
    "Membership: are training images nearer to samples than test images are (0.5: no)": ("membership_auc",),
    "Nearest training images": ("nearest_of_samples", "nearest_of_test"),
}
# Intervals over parts of one set of samples, by the figure they belong to.
WITHIN = {
    "kid_judge": "kid_judge_over_subsets",
    "is_classifier": "is_classifier_over_splits",
    "is": "is_over_splits",
    "membership_auc": "membership_auc_over_images",
}
_BY_CLASS = ("class_shares", "synthetic_by_class", "real_by_class")
_NO_FIGURES = ("samples", "repeats", "seed", "real_samples")
BIASED = "is mostly bias"  # what is said of a distance of too few images
_REAL = "_of_real"
_FRECHET = ("fid_judge", "fid")


def of_real(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures of real images, under the names at which they stand beside those of samples; intervals stay away."""
    return {f"{name}{_REAL}": value for name, value in figures.items() if name not in WITHIN.values()}


# Distances in words: up to how many times the yardstick, and what that is.
_BANDS = ((1.5, "hardly to be told from real images"), (3.0, "near"), (10.0, "visibly different"))
_BEYOND = "far from real images"


def in_words(distance: float, yardstick: float | None) -> str:
    """A distance held against the same distance between real images, in words; empty without that.

    Examples:
        >>> in_words(12.0, 6.0)
        'near: 2.0 times as far as real images are from each other (6.00)'
    """
    if not yardstick or yardstick < 0 or distance < 0:
        return ""
    times = distance / yardstick
    often = f"{times:.0f}" if times >= 10 else f"{times:.1f}"
    told = next((words for most, words in _BANDS if times <= most), _BEYOND)
    return f"{told}: {often} times as far as real images are from each other ({yardstick:.2f})"


@dataclass(frozen=True)
class Figure:
    """A figure's name, its value, its interval, what real images come to and the distance in words, as text.

    The last three are empty where it has none.
    """

    name: str
    value: str
    interval: str
    real: str = ""
    words: str = ""


def grouped(found: Mapping[str, Any]) -> Iterator[tuple[str, list[Figure]]]:
    """Titles and the figures under each that are there."""
    for title, names in GROUPS.items():
        figures = [_figure(name, found) for name in names if found.get(name) is not None]
        if figures:
            yield title, figures
    known = {*WITHIN.values(), *_NO_FIGURES, *(name for names in GROUPS.values() for name in names)}
    others = [
        _figure(name, found)
        for name, value in found.items()
        if name not in known and not name.endswith(("_interval", _REAL)) and type(value) in (int, float)
    ]
    if others:
        yield "Others", others


def _figure(name: str, found: Mapping[str, Any]) -> Figure:
    interval = found.get(f"{name}_interval", found.get(WITHIN.get(name, "")))
    if name in _BY_CLASS or not isinstance(interval, list | tuple):
        interval = ()  # ten intervals in a line would bury the shares
    value = _by_class(name, found) if name in _BY_CLASS else shown(found[name])
    real = found.get(f"{name}{_REAL}")
    return Figure(
        name,
        value,
        "[" + ", ".join(map(shown, interval)) + "]" if interval else "",
        "" if real is None else f"(real images {shown(real)})",
        in_words(found[name], real) if name in _FRECHET and not _is_biased(found) else "",
    )


def _is_biased(found: Mapping[str, Any]) -> bool:
    """Whether a distance is of so few images that it says little."""
    return any(BIASED in note for note in found.get("warnings", ()))


def _by_class(name: str, found: Mapping[str, Any]) -> str:
    """Shares with the names of their classes, where these are known and can be printed."""
    shares, names = found[name], found.get("class_names")
    if (
        not isinstance(names, list)
        or None in shares
        or len(names) != len(shares)
        or not all(map(str.isprintable, map(str, names)))
    ):
        return shown(shares)
    return " ".join(f"{name}={shown(share)}" for name, share in zip(names, shares, strict=True))


def shown(value: Any) -> str:
    """A figure as text: four decimals, lists by spaces."""
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
