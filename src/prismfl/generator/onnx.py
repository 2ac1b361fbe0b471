"""A finished model as ONNX: latents (and labels) in, images out, checked against PyTorch before it is written.

Weights are stored as int8 -1, 0 and 1, a byte each.  The graph casts and scales them: runtimes fold that when
they load it, which they do not do with DequantizeLinear.
"""

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.data.files import write_atomic
from prismfl.errors import DependencyError, ModelFileError
from prismfl.generator.layout import SOFT_ONE, Layer, frozen_signs, kept_weights
from prismfl.generator.modelfile import Model, load_model
from prismfl.generator.network import EPSILON, generate, label_turns, latent_batch
from prismfl.seeding.philox import Purpose, Stream

OPSET = 17
TOLERANCE = 1e-3
_IR_VERSION = 8  # the oldest that goes with the opset: old runtimes read it
_CHECKED = 20  # images


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        size: bytes of the file.
        float_bytes: bytes of as many float32 weights.
        difference: largest difference of a value in [-1, 1] from PyTorch's.
    """

    size: int
    float_bytes: int
    difference: float


def export(path: Path, out: Path) -> Exported:
    """Write a model file as ONNX, once onnxruntime's images are PyTorch's to 1e-3.

    The graph takes `latents` float32 `[batch, latent]`, where the model takes labels `labels` int64 `[batch]`, and of
    an ensemble `mask`, int64 `[]`, the number of the mask that makes them.  It gives `images` uint8 `[batch, C, H, W]`
    and `values` float32 in [-1, 1] of the same shape.
    Metadata `prismfl` is JSON of labels, seed, settings and ledger.

    Args:
        path: the model file.
        out: the ONNX file to write.

    Returns:
        Sizes and the largest difference that was seen.

    Raises:
        ModelFileError: for an unusable model, or images that differ.
        DependencyError: without the extra `export`.

    Examples:
        >>> import tempfile
        >>> from prismfl.generator.layout import Layout
        >>> from prismfl.generator.modelfile import save_model
        >>> from prismfl.generator.sampling import finish
        >>> layout = Layout(size=16, channels=1, width=2, latent=8)
        >>> model = finish(layout, 0, np.ones(layout.count, np.bool_), "")
        >>> with tempfile.TemporaryDirectory() as root:
        ...     size = save_model(model, Path(root) / "model.safetensors")
        ...     written = export(Path(root) / "model.safetensors", Path(root) / "model.onnx")
        >>> written.difference < 1e-3
        True
    """
    onnx = _library("onnx")
    _library("onnxruntime")
    model = load_model(path)
    raw = to_onnx(model, onnx)
    difference = _difference(model, raw)
    if not difference <= TOLERANCE:
        raise ModelFileError(
            f"exported images that differ by {difference:.2g} from PyTorch's",
            f"at most {TOLERANCE}",
            "try another release of onnxruntime",
        )
    write_atomic(out, raw)
    return Exported(len(raw), 4 * model.layout.count, difference)


def _library(name: str) -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it is read when onnxruntime is imported
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"{name} does not import ({error})", "it, to export", "pip install 'prismfl[export]'"
        ) from None


def session(raw: bytes, threads: int = 0) -> Any:
    """An onnxruntime session on the processor.

    Args:
        raw: bytes of an ONNX file.
        threads: processor threads; 0 leaves the number to onnxruntime.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        DependencyError: without onnxruntime.
    """
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return runtime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def _difference(model: Model, raw: bytes) -> float:
    """Largest difference of values between onnxruntime and PyTorch, on public latents."""
    latents = latent_batch(model.layout, Stream(0, Purpose.LATENT), _CHECKED)
    labels = label_turns(model.layout, _CHECKED)
    fed, runtime, differences = {"latents": latents.numpy()}, session(raw), []
    fed |= {"labels": labels.numpy()} if model.layout.classes else {}
    for index, part in enumerate(model.parts):
        flat = torch.from_numpy(kept_weights(model.layout, model.seed, part.mask))
        mean, var = torch.from_numpy(part.norm_mean), torch.from_numpy(part.norm_var)
        with torch.no_grad():
            wanted = generate(model.layout, flat, latents, labels=labels, mean=mean, var=var).numpy()
        (found,) = runtime.run(["values"], fed | ({"mask": np.array(index)} if model.more else {}))
        differences.append(float(np.abs(found - wanted).max()))
    return max(differences)


# ------------------------------------------------------------------------------------- the graph


class _Graph:
    """Nodes and stored tensors of an ONNX graph as it grows; `of` adds a node and names its result."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.stored: list[Any] = []

    def of(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its one output."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def store(self, name: str, values: NDArray[Any]) -> str:
        """Add a tensor; its name."""
        self.stored.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def chosen(self, name: str, each: Sequence[NDArray[Any]]) -> str:
        """A tensor of the mask that the input `mask` names, or the only one there is; its name."""
        if len(each) == 1:
            return self.store(name, each[0])
        return self.of("Gather", self.store(name, np.stack(each)), "mask", axis=0)

    def named(self, kind: str, name: str, *inputs: str, **attributes: Any) -> None:
        """Add a node whose output has a name of its own: an output of the graph."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], **attributes))


class _Weights:
    """A model's layers as int8 in a graph, made float where they are used."""

    def __init__(self, graph: _Graph, model: Model) -> None:
        self.graph = graph
        signs = frozen_signs(model.layout, model.seed)
        self.kept = [signs * part.mask.astype(np.int8) for part in model.parts]
        self.one = SOFT_ONE if model.mask.dtype == np.uint8 else 1
        self.layers: dict[str, Layer] = {layer.name: layer for layer in model.layout.layers}

    def __call__(self, name: str, *shape: int) -> str:
        """The layer's weights, float32, in its own shape or another."""
        layer, graph = self.layers[name], self.graph
        each = [kept[layer.span].reshape(shape or layer.shape).astype(np.int8) for kept in self.kept]
        stored = graph.chosen(name, each)
        scale = graph.store(f"{name}.scale", np.array(layer.scale / self.one, np.float32))
        return graph.of("Mul", graph.of("Cast", stored, to=graph.onnx.TensorProto.FLOAT), scale)


class _Norms:
    """BatchNorm and ReLU, one after another in forward order."""

    def __init__(self, graph: _Graph, model: Model) -> None:
        self.graph, self.index = graph, 0
        ends = np.cumsum(model.layout.norms)[:-1]
        means, variances = ([part.norm_mean for part in model.parts], [part.norm_var for part in model.parts])
        # By BatchNorm: means and variances, a row a mask.
        self.parts = list(zip(*(np.split(np.stack(each), ends, 1) for each in (means, variances)), strict=True))

    def __call__(self, x: str) -> str:
        (means, variances), name, graph = self.parts[self.index], f"norm{self.index}", self.graph
        self.index += 1
        fixed = {"scale": np.ones_like(means[0]), "shift": np.zeros_like(means[0])}
        names = [graph.store(f"{name}.{key}", values) for key, values in fixed.items()]
        names += [graph.chosen(f"{name}.mean", means), graph.chosen(f"{name}.var", variances)]
        return graph.of("Relu", graph.of("BatchNormalization", x, *names, epsilon=EPSILON))


def to_onnx(model: Model, onnx: Any) -> bytes:
    """A model as bytes of an ONNX file.

    Args:
        model: a finished one.
        onnx: the library, as a module.

    Returns:
        The file's bytes; `export` has what the graph takes and gives.
    """
    graph, layout = _Graph(onnx), model.layout
    values = _forward(graph, model)
    graph.named("Identity", "values", values)
    one, half = (graph.store(f"pixel.{number}", np.array(number, np.float32)) for number in (1.0, 127.5))
    pixels = graph.of("Round", graph.of("Mul", graph.of("Add", values, one), half))
    graph.named("Cast", "images", pixels, to=onnx.TensorProto.UINT8)
    shape = ["batch", layout.channels, layout.size, layout.size]
    made, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    inputs = [made("latents", types.FLOAT, ["batch", layout.latent])]
    inputs += [made("labels", types.INT64, ["batch"])] if layout.classes else []
    inputs += [made("mask", types.INT64, [])] if model.more else []
    outputs = [made("images", types.UINT8, shape), made("values", types.FLOAT, shape)]
    whole = onnx.helper.make_graph(graph.nodes, "generator", inputs, outputs, graph.stored)
    found = onnx.helper.make_model(
        whole, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION, producer_name="prismfl"
    )
    about = {"labels": model.labels, "seed": model.seed, "settings": model.settings, "ledger": model.ledger}
    onnx.helper.set_model_props(found, {"prismfl": json.dumps(about)})
    onnx.checker.check_model(found, full_check=True)
    return bytes(found.SerializeToString())


def _forward(graph: _Graph, model: Model) -> str:
    """Nodes from latents to values in [-1, 1]."""
    layout, weights, norm = model.layout, _Weights(graph, model), _Norms(graph, model)
    entries = layout.widths[0] * 16
    x = graph.of("MatMul", "latents", weights("input", layout.latent, entries))
    if layout.classes:
        x = graph.of("Add", x, graph.of("Gather", weights("input.label", layout.classes, entries), "labels"))
    x = graph.of("Reshape", x, graph.store("map", np.array([-1, layout.widths[0], 4, 4])))
    doubled = graph.store("doubled", np.array([1, 1, 2, 2], np.float32))
    for index, after in enumerate(layout.widths[1:]):
        name = f"block{index}"
        short = graph.of("Conv", x, weights(f"{name}.short"))
        if layout.classes:
            label = weights(f"{name}.label", layout.classes, after, 1, 1)
            short = graph.of("Add", short, graph.of("Gather", label, "labels"))
        h = graph.of("Conv", _double(graph, norm(x), doubled), weights(f"{name}.first"), pads=[1] * 4)
        h = graph.of("Conv", norm(h), weights(f"{name}.second"), pads=[1] * 4)
        x = graph.of("Add", _double(graph, short, doubled), h)
    return graph.of("Tanh", graph.of("Conv", norm(x), weights("output"), pads=[1] * 4))


def _double(graph: _Graph, x: str, doubled: str) -> str:
    rules = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.of("Resize", x, "", doubled, **rules)
