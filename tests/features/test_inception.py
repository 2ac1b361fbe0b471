"""The FID's Inception-v3 against a computation layer by layer, TensorFlow 1's scaling, and files refused."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from prismfl.errors import ModelFileError
from prismfl.features.inception import Inception, load_inception, resize


@pytest.fixture(scope="module")
def state():
    """Random weights under the published names, with BatchNorm statistics that are not trivial."""
    draws, found = torch.Generator().manual_seed(1), {}
    for name, tensor in Inception().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(tensor.shape, generator=draws)
        if name.endswith("conv.weight"):
            found[name] = noise * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            found[name] = 1 + 0.2 * noise.abs()
        else:
            found[name] = 0.1 * noise
    return found


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def net(path):
    return load_inception(path)


def pixels(count, channels=3, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), np.uint8)


# ----------------------------------------------------------------------------------- structure


def test_names_and_counts_are_those_of_the_published_network(state):
    """94 convolutions; Keras' count of the same network, 23,851,784, has 3 numbers a channel of
    BatchNorm, of which there are 17,216, where torch has 2, and 1000 classes where this has 1008."""
    convolutions = [name for name in state if name.endswith("conv.weight")]
    assert len(convolutions) == 94 and len(state) == 5 * 94 + 2
    channels = sum(len(state[name]) for name in convolutions)
    assert channels == 17_216
    assert sum(parameter.numel() for parameter in Inception().parameters()) == 23_851_784 - channels + 8 * 2049
    assert {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.bn.running_mean": (64,),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.bn.bias": (192,),
        "Mixed_7b.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3_1.conv.weight": (384, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }.items() <= {name: tuple(tensor.shape) for name, tensor in state.items()}.items()


class ByHand:
    """The network from its state alone, every block written out."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, name, stride=1, padding=0):
        s = self.state
        x = F.conv2d(x, s[f"{name}.conv.weight"], stride=stride, padding=padding)
        norm = (s[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *norm, eps=0.001))

    def chain(self, x, block, *steps):
        for name, *rest in steps:
            x = self.conv(x, f"{block}.{name}", *rest)
        return x

    def average(self, x, block):
        return self.conv(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), f"{block}.branch_pool")

    def a(self, x, m):
        five = self.chain(x, m, ("branch5x5_1",), ("branch5x5_2", 1, 2))
        double = self.chain(x, m, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1))
        return torch.cat([self.chain(x, m, ("branch1x1",)), five, double, self.average(x, m)], 1)

    def b(self, x, m):
        double = self.chain(x, m, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 2))
        return torch.cat([self.chain(x, m, ("branch3x3", 2)), double, F.max_pool2d(x, 3, 2)], 1)

    def c(self, x, m):
        flat, high = (0, 3), (3, 0)
        short = self.chain(x, m, ("branch7x7_1",), ("branch7x7_2", 1, flat), ("branch7x7_3", 1, high))
        long = self.chain(
            x,
            m,
            ("branch7x7dbl_1",),
            ("branch7x7dbl_2", 1, high),
            ("branch7x7dbl_3", 1, flat),
            ("branch7x7dbl_4", 1, high),
            ("branch7x7dbl_5", 1, flat),
        )
        return torch.cat([self.chain(x, m, ("branch1x1",)), short, long, self.average(x, m)], 1)

    def d(self, x, m):
        short = self.chain(x, m, ("branch3x3_1",), ("branch3x3_2", 2))
        long = self.chain(
            x,
            m,
            ("branch7x7x3_1",),
            ("branch7x7x3_2", 1, (0, 3)),
            ("branch7x7x3_3", 1, (3, 0)),
            ("branch7x7x3_4", 2),
        )
        return torch.cat([short, long, F.max_pool2d(x, 3, 2)], 1)

    def e(self, x, m, pooled):
        short = self.chain(x, m, ("branch3x3_1",))
        long = self.chain(x, m, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, 1))
        ends = [
            self.conv(short, f"{m}.branch3x3_2a", 1, (0, 1)),
            self.conv(short, f"{m}.branch3x3_2b", 1, (1, 0)),
            self.conv(long, f"{m}.branch3x3dbl_3a", 1, (0, 1)),
            self.conv(long, f"{m}.branch3x3dbl_3b", 1, (1, 0)),
        ]
        return torch.cat([self.chain(x, m, ("branch1x1",)), *ends, pooled], 1)

    def __call__(self, images):
        x = (resize(torch.from_numpy(images).float()) - 128) / 128
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.conv(x, "Conv2d_2b_3x3", 1, 1), 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        assert x.shape[1:] == (192, 35, 35)
        x = self.b(self.a(self.a(self.a(x, "Mixed_5b"), "Mixed_5c"), "Mixed_5d"), "Mixed_6a")
        assert x.shape[1:] == (768, 17, 17)
        for letter in "bcde":
            x = self.c(x, f"Mixed_6{letter}")
        x = self.d(x, "Mixed_7a")
        assert x.shape[1:] == (1280, 8, 8)
        x = self.e(x, "Mixed_7b", self.average(x, "Mixed_7b"))
        x = self.e(x, "Mixed_7c", self.conv(F.max_pool2d(x, 3, 1, 1), "Mixed_7c.branch_pool"))
        return x.mean((2, 3))


def test_features_are_those_of_a_computation_by_hand(state, net):
    images = pixels(2)
    with torch.no_grad():
        wanted = ByHand(state)(images)
    found = net.features(images)
    assert found.shape == (2, 2048) and found.dtype == np.float32
    assert wanted.std(0).mean() > 1e-3, "images differ"
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_logits_are_a_linear_map_with_and_without_bias(state, net):
    pooled = torch.randn(3, 2048, generator=torch.Generator().manual_seed(0))
    wanted = pooled.double() @ state["fc.weight"].double().T
    torch.testing.assert_close(net.logits(pooled, bias=False).double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.logits(pooled).double(), wanted + state["fc.bias"], rtol=1e-4, atol=1e-4)


def test_neither_batch_nor_grey_matter(net):
    grey = pixels(3, 1)
    alone = np.concatenate([net.features(image[None]) for image in grey[:2]])
    np.testing.assert_allclose(net.features(grey.repeat(3, 1), batch=2)[:2], alone, rtol=1e-3, atol=1e-4)
    assert net.features(grey[:0]).shape == (0, 2048)
    assert not net.training and not any(parameter.requires_grad for parameter in net.parameters())


# ----------------------------------------------------------------------------------- scaling


def test_scaling_aligns_the_top_left_corners():
    """As TensorFlow 1's resize_bilinear does: the last row and column are repeated."""
    found = resize(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]), 4)
    wanted = [[0, 1, 2, 2], [2, 3, 4, 4], [4, 5, 6, 6], [4, 5, 6, 6]]
    assert found[0, 0].tolist() == wanted


def slow(image, size):
    """The definition, pixel by pixel, in double precision: `[H, W]` → `[size, size]`."""
    height, width = image.shape
    found = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = min(int(y), height - 1), min(int(x), width - 1)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            found[i, j] = upper * (1 - y + top) + lower * (y - top)
    return found


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(0, 99))
def test_scaling_is_its_definition(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float32)
    found = resize(torch.from_numpy(image)[None, None], size)[0, 0].double().numpy()
    np.testing.assert_allclose(found, slow(image.astype(np.float64), size), atol=1e-3)


@pytest.mark.parametrize("size", [8, 28, 32, 64, 299, 400])
def test_common_sizes_scale_without_stepping_out(size):
    image = torch.from_numpy(pixels(1, 1, size)).float()
    found = resize(image)
    assert found.shape[2:] == (299, 299) and found.min() >= image.min() and found.max() <= image.max()
    if size == 299:
        assert torch.equal(found, image)


# ------------------------------------------------------------------------------------- files


def test_the_network_knows_its_file(path, net):
    assert net.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["counted.pth", "plain.safetensors"])
def test_counts_of_batches_and_safetensors_are_taken(state, net, tmp_path, name):
    if name == "counted.pth":
        counts = {k.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for k in state if "mean" in k}
        torch.save(state | counts, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    found = load_inception(tmp_path / name)
    for (key, one), other in zip(found.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("case", ["missing", "extra", "shape", "nan", "torchvision", "empty", "bytes", "none"])
def test_other_files_are_refused(state, tmp_path, case):
    path = tmp_path / "w.pth"
    states = {
        "missing": {k: v for k, v in state.items() if k != "Mixed_7c.branch_pool.bn.bias"},
        "extra": state | {"AuxLogits.conv0.conv.weight": torch.zeros(1)},
        "shape": state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)},
        "nan": state | {"fc.bias": torch.full((1008,), float("inf"))},
        "torchvision": {f"module.{k}": v for k, v in state.items()},
        "empty": {},
    }
    if case in states:
        torch.save(states[case], path)
    elif case == "bytes":
        path.write_bytes(b"not a network" * 100)
    with pytest.raises(ModelFileError, match=r"w\.pth.*expected weights of the FID's Inception-v3.*fetch-weights") as e:
        load_inception(path)
    assert "weights_only" not in str(e.value), "nobody is told to load it with less care"
