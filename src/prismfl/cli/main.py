"""The `prismfl` command: every failure is one clear line and exit status 2."""

import sys
from typing import Annotated

import typer

from prismfl import __version__
from prismfl.cli import federate, model, privacy
from prismfl.cli.options import GroupedCommand, with_settings
from prismfl.cli.train import train
from prismfl.errors import PrismError
from prismfl.settings.toml import successor

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train one image generator together, without sharing images.",
)
_flower = typer.Typer(add_completion=False, rich_markup_mode=None, help="The same training on Flower's machinery.")
app.command("train", cls=GroupedCommand)(with_settings(train))
app.add_typer(_flower, name="federate")
_flower.command("simulate", cls=GroupedCommand)(with_settings(federate.simulate))
_flower.command("server", cls=GroupedCommand)(with_settings(federate.server))
_flower.command("client")(federate.client)
_flower.command("policy")(federate.policy)
_flower.command("certificates")(federate.certificates)
for _command in (
    model.sample,
    model.export,
    model.evaluate,
    model.report,
    privacy.audit,
    model.fetch,
    model.pretrain,
    model.fetch_weights,
):
    app.command(_command.__name__.replace("_", "-"))(_command)


_privacy = typer.Typer(add_completion=False, rich_markup_mode=None)
app.add_typer(_privacy, name="privacy")
_privacy.callback(invoke_without_command=True)(privacy.privacy)
_privacy.command("ledger")(privacy.ledger)


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
        # Instead of an option that an earlier version had there may be another one.
        now = successor(str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_"))
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
