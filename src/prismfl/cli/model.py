"""Commands on finished models and their runs, and on what they are made of."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from prismfl.errors import SettingError
from prismfl.run.progress import shown_parts, sized

_MODEL = "A model file, or a run's folder."
_SAMPLES = 10_000
_PICTURES = [".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".svg", ".pdf"]


def sample(
    model: Annotated[Path, typer.Argument(help=_MODEL)],
    count: Annotated[int, typer.Option(help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the latents.")] = 0,
    out: Annotated[Path, typer.Option(help="A .png for one grid, or a folder for single files.")] = Path("grid.png"),
    label: Annotated[str, typer.Option(help="Make images of this label only.")] = "",
    per_class: Annotated[
        int, typer.Option(help="Images of each label, in a folder a label (instead of --count).", min=0)
    ] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
) -> None:
    """Make images with a finished model: same seed, same images."""
    from prismfl.generator.sampling import image_grid, label_columns, load, save_folders, save_picture, save_pictures

    if out.suffix.lower() in _PICTURES:
        raise SettingError(f"--out {out}", "a .png, or a folder for single files", f"name {out.with_suffix('.png')}")
    sampler = load(model, device)
    if per_class:
        if label or out.suffix.lower() == ".png":
            raise SettingError(f"--per-class {per_class} with --label or a .png", "a folder alone", "name a folder")
        save_folders(sampler.per_class(per_class, seed=seed), out)
    else:
        images = sampler.sample(count, seed=seed, labels=sampler.labelled(label, count) if label else None)
        if out.suffix.lower() == ".png":
            save_picture(image_grid(images, 0 if label else label_columns(sampler)), out)
        else:
            save_pictures(images, out)
    print(out)


def export(
    model: Annotated[Path, typer.Argument(help=_MODEL)],
    out: Annotated[Path, typer.Option(help="ONNX file to write.")] = Path("model.onnx"),
) -> None:
    """Write a finished model as ONNX, checked against PyTorch: needs the extra `export`."""
    from prismfl.generator.onnx import export as write

    found = write(model, out)
    print(
        f"{out}: {sized(found.size)} (weights as float32 alone: {sized(found.float_bytes)}); "
        f"values differ from PyTorch's by at most {found.difference:.1g}"
    )


def evaluate(
    model: Annotated[Path, typer.Argument(help=_MODEL)],
    dataset: Annotated[str, typer.Option(help="Data set to judge against [the model's own].")] = "",
    data_dir: Annotated[str, typer.Option(help="Its folder [that of the run, in whose folder the model lies].")] = "",
    samples: Annotated[int, typer.Option(help="Samples the figures are of.")] = _SAMPLES,
    seed: Annotated[int, typer.Option(help="Seed of the latents.")] = 0,
    repeats: Annotated[int, typer.Option(help="Sets of samples, of a seed each: means with 95 % intervals.")] = 1,
    metrics: Annotated[
        str,
        typer.Option(
            help="Some of fid,kid,prdc,tone,readability [all of these that apply],"
            " and synthetic: what a classifier learns of the samples alone;"
            " membership: what they tell of the training images.",
            show_default=False,
        ),
    ] = "",
    inception: Annotated[Path | None, typer.Option(help="Weights of the FID's Inception-v3: adds fid.")] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    pairs: Annotated[
        Path | None, typer.Option(help="Picture of samples beside the training images nearest to them: a .png.")
    ] = None,
    pairs_by: Annotated[str, typer.Option(help="Nearest by judge (its features) or by pixels.")] = "judge",
    protocol: Annotated[
        str, typer.Option(help="Measure as others do instead: dpimagebench, or prism.", show_default=False)
    ] = "",
    classifiers: Annotated[
        str, typer.Option(help="Of dpimagebench: small, or its own resnet,wideresnet,resnext (hours on a GPU).")
    ] = "small",
    save: Annotated[bool, typer.Option("--save", help="Write evaluation.json beside the model, for reports.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a finished model beside real images: distance, fidelity, diversity, tone and colour, readability."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin for each other starve on a busy machine
    from prismfl.run.evaluate import as_text, evaluate_model, save_evaluation

    if protocol:
        if metrics or pairs or save or repeats != 1 or samples != _SAMPLES:
            got = "--protocol with --metrics, --pairs, --save, --repeats or --samples"
            raise SettingError(got, "the protocol alone, which fixes them", "leave them out")
        _by_protocol(model, protocol, dataset, data_dir, seed, classifiers, inception, device, as_json=as_json)
        return
    asked = (model, dataset, data_dir, samples, seed, inception, device)
    with shown_parts() as part:
        found = evaluate_model(*asked, repeats=repeats, metrics=metrics, pairs=pairs, pairs_by=pairs_by, part=part)
    print(json.dumps(found, indent=1) if as_json else as_text(found))
    if save:
        print(f"saved {save_evaluation(model, found)}", file=sys.stderr)


def _by_protocol(
    model: Path,
    protocol: str,
    dataset: str,
    data_dir: str,
    seed: int,
    classifiers: str,
    inception: Path | None,
    device: str,
    *,
    as_json: bool,
) -> None:
    from prismfl.run.protocol import evaluate_by_protocol, protocol_text

    asked = (model, protocol, dataset, data_dir, seed, classifiers, inception, device)
    with shown_parts() as part:
        found = evaluate_by_protocol(*asked, part=part)
    print(json.dumps(found, indent=1) if as_json else protocol_text(found))


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are put side by side.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page [RUN/report.html; of several runs, comparison.html].", show_default=False),
    ] = None,
) -> None:
    """Write one HTML page of a run or several: samples by round, curves, bytes, labels, privacy, settings."""
    from prismfl.report.page import build_report

    print(build_report(runs, out))


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    audit: Annotated[Path | None, typer.Option(help="Result of `prismfl audit --json`, in a file.")] = None,
    training_images: Annotated[
        bool,
        typer.Option("--training-images", help="The run's training images may be read: test for membership, copies."),
    ] = False,
    dataset: Annotated[str, typer.Option(help="Their data set [the run's].")] = "",
    data_dir: Annotated[str, typer.Option(help="Its folder [the run's].")] = "",
    samples: Annotated[int, typer.Option(help="Samples that these tests are of.")] = 1000,
) -> None:
    """Write a page for a data-protection officer, as HTML and Markdown: what was released, ε and for whom, limits."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from prismfl.report.card import Reading, build_card

    reading = Reading(dataset, data_dir, samples) if training_images else None
    if reading is None and (dataset or data_dir):
        raise SettingError("--dataset or --data-dir alone", "--training-images as well", "say that they may be read")
    with shown_parts() as part:
        page = build_card(run, audit, reading, part)
    print(f"{page}\n{page.with_suffix('.md')}")
    if reading is not None:
        print("warning: the page shows training images, which no guarantee covers: keep it at home", file=sys.stderr)


def fetch(
    dataset: Annotated[str, typer.Argument(help="mnist, fmnist, kmnist or cifar10.")],
    data_dir: Annotated[Path, typer.Option(help="Folder to put its files into.")],
    mirror: Annotated[str, typer.Option(help="Address that has the files [the publisher's].")] = "",
) -> None:
    """Download a public data set and check its sums."""
    from prismfl.data.fetch import fetch as run

    for path in run(dataset, data_dir, mirror):
        print(path)


def pretrain(
    images: Annotated[Path, typer.Option(help="Folder or zip of train/CLASS/ and test/CLASS/ images.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 20,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    name: Annotated[str, typer.Option(help="What the images are called.")] = "",
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
    classes: Annotated[str, typer.Option(help="Classes to train on: names, numbers from 0, ranges (0-4) [all].")] = "",
    colour: Annotated[float, typer.Option(help="Share of images with random colour; 0 keeps a sense of colour.")] = 0.5,
    grey: Annotated[float, typer.Option(help="Share of images turned grey; 0 where no grey images will come.")] = 0.3,
) -> None:
    """Train a feature network on public images."""
    from prismfl.data.datasets import load_dataset
    from prismfl.features.pretrain import Recipe
    from prismfl.features.pretrain import pretrain as run

    recipe = Recipe(epochs=epochs, rate=rate, seed=seed, colour=colour, grey=grey)
    if not 8 <= size <= 256:
        raise SettingError(f"--size {size}", "8 … 256", "change it")
    train, test = (load_dataset("folder", images, size, split) for split in ("train", "test"))
    accuracy = run(train, test, recipe, name or images.name, out, classes=classes)
    print(f"{out}: test accuracy {accuracy:.4f}")


def fetch_weights(
    name: Annotated[str, typer.Argument(help="vgg19, vgg19_bn or inception.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    url: Annotated[str, typer.Option(help="Fetch from here [where the file is published].")] = "",
) -> None:
    """Download a network's published weights and check them: needs a connection, once."""
    from prismfl.data.fetch import fetch_weights as run

    print(f"{out}: SHA-256 {run(name, out, url)}")
