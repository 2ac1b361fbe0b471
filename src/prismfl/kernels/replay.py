"""The same step many times: on a GPU compiled and recorded once, so that no kernel waits for the interpreter."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.fx import GraphModule

Step = Callable[[], None]
Program = Callable[..., object]
Programs = dict[str, Program | None]  # "step": the compiled step, or None where it cannot be compiled

_FIRST = 3  # steps taken one by one: libraries choose their kernels and reserve memory in them
_WORTH = 16  # steps from which on recording one pays

# Compiling and recording are no work for two threads at once; searches of others go on meanwhile.
_preparing = threading.RLock()


@contextmanager
def _sums_in_order() -> Iterator[None]:
    """Inside, cuDNN chooses no convolution that adds up in whatever order its parts are done; the choice is recorded.

    The flag is torch's, of all threads: what others compute meanwhile is chosen so too.
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


class Repeated:
    """A step on tensors that stay where they are, taken as often as asked.

    On a GPU it is recorded as a CUDA graph when it is first taken often enough, and replayed from then on; the step
    must read and write tensors alone, the same ones each time, and never wait for the device.  A step that cannot be
    recorded is taken as it is.

    tensors: what the step writes, and what is written between calls of `take`; programs: what torch compiled, shared
    by all whose steps are the same but for these tensors, and None where it shall not.
    """

    def __init__(
        self, step: Step, tensors: Sequence[Tensor], programs: Programs | None = None, *, recorded: bool = True
    ) -> None:
        self.step, self.tensors, self.programs = step, list(tensors), programs
        self.device = self.tensors[0].device
        self.recorded = recorded and self.device.type == "cuda"
        self.replay: Step | None = None

    def take(self, count: int) -> None:
        """Take the step so many times."""
        if self.recorded and self.replay is None and count >= _WORTH:
            with _preparing, _sums_in_order():
                self.replay = self._prepared()
        for _ in range(count):
            (self.replay or self.step)()

    def _prepared(self) -> Step:
        """The step as a recording, and all as it was before: the first search rounds like every other."""
        before = [one.clone() for one in self.tensors]
        self.step()  # what is made once and kept is made now
        program = None if self.programs is None else self._program(self.programs)
        step = self.step if program is None else lambda: self._run(program)
        queue = torch.cuda.current_stream(self.device)
        aside = _own_queue(queue)
        aside.wait_stream(queue)
        with torch.cuda.stream(aside):
            for _ in range(_FIRST):
                step()
        queue.wait_stream(aside)
        found = _recording(step, aside)
        for one, was in zip(self.tensors, before, strict=True):
            one.copy_(was)
        wait_for_device(self.device)
        return found

    def _program(self, programs: Programs) -> Program | None:
        """The step compiled, where that works."""
        if "step" not in programs:
            try:
                program = compiled(self.step, self.tensors)
                self._run(program)
                programs["step"] = program
            except Exception:  # compilers fail in ways of their own; without one the step is the same
                programs["step"] = None
        return programs["step"]

    def _run(self, program: Program) -> None:
        with torch.no_grad():
            program(*self.tensors)


def compiled(step: Step, tensors: Sequence[Tensor]) -> Program:
    """A step, taken once to see what it does, as a compiled function of the tensors that it reads and writes."""
    import torch._inductor  # takes a second: not for those who only want a model's samples

    # Kernels chosen by rule where torch can: chosen by timing them, they would round sums otherwise each time.
    known: list[str] = torch._inductor.list_options()
    options = {"deterministic": True} if "deterministic" in known else {}
    program: Program = torch.compile(traced(step, tensors), dynamic=False, options={**options})
    return program


def traced(step: Step, tensors: Sequence[Tensor]) -> GraphModule:
    """What a step does, gradients included, as one list of operations, with some of its tensors as arguments.

    The step is taken once.  Other tensors that it reads are part of the list.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda: step())()  # as it is, a method would be asked for its self
    first = next(iter(graph.graph.nodes))
    with graph.graph.inserting_before(first):
        inputs = [graph.graph.placeholder(f"given_{index}") for index in range(len(tensors))]
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            held = getattr(graph, node.target)
            place = next((index for index, one in enumerate(tensors) if one is held), None)
            if place is not None:
                node.replace_all_uses_with(inputs[place])
                graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def wait_for_device(device: torch.device) -> None:
    """Wait until what this thread asked of a GPU is done, so that other threads can use it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _own_queue(queue: torch.cuda.Stream) -> torch.cuda.Stream:
    """This thread's queue, or another where that is the device's default, in which nothing can be recorded.

    torch deals out the same few dozen queues in turn, so that a new one may be another thread's: what that thread
    asks for while this one records there would fail.
    """
    return torch.cuda.Stream(queue.device) if queue == torch.cuda.default_stream(queue.device) else queue


def _recording(step: Step, queue: torch.cuda.Stream) -> Step:
    """The step as a CUDA graph, recorded in a queue; recording does not take it."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may search meanwhile: what they ask of the device is not part of the recording.
        with torch.cuda.graph(graph, stream=queue, capture_error_mode="thread_local"):
            step()
    except RuntimeError:
        return step
    return graph.replay
