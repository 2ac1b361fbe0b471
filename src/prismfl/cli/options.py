"""One option a setting, and help that shows the options that most people need first."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand

from prismfl.settings.presets import preset
from prismfl.settings.schema import Settings, all_fields
from prismfl.settings.toml import laid_over, merged, read_toml, settings_from

# What most people need, in this order; the rest follows section by section.
_FIRST = ("dataset", "data_dir", "clients", "partition", "size", "rounds", "mode", "mask", "epsilon", "device")
_SECTIONS = {
    "data": "Data",
    "generator": "Generator and features",
    "features": "Generator and features",
    "search": "Training",
    "federation": "Federation",
    "privacy": "Privacy",
    "running": "Running (free to change when a run is resumed)",
    "": "Training",
}


class GroupedCommand(TyperCommand):
    """A command whose help has its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those that most people need, then the others by section."""
        titles = ("Options", "Most used", *_SECTIONS.values())
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        known = all_fields()
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                name = parameter.name or ""
                section = _SECTIONS[known[name][0]] if name in known else "Options"
                groups["Most used" if name in _FIRST else section].append(record)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def asked(config: Path | None, changes: Mapping[str, Any], name: str = "") -> Settings:
    """What is asked for: a preset, a settings file over it, and options over both.  Raises SettingError."""
    values = read_toml(config) if config else {}
    weights = str(changes.get("weights") or values.get("features", {}).get("weights", ""))
    return settings_from(merged(laid_over(preset(name, weights), values), changes))


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option a setting; what was passed arrives as `changes`, by name."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "changes"]

    def wrapped(**values: Any) -> None:
        changes = {name: _parsed(name, values.pop(name)) for name in all_fields() if values.get(name) is not None}
        command(changes=changes, **{p.name: values[p.name] for p in own})

    options = [_option(name) for name in (*_FIRST, *(name for name in all_fields() if name not in _FIRST))]
    wrapped.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
    wrapped.__doc__ = command.__doc__
    return wrapped


def _option(name: str) -> inspect.Parameter:
    section, item = all_fields()[name]
    flag = f"--{name.replace('_', '-')}"
    shown = item.default if item.default not in ("", ()) else "none"
    about = f"{item.metadata['about']} [{section + '.' if section else ''}{name} = {shown}]"
    kind: Any = str
    if item.type is bool:
        kind, option = bool, typer.Option(f"{flag}/--no-{flag[2:]}", help=about, show_default=False)
    else:
        choices = item.metadata["choices"]
        values = "|".join(str(c) for c in choices) if choices else getattr(item.type, "__name__", "").upper()
        option = typer.Option(flag, help=about, metavar=values, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _parsed(name: str, value: Any) -> Any:
    """An option's text as its setting's type; what does not parse is left for validation to refuse."""
    kind: Any = all_fields()[name][1].type
    if isinstance(value, bool):
        return value
    try:
        return kind(value)
    except ValueError:
        return value
