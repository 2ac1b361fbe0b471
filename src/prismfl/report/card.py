"""One page for a data-protection officer: what a model is, what was released for it, and what that does not protect."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismfl.data.files import write_atomic
from prismfl.errors import RunFolderError
from prismfl.generator.modelfile import load_model
from prismfl.privacy.ledger import SAMPLERS, Entry, against_text, compose, covered
from prismfl.report.grids import Grid, read_grids
from prismfl.report.look import rendered
from prismfl.report.runs import Run, read_runs
from prismfl.run import folder as runfolder
from prismfl.run.progress import Part, no_parts, sized

PAIRS = "card-pairs.png"
MOST_RELEASES = 50  # on the page
_ROOM = 1_000_000  # bytes of a picture
_WEAK = 3.0  # ε from which on a bound by itself says little


@dataclass(frozen=True)
class Picture:
    """A picture of the page, its file from the run folder on, and what it shows."""

    grid: Grid
    file: str
    about: str


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, warnings, facts by name, a table with its heads, and a picture."""

    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: Picture | None = None


@dataclass(frozen=True)
class Reading:
    """Leave to read the run's training images for the tests of membership and copies.

    dataset, data_dir: where they are, by default as the run has it; samples: that the tests are of.
    """

    dataset: str = ""
    data_dir: str = ""
    samples: int = 1000


def build_card(root: Path, audit: Path | None = None, reading: Reading | None = None, part: Part = no_parts) -> Path:
    """Write `card.html` and `card.md` into a finished run's folder, and return the first.

    audit: what `prismfl audit --json` printed, in a file.  reading: without it no training image is read, and no test
    of membership is made.  part: is told how far the tests are.  Raises PrismError subclasses for a folder that holds
    no finished run, for damaged files, and for images that cannot be read.
    """
    (run,) = read_runs([root])
    if not run.folder.model.is_file():
        raise RunFolderError(f"no finished model in {root}", "a run that came to its end", "finish it with --resume")
    tests = None if reading is None else _tested(run, reading, part)
    audited = None if audit is None else _audit(audit)
    sections = list(_sections(run, tests, audited))
    for name in ("card.html", "card.md"):
        write_atomic(run.folder.root / name, rendered(name, "card", run.name, sections=sections, plain=plain))
    return run.folder.root / "card.html"


def plain(text: object) -> str:
    """Text for Markdown in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|&!~$])", r"\\\1", " ".join(str(text).split()))


def _sections(run: Run, tests: Mapping[str, Any] | None, audit: Mapping[str, Any] | None) -> Iterator[Section]:
    yield _model(run)
    yield _released(run)
    yield _promise(run)
    yield _reality(run, tests)
    yield _attacked(audit)
    yield Section("What is not protected", rows=[(line,) for line in _limits(run)])
    yield _made_with(run)


# ---------------------------------------------------------------------------------------- model


def _model(run: Run) -> Section:
    model, settings = load_model(run.folder.model), run.settings
    shape, labels = model.layout, ", ".join(model.labels)
    colour = "grey" if shape.channels == 1 else "colour"
    facts = {
        "images": f"{shape.size} × {shape.size} pixels, {colour}",
        "labels": labels or "none: it makes images of one kind",
        "data set": settings.data.dataset,
        "data read": run.read,
        "organisations": str(settings.data.clients),
        "rounds": f"{len(run.rounds)} of {run.planned}",
        "weights": str(shape.count),
    }
    newest = max(run.grids, default=None)
    picture = None
    if newest is not None:
        path = run.grids[newest]
        about = "Images that the model made, not chosen."
        picture = Picture(read_grids({newest: path}, _ROOM).shown[-1], f"samples/{path.name}", about)
    soft = settings.search.mask == "soft"
    learnt = "how much to keep of each of its weights" if soft else "a choice of which of its weights to keep"
    text = (
        f"The model “{run.name}” makes new images. Several organisations trained it together: images stayed with each "
        f"of them. It is a public random network, and {learnt}: that is all that was learned."
    )
    return Section("The model", [text], facts={name: told for name, told in facts.items() if told}, picture=picture)


def _released(run: Run) -> Section:
    one_shot, size = run.settings.federation.mode == "one-shot", run.folder.model.stat().st_size
    summed = run.settings.federation.secure_sum
    text = [
        f"To be given away: the file model.safetensors ({sized(size)}), and images that it makes. Nothing else of the "
        "run folder is meant to leave.",
        "What each organisation sent to the server: "
        + ("means of features of its images, once. " if one_shot else "a coded mask of its own and one loss a round. ")
        + ("Of its images it sent a part of a sum under secrecy: the server saw the sum alone. " if summed else "")
        + ("It follows from the noisy releases below." if run.ledger else "It was computed of its images as they are."),
    ]
    facts = {
        "sent by all organisations": sized(run.total("uplink_bytes")),
        "sent to all organisations": sized(run.total("downlink_bytes")),
    }
    return Section("What was released", text, facts=facts)


# -------------------------------------------------------------------------------------- privacy

_HEADS = ("client", "mechanism", "ε", "δ", "σ / Δ", "releases", "n", "images a person", "sampler")


def _promise(run: Run) -> Section:
    title = "The promise of privacy"
    if not run.ledger:
        told = "There is none: the run was made without (ε, δ). What the model tells of a single image is not bounded."
        return Section(title, warnings=[told])
    whole = compose(run.ledger)
    text = [
        f"Differential privacy with ε = {whole.epsilon:.4g} and δ = {whole.delta:g}. Nothing that anybody concludes "
        f"from the model, or from all that was sent, is more than e^ε = {_factor(whole.epsilon)} times as likely as if "
        "other images had stood in one person's place, but for a chance of δ."
    ]
    if whole.epsilon > _WEAK:
        text.append("By itself so large an ε bounds little: look at the tests and the attack below as well.")
    against = sorted({against_text(one) for one in run.ledger if one.sites})
    facts = {
        "for whom (unit)": "; ".join(sorted({_unit(entry) for entry in run.ledger})),
        "compared with (adjacency)": "; ".join(sorted({entry.adjacency for entry in run.ledger})),
        "noise (sampler)": ", ".join(sorted({f"{one.sampler}: {SAMPLERS[one.sampler]}" for one in run.ledger})),
        "weakest client": f"{whole.weakest}, of {whole.clients}",
        **({"against whom": "; ".join(against)} if against else {}),
        "for how long": "this run alone; prismfl privacy ledger tells what all runs on the same data come to",
    }
    rows = [_row(entry) for entry in run.ledger[:MOST_RELEASES]]
    more = len(run.ledger) - MOST_RELEASES
    return Section(title, text, [f"{more} more releases in ledger.json"] * (more > 0), facts, _HEADS, rows)


def _unit(entry: Entry) -> str:
    return entry.unit if entry.whole_persons else f"{entry.unit}: {entry.images_per_person} here"


def _factor(epsilon: float) -> str:
    factor = math.exp(min(epsilon, 700))
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}" if epsilon < 20 else f"{factor:.2g}"


def _row(entry: Entry) -> tuple[str, ...]:
    noise = f"{entry.epsilon:.4g}", f"{entry.delta:g}", f"{entry.noise_multiplier:.4g}"
    counts = str(entry.count), str(entry.images), covered(entry)
    return str(entry.client), entry.mechanism, *noise, *counts, entry.sampler


# ---------------------------------------------------------------------------------------- tests


def _tested(run: Run, reading: Reading, part: Part) -> Mapping[str, Any]:
    """Membership and nearest copies, measured on the training images."""
    from prismfl.run.evaluate import evaluate_model

    return evaluate_model(
        run.folder.model,
        reading.dataset,
        reading.data_dir,
        reading.samples,
        metrics="membership",
        pairs=run.folder.root / PAIRS,
        part=part,
    )  # fmt: skip


def _reality(run: Run, tests: Mapping[str, Any] | None) -> Section:
    title = "Tests on the training images"
    if tests is None:
        return Section(title, ["Not made: leave to read the training images was not given (--training-images)."])
    low, high = tests["membership_auc_over_images"]
    told = "something of what was used can be told" if low > 0.5 else "nothing was told apart"
    near, others = tests["nearest_of_samples"], tests["nearest_of_test"]
    copies = "no nearer than" if near >= others else "nearer than"
    text = [
        f"Membership, by the distance to the nearest of {tests['samples']} samples: a training image is told from one "
        f"that was not used in {tests['membership_auc']:.0%} of pairs, 95 % interval {low:.0%} to {high:.0%}; 50 % is "
        f"guessing: {told}.",
        f"Copies: the median sample lies {near:.3g} from the training image nearest to it, the median real image that "
        f"was not used {others:.3g}: samples lie {copies} such images. A stronger attack may find more.",
    ]
    about = "Left of each pair a sample, right the training image nearest to it."
    picture = Picture(read_grids({0: run.folder.root / PAIRS}, _ROOM).shown[0], PAIRS, about)
    warning = "This part is of real training images and shows some: no promise covers it."
    return Section(title, text, [f"{warning} Do not pass it on unless the images may be."], picture=picture)


_BOUNDS = {
    "many_runs": "many releases: ε is at least",
    "many_runs_if_gaussian": "many releases, if Gaussian: ε is at least",
    "one_run": "one release, many canaries: ε is at least",
}


def _audit(path: Path) -> Mapping[str, Any]:
    found = runfolder.read_json(path)
    if found is None or type(found.get("broken")) is not bool or any(not _number(found.get(key)) for key in _BOUNDS):
        raise RunFolderError(f"{path} is no audit", "what `prismfl audit --json` prints", "write it anew")
    return found


def _number(value: object) -> bool:
    return type(value) in (int, float)


def _attacked(audit: Mapping[str, Any] | None) -> Section:
    title = "Attack on the release"
    if audit is None:
        return Section(title, ["No result was given (--audit FILE, of prismfl audit --json)."])
    facts = {told: f"{audit[key]:.3g}" for key, told in _BOUNDS.items()}
    epsilon = audit.get("epsilon")
    promised = f"promised there was ε = {epsilon:g}." if _number(epsilon) else "the promise must be above them."
    verdict = "the promise is contradicted" if audit["broken"] else "nothing contradicts the promise"
    text = (
        f"An attacker who knows all but one person's images looked at many small releases that this program made for "
        f"the purpose, not at this run's: {verdict}. Each figure is what the attack has shown of ε, with 95 % "
        f"confidence; {promised}"
    )
    defects = [str(one) for one in audit.get("defects", ())] if isinstance(audit.get("defects"), list) else []
    return Section(title, [text], [verdict, *defects] if audit["broken"] else defects, facts)


def _limits(run: Run) -> Iterator[str]:
    """What the promise does not cover."""
    if run.ledger:
        yield "Somebody with images at several organisations: their ε add up (see prismfl privacy)."
        yield "How many images, or persons where these are known, each organisation has: it is public."
        yield "The names of labels: they are public."
        if (run.summary or {}).get("fid_judge") is not None:
            yield "Distances to held-back images (fid_judge): they are measured on real images."
        yield "What holds of a whole group: a model shows what the images have in common."
    else:
        yield "Single images: masks, losses, the model and its samples may reveal something of them."
    if run.settings.federation.secure_sum:
        yield "More organisations that collude with the server than their policies allow for."
    else:
        yield "The server sees each organisation's messages: they were not summed (see --secure-sum)."
    yield "Files of the run folder other than the model: some hold real images or what was computed of them."
    yield "Use of the images outside of this program, and how they were collected."


# ------------------------------------------------------------------------------- versions, hashes


def _made_with(run: Run) -> Section:
    summary = run.summary or {}
    versions = summary.get("versions")
    facts = {
        "model.safetensors, SHA-256": _sha256(run.folder.model),
        "feature network, SHA-256": str(summary.get("features_sha256", "not recorded")),
        **({str(name): str(told) for name, told in versions.items()} if isinstance(versions, Mapping) else {}),
        **({f"at release: {name}": told for name, told in run.ledger[0].versions.items()} if run.ledger else {}),
    }
    return Section("Versions and hashes", facts=facts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
