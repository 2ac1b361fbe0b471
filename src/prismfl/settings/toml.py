"""Settings from TOML and options, and back to TOML."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from prismfl.errors import SettingError
from prismfl.settings.schema import SECTIONS, Settings, all_fields

# What the reader raises: of no UTF-8 and no TOML, of whole numbers of thousands of digits, and of deep nesting.
_NO_TOML = (ValueError, RecursionError)
# Settings that were, by the name that they had: where what they did is found now, or why it is no more.
_OUTPUT = ("workers", "cache_dir", "device", "distance_every", "distance_samples")
_MOVED = {
    **{f"output.{name}": f"running.{name}" for name in _OUTPUT},
    **{f"search.{name}": f"running.{name}" for name in ("precision", "client_threads")},
    **{f"deployment.{name}": f"running.{name}" for name in ("deadline", "least_cohort")},
    "data.label_column": "data.attribute",
    "data.clients_from": "data.data_dir, with a * in it",
    "features.weights": "features.features, as 'vgg19:FILE'",
    "data.shards": "data.partition, as 'shards:2' of so many a client",
    "data.concentration": "data.partition, as 'dirichlet:0.1'",
    "federation.shipped": "federation.finished_mask",
}
_MATCHED = ("layers", "pool", "feature_scale", "shift", "second_weight", "tone_weight")
_UPLINK = (
    "search.shrinkage",
    "search.stream",
    *(f"federation.{name}" for name in ("parts", "deal", "control_variate")),
)
_GONE = {
    "data.image_column": "the column image or img, or the only one that holds images",
    "data.least_images": "1 image at least",
    "generator.latent": "64 latent normals",
    **{f"features.{name}": "what the network is matched by" for name in _MATCHED},
    "features.features_sha256": "resolved.toml, where it is written",
    **{f"search.{name}": "what the cohort makes best" for name in ("beta1", "beta2", "adam")},
    "search.moving_rate": "0.1",
    "search.latents": "latents that are spread evenly",
    **dict.fromkeys((*_UPLINK, "federation.clip"), "federation.uplink: whole, half or fewest"),
    "federation.fixed_share": "federation.mada: published or off",
    "federation.alpha_bits": "8 bits",
    "federation.moment_steps": "64 steps",
    "federation.initial_theta": "1/2",
    "federation.finished_mask_draws": "8 draws",
    "privacy.mechanism": "one release of moments",
    "privacy.another_release": "running.budget_epsilon, a limit to all that is released",
    "running.budget_delta": "privacy.delta, at which running.budget_epsilon is told",
    **dict.fromkeys(("running.processes", "output.processes"), "processes where a run is long enough"),
    **dict.fromkeys(("running.compile", "search.compile"), "compiling on a GPU where a run is long enough"),
    "output.grid_every": "five grids a run",
    "output.report": "the option --no-report of the command train",
    "deployment.attempts": "three attempts",
    "deployment.join_wait": "running.deadline",
}


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from a nested mapping, as TOML gives it.

    Args:
        values: sections by name, each a mapping of settings; and `seed`.

    Returns:
        The settings, all checked; what is not named has its default.

    Raises:
        SettingError: with key, value and allowed range, for what is unknown, of the wrong type, or
            impossible alone or together.

    Examples:
        >>> settings_from({"federation": {"rounds": 50}}).federation.rounds
        50
        >>> settings_from({"federation": {"rounds": 0}})
        Traceback (most recent call last):
        prismfl.errors.SettingError: federation.rounds = 0; expected a whole number ≥ 1 and ≤ 10000000; ...
    """
    parts: dict[str, Any] = {}
    for key, value in values.items():
        if key == "seed":
            parts[key] = value
        elif key in SECTIONS and isinstance(value, Mapping):
            parts[key] = _section(key, _with_defaults(value) if key == "data" else value)
        else:
            _refuse_old(key, value if isinstance(value, Mapping) else {})
            raise SettingError(f"key {key!r}", f"seed or a section: {', '.join(SECTIONS)}", "mend the settings")
    return Settings(**parts)


def _section(section: str, values: Mapping[str, Any]) -> Any:
    known = [item.name for item in fields(SECTIONS[section])]
    unknown = {name: values[name] for name in sorted(set(values) - set(known))}
    _refuse_old(section, unknown)
    for name, value in unknown.items():
        raise SettingError(f"key {section}.{name} = {value!r}", f"one of {', '.join(known)}", "mend or remove the key")
    return SECTIONS[section](**values)


def _refuse_old(section: str, values: Mapping[str, Any]) -> None:
    """Raises SettingError for a section's first setting of an earlier version."""
    for name, value in values.items():
        key = f"{section}.{name}"
        if key in _MOVED:
            raise SettingError(f"key {key} = {value!r}, as it was called", _MOVED[key], "rename it")
        if key in _GONE:
            raise SettingError(f"key {key} = {value!r}, a setting that is gone", _GONE[key], "leave it out")


def images_of(values: Mapping[str, Any]) -> Settings:
    """What a model's settings, of this version or an earlier one, say of its images and its feature network.

    values: a nested mapping.  Raises SettingError for values that none can have.
    """
    data, features = (values.get(section, {}) for section in ("data", "features"))
    if not isinstance(data, Mapping) or not isinstance(features, Mapping):
        raise SettingError("settings without tables", "data and features", "fetch the file anew")
    kept = {name: data[name] for name in ("dataset", "attribute", "classes", "fit", "slices", "window") if name in data}
    if data.get("label_column"):
        kept["attribute"] = data["label_column"]
    return settings_from({"data": kept, "features": {"features": features.get("features", "auto")}})


def _with_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is not set follows from data_dir or people; what is set and says otherwise is refused later."""
    if "*" in str(data.get("data_dir", "")) and data.get("dataset", "folder") == "folder":
        return {"dataset": "folder", "partition": "given", "clients": 0, **data}
    return {"partition": "iid", **data} if data.get("people") else data


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with flat changes laid over it (`{"rounds": 3}` → federation.rounds)."""
    known, nested = all_fields(), dict[str, Any]()
    for name, value in changes.items():
        if name not in known:
            raise SettingError(f"setting {name!r}", successor(name) or f"one of {', '.join(sorted(known))}", "mend it")
        section = known[name][0]
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return laid_over(base, nested)


def laid_over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with another one laid over it, section by section."""
    found = dict(base)
    for key, part in values.items():
        below = base.get(key, {})
        if isinstance(part, Mapping) and not isinstance(below, Mapping):
            raise SettingError(f"key {key!r} = {below!r}", "a table of settings", "mend the settings")
        found[key] = {**below, **part} if isinstance(part, Mapping) else part
    return found


def successor(name: str) -> str:
    """What is there in place of a setting that was, by its name without its section; nothing of one that never was."""
    now = {key.partition(".")[2]: value for key, value in {**_GONE, **_MOVED}.items()}
    return now.get(name, "")


def load_settings(path: Path, changes: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a TOML file, with changes laid over it.

    Args:
        path: the file; a run's `config.toml` is one.
        changes: settings by their own names, as `{"rounds": 50}`.

    Returns:
        The settings, all checked.

    Raises:
        SettingError: for a file that is missing or damaged, and as `settings_from`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = Path(root) / "config.toml"
        ...     written = path.write_text(to_toml(settings_from({"federation": {"rounds": 50}})))
        ...     settings = load_settings(path, {"clients": 4})
        >>> settings.federation.rounds, settings.data.clients
        (50, 4)
    """
    return settings_from(merged(read_toml(path), changes or {}))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested mappings.  Raises SettingError when it is missing or damaged."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, *_NO_TOML) as error:
        raise SettingError(f"cannot read {path} ({error})", "a TOML file", "check the path and its text") from None


def toml_from(text: str) -> dict[str, Any]:
    """TOML as nested mappings.  Raises SettingError when it is damaged."""
    try:
        return tomllib.loads(text)
    except _NO_TOML as error:
        raise SettingError(f"settings that do not read ({error})", "TOML", "mend their text") from None


def to_toml(settings: Settings, notes: Mapping[str, str] | None = None) -> str:
    """The settings as TOML that `load_settings` reads back to an equal value.

    Args:
        settings: any.
        notes: comments for the ends of lines, by `section.name`.

    Returns:
        The text, every setting on a line of its own.

    Examples:
        >>> print(to_toml(Settings(), {"data.clients": "sites"}))
        seed = 0
        <BLANKLINE>
        [data]
        ...
        clients = 10  # sites
        ...
    """
    lines, notes = [f"seed = {settings.seed}"], notes or {}
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for name, value in _written(getattr(settings, section)).items():
            note = notes.get(f"{section}.{name}", "")
            lines.append(f"{name} = {toml_value(value)}" + (f"  # {note}" if note else ""))
    return "\n".join(lines) + "\n"


def _written(section: Any) -> dict[str, Any]:
    """A section's settings, but for those that are quiet."""
    quiet = {item.name: item.default for item in fields(section) if item.metadata["quiet"]}
    return {name: value for name, value in asdict(section).items() if (name, value) not in quiet.items()}


def toml_value(value: Any) -> str:
    """A value as TOML writes it: as JSON does, but for one character that TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
