"""Run experiment rows over seeds, resume where a run stopped, and write Markdown and CSV.

    python experiments/run.py experiments/yardstick.toml [more rows] --out experiments/results

A row is one TOML file: settings as `prismfl train --config` takes them, and a table `[row]` with
`about`, optionally `base` (another row it changes) and what to measure besides the distance of
the run itself: `metrics = "kid,prdc,readability"`, of 10,000 samples, or `readability = true` for
the last alone; and `dense = 0.01` where dense weights are averaged (see `dense.py`), at that rate, or
`pooled = true` where clients share one target (see `pooled.py`).
The data folder comes from the environment variable PRISMFL_DATA.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import dense
from pooled import pooled_targets

from prismfl.data.files import write_atomic
from prismfl.engines import simulator as inprocess
from prismfl.errors import SettingError
from prismfl.run.evaluate import evaluate_model
from prismfl.run.folder import RunFolder, read_rounds
from prismfl.run.progress import PlainWatcher
from prismfl.settings.schema import Settings
from prismfl.settings.toml import merged, read_toml, settings_from, to_toml

COLUMNS = (
    "fid_judge",
    "kid_judge",
    "precision_judge",
    "recall_judge",
    "density_judge",
    "coverage_judge",
    "black",
    "white",
    "midtone",
    "channel_range",
    "synthetic_accuracy",
    "real_accuracy",
    "readable",
    "confidence",
    "label_agreement",
    "least_class",
    "label_imbalance",
    "is_classifier",
    "up_bits",
    "down_bits",
    "mask_entropy",
    "theta_variance",
    "up_mb",
    "down_mb",
    "model_mb",
    "seconds",
)
MEGABYTES = {"uplink_bytes": "up_mb", "downlink_bytes": "down_mb", "model_bytes": "model_mb"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--metrics", default="", help="measured of every row, besides what rows ask for")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    args = parser.parse_args()
    results = [one_run(row, seed, args.out, args.runs, args.metrics) for seed in args.seeds for row in args.rows]
    name = args.rows[0].stem if len(args.rows) == 1 else "table"
    write_atomic(args.out / f"{name}.md", markdown(results))
    write_atomic(args.out / f"{name}.csv", csv_text(results))
    print(markdown(results))


def load_row(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row's nested settings, laid over its base's, and its `[row]` table."""
    values = read_toml(path)
    row = values.pop("row", {})
    if "base" not in row:
        return values, row
    below, base_row = load_row(path.parent / row["base"])
    for section, content in values.items():
        below[section] = {**below.get(section, {}), **content} if isinstance(content, dict) else content
    return below, {**base_row, **row}


def row_settings(values: dict[str, Any], seed: int, cache: Path) -> Settings:
    """Settings of one run of a row; its `data_dir`, or the data set's name, is looked for in PRISMFL_DATA.

    cache: folder of clients' moments, which rows share: they take longer to compute than a round.
    """
    changes: dict[str, Any] = {"seed": seed}
    # Releases stay in their run's folder: shared, rows would be refused a second one of the same images.
    if not values.get("privacy", {}).get("epsilon"):
        changes["cache_dir"] = str(cache)
    data = values.get("data", {})
    name = data.get("dataset", "digits")
    if name != "digits":
        if "PRISMFL_DATA" not in os.environ:
            raise SettingError("no PRISMFL_DATA in the environment", f"the folder above {name}/", "set it")
        changes["data_dir"] = str(Path(os.environ["PRISMFL_DATA"]) / data.get("data_dir", name))
    return settings_from(merged(values, changes))


def one_run(path: Path, seed: int, out: Path, runs: Path, more: str = "") -> dict[str, Any]:
    """One row and seed: read its result where there is one, else run or resume it.  more: metrics, by commas."""
    values, row = load_row(path)
    settings = row_settings(values, seed, runs / "targets")
    other = "".join(f"{name} = {row[name]}" for name in ("dense", "pooled") if name in row)
    text = to_toml(settings_from(merged(values, {"seed": seed}))) + other
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    metrics = row_metrics({**row, "metrics": f"{row.get('metrics', '')},{more}"})
    # What else is measured is no setting: a row that asks for more is measured anew, not run anew.
    kept = out / "runs" / f"{'-'.join([path.stem, str(seed), key, *metrics])}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    print(f"== {path.stem}, seed {seed}", flush=True)
    folder = RunFolder(runs / f"{path.stem}-{seed}-{key}")
    result = {"row": path.stem, "about": row.get("about", ""), "seed": seed, **provenance()}
    if "dense" in row:
        result |= dense.one_run(settings, row["dense"], folder.root, metrics)
    else:
        with pooled_targets() if row.get("pooled") else nullcontext():
            result |= trained(settings, folder, metrics)
    write_atomic(kept, json.dumps(result, indent=1) + "\n")
    return result


def trained(settings: Settings, folder: RunFolder, metrics: list[str]) -> dict[str, Any]:
    """Figures of a run of masks, or of one exchange, run or resumed in its folder."""
    begun = time.monotonic()
    fresh = not folder.config.exists()
    finished = (
        inprocess.train(settings, out=folder.root, watcher=PlainWatcher())
        if fresh
        else inprocess.resume(folder.root, watcher=PlainWatcher())
    )
    result = figures(folder, dict(finished.summary))
    result["wall_seconds"] = round(time.monotonic() - begun, 1) if fresh else None
    if metrics:
        data = settings.data
        found = evaluate_model(folder.model, data.dataset, data.data_dir, metrics=",".join(metrics))
        result |= {name: found[name] for name in COLUMNS if found.get(name) is not None}
    return result


def row_metrics(row: dict[str, Any]) -> list[str]:
    """Names of what a row asks to have measured of its finished model."""
    asked = [name.strip() for name in row.get("metrics", "").split(",") if name.strip()]
    return list(dict.fromkeys(asked + ["readability"] * bool(row.get("readability"))))


def figures(folder: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """What is tabulated of a finished run; bits are means over its rounds."""
    lines = read_rounds(folder)
    return {
        "fid_judge": summary.get("fid_judge"),
        "up_bits": mean(line["uplink_bits_per_parameter"] for line in lines),
        "down_bits": mean(line["downlink_bits_per_parameter"] for line in lines),
        "uplink_bytes": summary["uplink_bytes"],
        "downlink_bytes": summary["downlink_bytes"],
        "theta_variance": lines[-1]["theta_variance"],
        "mask_entropy": mean(line["mask_entropy"] for line in lines),
        "model_bytes": summary["model_bytes"],
        "seconds": summary["seconds"],
        "distances": {line["round"] + 1: line["distance"] for line in lines if "distance" in line},
    }


def provenance() -> dict[str, str]:
    """Commit, date and hardware of a run."""
    said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "commit": said.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} cores, {_processor()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def csv_text(results: list[dict[str, Any]]) -> str:
    """One line a run."""
    buffer = io.StringIO()
    names = [name for name in dict.fromkeys(key for result in results for key in result) if name != "distances"]
    writer = csv.DictWriter(buffer, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return buffer.getvalue()


def markdown(results: list[dict[str, Any]]) -> str:
    """One line a row: mean over seeds, ± standard deviation for more than one; 10⁶ bytes of all clients together."""
    results = [one | {short: one[name] / 1e6 for name, short in MEGABYTES.items() if name in one} for one in results]
    shown = [name for name in COLUMNS if any(result.get(name) is not None for result in results)]
    lines = ["| row | seeds | " + " | ".join(shown) + " |", "|---|---|" + "---|" * len(shown)]
    for row in dict.fromkeys(result["row"] for result in results):
        group = [result for result in results if result["row"] == row]
        cells = [_cell([result[name] for result in group if result.get(name) is not None]) for name in shown]
        lines.append(f"| {row} | {len(group)} | " + " | ".join(cells) + " |")
    made = sorted({f"{result['date']}, commit {result['commit']}, {result['hardware']}" for result in results})
    return "\n".join(lines) + "\n\n" + "\n".join(f"Measured {one}." for one in made) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {stdev(values):.3g}" if len(values) > 1 else ""
    return f"{mean(values):.4g}{spread}"


if __name__ == "__main__":
    main()
