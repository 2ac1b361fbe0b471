"""What a secure sum takes: seconds of a core at a site and at the server, bytes an entry, bits a weight.

    python benchmarks/secure_sum.py --sites 100 --entries 90000 --gone 5
    python benchmarks/secure_sum.py --sites 10 --masks

The first sums vectors as large as those of images, some sites vanishing at each step; noise is not drawn.  `--masks`
sums the bits of as many weights in place of them, all sites in one group.  The sum is checked against the plain one.
"""

import argparse
import math
import time
from collections import defaultdict

import numpy as np

from prismfl.errors import ClientError
from prismfl.sums.frames import Purpose, Step, Sum, step_of
from prismfl.sums.ring import Digits, Ring
from prismfl.sums.rules import Rules, usual
from prismfl.sums.secrets import Identity
from prismfl.sums.server import Memory, SumServer
from prismfl.sums.site import SumSite, Vector
from prismfl.wire.frames import Place

ASKED = (Step.LIST, Step.INBOX, Step.SURVIVORS, Step.SIGNATURES)


def measured(sites: int, entries: int, gone: int, *, masks: bool = False, width: int = 6) -> dict[str, float]:
    """Figures of one sum; `gone` sites vanish, each before another step."""
    identities = [Identity.made() for _ in range(sites)]
    rules, members = Rules(tuple(one.public for one in identities), *usual(sites)), tuple(range(sites))
    states = [SumSite(rules, one, client, {}) for client, one in enumerate(identities)]
    rng, digits = np.random.default_rng(0), Digits(sites)
    if masks:
        ring = Ring(((digits.words(entries), digits.width),))
        vectors = [digits.pack(rng.random(entries) < 0.5) for _ in members]
    else:
        ring = Ring(((entries, width),))
        vectors = [rng.integers(0, 2**40, entries).astype(np.uint64) for _ in members]
    dead = {client: ASKED[client % len(ASKED)] for client in range(gone)}
    spent, sent = defaultdict[int, float](float), defaultdict[int, int](int)

    def exchange(_least):
        def carried(frames):
            for client, frame in frames.items():
                if step_of(frame) >= dead.get(client, 99):
                    yield client, ClientError("gone", "a connection", "start it")
                    continue
                began = time.process_time()
                vector = Vector(ring, [vectors[client]], frozenset(members), hidden=not masks)
                reply = states[client].answer(frame, Place(bytes(16), 0, client), members, lambda *_, v=vector: v)
                spent[client] += time.process_time() - began
                sent[client] += len(reply)
                yield client, reply

        return carried

    memory = Memory()
    of = Sum(Place(bytes(16), 0, 0), Purpose.MASKS if masks else Purpose.RELEASE, memory.name)
    begun = time.process_time()
    opened = SumServer(of, dict.fromkeys(members, 0), lambda _: {0: ring}, exchange, memory).run()
    whole = time.process_time() - begun
    expected = ring.unpack(ring.pack([sum((vectors[client] for client in opened.survivors), np.uint64(0))]))
    if not np.array_equal(opened.totals[0][0], expected[0]):
        raise SystemExit("the opened sum is not the plain one")
    return {
        "survivors": len(opened.survivors),
        "site_seconds": max(spent.values()),
        "server_seconds": whole - sum(spent.values()),
        "bytes_an_entry": max(sent.values()) / entries,
        "bits_a_weight_over_log2": 8 * ring.size / entries / math.log2(sites + 1) if masks else math.nan,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--entries", type=int, default=90_000)
    parser.add_argument("--gone", type=int, default=0)
    parser.add_argument("--masks", action="store_true")
    args = parser.parse_args()
    for name, value in measured(args.sites, args.entries, args.gone, masks=args.masks).items():
        print(f"{name:<24} {value:.4g}")


if __name__ == "__main__":
    main()
