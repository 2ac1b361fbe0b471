"""Run folders as a report reads them: finished, unfinished, old, and damaged."""

import json

import pytest

from prismfl.errors import ModelFileError, PrismError, RunFolderError, SettingError
from prismfl.report.runs import MOST_RUNS, read_runs
from prismfl.run.folder import RunFolder, create
from prismfl.settings.toml import settings_from


def test_curves_are_of_rounds_done(tmp_path, fabricate):
    (run,) = read_runs([fabricate(tmp_path / "run", rounds=4).root])
    assert run.finished and run.curve("loss").rounds == (1, 2, 3, 4)
    assert run.curve("theta_by_layer.block3.first").values[0] == 0.5
    assert run.curve("distance").rounds == () and run.distance().values == (12.5,)
    assert run.total("uplink_bytes") == 20_000, "with what the closing comparison took"
    assert list(run.grids) == [2, 4] and len(run.layers()) == 12 and run.classes == tuple("0123456789")


def test_an_unfinished_run_has_less(tmp_path, fabricate):
    (run,) = read_runs([fabricate(tmp_path / "run", rounds=9, done=3).root])
    assert not run.finished and (len(run.rounds), run.planned) == (3, 9)
    assert run.total("uplink_bytes") == 3000 + 3001 + 3002 and "no formal guarantee" in run.privacy


def test_a_run_before_its_first_round_reads(tmp_path):
    create(tmp_path / "run", settings_from({}))
    (run,) = read_runs([tmp_path / "run"])
    assert not run.rounds and not run.grids and run.labels is None and run.layers() == ()


def test_a_last_line_cut_short_is_left_out(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run", rounds=5)
    folder.rounds.write_text(folder.rounds.read_text()[:-20])
    assert len(read_runs([folder.root])[0].rounds) == 4


def test_a_log_of_an_older_version_reads(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run")
    lines = [json.loads(text) for text in folder.rounds.read_text().splitlines()]
    for line in lines:
        del line["flips"], line["local_divergence"], line["theta_by_layer"], line["mask_entropy"]
    folder.rounds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read_runs([folder.root])
    assert run.curve("flips").rounds == () and run.layers() == () and len(run.curve("loss").rounds) == 6


def test_runs_of_one_name_are_told_apart(tmp_path, fabricate):
    roots = [fabricate(tmp_path / parent / "run").root for parent in "ab"]
    assert [run.name for run in read_runs(roots)] == ["a/run", "b/run"]
    assert len({run.name for run in read_runs([roots[0], roots[0]])}) == 2


@pytest.mark.parametrize("count", [0, MOST_RUNS + 1])
def test_too_few_or_many_runs_are_refused(tmp_path, count):
    with pytest.raises(SettingError, match="run folders; expected 1 … 10"):
        read_runs([tmp_path] * count)


@pytest.mark.parametrize("root", ["nothing", "empty"])
def test_what_is_no_run_is_refused(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match=r"no config\.toml"):
        read_runs([tmp_path / root])


DAMAGE = {
    "config": "seed = [",
    "rounds": '{"round": 0\n{"round": 1}\n',
    "summary": "{",
    "evaluation": "[1]",
    "ledger": '{"releases": [{"client": 0}]}',
    "labels": '{"classes": ["a", "b"], "counts": [[1]]}',
    "model": "nothing of the kind",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(tmp_path, fabricate, name):
    folder = fabricate(tmp_path / "run")
    path = getattr(folder, name)
    path.write_text(DAMAGE[name])
    with pytest.raises((RunFolderError, ModelFileError)) as caught:
        read_runs([folder.root])
    assert path.name in caught.value.got


@pytest.mark.parametrize(
    "changes",
    [{"loss": "low"}, {"round": None}, {"left_out": [1]}, {"theta_by_layer": 3}, {"uplink_bytes": True}],
)
def test_a_line_of_other_things_than_figures_is_refused(tmp_path, fabricate, changes):
    folder = fabricate(tmp_path / "run", rounds=2)
    lines = [json.loads(text) | changes for text in folder.rounds.read_text().splitlines()]
    folder.rounds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunFolderError, match="line 1 has " + next(iter(changes))):
        read_runs([folder.root])


@pytest.mark.parametrize("raw", [b"\xff\xfe\n", b"3\n", b"[]\n4\n", b"\x00" * 40, b"[" * 100_000])
def test_bytes_that_are_no_log_are_refused_or_cut(tmp_path, fabricate, raw):
    folder = fabricate(tmp_path / "run")
    folder.rounds.write_bytes(raw)
    try:
        assert read_runs([folder.root])[0].rounds == ()
    except PrismError as error:
        assert "rounds.jsonl" in error.got


def test_the_folder_that_is_read_is_the_one_given(tmp_path, fabricate):
    folder = fabricate(tmp_path / "run")
    assert read_runs([folder.root])[0].folder == RunFolder(folder.root)
