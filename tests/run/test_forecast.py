"""Forecasts: bytes are near those of the real run, and the trial leaves no trace."""

import json
import math

import numpy as np
import pytest
import torch

import prismfl
from prismfl.run import folder as runfolder
from prismfl.run.forecast import forecast
from prismfl.run.prepare import prepare

IMAGES = np.random.default_rng(4).integers(0, 256, (40, 1, 16, 16), np.uint8)


@pytest.mark.parametrize(
    ("federation", "labels"),
    [
        ({}, None),
        ({"secure_sum": True}, None),
        ({"secure_sum": True, "mode": "one-shot"}, None),
        ({"secure_sum": True, "epsilon": 9.8}, np.arange(40) % 3),
        ({}, np.arange(40) % 3),
        ({"cohort": 2, "rounds": 3}, None),
        ({"alpha": 0.5}, None),
        ({"draws": "independent", "uplink": "fewest"}, None),
        ({"uplink": "half"}, None),
        ({"rounds": 6}, None),
    ],
    ids=["all", "sums", "once", "handed", "labels", "cohort", "alpha", "independent", "half", "long"],
)
def test_bytes_are_near_those_of_the_run(tiny, tmp_path, federation, labels):
    federation, epsilon = dict(federation), federation.get("epsilon", 0.0)
    federation.pop("epsilon", None)
    settings = tiny(federation=federation, privacy={"epsilon": epsilon})
    ready = prepare(settings, IMAGES, labels)
    found = forecast(ready, 1)
    prismfl.train(settings, IMAGES, labels, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert 0.6 < found.uplink_bytes / sum(line["uplink_bytes"] for line in lines) < 1.7
    assert 0.5 < found.downlink_bytes / sum(line["downlink_bytes"] for line in lines) < 2
    assert found.parameters == prismfl.load(tmp_path / "run" / "model.safetensors").model.layout.count
    kept = [tmp_path / "run" / name for name in ("gathered.safetensors", "clients/0/target.safetensors")]
    held = next(runfolder.load_arrays(path) for path in kept if path.exists())
    assert found.moment_dimension == len(held["moments"])
    assert found.images_per_client == (12, 12)
    assert 0 < found.minutes < math.inf and found.memory_mb > 50


def test_fewest_and_most_images_are_told(tiny):
    ready = prepare(tiny(data={"partition": "dirichlet:0.1"}))
    sizes = [len(part) for part in ready.clients]
    assert forecast(ready, 1).images_per_client == (min(sizes), max(sizes))
    assert min(sizes) < max(sizes)


def test_the_trial_uses_a_clients_threads_and_gives_them_back(tiny, monkeypatch):
    asked, before = [], torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    forecast(prepare(tiny(running={"client_threads": 7}), IMAGES), 1)
    assert asked == [7, before]
