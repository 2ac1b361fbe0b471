"""Published weights on disk: a torch state dict or safetensors, read without running anything in it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from prismfl.errors import ModelFileError


def read_weights(path: Path, what: str, remedy: str) -> tuple[dict[str, Tensor], str]:
    """Tensors of a weights file by name, as stored, and the file's SHA-256.

    A name that ends in `.safetensors` is read as such; any other as torch's own format, whose
    loader is told to take tensors only (`weights_only=True`).  `what` and `remedy` go into errors.
    Raises ModelFileError when the file is missing, damaged or holds anything but tensors.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            state = load_tensors(file.read()) if path.suffix == ".safetensors" else _torch_state(file)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot read {path} ({error})", what, remedy) from None
    except Exception as error:  # a damaged pickle can raise nearly anything, and torch advises to trust it
        raise ModelFileError(f"{path} does not load as tensors ({type(error).__name__})", what, remedy) from None
    if not isinstance(state, Mapping) or not all(_is_weight(*item) for item in state.items()):
        raise ModelFileError(f"{path} holds more than named tensors", what, remedy)
    return dict(state), sha256


def _torch_state(file: BinaryIO) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_weight(name: Any, tensor: Any) -> bool:
    """A named dense tensor; a BatchNorm's count of batches is the only one that may be of integers."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return False
    return tensor.is_floating_point() or name.endswith("num_batches_tracked")


def fill(net: nn.Module, state: Mapping[str, Tensor], path: Path, what: str, remedy: str) -> None:
    """Put tensors into a network as float32, then freeze it in evaluation mode.

    Raises ModelFileError when names or shapes are not the network's, or a number is not finite.
    """
    tensors = {name: tensor.float() for name, tensor in state.items()}
    odd = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if odd is not None:
        raise ModelFileError(f"{path} has numbers in {odd} that are not finite", what, remedy)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{path} does not fit ({' '.join(str(error).split())[:300]})", what, remedy) from None
    net.eval().requires_grad_(False)
