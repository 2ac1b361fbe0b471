"""The real client, but for what `faults.json` in its state folder says of a round: each fault happens once.

A round's name is its number, and in a secure sum the message's besides: "0 INBOX".
"""

import json
import os
import signal
import struct
import time
import zlib
from pathlib import Path

from flwr.clientapp import ClientApp

from prismfl.engines.flower import client
from prismfl.engines.flower.envelope import Response, request_from, to_records
from prismfl.sums.frames import step_of

app = ClientApp()


def take(context, key):
    """The fault of a round, and it is over."""
    path = Path(context.node_config["state-dir"]) / "faults.json"
    faults = json.loads(path.read_text()) if path.is_file() else {}
    fault = faults.pop(key, None)
    if fault:
        path.write_text(json.dumps(faults))
    return fault


@app.query()
def query(message, context):
    return client.answer(message, context)


@app.train()
def train(message, context):
    request = request_from(message.content)
    step = step_of(request.frame)
    fault = take(context, f"{request.round} {step.name}" if step else str(request.round))
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault in ("die with the node", "answer and die with the node"):
        if fault.startswith("answer"):
            client.answer(message, context)
        Path(context.node_config["state-dir"], "dying").write_text(str(os.getpid()))
        time.sleep(600)
    if fault == "hang":
        original = client.respond

        def respond(site, request):
            time.sleep(600)
            return original(site, request)

        client.respond = respond
    reply = client.answer(message, context)
    if fault in (None, "hang"):
        return reply
    frame = reply.content["prismfl"]["frame"]
    made = {
        "garbage": bytes(200),
        "wrong round": sealed(frame, 24, struct.pack("<I", request.round + 1)),
        "nan": sealed(frame, 40 + 12, struct.pack("<f", float("nan"))),
        "oversized": bytes(20_000_000),
    }[fault]
    reply.content = to_records(Response(made))
    return reply


def sealed(frame, at, raw):
    """The same frame with other bytes at a place, under a checksum that fits."""
    body = bytearray(frame)
    body[at : at + len(raw)] = raw
    body[36:40] = bytes(4)
    body[36:40] = zlib.crc32(bytes(body)).to_bytes(4, "little")
    return bytes(body)
