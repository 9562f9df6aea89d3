"""Poolings in which not every input counts, or that need whole windows, for what sees shapes without data.

`torch.compile`, `torch.export` and fake tensors get two operators: ``anypool::pool_counted`` runs what a plain tensor
runs; its gradient ``pool_counted_backward`` runs that once more and asks autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import Function

from anypool import selection as arrays
from anypool.arguments import flag_argument, number_argument, shown
from anypool.operation import Description, Selection, ignored, reduction_of
from anypool.tensors import autograd, kernels, operators, selection
from anypool.tensors.spec import SCHEMA, Spec, channels_last, spec_of

_GIVEN = "bool omit_nan, Scalar? empty, int[] ignore, bool return_indices, bool return_valid"
_TENSORS = "Tensor x, Tensor? mask, Tensor? weights"


class Given(NamedTuple):
    """What the operators are told beside a `Spec`, in the order of ``_GIVEN``."""

    omit_nan: bool = False
    empty: Any = None
    ignore: tuple[int, ...] = ()
    return_indices: bool = False
    return_valid: bool = False

    def selection(self, mask: Any, weights: Any) -> Selection:
        """Return it as the rest of the package reads it."""
        return Selection(mask, weights, "omit" if self.omit_nan else "propagate", self.empty, self.return_valid)

    def description(self, spec: Spec) -> Description:
        """Return the description of a call."""
        what = spec.description()._replace(return_indices=self.return_indices, may_be_empty=self.empty is not None)
        if spec.reduction == "largest":
            return what._replace(reduction="lp")
        return what._replace(parameter=(("ignore", self.ignore),)) if spec.reduction == "mode" else what


def pool(x: torch.Tensor, what: Description, given: Selection) -> Any:
    """Return the pooled tensor, then the indices and the counts if they are asked for."""
    where = "x: a tensor that is traced"
    if not isinstance(given.nan, str) or given.nan not in ("propagate", "omit"):
        raise ValueError(f'nan must be "propagate" or "omit", got {shown(given.nan)} ({where})')
    mask, weights = (_tensor(name, a, x, where) for name, a in (("mask", given.mask), ("weights", given.weights)))
    if weights is not None and not x.is_floating_point():
        x = x.double()
    spec = spec_of(what, x.shape, where)
    reduction, _ = reduction_of(what, where)
    indices = flag_argument("return_indices", what.return_indices, where)
    valid = flag_argument("return_valid", given.return_valid, where)
    empty = given.empty
    if isinstance(empty, bool) and (x.dtype is torch.bool or reduction.lift == "nonzero"):
        empty = int(empty)  # a bool is no number for a trace
    elif empty is not None and not isinstance(empty, bool):
        number_argument("empty", empty, where)
    more = Given(given.nan == "omit", empty, ignored(what, reduction, where), indices, valid)
    y, places, counts = torch.ops.anypool.pool_counted(x, mask, weights, *more, *spec)
    results = [y, *([places] if indices else []), *([counts] if valid else [])]
    if not what.keepdims:
        for axis in reversed(spec.axes):
            results = [t.squeeze(axis) for t in results]
    return tuple(results) if len(results) > 1 else results[0]


def _tensor(name: str, value: Any, x: torch.Tensor, where: str) -> torch.Tensor | None:
    if value is None:
        return None
    if not isinstance(value, torch.Tensor):
        if not isinstance(value, (np.ndarray, list, tuple, bool, int, float)):
            raise TypeError(f"{name} must be a tensor or an array, got {shown(value)} ({where})")
        return torch.as_tensor(value).to(x.device)
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device} ({where})")
    return value


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _nothing(x: Any) -> Any:
    """Return what stands where nothing was asked for."""
    return x.new_empty(0, dtype=torch.int64)


def _run(x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> tuple[Any, ...]:
    """Pool as for a call that nobody watches; what is not asked for is empty."""
    found = selection.unwatched(x, given.description(spec), given.selection(mask, weights), None, None)
    results = iter(found if isinstance(found, tuple) else (found,))
    y = operators.like(x, next(results))
    asked = (given.return_indices, given.return_valid)
    return y, *(operators.like(x, next(results)) if wanted else _nothing(x) for wanted in asked)


def _fake(x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> tuple[Any, ...]:
    shape, at, problem = operators.outline(x, spec, given.description)
    if all(isinstance(n, int) for t in (x, mask, weights) if t is not None for n in t.shape):
        selection.check(x, at, problem, given.selection(mask, weights))
    last = channels_last(x)
    y = operators.empty(shape, x, kernels.torch_dtype(problem.job.result, x.dtype), last)
    asked = (given.return_indices, given.return_valid)
    return y, *(operators.empty(shape, x, torch.int64, last) if wanted else _nothing(x) for wanted in asked)


def _pull(grad: Any, x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> tuple[Any, Any]:
    """Return the gradients of x and of the weights, which are empty where they have none."""
    what = given.description(spec)._replace(return_indices=False)
    weighs = weights is not None and weights.is_floating_point()
    x = x.detach().requires_grad_()
    weights = weights.detach().requires_grad_() if weighs else weights
    with _recording():
        y = selection.unwatched(x, what, given._replace(return_valid=False).selection(mask, weights), None, None)
        of_x, *of_weights = torch.autograd.grad(y, (x, weights) if weighs else (x,), grad)
    return operators.like(x, of_x), of_weights[0].contiguous() if weighs else x.new_empty(0)


@contextmanager
def _recording() -> Iterator[None]:
    """Let autograd record inside of a kernel, where the dispatcher leaves it out."""
    left_out = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradCPU", "AutogradOther", "AutogradFunctionality", "ADInplaceOrView"):
        left_out = left_out.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), left_out), torch.enable_grad():
        yield


def _fake_pull(grad: Any, x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> tuple[Any, Any]:
    weighs = weights is not None and weights.is_floating_point()
    of_x = operators.empty(x.shape, x, x.dtype, channels_last(x))
    return of_x, weights.new_empty(weights.shape) if weighs else x.new_empty(0)


# ---- what autograd knows ---------------------------------------------------------------------------------------------


def _below(name: str, *tensors: Any, given: Given, spec: Spec) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.anypool, name).default(*tensors, *given, *spec)


class Pool(Function):
    """The pooled tensor; its gradient is `Pull`."""

    @staticmethod
    def forward(x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> Any:
        return _below("pool_counted", x, mask, weights, given=given, spec=spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, mask, weights, ctx.given, ctx.spec = inputs
        y, *others = output
        ctx.mark_non_differentiable(*others, *([] if y.is_floating_point() else [y]))
        ctx.save_for_backward(x, mask, weights)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        of_x, of_weights = autograd.apply(Pull, grad, *ctx.saved_tensors, ctx.given, ctx.spec)
        return of_x, None, of_weights if ctx.needs_input_grad[2] else None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched("pool_counted", 3, info, in_dims, *args[:3], *args[3], *args[4])


class Pull(Function):
    """The gradients of x and of the weights; there are none of these."""

    @staticmethod
    def forward(grad: Any, x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> Any:
        return _below("pool_counted_backward", grad, x, mask, weights, given=given, spec=spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.spec = inputs[5]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            f"{ctx.spec.reduction!r} pooling with mask, nan or empty has first gradients only where it is compiled"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched("pool_counted_backward", 4, info, in_dims, *args[:4], *args[4], *args[5])


def _pool_recorded(x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> Any:
    return autograd.apply(Pool, x, mask, weights, given, spec)


def _pull_recorded(grad: Any, x: Any, mask: Any, weights: Any, given: Given, spec: Spec) -> Any:
    return autograd.apply(Pull, grad, x, mask, weights, given, spec)


def _batched(operator: str, tensors: int, info: Any, in_dims: Any, *args: Any) -> Any:
    """Move what vmap batches to the front: one more axis that is not pooled."""
    n, rest = info.batch_size, args[tensors:]
    pairs = zip(args[:tensors], in_dims, strict=False)
    front: list[Any] = [None if t is None else autograd.front(t, d, n) for t, d in pairs]
    *whole, mask, weights = front
    shape = tuple(whole[-1].shape[1:])  # of x
    parts = [
        None if t is None else t.reshape(n, *arrays.broadcast_shape(name, tuple(t.shape[1:]), shape))
        for name, t in (("mask", mask), ("weights", weights))
    ]
    size = len(Given._fields)
    results = getattr(torch.ops.anypool, operator)(*whole, *parts, *rest[:size], *Spec.of(rest[size:]).batched())
    if results[1].shape[:1] == (n,) and len(whole) > 1:  # the gradient of the weights
        results = (results[0], results[1].reshape(weights.shape))
    return results, tuple(0 if t.shape[:1] == (n,) else None for t in results)  # what was not asked for is empty


def _define(name: str, tensors: str, results: str, native: Any, fake: Any, recorded: Any) -> None:
    count, size = tensors.count("Tensor"), len(Given._fields)

    def unpacked(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            omit_nan, empty, ignore, *flags = args[count : count + size]
            given = Given(omit_nan, empty, tuple(ignore), *flags)
            return kernel(*args[:count], given, Spec.of(args[count + size :]))

        return call

    def batched(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(name, count, info, in_dims, *args)

    schema = f"({tensors}, {_GIVEN}, {SCHEMA}) -> {results}"
    operators.define(name, schema, batched, *map(unpacked, (native, native, fake, recorded)))


_define("pool_counted", _TENSORS, "(Tensor, Tensor, Tensor)", _run, _fake, _pool_recorded)
_define("pool_counted_backward", f"Tensor grad, {_TENSORS}", "(Tensor, Tensor)", _pull, _fake_pull, _pull_recorded)
