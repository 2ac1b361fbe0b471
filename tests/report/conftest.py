"""Run folders made up for reports: what a run writes, without training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from prismfl.data.files import write_atomic
from prismfl.privacy.ledger import Entry, to_json
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder
from prismfl.settings.toml import settings_from

CLASSES = tuple("0123456789")


def line(index, rounds):
    """One line of a log, of a run whose θ settles."""
    left = 1 - index / rounds
    return {
        "round": index,
        "loss": 0.02 + 0.05 * left,
        "lambda": 0.0,
        "density": 0.5 - 0.01 * left,
        "theta_variance": 0.1 + 0.15 * left,
        "mask_entropy": 0.5 + 0.5 * left,
        "flips": 0.01 + 0.2 * left,
        "local_divergence": 0.2 + 0.3 * left,
        "theta_by_layer": {f"block{layer}.first": 0.5 - 0.01 * layer * (1 - left) for layer in range(12)},
        "cohort": [0, 1],
        "left_out": {},
        "seconds": 1.5,
        "uplink_bytes": 3000 + index,
        "downlink_bytes": 9000 - index,
        "uplink_framing_bytes": 80,
        "downlink_framing_bytes": 80,
        "uplink_bits_per_parameter": 0.25,
        "downlink_bits_per_parameter": 1.25,
    }


def entry(client=0):
    return Entry(client, "gaussian", "exact", 9.8, 1e-5, 0.508, 0.508 * 0.01, 0.01, 0.0, 140, 1, 4000)


def _fabricate(root, rounds=6, done=None, grids=2, epsilon=0.0, classes=CLASSES, size=34, mode="L", **changes):
    """A run folder of `done` of `rounds` rounds, with grids of noise; keywords are sections of settings."""
    sections = {"data": {"clients": 2, "partition": "iid"}, "federation": {"rounds": rounds}}
    sections |= {"privacy": {"epsilon": epsilon}} | changes
    folder = runfolder.create(root, settings_from(sections))
    done = rounds if done is None else done
    write_atomic(folder.rounds, "".join(json.dumps(line(index, rounds)) + "\n" for index in range(done)))
    rng = np.random.default_rng(0)
    for number in range(1, grids + 1):
        pixels = rng.integers(0, 256, (size, size) if mode == "L" else (size, size, 3), np.uint8)
        path = folder.samples(number * done // grids)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((2 * size, 2 * size), Image.Resampling.NEAREST).save(path)
    if not epsilon:
        runfolder.save_labels(folder, classes, [[3] * len(classes), [0] * (len(classes) - 1) + [7]])
    else:
        write_atomic(folder.ledger, json.dumps({"releases": to_json([entry(), replace(entry(), client=1)])}))
    if done == rounds:
        write_atomic(folder.summary, json.dumps(_summary(rounds, epsilon)))
    return folder


def _summary(rounds, epsilon):
    found = {"rounds": rounds, "parameters": 1000, "model_bytes": 150, "model_bits_per_parameter": 1.2}
    found |= {"uplink_bytes": 20_000, "downlink_bytes": 60_000, "uplink_framing_bytes": 500}
    found |= {"downlink_framing_bytes": 500, "closing_bytes": 700, "fid_judge": 12.5, "privacy": "said of privacy"}
    found |= {"versions": {"torch": "9.9.9"}, "hardware": {"processor": "a processor"}}
    return found | ({"outside_guarantee": ["fid_judge", "fid_judge_of_halves"]} if epsilon else {})


@pytest.fixture(scope="session")
def fabricate():
    """A maker of run folders."""
    return _fabricate


@pytest.fixture(scope="session")
def evaluate_as():
    """A writer of an evaluation beside a model."""

    def write(folder: RunFolder, **figures):
        write_atomic(folder.evaluation, json.dumps({"samples": 100, "repeats": 1, "seed": 0} | figures))

    return write
