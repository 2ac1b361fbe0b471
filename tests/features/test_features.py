"""Feature networks: grey as colour, folding, independence of the batch, and files that are refused."""

import json

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from prismfl.errors import ModelFileError
from prismfl.features import networks as features
from prismfl.features.networks import EMBEDDED, Vgg, fold, load_features


def images(count, channels, size=16):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.fixture(scope="module", params=sorted(EMBEDDED))
def loaded(request):
    return load_features(request.param)


@pytest.fixture(scope="module")
def raw():
    """The bytes of the embedded file."""
    return features._file_bytes("vgg")


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_embedded_files_are_small(name):
    assert len(features._file_bytes(name)) <= 1_500_000


@pytest.mark.parametrize("size", [16, 32])
def test_a_grey_image_is_three_equal_channels(loaded, size):
    grey = images(4, 1, size)
    for one, three in zip(loaded.net.stages(grey), loaded.net.stages(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        loaded.net.embed(grey), loaded.net.embed(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


def test_an_images_features_do_not_depend_on_its_batch(loaded):
    batch = images(5, 3)
    together = loaded.net.embed(batch)
    alone = torch.cat([loaded.net.embed(image[None]) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.std(0).mean() > 1e-3


def test_networks_are_frozen(loaded):
    assert not loaded.net.training
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.net.modules())


def test_stages_of_the_matched_network_are_not_negative():
    maps = load_features("vgg").net.stages(images(2, 3))
    assert len(maps) == 7
    assert all((stage >= 0).all() and stage.any() for stage in maps)


@pytest.mark.parametrize("last", [0, 1, 3])
def test_nothing_is_computed_after_the_last_map_asked_for(loaded, last):
    ran, x = [], images(2, 3)
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in loaded.net.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    found = loaded.net.stages(x, last)
    some = list(ran)
    every = loaded.net.stages(x)
    for hook in hooks:
        hook.remove()
    assert len(found) == last + 1 and all(torch.equal(a, b) for a, b in zip(found, every, strict=False))
    assert len(set(some)) < len(set(ran)) or last == len(every) - 1


def test_no_map_beyond_the_last_is_made_up(loaded):
    assert len(loaded.net.stages(images(1, 3), 99)) == len(loaded.net.stages(images(1, 3)))


def test_folding_changes_nothing():
    torch.manual_seed(0)
    net = Vgg(4, norm=True)
    net.train()
    for _ in range(3):
        net(images(8, 3))
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.eval()
    folded = Vgg(4, norm=False)
    folded.load_state_dict(fold(net))
    folded.eval()
    x = images(4, 3)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4)
    for one, other in zip(folded.stages(x), net.stages(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_file_is_what_its_embedded_name_is(raw, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(raw)
    mine, theirs = load_features(path), load_features("vgg")
    assert mine.sha256 == theirs.sha256
    assert torch.equal(mine.net(images(2, 3)), theirs.net(images(2, 3)))


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 500, 0.5, -1])
def test_a_file_cut_short_is_refused(raw, tmp_path, keep):
    path = tmp_path / "net.safetensors"
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelFileError, match="expected"):
        load_features(path)


def rewritten(raw, path, **changes):
    """A copy of an embedded file with changed metadata; None leaves a key out."""
    about = json.loads(features._metadata(raw)["prismfl"]) | changes
    about = {key: value for key, value in about.items() if value is not None}
    path.write_bytes(save_tensors(load_tensors(raw), {"prismfl": json.dumps(about)}))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "another"},
        {"format": None},
        {"architecture": "judge"},
        {"architecture": "another"},
        {"architecture": ["vgg"]},
        {"classes": ["one"]},
        {"classes": 3},
        {"unit": "one"},
        {"unit": None},
    ],
)
def test_foreign_metadata_is_refused(raw, tmp_path, changes):
    with pytest.raises(ModelFileError):
        load_features(rewritten(raw, tmp_path / "net.safetensors", **changes))


def test_unchanged_metadata_is_accepted(raw, tmp_path):
    assert load_features(rewritten(raw, tmp_path / "net.safetensors")).about["architecture"] == "vgg"


@pytest.mark.parametrize("unit", [0, -1.0, float("nan"), float("inf")])
def test_a_useless_unit_is_refused(raw, tmp_path, unit):
    with pytest.raises(ModelFileError):
        load_features(rewritten(raw, tmp_path / "net.safetensors", unit=unit))


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save_tensors({"a": torch.zeros(3)}))
    with pytest.raises(ModelFileError):
        load_features(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2000))
    with pytest.raises(ModelFileError):
        load_features(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="vgg, or a file"):
        load_features(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError):
        load_features(tmp_path)


@pytest.mark.parametrize("bias", [None, torch.arange(4.0)])
def test_a_folded_convolution_is_the_convolution_and_its_norm(bias):
    torch.manual_seed(1)
    norm = torch.nn.BatchNorm2d(4).eval()
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(4) + (0.1 if name == "running_var" else 0))
    weight, x = torch.randn(4, 2, 3, 3), torch.randn(2, 2, 5, 5)
    plain = norm(torch.nn.functional.conv2d(x, weight, bias))
    torch.testing.assert_close(
        torch.nn.functional.conv2d(x, *features.folded(weight, bias, norm.state_dict())), plain, rtol=1e-5, atol=1e-5
    )
