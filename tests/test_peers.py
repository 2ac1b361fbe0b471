"""Peers that prismfl is measured beside: they train, keep their budget, and add the noise that they account for."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

from peers import common, dp_merf, fedavg_gan, md_gan, run  # noqa: E402

from prismfl.data.images import ImageSet  # noqa: E402
from prismfl.generator.network import generate  # noqa: E402
from prismfl.settings.schema import Data  # noqa: E402


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few features, large batches no more, and a round of two steps."""
    monkeypatch.setattr(dp_merf, "FEATURES", 64)
    monkeypatch.setattr(dp_merf, "LARGE", 64)
    monkeypatch.setattr(fedavg_gan, "LOCAL_STEPS", 2)
    monkeypatch.setattr(fedavg_gan, "CRITIC", 1)


@pytest.fixture(scope="module")
def task():
    """The digits at three clients."""
    return common.load_task("digits", None, 0, Data(clients=3), size=16, width=2)


@pytest.mark.parametrize("epsilon", [0.0, 3.0])
@pytest.mark.parametrize("peer", run.PEERS)
def test_a_peer_trains_the_generator(task, peer, epsilon):
    if peer == "md-gan" and epsilon:
        with pytest.raises(SystemExit, match="no private form"):
            run.PEERS[peer](task, common.Budget(4, 60), epsilon)
        return
    found = run.PEERS[peer](task, common.Budget(4, 60), epsilon)
    assert found.steps == 4 and found.losses and np.isfinite(found.losses).all()
    assert torch.isfinite(found.weights).all() and not torch.equal(found.weights, task.weights)
    assert (found.sent > 0) == (peer != "dp-merf")


@pytest.mark.parametrize("peer", run.PEERS)
def test_without_time_nothing_is_trained(task, peer):
    found = run.PEERS[peer](task, common.Budget(4, 0), 0.0)
    assert found.steps == 0 and torch.equal(found.weights, task.weights)


def test_a_budget_has_no_step_that_would_end_beyond_its_seconds(monkeypatch):
    now = iter([0.0, 0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(common.time, "monotonic", lambda: next(now))
    assert list(common.Budget(9, 3.5).turns(9)) == [0, 1, 2]


def test_discriminators_are_handed_on_by_a_permutation():
    draws = torch.Generator().manual_seed(0)
    for clients in (1, 2, 10):
        for _ in range(20):
            found = md_gan.handed_on(clients, draws)
            assert found.sort().values.tolist() == list(range(clients))
            assert clients == 1 or not (found == torch.arange(clients)).any()


def test_feedback_through_the_generator_is_its_gradient(task):
    """What the server makes of the clients' pixels' gradients is the gradient of the mean loss."""
    net, weights, labels = common.new_discriminator(task), task.weights, torch.arange(8)
    latents = torch.randn(8, task.layout.latent, generator=task.draws())
    loss = common.real_loss(net(generate(task.layout, weights, latents, labels=labels), labels)).mean()
    (direct,) = torch.autograd.grad(loss, weights)
    images = generate(task.layout, weights, latents, labels=labels)
    told, gradient = md_gan.feedback(net, images.detach(), labels)
    images.backward(gradient)
    assert told == pytest.approx(loss.item()) and torch.allclose(weights.grad, direct, atol=1e-6)


def labelled(task, count, brightness=1.0):
    draws = torch.Generator().manual_seed(count)
    shape = (count, task.layout.channels, task.layout.size, task.layout.size)
    return brightness * torch.randn(shape, generator=draws), torch.arange(count) % task.layout.classes


def gradient(net, real, fake, noise, draws):
    parts = fedavg_gan.private_gradients(net, real, fake, noise, draws)
    return torch.cat([part.flatten() for part in parts])


def test_one_image_moves_a_private_gradient_by_its_clipping_norm(task):
    net, draws = common.new_discriminator(task), task.draws()
    real, fake = labelled(task, 6, brightness=100.0), labelled(task, 6)
    with_it = gradient(net, real, fake, 0.0, draws)
    without = gradient(net, *(tuple(one[1:] for one in pairs) for pairs in (real, fake)), 0.0, draws)
    assert float((with_it - without).norm()) == pytest.approx(fedavg_gan.CLIP / common.BATCH, rel=1e-3)
    # What is short enough stays as it is.
    calm = [tuple(one[:1] for one in pairs) for pairs in (labelled(task, 6, 0.01), labelled(task, 6, 0.01))]
    loss = common.real_loss(net(*calm[0])) + common.fake_loss(net(*calm[1]))
    plain = torch.cat([one.flatten() for one in torch.autograd.grad(loss.sum(), list(net.parameters()))])
    share = min(1.0, fedavg_gan.CLIP / float(plain.norm()))
    assert torch.allclose(gradient(net, *calm, 0.0, draws), share * plain / common.BATCH, atol=1e-6)


def test_noise_of_a_private_discriminator_is_what_its_accountant_was_told(task):
    """Of no images a gradient is noise alone; and the noise that ε asks for spends it, and no more."""
    rate, steps = 0.02, 50
    noise = fedavg_gan.noise_for(3.0, rate, steps)
    assert 2.9 < fedavg_gan.spent(noise, rate, steps) <= 3.0 < fedavg_gan.spent(0.9 * noise, rate, steps)
    nothing = tuple(one[:0] for one in labelled(task, 1))
    found = gradient(common.new_discriminator(task), nothing, nothing, noise, task.draws())
    assert float(found.std()) == pytest.approx(noise * fedavg_gan.CLIP / common.BATCH, rel=0.02)


def test_an_image_is_drawn_at_the_rate_of_the_accountant(task):
    mine, draws = task.clients[0], task.draws()
    sizes = [len(fedavg_gan.poisson(mine, draws)) for _ in range(200)]
    assert np.mean(sizes) == pytest.approx(fedavg_gan.sampling_rate(mine) * len(mine), rel=0.05)
    assert len(set(sizes)) > 1


def test_an_embedding_moves_by_two_over_m_and_its_noise_fits(task, monkeypatch):
    mine, projections = task.clients[0], torch.randn(256, 32, generator=task.draws())
    images = mine.images.copy()
    images[0] = 255 - images[0]
    before, after = (dp_merf.release(one, projections, 0.0) for one in (mine, replace(mine, images=images)))
    assert 0 < float((after - before).norm()) <= 2 / len(mine)
    monkeypatch.setattr(dp_merf, "FEATURES", 20_000)
    wide = torch.randn(256, 10_000, generator=task.draws())
    few = ImageSet(mine.images[:20], mine.labels[:20], mine.classes)
    noise = dp_merf.release(few, wide, 1.0) - dp_merf.release(few, wide, 0.0)
    assert float(noise.std()) == pytest.approx(3.7306 * 2 / 20, rel=0.02)


def test_the_features_kernel_is_gaussian(task):
    """Their inner product is the kernel that the projections' length says (Bochner's theorem)."""
    x, _ = labelled(task, 2, 0.05)
    found = dp_merf.features(x, torch.randn(256, 20_000, generator=task.draws()))
    assert found.square().sum(1).tolist() == pytest.approx([1, 1], abs=1e-4)
    wanted = math.exp(-float((x[0] - x[1]).square().sum()) / 2)
    assert float(found[0] @ found[1]) == pytest.approx(wanted, abs=0.03)


def test_a_table_grows_by_lines_of_peers_and_of_prismfl(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "measure", lambda *_: {"fid_judge": 1.0, "taught": 0.5})

    def tiny(*asked):
        settings = original(*asked)
        data, generator = replace(settings.data, clients=3), replace(settings.generator, size=16, width=2)
        search = replace(settings.search, local_steps=2, batch_size=4)
        return replace(settings, data=data, generator=generator, search=search)

    original = run.settings_of
    monkeypatch.setattr(run, "settings_of", tiny)
    for peer in ("fedavg-gan", "prism", "prism-published"):
        line = run.one_run(peer, task, 0.0, common.Budget(4, 60), 20, tmp_path / f"{peer}.png")
        run.append(line, tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == ",".join(run.NAMES) and [line.split(",")[0] for line in lines[1:]] == [
        "fedavg-gan",
        "prism",
        "prism-published",
    ]
    assert all(int(line.split(",")[4]) == 4 and int(line.split(",")[8]) > 0 for line in lines[1:])
    assert len(list(tmp_path.glob("*.png"))) == 3
