"""`prismfl federate`: the same training on Flower's machinery."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from prismfl.cli.commands import in_options
from prismfl.cli.options import asked
from prismfl.cli.train import Preset, closing, reported, watched
from prismfl.data.files import make_folder, write_atomic
from prismfl.errors import ClientError, PrismError, SettingError
from prismfl.settings.check import check_people
from prismfl.settings.schema import FEATURE_NETS
from prismfl.settings.toml import read_toml, settings_from

_Resume = Annotated[Optional[Path], typer.Option(help="Finish the run in this folder.")]  # noqa: UP045
_Config = Annotated[Optional[Path], typer.Option(help="Settings file (TOML); options go over it.")]  # noqa: UP045
_Out = Annotated[Optional[Path], typer.Option(help="New run folder [runs/DATASET-SEED].")]  # noqa: UP045


# Sites that name no data set have folders of their own.
USUAL = {"dataset": "folder", "partition": "given"}


def _folder_of(
    changes: dict[str, Any],
    config: Path | None,
    preset: str,
    out: Path | None,
    resume: Path | None,
    usual: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """The folder and settings of a run, made or found again."""
    from prismfl.run import folder as runfolder

    if resume is not None:
        if config or preset or out:
            raise SettingError(
                "--resume with --config, --preset or --out", "options of running at most", "settings come from the run"
            )
        return runfolder.reopen(resume, changes)
    settings = asked(config, changes, preset, usual)
    return runfolder.create(out or Path("runs") / f"{settings.data.dataset}-{settings.seed}", settings), settings


def _run(how: str, folder: Any, link: Any, more: list[str]) -> None:
    """A run on a SuperLink of its own, shown as it goes."""
    from prismfl.engines.flower.processes import run_server
    from prismfl.report.status import Status

    def go(display: Any) -> Any:
        with Status(display, folder.root) as page:
            summary = run_server(folder.root, link, page, display.note, more=more)
        return summary, reported(folder.root, display)

    summary, page = watched(go, f"prismfl federate {how} --resume {folder.root}", folder.root)
    closing(folder, summary, page)


def simulate(
    changes: dict[str, Any],
    config: _Config = None,
    preset: Preset = "",
    out: _Out = None,
    resume: _Resume = None,
) -> None:
    """Train with clients that Flower simulates on this machine, each in a process of Ray: as `train`, slower."""
    from prismfl.data.folder import client_roots
    from prismfl.engines.flower.processes import Link, free_port, simulated

    folder, settings = _folder_of(changes, config, preset, out, resume)
    clients = settings.data.clients or len(client_roots(settings.data.pattern))
    more = simulated(clients, settings.running.threads, settings.running.workers)
    _run("simulate", folder, Link("127.0.0.1", free_port(), simulation=True), more)


def server(
    changes: dict[str, Any],
    config: _Config = None,
    preset: Preset = "",
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
    _run("server", _folder_of(changes, config, preset, out, resume, USUAL)[0], link, [])


_NET, _FILES, _RULES = "The server", "This site", "What it may answer and release"
_Client = Annotated[int, typer.Option(help="Number of this client, from 0.", min=0)]
_Images = Annotated[str, typer.Option(help="Its images: class folders, a zip of them, or a data set's files.")]
_Server = Annotated[str, typer.Option(help="HOST:PORT.", rich_help_panel=_NET)]
_Root = Annotated[Optional[Path], typer.Option(help="The server's ca.crt.", rich_help_panel=_NET)]  # noqa: UP045
_Key = Annotated[Optional[Path], typer.Option(help="Its private key, client-NUMBER.key.", rich_help_panel=_NET)]  # noqa: UP045
_Insecure = Annotated[
    bool, typer.Option("--insecure", help="Talk to another machine without TLS.", rich_help_panel=_NET)
]
_State = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of what it keeps [client-NUMBER].", rich_help_panel=_FILES),
]
_Features = Annotated[
    str,
    typer.Option(
        help="File of the matched network, where the run matches one; vgg19:FILE where it matches vgg19.",
        rich_help_panel=_FILES,
    ),
]
_Device = Annotated[str, typer.Option(help="Torch device.", rich_help_panel=_FILES)]
_People = Annotated[
    str,
    typer.Option(
        help="Whose image each is: a pattern in file names, or a table of files and persons (.csv). Each counts once.",
        rich_help_panel=_FILES,
    ),
]
_Ledger = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="File of all that its images ever release.", rich_help_panel=_RULES),
]
_Policy = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="What it answers, as `federate policy` makes it.", rich_help_panel=_RULES),
]
_Budget = Annotated[
    float,
    typer.Option(help="Most ε of all releases together [the policy's].", rich_help_panel=_RULES, show_default=False),
]
_Delta = Annotated[
    float, typer.Option(help="δ at which that ε is told [the policy's].", rich_help_panel=_RULES, show_default=False)
]
_Most = Annotated[
    float, typer.Option(help="Most ε of one run [the policy's].", rich_help_panel=_RULES, show_default=False)
]


def client(
    client: _Client,
    data_dir: _Images,
    server: _Server = "127.0.0.1:8000",
    state: _State = None,
    root_certificates: _Root = None,
    key: _Key = None,
    ledger: _Ledger = None,
    policy: _Policy = None,
    budget_epsilon: _Budget = 0.0,
    budget_delta: _Delta = 0.0,
    most_epsilon: _Most = 0.0,
    people: _People = "",
    features: _Features = "",
    device: _Device = "cpu",
    insecure: _Insecure = False,
) -> None:
    """Take part in a run: until it is stopped, this client answers the server and comes back when it is gone."""
    from prismfl.engines.flower.processes import Node, run_client

    files = {"data-dir": data_dir, "features": features}
    rules = _rules(ledger, policy, data_dir, budget_epsilon, budget_delta, most_epsilon)
    config = _node(client, server, state, files, device, people, key) | rules
    node = Node(server, Path(str(config["state-dir"])), config, root_certificates, key, insecure)
    node.check()
    try:
        run_client(node, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(f"stopped; what this client keeps is in {node.state}")


def check(
    client: _Client,
    data_dir: _Images,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The run's settings (TOML), where they are known [a server's own]."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="File for what may be mailed to the server's engineer.")] = None,  # noqa: UP045
    server: _Server = "127.0.0.1:8000",
    state: _State = None,
    root_certificates: _Root = None,
    key: _Key = None,
    ledger: _Ledger = None,
    policy: _Policy = None,
    budget_epsilon: _Budget = 0.0,
    budget_delta: _Delta = 0.0,
    most_epsilon: _Most = 0.0,
    people: _People = "",
    features: _Features = "",
    device: _Device = "cpu",
    insecure: _Insecure = False,
) -> None:
    """Look at all that a run will need, before anything is sent: with the options of `federate client`."""
    from prismfl.engines.flower.check import Checked, look
    from prismfl.engines.flower.check import check as findings
    from prismfl.engines.flower.processes import Node
    from prismfl.engines.flower.site import Site

    files = {"data-dir": data_dir, "features": features}
    rules = _rules(ledger, policy, data_dir, budget_epsilon, budget_delta, most_epsilon)
    told = _node(client, server, state, files, device, people, key) | rules
    Node(server, Path(str(told["state-dir"])), told, root_certificates, key, insecure).check()
    settings = settings_from(read_toml(config)) if config else None
    asked = Checked(Site.read(told), root_certificates, key, settings)
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    mail = [f"prismfl federate check of client {client}, {stamp}; it holds nothing of the images, and may be mailed\n"]
    print(mail[0])
    faults = 0
    for finding in findings(asked):
        mail, faults = [*mail, str(finding)], faults + finding.fault
        print(finding, flush=True)
    if out is not None:
        write_atomic(out, "\n".join(mail) + "\n")
        print(f"\nwritten to {out}, to be mailed")
    print("\nOf this site's images, for this screen alone: do not mail what follows\n")
    try:
        for line in look(asked):
            print(line, flush=True)
    except PrismError as error:
        print(f"FAULT  {in_options(str(error), ('device', 'people', 'features'))}")
        faults += 1
    if faults:
        raise ClientError(f"faults: {faults}", "none", "mend what is marked FAULT above, and check again")


def _node(
    client: int, server: str, state: Path | None, files: Mapping[str, str], device: str, people: str, key: Path | None
) -> dict[str, str | int | float | bool]:
    """What a client's node is told of its place, which is made."""
    check_people(people)
    place = (state or Path(f"client-{client}")).resolve()
    make_folder(place, private=True)
    return {
        "partition-id": client,
        "state-dir": str(place),
        "device": device,
        "people": people,
        "key": str(key.resolve()) if key else "",
        "server": server,
        **{name: _placed(path) for name, path in files.items()},
    }


def _placed(text: str) -> str:
    """A file's place from the root; of a feature network, as vgg19:FILE, its file's."""
    name, colon, file = text.partition(":")
    if name in FEATURE_NETS:
        return f"{name}:{Path(file).expanduser().resolve()}" if colon else name
    return str(Path(text).resolve()) if text else ""


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
