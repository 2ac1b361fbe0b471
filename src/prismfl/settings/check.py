"""What values a setting may have, alone and together with others."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

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
    path: bool = False,
    quiet: bool = False,
) -> Any:
    """A field of the schema: its default, its meaning, and what it may be.

    path: in which `~` is the user's folder; quiet: no file names it while it has its default, so that runs and models
    keep the bytes that they had before it.
    """
    limits = {"least": least, "most": most, "above": above, "choices": choices}
    return field(default=default, metadata={"about": about, "path": path, "quiet": quiet, **limits})


class Section:
    """A dataclass of settings, each checked when one is made, and a whole number made one with a point where wanted.

    Raises SettingError with key, value and allowed range.
    """

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            key = f"{type(self).__name__.lower()}.{item.name}"
            object.__setattr__(self, item.name, checked(key, item, getattr(self, item.name)))


def checked(key: str, item: "Field[Any]", value: Any) -> Any:
    """The value of a setting, a whole number made one with a point where that is wanted.

    Raises SettingError with key, value and allowed range.
    """
    if item.type is float and type(value) is int:
        value = pointed(value)
    # A number is itself, and text has a UTF-8 form: NaN and half a surrogate pair are neither.
    whole = type(value) is item.type and value == value
    if isinstance(value, str):
        whole &= value == value.encode("utf-8", "ignore").decode()
    if not whole or not _allowed(value, item.metadata):
        raise SettingError(f"{key} = {value!r}", _range_text(item.type, item.metadata), f"change {key}")
    return os.path.expanduser(value) if item.metadata["path"] else value  # noqa: PTH111 - it may be a pattern


def pointed(value: int) -> float:
    """A whole number as one with a point, ±∞ where it is beyond them."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _allowed(value: Any, limits: Mapping[str, Any]) -> bool:
    least, above, most, choices = (limits[name] for name in ("least", "above", "most", "choices"))
    return not (
        (choices is not None and value not in choices)
        or (least is not None and value < least)
        or (above is not None and value <= above)
        or (most is not None and value > most)
    )


def _range_text(kind: Any, limits: Mapping[str, Any]) -> str:
    if limits["choices"] is not None:
        return "one of " + ", ".join(map(str, limits["choices"]))
    names = {int: "a whole number", float: "a number", str: "UTF-8 text", bool: "true or false"}
    signs = {"least": "≥", "above": ">", "most": "≤"}
    bounds = [f"{sign} {limits[name]}" for name, sign in signs.items() if limits[name] is not None]
    return f"{names[kind]} {' and '.join(bounds)}".strip()


_Fitting = Mapping[str, tuple[Any, ...]]
# What a choice leaves without effect, by the values that fit it: the first is expected, others say the same.
_BY_PATTERN = {"data.dataset": ("folder",), "data.partition": ("given",)}
_NO_MASKS: _Fitting = {"federation.uplink": ("auto",), "federation.draws": ("stratified",)}
_NO_SCREEN: _Fitting = {"federation.screen": (0.0, -1.0)}
_ONE_SHOT = {"federation.mada": ("off",), "federation.alpha": (0.0,), **_NO_SCREEN, **_NO_MASKS}
_SOFT = {"federation.alpha": (1.0, 0.0), **_NO_MASKS, "federation.finished_mask": ("best",)}

_SUMMED: _Fitting = {
    **_NO_SCREEN,
    "federation.alpha": (0.0,),
    "search.mask": ("binary",),
    "federation.uplink": ("auto", "half", "whole"),
}
_MOST_SUMMED = 256  # clients whose vectors are summed: each deals shares to each


def check_together(settings: "Settings") -> None:
    """Raises SettingError for settings that are fine alone and impossible, or without effect, together."""
    data, search, federation = settings.data, settings.search, settings.federation
    _check_alone(settings)
    _check_people(data)
    slices_from(data.slices)
    window_from(data.window)
    _check_cohort(settings)
    dealt_from(data.partition)
    if data.pattern:
        _check_fitting(settings, f"data.data_dir = {data.data_dir!r}", "each match is a client", _BY_PATTERN)
    if federation.by_differences and federation.client_weights == "size":
        got = "federation.uplink = 'fewest' with federation.client_weights = 'size'"
        equal = "clients of equal weight: the average travels less their unweighted masks"
        raise SettingError(got, equal, "change one of the two")
    if federation.mode == "one-shot":
        wanted = {"federation.cohort": (0, data.clients), **_ONE_SHOT}
        why = "all clients send moments once, no masks, and the server searches alone"
        _check_fitting(settings, "federation.mode = 'one-shot'", why, wanted)
    if search.ensemble > 1:
        chosen, why = f"search.ensemble = {search.ensemble}", "the server finishes one mask after another alone"
        _check_fitting(settings, chosen, why, {"federation.mode": ("one-shot",)})
        if federation.rounds < search.ensemble:
            got = f"federation.rounds = {federation.rounds} with {chosen}"
            raise SettingError(got, "at least a round a mask", "change federation.rounds")
    if search.mask == "soft":
        _check_fitting(settings, "search.mask = 'soft'", "all weights send keep-probabilities, no masks", _SOFT)
    if federation.secure_sum:
        _check_sum(settings)


def _check_sum(settings: "Settings") -> None:
    choice, private = "federation.secure_sum = true", settings.privacy.epsilon > 0
    pooled = private or settings.federation.mode == "one-shot"
    _check_fitting(settings, choice, "a sum counts each vector once", {"federation.client_weights": ("equal",)})
    if private:
        _check_fitting(settings, choice, "sites share noise that is exact", {"privacy.noise": ("exact",)})
    elif not pooled:
        _check_fitting(settings, choice, "of masks the server sees how many keep each weight, and no more", _SUMMED)
    clients = settings.data.clients if pooled else settings.federation.cohort or settings.data.clients
    if clients and not 2 <= clients <= _MOST_SUMMED:
        got, which = f"{choice} with {clients} clients", "clients" if pooled else "clients a round"
        raise SettingError(got, f"2 … {_MOST_SUMMED} {which}", "change data.clients, or leave secure_sum out")


def _check_fitting(settings: "Settings", choice: str, why: str, wanted: _Fitting) -> None:
    """Raises SettingError where a key's value is none of those that fit a choice made elsewhere."""
    for key, fitting in wanted.items():
        if (value := _value(settings, key)) not in fitting:
            expected = "none" if fitting[0] == "" else repr(fitting[0])
            raise SettingError(f"{key} = {value!r} with {choice}", f"{expected}: {why}", "leave one of the two out")


def _value(settings: "Settings", key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def _check_alone(settings: "Settings") -> None:
    """Ranges with a gap, which the limits of a field cannot say."""
    for key in ("search.final_rate", "federation.initial_certainty", "federation.screen"):
        # At least 0; only what stands for another rule is below it.
        if -1 < (value := _value(settings, key)) < 0:
            raise SettingError(f"{key} = {value}", "a number ≥ 0, or -1", f"change {key}")
    if settings.search.batch_size == 1:
        raise SettingError("search.batch_size = 1", "0, or at least 2", "change search.batch_size")
    if settings.data.clients == 0 and not settings.data.pattern:  # a pattern alone may leave their number open
        raise SettingError("data.clients = 0", "a whole number ≥ 1 and ≤ 1000000", "change data.clients")


def _check_cohort(settings: "Settings") -> None:
    clients, cohort = settings.data.clients, settings.federation.cohort
    if cohort > clients > 0:
        raise SettingError(f"federation.cohort = {cohort}", f"0 … {clients}, the clients", "change federation.cohort")
    if cohort == 0 and clients > 32767:
        got = f"federation.cohort = 0 with {clients} clients"
        raise SettingError(got, "a cohort of at most 32767", "set federation.cohort")
    most, least = cohort or clients, settings.running.least_cohort
    if least > most > 0:
        got = f"running.least_cohort = {least}"
        raise SettingError(got, f"1 … {most}, the clients of a round", "change running.least_cohort")


def _check_people(data: "Data") -> None:
    """Names of files are a folder's, and only parts that do not look at labels can keep persons whole."""
    if not data.people:
        return
    check_people(data.people)
    if data.dataset != "folder":
        got = f"data.people with data.dataset = {data.dataset!r}"
        raise SettingError(got, "'folder': its files have names", "leave it out")
    if data.partition not in ("iid", "given"):
        got = f"data.partition = {data.partition!r} with data.people"
        raise SettingError(got, "iid, which deals whole persons, or given", "choose data.partition = 'iid'")


class Dealt(NamedTuple):
    """How images are spread: the word, and shards a client, or the concentration of a Dirichlet partition."""

    how: str
    amount: float = 0.0


_DEALT = {"iid": "", "shards": "4", "dirichlet": "0.005", "attribute": "", "given": ""}  # and what follows by default
_DEALT_MOST = 1e6


def dealt_from(text: str) -> Dealt:
    """How images are spread, as a setting says it: `shards:2`.  Raises SettingError.

    Examples:
        >>> dealt_from("iid"), dealt_from("shards"), dealt_from("dirichlet:0.1")
        (Dealt(how='iid', amount=0.0), Dealt(how='shards', amount=4.0), Dealt(how='dirichlet', amount=0.1))
    """
    how, colon, told = text.partition(":")
    usual = _DEALT.get(how)
    if usual is not None and not colon:
        return Dealt(how, float(usual or 0))
    shape = {"shards": r"[0-9]+", "dirichlet": r"[0-9.eE+-]+"}.get(how, "(?!)")
    try:
        amount = float(told) if re.fullmatch(shape, told) else 0.0
    except ValueError:
        amount = 0.0
    if not 0 < amount <= _DEALT_MOST:
        wanted = "iid, shards, shards:NUMBER a client, dirichlet, dirichlet:CONCENTRATION, attribute or given"
        wanted += f"; numbers at most {_DEALT_MOST:.0f}"
        raise SettingError(f"data.partition = {text!r}", wanted, "change data.partition")
    return Dealt(how, amount)


def is_table(people: str) -> bool:
    """Whether what tells persons is a table's file, and no pattern."""
    return people.lower().endswith(".csv")


def check_people(people: str) -> None:
    """Raises SettingError for a pattern that is none, or that has more than one group to tell a person by."""
    if is_table(people):
        return
    try:
        groups = re.compile(people).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise SettingError(f"data.people = {people!r} ({error})", "a regular expression", "mend data.people") from None
    if groups > 1:
        raise SettingError(f"data.people = {people!r} with {groups} groups", "one at most", "write others as (?:…)")


# ------------------------------------------------------------------------------------ medical images

_AXES = ("sagittal", "coronal", "axial")  # of voxels that go to the right, to the front and up


class Slices(NamedTuple):
    """Which slices of a volume are images: along an axis (0 to the right, 1 to the front, 2 up), every so many."""

    axis: int
    every: int


def slices_from(text: str) -> Slices:
    """Slices that a setting asks for, as `axial/4`.  Raises SettingError.

    Examples:
        >>> slices_from("axial/4"), slices_from("coronal")
        (Slices(axis=2, every=4), Slices(axis=1, every=1))
    """
    match = re.fullmatch(rf"({'|'.join(_AXES)})(?:/([1-9][0-9]{{0,3}}))?", text)
    if match is None:
        raise SettingError(
            f"data.slices = {text!r}", f"one of {', '.join(_AXES)}, with /N for every N-th", "change data.slices"
        )
    return Slices(_AXES.index(match[1]), int(match[2] or 1))


def window_from(text: str) -> tuple[float, float] | None:
    """Centre and width of a window that a setting asks for, as `40,400`; None for the file's own.  Raises SettingError.

    Examples:
        >>> window_from("-600, 1500"), window_from("")
        ((-600.0, 1500.0), None)
    """
    if not text:
        return None
    try:
        centre, width = map(float, text.split(","))
        if not (math.isfinite(centre) and 0 < width < math.inf):
            raise ValueError
    except ValueError:
        wanted = "two numbers, centre and width, the width above 0, as '40,400'"
        raise SettingError(f"data.window = {text!r}", wanted, "change data.window") from None
    return centre, width
