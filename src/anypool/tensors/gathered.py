"""Reductions that need every input of a window at once: the NumPy code on a tensor's memory, known to autograd.

For tensors of the CPU, with first gradients. What compiles or has no data gets operators (`counted`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import Function

from anypool import gathering
from anypool.backends import Array, gathered, select
from anypool.operation import Description, Problem, Selection, pooled_axes, resolve
from anypool.reductions import BFLOAT16, REDUCTIONS
from anypool.tensors import autograd
from anypool.tensors.plain import is_plain, needs_operators
from anypool.tensors.spec import TORCH, Memory, Origin, Spec, channels_last, dense, memory, spec_of


class Left(NamedTuple):
    """What is left out beside masked inputs, and what a window is worth in which nothing counts."""

    omit_nan: bool = False
    empty: Any = None


NAMES = frozenset(name for name, reduction in REDUCTIONS.items() if reduction.function is not None)


def needs_whole_windows(what: Description) -> bool:
    """Return whether a call belongs here."""
    return isinstance(what.reduction, str) and what.reduction in NAMES


def problem_of(x: torch.Tensor, what: Description) -> tuple[Memory, Problem]:
    """Return the resolved problem, and what it is resolved for; or say why there is none for this tensor."""
    if x.device.type != "cpu":
        raise NotImplementedError(
            f"{what.reduction!r} pooling of tensors runs on the CPU, got x on {x.device} (x: {tuple(x.shape)})"
        )
    at = memory(tuple(x.shape), x.stride(), x.dtype)
    problem = resolve(at, what)  # type: ignore[arg-type]
    select(problem.job, at)  # type: ignore[arg-type]  # a backend that was asked for may be one that cannot
    return at, problem


def run(x: torch.Tensor, what: Description, generator: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the pooled tensor, and the indices if they are asked for."""
    if generator is None and needs_operators(x):
        from anypool.tensors import counted  # which imports this module

        every = Selection(None, None, "propagate", None, return_valid=False)
        y: torch.Tensor = counted.pool(x, what, every)
        return y, None
    if torch.compiler.is_compiling():
        from anypool.tensors.uncompiled import run_eagerly

        result: tuple[torch.Tensor, torch.Tensor | None] = run_eagerly(x, what, generator)
        return result
    return eager(x, what, generator)


def eager(x: torch.Tensor, what: Description, generator: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do what `run` says, for a tensor that can be looked into."""
    _, problem = problem_of(x, what)
    where = f"x: {tuple(x.shape)}"
    what = _named_axes(x, what)
    draws = gathering.drawn(problem, generator)
    if draws is not None:
        choice = spec_of(what._replace(reduction="max"), x.shape, where)
        y, _, indices = autograd.apply(Drawn, x, what, choice, draws)
        return y, indices if problem.return_indices else None
    return autograd.apply(Whole, x, None, what, Left()), None


def selected(x: torch.Tensor, mask: torch.Tensor | None, what: Description, left: Left,
             generator: Any) -> torch.Tensor:  # fmt: skip
    """Return the pooled tensor of the inputs that count; of a reduction that draws, the indices of what was drawn."""
    _, problem = problem_of(x, what)
    what = _named_axes(x, what)
    draws = gathering.drawn(problem, generator)
    if draws is None:
        y: torch.Tensor = autograd.apply(Whole, x, mask, what, left)
        return y
    indices: torch.Tensor = autograd.apply(Places, x, mask, what._replace(return_indices=True), left, draws)
    return indices


def _named_axes(x: torch.Tensor, what: Description) -> Description:
    """Return the description with its axes in numbers, to which one in front can be added."""
    axes = pooled_axes(tuple(x.shape), what, f"x: {tuple(x.shape)}")
    return what._replace(axes=axes, data_format="channels_first")


# ---- memory ----------------------------------------------------------------------------------------------------------


def _widen(bits: Array) -> Array:
    """Make float32 of bfloat16, its upper half."""
    wide: Array = np.left_shift(bits.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return wide


def _array(x: torch.Tensor) -> Array:
    """Return a tensor's memory as an array; bfloat16 as its bits."""
    if not is_plain(x):
        raise NotImplementedError(
            f"x must be memory of the CPU for reductions of whole windows, got a {type(x).__name__} "
            f"that is wrapped, traced or fake (x: {tuple(x.shape)})"
        )
    if x.dtype is torch.bfloat16:
        x = x.view(torch.int16)
    array: Array = x.detach().numpy()
    return array


def _source(x: torch.Tensor, mask: torch.Tensor | None = None, omit_nan: bool = False) -> gathered.Source:
    counted = None if mask is None else _array(mask)
    return gathered.Source(_array(x), counted, omit_nan, _widen if x.dtype is torch.bfloat16 else None)


def _written(x: torch.Tensor, what: Description) -> Problem:
    """Return the problem with the dtype in which NumPy writes its results."""
    _, problem = problem_of(x, what)
    if problem.job.result is not BFLOAT16:
        return problem
    return replace(problem, job=problem.job.changed(result=np.dtype(np.float32)))


def _room(x: torch.Tensor, shape: tuple[int, ...], dtype: Any) -> tuple[torch.Tensor, Array]:
    """Return a new tensor that lies as results for x do, and an array to write: its memory, or floats to be rounded."""
    y = x.new_empty_strided(shape, dense(shape, channels_last(x)), dtype=TORCH[dtype.name])
    if dtype is BFLOAT16:
        return y, np.empty(shape, np.float32)
    return y, y.numpy()


def _filled(y: torch.Tensor, array: Array) -> torch.Tensor:
    return y.copy_(torch.from_numpy(array)) if y.dtype is torch.bfloat16 else y


# ---- functions -------------------------------------------------------------------------------------------------------


class Whole(Function):
    """A reduction whose gradient is a function of the windows."""

    @staticmethod
    def forward(x: Any, mask: Any, what: Description, left: Left) -> Any:
        _, problem = problem_of(x, what)
        source = _source(x, mask, left.omit_nan)
        y, array = _room(x, problem.shape, problem.job.result)
        gathering.pool(_written(x, what), source, array, empty=left.empty)
        return _filled(y, array)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, mask, ctx.what, ctx.left = inputs
        if not output.is_floating_point():
            ctx.mark_non_differentiable(output)
        ctx.save_for_backward(x, mask)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, mask = ctx.saved_tensors
        return autograd.apply(WholeBackward, grad, x, mask, ctx.what, ctx.left), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, mask: Any, what: Description, left: Left) -> Any:
        x, mask = _in_front(info, in_dims, x, mask)
        return autograd.apply(Whole, x, mask, _batched(what), left), 0


class WholeBackward(Function):
    """The first gradient; there is none of it."""

    @staticmethod
    def forward(grad: Any, x: Any, mask: Any, what: Description, left: Left) -> Any:
        _, problem = problem_of(x, what)
        source, given = _source(x, mask, left.omit_nan), _array(grad.float() if grad.dtype is torch.bfloat16 else grad)
        grad_x, array = _room(x, tuple(x.shape), problem.dtype)
        gathered.pull(problem.job, given, source, array)
        return _filled(grad_x, array)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.what = inputs[3]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{ctx.what.reduction!r} pooling has first gradients only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad: Any, x: Any, mask: Any, what: Description, left: Left) -> Any:
        grad, x, mask = _in_front(info, in_dims, grad, x, mask)
        return autograd.apply(WholeBackward, grad, x, mask, _batched(what), left), 0


def _in_front(info: Any, in_dims: Any, *tensors: Any) -> list[Any]:
    """Return the tensors with the axis that vmap batches in front."""
    dims = in_dims[: len(tensors)]
    return [None if t is None else autograd.front(t, d, info.batch_size) for t, d in zip(tensors, dims, strict=True)]


def _batched(what: Description) -> Description:
    return what._replace(axes=tuple(a + 1 for a in what.axes))


class Drawn(Function):
    """Stochastic pooling, the offsets and the indices of what was drawn; the drawn inputs take the gradient."""

    @staticmethod
    def forward(x: Any, what: Description, choice: Spec, draws: Array) -> Any:
        _, problem = problem_of(x, what)
        source = _source(x)
        y, array = _room(x, problem.shape, problem.job.result)
        problem = _written(x, what)
        codes, offsets = _room(x, problem.shape, problem.coded.code_dtype())
        indices, flat = _room(x, problem.shape, np.dtype(np.int64))
        gathering.pool(problem, source, array, codes=offsets, draws=draws, as_offsets=True)
        if problem.return_indices:
            gathering.pool(problem, source, array, codes=flat, draws=draws)
        return _filled(y, array), codes, indices

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, _, ctx.choice, _ = inputs
        y, codes, indices = output
        ctx.mark_non_differentiable(codes, indices, *([] if y.is_floating_point() else [y]))
        ctx.save_for_backward(codes)
        ctx.origin = Origin.of(x)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        (codes,) = ctx.saved_tensors
        return autograd.select_backward(grad, codes, ctx.origin, ctx.choice), None, None, None


class Places(Function):
    """The indices of what stochastic pooling draws from the inputs that count, -1 where none does."""

    @staticmethod
    def forward(x: Any, mask: Any, what: Description, left: Left, draws: Array) -> Any:
        problem, source = _written(x, what), _source(x, mask, left.omit_nan)
        indices, flat = _room(x, problem.shape, np.dtype(np.int64))
        values = np.empty(problem.shape, problem.job.result)
        gathering.pool(problem, source, values, codes=flat, draws=draws, empty=left.empty)
        return indices

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, None, None, None, None
