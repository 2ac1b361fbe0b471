"""Attacks of a server on a site: what it asks beyond the site's rules is refused, and nothing of the images leaves."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from prismfl.cli.federate import _rules
from prismfl.data import site as loading
from prismfl.engines.flower import client
from prismfl.engines.flower.envelope import Ask, Request, Terms, hello_from, response_from, to_records
from prismfl.engines.flower.site import AUDIT, Site
from prismfl.errors import ClientError, PrivacyError, SettingError
from prismfl.federation.agreement import init
from prismfl.federation.round import broadcast
from prismfl.privacy.chain import Chain
from prismfl.privacy.policy import Policy, policy_from, policy_text, read_policy
from prismfl.privacy.source import SourceLedger, read_ledger, spent_of
from prismfl.run.prepare import agree_on
from prismfl.settings.toml import to_toml
from prismfl.wire import frames as message

PRIVATE = {"epsilon": 1.0, "delta": 1e-3, "noise": "fast"}
RULES = Policy(1.5, 1e-3, largest_delta=1e-3, samplers=("exact", "fast"), least_cohort=2)


@pytest.fixture
def node(sites, tmp_path):
    """A site's node configuration, its rules in a file."""
    (tmp_path / "policy.toml").write_text(policy_text(RULES))
    return {
        "partition-id": 0,
        "data-dir": str(sites / "a"),
        "state-dir": str(tmp_path / "state"),
        "ledger": str(tmp_path / "ledger.jsonl"),
        "policy": str(tmp_path / "policy.toml"),
    }


@pytest.fixture
def asking(node, site_settings):
    """What a server hears that asks the site for its part of a first round."""

    def ask(greet=False, **changes):
        settings = site_settings(**changes)
        agreement = agree_on(settings, settings.generator.channels or 1, ("a", "b"))
        terms = Terms(to_toml(agreement.settings.public()), ("a", "b"), agreement.layout.channels)
        if greet:
            request = Request(Ask.HELLO, terms=Terms(to_toml(settings.public())))
        elif settings.federation.mode == "one-shot":
            frame = message.seal_request(agreement.place(0, 0))
            request = Request(Ask.TRAIN, agreement.run, frame=frame, terms=terms)
        else:
            frame = broadcast(agreement, init(agreement)).get(0, b"")
            request = Request(Ask.TRAIN, agreement.run, frame=frame, terms=terms)
        sent = Message(to_records(request), dst_node_id=1, message_type="train", group_id="0")
        sent.metadata.__dict__["_message_id"], sent.metadata.__dict__["_run_id"] = "m", 1
        reply = client.answer(sent, Context(1, 1, node, RecordDict(), {}))
        return hello_from(reply.content) if greet else response_from(reply.content, 10**8)

    return ask


def test_many_askings_spend_what_the_budget_allows(asking, node):
    kinds = [{"size": 16}, {"size": 32}, {"channels": 3}, {"conditional": False}]
    heard = [
        asking(privacy=PRIVATE | {"epsilon": epsilon}, generator={"channels": 1} | kind)
        for epsilon in (1.0, 0.9, 0.8, 0.7)
        for kind in kinds
    ]
    spent = spent_of(read_ledger(Path(node["ledger"])), 1e-3)
    assert spent.epsilon <= 1.5 * (1 + 1e-6) and sum(bool(one.frame) for one in heard) == spent.releases == 2
    assert all("beyond what this site may spend" in str(one.error) for one in heard if not one.frame)


BEYOND = {
    "epsilon": {"privacy": PRIVATE | {"epsilon": 1.6}},
    "delta": {"privacy": PRIVATE | {"delta": 3e-3}},
    "a small cohort": {"privacy": PRIVATE, "federation": {"cohort": 1}},
    "one-shot as they are": {"federation": {"mode": "one-shot"}},
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_goes_beyond_the_rules_is_refused_before_an_image_is_read(what, asking, monkeypatch):
    def never(*_, **__):
        raise AssertionError("an image is read")

    monkeypatch.setattr(loading, "load_clients", never)
    error = asking(**BEYOND[what]).error
    assert "by this site's policy" in str(error) or "a run with epsilon" in str(error)
    with pytest.raises(ClientError, match="this site's policy"):
        asking(greet=True, **BEYOND[what])


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ({"images_per_person": 3}, {"privacy": PRIVATE}),
        ({"samplers": ["exact"]}, {"privacy": PRIVATE}),
        ({"modes": ["one-shot"]}, {"privacy": PRIVATE}),
        ({"sizes": [64]}, {"privacy": PRIVATE}),
        ({"networks": ["0" * 64]}, {"privacy": PRIVATE}),
        ({"without_epsilon": "never"}, {}),
    ],
    ids=str,
)
def test_each_rule_of_a_policy_holds(rule, changes, asking, node):
    assert asking(**changes).frame
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(RULES).items()}
    Path(node["policy"]).write_text(policy_text(policy_from(values | rule)))
    assert "this site's policy" in str(asking(**changes).error)


def test_a_site_that_knows_its_persons_needs_no_number_of_their_images(asking, node):
    rules = asdict(RULES) | {"images_per_person": 3}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in rules.items()}
    Path(node["policy"]).write_text(policy_text(policy_from(values)))
    assert "images_per_person = 1" in str(asking(privacy=PRIVATE).error)
    node["people"] = r"(\d+)\.png"
    assert asking(privacy=PRIVATE).frame


def test_runs_without_epsilon_end_with_the_first_release(asking):
    assert asking().frame
    assert asking(privacy=PRIVATE).frame
    assert "a run with epsilon" in str(asking().error)
    assert asking(privacy=PRIVATE).frame, "what was released is there"


def test_a_release_or_ledger_that_is_gone_is_not_replaced(asking, node):
    assert asking(privacy=PRIVATE).frame
    ledger = SourceLedger(Path(node["ledger"]))
    kept = ledger.path.read_bytes()
    ledger.path.unlink()
    assert not asking(privacy=PRIVATE).frame
    ledger.path.write_bytes(kept)
    for path in ledger.folder.glob("*.safetensors"):
        path.unlink()
    said = asking(privacy=PRIVATE)
    assert not said.frame and "one PrivacyError at the site" in str(said.error)
    assert len(read_ledger(ledger.path)) == 1


def test_no_name_of_a_file_or_folder_leaves(asking, node, capfd):
    secret = "HIV-positive_1970-01-01"
    (Path(node["data-dir"]) / "a" / f"{secret}.png").write_bytes(b"no image")
    for changes in ({"privacy": PRIVATE}, {}):
        error = asking(**changes).error
        assert "at the site" in str(error) and secret not in str(error) and node["data-dir"] not in str(error)
    assert secret in capfd.readouterr().err, "whoever runs the site is told"
    assert secret not in (Path(node["state-dir"]) / AUDIT).read_text()


def test_what_a_site_read_is_told_to_its_owner_alone(asking, node, capfd):
    (Path(node["data-dir"]) / "a" / "HIV.cr2").write_bytes(b"")
    for privacy, classes in ((PRIVATE, "a, b"), ({}, "a 5, b 4")):
        asking(greet=True, privacy=privacy)
        out = capfd.readouterr().out
        assert f"9 images, 2 classes ({classes}), grey," in out and "1 file skipped (.cr2)" in out and "HIV" not in out


def test_what_was_answered_stands_in_a_log_that_cannot_be_changed_unseen(asking, node):
    asking(privacy=PRIVATE)
    asking(privacy=PRIVATE | {"epsilon": 1.6})
    path = Path(node["state-dir"]) / AUDIT
    first, second = Chain(path, "audit log").read()
    assert first["bytes"] > 0 and first["epsilon"] == 1.0 and len(first["settings"]) == 64
    assert "epsilon = 1.6" in second["refused"]
    path.write_text(path.read_text().replace('"epsilon": 1.0', '"epsilon": 0.1'))
    with pytest.raises(PrivacyError, match="audit log"):
        Chain(path, "audit log").read()


def test_what_a_site_keeps_is_its_owners_alone(asking, node):
    asking(privacy=PRIVATE)
    asking(greet=True, privacy=PRIVATE)
    kept = list(Path(node["state-dir"]).rglob("*"))
    assert {"token", AUDIT} <= {path.name for path in kept}
    for path in (*kept, Path(node["ledger"])):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("budget_epsilon = 1.0", "no budget_delta"),
        ("budget_epsilon = 1.0\nbudget_delta = 1e-5\nsize = 3", "one of"),
        ('budget_epsilon = "1"\nbudget_delta = 1e-5', "budget_epsilon"),
        ('budget_epsilon = 1.0\nbudget_delta = 1e-5\nmodes = ["all"]', "modes"),
        ('budget_epsilon = 1.0\nbudget_delta = 1e-5\nwithout_epsilon = "yes"', "until-release"),
        ("budget_epsilon = [", "cannot read"),
    ],
)
def test_a_policy_that_is_none_is_refused(text, says, tmp_path):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(SettingError, match=says):
        read_policy(tmp_path / "policy.toml")


def test_a_policy_that_is_changed_holds_at_once(node, tmp_path):
    """The command hands on its own options alone; what it leaves to the file is read with each message."""
    told = _rules(Path(node["ledger"]), Path(node["policy"]), node["data-dir"], 0.0, 0.0, 0.5)
    site = Site.of(Context(1, 1, node | told, RecordDict(), {}))
    assert site.rules() == replace(RULES, largest_epsilon=0.5)
    Path(node["policy"]).write_text(policy_text(replace(RULES, budget_epsilon=0.25)))
    assert site.source().budget.epsilon == 0.25


def test_a_policy_is_read_back(tmp_path):
    (tmp_path / "policy.toml").write_text(policy_text(RULES))
    assert read_policy(tmp_path / "policy.toml") == RULES
    assert read_policy(tmp_path / "policy.toml", largest_epsilon=0.5) == replace(RULES, largest_epsilon=0.5)
