"""`prismfl privacy` and `prismfl audit`: a guarantee planned, and attacked."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from prismfl.errors import SettingError
from prismfl.run.progress import shown_parts
from prismfl.settings.resolve import matching_of
from prismfl.settings.schema import Privacy, Settings
from prismfl.settings.toml import settings_from


def privacy(
    context: typer.Context,
    sizes: Annotated[str, typer.Option(help="Images of each client, or its persons where known, by commas.")] = "",
    epsilon: Annotated[float, typer.Option(help="ε of the whole run.")] = 0.0,
    sigma: Annotated[float, typer.Option(help="Instead of ε: σ of the noise on a client's mean vector.")] = 0.0,
    delta: Annotated[float, typer.Option(help="δ of the whole run.")] = 1e-5,
    images_per_person: Annotated[int, typer.Option(help="Most images of one person at one client.")] = 1,
    dimension: Annotated[int, typer.Option(help="Entries of the vector [of the default network, ten labels].")] = 0,
    secure_sum: Annotated[bool, typer.Option("--secure-sum", help="Also of one secure sum of all of them.")] = False,
    colluders: Annotated[int, typer.Option(help="Of its sites, those that may collude [a fifth].", min=-1)] = -1,
    dropouts: Annotated[int, typer.Option(help="Of its sites, those that may vanish [a tenth].", min=-1)] = -1,
) -> None:
    """Say what noise a guarantee needs, or what guarantee a noise gives, before anything is released."""
    if context.invoked_subcommand is not None:
        return
    from prismfl.privacy.planning import at_clients, plans, sum_text

    if secure_sum and sigma:
        raise SettingError("--secure-sum with --sigma", "--epsilon, which all clients share", "pass it instead")
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
    if secure_sum:
        print(sum_text(found, delta, colluders, dropouts))


def ledger(
    file: Annotated[Path, typer.Argument(help="The ledger of a source, or its data: a folder, or a data set's name.")],
    delta: Annotated[float, typer.Option(help="δ at which ε is told [the largest of the entries].")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print all that was ever released of a source, and what it comes to; verify that nothing was changed."""
    from prismfl.privacy.source import as_json as json_of
    from prismfl.privacy.source import as_text, is_ledger, ledger_of, read_ledger

    found = file if is_ledger(file) else ledger_of(str(file.resolve()) if file.exists() else str(file))
    releases = read_ledger(found)
    print(json_of(releases, delta) if as_json else f"{found}\n{as_text(releases, delta)}")


def audit(
    epsilon: Annotated[float, typer.Option(help="ε that is promised.")],
    delta: Annotated[float, typer.Option(help="δ that is promised.")] = 1e-5,
    runs: Annotated[int, typer.Option(help="Releases of each of two neighbouring sources.")] = 600,
    canaries: Annotated[int, typer.Option(help="Canaries of the attack on one release.")] = 5_000,
    noise: Annotated[str, typer.Option(help="exact or fast.")] = "exact",
    images_per_person: Annotated[int, typer.Option(help="Most images of one person at one client.")] = 1,
    whole_persons: Annotated[
        int, typer.Option(help="Attack releases that know whose each image is, of so many images a person.", min=0)
    ] = 0,
    training_runs: Annotated[int, typer.Option(help="Also attack so many small training runs of each kind.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack the release with canaries: lower bounds on ε, each with 95 % confidence."""
    from dataclasses import asdict

    from prismfl.privacy.audit import ROUNDED, audit_release
    from prismfl.privacy.release import check_sizes

    values = {"epsilon": epsilon, "delta": delta, "noise": noise, "images_per_person": images_per_person}
    asked = settings_from({"privacy": values}).privacy
    check_sizes(asked, [100, canaries])
    with shown_parts() as part:
        after = part("releases attacked", 2 * runs)
        found = audit_release(asked, runs, canaries, whole_persons=whole_persons, after=after)
    real = _noise_at_default_size(asked)
    trained = _audited_training(epsilon, delta, training_runs) if training_runs else None
    broken = found.broken or real < ROUNDED
    if as_json:
        more: dict[str, Any] = {"training": asdict(trained)} if trained else {}
        print(json.dumps(asdict(found) | {"noise_at_default_size": real, "broken": broken} | more, indent=1))
        return
    print(f"promised                        ε = {epsilon:g} at δ = {delta:g}")
    print(f"many releases                   ε ≥ {found.many_runs:.3g}")
    print(f"many releases, if Gaussian      ε ≥ {found.many_runs_if_gaussian:.3g}")
    print(f"one release, many canaries      ε ≥ {found.one_run:.3g}")
    print(f"noise of moments                {found.noise:.3f} of what is needed, at most")
    print(f"noise of label counts           {found.counts:.3f} of what is needed, at most")
    print(f"noise at the default size       {real:.3f} of what is needed")
    print(f"means are those of the images   {'yes' if found.true else 'NO'}")
    print(f"labels drown in noise alone     {'yes' if found.drowned else 'NO'}")
    print(f"noise is new every time         {'yes' if found.fresh else 'NO'}")
    print(f"kept, and counted once          {'yes' if found.kept else 'NO'}")
    if trained:
        print(f"{training_runs} training runs of each kind   ε ≥ {trained.many_runs:.3g}")
        print(f"the same, if Gaussian           ε ≥ {trained.many_runs_if_gaussian:.3g}")
    for defect in found.defects:
        print(f"! {defect}")
    print("the promise is contradicted" if broken else "nothing contradicts the promise")


def _noise_at_default_size(asked: Privacy) -> float:
    """One release of the digits at 32 pixels, as a client's by default: its noise beside what is needed."""
    from prismfl.data.datasets import load_dataset
    from prismfl.features.networks import load_features
    from prismfl.moments import FeatureMap
    from prismfl.privacy.audit import noise_at_size

    mine = load_dataset("digits", None, 32, "train")
    features = FeatureMap(load_features("vgg"), matching_of(Settings(privacy=asked), labelled=True), 1, 32)
    return noise_at_size(features, mine, len(mine.classes), asked)


def _audited_training(epsilon: float, delta: float, runs: int) -> Any:
    """Whole runs of two clients on sixty of the digits, without labels and with the fast sampler."""
    import tempfile

    from prismfl.data.datasets import load_dataset
    from prismfl.engines import simulator
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
            return load(simulator.train(settings, images, out=Path(root) / "run").folder.model).sample(100)

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
