"""What stands in a Flower message: a frame of ours as raw bytes, and the few words around it.

A message is one `ConfigRecord` of plain values.  What comes from the other side is checked field by
field before it is used, and what is shown of it is cut short and made printable.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from prismfl.errors import ClientError, MessageError, PrismError

RECORD = "prismfl"
PROTOCOL = 1
_SHOWN = 300  # characters of a client's own words that reach the log
_MOST_LEDGER = 2**20
_MOST_NAMES = 2**16


class Ask(StrEnum):
    """What the server wants."""

    HELLO = "hello"
    TRAIN = "train"
    COMPARE = "compare"


@dataclass(frozen=True)
class Terms:
    """What a client needs to make the agreement of itself.

    settings: TOML; classes: names of all clients' classes, before `data.classes` chooses; channels: of the images;
    folder: a simulated client's run folder, where its disk is; empty for a client on a machine of its own.
    """

    settings: str
    classes: tuple[str, ...] = ()
    channels: int = 1
    folder: str = ""


@dataclass(frozen=True)
class Request:
    """Server → client.

    frame: a broadcast; counted: last round in which the client's update counted, -1 for none; seconds: that the
    server will wait, 0 for ever; terms: sent to a client that does not have them yet.
    """

    ask: Ask
    run: bytes = b""
    round: int = 0
    counted: int = -1
    seconds: float = 0.0
    frame: bytes = b""
    terms: Terms | None = None


@dataclass(frozen=True)
class Hello:
    """Client → server: who this is.

    token: made up once and kept on the client's disk, so that a restarted client is known again; simulated: by
    Flower's simulation, with data that the settings name; classes, channels: of its own images.
    """

    client: int
    token: bytes
    simulated: bool
    classes: tuple[str, ...] = ()
    channels: int = 1


@dataclass(frozen=True)
class Response:
    """Client → server: a frame, or why there is none; ledger: all that this client ever released, as JSON.

    strange: the client has no terms of this run.
    """

    frame: bytes = b""
    error: PrismError | None = None
    ledger: str = ""
    strange: bool = False


def request_to(message: Request) -> RecordDict:
    """A request as records."""
    plain: dict[str, Any] = {
        "protocol": PROTOCOL,
        "ask": str(message.ask),
        "run": message.run,
        "round": message.round,
        "counted": message.counted,
        "seconds": message.seconds,
        "frame": message.frame,
    }
    return _records(plain | (_terms_to(message.terms) if message.terms else {}))


def _terms_to(terms: Terms) -> dict[str, Any]:
    return {
        "settings": terms.settings,
        "classes": json.dumps(terms.classes),
        "channels": terms.channels,
        "folder": terms.folder,
    }


def request_from(content: RecordDict) -> Request:
    """A request from records.  Raises MessageError."""
    plain = _plain(content)
    asked = _text(plain, "ask")
    if asked not in set(Ask):
        raise MessageError(f"a request for {printable(asked)!r}", f"one of {', '.join(Ask)}")
    return Request(
        Ask(asked),
        _bytes(plain, "run"),
        _whole(plain, "round"),
        _whole(plain, "counted", -1),
        _number(plain, "seconds"),
        _bytes(plain, "frame"),
        _terms_from(plain) if "settings" in plain else None,
    )


def _terms_from(plain: Mapping[str, Any]) -> Terms:
    return Terms(_text(plain, "settings"), _names(plain), _whole(plain, "channels", 1), _text(plain, "folder"))


def hello_to(message: Hello) -> RecordDict:
    """A greeting as records."""
    return _records(
        {
            "protocol": PROTOCOL,
            "client": message.client,
            "token": message.token,
            "simulated": message.simulated,
            "classes": json.dumps(message.classes),
            "channels": message.channels,
        }
    )


def hello_from(content: RecordDict) -> Hello:
    """A greeting from records.  Raises MessageError, or the error that the client met."""
    plain = _plain(content)
    if "error" in plain:
        raise _error_from(plain)
    if len(token := _bytes(plain, "token")) != 16:
        raise MessageError(f"a token of {len(token)} bytes", "16")
    return Hello(
        _whole(plain, "client"), token, bool(plain.get("simulated")), _names(plain), _whole(plain, "channels", 1)
    )


def response_to(message: Response) -> RecordDict:
    """A response as records."""
    plain: dict[str, Any] = {"protocol": PROTOCOL, "frame": message.frame, "ledger": message.ledger}
    if message.error:
        plain["error"] = json.dumps([message.error.got, message.error.expected, message.error.remedy])
    return _records(plain | ({"strange": True} if message.strange else {}))


def response_from(content: RecordDict, most: int) -> Response:
    """A response from records, its frame of at most so many bytes.  Raises MessageError."""
    plain = _plain(content)
    frame, ledger = _bytes(plain, "frame"), _text(plain, "ledger")
    if len(frame) > most:
        raise MessageError(f"a frame of {len(frame)} bytes", f"at most {most}")
    if len(ledger) > _MOST_LEDGER:
        raise MessageError(f"a ledger of {len(ledger)} characters", f"at most {_MOST_LEDGER}")
    error = _error_from(plain) if "error" in plain else None
    return Response(frame, error, ledger, plain.get("strange") is True)


def _error_from(plain: Mapping[str, Any]) -> ClientError:
    try:
        got, expected, remedy = (printable(str(part)) for part in json.loads(_text(plain, "error")))
    except (ValueError, TypeError):
        raise MessageError("an error that does not read", "what was got, what was expected, what to do") from None
    return ClientError(got, expected, remedy)


def _records(plain: dict[str, Any]) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord(plain)})


def _plain(content: RecordDict) -> Mapping[str, Any]:
    record = content.config_records.get(RECORD)
    if record is None or record.get("protocol") != PROTOCOL:
        raise MessageError("a message without our record", f"record {RECORD!r} of protocol {PROTOCOL}")
    return dict(record)


def _whole(plain: Mapping[str, Any], name: str, least: int = 0) -> int:
    value = plain.get(name)
    if type(value) is not int or not least <= value < 2**32:
        raise MessageError(f"{name} = {printable(repr(value))}", f"a whole number ≥ {least}")
    return value


def _number(plain: Mapping[str, Any], name: str) -> float:
    value = plain.get(name)
    if not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise MessageError(f"{name} = {printable(repr(value))}", "seconds")
    return float(value)


def _text(plain: Mapping[str, Any], name: str) -> str:
    value = plain.get(name, "")
    if not isinstance(value, str):
        raise MessageError(f"{name} of type {type(value).__name__}", "text")
    return value


def _bytes(plain: Mapping[str, Any], name: str) -> bytes:
    value = plain.get(name, b"")
    if not isinstance(value, bytes):
        raise MessageError(f"{name} of type {type(value).__name__}", "bytes")
    return value


def _names(plain: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        names = json.loads(_text(plain, "classes"))
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) > _MOST_NAMES or not all(isinstance(name, str) for name in names):
        raise MessageError("class names that do not read", "a list of texts")
    return tuple(names)


def printable(text: str) -> str:
    """A client's own words, short and fit for a log."""
    cut = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
    return "".join(character if character.isprintable() else "�" for character in cut)
