"""Calls of the reductions that need every input of a window at once: their results, draws, errors and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool.arguments import shown
from anypool.backends import gathered, select
from anypool.backends.gathered import Source
from anypool.memory import empty_like
from anypool.operation import Call, Problem, output, pullback_of
from anypool.reductions import is_float

Array = npt.NDArray[Any]


def run(problem: Problem, call: Call, y: Array) -> Any:
    """Return the pooled array, or the pair (array, indices); ``y`` is where the result belongs."""
    select(problem.job, call.x)  # a backend that was asked for may be one that cannot
    draws, own = drawn(problem, call.generator), call.out is None
    if not problem.return_indices:
        pool(problem, Source(call.x), y, draws=draws, own=own)
        return y
    indices = empty_like(y, np.dtype(np.int64), y.shape)
    pool(problem, Source(call.x), y, codes=indices, draws=draws, own=own)
    return y, indices


def drawn(problem: Problem, generator: Any) -> Array | None:
    """Return one number for each element of the result, in row-major order, if the reduction draws."""
    function = problem.reduction.function
    if function is None or not function.draws:
        return None
    if not isinstance(generator, np.random.Generator):
        raise TypeError(
            f"generator must be a numpy.random.Generator for {problem.reduction.name!r}, got {shown(generator)}; "
            f"without chance: pool(x * x, 'sum', …) / pool(x, 'sum', …)"
        )
    return generator.random(problem.shape)


def pool(problem: Problem, source: Source, y: Array, *, codes: Array | None = None, draws: Array | None = None,
         as_offsets: bool = False, empty: Any = None, own: bool = True) -> Array:  # fmt: skip
    """Write the result, and the chosen inputs: their indices, or their offsets in the windows. Return the counts.

    A window in which nothing counts gives ``empty``; without such a value it is an error, and nothing is written. Nor
    is a part of the result into a y that is not our own.
    """
    job = problem.coded if as_offsets else problem.job
    counts = empty_like(y, np.dtype(np.int64), problem.shape)
    assert job.function is not None
    may_fail = job.function.draws or (
        empty is None and not is_float(job.result)
    )  # negative inputs; no value for nothing
    whole = empty_like(y, job.result, y.shape) if may_fail or not own else y
    with np.errstate(all="ignore"):
        gathered.run(job, source, whole, codes=codes, counts=counts, draws=draws)
    nothing = counts == 0
    if nothing.any():
        if empty is None:
            place = tuple(int(i) for i in np.argwhere(nothing)[0])
            names = ["mask"] * (source.mask is not None) + ["nan"] * source.omit_nan + ["ignore"] * bool(job.ignore)
            left_out = " and ".join(names or ["padding"])
            raise ValueError(
                f"{left_out} must leave every window some input, or empty= give a value: window {place} has none "
                f"(x: {source.x.shape})"
            )
        np.copyto(whole, empty, where=nothing)
        if codes is not None and not as_offsets:
            np.copyto(codes, -1, where=nothing)
    if whole is not y:
        y[...] = whole
    return counts


def _beside(problem: Problem) -> int:
    return 16 + 8 * problem.return_indices  # counts, draws, indices


def differentiate(problem: Problem, call: Call) -> tuple[Any, Callable[..., Array]]:
    """Return (result, pullback)."""
    x = call.x
    y = output(problem, x, call.out, _beside(problem))
    select(problem.job, x)
    if problem.reduction.selects:
        return _select(problem, call, y)
    pool(problem, Source(x), y, own=call.out is None)
    return y, pullback_of(x, y, lambda g, grad_x: gathered.pull(problem.job, g, Source(x), grad_x), x=x)


def _select(problem: Problem, call: Call, y: Array) -> tuple[Any, Callable[..., Array]]:
    """The chosen inputs take the gradient."""
    x, draws = call.x, drawn(problem, call.generator)
    codes = empty_like(x, problem.coded.code_dtype(), problem.shape)
    pool(problem, Source(x), y, codes=codes, draws=draws, as_offsets=True, own=call.out is None)
    result: Any = y
    if problem.return_indices:
        indices = empty_like(y, np.dtype(np.int64), y.shape)
        pool(problem, Source(x), y, codes=indices, draws=draws)
        result = y, indices
    backward = chosen(problem)

    def gradient(g: Array, grad_x: Array) -> None:
        select(backward, g)[0].select_backward(backward, g, codes, grad_x)

    return result, pullback_of(x, y, gradient)


def chosen(problem: Problem) -> Any:
    """Return the pass whose backward is that of a choice: which inputs were chosen is all that it reads."""
    return problem.coded.changed(function=None, merge="max")
