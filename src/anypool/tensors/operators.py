"""The operators that PyTorch knows: five for every rank, reduction and kind of window where every input counts.

``anypool::pool``, ``pool_with_codes`` (a max or min, and each winner's offset in its window) and the three backward
passes. Each has the native kernel on the CPU, torch operations on other devices, a fake kernel with exact shapes and
strides, and an autograd kernel whose backward is again one of the five.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from anypool.backends import torch as reference
from anypool.operation import Description, Problem, resolve
from anypool.tensors import autograd, codes, kernels
from anypool.tensors.spec import (
    NUMPY,
    SCHEMA,
    TORCH,
    Memory,
    Origin,
    Spec,
    channels_last,
    memory_format,
    problem_of,
)

_LIBRARY = torch.library.Library("anypool", "DEF")
_ORIGIN = "SymInt[] shape, ScalarType x_dtype, bool channels_last"
_SCHEMAS = {
    "pool": f"(Tensor x, {SCHEMA}) -> Tensor",
    "pool_with_codes": f"(Tensor x, {SCHEMA}) -> (Tensor, Tensor)",
    "sum_backward": f"(Tensor grad, {_ORIGIN}, {SCHEMA}) -> Tensor",
    "select_backward": f"(Tensor grad, Tensor codes, {_ORIGIN}, {SCHEMA}) -> Tensor",
    "power_backward": f"(Tensor grad, Tensor x, Tensor y, {SCHEMA}) -> Tensor",
}


# ---- in torch operations, for devices other than the CPU -------------------------------------------------------------


def _problem(x: Any, spec: Spec) -> Problem:
    return problem_of(Memory(tuple(x.shape), (), NUMPY[x.dtype]), spec)


def like(x: Any, y: Any) -> Any:
    """Return y in the order in memory that results for x have."""
    return y.contiguous(memory_format=memory_format(y.ndim, channels_last(x)))


def _pool(x: Any, spec: Spec) -> Any:
    return like(x, reference.run(_problem(x, spec).job, x)[0])


def _pool_with_codes(x: Any, spec: Spec) -> Any:
    y, winners = reference.run(_problem(x, spec).coded, x)
    return like(x, y), like(x, winners)


def _sum_backward(grad: Any, origin: Origin, spec: Spec) -> Any:
    y = kernels.sum_in_torch(grad, origin, spec)
    return y.contiguous(memory_format=memory_format(y.ndim, origin.channels_last))


def _power_backward(grad: Any, x: Any, y: Any, spec: Spec) -> Any:
    return like(x, autograd.pull(x, grad, spec))


# ---- fake ------------------------------------------------------------------------------------------------------------


def empty(shape: Sequence[Any], x: Any, dtype: Any, last: bool) -> Any:
    """Return a fake tensor for a result of x."""
    return torch.empty(list(shape), dtype=dtype, device=x.device, memory_format=memory_format(len(shape), last))


def outline(x: Any, spec: Spec, describe: Callable[[Spec], Description]) -> tuple[Sequence[Any], Memory, Problem]:
    """Return the shape of the result, and a problem with its dtypes: that of the call if all sizes are numbers."""
    known = all(isinstance(n, int) for n in (*x.shape, *spec.size, *spec.stride, *spec.padding, *spec.dilation))
    at = Memory(tuple(x.shape) if known else (1 << 20,) * x.ndim, (), NUMPY[x.dtype])
    problem = resolve(at, describe(spec if known else _any_size(spec)))  # type: ignore[arg-type]  # checks what it can
    return problem.shape if known else spec.outputs(x.shape), at, problem


def _results(x: Any, spec: Spec, *, coded: bool) -> list[Any]:
    shape, _, problem = outline(x, spec, Spec.description)
    last = channels_last(x)
    fakes = [empty(shape, x, kernels.torch_dtype(problem.job.result, x.dtype), last)]
    if not coded:
        return fakes
    if shape is problem.shape:
        code = TORCH[problem.coded.code_dtype().name]
    else:
        code = _code_dtype(math.prod(spec.taps(x.shape)))
    return [*fakes, empty(shape, x, code, last)]


def _any_size(spec: Spec) -> Spec:
    """Return a spec with the same dtypes and no sizes that could be wrong."""
    n = len(spec.axes)
    return spec._replace(geometry="adaptive", size=(1,) * n)


def _code_dtype(taps: int) -> Any:
    if taps <= 65535:
        return torch.uint8 if taps <= 255 else torch.uint16
    return torch.int32 if taps < 2**31 else torch.int64


# ---- one operator: arguments as the dispatcher gives them to what a kernel takes -------------------------------------


def _define(name: str, tensors: int, native: Any, elsewhere: Any, fake: Any, differentiable: Any) -> None:
    """Define one operator: how many tensors it takes first, and its kernels."""
    has_origin = "shape" in _SCHEMAS[name]

    def unpacked(kernel: Any) -> Any:
        def call(*args: Any) -> Any:
            given, rest = args[:tensors], args[tensors:]
            if not has_origin:
                return kernel(*given, Spec.of(rest))
            return kernel(*given, Origin(tuple(rest[0]), rest[1], rest[2]), Spec.of(rest[3:]))

        return call

    def batched(info: Any, in_dims: Any, *args: Any) -> Any:
        """Move what vmap batches to the front: one more axis that is not pooled."""
        n, rest = info.batch_size, args[tensors:]
        front = [autograd.front(t, d, n) for t, d in zip(args[:tensors], in_dims, strict=False)]
        if has_origin:
            front += Origin(tuple(rest[0]), rest[1], rest[2]).batched(n)
            rest = rest[3:]
        results = getattr(torch.ops.anypool, name)(*front, *Spec.of(rest).batched())
        return results, tuple(0 for _ in results) if isinstance(results, tuple) else 0

    kernels = [unpacked(kernel) for kernel in (native, elsewhere, fake, differentiable)]
    define(name, _SCHEMAS[name], batched, *kernels)


def define(name: str, schema: str, batched: Any, native: Any, elsewhere: Any, fake: Any, differentiable: Any) -> None:
    """Tell PyTorch of an operator, and the kernels that take its arguments."""
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, native, "CPU")
    _LIBRARY.impl(name, elsewhere, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiable, "Autograd")
    torch.library.register_fake(f"anypool::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"anypool::{name}", batched, lib=_LIBRARY)


_define("pool", 1, kernels.pool, _pool, lambda x, s: _results(x, s, coded=False)[0], autograd.pool)
_define("pool_with_codes", 1, kernels.pool_with_codes, _pool_with_codes,
        lambda x, s: tuple(_results(x, s, coded=True)), autograd.pool_with_codes)  # fmt: skip
_define("sum_backward", 1, kernels.sum_backward, _sum_backward,
        lambda g, o, s: empty(o.shape, g, o.dtype, o.channels_last), autograd.sum_backward)  # fmt: skip
_define("select_backward", 2, kernels.select_backward, codes.scatter,
        lambda g, c, o, s: empty(o.shape, g, o.dtype, o.channels_last), autograd.select_backward)  # fmt: skip
_define("power_backward", 3, kernels.power_backward, _power_backward,
        lambda g, x, y, s: empty(x.shape, x, x.dtype, channels_last(x)), autograd.power_backward)  # fmt: skip
