"""Write the pages that follow from the code: settings and the command line.

python docs/generate.py            # write them
python docs/generate.py --check    # say whether they are as they would be written
"""

import sys
from pathlib import Path

import click
import typer

from prismfl.cli.main import app
from prismfl.settings.schema import SECTIONS, all_fields

HERE = Path(__file__).parent
TITLES = {"": "Seed", "data": "Data", "generator": "Generator", "features": "Features", "search": "Search"}
TITLES |= {"federation": "Federation", "privacy": "Privacy", "running": "Running"}


def settings() -> str:
    """The page of settings: each is an option and a line of a TOML file."""
    lines = [
        "# Settings",
        "",
        "Each is an option of `prismfl train`, `prismfl federate simulate` and `prismfl federate server`,",
        "and a line of `config.toml` in the section of its heading. What is left open follows from the",
        "rest; a run writes what it came to, and why, into `resolved.toml`.",
    ]
    for section in ("", *SECTIONS):
        lines += ["", f"## {TITLES[section]}"]
        for name, (of, item) in all_fields().items():
            if of == section:
                default = item.default if item.default not in ("", ()) else "none"
                lines += ["", f"`{name}` (default `{default}`)", f":   {item.metadata['about']}"]
                choices = item.metadata["choices"]
                if choices:
                    lines += ["", f"    One of {', '.join(f'`{one}`' for one in choices)}."]
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """The page of commands: the help of each."""
    group = typer.main.get_command(app)
    lines = ["# Command line", "", "Every failure is one line and exit status 2; Ctrl-C is 130."]
    for words, command in _commands(group, ("prismfl",)):
        context = click.Context(command, info_name=" ".join(words), terminal_width=96, max_content_width=96)
        lines += ["", f"## {' '.join(words)}", "", "```text", command.get_help(context).rstrip(), "```"]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def _commands(group: click.Command, words: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    for name, command in getattr(group, "commands", {}).items():
        if getattr(command, "commands", None):
            if command.params:  # it does something by itself
                found.append(((*words, name), command))
            found += _commands(command, (*words, name))
        else:
            found.append(((*words, name), command))
    return found


def main() -> None:
    """Command line."""
    pages = {"settings.md": settings(), "command-line.md": command_line()}
    for name, text in pages.items():
        path = HERE / "reference" / name
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text() != text:
                raise SystemExit(f"{path} is not as the code has it: run python docs/generate.py")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
