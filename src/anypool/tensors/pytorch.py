"""PyTorch's own operator for a call, where there is one: for what our kernels do not serve."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from anypool.operation import Description
from anypool.tensors import plain


class Own(NamedTuple):
    """An operator of PyTorch with the arguments of a call."""

    name: str
    function: Any
    args: tuple[Any, ...]
    indices: bool
    squeeze: int = 0  # trailing axes of size one that the caller does not want

    def __call__(self, x: torch.Tensor) -> Any:
        """Return what PyTorch returns."""
        y = self.function(x, *self.args)
        if not self.squeeze:
            return y
        return tuple(t.flatten(-self.squeeze - 1) for t in y) if self.indices else y.flatten(-self.squeeze - 1)


def _originals() -> dict[str, Any]:
    names = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "max_unpool", "fractional_max_pool")
    found = {f"{n}{r}d": getattr(functional, f"{n}{r}d", None) for n in names for r in (1, 2, 3)}
    return {name: function for name, function in found.items() if function is not None}


ORIGINALS = _originals()  # as they are before `anypool.torch.install` routes them to us


def deterministic_elsewhere(x: torch.Tensor) -> bool:
    """Whether x must have deterministic gradients that PyTorch's poolings only have on CPUs."""
    return bool(plain.elsewhere(x) and torch.are_deterministic_algorithms_enabled())


def own(x: torch.Tensor, what: Description, out: Any = None) -> Own | str:
    """Return PyTorch's operator for a call, or why there is none."""
    if what.data_format != "channels_first":
        return "PyTorch has no operator for channels_last names"
    if not (what.dtype is None or what.dtype == x.dtype) or out is not None:
        return "PyTorch's operators take no dtype= or out="
    if not (x.is_floating_point() or x.is_quantized):
        return f"PyTorch pools no {x.dtype}"
    if deterministic_elsewhere(x):
        return f"PyTorch's poolings have no deterministic gradients on {x.device.type}"
    name, args = what.function, what.geometry_args
    if what.reduction not in ("max", "mean"):
        return f"PyTorch has no operator like {name} for {what.reduction}"
    if what.geometry == "global":
        rank = x.ndim - 2
        if rank not in (1, 2, 3):
            return f"PyTorch pools no {rank} axes at once"
        kind = "max" if what.reduction == "max" else "avg"
        name, args = f"adaptive_{kind}_pool{rank}d", (1, True) if what.return_indices else (1,)
        return Own(name, ORIGINALS[name], args, bool(what.return_indices), 0 if what.keepdims else rank)
    if name not in ORIGINALS:
        return f"PyTorch has no operator like {name}" if name != "pool" else "pool takes more than PyTorch's operators"
    if what.geometry == "adaptive":
        args = (*args, what.return_indices) if "max" in name else args
        return Own(name, ORIGINALS[name], args, bool(what.return_indices))
    kernel, stride, padding, dilation, ceil = args
    if not _small(padding, kernel, what.rank or 0):
        return "PyTorch takes the same padding on both sides, at most half the kernel"
    if "max" in name:
        args = (kernel, stride, padding, dilation, ceil, what.return_indices)
        return Own(name, ORIGINALS[name], args, bool(what.return_indices))
    if dilation not in (1, (1,) * (what.rank or 0), [1] * (what.rank or 0)):
        return "PyTorch's averages take no dilation"
    args = (kernel, stride, padding, ceil, what.count_include_pad)
    if what.divisor_override is not None:
        if what.rank == 1:
            return "PyTorch's avg_pool1d takes no divisor_override"
        args = (*args, what.divisor_override)
    return Own(name, ORIGINALS[name], args, indices=False)


def _small(padding: Any, kernel: Any, rank: int) -> bool:
    def each(v: Any) -> list[Any]:
        items = list(v) if isinstance(v, (tuple, list)) else [v] * rank
        return items * rank if len(items) == 1 else items

    pads, sizes = each(padding), each(kernel)
    if isinstance(padding, str) or not all(isinstance(p, int) for p in pads) or len(pads) != len(sizes):
        return False
    return all(2 * p <= k for p, k in zip(pads, sizes, strict=True))
