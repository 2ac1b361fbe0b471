"""What a run was made with: versions and hardware, for its summary.  Importing this needs no torch."""

import contextlib
import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prismfl import __version__


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what else decides about bytes, by name."""
    found = {"prismfl": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "constriction"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    # They round otherwise than torch does, so a run's bytes depend on whether they were compiled.
    try:
        import_module("prismfl.kernels._fast")
        found["kernels"] = "compiled"
    except ImportError:
        found["kernels"] = "none"
    return found


def cores() -> int:
    """Processor cores that this process may use: what its affinity and its group's limit leave of the machine's."""
    from joblib import cpu_count

    return int(cpu_count())


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GB, system, and the torch device's name."""
    found = {"processor": _processor(), "cores": cores()}
    with contextlib.suppress(AttributeError, OSError, ValueError):  # elsewhere than on POSIX
        found["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    if device.startswith("cuda"):
        import torch

        device = f"{device} ({torch.cuda.get_device_name(device)})"
    return {**found, "system": f"{platform.system()} {platform.machine()}", "device": device}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def available_mb() -> float:
    """Memory that this process may still take, MB, of the machine's and its group's; 0 where none is told."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) / 1e3 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append((limit - used) / 1e6)
    return min(found, default=0.0)
