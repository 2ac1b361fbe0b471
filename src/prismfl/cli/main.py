"""The `prismfl` command: every failure is one clear line and exit status 2."""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from prismfl import __version__
from prismfl.errors import PrismError, SettingError
from prismfl.run.progress import LiveWatcher, PlainWatcher, on_terminal, sized
from prismfl.settings.check import check_pattern
from prismfl.settings.resolve import matching_of
from prismfl.settings.schema import Privacy, Settings, all_fields
from prismfl.settings.toml import load_settings, merged, settings_from, successor

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train one image generator together, without sharing images.",
)

_INTERRUPTED = 130  # what typer makes of Ctrl-C
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def main() -> None:
    """Entry point of the `prismfl` command."""
    try:
        status = app(standalone_mode=False)
    except PrismError as error:
        _fail(str(error))
    except Exception as error:
        # Wrong usage comes as click's own exceptions, which typer may bring in a copy of its own.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()}; {_instead(error) or 'see `prismfl --help`'}")
    if status == _INTERRUPTED:
        _fail("interrupted; expected a whole run; finished rounds are kept: go on with --resume RUN")
    sys.exit(status if isinstance(status, int) else 0)


def _instead(error: Exception) -> str:
    """What to use in place of an option that an earlier version had; nothing where there never was one."""
    name = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
    found = successor(name)
    return f"there is {found} now" if found else ""


def _fail(line: str) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(2)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option a setting; what was passed arrives as `changes`, by name."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "changes"]

    def wrapped(**values: Any) -> None:
        changes = {name: _parsed(name, values.pop(name)) for name in all_fields() if values.get(name) is not None}
        command(changes=changes, **{p.name: values[p.name] for p in own})

    options = [_option(name) for name in all_fields()]
    wrapped.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
    wrapped.__doc__ = command.__doc__
    return wrapped


def _option(name: str) -> inspect.Parameter:
    section, item = all_fields()[name]
    choices = item.metadata["choices"]
    kind = "|".join(str(c) for c in choices) if choices else getattr(item.type, "__name__", "list").upper()
    shown = item.default if item.default not in ("", ()) else "none"
    about = f"{item.metadata['about']} [{section + '.' if section else ''}{name} = {shown}]"
    option = typer.Option(f"--{name.replace('_', '-')}", help=about, metavar=kind, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _parsed(name: str, text: str) -> Any:
    """An option's text as its setting's type; what does not parse is left for validation to refuse."""
    kind: Any = all_fields()[name][1].type
    try:
        if kind is bool:
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(text.lower(), text)
        return kind(text)
    except ValueError:
        return text


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _train(
    changes: dict[str, Any],
    config: Annotated[Optional[Path], typer.Option(help="Settings file (TOML); options go over it.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="New run folder [runs/DATASET-SEED].")] = None,  # noqa: UP045
    resume: Annotated[Optional[Path], typer.Option(help="Finish the run in this folder.")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run takes, and stop.")] = False,
    log: Annotated[str, typer.Option(help="Also log to some of tensorboard,wandb,mlflow.", show_default=False)] = "",
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html at the end.")] = False,
) -> None:
    """Train a generator with simulated clients on this machine."""
    if resume is not None and (config or out or dry_run):
        raise SettingError(
            "--resume with --config, --out or --dry-run", "options of running at most", "settings come from the run"
        )
    settings = (
        Settings() if resume else load_settings(config, changes) if config else settings_from(merged({}, changes))
    )
    if dry_run:
        _forecast(settings)
        return
    from prismfl.engines import simulator as inprocess
    from prismfl.run.loggers import Logged, make_logs

    root = resume or out or Path("runs") / f"{settings.data.dataset}-{settings.seed}"
    logs = make_logs(log, root)

    def go(display: Any) -> Any:
        with Logged(display, logs) as watcher:
            if resume is not None:
                finished = inprocess.resume(root, watcher=watcher, changes=changes)
            else:
                finished = inprocess.train(settings, out=root, watcher=watcher)
            watcher.finished(finished.summary)
        return finished

    finished = _watched(go)
    _closing(finished.folder, finished.summary, "" if no_report else _reported(root))


app.command("train")(_with_settings(_train))


def _watched(go: Callable[[Any], Any]) -> Any:
    """What a run gives, shown as it goes."""
    if not on_terminal():
        return go(PlainWatcher())
    with LiveWatcher(Console()) as live:
        return go(live)


def _reported(root: Path) -> str:
    """Where the report of a finished run lies, or why there is none: a run is never lost to its report."""
    try:
        from prismfl.report.page import build_report

        return str(build_report([root]))
    except Exception as error:  # whatever it is, the run is whole
        return f"not built ({' '.join(str(error).split()) or type(error).__name__}); try `prismfl report {root}`"


def _closing(folder: Any, found: Any, report: str) -> None:
    traffic = f"{sized(found['uplink_bytes'])} up, {sized(found['downlink_bytes'])} down"
    print(f"\n{found['rounds']} rounds in {found['seconds']:.0f} s; {traffic}")
    if found["uplink_bits_per_parameter"] is not None:
        each = (found["uplink_bits_per_parameter"], found["downlink_bits_per_parameter"])
        print(f"a client and round: {each[0]:.3f} bits a parameter up, {each[1]:.3f} down")
    if "fid_judge" in found:
        outside = ", outside the guarantee" if found.get("outside_guarantee") else ""
        halves = found.get("fid_judge_of_halves")
        beside = "" if halves is None else f"; one half of the real test images from the other: {halves:.2f}"
        print(f"fid_judge {found['fid_judge']:.2f} (Fréchet distance in the judge network{outside}{beside})")
    print(
        f"model    {folder.model} ({found['model_bytes']} bytes, {found['model_bits_per_parameter']:.3f} bits a weight)"
    )
    print(f"samples  {folder.root / found['grid']}")
    print(f"log      {folder.rounds}")
    if report:
        print(f"report   {report}")
    print(f"privacy  {found['privacy']}")
    print(f"more     prismfl sample {folder.model} --count 64 --seed 1 --out grid.png")


def _forecast(settings: Settings) -> None:
    from prismfl.engines.processes import processes_of
    from prismfl.engines.simulator import workers_of
    from prismfl.run.forecast import forecast
    from prismfl.run.prepare import prepare

    workers = workers_of(settings)
    ready = prepare(settings)
    for line in ready.warnings:
        print(line)
    processes = processes_of(settings, workers)
    found = forecast(ready, workers, processes)
    print(f"minutes            {found.minutes:.1f} ({workers} clients at a time; without the closing figures)")
    print(f"uplink             about {sized(found.uplink_bytes)}")
    print(f"downlink           about {sized(found.downlink_bytes)}")
    beside = f" ({processes} processes search)" if processes else ""
    print(f"memory             {found.memory_mb:.0f} MB{beside}")
    print(f"parameters         {found.parameters}")
    print(f"moments a client   {found.moment_dimension}")
    print(f"images a client    {found.images_per_client[0]} … {found.images_per_client[1]}")


# ------------------------------------------------------------------------------------ federate

federate = typer.Typer(add_completion=False, rich_markup_mode=None, help="The same training on Flower's machinery.")
app.add_typer(federate, name="federate")
_Resume = Annotated[Optional[Path], typer.Option(help="Finish the run in this folder.")]  # noqa: UP045
_Config = Annotated[Optional[Path], typer.Option(help="Settings file (TOML); options go over it.")]  # noqa: UP045
_Out = Annotated[Optional[Path], typer.Option(help="New run folder [runs/DATASET-SEED].")]  # noqa: UP045


def _flower() -> Any:
    """The module of Flower's processes.  Raises DependencyError where Flower is not installed."""
    from prismfl.engines.flower import processes

    return processes


def _federated(changes: dict[str, Any], config: Path | None, out: Path | None, resume: Path | None) -> tuple[Path, Any]:
    """The folder and settings of a run, made or found again."""
    from prismfl.run import folder as runfolder

    if resume is not None:
        if config or out:
            raise SettingError(
                "--resume with --config or --out", "options of running at most", "settings come from the run"
            )
        return resume, runfolder.reopen(resume, changes)[1]
    settings = load_settings(config, changes) if config else settings_from(merged({}, changes))
    root = out or Path("runs") / f"{settings.data.dataset}-{settings.seed}"
    runfolder.create(root, settings)
    return root, settings


def _simulate(changes: dict[str, Any], config: _Config = None, out: _Out = None, resume: _Resume = None) -> None:
    """Train with clients that Flower simulates on this machine, each in a process of Ray: as `train`, slower."""
    flower = _flower()
    from prismfl.data.folder import client_roots

    root, settings = _federated(changes, config, out, resume)
    clients = settings.data.clients or len(client_roots(settings.data.clients_from))
    link = flower.Link("127.0.0.1", flower.free_port(), simulation=True)
    more = flower.simulated(clients, settings.running.threads, settings.running.workers)
    summary = _watched(lambda watcher: flower.run_server(root, link, watcher, watcher.note, more=more))
    _closing(flower.RunFolder(root), summary, _reported(root))


federate.command("simulate")(_with_settings(_simulate))


def _server(
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
    flower = _flower()
    link = flower.Link(host, port, certificates, keys)
    link.check(insecure)
    own = {} if config or resume or "dataset" in changes else {"dataset": "folder", "partition": "given"}
    root, _ = _federated(own | changes, config, out, resume)
    summary = _watched(lambda watcher: flower.run_server(root, link, watcher, watcher.note))
    _closing(flower.RunFolder(root), summary, _reported(root))


federate.command("server")(_with_settings(_server))


@federate.command("client")
def _client(
    client: Annotated[int, typer.Option(help="Number of this client, from 0.")],
    data_dir: Annotated[str, typer.Option(help="Its images: class folders, a zip of them, or a data set's files.")],
    server: Annotated[str, typer.Option(help="The server's HOST:PORT.")] = "127.0.0.1:8000",
    state: Annotated[Optional[Path], typer.Option(help="Folder of what it keeps [client-NUMBER].")] = None,  # noqa: UP045
    root_certificates: Annotated[Optional[Path], typer.Option(help="The server's ca.crt.")] = None,  # noqa: UP045
    key: Annotated[Optional[Path], typer.Option(help="Its private key, client-NUMBER.key.")] = None,  # noqa: UP045
    most_epsilon: Annotated[float, typer.Option(help="Take part only in runs that promise this ε or less.")] = 0.0,
    another_release: Annotated[
        bool, typer.Option("--another-release", help="Release images again under other settings.")
    ] = False,
    people: Annotated[
        str, typer.Option(help="Pattern in its file names that tells whose image each is: checks --images-per-person.")
    ] = "",
    features: Annotated[str, typer.Option(help="File of the matched network, where the run matches one.")] = "",
    weights: Annotated[str, typer.Option(help="File of vgg19's weights, where the run matches vgg19.")] = "",
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    insecure: Annotated[bool, typer.Option("--insecure", help="Talk to another machine without TLS.")] = False,
) -> None:
    """Take part in a run: until it is stopped, this client answers the server and comes back when it is gone."""
    flower = _flower()
    check_pattern(people)
    place = (state or Path(f"client-{client}")).resolve()
    node = flower.client_node(
        server, client, data_dir, place,
        {"device": device, "features": features, "weights": weights},
        {"most-epsilon": float(most_epsilon), "another-release": another_release, "people": people},
        root_certificates, key, insecure,
    )  # fmt: skip
    try:
        flower.run_client(node, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(f"stopped; what this client keeps is in {place}")


@federate.command("certificates")
def _certificates(
    out: Annotated[Path, typer.Option(help="New folder for them.")],
    host: Annotated[list[str], typer.Option(help="Name or address of the server; more than once for more.")],
    clients: Annotated[int, typer.Option(help="Key pairs to make.")] = 3,
) -> None:
    """Make an authority, the server's certificate and the clients' keys for a trial."""
    _flower()
    from prismfl.engines.flower.certificates import make_certificates

    if not 0 <= clients <= 32767:
        raise SettingError(f"clients {clients}", "0 … 32767", "change --clients")
    for path in make_certificates(out, host, clients):
        print(path)


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    count: Annotated[int, typer.Option(help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the latents.")] = 0,
    out: Annotated[Path, typer.Option(help="A .png for one grid, or a folder for single files.")] = Path("grid.png"),
    label: Annotated[str, typer.Option(help="Make images of this label only.")] = "",
    per_class: Annotated[int, typer.Option(help="Images of each label, in a folder a label (instead of --count).")] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
) -> None:
    """Make images with a finished model: same seed, same images."""
    from prismfl.generator.sampling import image_grid, label_columns, load, save_folders, save_picture, save_pictures

    sampler = load(model, device)
    if per_class:
        if label or out.suffix.lower() == ".png":
            raise SettingError(f"--per-class {per_class} with --label or a .png", "a folder alone", "name a folder")
        save_folders(sampler.per_class(per_class, seed=seed), out)
    else:
        images = sampler.sample(count, seed=seed, labels=sampler.labelled(label, count) if label else None)
        if out.suffix.lower() == ".png":
            save_picture(image_grid(images, 0 if label else label_columns(sampler)), out)
        else:
            save_pictures(images, out)
    print(out)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    out: Annotated[Path, typer.Option(help="ONNX file to write.")] = Path("model.onnx"),
) -> None:
    """Write a finished model as ONNX, checked against PyTorch: needs the extra `export`."""
    from prismfl.generator.onnx import export as write

    found = write(model, out)
    print(
        f"{out}: {sized(found.size)} (weights as float32 alone: {sized(found.float_bytes)}); "
        f"values differ from PyTorch's by at most {found.difference:.1g}"
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    dataset: Annotated[str, typer.Option(help="Data set to judge against [the model's own].")] = "",
    data_dir: Annotated[str, typer.Option(help="Its folder [the model's own].")] = "",
    samples: Annotated[int, typer.Option(help="Samples the figures are of.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the latents.")] = 0,
    repeats: Annotated[int, typer.Option(help="Sets of samples, of a seed each: means with 95 % intervals.")] = 1,
    metrics: Annotated[
        str,
        typer.Option(
            help="Some of fid,kid,prdc,tone,readability [all of these that apply],"
            " and synthetic: what a classifier learns of the samples alone;"
            " membership: what they tell of the training images.",
            show_default=False,
        ),
    ] = "",
    inception: Annotated[Optional[Path], typer.Option(help="Weights of the FID's Inception-v3: adds fid.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    pairs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Picture of samples beside the training images nearest to them: a .png."),
    ] = None,
    pairs_by: Annotated[str, typer.Option(help="Nearest by judge (its features) or by pixels.")] = "judge",
    save: Annotated[bool, typer.Option("--save", help="Write evaluation.json beside the model, for reports.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a finished model beside real images: distance, fidelity, diversity, tone and colour, readability."""
    from prismfl.run.evaluate import as_text, evaluate_model, save_evaluation

    asked = (model, dataset, data_dir, samples, seed, inception, device)
    found = evaluate_model(*asked, repeats=repeats, metrics=metrics, pairs=pairs, pairs_by=pairs_by)
    print(json.dumps(found, indent=1) if as_json else as_text(found))
    if save:
        print(f"saved {save_evaluation(model, found)}", file=sys.stderr)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are put side by side.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The page [RUN/report.html; of several runs, comparison.html].", show_default=False),
    ] = None,
) -> None:
    """Write one HTML page of a run or several: samples by round, curves, bytes, labels, privacy, settings."""
    from prismfl.report.page import build_report

    print(build_report(runs, out))


@app.command()
def privacy(
    sizes: Annotated[str, typer.Option(help="Images of each client, by commas.")],
    epsilon: Annotated[float, typer.Option(help="ε of the whole run.")] = 0.0,
    sigma: Annotated[float, typer.Option(help="Instead of ε: σ of the noise on a client's mean vector.")] = 0.0,
    delta: Annotated[float, typer.Option(help="δ of the whole run.")] = 1e-5,
    images_per_person: Annotated[int, typer.Option(help="Most images of one person at one client.")] = 1,
    dimension: Annotated[int, typer.Option(help="Entries of the vector [of the default network, ten labels].")] = 0,
) -> None:
    """Say what noise a guarantee needs, or what guarantee a noise gives, before anything is released."""
    from prismfl.privacy.planning import at_clients, plans

    counts = _numbers("--sizes", sizes)
    entries = dimension or _default_entries()
    found = plans(counts, delta, entries, epsilon=epsilon, sigma=sigma, images_per_person=images_per_person)
    print(f"images   ε at δ = {delta:g}   σ / Δ     Δ of the mean   σ of the mean   noise / signal ({entries} entries)")
    for one in found:
        print(
            f"{one.images:<8} {one.epsilon:<14.4g} {one.noise_multiplier:<9.4g} {one.sensitivity:<15.4g} "
            f"{one.sigma:<15.4g} {one.noise_to_signal:.3g}"
        )
    for clients in sorted({1, min(2, len(found)), len(found)}):
        told = "1 client" if clients == 1 else f"{clients} clients"
        print(f"one person with images at {told}: ε = {at_clients(found, clients, delta):.4g}")


@app.command()
def audit(
    epsilon: Annotated[float, typer.Option(help="ε that is promised.")],
    delta: Annotated[float, typer.Option(help="δ that is promised.")] = 1e-5,
    runs: Annotated[int, typer.Option(help="Releases of each of two neighbouring stores.")] = 20_000,
    canaries: Annotated[int, typer.Option(help="Canaries of the attack on one release.")] = 5_000,
    noise: Annotated[str, typer.Option(help="exact or fast.")] = "exact",
    training_runs: Annotated[int, typer.Option(help="Also attack so many small training runs of each kind.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack the release with canaries: lower bounds on ε, each with 95 % confidence."""
    from dataclasses import asdict

    from prismfl.privacy.audit import audit_release
    from prismfl.privacy.release import check_sizes

    asked = settings_from({"privacy": {"epsilon": epsilon, "delta": delta, "noise": noise}}).privacy
    check_sizes(asked, [100, canaries])
    found = audit_release(asked, runs, canaries)
    trained = _audited_training(epsilon, delta, training_runs) if training_runs else None
    if as_json:
        more = {"training": asdict(trained)} if trained else {}
        print(json.dumps(asdict(found) | {"broken": found.broken} | more, indent=1))
        return
    print(f"promised                        ε = {epsilon:g} at δ = {delta:g}")
    print(f"many releases                   ε ≥ {found.many_runs:.3g}")
    print(f"many releases, if Gaussian      ε ≥ {found.many_runs_if_gaussian:.3g}")
    print(f"one release, many canaries      ε ≥ {found.one_run:.3g}")
    print(f"noise is new every time         {'yes' if found.fresh else 'NO'}")
    if trained:
        print(f"{training_runs} training runs of each kind   ε ≥ {trained.many_runs:.3g}")
        print(f"the same, if Gaussian           ε ≥ {trained.many_runs_if_gaussian:.3g}")
    print("the promise is contradicted" if found.broken else "nothing contradicts the promise")


def _audited_training(epsilon: float, delta: float, runs: int) -> Any:
    """Whole runs of two clients on sixty of the digits, without labels and with the fast sampler."""
    import tempfile

    from prismfl.data.datasets import load_dataset
    from prismfl.engines import simulator as inprocess
    from prismfl.features.networks import load_features
    from prismfl.generator.sampling import load
    from prismfl.moments import FeatureMap
    from prismfl.privacy.audit import audit_training

    settings = settings_from(
        {
            "data": {"clients": 2, "partition": "iid"},
            "generator": {"size": 16, "width": 4},
            "search": {"local_steps": 5, "batch_size": 16},
            "federation": {"rounds": 4, "finished_mask": "half"},
            "privacy": {"epsilon": epsilon, "delta": delta, "noise": "fast"},
        }
    )

    def train(images: Any) -> Any:
        with tempfile.TemporaryDirectory() as root:
            return load(inprocess.train(settings, images, out=Path(root) / "run").folder.model).sample(100)

    features = FeatureMap(load_features("vgg"), matching_of(settings, labelled=True), 1, 16)
    images = load_dataset("digits", None, 16, "train").images[:60]
    return audit_training(train, images, features, settings.privacy, runs)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(f"{option} {text!r}", "whole numbers, by commas", "as 600,600") from None


def _default_entries() -> int:
    """Entries whose noise is that of a client's default release with ε set: ten labels, grey images of 32 pixels."""
    from prismfl.features.networks import load_features
    from prismfl.moments import FeatureMap
    from prismfl.privacy.release import grid_of

    defaults = matching_of(Settings(privacy=Privacy(epsilon=1.0)), labelled=True)
    return round(grid_of(FeatureMap(load_features("vgg"), defaults, 1, 32), 10).noise)


@app.command()
def fetch(
    dataset: Annotated[str, typer.Argument(help="mnist, fmnist, kmnist or cifar10.")],
    data_dir: Annotated[Path, typer.Option(help="Folder to put its files into.")],
    mirror: Annotated[str, typer.Option(help="Address that has the files [the publisher's].")] = "",
) -> None:
    """Download a public data set and check its sums."""
    from prismfl.data import fetch as files

    for path in files.fetch(dataset, data_dir, mirror):
        print(path)


@app.command()
def pretrain(
    images: Annotated[Path, typer.Option(help="Folder or zip of train/CLASS/ and test/CLASS/ images.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 20,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    name: Annotated[str, typer.Option(help="What the images are called.")] = "",
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
    classes: Annotated[str, typer.Option(help="Classes to train on: names, numbers from 0, ranges (0-4) [all].")] = "",
    colour: Annotated[float, typer.Option(help="Share of images with random colour; 0 keeps a sense of colour.")] = 0.5,
    grey: Annotated[float, typer.Option(help="Share of images turned grey; 0 where no grey images will come.")] = 0.3,
) -> None:
    """Train a feature network on public images."""
    from prismfl.data.datasets import load_dataset
    from prismfl.features.pretrain import Recipe
    from prismfl.features.pretrain import pretrain as run

    recipe = Recipe(epochs=epochs, rate=rate, seed=seed, colour=colour, grey=grey)
    if not 8 <= size <= 256:
        raise SettingError(f"size {size}", "8 … 256", "change --size")
    train, test = (load_dataset("folder", images, size, split) for split in ("train", "test"))
    accuracy = run(train, test, recipe, name or images.name, out, classes=classes)
    print(f"{out}: test accuracy {accuracy:.4f}")


@app.command("fetch-weights")
def fetch_weights(
    name: Annotated[str, typer.Argument(help="vgg19, vgg19_bn or inception.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    url: Annotated[str, typer.Option(help="Fetch from here [where the file is published].")] = "",
) -> None:
    """Download a network's published weights and check them: needs a connection, once."""
    from prismfl.features.published import fetch

    print(f"{out}: SHA-256 {fetch(name, out, url)}")


if __name__ == "__main__":
    main()
