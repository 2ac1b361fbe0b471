"""`prismfl federate`: the same training on Flower's machinery."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from prismfl.cli.options import asked
from prismfl.cli.train import closing, reported, watched
from prismfl.data.files import make_folder
from prismfl.errors import SettingError
from prismfl.settings.check import check_pattern

_Resume = Annotated[Optional[Path], typer.Option(help="Finish the run in this folder.")]  # noqa: UP045
_Config = Annotated[Optional[Path], typer.Option(help="Settings file (TOML); options go over it.")]  # noqa: UP045
_Out = Annotated[Optional[Path], typer.Option(help="New run folder [runs/DATASET-SEED].")]  # noqa: UP045


def _folder_of(changes: dict[str, Any], config: Path | None, out: Path | None, resume: Path | None) -> tuple[Any, Any]:
    """The folder and settings of a run, made or found again."""
    from prismfl.run import folder as runfolder

    if resume is not None:
        if config or out:
            raise SettingError(
                "--resume with --config or --out", "options of running at most", "settings come from the run"
            )
        return runfolder.reopen(resume, changes)
    settings = asked(config, changes)
    return runfolder.create(out or Path("runs") / f"{settings.data.dataset}-{settings.seed}", settings), settings


def _run(how: str, folder: Any, link: Any, more: list[str]) -> None:
    """A run on a SuperLink of its own, shown as it goes."""
    from prismfl.engines.flower.processes import run_server

    def go(watcher: Any) -> Any:
        return run_server(folder.root, link, watcher, watcher.note, more=more), reported(folder.root, watcher)

    summary, page = watched(go, f"prismfl federate {how} --resume {folder.root}")
    closing(folder, summary, page)


def simulate(changes: dict[str, Any], config: _Config = None, out: _Out = None, resume: _Resume = None) -> None:
    """Train with clients that Flower simulates on this machine, each in a process of Ray: as `train`, slower."""
    from prismfl.data.folder import client_roots
    from prismfl.engines.flower.processes import Link, free_port, simulated

    folder, settings = _folder_of(changes, config, out, resume)
    clients = settings.data.clients or len(client_roots(settings.data.clients_from))
    more = simulated(clients, settings.running.threads, settings.running.workers)
    _run("simulate", folder, Link("127.0.0.1", free_port(), simulation=True), more)


def server(
    changes: dict[str, Any],
    config: _Config = None,
    out: _Out = None,
    resume: _Resume = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    certificates: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of ca.crt, server.crt and server.key."),
    ] = None,
    keys: Annotated[Optional[Path], typer.Option(help="Folder of client-N.pub: nobody else may connect.")] = None,  # noqa: UP045
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen on other than loopback without TLS.")] = False,
) -> None:
    """Serve a run to clients on other machines: by default each of them has a folder of images of its own."""
    from prismfl.engines.flower.processes import Link

    link = Link(host, port, certificates, keys)
    link.check(insecure)
    own = {} if config or resume or "dataset" in changes else {"dataset": "folder", "partition": "given"}
    _run("server", _folder_of(own | changes, config, out, resume)[0], link, [])


def client(
    client: Annotated[int, typer.Option(help="Number of this client, from 0.", min=0)],
    data_dir: Annotated[str, typer.Option(help="Its images: class folders, a zip of them, or a data set's files.")],
    server: Annotated[str, typer.Option(help="The server's HOST:PORT.")] = "127.0.0.1:8000",
    state: Annotated[Optional[Path], typer.Option(help="Folder of what it keeps [client-NUMBER].")] = None,  # noqa: UP045
    root_certificates: Annotated[Optional[Path], typer.Option(help="The server's ca.crt.")] = None,  # noqa: UP045
    key: Annotated[Optional[Path], typer.Option(help="Its private key, client-NUMBER.key.")] = None,  # noqa: UP045
    ledger: Annotated[Optional[Path], typer.Option(help="File of all that its images ever release.")] = None,  # noqa: UP045
    policy: Annotated[Optional[Path], typer.Option(help="What it answers, as `federate policy` makes it.")] = None,  # noqa: UP045
    budget_epsilon: Annotated[float, typer.Option(help="Most ε of all releases together [the policy's].")] = 0.0,
    budget_delta: Annotated[float, typer.Option(help="δ at which that ε is told [the policy's].")] = 0.0,
    most_epsilon: Annotated[float, typer.Option(help="Most ε of one run [the policy's].")] = 0.0,
    people: Annotated[
        str, typer.Option(help="Pattern in its file names that tells whose image each is: checks --images-per-person.")
    ] = "",
    features: Annotated[str, typer.Option(help="File of the matched network, where the run matches one.")] = "",
    weights: Annotated[str, typer.Option(help="File of vgg19's weights, where the run matches vgg19.")] = "",
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    insecure: Annotated[bool, typer.Option("--insecure", help="Talk to another machine without TLS.")] = False,
) -> None:
    """Take part in a run: until it is stopped, this client answers the server and comes back when it is gone."""
    from prismfl.engines.flower.processes import Node, run_client

    check_pattern(people)
    place = (state or Path(f"client-{client}")).resolve()
    make_folder(place, private=True)
    files = {"data-dir": data_dir, "state-dir": str(place), "features": features, "weights": weights}
    config: dict[str, str | int | float | bool] = {
        "partition-id": client,
        **{name: str(Path(path).resolve()) if path else "" for name, path in files.items()},
        "device": device,
        "people": people,
        "key": str(key.resolve()) if key else "",
        "server": server,
        **_rules(ledger, policy, data_dir, budget_epsilon, budget_delta, most_epsilon),
    }
    node = Node(server, place, config, root_certificates, key, insecure)
    node.check()
    try:
        run_client(node, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(f"stopped; what this client keeps is in {place}")


def _rules(
    ledger: Path | None, policy: Path | None, data_dir: str, epsilon: float, delta: float, most: float
) -> dict[str, str | float]:
    """What a client's node is told of its ledger and its rules, all of it checked.  Raises PrismError subclasses."""
    from prismfl.privacy.policy import policy_from, read_policy
    from prismfl.privacy.source import SourceLedger

    if ledger is None:
        raise SettingError("no --ledger", "the file of all that its images ever release", "pass --ledger FILE")
    place = ledger.resolve()
    if data_dir and place.is_relative_to(Path(data_dir).resolve()):
        raise SettingError(f"--ledger {ledger} among the images", "a place of its own", "put it elsewhere")
    options = {"budget_epsilon": epsilon, "budget_delta": delta, "largest_epsilon": most}
    changes = {name: float(value) for name, value in options.items() if value}
    found = read_policy(policy, **changes) if policy else policy_from(changes)
    SourceLedger(place, found.budget()).releases()  # that does not read is refused now
    # What the options leave to the policy is read anew for each message: a change of the file holds at once.
    numbers = {"budget-epsilon": epsilon, "budget-delta": delta, "most-epsilon": most}
    return {"ledger": str(place), "policy": str(policy.resolve()) if policy else "", **numbers}


def policy(
    out: Annotated[Path, typer.Option(help="New file for it.")],
    budget_epsilon: Annotated[float, typer.Option(help="Most ε of all releases of the site's images together.")],
    budget_delta: Annotated[float, typer.Option(help="δ at which that ε is told.")] = 1e-5,
    keys: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of client-N.pub of all sites, for secure sums: no other keys are known to the site."),
    ] = None,
    colluders: Annotated[int, typer.Option(help="Sites that may collude with the server [a fifth].", min=-1)] = -1,
    dropouts: Annotated[int, typer.Option(help="Sites that may vanish [a tenth].", min=-1)] = -1,
    sums_alone: Annotated[bool, typer.Option("--sums-alone", help="Answer secure sums alone.")] = False,
) -> None:
    """Write a site's policy, to be read and changed: what it answers, and what it may spend in all."""
    from prismfl.data.files import write_atomic
    from prismfl.privacy.policy import Policy, pinned, policy_text

    if out.exists():
        raise SettingError(f"{out} is there already", "a new file", "choose another --out")
    found = Policy(budget_epsilon, budget_delta, sums_alone=sums_alone)
    if keys is not None:
        sites = pinned(keys)
        asked = replace(found, sites=sites, colluders=colluders, dropouts=dropouts).sums()
        found = replace(found, sites=asked.keys, colluders=asked.colluders, dropouts=asked.dropouts)
    write_atomic(out, policy_text(found))
    print(out)


def certificates(
    out: Annotated[Path, typer.Option(help="New folder for them.")],
    host: Annotated[list[str], typer.Option(help="Name or address of the server; more than once for more.")],
    clients: Annotated[int, typer.Option(help="Key pairs to make.", min=0, max=32767)] = 3,
) -> None:
    """Make an authority, the server's certificate and the clients' keys for a trial."""
    from prismfl.engines.flower.certificates import make_certificates

    for path in make_certificates(out, host, clients):
        print(path)
