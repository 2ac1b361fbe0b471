"""One HTML page of run folders: nothing in it is fetched, and whatever names it shows are escaped."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prismfl.data.files import write_atomic
from prismfl.metrics.text import grouped, in_words
from prismfl.privacy.ledger import compose
from prismfl.report.figures import Plot, charts, client_labels, draw, label_bars, layer_table, traffic_charts
from prismfl.report.grids import data_uri, read_grids, read_real
from prismfl.report.look import rendered
from prismfl.report.runs import WAYS, Run, read_runs
from prismfl.run.progress import lasting, sized
from prismfl.settings.schema import SECTIONS, Settings

ROOM = 3_500_000  # bytes of a page that its sample grids may take together
_REAL_ROOM = 500_000  # and that its grids of real images may take
MOST_ROWS = 30  # of releases and of clients left out
_PAIRS_ROOM = 2_000_000
_Fact = tuple[str, str, str]  # what it is, its value, and a note beneath


def build_report(roots: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of run folders, and return where: `RUN/report.html`, its plots in `RUN/plots/`.

    out: another file; the plots of `NAME.html` then lie in `NAME-plots/` beside it.  Several runs share a page, by
    default `comparison.html` in the current folder.  An unfinished run is reported as far as it came.  Raises
    PrismError subclasses for folders that are no run's, damaged files, and places that cannot be written.
    """
    runs = read_runs(roots)
    page = out or (runs[0].folder.report if len(runs) == 1 else Path("comparison.html"))
    blocks = [_block(run, index, len(runs)) for index, run in enumerate(runs)]
    training, traffic = ([draw(chart) for chart in made(runs)] for made in (charts, traffic_charts))
    for index, run in enumerate(runs):
        end, of = (f"-{index + 1}", run.name) if len(runs) > 1 else ("", "")
        training += [plot] if (plot := layer_table(run, f"density-by-layer{end}", of)) else []
    text = _rendered(blocks, training, traffic)
    plots = page.parent / ("plots" if page == runs[0].folder.report else f"{page.stem}-plots")
    for plot in (*training, *traffic, *(one for block in blocks for one in block["labels"])):
        write_atomic(plots / f"{plot.name}.png", plot.png)
    write_atomic(page, text)
    return page


def _block(run: Run, index: int, count: int) -> dict[str, Any]:
    """What the page shows of one run alone."""
    end = "" if count == 1 else f"-{index + 1}"
    summary, evaluation = run.summary or {}, run.evaluation or {}
    labels = (label_bars(run, f"labels-of-samples{end}"), client_labels(run, f"labels-of-clients{end}"))
    made_with = [part for name in ("versions", "hardware") if isinstance(part := summary.get(name), Mapping)]
    closing = summary.get("closing_bytes")
    return {
        "run": run,
        "grids": read_grids(run.grids, ROOM // count),
        "real": read_real(run.real, _REAL_ROOM // count),
        "labels": [one for one in labels if one],
        "pairs": _pairs(run),
        "facts": list(_facts(run)),
        "details": list(_details(run)),
        "cautions": _texts(summary.get("cautions")),
        "traffic": [_traffic_row(run, way) for way in WAYS],
        "closing": sized(closing) if type(closing) is int and closing else "",
        "settings": _settings(run.settings),
        "evaluation": list(grouped(evaluation)),
        "samples": evaluation.get("samples", "?"),
        "repeats": evaluation.get("repeats", 1),
        "warnings": _texts(evaluation.get("warnings")),
        "made_with": [row for part in made_with for row in part.items()],
    }


def _texts(found: Any) -> list[str]:
    return [str(one) for one in found] if isinstance(found, list) else []


def _pairs(run: Run) -> str:
    """The picture of nearest pairs that an evaluation names, where it lies in the run folder."""
    told = (run.evaluation or {}).get("pairs")
    name = told.get("file") if isinstance(told, Mapping) else None
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".png"):
        return ""
    path = run.folder.root / name
    small = path.is_file() and path.stat().st_size <= _PAIRS_ROOM
    return data_uri(path.read_bytes()) if small else ""


def _rendered(blocks: Sequence[Mapping[str, Any]], training: Sequence[Plot], traffic: Sequence[Plot]) -> str:
    return rendered(
        "page.html",
        "report",
        " · ".join(block["run"].name for block in blocks),
        script="page.js",
        blocks=blocks,
        training=training,
        traffic=traffic,
        differing=_differing([block["settings"] for block in blocks]),
        most_rows=MOST_ROWS,
    )


# ---------------------------------------------------------------------------------------- figures


def _facts(run: Run) -> Iterator[_Fact]:
    """What anybody asks of a run first."""
    yield "Rounds", f"{len(run.rounds)} of {run.planned}", "" if run.finished else _UNFINISHED
    lost = sum(1 for _ in run.left_out())
    told = f"{lost} replies did not count" if lost else "every reply counted"
    yield "Organisations", str(run.settings.data.clients), told
    yield "Time", lasting(sum(run.curve("seconds").values)), "of the rounds"
    yield _distance_fact(run)
    yield _privacy_fact(run)
    for way, told in _SENT.items():
        yield told, sized(run.total(f"{way}_bytes")), "in the whole run"
    yield _model_fact(run.summary or {})


_SENT = {"uplink": "Sent by all organisations", "downlink": "Sent to all organisations"}
_UNFINISHED = "unfinished: figures are of the rounds so far"


def _distance_fact(run: Run) -> _Fact:
    summary, name = run.summary or {}, "Distance to real images"
    found, halves = (_number(summary.get(key)) for key in ("fid_judge", "fid_judge_of_halves"))
    if found is None:
        return name, "–", "not measured" if run.finished else "measured at the end"
    told = "of too few images to say much" if summary.get("cautions") else in_words(found, halves) or "0 is best"
    return name, f"{found:.2f}", told + ("; outside the guarantee" if run.private else "")


def _privacy_fact(run: Run) -> _Fact:
    if not run.ledger:
        return "Privacy", "no promise", "nothing bounds what the model tells of single images"
    found = compose(run.ledger)
    told = "the smaller, the less anybody can learn of one person's images"
    return "Privacy", f"ε = {found.epsilon:.3g}", f"δ = {found.delta:g}; {told}"


def _model_fact(found: Mapping[str, Any]) -> _Fact:
    size = found.get("model_bytes")
    if type(size) is not int:
        return "Model file", "–", "made at the end"
    return "Model file", sized(size), "all that makes the images"


def _details(run: Run) -> Iterator[tuple[str, str]]:
    """What who knows the method asks: name and value."""
    yield "loss, last round", _last(run, "loss", ".4f")
    yield "mean θ(1 - θ), last round", _last(run, "theta_variance", ".3f")
    yield "share of the old θ kept (λ), last round", _last(run, "lambda", ".3f")
    for way, told in WAYS.items():
        yield f"bits a parameter and client, {told.partition(':')[0]}", _bits(run, way)
    summary = run.summary or {}
    yield "weights", str(summary.get("parameters", "–"))
    closing = {
        "bits a weight in the model file": "model_bits_per_parameter",
        "fid_judge of two halves of the real images": "fid_judge_of_halves",
    }
    for name, key in closing.items():
        value = _number(summary.get(key))
        yield name, "–" if value is None else f"{value:.2f}"


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def _last(run: Run, key: str, style: str) -> str:
    values = run.curve(key).values
    return format(values[-1], style) if values else "–"


def _bits(run: Run, way: str) -> str:
    values = run.curve(f"{way}_bits_per_parameter").values
    return f"{sum(values) / len(values):.3f}" if values else "–"


def _traffic_row(run: Run, way: str) -> tuple[str, ...]:
    """Way, payload, framing, whole frames, bits a parameter."""
    whole, framing = run.total(f"{way}_bytes"), run.total(f"{way}_framing_bytes")
    return WAYS[way], sized(whole - framing), sized(framing), sized(whole), _bits(run, way)


# --------------------------------------------------------------------------------------- settings


def _settings(settings: Settings) -> list[tuple[str, str, bool]]:
    """Names, values, and whether another value than the default was chosen.

    Public settings alone: a report is made to be passed on, and paths are nobody's business.
    """
    now, usual = asdict(settings.public()), asdict(Settings().public())
    found = [("seed", str(settings.seed), settings.seed != usual["seed"])]
    for section in SECTIONS:
        for key, value in now[section].items():
            told = str(value).lower() if isinstance(value, bool) else str(value) or "none"
            found.append((f"{section}.{key}", told, value != usual[section][key]))
    return found


def _differing(runs: Sequence[list[tuple[str, str, bool]]]) -> list[tuple[str, list[str]]]:
    """Settings in which several runs differ: name, and each run's value."""
    rows = [(each[0][0], [value for _, value, _ in each]) for each in zip(*runs, strict=True)]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
