"""One HTML page of run folders: nothing in it is fetched, and whatever names it shows are escaped."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prismfl import __version__
from prismfl.data.files import write_atomic
from prismfl.metrics.text import grouped
from prismfl.report.figures import (
    INK,
    LINE,
    OUTSIDE,
    SERIES,
    Plot,
    charts,
    client_labels,
    draw_charts,
    label_bars,
    traffic_charts,
)
from prismfl.report.grids import Grid, Grids, data_uri, read_grids, read_real
from prismfl.report.runs import WAYS, Run, read_runs
from prismfl.run.progress import sized
from prismfl.settings.schema import SECTIONS, Settings

ROOM = 3_500_000  # bytes of a page that its sample grids may take together
_REAL_ROOM = 500_000  # and that its grids of real images may take
MOST_ROWS = 30  # of releases and of clients left out
_PAIRS_ROOM = 2_000_000


@dataclass(frozen=True)
class Fact:
    """A closing figure: what it is, its value, and a note beneath."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Block:
    """What the page shows of one run alone."""

    run: Run
    grids: Grids
    real: Grid | None
    labels: Sequence[Plot]
    pairs: str

    @cached_property
    def facts(self) -> list[Fact]:
        """Closing figures."""
        return list(_facts(self.run))

    @property
    def traffic(self) -> list[tuple[str, ...]]:
        """Rows of way, payload, framing, whole frames, bits a parameter."""
        return [_traffic_row(self.run, way) for way in WAYS]

    @property
    def settings(self) -> list[tuple[str, str, bool]]:
        """Names, values, and whether another value than the default was chosen."""
        return _settings(self.run.settings)

    @property
    def closing(self) -> str:
        """Bytes that the choice of the finished model's mask took; empty for none."""
        found = (self.run.summary or {}).get("closing_bytes")
        return sized(found) if type(found) is int and found else ""

    @property
    def evaluation(self) -> list[Any]:
        """Titles and figures."""
        return list(grouped(self.run.evaluation or {}))

    @property
    def evaluated(self) -> str:
        """What the evaluation was of."""
        found = self.run.evaluation or {}
        samples, repeats = found.get("samples", "?"), found.get("repeats", 1)
        again = f", {repeats} times: means and 95 % intervals" if repeats != 1 else ""
        return f"Of the finished model, on {samples} samples{again}."

    @property
    def warnings(self) -> list[str]:
        """What the evaluation warns of."""
        found = (self.run.evaluation or {}).get("warnings", ())
        return [str(one) for one in found] if isinstance(found, list) else []

    @property
    def made_with(self) -> list[tuple[str, str]]:
        """Versions and hardware."""
        summary = self.run.summary or {}
        parts = (summary.get("versions"), summary.get("hardware"))
        return [(str(name), str(value)) for part in parts if isinstance(part, Mapping) for name, value in part.items()]


def build_report(roots: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of run folders, and return where: `RUN/report.html`, its plots in `RUN/plots/`.

    out: another file; the plots of `NAME.html` then lie in `NAME-plots/` beside it.  Several runs share a page, by
    default `comparison.html` in the current folder.  An unfinished run is reported as far as it came.  Raises
    PrismError subclasses for folders that are no run's, damaged files, and places that cannot be written.
    """
    runs = read_runs(roots)
    page = out or (runs[0].folder.report if len(runs) == 1 else Path("comparison.html"))
    blocks = [_block(run, index, len(runs)) for index, run in enumerate(runs)]
    shared = draw_charts(charts(runs)), draw_charts(traffic_charts(runs))
    text = _rendered(blocks, *shared)
    plots = page.parent / ("plots" if page == runs[0].folder.report else f"{page.stem}-plots")
    for plot in (*shared[0], *shared[1], *(one for block in blocks for one in block.labels)):
        write_atomic(plots / f"{plot.name}.png", plot.png)
    write_atomic(page, text)
    return page


def _block(run: Run, index: int, count: int) -> Block:
    end, grids = "" if count == 1 else f"-{index + 1}", read_grids(run.grids, ROOM // count)
    real = read_real(run.real, _REAL_ROOM // count)
    labels = (label_bars(run, f"labels-of-samples{end}"), client_labels(run, f"labels-of-clients{end}"))
    return Block(run, grids, real, [one for one in labels if one], _pairs(run))


def _pairs(run: Run) -> str:
    """The picture of nearest pairs that an evaluation names, where it lies in the run folder."""
    told = (run.evaluation or {}).get("pairs")
    name = told.get("file") if isinstance(told, Mapping) else None
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".png"):
        return ""
    path = run.folder.root / name
    if not path.is_file() or path.stat().st_size > _PAIRS_ROOM:
        return ""
    return data_uri(path.read_bytes())


def _rendered(blocks: Sequence[Block], training: Sequence[Plot], traffic: Sequence[Plot]) -> str:
    pages = Environment(
        loader=PackageLoader("prismfl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = pages.get_template("page.js").render()
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return pages.get_template("page.html").render(
        blocks=blocks,
        training=training,
        traffic=traffic,
        title=" · ".join(block.run.name for block in blocks),
        colours={"ink": INK, "line": LINE} | {f"series-{index}": colour for index, colour in enumerate(SERIES)},
        differing=_differing([block.run for block in blocks]),
        outside=OUTSIDE,
        most_rows=MOST_ROWS,
        script=script,
        script_sha256=allowed,
        version=__version__,
    )


# ---------------------------------------------------------------------------------------- figures


def _facts(run: Run) -> Iterator[Fact]:
    found = run.summary or {}
    done = f"{len(run.rounds)} of {run.planned}"
    yield Fact("rounds", done, "" if run.finished else "unfinished: figures are of the rounds so far")
    yield Fact("training", f"{sum(run.curve('seconds').values):.0f} s", "rounds alone, without closing figures")
    yield Fact("fid_judge", *_distance_fact(run, found))
    yield Fact("loss, last round", _last(run, "loss", ".4f"))
    yield Fact("mean θ(1 - θ), last round", _last(run, "theta_variance", ".3f"), f"λ {_last(run, 'lambda', '.3f')}")
    for way, arrow in zip(WAYS, ("up", "down"), strict=True):
        yield Fact(f"bytes {arrow}", sized(run.total(f"{way}_bytes")), f"{_bits(run, way)} bits a parameter and client")
    yield Fact("model file", *_model_fact(found))


def _distance_fact(run: Run, found: Mapping[str, Any]) -> tuple[str, str]:
    if type(found.get("fid_judge")) not in (int, float):
        return "–", "not measured" if run.finished else "measured at the end"
    told = "finished model against held-back images"
    return f"{found['fid_judge']:.2f}", told + (", outside the guarantee" if run.private else "")


def _model_fact(found: Mapping[str, Any]) -> tuple[str, str]:
    size, bits = found.get("model_bytes"), found.get("model_bits_per_parameter")
    if type(size) is not int or type(bits) not in (int, float):
        return "–", "made at the end"
    return sized(size), f"{bits:.2f} bits a weight, {found.get('parameters', '?')} weights"


def _last(run: Run, key: str, style: str) -> str:
    values = run.curve(key).values
    return format(values[-1], style) if values else "–"


def _bits(run: Run, way: str) -> str:
    values = run.curve(f"{way}_bits_per_parameter").values
    return f"{sum(values) / len(values):.3f}" if values else "–"


def _traffic_row(run: Run, way: str) -> tuple[str, ...]:
    whole, framing = run.total(f"{way}_bytes"), run.total(f"{way}_framing_bytes")
    told = "up: clients to server" if way == "uplink" else "down: server to clients"
    return told, sized(whole - framing), sized(framing), sized(whole), _bits(run, way)


# --------------------------------------------------------------------------------------- settings


def _settings(settings: Settings) -> list[tuple[str, str, bool]]:
    """Public settings alone: a report is made to be passed on, and paths are nobody's business."""
    now, usual = asdict(settings.public()), asdict(Settings().public())
    found = [("seed", str(settings.seed), settings.seed != Settings().seed)]
    for section in (name for name in SECTIONS if name != "output"):
        for key, value in now[section].items():
            found.append((f"{section}.{key}", _told(value), value != usual[section][key]))
    return found


def _told(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "all"
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which several runs differ: name, and each run's value."""
    each = [{name: value for name, value, _ in _settings(run.settings)} for run in runs]
    return [(name, [one[name] for one in each]) for name in each[0] if len({one[name] for one in each}) > 1]
