"""PyTorch, eager and compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import threads
from benchmarks.ours import Array, Subject, channels_first, channels_last_again
from benchmarks.peers.prepared import Prepared, Results, pointed_at
from benchmarks.rows import CHANNELS_LAST, Row


@functools.cache
def torch() -> Any:
    import torch

    torch.set_num_threads(threads())
    return torch


def _tensor(array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return torch().from_numpy(array.view(np.int16)).view(torch().bfloat16)
    return torch().from_numpy(array)


def _array(tensor: Any) -> Array:
    tensor = tensor.detach()
    if tensor.dtype == torch().bfloat16:
        import ml_dtypes

        return tensor.view(torch().int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def _torch_function(row: Row) -> Callable[[Any], Any] | None:
    F = torch().nn.functional
    if row.output_size:
        adaptive = getattr(F, f"adaptive_{row.reduction}_pool{row.rank}d")
        return lambda t: adaptive(t, row.output_size)
    if row.reduction == "logsumexp" or (row.reduction == "lp" and np.isinf(row.norm_type)):
        return None
    function = getattr(F, f"{row.reduction}_pool{row.rank}d")
    if row.reduction == "lp":
        return lambda t: function(t, row.norm_type, row.kernel, row.stride, row.ceil)
    if row.reduction == "avg":
        return lambda t: function(t, row.kernel, row.stride, row.padding, row.ceil)
    indices = row.mode == "indices"
    return lambda t: function(t, row.kernel, row.stride, row.padding, row.dilation, row.ceil, indices)


def _prepare_torch(made: Subject, compiled: bool) -> Prepared | None:
    row, function = made.row, _torch_function(made.row)
    if function is None or (made.x.dtype.kind in "iu" and row.reduction != "max"):
        return None
    if row.reduction == "max" and 2 * row.padding > row.kernel:
        return None  # "pad should be smaller than or equal to half of kernel size", whatever the dilation
    if made.x.dtype.kind in "iu" and (row.output_size or row.order == CHANNELS_LAST or compiled):
        return None  # refused by PyTorch 2.13, or (compiled, channels-first) the same kernel as eager
    if compiled:
        torch()._dynamo.reset()
        torch()._functorch.config.donated_buffer = False  # the gradient is asked for again and again
        function = torch().compile(function, dynamic=False)
    x = _tensor(channels_first(row, made.x))
    if row.mode == "backward":
        assert made.grad is not None
        x.requires_grad_(True)
        y, g = function(x), _tensor(channels_first(row, made.grad))

        def backward() -> Any:
            return torch().autograd.grad(y, x, g, retain_graph=True)[0]

        return Prepared(backward, lambda: (channels_last_again(row, _array(backward())),))
    if row.mode == "training":
        x.requires_grad_(True)
        return Prepared(lambda: function(x), lambda: (_array(function(x)),))

    def forward() -> Any:
        with torch().inference_mode():
            return function(x)

    def results() -> Results:
        y = forward()
        if row.mode == "indices":
            return _array(y[0]), pointed_at(made.x, _array(y[1]))
        return (channels_last_again(row, _array(y)),)

    return Prepared(forward, results)


def pytorch(made: Subject) -> Prepared | None:
    """PyTorch eager, in the memory format that the row has."""
    return _prepare_torch(made, compiled=False)


def torch_compile(made: Subject) -> Prepared | None:
    """``torch.compile``, for exactly these shapes."""
    return _prepare_torch(made, compiled=True)
