"""Printing never fails: in other encodings, on closed streams, and when nobody reads."""

import os
import subprocess
import sys

import pytest

RUN = """
import sys
from prismfl.cli.output import steady
steady()
for line in range(3000):
    print("ε = 3 ≥ δ, θ …", chr(0x4E00), flush=True)
print("done", file=sys.stderr)
open("made", "w").close()
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells of POSIX")


def shell(text, tmp_path, **env):
    """A program that prints a lot, in a shell's own words: `$RUN`."""
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    env = {**os.environ, "RUN": f"{sys.executable} run.py", **env}
    return subprocess.run(["bash", "-c", text], cwd=tmp_path, env=env, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("encoding", "first"),
    [
        ("ascii", b"epsilon = 3 >= delta, theta ... \\u4e00"),
        ("cp1252", b"epsilon = 3 >= delta, theta \x85 \\u4e00"),
        ("utf-8", "ε = 3 ≥ δ, θ … 一".encode()),
    ],
)
def test_every_encoding_takes_every_sign(tmp_path, encoding, first):
    done = shell("$RUN", tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == first and done.stderr == b"done\n"


def test_a_locale_without_signs_is_no_error(tmp_path):
    done = shell("$RUN", tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and done.stderr == b"done\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("$RUN >&-", b"done\n"),
        ("$RUN >&- 2>&- <&-", b""),
        ("$RUN 2>&-", b""),
        ("$RUN | head -1 >/dev/null", b"note: standard output takes no more (Broken pipe); going on without\ndone\n"),
        (
            "$RUN > /dev/full",
            b"note: standard output takes no more (No space left on device); going on without\ndone\n",
        ),
    ],
)
def test_what_runs_goes_on_when_nobody_reads(tmp_path, text, says):
    done = shell(f"set -o pipefail; {text}", tmp_path)
    assert done.returncode == 0 and done.stderr == says and (tmp_path / "made").read_bytes() == b""
