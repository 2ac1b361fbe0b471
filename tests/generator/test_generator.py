"""The generator against a naive forward that doubles first, and the properties of its statistics."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prismfl.generator.layout import Layout, frozen_weights
from prismfl.generator.network import (
    Statistics,
    generate,
    label_turns,
    latent_batch,
    layer_views,
    recompute_statistics,
    render,
)
from prismfl.seeding.philox import Purpose, Stream

LAYOUTS = [Layout(size, channels, 2, 8) for size in (16, 32, 64) for channels in (1, 3)]


def network(layout, seed=0):
    """Frozen weights under a random mask: float32 `[N]`."""
    mask = Stream(seed, Purpose.SHIPPED).bits(layout.count)
    return torch.from_numpy(frozen_weights(layout, seed) * mask)


def latents_of(layout, count=6):
    return latent_batch(layout, Stream(9, Purpose.LATENT), count)


def naive(layout, flat, latents, normalise, labels=None):
    """The paper's generator word for word: every block doubles its input before it convolves."""
    w = {layer.name: flat[layer.offset : layer.offset + layer.count].reshape(layer.shape) for layer in layout.layers}
    x = F.conv_transpose2d(latents[:, :, None, None], w["input"])
    if labels is not None:
        x = x + torch.stack([w["input.label"][label] for label in labels])
    for index, _ in enumerate(pairwise(layout.widths)):
        large = F.interpolate(F.relu(normalise(x)), scale_factor=2, mode="nearest")
        h = F.conv2d(large, w[f"block{index}.first"], padding=1)
        h = F.conv2d(F.relu(normalise(h)), w[f"block{index}.second"], padding=1)
        x = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w[f"block{index}.short"]) + h
        if labels is not None:
            x = x + torch.stack([w[f"block{index}.label"][label] for label in labels])[:, :, None, None]
    return torch.tanh(F.conv2d(F.relu(normalise(x)), w["output"], padding=1))


def by_batch(x):
    centred = x - x.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_equals_the_naive_one(layout):
    flat, latents = network(layout).double(), latents_of(layout).double()
    images = generate(layout, flat, latents)
    assert images.shape == (6, layout.channels, layout.size, layout.size)
    assert images.abs().max() <= 1
    assert images.std() > 0.01
    torch.testing.assert_close(images, naive(layout, flat, latents, by_batch), rtol=1e-9, atol=1e-9)


def test_forward_with_given_statistics_equals_the_naive_one():
    layout = Layout(32, 3, 2, 8)
    flat, latents = network(layout).double(), latents_of(layout).double()
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(sum(layout.norms), generator=rng, dtype=torch.float64)
    var = torch.rand(sum(layout.norms), generator=rng, dtype=torch.float64) + 0.1
    pairs = iter(zip(mean.split(layout.norms), var.split(layout.norms), strict=True))

    def given(x):
        m, v = next(pairs)
        return (x - m[:, None, None]) / (v[:, None, None] + 1e-5).sqrt()

    torch.testing.assert_close(
        generate(layout, flat, latents, mean=mean, var=var), naive(layout, flat, latents, given), rtol=1e-9, atol=1e-9
    )


def test_gradients_reach_every_layer():
    layout = Layout(16, 1, 2, 8)
    flat = torch.from_numpy(frozen_weights(layout, 0).copy()).double().requires_grad_()
    generate(layout, flat, latents_of(layout).double()).square().sum().backward()
    for name, part in layer_views(layout, flat.grad).items():
        assert part.abs().sum() > 0, name


def test_layer_views_share_the_vectors_memory():
    layout = Layout(16, 1, 2, 8)
    flat = torch.zeros(layout.count)
    for index, view in enumerate(layer_views(layout, flat).values()):
        view += index + 1
    assert torch.equal(flat.unique(), torch.arange(1.0, len(layout.layers) + 1))


def test_recomputed_statistics_make_single_images_like_those_of_a_batch():
    layout = Layout(16, 1, 4, 8)
    flat = network(layout)
    found = recompute_statistics(layout, flat, seed=3)
    assert (found.var > 0).all()
    latents = latent_batch(layout, Stream(11, Purpose.LATENT), 1000)
    batch = generate(layout, flat, latents)
    alone = generate(layout, flat, latents, mean=torch.from_numpy(found.mean), var=torch.from_numpy(found.var))
    assert batch.std() > 0.05
    assert abs(float(batch.mean() - alone.mean())) < 0.05 * float(batch.std())
    assert float(alone.std()) == pytest.approx(float(batch.std()), rel=0.05)
    assert float((batch - alone).square().mean().sqrt()) < 0.15 * float(batch.std())


def test_statistics_are_means_over_the_batches():
    layout = Layout(16, 1, 2, 8)
    flat = network(layout)
    found = recompute_statistics(layout, flat, seed=3, batches=3, batch=16)
    latents = latent_batch(layout, Stream(3, Purpose.STATISTICS), 48)
    first = [(part @ layer_views(layout, flat)["input"].flatten(1)).view(16, -1, 16) for part in latents.split(16)]
    channels = layout.norms[0]
    np.testing.assert_allclose(found.mean[:channels], np.mean([x.mean((0, 2)) for x in first], 0), atol=1e-5)
    variances = [x.transpose(1, 2).reshape(-1, channels).var(0) for x in first]
    np.testing.assert_allclose(found.var[:channels], np.mean(variances, 0), rtol=1e-4)


def test_statistics_depend_on_the_seed_alone():
    layout = Layout(16, 1, 2, 8)
    once, again, other = (recompute_statistics(layout, network(layout), seed, 2, 16) for seed in (3, 3, 4))
    assert once.mean.tobytes() == again.mean.tobytes()
    assert once.var.tobytes() == again.var.tobytes()
    assert once.mean.tobytes() != other.mean.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rendered_images_do_not_depend_on_the_batch(layout):
    flat = network(layout)
    statistics = recompute_statistics(layout, flat, 0, 1, 16)
    latents = latents_of(layout, 7)
    whole = render(layout, flat, statistics, latents)
    assert whole.shape == (7, layout.channels, layout.size, layout.size)
    assert whole.dtype == np.uint8
    for batch in (1, 3):
        parts = render(layout, flat, statistics, latents, batch=batch)
        # Sums in another order may tip a rounding; nothing more.
        assert np.abs(parts.astype(int) - whole).max() <= 1
        assert (parts != whole).mean() < 1e-3


def test_rendering_scales_minus_one_to_one_onto_bytes():
    layout = Layout(16, 1, 2, 8)
    flat, latents = network(layout), latents_of(layout)
    statistics = recompute_statistics(layout, flat, 0, 1, 16)
    images = generate(
        layout, flat, latents, mean=torch.from_numpy(statistics.mean), var=torch.from_numpy(statistics.var)
    )
    shown = render(layout, flat, statistics, latents) / 127.5 - 1
    assert np.abs(shown - images.numpy()).max() < 0.5 / 127.5 + 1e-5
    nothing = render(layout, torch.zeros(layout.count), Statistics(statistics.mean * 0, statistics.var), latents)
    assert set(np.unique(nothing)) == {128}


def test_forward_with_labels_equals_the_naive_one():
    layout = Layout(32, 3, 2, 8, classes=4)
    flat, latents = network(layout).double(), latents_of(layout).double()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(
        generate(layout, flat, latents, labels=labels),
        naive(layout, flat, latents, by_batch, labels),
        rtol=1e-9,
        atol=1e-9,
    )


def test_rendering_follows_the_labels_in_any_batch():
    layout = Layout(16, 1, 2, 8, classes=3)
    flat, latents, labels = network(layout), latents_of(layout), torch.tensor([0, 1, 2, 2, 0, 1])
    statistics = recompute_statistics(layout, flat, 0, 2, 9)
    shown = render(layout, flat, statistics, latents, labels)
    assert not np.array_equal(shown, render(layout, flat, statistics, latents, labels.roll(1)))
    np.testing.assert_array_equal(shown[3:], render(layout, flat, statistics, latents, labels, batch=3)[3:])


def test_dropped_label_weights_leave_the_plain_generator():
    plain, labelled = Layout(16, 1, 2, 8), Layout(16, 1, 2, 8, classes=3)
    flat = network(labelled)
    named = layer_views(labelled, flat)
    rest = torch.cat([view.flatten() for name, view in named.items() if not name.endswith(".label")])
    assert rest.numel() == plain.count
    for name, view in named.items():
        if name.endswith(".label"):
            view.zero_()
    latents, labels = latents_of(plain), torch.tensor([0, 1, 2, 2, 0, 1])
    torch.testing.assert_close(generate(labelled, flat, latents, labels=labels), generate(plain, rest, latents))


def test_labels_take_turns():
    assert label_turns(Layout(16, 1, 2, 8, classes=3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert label_turns(Layout(16, 1, 2, 8), 3).tolist() == [0, 0, 0]


def test_latents_are_the_streams_normals_in_rows():
    layout = Layout(16, 1, 2, 5)
    stream = Stream(2, Purpose.LATENT)
    rows = latent_batch(layout, stream, 4)
    np.testing.assert_array_equal(rows[2].numpy(), stream.normals(20)[10:15])
    assert torch.equal(latent_batch(layout, stream, 2), rows[:2])
