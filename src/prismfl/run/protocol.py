"""A finished model measured as others measure theirs, with what differs named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import DataError, SettingError
from prismfl.features.inception import load_inception
from prismfl.features.matched import sibling_note
from prismfl.generator.network import check_device
from prismfl.generator.sampling import labels_like, load
from prismfl.metrics import distances, protocols
from prismfl.metrics.distances import frechet
from prismfl.privacy.ledger import from_json, summary_of
from prismfl.run.evaluate import OUTSIDE, Judge, judge_of, own_images, settings_of
from prismfl.run.progress import Part, no_parts

_SMALL = "the mean over its ResNet, wide ResNet and ResNeXt counts: here others were trained, or not all of them"
_SELECTED = "the benchmark's default chooses the epoch by private images with noise; here samples alone choose"
_NO_INCEPTION = "no Inception-v3 was given (--inception FILE): distances are by this package's judge"
_TORCHVISION = "the paper's network is torchvision's Inception-v3; this is the one that FID is defined by"
_LAST = "the paper keeps the round that is best on test images; here nothing is chosen by them"


def evaluate_by_protocol(
    path: Path,
    protocol: str,
    dataset: str = "",
    data_dir: str = "",
    seed: int = 0,
    classifiers: str = protocols.SMALL,
    inception: Path | None = None,
    device: str = "cpu",
    part: Part = no_parts,
) -> dict[str, Any]:
    """Figures of a model file as a protocol has them: see `prismfl.metrics.protocols`.

    Args:
        path: the model file, or its run's folder.
        protocol: `dpimagebench` or `prism`.
        dataset: to judge against; empty for the model's own.
        data_dir: its folder.
        seed: of samples and classifiers.
        classifiers: some of `protocols.CLASSIFIERS`, by commas; of `dpimagebench` alone.
        inception: weights of the FID's Inception-v3.
        device: torch's.
        part: is told what is under way.

    Returns:
        `protocol`, `samples`, figures, and `differences` from the protocol in words.

    Raises:
        PrismError: for unusable files, data and names.
    """
    if protocol not in protocols.SAMPLES:
        raise SettingError(f"protocol {protocol!r}", f"one of {', '.join(protocols.SAMPLES)}", "name one of these")
    names = tuple(dict.fromkeys(name.strip() for name in classifiers.split(",") if name.strip()))
    for unknown in (name for name in names if name not in protocols.CLASSIFIERS):
        raise SettingError(f"classifier {unknown!r}", f"some of {', '.join(protocols.CLASSIFIERS)}", "name these")
    if not names:
        raise SettingError("no classifier", f"some of {', '.join(protocols.CLASSIFIERS)}", "name one at least")
    check_device(device)
    network = None if inception is None else load_inception(inception).to(device)
    sampler = load(path, device)
    trained, count = settings_of(path, sampler.model.settings), protocols.SAMPLES[protocol]
    data_dir, reading = own_images(path, dataset, data_dir, trained.data)
    judge = judge_of(sampler, reading, dataset or trained.data.dataset, data_dir, network, part)
    labelled = len(judge.train.classes) > 1 and sampler.model.labels == judge.train.classes
    made = part("making samples", 1)
    labels = labels_like(judge.test.labels, count) if labelled else None
    images = sampler.sample(count, seed=seed, labels=labels)
    made(1)
    found: dict[str, Any] = {"protocol": protocol, "samples": count, "seed": seed}
    if protocol == "prism":
        found |= _as_prism(judge, images)
    elif labels is None:
        raise DataError("a model or data without labels", "classes that a classifier learns", "take --protocol prism")
    else:
        found |= _as_benchmark(judge, images, labels, names, seed, device)
    ledger = sampler.model.ledger
    notes = sibling_note(trained.features.network) if network is None else []
    notes += [OUTSIDE] if ledger and (dataset or trained.data.dataset) == trained.data.dataset else []
    found |= {"ledger": list(ledger), "privacy": summary_of(from_json(ledger))}
    return found | ({"warnings": notes} if notes else {})


def _as_benchmark(
    judge: Judge, images: NDArray[np.uint8], labels: NDArray[np.int64], names: tuple[str, ...], seed: int, device: str
) -> dict[str, Any]:
    """The accuracy of classifiers of the samples alone, and the distance from training images where FID has its net."""
    worths = {}
    for name in names:
        after = _each(judge.part(f"training {name}", protocols.steps_of(name, len(images), images.shape[1])))
        worths[name] = protocols.taught(name, images, labels, judge.test, seed, device, after)
    found: dict[str, Any] = {
        "accuracy": float(np.mean([one.accuracy for one in worths.values()])),
        "accuracies": {name: one.accuracy for name, one in worths.items()},
        "by_class": {name: list(one.class_accuracies) for name, one in worths.items()},
        "class_names": list(judge.test.classes),
    }
    if judge.inception is not None:
        found["fid"] = frechet(judge.inception.features(judge.train.images), judge.inception.features(images))
    differences = [_SELECTED] if set(names) - {protocols.SMALL} else []
    differences += [_SMALL] if set(names) != set(protocols.CLASSIFIERS) - {protocols.SMALL} else []
    return found | {"differences": differences + ([_NO_INCEPTION] if judge.inception is None else [])}


def _each(done: Callable[[int], object]) -> Callable[[float], object]:
    """Told the loss of a step, counts one."""
    return lambda _: done(1)


def _as_prism(judge: Judge, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Distance from as many test images, and the neighbourhoods of five, by Inception-v3 or the judge."""
    real = judge.test.images[: len(images)]
    if judge.inception is None:
        ours, theirs = judge.seen(images, "samples"), judge.seen(real, "test images")
    else:
        ours, theirs = judge.inception.features(images), judge.inception.features(real)
    near = vars(distances.compare(distances.balls(theirs), distances.balls(ours)))
    by = "inception" if judge.inception is not None else "judge"
    found = {"fid" if by == "inception" else "fid_judge": frechet(theirs, ours)}
    found |= {name.replace("judge", by): value for name, value in near.items()}
    network = _TORCHVISION if by == "inception" else _NO_INCEPTION
    return found | {"real_samples": len(real), "differences": [network, _LAST]}


def protocol_text(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{found['protocol']}: {found['samples']} samples, seed {found['seed']}", ""]
    for name, value in found.get("accuracies", {}).items():
        classes = zip(found["class_names"], found["by_class"][name], strict=True)
        each = ", ".join(f"{one} {100 * part:.1f}" for one, part in classes if part is not None)
        lines += [f"  accuracy, {name:12} {100 * value:.2f} %", f"  {'by class':22} {each}"]
    if len(found.get("accuracies", {})) > 1:
        lines.append(f"  accuracy, mean         {100 * found['accuracy']:.2f} %")
    skipped = {"accuracy", "samples", "seed", "real_samples"}
    figures = {name: one for name, one in found.items() if isinstance(one, float) and name not in skipped}
    lines += [f"  {name:22} {value:.4g}" for name, value in figures.items()]
    lines += ["", "What differs from the protocol", *(f"  {one}" for one in found["differences"])]
    return "\n".join([*lines, "", *(f"Warning: {one}" for one in found.get("warnings", ())), found["privacy"]])
