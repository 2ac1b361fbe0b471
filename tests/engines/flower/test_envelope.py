"""What stands in messages comes back, and what is no message of ours is refused."""

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")

from flwr.app import ConfigRecord, RecordDict

from prismfl.engines.flower.envelope import (
    RECORD,
    Ask,
    Hello,
    Request,
    Response,
    Terms,
    hello_from,
    printable,
    request_from,
    response_from,
    to_records,
)
from prismfl.errors import ClientError, MessageError


@pytest.mark.parametrize(
    "request_",
    [
        Request(Ask.HELLO),
        Request(Ask.TRAIN, b"r" * 16, 7, -1, 12.5, b"\x00\xff frame"),
        Request(Ask.COMPARE, b"r" * 16, 7, 3, 0.0, b"x", Terms("seed = 1", ("a", "é"), 3, "/run")),
    ],
)
def test_requests_come_back(request_):
    assert request_from(to_records(request_)) == request_


def test_greetings_and_responses_come_back():
    hello = Hello(2, bytes(range(16)), False, ("cat", "dog"), 3)
    assert hello_from(to_records(hello)) == hello
    response = Response(b"frame", None, "[]", True)
    assert response_from(to_records(response), 5) == response
    told = response_from(to_records(Response(error=ClientError("a", "b", "c"))), 0).error
    assert (told.got, told.expected, told.remedy) == ("a", "b", "c")


def broken(**changes):
    record = dict(to_records(Request(Ask.TRAIN, terms=Terms("x"))).config_records[RECORD]) | changes
    return RecordDict({RECORD: ConfigRecord({name: value for name, value in record.items() if value is not None})})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"protocol": 1})}),
        broken(protocol=2),
        broken(ask="nonsense"),
        broken(ask=None),
        broken(ask=3),
        broken(round=-1),
        broken(round=2**40),
        broken(round="1"),
        broken(round=True),
        broken(counted=-2),
        broken(seconds=float("nan")),
        broken(seconds=-1.0),
        broken(frame="text"),
        broken(classes="[1]"),
        broken(classes="{"),
        broken(settings=4),
        broken(classes="[" * 100_000),
    ],
)
def test_what_is_no_request_is_refused(content):
    with pytest.raises(MessageError):
        request_from(content)


def test_a_response_says_no_more_than_it_may():
    with pytest.raises(MessageError, match="6 bytes"):
        response_from(to_records(Response(b"123456")), 5)
    with pytest.raises(MessageError, match="ledger"):
        response_from(to_records(Response(ledger="x" * 2**21)), 5)
    with pytest.raises(MessageError, match="token"):
        hello_from(to_records(Hello(0, b"short", False)))
    with pytest.raises(MessageError, match="does not read"):
        response_from(RecordDict({RECORD: ConfigRecord({"protocol": 1, "error": "[1, 2"})}), 5)


def test_a_clients_words_are_shown_short_and_printable():
    assert printable("a\n\x1b[31mb") == "a��[31mb"
    assert len(printable("x" * 10_000)) == 301
