"""All figures of a finished model against a data set, and how they read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.data.classes import named_alike, present, select_classes
from prismfl.data.datasets import ImageSet, load_dataset
from prismfl.data.files import check_writable, write_atomic
from prismfl.data.images import in_channels
from prismfl.errors import DataError, ModelFileError, SettingError
from prismfl.features.inception import Inception, load_inception
from prismfl.features.matched import sibling_note
from prismfl.generator.modelfile import model_file
from prismfl.generator.network import check_device
from prismfl.generator.sampling import Sampler, image_grid, labels_like, load, save_picture
from prismfl.metrics import copying, distances, readability, synthetic, tone
from prismfl.metrics.distances import frechet, judge_features
from prismfl.metrics.intervals import t_interval
from prismfl.metrics.readability import Classifier, inception_score
from prismfl.metrics.text import WITHIN, grouped, of_real
from prismfl.privacy.ledger import from_json, summary_of
from prismfl.run.folder import RunFolder
from prismfl.run.progress import Part, no_parts
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.schema import Data, Settings
from prismfl.settings.toml import images_of, load_settings, toml_from

# What can be asked for, and the fewest images of a side that it means anything of.
METRICS = {
    "fid": distances.FRECHET_LEAST,
    "kid": distances.KERNEL_LEAST,
    "prdc": distances.NEIGHBOURS_LEAST,
    "tone": tone.LEAST,
    "readability": readability.LEAST,
    "synthetic": synthetic.LEAST,
    "membership": copying.LEAST,
}
_ASKED_ONLY = {"synthetic", "membership"}  # one trains a classifier for each set of samples, one attacks the model
_OF_CLASSES = {"readability", "synthetic"}
_DISTANCES = {"fid", "kid", "prdc"}  # by the judge, of samples as of real images
OUTSIDE = "these figures are of the model's own data set: publish them, and the ledger does not cover what they tell"
_PAIRS_OUTSIDE = "the picture of pairs shows training images: no guarantee covers it"
_PAIRS, _PAIRS_ACROSS = 40, 5
_MOST_RELEASES = 20  # in text
_LEAST_FOR_SCORE = 20  # two images in each of ten parts
_FEW = 100  # images: of fewer, shares are known to a tenth at best


def evaluate_model(
    path: Path,
    dataset: str = "",
    data_dir: str = "",
    samples: int = 10_000,
    seed: int = 0,
    inception: Path | None = None,
    device: str = "cpu",
    *,
    repeats: int = 1,
    metrics: str = "",
    pairs: Path | None = None,
    pairs_by: str = "judge",
    part: Part = no_parts,
) -> dict[str, Any]:
    """Figures of a model file against a data set's test images, by name of the figure.

    dataset, data_dir: what to judge against; a data set that needs a folder needs it here, for
    a model file names no folder of its maker, unless it lies in its run's folder, which does.  Without dataset it is
    the model's own, and of its own data set the model's classes count.
    samples: images that every figure is of.  inception: the weights of the FID's Inception-v3,
    which add `fid`, `is` (where there are enough samples) and `inception_sha256`.  repeats: how
    many sets of samples, of seeds `seed … seed + repeats - 1`; for more than one a figure is the
    mean over them, and `NAME_interval` is its 95 % t-interval [low, high].  metrics: some of fid,
    kid, prdc, tone, readability, synthetic and membership, by commas; empty takes all that apply but the last two, for
    readability wants images of two classes or more, synthetic a model that makes images by these, and each
    wants a few images.  Beside each distance, and beside tone, stands `NAME_of_real`: distances of `real_samples`
    training images (as many as samples, where there are enough) from the test images, and the test images' own tone.
    part: is told what is under way, and how far it is.
    pairs: a PNG to write, of samples beside the training images nearest to them, in the space `pairs_by`: see
    `show_pairs`.  `warnings` are there where a figure misleads or is outside a guarantee.
    Raises PrismError subclasses for unusable files, data and numbers.
    """
    if samples < 2:
        raise SettingError(f"samples {samples}", "at least 2", "ask for more")
    if repeats < 1:
        raise SettingError(f"repeats {repeats}", "at least 1", "ask for more")
    asked = tuple(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip()))
    for unknown in (name for name in asked if name not in METRICS):
        raise SettingError(f"metric {unknown!r}", f"some of {', '.join(METRICS)}", "name these, by commas")
    check_device(device)
    if pairs is not None:
        check_pairs(pairs, pairs_by)
    network = None if inception is None else load_inception(inception).to(device)
    sampler = load(path, device)
    trained, ledger = settings_of(path, sampler.model.settings), sampler.model.ledger
    name, (data_dir, reading) = dataset or trained.data.dataset, own_images(path, dataset, data_dir, trained.data)
    judge = judge_of(sampler, reading, name, data_dir, network, part)
    labels = labels_like(judge.test.labels, samples) if sampler.model.labels == judge.train.classes else None
    wanted = judge.applying(asked, samples, labels is not None)
    found = []
    for turn in range(seed, seed + repeats):
        made = part("making samples", 1)
        images = sampler.sample(samples, seed=turn, labels=labels)
        made(1)
        found.append(judge.figures(wanted, images, labels, turn))
    record = judge.record(wanted, samples)
    if pairs is not None:
        record |= show_pairs(sampler, judge, pairs, pairs_by, seed)
    head: dict[str, Any] = {"samples": samples, "repeats": repeats, "seed": seed}
    if network is not None:
        head["inception_sha256"] = network.sha256
    tail = {"ledger": list(ledger), "privacy": summary_of(from_json(ledger))}
    notes = sibling_note(trained.features.network)
    notes += _cautions(wanted, min(samples, len(judge.test)), samples)
    if ledger and name == trained.data.dataset:
        notes.append(OUTSIDE)
    if pairs is not None:
        notes.append(_PAIRS_OUTSIDE)
    return head | over_seeds(found) | record | tail | ({"warnings": notes} if notes else {})


def _cautions(wanted: Sequence[str], fewest: int, samples: int) -> list[str]:
    """Where figures are of too few images; fewest: on the side of which there are fewer."""
    found = distances.few(fewest) if "fid" in wanted else []
    if fewest < _FEW and {"kid", "prdc"}.intersection(wanted):
        found.append(f"kid and prdc of {fewest} images say little: take {_FEW} at least")
    if samples < _FEW and "readability" in wanted:
        found.append(f"shares of {samples} samples are known to ± {0.98 / samples**0.5:.2f} at best")
    return found


def save_evaluation(model: Path, found: Mapping[str, Any]) -> Path:
    """Write the figures as `evaluation.json` beside the model, where a report finds them.  Raises RunFolderError."""
    model = model_file(model)
    path = RunFolder(model.resolve().parent).evaluation
    write_atomic(path, json.dumps({"model": model.name} | dict(found), indent=1) + "\n")
    return path


def check_pairs(path: Path, space: str) -> None:
    """Raises SettingError or RunFolderError, before anything is measured, for pairs that could not be drawn."""
    if space not in copying.SPACES:
        raise SettingError(f"pairs by {space!r}", f"one of {', '.join(copying.SPACES)}", "name one of these")
    if path.suffix.lower() != ".png":
        raise SettingError(f"pairs in {str(path)!r}", "a .png file", "name one")
    check_writable(path)


def show_pairs(sampler: Sampler, judge: "Judge", path: Path, space: str, seed: int) -> dict[str, Any]:
    """Draw samples, each with the training image nearest to it on its right, and say how near they are.

    space: `judge` (its features) or `pixels`, Euclidean.  Figures are median distances to the nearest training
    image: of the samples shown, and of as many test images, which were not copied.  Samples much nearer than those
    are suspicious.  The picture and the figures are outside any guarantee: they are of training images.
    """
    samples, known = sampler.sample(_PAIRS, seed=seed), judge.train.images
    after = judge.part("nearest training images", len(known))
    rows, far = copying.nearest_images(known, samples, space, sampler.device, after)
    others = copying.nearest_images(known, judge.test.images[:_PAIRS], space, sampler.device)[1]
    side_by_side = np.concatenate((samples, np.asarray(known[rows])), axis=3)
    save_picture(image_grid(side_by_side, _PAIRS_ACROSS), path)
    return {
        "nearest_of_samples": float(np.median(far)),
        "nearest_of_test": float(np.median(others)),
        "pairs": {"file": path.name, "count": _PAIRS, "space": space},
    }


@dataclass(frozen=True)
class Judge:
    """The real images, and what figures need of them: made when first asked for, and only once."""

    train: ImageSet
    test: ImageSet
    inception: Inception | None
    device: str
    part: Part

    @cached_property
    def features(self) -> NDArray[np.float32]:
        return self.seen(self.test.images, "test images")

    def seen(self, images: NDArray[np.uint8], what: str) -> NDArray[np.float32]:
        """Judge features of images: float32 `[n, d]`."""
        return judge_features(images, device=self.device, after=self.part(f"judge looks at {what}", len(images)))

    @cached_property
    def members(self) -> NDArray[np.float32]:
        """Features of training images, of as many as there are test images: float32 `[n, d]`."""
        return self.trained(len(self.test))

    @cached_property
    def balls(self) -> distances.Balls:
        return distances.balls(self.features)

    @cached_property
    def pooled(self) -> NDArray[np.float32]:
        """Inception's features of the test images: float32 `[n, 2048]`, of none without the network."""
        return np.empty((0, 0), np.float32) if self.inception is None else self.inception.features(self.test.images)

    @cached_property
    def classifier(self) -> Classifier:
        done = self.part("readability: training a classifier", readability.steps_of(self.train))
        return Classifier(self.train, after=lambda _: done(1))

    def worth(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int = 0, what: str = "samples"
    ) -> synthetic.Worth:
        """What a classifier of these images does on the test images."""
        done = self.part(f"synthetic: training on {what}", synthetic.steps_of(images))
        return synthetic.worth(images, labels, self.test, seed, after=lambda _: done(1))

    def trained(self, count: int) -> NDArray[np.float32]:
        """Features of `count` training images, or of all where there are fewer: float32 `[n, d]`."""
        return self.seen(self.train.images[np.sort(self.chosen(count))], "training images")

    def chosen(self, count: int) -> NDArray[np.int64]:
        return Stream(0, Purpose.SUBSETS).permutation(len(self.train))[:count]

    def applying(self, asked: tuple[str, ...], samples: int, labelled: bool) -> tuple[str, ...]:
        """What was asked for, or all that applies where nothing was.  Raises DataError for what does not apply.

        labelled: whether the samples are made by the test images' labels.
        """
        fewest, classes = min(samples, len(self.test)), len(self.train.classes)
        without = (_OF_CLASSES if classes < 2 else set()) | (set() if labelled else {"synthetic"})
        fits = [name for name, least in METRICS.items() if fewest >= least and name not in without]
        for name in asked:
            if name not in fits:
                needed = f"at least {METRICS[name]} images" + ", and two classes" * (name in _OF_CLASSES)
                raise DataError(
                    f"{name} of {fewest} images of {classes} {'class' if classes == 1 else 'classes'}",
                    needed + " that the model makes images by" * (name == "synthetic"),
                    "give more, or leave it out",
                )
        return asked or tuple(name for name in fits if name not in _ASKED_ONLY)

    def record(self, wanted: tuple[str, ...], samples: int) -> dict[str, Any]:
        """What figures of samples are to be held against: the same of real images, and classifiers trained on these."""
        found: dict[str, Any] = {}
        if _DISTANCES.intersection(wanted):
            others = self.trained(samples)
            asked = [name for name in wanted if name in _DISTANCES and len(others) >= METRICS[name]]
            found |= {"real_samples": len(others)} | of_real(self._distances(asked, others))
        if self.inception is not None:
            rows = np.sort(self.chosen(samples))
            found["fid_of_real"] = frechet(self.pooled, self.inception.features(self.train.images[rows]))
        if "tone" in wanted:
            found |= of_real(vars(tone.tone(self.test.images)))
        if "readability" in wanted:
            found |= readability.record(self.classifier, self.test)
        if _OF_CLASSES & set(wanted):
            found["class_names"] = list(self.train.classes)  # that shares are of
        if "synthetic" in wanted:
            rows = self.chosen(samples)
            real = self.worth(self.train.images[rows], self.train.labels[rows], what="real images")
            found |= {"real_accuracy": real.accuracy, "real_by_class": real.class_accuracies}
        return found

    def figures(
        self, wanted: tuple[str, ...], images: NDArray[np.uint8], labels: NDArray[np.int64] | None, seed: int
    ) -> dict[str, Any]:
        """The wanted figures of one set of samples uint8 `[n, C, H, W]`, made by labels int64 `[n]` or None.

        seed: of the classifier that is trained on them.
        """
        found: dict[str, Any] = {}
        if (_DISTANCES | {"membership"}).intersection(wanted):
            found |= self._distances(wanted, self.seen(images, "samples"))
        if self.inception is not None:
            found |= self._by_inception(self.inception, images)
        if "tone" in wanted:
            found |= vars(tone.tone(images))
        if "readability" in wanted:
            found |= vars(readability.readability(self.classifier, images, self.test, labels))
        if "synthetic" in wanted and labels is not None:
            made = self.worth(images, labels, seed)
            found |= {"synthetic_accuracy": made.accuracy, "synthetic_by_class": made.class_accuracies}
        return found

    def _by_inception(self, network: Inception, images: NDArray[np.uint8]) -> dict[str, Any]:
        pooled = network.features(images)
        found: dict[str, Any] = {"fid": frechet(self.pooled, pooled)}
        if len(images) >= _LEAST_FOR_SCORE:
            scores = torch.from_numpy(pooled).to(self.device)
            score = inception_score(network.logits(scores, bias=False).double().softmax(1).cpu().numpy())
            found |= {"is": score.mean, WITHIN["is"]: score.interval}
        return found

    def _distances(self, wanted: Sequence[str], fake: NDArray[np.float32]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "fid" in wanted:
            found["fid_judge"] = frechet(self.features, fake)
        if "kid" in wanted:
            kid = distances.kernel_distance(self.features, fake)
            found |= {"kid_judge": kid.mean, WITHIN["kid_judge"]: kid.interval}
        if "prdc" in wanted:
            found |= vars(distances.compare(self.balls, distances.balls(fake)))
        if "membership" in wanted:
            told = copying.membership(self.members, self.features, fake)
            found |= {"membership_auc": told.mean, WITHIN["membership_auc"]: told.interval}
        return found


def over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of figures over sets of samples, each with its 95 % t-interval where there is more than one.

    Intervals over parts of one set give way to those over sets.
    """
    if len(found) == 1:
        return found[0]
    merged: dict[str, Any] = {}
    for name in (name for name in found[0] if name not in WITHIN.values()):
        values = [one[name] for one in found]
        merged[name] = None
        if values[0] is not None:
            every = np.array(values, np.float64)  # what no test image tells is None, and not a number here
            merged |= {name: _known(every.mean(0)), f"{name}_interval": _known(t_interval(every))}
    return merged


def _known(values: NDArray[np.float64]) -> Any:
    """Numbers as plain ones or lists of them, and None for what is not a number."""
    return np.where(np.isnan(values), None, values).tolist()  # type: ignore[call-overload]


def as_text(found: dict[str, Any]) -> str:
    """Figures for people: grouped, names aligned, intervals in brackets."""
    seeds = f"seed {found['seed']}" + f" … {found['seed'] + found['repeats'] - 1}" * (found["repeats"] > 1)
    lines = [f"{found['samples']} samples, {seeds}"]
    for title, figures in grouped(found):
        lines += ["", title]
        for one in figures:
            lines.append(f"  {one.name:20} " + "  ".join(part for part in (one.value, one.interval, one.real) if part))
            lines += [f"  {'':20} {one.words}"] if one.words else []
    ledger = found["ledger"]
    lines += ["", "Ledger"] if ledger else []
    for one in ledger[:_MOST_RELEASES]:
        guarantee = f"ε = {one['epsilon']:.4g}, δ = {one['delta']:g}, σ / Δ = {one['noise_multiplier']:.4g}"
        lines.append(f"  client {one['client']}: {guarantee}, {one['images']} images, releases: {one['count']}")
    lines += [f"  and {len(ledger) - _MOST_RELEASES} more"] if len(ledger) > _MOST_RELEASES else []
    warnings = [f"Warning: {note}" for note in found.get("warnings", ())]
    return "\n".join([*lines, "", *warnings, f"Privacy: {found['privacy']}"])


def judge_of(sampler: Sampler, trained: Data, name: str, data_dir: str, network: Inception | None, part: Part) -> Judge:
    """The real images that a model is judged by.  Raises DataError for those that do not fit it."""
    if name == "arrays":
        raise DataError("a model of a caller's arrays", "a data set to judge against", "pass --dataset and --data-dir")
    layout, folder = sampler.model.layout, Path(data_dir) if data_dir else None
    done, splits = part("reading images", 2), []
    for split in ("train", "test"):
        splits.append(load_dataset(name, folder, layout.size, split, settings=trained))
        done(1)
    train, test = splits
    if name == trained.dataset:
        train, test = (_as_trained(select_classes(one, trained.classes), layout.channels) for one in splits)
    train, test = _of_classes(train, test, sampler.model.labels)
    if test.images.shape[1] != layout.channels:
        got, expected = f"images of {test.images.shape[1]} channels", f"{layout.channels}, as the model makes"
        raise DataError(got, expected, "judge against another data set")
    return Judge(train, test, network, sampler.device, part)


def _as_trained(part: ImageSet, channels: int) -> ImageSet:
    return replace(part, images=in_channels(part.images, channels))


def _of_classes(train: ImageSet, test: ImageSet, labels: tuple[str, ...]) -> tuple[ImageSet, ImageSet]:
    """Both splits with the classes that training images have; with the model's, where these are all of them."""
    there = present(train).classes
    names = labels if set(there) <= set(labels) else there
    real, held_back = (named_alike(part, names) for part in (train, test))
    if real is None or held_back is None:
        raise DataError("no test image of a class that training has", "some", "judge against another data set")
    return real, held_back


def own_images(path: Path, dataset: str, data_dir: str, trained: Data) -> tuple[str, Data]:
    """Where real images lie and how they are read: as the model's run did it, where its folder is at hand.

    trained: what the model file says.  Raises DataError for the images of a run that trained on all of them.
    """
    config = RunFolder(model_file(path).resolve().parent).config
    if dataset not in ("", trained.dataset) or not config.is_file():
        return data_dir, trained
    asked = load_settings(config).data
    if data_dir and Path(data_dir).resolve() != Path(asked.place).resolve():
        return data_dir, trained
    if asked.partition == "given":
        raise DataError(
            "the images of a run that trained on all of them (--partition given)",
            "images that it has not seen",
            "pass --data-dir with a folder of others",
        )
    return asked.place, replace(trained, people=asked.people)


def settings_of(path: Path, text: str) -> Settings:
    """What a model file's own settings say of its images.  Raises ModelFileError."""
    try:
        return images_of(toml_from(text))
    except SettingError as error:
        got = f"settings inside {path} do not read ({error})"
        raise ModelFileError(got, "those of a run", "fetch the file anew") from None
