"""Secure sums of five sites on loopback, of which one or two lose their power at every step of a sum.

Machines may be busy: waiting times are generous, and nothing is asserted about time.
"""

import itertools
import math
import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_deployment import start, until

pytest.importorskip("flwr", reason="Flower is not installed")

from prismfl.data.files import write_atomic
from prismfl.engines import simulator as inprocess
from prismfl.engines.flower.processes import APP, free_port, stop
from prismfl.errors import ClientError
from prismfl.federation.agreement import init
from prismfl.federation.client import receive, searched
from prismfl.federation.round import broadcast, server_update
from prismfl.federation.secure_sum import MaskSums, _fixed
from prismfl.generator.masks import mask_of
from prismfl.generator.modelfile import load_model
from prismfl.privacy.policy import Policy, policy_text
from prismfl.privacy.pooled import pooled_target
from prismfl.privacy.release import grid_of
from prismfl.privacy.source import SourceLedger
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder, read_rounds
from prismfl.run.prepare import agree_on, prepare, site_kit
from prismfl.sums.frames import Step
from prismfl.sums.secrets import Identity

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("full_world")]
STEPS = ("OPEN", "LIST", "INBOX", "SURVIVORS", "SIGNATURES")  # what a site is asked
DEATH = "die with the node"
SEEDS = itertools.count()  # of one run no site's vector enters two sums of a round


def cases(*short):
    """Each step of a sum; all but a few run outside CI."""
    return [pytest.param(step, marks=pytest.mark.slow if step in short else pytest.mark.long) for step in STEPS]


@pytest.fixture
def summed(site_settings):
    """Settings of a run of five sites whose vectors are summed."""

    def make(deadline=40.0, rounds=1, **changes):
        federation = {"rounds": rounds, "secure_sum": True} | changes.pop("federation", {})
        return site_settings(
            data={"clients": 5}, federation=federation, running={"deadline": deadline}, seed=next(SEEDS), **changes
        )

    return make


def simulated(deployment, settings, root):
    """A simulator's engine, at its beginning, of the same sites."""
    ready = prepare(replace(settings, data=replace(settings.data, data_dir=str(deployment.sites / "*"))))
    return ready, inprocess.InProcess(ready.agreement, ready.kit, ready.clients, RunFolder(root))


def theta_of(deployment, settings, root, survivors):
    """θ after a round in which these sites counted, by the masks of each: uint16 `[N]`."""
    ready, engine = simulated(deployment, settings, root)

    def exchange(frames):
        yield from engine.train(0)({client: frames[client] for client in survivors})
        for client in set(frames) - set(survivors):
            yield client, ClientError("gone", "there", "wait")

    state, _ = server_update(ready.agreement, init(ready.agreement), exchange)
    engine.close()
    return state.q


def counted(out):
    """θ that the server came to, and who counted in it."""
    theta = runfolder.load_arrays(RunFolder(out).checkpoint)["q"]
    return theta, [line["cohort"] for line in read_rounds(RunFolder(out))]


def sums_of(deployment, out, client):
    """What a site keeps of its last sum, by name."""
    run = max((deployment.root / f"state-{client}").glob("*/terms.json"), key=lambda path: path.stat().st_mtime).parent
    (path,) = run.glob("clients/*/sum-*.safetensors")
    return {name: value.tobytes() for name, value in runfolder.load_arrays(path).items()}


@pytest.mark.parametrize("step", cases("INBOX"))
def test_masks_of_the_survivors_are_summed_when_one_site_dies(summing, summed, tmp_path, step):
    settings = summed()
    summing.faults(4, **{f"0 {step}": DEATH})
    out = summing.begin(settings)
    summing.fell(4)
    summing.finish(out)
    summing.start(4)
    survivors = [0, 1, 2, 3] + [4] * (step in ("SURVIVORS", "SIGNATURES"))  # its vector was there already
    theta, cohorts = counted(out)
    assert cohorts == [survivors]
    assert np.array_equal(theta, theta_of(summing, settings, tmp_path, survivors))


@pytest.mark.parametrize("step", cases("INBOX"))
def test_a_run_of_which_two_sites_die_stops_and_goes_on_with_the_same_sum(summing, summed, tmp_path, step):
    settings = summed()
    summing.faults(3, **{f"0 {step}": DEATH})
    summing.faults(4, **{f"0 {step}": f"answer and {DEATH}"})
    out = summing.begin(settings)
    summing.fell(3)
    summing.fell(4)
    before = sums_of(summing, out, 4)
    with pytest.raises(ClientError, match=r"3 of 5 sites in a secure sum .*expected at least 4") as told:
        summing.finish(out)
    assert "start those that are missing" in str(told.value) and f"--resume {out}" in str(told.value)
    summing.start(3)
    summing.start(4)
    summing.finish(out, start=summing.resume(out))
    after = sums_of(summing, out, 4)
    told = [
        "name",
        "keys",
        *{"INBOX": ["list"], "SURVIVORS": ["list"], "SIGNATURES": ["list", "survivors"]}.get(step, []),
    ]
    if step != "OPEN":  # a sum of which the server kept nothing has another name
        assert all(before[name] == after[name] for name in told)
    theta, cohorts = counted(out)
    assert cohorts == [[0, 1, 2, 3, 4]]
    assert np.array_equal(theta, theta_of(summing, settings, tmp_path, range(5)))


def release_of(deployment, client):
    """What a site drew for its last sum: int64 `[G · E]`; None where it drew nothing."""
    state = deployment.root / f"state-{client}"
    run = max(state.glob("*/terms.json"), key=lambda path: path.stat().st_mtime).parent
    held = runfolder.read_json(run / "clients" / str(client) / "ledger.json")
    if held is None:
        return None
    (name,) = held["names"]
    (found,) = [one for one in SourceLedger(state / "ledger.jsonl").releases() if one.id == name]
    return load_file(state / "ledger.jsonl.releases" / f"{found.definition}.safetensors")["sums"]


@pytest.mark.long
@pytest.mark.parametrize("mode", ["one-shot", "masks"])
@pytest.mark.parametrize("step", STEPS)
def test_noisy_sums_of_the_survivors_are_opened_when_one_site_dies(summing, summed, step, mode):
    settings = summed(privacy={"epsilon": 1.0, "delta": 1e-5}, federation={"mode": mode})
    summing.faults(4, **{f"0 {step}": DEATH})
    out = summing.begin(settings)
    summing.fell(4)
    summing.finish(out)  # before it is back, for then it would be asked again in time
    summing.start(4)
    survivors = [0, 1, 2, 3] + [4] * (step in ("SURVIVORS", "SIGNATURES"))
    releases = {client: release_of(summing, client) for client in range(5)}
    assert (releases[4] is None) == (4 not in survivors)
    agreement = agree_on(settings, 1, ("a", "b"))
    grid = grid_of(site_kit(agreement).features, 2)
    ledger = runfolder.read_json(RunFolder(out).ledger)["releases"]
    own = round(ledger[0]["noise_multiplier"] * grid.sensitivity / math.sqrt(3))  # five, less a colluder and a drop-out
    images = sum((9, 8, 8, 7, 10)[client] for client in survivors)
    drawn = sum(releases[client] for client in survivors)
    held = runfolder.load_arrays(RunFolder(out).gathered)
    assert np.array_equal(held["moments"], pooled_target(drawn, grid, images, len(survivors), own).moments)
    assert [entry["client"] for entry in ledger] == survivors


@pytest.mark.slow
def test_sums_give_the_simulators_mask_and_the_server_sees_no_sites_own(summing, summed, tmp_path):
    settings = summed(rounds=2, deadline=120.0, federation={"finished_mask": "best"})
    out = summing.begin(settings, APP)
    summing.finish(out)
    ready, engine = simulated(summing, settings, tmp_path / "one")
    told = inprocess.train(ready.agreement.settings, out=tmp_path / "plain")
    mine, plain = load_model(out / "model.safetensors"), load_model(told.folder.model)
    assert np.array_equal(mine.mask, plain.mask)
    kept = b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())
    # Three or four digits may stand in any longer number, and in a time.
    untimed = re.sub(rb'"seconds": [0-9.]+', b"", kept).decode(errors="ignore")
    numbers = set(re.findall(r"(?<![0-9.])[0-9]+[.][0-9]+(?![0-9.])", untimed))
    assert numbers, "figures are stored as text"
    for client, packed, loss in vectors(ready.agreement, engine):
        assert packed[:256] not in kept, f"the mask of client {client}"
        for text in (f"{loss:.6g}", repr(loss)):
            assert text.encode() not in kept, f"the loss of client {client}"
        assert numbers.isdisjoint({repr(round(loss, 3)), f"{loss:.4f}"}), f"the loss of client {client}"
        assert _fixed([loss]).tobytes() not in kept
    engine.close()


def vectors(agreement, engine):
    """What each client adds in round 0: its number, packed bits, loss."""
    sums, frames = MaskSums(agreement, 0), broadcast(agreement, init(agreement))
    for client, frame in frames.items():
        place = agreement.place(0, client)
        told, now = receive(agreement, engine.kit, frame, place, None)
        found = searched(agreement, engine.kit, place, now.q, engine.target(client), None)
        u = agreement.draws(0, told.cohort).uniforms(client, told.rank)
        group = sums.groups[client]
        packed = sums.digits(group).pack(mask_of(found.q, u)[sums.entries(group)])
        yield client, sums.ring(group).pack([packed, _fixed([0.0] * 3)]), found.loss


# ------------------------------------------------------------------------------ the server's death


@pytest.fixture(scope="module")
def commanded(tmp_path_factory, write_sites):
    """Three clients as the commands start them, and how a server of theirs is started."""
    root, port = tmp_path_factory.mktemp("commanded"), free_port()
    sites = write_sites(root / "sites", {"a": 9, "b": 8, "c": 8})
    members = [Identity.made() for _ in range(3)]
    rules = Policy(20.0, 1e-5, without_epsilon="always", sites=tuple(member.public for member in members))
    (root / "policy.toml").write_text(policy_text(rules))
    place = ["--server", f"127.0.0.1:{port}", "--policy", root / "policy.toml"]
    running = []
    for number, site in enumerate("abc"):
        write_atomic(root / f"{site}.key", members[number].private(), private=True)
        mine = ["--data-dir", sites / site, "--ledger", root / f"{site}.jsonl", "--key", root / f"{site}.key"]
        who = ["client", "--client", number, "--state", root / f"state-{number}"]
        running.append(start([*who, *mine, *place], root / f"{site}.log"))

    def server(*words):
        return start(["server", "--port", port, *words], root / "server.log")

    yield SimpleNamespace(root=root, server=server, sites=sites)
    for process in running:
        stop(process)


SERVED = shlex.split("""
    --clients 3 --size 16 --channels 1 --width 2 --rounds 2 --local-steps 1 --batch-size 4 --finished-mask half
    --secure-sum --deadline 120
""")


def reached(folder, step):
    """Whether the server has kept a step of a sum."""
    return any(name.startswith(f"{int(step)}.") for name in runfolder.load_arrays(folder.sum) or {})


@pytest.mark.long
@pytest.mark.parametrize("step", [Step.OPEN, Step.KEYS, Step.SHARES, Step.MASKED, Step.SIGNED, Step.UNMASK])
def test_a_server_that_is_killed_within_a_sum_goes_on_with_it(commanded, tmp_path, step):
    """A step: the last that the server had kept when it was killed; OPEN: none, and one site had answered."""
    out = commanded.root / step.name
    server = commanded.server("--seed", int(step), *SERVED, "--out", out)
    if step == Step.OPEN:
        before = len(list(commanded.root.glob("state-*/*/clients/*/sum-masks.safetensors")))
        until(lambda: len(list(commanded.root.glob("state-*/*/clients/*/sum-masks.safetensors"))) > before)
    else:
        until(lambda: reached(RunFolder(out), step))
    server.kill()
    server.wait()
    again = commanded.server("--resume", out)
    assert again.wait(300) == 0, (commanded.root / "server.log").read_text()[-2000:]
    assert [line["cohort"] for line in read_rounds(RunFolder(out))] == [[0, 1, 2]] * 2
    settings = runfolder.reopen(out)[1]
    data = replace(settings.data, data_dir=str(commanded.sites / "*"))
    told = inprocess.train(replace(settings, data=data), out=tmp_path / "plain")
    assert np.array_equal(load_model(out / "model.safetensors").mask, load_model(told.folder.model).mask)
