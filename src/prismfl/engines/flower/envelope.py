"""What stands in a Flower message: a frame of ours as raw bytes, and the few words around it.

A message is one `ConfigRecord` of plain values.  What comes from the other side is checked field by
field before it is used, and what is shown of it is cut short and made printable.
"""

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from flwr.app import ConfigRecord, RecordDict
from pydantic import ConfigDict, Field, StrictBool, StrictBytes, StrictInt, StrictStr, TypeAdapter, ValidationError

from prismfl.errors import ClientError, MessageError, PrismError
from prismfl.federation.agreement import MOST_LABELS

RECORD = "prismfl"
PROTOCOL = 1
_SHOWN = 300  # characters of a client's own words that reach the log

# What the other side may say, of each kind.
_Whole = Annotated[StrictInt, Field(ge=0, lt=2**32)]
_Seconds = Annotated[float, Field(ge=0, lt=1e9, strict=True, allow_inf_nan=False)]
_Names = Annotated[tuple[StrictStr, ...], Field(max_length=2**16)]
_Channels = Annotated[StrictInt, Field(ge=1, le=3)]
_Told = Annotated[tuple[StrictStr, ...], Field(max_length=MOST_LABELS)]  # no site has more that a run takes
_Token = Annotated[StrictBytes, Field(min_length=16, max_length=16)]
_Ledger = Annotated[StrictStr, Field(max_length=2**20)]


class Ask(StrEnum):
    """What the server wants."""

    HELLO = "hello"
    TRAIN = "train"
    COMPARE = "compare"
    SUM = "sum"


@dataclass(frozen=True)
class Terms:
    """What a client needs to make the agreement of itself.

    settings: TOML; classes: names of all clients' classes, before `data.classes` chooses; channels: of the images;
    folder: a simulated client's run folder, where its disk is; empty for a client on a machine of its own.
    """

    settings: StrictStr
    classes: _Names = ()
    channels: _Channels = 1
    folder: StrictStr = ""


@dataclass(frozen=True)
class Request:
    """Server → client.

    frame: a broadcast; counted: last round in which the client's update counted, -1 for none; seconds: that the
    server will wait, 0 for ever; terms: sent to a client that does not have them yet.
    """

    ask: Ask
    run: StrictBytes = b""
    round: _Whole = 0
    counted: Annotated[StrictInt, Field(ge=-1, lt=2**32)] = -1
    seconds: _Seconds = 0.0
    frame: StrictBytes = b""
    terms: Terms | None = None


@dataclass(frozen=True)
class Hello:
    """Client → server: who this is.

    token: made up once and kept on the client's disk, so that a restarted client is known again; simulated: by
    Flower's simulation, with data that the settings name; classes, channels: of its own images.
    """

    client: _Whole
    token: _Token
    simulated: StrictBool
    classes: _Told = ()
    channels: Literal[1, 3] = 1


@dataclass(frozen=True)
class Response:
    """Client → server: a frame, or why there is none; ledger: all that this client ever released, as JSON.

    strange: the client has no terms of this run.
    """

    frame: StrictBytes = b""
    error: PrismError | None = None
    ledger: _Ledger = ""
    strange: StrictBool = False

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)


def to_records(message: Request | Hello | Response) -> RecordDict:
    """A message as records: a value a field, those of its terms among them; names and the parts of an error as JSON."""
    plain: dict[str, Any] = {"protocol": PROTOCOL} | _values(message)
    if (terms := plain.pop("terms", None)) is not None:
        plain |= _values(terms)
    if (error := plain.pop("error", None)) is not None:
        plain["error"] = json.dumps([error.got, error.expected, error.remedy])
    if "classes" in plain:
        plain["classes"] = json.dumps(plain["classes"])
    return RecordDict({RECORD: ConfigRecord(plain)})


def _values(message: Request | Terms | Hello | Response) -> dict[str, Any]:
    return {item.name: getattr(message, item.name) for item in fields(message)}


def request_from(content: RecordDict) -> Request:
    """A request from records.  Raises MessageError."""
    plain = _plain(content)
    return _checked(Request, plain | {"terms": _checked(Terms, plain) if "settings" in plain else None})


def hello_from(content: RecordDict) -> Hello:
    """A greeting from records.  Raises MessageError, or the error that the client met."""
    plain = _plain(content)
    if "error" in plain:
        raise plain["error"]
    return _checked(Hello, plain)


def response_from(content: RecordDict, most: int) -> Response:
    """A response from records, its frame of at most so many bytes.  Raises MessageError."""
    response = _checked(Response, _plain(content))
    if len(response.frame) > most:
        raise MessageError(f"a frame of {len(response.frame)} bytes", f"at most {most}")
    return response


def _plain(content: RecordDict) -> dict[str, Any]:
    """The values of a record, with what is JSON read."""
    record = content.config_records.get(RECORD)
    if record is None or record.get("protocol") != PROTOCOL:
        raise MessageError("a message without our record", f"record {RECORD!r} of protocol {PROTOCOL}")
    plain: dict[str, Any] = dict(record) | {
        name: _list_of(record[name]) for name in ("classes", "error") if name in record
    }
    if "error" in plain:
        if plain["error"] is None or len(plain["error"]) != 3:
            raise MessageError("an error that does not read", "what was got, what was expected, what to do")
        plain["error"] = ClientError(*(printable(str(part)) for part in plain["error"]))
    return plain


def _list_of(text: object) -> tuple[Any, ...] | None:
    """A JSON list, None for anything else."""
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError):
        return None
    return tuple(found) if isinstance(found, list) else None


_M = TypeVar("_M")
_CHECKS: dict[Any, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (Request, Terms, Hello, Response)}


def _checked(kind: type[_M], plain: dict[str, Any]) -> _M:
    """A message, or its terms, of values that are each checked."""
    try:
        message: _M = _CHECKS[kind].validate_python(plain)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = str(wrong["loc"][0])
        raise MessageError(f"{name} = {printable(_shown(plain.get(name)))}", wrong["msg"]) from None
    return message


def _shown(value: Any) -> str:
    """A value's beginning: it may be of any length."""
    return repr(value[: 2 * _SHOWN] if isinstance(value, str | bytes | list) else value)


def printable(text: str) -> str:
    """A client's own words, short and fit for a log."""
    cut = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
    return "".join(character if character.isprintable() else "\ufffd" for character in cut)
