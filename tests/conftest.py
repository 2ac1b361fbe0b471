"""Small shared pieces: tiny settings, a tiny feature map, and one processor thread."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from PIL import Image

from prismfl.features.networks import load_features
from prismfl.federation import agreement as agreements
from prismfl.federation import finished_mask
from prismfl.federation.agreement import agree
from prismfl.federation.client import make_kit
from prismfl.generator.layout import Layout
from prismfl.metrics import distances
from prismfl.moments import FeatureMap
from prismfl.settings import resolve
from prismfl.settings.resolve import Matching
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from

torch.set_num_threads(1)

hypothesis_settings.register_profile("tests", database=None, deadline=None, derandomize=True)
hypothesis_settings.load_profile("tests")


def _tiny(**changes) -> Settings:
    """Settings of a run that takes a second; keyword `section={...}` or `seed=` changes them."""
    base = {
        "data": {"clients": 3, "partition": "iid"},
        "generator": {"size": 16, "width": 2},
        "search": {"local_steps": 1, "batch_size": 4},
        "federation": {"rounds": 2, "finished_mask": "half"},
        "running": {"distance_samples": 0, "workers": 1},
    }
    if changes.get("search", {}).get("mask") == "soft":
        base["federation"]["finished_mask"] = "best"
    for key, value in changes.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return settings_from(base)


@pytest.fixture(scope="session")
def tiny():
    """A maker of tiny settings."""
    return _tiny


@pytest.fixture(autouse=True)
def own_ledgers(tmp_path_factory):
    """Ledgers of sources lie in a folder of the test's own, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state-home")))
        yield


@pytest.fixture(autouse=True)
def small_judge():
    """The judge looks at 32 pixels, in a tenth of the time; `test_judge` tests it at its own size."""
    # With a patch of its own: a test's may be undone before other fixtures end.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "JUDGE_SIZE", 32)
        yield


@pytest.fixture(autouse=True, scope="session")
def small_world():
    """Runs make images of 8 normals, match the embedded network's first two maps and compare two draws: far sooner."""

    def matching(settings, *, labelled):
        found = resolve.matching_of(settings, labelled=labelled)
        return replace(found, layers=(0, 1)) if settings.features.features == "vgg" else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreements, "_LATENT", 8)
        patch.setattr(finished_mask, "_DRAWS", 2)
        patch.setattr(agreements, "matching_of", matching)
        yield


@pytest.fixture
def full_world():
    """Undo `small_world`, for what must agree with processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreements, "_LATENT", 64)
        patch.setattr(finished_mask, "_DRAWS", 8)
        patch.setattr(agreements, "matching_of", resolve.matching_of)
        yield


@pytest.fixture(scope="session")
def layout():
    """A generator of 16×16 grey images."""
    return Layout(16, 1, 2, 8)


@pytest.fixture(scope="session")
def feature_map():
    """The embedded network's first two maps of 16×16 grey images."""
    return FeatureMap(load_features("vgg"), Matching(layers=(0, 1)), 1, 16)


@pytest.fixture(scope="session")
def blobs():
    """Thirty grey images of a bright square somewhere: uint8 `[30, 1, 16, 16]`."""
    rng = np.random.default_rng(5)
    images = np.zeros((30, 1, 16, 16), np.uint8)
    for image, (top, left) in zip(images, rng.integers(0, 10, (30, 2)), strict=True):
        image[0, top : top + 6, left : left + 6] = 255
    return images


@pytest.fixture(scope="session")
def make_agreement(tiny):
    """A maker of agreements from tiny settings."""

    def make(**changes):
        return agree(tiny(**changes), 1)

    return make


@pytest.fixture(scope="session")
def make_world(make_agreement, feature_map, blobs):
    """A maker of (agreement, kit, targets by client)."""
    targets = {client: feature_map.target(blobs[10 * client : 10 * client + 10]) for client in range(3)}

    def make(sizes=None, **changes):
        agreement = make_agreement(**changes)
        mine = dict(targets)
        for client, images in (sizes or {}).items():
            mine[client] = replace(targets[client], images=images)
        return agreement, make_kit(agreement, feature_map), mine

    return make


@pytest.fixture(scope="session")
def write_sites():
    """A writer of one folder of class folders for each client, images all different."""

    def write(root, counts):
        rng = np.random.default_rng(0)
        for client, count in counts.items():
            for index in range(count):
                path = root / client / "ab"[index % 2] / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
        return root

    return write
