"""One option a setting, and the settings that come of options."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prismfl.cli.commands import FIRST, option
from prismfl.settings.presets import preset
from prismfl.settings.schema import Settings, all_fields
from prismfl.settings.toml import laid_over, merged, read_toml, settings_from


def asked(
    config: Path | None, changes: Mapping[str, Any], name: str = "", usual: Mapping[str, Any] | None = None
) -> Settings:
    """What is asked for: a preset, a settings file over it, and options over both.  Raises SettingError.

    usual: changes that go first where neither file nor options name a data set.
    """
    told = laid_over(preset(name), read_toml(config) if config else {})
    data = told.get("data")
    if usual and "dataset" not in changes and not (isinstance(data, Mapping) and "dataset" in data):
        told = laid_over(merged({}, usual), told)
    return settings_from(merged(told, changes))


def with_settings(command: Callable[..., None], usual: Mapping[str, Any] | None = None) -> Callable[..., None]:
    """Give a command one option a setting; what was passed arrives as `changes`, by name.

    usual: defaults that are the command's own.
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "changes"]

    def wrapped(**values: Any) -> None:
        changes = {name: _parsed(name, values.pop(name)) for name in all_fields() if values.get(name) is not None}
        command(changes=changes, **{p.name: values[p.name] for p in own})

    options = [_option(name, usual or {}) for name in (*FIRST, *(name for name in all_fields() if name not in FIRST))]
    wrapped.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    return wrapped


def _option(name: str, usual: Mapping[str, Any]) -> inspect.Parameter:
    section, item = all_fields()[name]
    flag = option(name)
    default = usual.get(name, item.default)
    shown = default if default not in ("", ()) else "none"
    about = f"{item.metadata['about']} [{section + '.' if section else ''}{name} = {shown}]"
    kind: Any = str
    if item.type is bool:
        kind, given = bool, typer.Option(f"{flag}/--no-{flag[2:]}", help=about, show_default=False)
    else:
        choices = item.metadata["choices"]
        values = "|".join(str(c) for c in choices) if choices else getattr(item.type, "__name__", "").upper()
        given = typer.Option(flag, help=about, metavar=values, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, given]
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
