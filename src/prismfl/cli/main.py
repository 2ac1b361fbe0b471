"""The `prismfl` command: every failure is one clear line and exit status 2."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from prismfl import __version__
from prismfl.cli import federate, model, privacy
from prismfl.cli.commands import Command, Group, SettingsCommand, in_options
from prismfl.cli.options import with_settings
from prismfl.cli.output import steady
from prismfl.cli.train import train
from prismfl.errors import PrismError
from prismfl.settings.schema import all_fields
from prismfl.settings.toml import successor

_CLOSED: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
_CLOSED["suggest_commands"] = False  # click does it

app = typer.Typer(cls=Group, help="Train one image generator together, without sharing images.", **_CLOSED)
_flower = typer.Typer(cls=Group, help="The same training on machines of their own, by Flower.", **_CLOSED)
_privacy = typer.Typer(cls=Group, **_CLOSED)


def _add(panel: str, *commands: Callable[..., Any], to: typer.Typer = app, cls: type[Command] = Command) -> None:
    for command in commands:
        to.command(command.__name__.replace("_", "-"), cls=cls, rich_help_panel=panel)(command)


_TRAIN, _MODELS, _DATA = "Train", "Finished models and runs", "Data and networks"
_add(_TRAIN, with_settings(train), cls=SettingsCommand)
app.add_typer(_flower, name="federate", rich_help_panel=_TRAIN)
_add(_MODELS, model.sample, model.evaluate, model.export, model.report, model.card)
app.add_typer(_privacy, name="privacy", rich_help_panel="Privacy")
_add("Privacy", privacy.audit)
_add(_DATA, model.fetch, model.fetch_weights, model.pretrain)

_add("The server", with_settings(federate.server, federate.USUAL), to=_flower, cls=SettingsCommand)
_add("The server", federate.certificates, to=_flower)
_add("A site", federate.policy, federate.check, federate.client, to=_flower)
_add("On one machine", with_settings(federate.simulate), to=_flower, cls=SettingsCommand)

_privacy.callback(invoke_without_command=True)(privacy.privacy)
_add("Commands", privacy.ledger, to=_privacy)


def main() -> None:
    """Entry point of the `prismfl` command."""
    steady()
    try:
        status = app(prog_name="prismfl", standalone_mode=False)
    except PrismError as error:
        _fail(str(error))
    except Exception as error:
        # Wrong usage comes as click's own exceptions, which typer may bring in a copy of its own.
        if not hasattr(error, "format_message"):
            raise
        # Instead of an option that an earlier version had there may be another one.
        now = successor(str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_"))
        now = in_options(now, all_fields())
        _fail(f"{error.format_message()}; {f'there is {now} now' if now else 'see `prismfl --help`'}")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(line: str) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(2)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


if __name__ == "__main__":
    main()
