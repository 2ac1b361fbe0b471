"""What a machine takes: every row is there, whatever is missing is named, and the reference is whole."""

import contextlib
import functools
import io
import json
import sys

import pytest
import torch

from prismfl import bench, cli
from prismfl.bench import Sizes, as_text, report
from prismfl.errors import DependencyError
from prismfl.search import processor_threads

TINY = Sizes(16, 2, 8, 8, (0, 1), 1, 2_000, 50, 20, 1)


@pytest.fixture(scope="module")
def rows():
    return bench.bench(TINY)


def test_every_part_of_a_run_has_a_figure(rows):
    assert [row.unit for row in rows] == ["ms", "ms", "s", "Mbit/s", "Mbit/s", "µs an entry", "images/s"]
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.value > 0 and not row.why for row in rows)


def test_the_number_of_threads_is_as_before(rows):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with processor_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_the_reference_has_the_rows_of_default_sizes():
    wanted = {row.name.replace(" 1 steps", " 5 steps") for row in bench.bench(TINY)}
    assert set(bench.REFERENCE["rows"]) == wanted
    assert all(value > 0 for value in bench.REFERENCE["rows"].values())
    assert bench.REFERENCE["hardware"] and bench.REFERENCE["date"] and bench.REFERENCE["torch"]


def test_text_and_json_have_every_row(rows):
    found = report(rows)
    text = as_text(found)
    for row in rows:
        assert sum(line.startswith(row.name) for line in text.splitlines()) == 1
    assert found["hardware"] in text and bench.REFERENCE["date"] in text
    assert [row["name"] for row in json.loads(json.dumps(found))["rows"]] == [row.name for row in rows]


def test_what_is_missing_is_named_and_the_rest_is_measured(monkeypatch):
    def missing(*_):
        raise DependencyError("opendp does not import", "it", "pip install opendp")

    monkeypatch.setattr(bench, "noisy", missing)
    rows = bench.bench(TINY)
    (row,) = [row for row in rows if row.value is None]
    assert "opendp" in row.why and len(rows) == 7
    assert "opendp does not import" in as_text(report(rows))


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_command_prints_the_report(monkeypatch, words):
    monkeypatch.setattr(bench, "bench", functools.partial(bench.bench, TINY))
    monkeypatch.setattr(sys, "argv", ["prismfl", "bench", *words])
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    if words:
        assert len(json.loads(out.getvalue())["rows"]) == 7
    else:
        assert "local step, float32" in out.getvalue()
