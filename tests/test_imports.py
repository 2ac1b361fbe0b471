"""Code imports only what stands earlier on the one line of the architecture."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import prismfl

LINE = """
errors < settings < seeding < data < wire < sums < kernels < features < generator < runtime < moments < privacy < search
< server < federation < metrics < run < engines < report < cli < __main__
"""
ORDER = [name.strip() for name in LINE.split("<")]
ROOT = Path(prismfl.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
TORCH_FREE = (
    "prismfl, prismfl.settings.toml, prismfl.seeding.philox, prismfl.generator.layout, prismfl.wire.frames, "
    "prismfl.wire.masks, prismfl.wire.uniforms, prismfl.server, prismfl.generator.modelfile, prismfl.runtime, "
    "prismfl.run.environment, prismfl.report.page"
)


def name_of(path):
    """Dotted name below the package; empty for its facade."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Full names of what a module imports anywhere in its text, functions and type checks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_modules(path):
    """First parts of the package's own modules that a module imports."""
    names = {name.split(".")[1] for name in imports_of(path) if name.startswith("prismfl.")}
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}


def test_every_module_stands_on_the_line():
    assert {name_of(path).split(".")[0] for path in SOURCES if name_of(path)} <= set(ORDER)


@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path)], ids=name_of)
def test_no_import_runs_backwards(path):
    mine = name_of(path).split(".")[0]
    allowed = set(ORDER[: ORDER.index(mine)])
    if path.parent != ROOT:
        allowed.add(mine)  # siblings of one folder may import each other
    assert own_modules(path) <= allowed


def test_the_check_sees_imports_inside_functions_and_of_whole_modules(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import prismfl.cli.main\ndef f():\n    from prismfl import engines\n    from prismfl.wire import codec\n"
    )
    assert own_modules(path) == {"cli", "engines", "wire"}


def test_only_the_command_line_and_the_facade_import_engines():
    users = {name_of(path) for path in SOURCES if "engines" in own_modules(path)}
    assert {name.split(".")[0] for name in users if not name.startswith("engines")} == {"", "cli"}


def test_flower_is_imported_by_its_engine_alone():
    users = {name_of(path) for path in SOURCES for name in imports_of(path) if name.split(".")[0] == "flwr"}
    assert all(name == "engines.flower" or name.startswith("engines.flower.") for name in users)


def test_no_file_or_frame_is_pickled():
    # What a run's own processes tell each other goes through their pipes, by joblib's executor.
    allowed = {
        ("engines.processes", "joblib.externals.loky.ProcessPoolExecutor"),
        ("run.environment", "joblib.cpu_count"),
    }
    loaded = {(name_of(path), name) for path in SOURCES for name in imports_of(path)} - allowed
    assert not {name.split(".")[0] for _, name in loaded} & {"pickle", "joblib", "dill", "shelve"}


def run_python(text):
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)


def test_the_core_needs_no_torch():
    done = run_python(f"import sys; sys.modules['torch'] = None; import {TORCH_FREE}; print('fine')")
    assert done.stdout.strip() == "fine", done.stderr


def test_a_model_is_written_and_read_without_torch(tmp_path):
    text = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from pathlib import Path
from prismfl.generator.layout import Layout, frozen_weights
from prismfl.generator.modelfile import Model, load_model, save_model
layout = Layout(16, 1, 2, 8)
ones = np.ones(sum(layout.norms), np.float32)
path = Path({str(tmp_path / "m")!r})
save_model(Model(layout, 1, frozen_weights(layout, 1) > 0, ones, ones, ""), path)
print(load_model(path).mask.sum())
"""
    done = run_python(text)
    assert done.returncode == 0, done.stderr
    assert 700 < int(done.stdout) < 920


def test_importing_the_package_brings_in_no_torch():
    done = run_python("import sys, prismfl; print('torch' in sys.modules, callable(prismfl.train))")
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_an_unknown_name_of_the_facade_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = prismfl.nothing


def test_the_median_function_is_short():
    lengths = [
        node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(lengths) > 100
    assert statistics.median(lengths) < 12
