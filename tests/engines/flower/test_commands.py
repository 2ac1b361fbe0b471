"""`prismfl federate`: what it refuses, what it calls, the certificates it makes."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import parse_config_args

from prismfl.cli.federate import USUAL
from prismfl.cli.options import asked
from prismfl.data.images import ImageSet
from prismfl.data.lock import alone
from prismfl.data.site import conform, load_site, only, reported
from prismfl.engines.flower.certificates import make_certificates
from prismfl.engines.flower.envelope import Hello
from prismfl.engines.flower.events import EventWriter, read_events, replay
from prismfl.engines.flower.processes import APP, Link, Node, child, environment, follow, quoted, run_client, simulated
from prismfl.engines.flower.server import agree_of, open_folder
from prismfl.errors import ClientError, DataError, PrismError, RunFolderError, SettingError
from prismfl.run.folder import reopen
from prismfl.run.loop import Silent
from prismfl.run.prepare import prepare


def call(*words):
    done = subprocess.run(
        [sys.executable, "-m", "prismfl", "federate", *words], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


# ----------------------------------------------------------------------------------------- refusals


def test_plain_text_beyond_this_machine_is_refused(tmp_path):
    code, _, said = call("server", "--clients", "3", "--host", "0.0.0.0", "--out", str(tmp_path / "run"))
    assert code == 2 and "without TLS" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
    Link("0.0.0.0", 1).check(insecure=True)
    Link("127.0.0.1", 1).check(insecure=False)
    with pytest.raises(SettingError, match="root-certificates"):
        Node("elsewhere:8000", tmp_path, {}).check()
    Node("elsewhere:8000", tmp_path, {}, insecure=True).check()


def test_keys_need_tls_and_files_must_be_there(tmp_path):
    with pytest.raises(SettingError, match="without --certificates"):
        Link("127.0.0.1", 1, keys=tmp_path).check(insecure=False)
    with pytest.raises(SettingError, match=r"no .*ca\.crt"):
        Link("127.0.0.1", 1, tmp_path).check(insecure=False)


def test_without_flower_the_remedy_is_named(tmp_path):
    text = "import sys; sys.modules['flwr'] = None; sys.argv[0] = 'prismfl'; from prismfl.cli.main import main; main()"
    words = ["federate", "simulate", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install 'prismfl[flower]'" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


LEDGER = ("--ledger", "ledger", "--budget-epsilon", "1", "--budget-delta", "1e-5")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["client", "--client", "-1", "--data-dir", "."], "'--client': -1 is not in the range"),
        (["client", "--client", "0", "--data-dir", "nowhere", *LEDGER], "nowhere does not exist"),
        (["client", "--client", "0", "--data-dir", "a", "--key", "nowhere.key", *LEDGER], "nowhere.key"),
        (["client", "--client", "0", "--data-dir", "."], "no --ledger"),
        (["client", "--client", "0", "--data-dir", ".", *LEDGER], "--ledger ledger among the images"),
        (["client", "--client", "0", "--data-dir", "a", "--ledger", "ledger"], "--budget-epsilon"),
        (["server", "--resume", "nowhere"], "no config.toml"),
        (["server", "--clients", "3", "--least-cohort", "4"], "--least-cohort 4"),
        (["simulate", "--resume", "x", "--out", "y"], "--resume with --config, --preset or --out"),
        (["certificates", "--out", "tls", "--host", "x", "--clients", "-1"], "'--clients': -1 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_in_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = call(*words)
    assert code == 2 and says in said and said.startswith("error: ") and said.count("\n") == 1


def test_sites_have_folders_of_their_own_where_no_data_set_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[privacy]\nepsilon = 3.0\n")
    own = asked(path, {"clients": 3}, "long", USUAL)
    assert (own.data.dataset, own.data.partition, own.federation.mode) == ("folder", "given", "one-shot")
    assert asked(None, {"dataset": "mnist"}, "", USUAL).data.partition == "shards"
    path.write_text('[data]\ndataset = "mnist"\n')
    assert asked(path, {}, "", USUAL).data.partition == "shards"
    path.write_text("data = 3\n")
    with pytest.raises(SettingError, match="key 'data'"):
        asked(path, {}, "", USUAL)


# ---------------------------------------------------------------------------------- what is called


def test_flower_reads_back_what_a_node_is_told(tmp_path):
    data = {"data-dir": str(tmp_path / "it's = here"), "insecure": False}
    told = {"partition-id": 2, "most-epsilon": 1.5, "people": r"person(\d+)"} | data
    words = Node("localhost:8000", tmp_path, told).words(9)
    assert parse_config_args([words[words.index("--node-config") + 1]]) == told
    with pytest.raises(SettingError):
        quoted("both ' and \"")


def test_the_app_is_one_and_nothing_reports(tmp_path):
    config, warnings = load_and_validate(APP / "pyproject.toml")
    assert set(config["tool"]["flwr"]["app"]["components"]) == {"serverapp", "clientapp"} and not warnings
    env = environment(tmp_path)
    assert env["FLWR_TELEMETRY_ENABLED"] == env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1" and env["PYTHONIOENCODING"].endswith(":backslashreplace")
    assert "--disable-runtime-dependency-installation" in Link("127.0.0.1", 1).words()
    assert "num-supernodes=7 client-resources-num-cpus=2 init-args-num-cpus=6" in simulated(7, 2, 3)[1]


def test_a_profile_names_the_authority(tmp_path):
    make_certificates(tmp_path / "tls", ["server.example"], 0)
    link = Link("0.0.0.0", 8443, tmp_path / "tls")
    link.check(insecure=False)
    assert 'address = "127.0.0.1:8443"' in link.profile() and "ca.crt" in link.profile()
    assert "insecure" not in link.profile() and "--insecure" not in link.words()


def test_certificates_hold_what_they_say(tmp_path):
    made = make_certificates(tmp_path / "tls", ["server.example", "10.0.0.7"], 2)
    files = [(tmp_path / "tls" / name).read_bytes() for name in ("ca.crt", "server.crt")]
    authority, server = map(x509.load_pem_x509_certificate, files)
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "server.example" in names.get_values_for_type(x509.DNSName)
    assert "10.0.0.7" in map(str, names.get_values_for_type(x509.IPAddress))
    for path in made:
        if path.suffix == ".key":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = serialization.load_ssh_private_key((tmp_path / "tls" / "client-1.key").read_bytes(), None)
    public = serialization.load_ssh_public_key((tmp_path / "tls" / "client-1.pub").read_bytes())
    assert key.public_key() == public and key.curve.name == "secp384r1"
    with pytest.raises(RunFolderError):
        make_certificates(tmp_path / "tls", ["x"], 1)


# ------------------------------------------------------------------------------------------- events


def test_events_are_followed_to_the_end(tmp_path, notes):
    writer = EventWriter(tmp_path)
    writer.started(0, 2)
    writer.note("hello\nthere")
    writer.round_done({"round": 0}, 2)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "no')  # a line under way
    events = list(read_events(tmp_path))
    assert [event["event"] for _, event in events] == ["started", "note", "round"]
    for _, event in events:
        replay(event, notes)
    assert notes.lines == ["hello\nthere"]
    assert not list(read_events(tmp_path, events[-1][0]))


def test_a_failure_is_the_servers_own_words(tmp_path):
    EventWriter(tmp_path).failed(ClientError("two clients", "three", "start it"))
    says = "two clients; expected three; start it; go on with --resume"
    running = child([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "home")
    with running as process, pytest.raises(ClientError, match=says):
        follow(tmp_path, 0, process, Silent())


def test_a_server_that_is_gone_is_noticed(tmp_path):
    with child([sys.executable, "-c", ""], tmp_path / "home") as process:
        process.wait()
        with pytest.raises(RunFolderError, match="superlink ended"):
            follow(tmp_path, 0, process, Silent())


def test_one_client_a_state_folder(tmp_path):
    with alone(tmp_path / ".lock", "it"), pytest.raises(RunFolderError, match=r"in use by process \d+ since"):
        run_client(Node("127.0.0.1:1", tmp_path, {}), print)


def test_children_end_with_the_block(tmp_path):
    with child([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "home") as process:
        assert process.poll() is None
    assert process.poll() is not None


# ------------------------------------------------------------------------------------- what is agreed


def test_classes_are_the_union_unless_all_say_the_same():
    hello = lambda *classes, channels=1: Hello(0, bytes(16), False, classes, channels)  # noqa: E731
    assert agree_of([hello("b", "a"), hello("b", "a")]) == (("b", "a"), 1)
    assert agree_of([hello("b"), hello("a", "c", channels=3)]) == (("a", "b", "c"), 3)
    assert agree_of([hello("b"), hello("b"), hello("b", channels=3)]) == (("b",), 1), "one site does not decide"
    with pytest.raises(ClientError, match="1001 class names"):
        agree_of([hello("a"), hello(*map(str, range(1000)))])


def test_a_sites_images_are_made_to_fit(sites, site_settings):
    settings = site_settings()
    mine = load_site(settings, sites / "a", 0)
    assert mine.classes == ("a", "b") and len(mine) == 9 and mine.images.shape[1] == 1
    fitted = conform(mine, settings, ("0", "a", "b"), 3)
    assert fitted.images.shape == (9, 3, 16, 16) and (fitted.labels == mine.labels + 1).all()
    with pytest.raises(ClientError, match="1 classes that were not agreed on"):
        conform(mine, settings, ("a",), 1)
    named = site_settings(data={"classes": "b, c"})
    assert reported(mine, named) == ("b",)
    with pytest.raises(DataError, match="images of none of the classes that the run names"):
        only(mine, reported(mine, site_settings(data={"classes": "cat"})))
    assert reported(mine, site_settings(data={"classes": "0-1"})) == ("a", "b")
    kept = conform(ImageSet(mine.images, mine.labels * 0, ("b",)), named, ("b", "c"), 1)
    assert kept.classes == ("b", "c")


def test_a_public_data_set_is_dealt_as_in_a_simulation(tiny):
    settings = tiny(data={"clients": 3})
    ready = prepare(settings)
    for client in range(3):
        mine = load_site(settings, None, client)
        assert (mine.images == ready.clients[client].images).all()
        assert (conform(mine, settings, mine.classes, 1).labels == ready.clients[client].labels).all()
    whole = load_site(tiny(data={"partition": "given"}), None, 2)
    assert len(whole) == sum(map(len, ready.clients))


def test_new_settings_and_old_folders(tmp_path):
    folder, settings = open_folder(tmp_path / "run", "seed = 3\n[federation]\nrounds = 4")
    assert (settings.seed, settings.federation.rounds) == (3, 4)
    assert open_folder(folder.root, "seed = 9")[1] == settings
    reopen(folder.root, {"workers": 2})  # what a resume asks is its server's, and the run's once that took it
    assert [found.running.workers for _, found in (open_folder(folder.root, ""), reopen(folder.root))] == [2, 0]
    with pytest.raises(SettingError):
        open_folder(tmp_path / "other", "seed = ")
    with pytest.raises(PrismError):
        open_folder(Path(tmp_path / "other"), "rounds = 3")
