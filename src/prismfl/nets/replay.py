"""The same step many times: on a GPU recorded once and replayed, so that no kernel waits for the interpreter."""

from collections.abc import Callable

import torch

_FIRST = 3  # steps taken one by one: libraries choose their kernels and reserve memory in them
_WORTH = 16  # steps from which on recording one pays

Step = Callable[[], None]


def repeat(step: Step, count: int, device: torch.device, *, recorded: bool = True) -> None:
    """Take a step `count` times.

    Where `recorded` and on a GPU, the step must read and write tensors alone, the same ones each time, and never wait
    for the device.  A step that cannot be recorded is taken as it is.
    """
    first = _FIRST if recorded and device.type == "cuda" and count >= _WORTH else count
    if first == count:
        _taken(step, count)
        return
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        _taken(step, first)
    torch.cuda.current_stream(device).wait_stream(aside)
    _taken(_recording(step), count - first)


def _taken(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def _recording(step: Step) -> Step:
    """The step as a CUDA graph; recording does not take it."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may search meanwhile: what they ask of the device is not part of the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError:
        return step
    return graph.replay
