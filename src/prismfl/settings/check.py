"""What values a setting may have, alone and together with others."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, field
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from prismfl.errors import SettingError

if TYPE_CHECKING:
    from prismfl.settings.schema import Data, Settings


def setting(
    default: Any,
    about: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A field of the schema: its default, its meaning, and what it may be."""
    limits = {"least": least, "most": most, "above": above, "choices": choices}
    return field(default=default, metadata={"about": about, **limits})


def checked(key: str, item: "Field[Any]", value: Any) -> Any:
    """The value of a setting, a whole number made one with a point where that is wanted.

    Raises SettingError with key, value and allowed range.
    """
    kind: Any = item.type
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    limits = item.metadata
    right_type = type(value) in _types(kind)
    if right_type and kind is float and value != value:
        right_type = False
    if kind is str and right_type:
        right_type = value == value.encode("utf-8", "ignore").decode()
    if not right_type or not _allowed(value, limits):
        raise SettingError(f"{key} = {value!r}", _range_text(kind, limits), f"change {key}")
    return value


def _types(kind: Any) -> tuple[type, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _allowed(value: Any, limits: Mapping[str, Any]) -> bool:
    if limits["choices"] is not None and value not in limits["choices"]:
        return False
    if limits["least"] is not None and value < limits["least"]:
        return False
    if limits["above"] is not None and value <= limits["above"]:
        return False
    return limits["most"] is None or value <= limits["most"]


def _range_text(kind: Any, limits: Mapping[str, Any]) -> str:
    if limits["choices"] is not None:
        return "one of " + ", ".join(str(choice) for choice in limits["choices"])
    names = {int: "a whole number", float: "a number", str: "UTF-8 text", bool: "true or false"}
    low = f"≥ {limits['least']}" if limits["least"] is not None else ""
    low = f"> {limits['above']}" if limits["above"] is not None else low
    high = f"≤ {limits['most']}" if limits["most"] is not None else ""
    return " ".join((names[kind], " and ".join(part for part in (low, high) if part))).strip()


def check_together(settings: "Settings") -> None:
    """Raises SettingError for settings that are fine alone and impossible, or without effect, together."""
    data, federation = settings.data, settings.federation
    _check_open(settings)
    if settings.search.batch_size == 1:
        raise SettingError("search.batch_size = 1", "0, or at least 2", "change search.batch_size")
    _check_clients_from(data)
    _check_people(data)
    if data.partition == "shards" and data.clients and data.shard_count % data.clients:
        raise SettingError(
            f"data.shards = {data.shards} with data.clients = {data.clients}",
            "a multiple of the clients, or 0 for four a client",
            "change data.shards",
        )
    if data.partition != "shards":
        _check_fitting([("data.shards", data.shards, 0)], f"data.partition = {data.partition!r}", "no shards are dealt")
    if data.partition != "dirichlet":
        choice = f"data.partition = {data.partition!r}"
        _check_fitting([("data.concentration", data.concentration, 0.005)], choice, "nothing is concentrated")
    if settings.privacy.epsilon and data.dataset in ("folder", "hf") and not settings.generator.channels:
        raise SettingError(
            f"generator.channels = 0 with epsilon and data.dataset = {data.dataset!r}",
            "1 for grey images or 3 for colour: one private image must not decide it",
            "set generator.channels",
        )
    _check_cohort(settings)
    if federation.by_differences and federation.client_weights == "size":
        raise SettingError(
            "federation.uplink = 'fewest' with client_weights = 'size'",
            "clients of equal weight: the average travels less their unweighted masks",
            "change one of the two",
        )
    if federation.mode == "one-shot":
        _check_one_shot(settings)
    if settings.search.mask == "soft":
        _check_soft(settings)


def _check_cohort(settings: "Settings") -> None:
    clients, cohort = settings.data.clients, settings.federation.cohort
    if cohort > clients > 0:
        raise SettingError(f"federation.cohort = {cohort}", f"0 … {clients}, the clients", "change federation.cohort")
    if cohort == 0 and clients > 32767:
        raise SettingError(
            f"federation.cohort = 0 with {clients} clients", "a cohort of at most 32767", "set federation.cohort"
        )
    most, least = cohort or clients, settings.running.least_cohort
    if least > most > 0:
        raise SettingError(
            f"running.least_cohort = {least}", f"1 … {most}, the clients of a round", "change running.least_cohort"
        )


def _check_open(settings: "Settings") -> None:
    """These are at least 0; only what stands for another rule is below it."""
    for key in ("search.final_rate", "federation.initial_certainty"):
        section, name = key.split(".")
        if -1 < (value := getattr(getattr(settings, section), name)) < 0:
            raise SettingError(f"{key} = {value}", "a number ≥ 0, or -1", f"change {key}")


def _check_soft(settings: "Settings") -> None:
    """Soft masks travel as keep-probabilities, all of them, and nothing is drawn."""
    federation = settings.federation
    wanted = (
        ("federation.alpha", federation.alpha or 1.0, 1.0),
        ("federation.uplink", federation.uplink, "auto"),
        ("federation.draws", federation.draws, "stratified"),
        ("federation.screen", federation.screen, 0.0),
        ("federation.finished_mask", federation.finished_mask, "best"),
    )
    _check_fitting(wanted, "search.mask = 'soft'", "all weights send keep-probabilities, no masks")


def _check_one_shot(settings: "Settings") -> None:
    """Where the server searches alone there is nothing to average, and every client is asked once."""
    federation = settings.federation
    if federation.cohort not in (0, settings.data.clients):
        raise SettingError(
            f"federation.cohort = {federation.cohort} with mode = 'one-shot'", "0: all are asked once", "leave it out"
        )
    wanted = (
        ("federation.mada", federation.mada, "off"),
        ("federation.alpha", federation.alpha, 0.0),
        ("federation.uplink", federation.uplink, "auto"),
        ("federation.draws", federation.draws, "stratified"),
        ("federation.screen", federation.screen, 0.0),
    )
    why = "clients send moments, no masks, and the server searches alone"
    _check_fitting(wanted, "federation.mode = 'one-shot'", why)


def _check_fitting(wanted: Sequence[tuple[str, Any, Any]], choice: str, why: str) -> None:
    """Raises SettingError where a key's value is not the one that fits a choice made elsewhere."""
    for key, value, fitting in wanted:
        if value != fitting:
            raise SettingError(f"{key} = {value!r} with {choice}", f"{fitting!r}: {why}", "leave one of the two out")


def _check_clients_from(data: "Data") -> None:
    """A pattern names clients as given, in folders of their own; nobody else may leave their number open."""
    if not data.clients_from:
        if data.clients == 0:
            raise SettingError("data.clients = 0", "a whole number ≥ 1 and ≤ 1000000", "change data.clients")
        return
    wanted = {"dataset": "folder", "partition": "given", "data_dir": ""}
    for key, value in wanted.items():
        if getattr(data, key) != value:
            raise SettingError(
                f"data.{key} = {getattr(data, key)!r} with data.clients_from",
                f"{value!r}: its folders are the clients",
                f"leave data.{key} or data.clients_from out",
            )


def _check_people(data: "Data") -> None:
    """Names of files are a folder's, and only parts that do not look at labels can keep persons whole."""
    if not data.people:
        return
    check_pattern(data.people)
    if data.dataset != "folder":
        raise SettingError(
            f"data.people with data.dataset = {data.dataset!r}", "'folder': its files have names", "leave it out"
        )
    if data.partition not in ("iid", "given"):
        raise SettingError(
            f"data.partition = {data.partition!r} with data.people",
            "iid, which deals whole persons, or given",
            "pass --partition iid",
        )


def check_pattern(people: str) -> None:
    """Raises SettingError for a pattern that is none, or that has more than one group to tell a person by."""
    try:
        groups = re.compile(people).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise SettingError(f"data.people = {people!r} ({error})", "a regular expression", "mend --people") from None
    if groups > 1:
        raise SettingError(f"data.people = {people!r} with {groups} groups", "one at most", "write others as (?:…)")
