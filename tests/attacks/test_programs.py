"""Attacks on a real deployment on this machine."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from prismfl.engines.flower import warm
from prismfl.run.folder import RunFolder, read_rounds

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def mark(tmp_path_factory):
    """Where a program that a server sent would leave its mark; set before the sites' processes begin."""
    path = tmp_path_factory.mktemp("mark") / "mark"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRISMFL_MARK", str(path))
        yield path


@pytest.mark.skipif(not warm.SUPPORTED, reason="elsewhere a site runs what Flower brings it: docs/guide/deploy.md")
def test_a_site_runs_its_own_program_whatever_the_server_sends(mark, deployment, site_settings):
    out = deployment.begin(site_settings(running={"deadline": 120.0}), HERE / "malicious")
    deployment.finish(out)
    assert [line["cohort"] for line in read_rounds(RunFolder(out))] == [[0, 1, 2]] * 2
    assert not mark.exists()
    # The mark is one that the program does leave, where it is run.
    environment = os.environ | {"PRISMFL_MARK": str(mark)}
    os.spawnve(os.P_WAIT, sys.executable, [sys.executable, str(HERE / "malicious" / "client_app.py")], environment)
    assert mark.read_text() == "ran"
