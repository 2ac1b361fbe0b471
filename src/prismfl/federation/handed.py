"""A pooled target that the server hands out: sums of all clients' images, that each searches towards.

A client that has none says so in place of its reply; it is sent the target, says that it has it, and is asked again.
"""

from collections.abc import Iterator, Mapping

from prismfl.errors import MessageError
from prismfl.federation.agreement import Agreement, Exchange, Reply
from prismfl.federation.client import sealed_moments
from prismfl.federation.record import Traffic
from prismfl.moments import Target
from prismfl.wire import frames as message
from prismfl.wire.frames import Kind
from prismfl.wire.masks import decode_moments

_SLACK = 1024  # bytes that coded moments may take beyond 8 an entry


def wanted(place: message.Place) -> bytes:
    """Frame of a client that has no target."""
    return message.seal(Kind.WANTED, place, b"")


def is_target(frame: bytes) -> bool:
    """Whether a frame says, by its header alone, that it hands out a target."""
    return len(frame) > message.KIND_AT and frame[message.KIND_AT] == Kind.TARGET


def is_kind(reply: Reply, kind: Kind, place: message.Place) -> bool:
    """Whether a reply is a whole frame of a kind that says all that it says."""
    try:
        return isinstance(reply, bytes) and message.open_frame(reply, kind, place) == b""
    except MessageError:
        return False


def taken(agreement: Agreement, dimension: int, frame: bytes, place: message.Place) -> tuple[Target, bytes]:
    """The target that a server hands out, and the frame that says that it is here.

    Args:
        agreement: of the run.
        dimension: D, entries a label.
        frame: as it came.
        place: round and client.

    Raises:
        MessageError: when the frame is not the expected one.
    """
    groups = max(1, agreement.layout.classes)
    told = message.open_moments(frame, place, groups, 8 * groups * dimension + _SLACK, Kind.TARGET)
    target = Target(decode_moments(told.coded, told.step, groups * dimension), told.weight, told.shares)
    return target, message.seal(Kind.TARGET, place, b"")


def handing_out(
    agreement: Agreement, round_index: int, target: Target, exchange: Exchange, traffic: Traffic
) -> Exchange:
    """An exchange that gives clients the target where they have none, and asks them again.

    Args:
        agreement: of the run.
        round_index: t.
        target: the pooled one.
        exchange: carries frames to clients and yields their replies.
        traffic: what is sent and heard besides the round's own frames is added to it.

    Examples:
        >>> import numpy as np
        >>> from prismfl.federation.agreement import agree
        >>> from prismfl.settings.toml import settings_from
        >>> agreement, held = agree(settings_from({"data": {"clients": 2}}), channels=1), {}
        >>> def exchange(frames):
        ...     for client, frame in frames.items():
        ...         place = agreement.place(0, client)
        ...         if frame != b"broadcast":
        ...             held[client], reply = taken(agreement, 3, frame, place)
        ...             yield client, reply
        ...         else:
        ...             yield client, b"update" if client in held else wanted(place)
        >>> carried = handing_out(agreement, 0, Target(np.ones(3, np.float32), images=10), exchange, Traffic())
        >>> list(carried({0: b"broadcast", 1: b"broadcast"})), held[1].moments.tolist()
        ([(0, b'update'), (1, b'update')], [1.0, 1.0, 1.0])
    """

    def carried(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
        without = list[int]()
        for client, reply in exchange(frames):
            if client in frames and is_kind(reply, Kind.WANTED, agreement.place(round_index, client)):
                traffic.up(reply)
                without.append(client)
            else:
                yield client, reply
        if without:
            yield from again({client: frames[client] for client in without})

    def again(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
        told = sealed_moments(target)
        sent = {
            client: message.seal_moments(told, agreement.place(round_index, client), Kind.TARGET) for client in frames
        }
        traffic.down(sent)
        have = list[int]()
        for client, reply in exchange(sent):
            if is_kind(reply, Kind.TARGET, agreement.place(round_index, client)):
                traffic.up(reply)
                have.append(client)
            else:
                yield client, reply
        frames = {client: frames[client] for client in sorted(have)}
        if frames:
            traffic.down(frames)
            yield from exchange(frames)

    return carried
