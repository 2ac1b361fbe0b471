"""VGG-19 from torchvision's layouts against a plain computation, and the random network."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prismfl.errors import ModelFileError, SettingError
from prismfl.features import vgg19 as vgg
from prismfl.features.networks import VGG_PLAN, load_features
from prismfl.features.vgg19 import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VGG19_PLAN,
    ImageNetVgg,
    conv_places,
    load_vgg19,
    random_vgg,
)
from prismfl.moments import FeatureMap
from prismfl.settings.resolve import Matching


def plain_layers(plan, norm):
    """Torchvision's `features`, as its documentation prints it."""
    layers, inputs = [], 3
    for channels in plan:
        if not channels:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(inputs, channels, 3, padding=1))
        layers += [nn.BatchNorm2d(channels), nn.ReLU()] if norm else [nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers)  # less the pooling at the end, which has no weights


# A sixteenth of the channels, so that a file takes no time; the real plan is tested for its shapes.
SMALL = tuple(channels // 16 for channels in VGG19_PLAN)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(vgg, "VGG19_PLAN", SMALL)


@pytest.fixture(scope="module", params=[False, True], ids=["vgg19", "vgg19_bn"])
def plain(request):
    """The plain network with weights and BatchNorm statistics of its own, in evaluation mode."""
    torch.manual_seed(3)
    net = plain_layers(SMALL, request.param)
    for _ in range(3):
        net(torch.randn(4, 3, 16, 16))
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


def state_of(net, head=True):
    state = {f"features.{name}": tensor for name, tensor in net.state_dict().items()}
    return state | ({"classifier.0.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(3)} if head else {})


def written(state, path):
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def images(count, channels=3, size=16):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("head", [True, False])
def test_stages_are_the_relu_outputs_of_the_plain_network(plain, tmp_path, name, head):
    loaded = load_vgg19(str(written(state_of(plain, head), tmp_path / name)))
    x = images(3)
    y = ((x + 1) / 2 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    wanted = []
    with torch.no_grad():
        for layer in plain:
            y = layer(y)
            if isinstance(layer, nn.ReLU):
                wanted.append(y.clone())
    found = loaded.net.stages(x)
    assert len(found) == len(wanted) == 16
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert (one >= 0).all()
    assert not loaded.net.training and not any(p.requires_grad for p in loaded.net.parameters())


def test_a_file_is_named_by_its_bytes_and_says_its_layout(plain, tmp_path):
    path = written(state_of(plain), tmp_path / "net.pth")
    loaded = load_vgg19(str(path))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    norm = any(isinstance(layer, nn.BatchNorm2d) for layer in plain)
    assert loaded.about["layout"] == ("vgg19_bn" if norm else "vgg19")
    assert loaded.about["trained_on"] == "", "of weights that nobody published nothing is claimed"


def test_published_weights_are_known_by_their_digits():
    assert vgg._origin("vgg19", "dcbb9e9d" + "0" * 56) == "ImageNet (ILSVRC 2012)"
    assert vgg._origin("vgg19_bn", "c79401a0" + "0" * 56) == "ImageNet (ILSVRC 2012)"
    assert vgg._origin("vgg19_bn", "dcbb9e9d" + "0" * 56) == ""


def test_half_precision_and_counts_of_batches_are_taken(plain, tmp_path):
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state_of(plain).items()}
    loaded = load_vgg19(str(written(state, tmp_path / "net.pth")))
    assert all(parameter.dtype == torch.float32 for parameter in loaded.net.parameters())


def test_grey_is_three_equal_channels(plain, tmp_path):
    net = load_vgg19(str(written(state_of(plain), tmp_path / "net.pth"))).net
    grey = images(3, 1)
    for one, three in zip(net.stages(grey), net.stages(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-5)


def test_places_and_shapes_are_those_of_the_published_network():
    assert conv_places(VGG19_PLAN, False) == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert conv_places(VGG19_PLAN, True) == [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49]
    with torch.device("meta"):
        net = ImageNetVgg(VGG19_PLAN)
    # 143,667,240 in all (torchvision's figure), of which the three linear layers:
    head = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert sum(parameter.numel() for parameter in net.parameters()) == 143_667_240 - head


def test_every_size_of_generator_has_all_sixteen_maps():
    net = ImageNetVgg(SMALL).eval()
    for size in (16, 32, 64):
        assert [tuple(found.shape[2:]) for found in net.stages(images(1, 3, size))] == [
            (size >> step,) * 2 for step, count in enumerate((2, 2, 4, 4, 4)) for _ in range(count)
        ]


# ------------------------------------------------------------------------------- files refused


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def changes(state):
    name = "features.5.weight" if "features.5.weight" in state else "features.4.weight"
    last = max(key for key in state if key.startswith("features."))
    return {
        "missing": without(state, last),
        "odd": state | {"features.99.weight": torch.zeros(1)},
        "foreign": state | {"head": torch.zeros(1)},
        "shape": state | {name: torch.zeros(3, 3)},
        "transposed": state | {"features.0.weight": state["features.0.weight"].transpose(0, 1)},
        "nan": state | {"features.0.bias": torch.full_like(state["features.0.bias"], float("nan"))},
        "integers": state | {"features.0.bias": state["features.0.bias"].long()},
        "nothing": {},
        "number": state | {"epoch": 3},
        "list": list(state.values()),
        "tensor": torch.zeros(3),
        "names": {1: torch.zeros(1)},
    }


@pytest.mark.parametrize("case", changes({"features.0.weight": torch.zeros(1, 1), "features.0.bias": torch.zeros(1)}))
def test_other_states_are_refused(plain, tmp_path, case):
    path = written(changes(state_of(plain))[case], tmp_path / "net.pth")
    with pytest.raises(ModelFileError, match=r"net\.pth.*expected VGG-19"):
        load_vgg19(str(path))


class Trap:
    """What a pickle runs when it is loaded without care."""

    def __reduce__(self):
        return (exit, (7,))


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x89PNG" + bytes(3000), "short", "trap"])
def test_damaged_and_foreign_files_are_refused(plain, tmp_path, content, name):
    path = tmp_path / name
    if content == "trap":
        torch.save({"features.0.weight": Trap()}, path)
    elif content == "short":
        written(state_of(plain), path)
        path.write_bytes(path.read_bytes()[:-500])
    else:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match="expected VGG-19"):
        load_vgg19(str(path))


@pytest.mark.parametrize("name", ["nowhere.pth", ".", "a\0b"])
def test_missing_files_are_refused(tmp_path, name):
    with pytest.raises(ModelFileError, match="fetch-weights"):
        load_vgg19(str(tmp_path / name) if name != "a\0b" else name)


def test_no_file_is_a_wrong_setting():
    with pytest.raises(SettingError, match=r"features\.features = 'vgg19'.*fetch-weights"):
        load_vgg19("")


# ------------------------------------------------------------------------- random convolutions


def test_random_weights_are_the_same_for_ever():
    first, second = random_vgg(), random_vgg()
    assert first.sha256 == second.sha256 == "0805b9c3a5375e1c9c654543e616a89bd3888138071973435fc57c44c705812c"
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True))
    assert first.about["trained_on"] == "" and first.about["architecture"] == "random"


def test_random_weights_are_kaimings():
    channels = [3, *(c for c in VGG_PLAN if c)]
    for unit, (inputs, outputs) in zip(random_vgg().net.units, pairwise(channels), strict=True):
        weight = unit.conv.weight
        assert weight.shape == (outputs, inputs, 3, 3) and not unit.conv.bias.any()
        assert float(weight.std()) == pytest.approx((2 / (9 * inputs)) ** 0.5, rel=5 / (2 * weight.numel()) ** 0.5)
        assert abs(float(weight.mean())) < 5 * float(weight.std()) / weight.numel() ** 0.5


def test_random_maps_are_those_of_the_plan_and_none_is_dead():
    x = images(8)
    found, trained = random_vgg().net.stages(x), load_features("vgg").net.stages(x)
    assert [one.shape for one in found] == [other.shape for other in trained]
    for one in found:
        assert (one >= 0).all() and 0.1 < float(one.square().mean().sqrt()) < 10
        assert float(one.flatten(1).std(0).mean()) > 0.01, "images differ in every layer"


# ------------------------------------------------------------------------------- layers, gradients


def test_layers_are_chosen_by_number(plain, tmp_path):
    loaded = load_vgg19(str(written(state_of(plain), tmp_path / "net.pth")))
    mapped = FeatureMap(loaded, Matching(layers=(0, 15)), 3, 16)
    assert mapped.dimension == 2 * (4 * 16 * 16 + 32)
    with pytest.raises(SettingError, match=r"0 … 15"):
        FeatureMap(loaded, Matching(layers=(16,)), 3, 16)
    with pytest.raises(SettingError, match=r"0 … 6"):
        FeatureMap(random_vgg(), Matching(layers=(10**30,)), 3, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_the_images_through_every_layer(plain, tmp_path, channels):
    for loaded in (load_vgg19(str(written(state_of(plain), tmp_path / "net.pth"))), random_vgg()):
        mapped = FeatureMap(loaded, Matching(), channels, 16)
        x = images(4, channels).requires_grad_()
        mapped.moments(x).square().sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.any()


def test_fakes_and_reals_are_fed_alike():
    """uint8 images by `target` and the same images in [-1, 1] by `moments`."""
    mapped = FeatureMap(random_vgg(), Matching(layers=(1,)), 1, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 16, 16), np.uint8)
    torch.testing.assert_close(
        mapped.moments(torch.from_numpy(pixels) / 127.5 - 1),
        torch.from_numpy(mapped.target(pixels).moments),
        rtol=1e-4,
        atol=1e-6,
    )
