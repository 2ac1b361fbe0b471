"""What all commands have in common: help in groups, `~` in paths, errors in the words of the command line."""

import ast
import inspect
import os
import re
import shlex
from collections.abc import Collection, Iterable
from typing import Any, TypeVar, get_args

import click
from typer.core import TyperCommand, TyperGroup

from prismfl.errors import PrismError, PrivacyError, SettingError
from prismfl.settings.schema import all_fields

_Error = TypeVar("_Error", bound=PrismError)
_PATHS = {name for name, (_, item) in all_fields().items() if item.metadata["path"]}
# What most people need, in this order; the rest follows section by section.
FIRST = ("dataset", "data_dir", "clients", "partition", "size", "rounds", "mode", "mask", "epsilon", "device")
_SYMBOLS = {"ε": "epsilon", "δ": "delta", "σ": "sigma"}
_TITLES = {
    "data": "Data",
    "generator": "Generator and features",
    "features": "Generator and features",
    "search": "Training",
    "federation": "Federation",
    "privacy": "Privacy",
    "running": "Running (free to change when a run is resumed)",
    "": "Training",
}


class _Shared(click.Command):
    """What commands and groups of them do alike.

    settings: whether there is an option a setting; then those that most people need come first.
    """

    settings = False

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Arguments and options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        if self.settings:
            groups |= {title: [] for title in ("Most used", *_TITLES.values())}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                groups.setdefault(self._group(parameter), []).append(self._row(parameter, record))
        _write(formatter, groups)

    def _group(self, parameter: click.Parameter) -> str:
        name, known = parameter.name or "", all_fields()
        if self.settings and name in known:
            return "Most used" if name in FIRST else _TITLES[known[name][0]]
        panel = getattr(parameter, "rich_help_panel", None)
        return panel or ("Arguments" if isinstance(parameter, click.Argument) else "Options")

    def _row(self, parameter: click.Parameter, record: tuple[str, str]) -> tuple[str, str]:
        """A row of help; typer escapes its brackets for rich, and click takes an argument's words away."""
        shown = record[1].replace("\\[", "[")
        if isinstance(parameter, click.Argument) and self.callback:
            given = inspect.signature(self.callback).parameters[parameter.name or ""].annotation
            about = next((one.help for one in get_args(given) if hasattr(one, "help")), "")
            shown = shown if shown.startswith(about) else f"{about}  {shown}".rstrip()
        return record[0], shown

    def invoke(self, ctx: click.Context) -> Any:
        """Run it.  Raises PrismError subclasses that name options where these were given."""
        for one in self.params:
            if one.name in ctx.params and (isinstance(one.type, click.Path) or one.name in _PATHS):
                ctx.params[one.name] = _at_home(ctx.params[one.name])
        try:
            return super().invoke(ctx)
        except PrismError as error:
            mine = {one.name for one in self.params if one.name and not isinstance(one, click.Argument)}
            from_file = ctx.params.get("config") or ctx.params.get("resume")
            given = {name for name, value in ctx.params.items() if value is not None}
            raise _told(error, mine & given if from_file else mine) from None


class Command(_Shared, TyperCommand):
    """A command whose options stand in groups."""


class SettingsCommand(Command):
    """A command that has an option a setting."""

    settings = True


class Group(_Shared, TyperGroup):
    """A group of commands, which stand in groups as its options do."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options, then commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, each with the whole of its first sentence."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            if (command := self.get_command(ctx, name)) is not None:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                groups.setdefault(panel, []).append((name, command.get_short_help_str(limit=200)))
        _write(formatter, groups)


def _write(formatter: click.HelpFormatter, groups: dict[str, list[tuple[str, str]]]) -> None:
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _at_home(value: Any) -> Any:
    """A path with the user's folder in place of `~`: a shell leaves that to us, as in `--out=~/x`."""
    if isinstance(value, list | tuple):
        return [_at_home(one) for one in value]
    return value if value is None else os.path.expanduser(value)  # noqa: PTH111 - it may be a pattern


# ---------------------------------------------------------------------------- settings as options


def _told(error: _Error, options: Collection[str]) -> _Error:
    """The same error with options in place of these settings, and before a value that begins it."""
    parts = [in_options(part, options) for part in (error.got, error.expected, error.remedy)]
    first, _, rest = parts[0].partition(" ")
    name = _SYMBOLS.get(first, first)
    if isinstance(error, SettingError | PrivacyError) and name in options:
        parts[0] = f"{option(name)} {rest.removeprefix('= ')}"
    return type(error)(*parts)


def in_options(text: str, options: Iterable[str]) -> str:
    """A text with the options of the command line in place of these settings.

    Examples:
        >>> in_options("data.clients = 'many'; expected a whole number; change data.clients", ["clients"])
        '--clients many; expected a whole number; change --clients'
        >>> in_options("generator.conditional = False", ["conditional"])
        '--no-conditional'
    """
    keys = {f"{section}.{name}" if section else name: name for name, (section, _) in all_fields().items()}
    wanted = {key: name for key, name in keys.items() if name in set(options)}
    known = "|".join(re.escape(key) for key in sorted(wanted, key=len, reverse=True) if key != "seed") or "(?!)"
    seed = "|seed(?= = )|(?<=change )seed$" if "seed" in wanted else ""
    value = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s;,]+"
    pattern = rf"(?<![\w./-])({known}{seed})(?![\w.])(?: = ({value}))?"
    return re.sub(pattern, lambda match: _option_with(wanted[match[1]], match[2]), text)


def option(name: str) -> str:
    """The option of a setting."""
    return f"--{name.replace('_', '-')}"


def _option_with(name: str, value: str | None) -> str:
    if value is None:
        return option(name)
    if value in ("True", "False"):
        return option(name) if value == "True" else f"--no-{option(name)[2:]}"
    if value[0] not in "'\"":
        return f"{option(name)} {value}"
    text = ast.literal_eval(value)
    return f"{option(name)} {shlex.quote(text)}" if text else f"no {option(name)}"
