"""Tensors as kernels see them: where their elements are, and what somebody wants to see of what is done with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.overrides import has_torch_function_unary

from anypool import _native
from anypool.backends import asked_for
from anypool.limits import require
from anypool.tensors import plain
from anypool.tensors.kernels import address_of
from anypool.tensors.spec import NUMPY
from anypool.token_matrix import Matrix, matrix_at, matrix_of

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_forward_mode = torch.autograd.forward_ad
_functorch: Any = torch._C._functorch
_transformed: Any = torch._C._are_functorch_transforms_active


class Memory:
    """A contiguous tensor as kernels see the arrays they write into."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.nbytes = tensor, tensor.numel() * tensor.element_size()
        self.__array_interface__ = {"data": (tensor.data_ptr(), False)}
        self.shape, self.dtype, self.itemsize = tuple(tensor.shape), NUMPY[tensor.dtype], tensor.element_size()
        self.strides = tuple(s * self.itemsize for s in tensor.stride())

    def __len__(self) -> int:
        return int(self.shape[0])


def followed() -> bool:
    """Whether a transform or forward mode follows what is done with tensors."""
    return bool(_transformed()) or _forward_mode._current_level >= 0


def composed(x: torch.Tensor) -> bool:
    """Whether x is to be pooled in torch operations: on another device, transformed, or with a tangent."""
    transformed = _transformed() and not torch.compiler.is_compiling()
    return plain.elsewhere(x) or transformed or _forward_mode._current_level >= 0


def matrix_of_tensor(x: torch.Tensor) -> Matrix:
    """As `anypool.token_matrix.matrix_of`, for a tensor."""
    if x.dtype not in _FLOATS:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype} (x: {tuple(x.shape)})")
    if composed(x) and x.ndim >= 2 and x.shape[-1]:  # only its shape is of interest
        return matrix_at(0, NUMPY[x.dtype], tuple(x.shape), (0,) * x.ndim, None)
    if not writes_natively() or x.ndim < 2 or x.shape[-1] == 0:  # by way of an array, which has the errors too
        return matrix_of(as_array(x))
    return matrix_at(address_of(x), NUMPY[x.dtype], tuple(x.shape), x.stride(), x.detach())


def watched(x: torch.Tensor) -> bool:
    """Whether somebody wants to see the operator: a class, a mode or a tracer."""
    return has_torch_function_unary(x) or not plain.is_plain(x) or torch._C._get_tracing_state() is not None


def writes_natively() -> bool:
    """Whether kernels of ours write into tensors' own memory."""
    return bool(_native.isa()) and asked_for() != "reference"


def as_array(t: torch.Tensor | None) -> Any:
    """Return a tensor's values as an array, which shares its memory if it can; bfloat16 as float32."""
    if t is None:
        return None
    if t.requires_grad or t.device.type != "cpu":
        t = t.detach().cpu()
    return (t.float() if t.dtype == torch.bfloat16 else t.resolve_neg()).numpy()


def as_numbers(t: torch.Tensor | None, x: torch.Tensor) -> Any:
    """What goes with the tokens, to be checked: only its shape where operations on tensors will read it."""
    if t is None or not composed(x):
        return as_array(t)
    name = "float32" if t.dtype == torch.bfloat16 else str(t.dtype).removeprefix("torch.")  # of any kind, complex too
    return np.zeros(tuple(t.shape), name)


def known_values(name: str, t: torch.Tensor | None) -> Any:
    """The values of what says which tokens count, whatever transforms the tokens."""
    if t is None or not _transformed():
        return as_array(t)
    while _functorch.is_gradtrackingtensor(t):
        t = _functorch.get_unwrapped(t)
    try:
        with torch._C._DisableFuncTorch():
            return as_array(t)
    except RuntimeError:
        raise NotImplementedError(f"{name} must not be batched by vmap: which tokens count must be known") from None


def wide(x: torch.Tensor) -> torch.dtype:
    """Return the dtype that x is added up in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def empty_result(shape: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """Return memory for a result; where it does not fit PyTorch would be killed as it is written."""
    require(math.prod(shape) * x.element_size(), f"a result of shape {shape}", f"x: {tuple(x.shape)}")
    return torch.empty(shape, dtype=x.dtype)


def write(to: torch.Tensor, run: Any) -> None:
    """Let a kernel write a gradient into a tensor, or the reference backend into an array that is copied there."""
    rows = (math.prod(to.shape[:-1]), to.shape[-1])
    if writes_natively():
        run(Memory(to))
    else:
        array = np.empty(rows, str(wide(to)).removeprefix("torch."))
        run(array)
        to.copy_(torch.from_numpy(array).view(to.shape))
