"""Memory and seconds of a server that averages many coded masks at the paper's size.

    python benchmarks/aggregate.py [--messages 100]

Every client's θ moves at random from θ_0, its log-odds by half a nat; its frame is made, opened, decoded and added to
the tally one after the other.  Prints the largest resident memory after 5, 10, 20, … messages: it must not grow.
Making a frame takes as long as reading one, and is not part of the seconds.
"""

import argparse
import resource
import time
from collections.abc import Iterator, Mapping

import numpy as np

from prismfl.federation.agreement import Agreement, Reply, agree, init
from prismfl.federation.client import seal_found
from prismfl.federation.round import server_update
from prismfl.settings.toml import settings_from
from prismfl.wire import frames as message

STEP = 0.5


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--uplink", default="whole", choices=("whole", "half", "fewest"))
    args = parser.parse_args()
    agreement = paper_size(args.messages, args.uplink)
    state = init(agreement)
    rng = np.random.default_rng(0)
    theta = state.q / 65536
    odds = theta / (1 - theta) * np.exp(rng.normal(0, STEP, len(state.q)))
    mine = np.clip(65536 * odds / (1 + odds), 1, 65535).astype(np.uint16)
    making = 0.0

    def exchange(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
        nonlocal making
        next_report = 5
        for number, (client, frame) in enumerate(frames.items(), 1):
            start = time.perf_counter()
            place = agreement.place(0, client)
            told = message.open_broadcast(frame, place, len(state.q))
            reply = seal_found(agreement, place, told, state.q, mine)
            making += time.perf_counter() - start
            yield client, reply
            if number == next_report or number == len(frames):
                report = time.perf_counter() - begun - making
                print(f"{number:6} messages  {peak_mb():6.0f} MB  {report / number:.3f} s each", flush=True)
                next_report *= 2

    print(f"{len(state.q)} parameters, {peak_mb():.0f} MB before")
    begun = time.perf_counter()
    _, record = server_update(agreement, state, exchange)
    print(
        f"{record.traffic.uplink_bytes / args.messages:.0f} bytes a message; the round took {peak_mb():.0f} MB at most"
    )


def paper_size(clients: int, uplink: str) -> Agreement:
    """The paper's generator, in a cohort of so many clients."""
    values = {
        "data": {"dataset": "mnist", "clients": clients, "partition": "shards:1"},
        "generator": {"size": 32, "width": 64},
        "federation": {"uplink": uplink},
    }
    return agree(settings_from(values), 1)


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
