"""Where tensors are, and which are no more than memory of this machine: kernels run on that without a dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from anypool import _native

_KEY = torch._C.DispatchKey
_keys = torch._C._dispatch_keys
_modes = torch._C._len_torch_dispatch_stack


def _set(*names: str) -> int:
    keys = torch._C.DispatchKeySet(getattr(_KEY, names[0]))
    for name in names[1:]:
        keys = keys | torch._C.DispatchKeySet(getattr(_KEY, name))
    value: int = keys.raw_repr()
    return value


# A tensor's keys say all at once: its device, its layout, whether its values are conjugated, negated or zeros without
# memory, named, nested, wrapped by a transform or a class of somebody's. Every other tensor has more keys, or others.
PLAIN = frozenset({
    _set("CPU", "AutocastCPU"),  # made in inference mode
    _set("CPU", "AutocastCPU", "ADInplaceOrView", "AutogradCPU"),
})  # fmt: skip


def is_plain(x: Any) -> bool:
    """Return whether x is memory of this machine, and nobody watches what is done with it."""
    return _keys(x).raw_repr() in PLAIN and not _modes()


# As kernels that are called without Python see them. Nothing is followed while all of these return nothing.
TENSORS = _native.Tensors(
    torch.Tensor,
    getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
    (
        torch._C._is_torch_function_mode_enabled,
        _modes,
        torch._C._get_tracing_state,
        torch._C._are_functorch_transforms_active,
    ),
    is_plain,
    torch.is_grad_enabled,
    vars(torch.autograd.forward_ad),
)


def elsewhere(x: torch.Tensor) -> bool:
    """Return whether x is on a device that we have no kernels for; fake and meta tensors have an operator."""
    return x.device.type not in ("cpu", "meta")


def needs_operators(x: torch.Tensor) -> bool:
    """Return whether somebody sees x who knows operators only: a compiler, a tracer, a mode; or it has no data."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    if elsewhere(x) or is_plain(x) or x.layout is not torch.strided or x.is_nested or x.is_quantized:
        return False
    return not torch._C._are_functorch_transforms_active() and not is_traceable_wrapper_subclass(x)


def array_of(x: torch.Tensor) -> Any:
    """Return a plain tensor's memory as an array, also inside of a transform of something else."""
    if not torch._C._are_functorch_transforms_active():
        return x.detach().numpy()
    with torch._C._DisableFuncTorch():
        return x.detach().numpy()


def has_tangent(x: torch.Tensor) -> bool:
    """Return whether forward mode follows x: nothing else about a tensor tells it."""
    forward = torch.autograd.forward_ad
    return forward._current_level >= 0 and forward.unpack_dual(x).tangent is not None
