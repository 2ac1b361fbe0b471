"""Disk, memory and milliseconds an image of a finished model: PyTorch, NumPy alone, ONNX.

    python benchmarks/runtime.py [MODEL] [--images 960] [--threads 1] [--turns 3]

Without MODEL, a mask at random of the default generator with ten labels.  Each runtime works in a process of its
own, by turns; the least of its times counts.  Disk: the model's file, and the libraries that its process
loaded from (with all that lies in their folders).  Memory: largest resident memory of the process.
ONNX is left out where its extra is not installed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = {
    "pytorch": ("torch", "numpy", "safetensors"),
    "numpy": ("numpy", "safetensors"),
    "onnx": ("onnxruntime", "numpy"),
}
BATCH = 32  # of ONNX: larger ones leave the processor's cache


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measured(args.worker, args.model, args.images, args.threads)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(args, files_of(args.model, Path(scratch)))


def files_of(model: Path | None, scratch: Path) -> dict[str, Path]:
    """The file of each runtime that is installed."""
    model = model or random_model(scratch / "model.safetensors")
    files = {"pytorch": model, "numpy": model}
    if find_spec("onnx") and find_spec("onnxruntime"):
        from prismfl.generator.onnx import export

        export(model, scratch / "model.onnx")
        files["onnx"] = scratch / "model.onnx"
    return files


def random_model(path: Path) -> Path:
    """A model file of the default size."""
    from prismfl.generator.layout import Layout
    from prismfl.generator.modelfile import save_model
    from prismfl.generator.sampling import finish

    layout = Layout(32, 1, 16, 64, 10)
    mask = np.random.default_rng(0).random(layout.count) < 0.5
    save_model(finish(layout, 0, mask, "", tuple("0123456789")), path)
    return path


def compare(args: argparse.Namespace, files: dict[str, Path]) -> None:
    """Run the workers by turns, print a row each."""
    turns = [{name: worker(name, path, args) for name, path in files.items()} for _ in range(args.turns)]
    print(f"{args.images} images, {args.threads} processor thread(s), the best of {args.turns} turns")
    print("           ms an image   of PyTorch's   to the first image   memory      model file   libraries")
    for name, path in files.items():
        mine = [turn[name] for turn in turns]
        took, first = (min(one[key] for one in mine) for key in ("seconds", "first"))
        base = min(turn["pytorch"]["seconds"] for turn in turns)
        print(
            f"{name:10} {1e3 * took / args.images:11.3f}   {took / base:12.2f}   {first:16.2f} s   "
            f"{mine[0]['memory_mb']:6.0f} MB   {path.stat().st_size:10}   {library_mb(name):6.0f} MB"
        )


def worker(name: str, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One runtime in a process of its own."""
    threads = str(args.threads)
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    command = (sys.executable, __file__, str(path), "--images", str(args.images), "--threads", threads)
    done = subprocess.run(
        (*command, "--worker", name), capture_output=True, text=True, check=True, env=os.environ | limits
    )
    return dict(json.loads(done.stdout))


def measured(name: str, path: Path, images: int, threads: int) -> dict[str, float]:
    """Seconds of `images` images, after a first one; seconds from nothing to the first; memory."""
    begun = time.perf_counter()
    sample = opened(name, path, threads)
    sample(1, 0)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    sample(images, 1)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "first": first, "memory_mb": peak_mb()}


def peak_mb() -> float:
    """Largest resident memory of this process; rusage would tell that of the process it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def opened(name: str, path: Path, threads: int) -> Callable[[int, int], Any]:
    """A function (count, seed) → images."""
    if name == "onnx":
        return by_onnx(path, threads)
    if name == "numpy":
        from prismfl.generator import numpy_runtime as runtime

        sampler: Any = runtime.load(path)
    else:
        import prismfl

        sampler = prismfl.load(path)
    return lambda count, seed: sampler.sample(count, seed=seed)


def by_onnx(path: Path, threads: int) -> Callable[[int, int], Any]:
    """The same latents and labels through onnxruntime, as a user without prismfl's samplers would."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    inputs = {one.name: one for one in session.get_inputs()}

    def sample(count: int, seed: int) -> Any:
        latents = np.random.default_rng(seed).standard_normal((count, inputs["latents"].shape[1]), np.float32)
        labels = np.arange(count) % 2
        parts = []
        for start in range(0, count, BATCH):
            rows = slice(start, start + BATCH)
            fed = {"latents": latents[rows]} | ({"labels": labels[rows]} if "labels" in inputs else {})
            parts.append(session.run(["images"], fed)[0])
        return np.concatenate(parts)

    return sample


def library_mb(name: str) -> float:
    """What the libraries of a runtime take on disk, MB."""
    total = 0
    for library in LIBRARIES[name]:
        found = find_spec(library)
        for root in (found.submodule_search_locations or []) if found else []:
            total += sum(one.stat().st_size for one in Path(root).rglob("*") if one.is_file())
            beside = Path(root).with_name(f"{library}.libs")
            total += sum(one.stat().st_size for one in beside.rglob("*") if one.is_file())
    return total / 1e6


if __name__ == "__main__":
    main()
