"""Masks, omitted NaNs, weights and empty windows for tensors.

A tensor in this machine's memory that records no gradient is pooled as the array that it is (`anypool.selection`).
Otherwise the same steps run as operations that autograd, compilers and other devices know.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from anypool import selection, tensors
from anypool.arguments import array_argument, shown
from anypool.backends import torch as reference
from anypool.operation import Call, Description, Problem, Selection
from anypool.reductions import BFLOAT16, find, is_float, neutral
from anypool.tensors import gathered
from anypool.tensors.kernels import torch_dtype
from anypool.tensors.plain import array_of, has_tangent, is_plain, needs_operators
from anypool.tensors.spec import NUMPY, TORCH, Memory
from anypool.windows import Sliding

_ROOM = 1 << 20  # elements that padding may always take: with it kernels run
_ARRAYS = frozenset(NUMPY) - {torch.bfloat16}  # dtypes that NumPy has


def run(x: torch.Tensor, what: Description, given: Selection, out: torch.Tensor | None, generator: Any) -> Any:
    """Return the pooled tensor, then the indices and the counts if they are asked for."""
    if generator is None and needs_operators(x) and not has_tangent(x):
        from anypool.tensors import counted  # which imports this module

        if out is not None:
            raise ValueError("out needs plain tensors of the CPU (x: a tensor that is traced)")
        return counted.pool(x, what, given)
    return unwatched(x, what, given, out, generator)


def unwatched(x: torch.Tensor, what: Description, given: Selection, out: torch.Tensor | None, generator: Any) -> Any:
    """Do the same for a tensor that only autograd may know."""
    where = f"x: {tuple(x.shape)}"
    given = _found(x, given, where)
    others = [a for a in (given.mask, given.weights) if isinstance(a, torch.Tensor)]
    reduction = find(what.reduction)
    followed = any(has_tangent(a) for a in (x, *others))
    recorded = torch.is_grad_enabled() and any(a.requires_grad for a in (x, *others)) and reduction.adjoint is not None
    if not x.is_floating_point():
        if x.is_complex():
            raise TypeError(f"x must be real numbers, got dtype {x.dtype} ({where})")
        if not is_plain(x):
            raise NotImplementedError(f"mask, nan and empty need floating-point tensors on {x.device}, got {x.dtype}")
        if given.weights is not None:
            x = x.double()
    values = (x, given.mask, given.weights, out)
    named = what._replace(dtype=NUMPY.get(what.dtype, what.dtype)) if isinstance(what.dtype, torch.dtype) else what
    if not recorded and not followed and all(_is_memory(a) for a in values):
        array, mask, weights, into = map(_array, values)
        result = selection.run(Call(array, named, into, given._replace(mask=mask, weights=weights), generator))
        parts = result if isinstance(result, tuple) else (result,)
        found = tuple(out if p is into and out is not None else _from_array(p, x) for p in parts)
        return found if isinstance(result, tuple) else found[0]
    if out is not None:
        raise ValueError(f"out needs plain tensors that record no gradient ({where})")
    if reduction.function is None:
        return _composed(x, what, given)
    if followed:
        raise NotImplementedError(
            f"{reduction.name!r} with mask, nan or empty has reverse-mode gradients only ({where})"
        )
    if torch.compiler.is_compiling():
        from anypool.tensors.uncompiled import whole_eagerly

        return whole_eagerly(x, named, given, generator)
    return whole(x, named, given, generator)


def check(x: torch.Tensor, at: Memory, problem: Problem, given: Selection) -> None:
    """Refuse what would be refused if x were pooled."""
    where = f"x: {at.shape}"
    _checked(at, problem, _found(x, given, where), where)


def _found(x: torch.Tensor, given: Selection, where: str) -> Selection:
    """Return the arguments with what is no tensor as an array."""
    given = given._replace(
        mask=_as_array("mask", given.mask, where), weights=_as_array("weights", given.weights, where)
    )
    for name, a in (("mask", given.mask), ("weights", given.weights)):
        if isinstance(a, torch.Tensor) and a.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {a.device} ({where})")
    return given


def _as_array(name: str, value: Any, where: str) -> Any:
    """Return what is no tensor as an array, or as it is if that is refused when its turn comes."""
    if value is None or isinstance(value, torch.Tensor):
        return value
    try:
        return array_argument(name, value, where)
    except (TypeError, ValueError):
        return value
    except RuntimeError as error:  # a list of tensors that record gradients
        raise TypeError(f"{name} must be a tensor or an array, got {shown(value)} ({where})") from error


def _is_memory(value: Any) -> bool:
    """Return whether a value is an array, or a tensor that can be one."""
    if not isinstance(value, torch.Tensor):
        return True
    return not torch.compiler.is_compiling() and is_plain(value) and value.dtype in _ARRAYS


def _from_array(array: Any, x: torch.Tensor) -> torch.Tensor:
    """Return a result as a tensor, of the dtype that it has where every input counts."""
    y = torch.from_numpy(array)
    return y.view(torch_dtype(array.dtype, x.dtype)) if y.dtype is torch.uint64 else y


def _array(value: Any) -> Any:
    return array_of(value) if isinstance(value, torch.Tensor) else value


def _composed(x: torch.Tensor, what: Description, given: Selection) -> Any:
    at, problem = tensors.problem_of(x, what)
    inputs = _inputs(x, at, problem, given)
    if problem.job.lift == "nonzero":
        x = x != 0
        at, problem = tensors.problem_of(x, what)
    if what.may_be_empty and not problem.windows.some_empty:
        what = what._replace(may_be_empty=False)
    job, valid, weights = problem.job, inputs.valid, inputs.weights
    if job.finish == "divide" and not is_float(job.result):
        raise NotImplementedError(f"integer means with mask, nan or empty need plain tensors ({inputs.where})")
    counts = _counts(valid, x, what, problem)
    wide = TORCH[job.accumulator.name]
    values = x
    if weights is not None:  # whose gradient does not look at what is masked either
        values = (x if valid is None else torch.where(valid, x, 0)).to(wide) * weights.to(wide)
    exponential = job.lift == "exp"
    none = _number(neutral(job.merge, job.lift, job.p, at.dtype), exponential or is_float(at.dtype))
    if valid is not None:
        values = values.to(wide) if exponential and not x.is_floating_point() else values
        values = torch.where(valid, values, none)
    if job.finish == "divide":
        y = _mean(values, counts, x, what, problem, inputs)
        indices = []
    else:
        y, *indices = _pool(values, what, problem)
    if job.merge in ("max", "min") and job.lift == "none":
        y, indices = _mended(y, indices, values, none, counts, x, what, problem, inputs)
    y = y.to(TORCH[job.result.name])
    y = torch.where(counts > 0, y, _empty(inputs, counts, y))
    return _with_counts(y, indices, counts, inputs)


def whole(x: torch.Tensor, what: Description, given: Selection, generator: Any) -> Any:
    """Pool by a reduction that needs whole windows: the NumPy code does, with what is left out."""
    at, problem = gathered.problem_of(x, what)
    inputs = _inputs(x, at, problem, given)
    valid = inputs.valid
    for value in problem.job.ignore:
        valid = x != value if valid is None else valid & (x != value)
    mask = None if inputs.mask is None else inputs.mask.expand(x.shape)
    empty = inputs.empty
    if problem.job.result is BFLOAT16:  # written in float32
        with np.errstate(over="ignore"):
            empty = np.float32(empty)
    y = gathered.selected(x, mask, what, gathered.Left(inputs.omit, empty), generator)
    indices = []
    if problem.reduction.selects or inputs.return_valid:
        counts = _counts(valid, x, what._replace(dtype=None), problem)
    else:
        counts = y.new_ones((), dtype=torch.int64)
    if problem.reduction.selects:
        indices = [y] if problem.return_indices else []
        y = _at(x, y, counts, problem).to(TORCH[problem.job.result.name])
        y = torch.where(counts > 0, y, _empty(inputs, counts, y))
    return _with_counts(y, indices, counts, inputs)


def _with_counts(y: torch.Tensor, indices: list[torch.Tensor], counts: torch.Tensor, inputs: _Inputs) -> Any:
    if inputs.return_valid:
        return (y, *indices, counts.expand(y.shape).clone())
    return (y, *indices) if indices else y


# ---- which inputs count ----------------------------------------------------------------------------------------------


class _Inputs(NamedTuple):
    """Arguments that were checked; the tensors are as long as x on the pooled axes, and broadcast to it on others."""

    mask: torch.Tensor | None
    weights: torch.Tensor | None
    valid: torch.Tensor | None  # the mask without the NaNs that are omitted
    omit: bool
    empty: Any
    return_valid: bool
    where: str


def _inputs(x: torch.Tensor, at: Memory, problem: Problem, given: Selection) -> _Inputs:
    where = f"x: {at.shape}"
    checked = _checked(at, problem, given, where)
    found = _tensor("mask", given.mask, checked.mask, x, problem)
    valid = found
    if checked.omit:
        valid = (x == x) if found is None else (x == x) & found
    by = _tensor("weights", given.weights, checked.weights, x, problem)
    empty = None if checked.empty is None else _number(checked.empty, is_float(problem.job.result))
    return _Inputs(found, by, valid, checked.omit, empty, checked.return_valid, where)


def _checked(at: Memory, problem: Problem, given: Selection, where: str) -> selection.Selected:
    """Check the arguments as those of arrays are: arrays stand in for tensors, of their dtypes and shapes."""
    mask, weights = (_stand_in(n, a, problem, where) for n, a in (("mask", given.mask), ("weights", given.weights)))
    return selection.Selected(problem, at, given._replace(mask=mask, weights=weights), None)  # type: ignore[arg-type]


def _number(value: Any, floating: bool) -> Any:
    """Return a number of Python's: a compiler takes NumPy's for a tensor."""
    return float(value) if floating else bool(value) if isinstance(value, np.bool_) else int(value)


def _stand_in(name: str, value: Any, problem: Problem, where: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout} ({where})")
    dtype: Any = NUMPY.get(value.dtype)
    kind = str(value.dtype).removeprefix("torch.")
    if dtype is None or (name == "mask" and dtype is BFLOAT16):
        try:
            dtype = np.dtype(kind)
        except TypeError:
            words = "bool" if name == "mask" else "real numbers"
            raise TypeError(f"{name} must be {words}, got dtype {kind} ({where})") from None
    elif name == "weights" and dtype.kind != "b":
        dtype = problem.job.accumulator  # which they become, without memory for them
    return np.broadcast_to(np.zeros((), dtype), tuple(value.shape))


def _tensor(name: str, value: Any, checked: Any, x: torch.Tensor, problem: Problem) -> torch.Tensor | None:
    """Return a tensor of the rank of x that is as long as x on the pooled axes."""
    if value is None:
        return None
    if not isinstance(value, torch.Tensor):
        return torch.from_numpy(np.array(checked)).to(x.device)  # a copy: PyTorch warns of what cannot be written
    tensor = value.reshape(selection.broadcast_shape(name, tuple(value.shape), tuple(x.shape)))
    return tensor.expand(_shape(tensor, x, problem))


def _shape(tensor: torch.Tensor, x: torch.Tensor, problem: Problem) -> list[int]:
    return [x.shape[a] if a in problem.job.axes else n for a, n in enumerate(tensor.shape)]


def _sum(what: Description, dtype: torch.dtype | None) -> Description:
    """Return the sum over the same windows."""
    return what._replace(function="pool", reduction="sum", return_indices=False, count_include_pad=True,
                         divisor_override=None, parameter=None, dtype=dtype)  # fmt: skip


def _pool(x: torch.Tensor, what: Description, problem: Problem) -> list[torch.Tensor]:
    padded = None
    if problem.windows.some_empty:  # kernels expect that every window has an input
        _, own = tensors.problem_of(x, what)
        if x.numel() == 0:
            nothing = [x.new_zeros(own.shape).squeeze(own.squeeze), x.new_zeros(own.shape, dtype=torch.int64)]
            return nothing[: 1 + own.return_indices]
        padded = _padded(x, what, own)
        if padded is None:
            found = reference.run(own.job, x)
            results = [t for t in found if t is not None]
            for axis in reversed(problem.squeeze):
                results = [t.squeeze(axis) for t in results]
            return results[: 1 + own.return_indices]
    result = tensors.run(*(padded or (x, what)))
    return list(result) if isinstance(result, tuple) else [result]


def _padded(x: torch.Tensor, what: Description, own: Problem) -> tuple[torch.Tensor, Description] | None:
    """Return x with its padding, of inputs that change nothing, and the call that needs no padding, or None.

    Kernels give no gradient to an infinite input, where the slope of a power in torch operations is not a number.
    """
    job = own.job
    if job.merge in ("max", "min"):  # winners have places, and slopes of one
        return None
    pads = [0] * (2 * x.ndim)  # low and high, from the last axis on
    sizes = list(x.shape)
    for axis, windows in zip(job.axes, job.windows.axes, strict=True):
        assert isinstance(windows, Sliding)  # others have no padding
        reach = (windows.n_out - 1) * windows.stride + (windows.kernel - 1) * windows.step + 1
        pads[2 * (x.ndim - 1 - axis)] = windows.pad
        pads[2 * (x.ndim - 1 - axis) + 1] = reach - windows.pad - windows.n_in
        sizes[axis] = reach
    if math.prod(sizes) > max(_ROOM, 4 * (x.numel() + own.size)):
        return None
    none = _number(neutral(job.merge, job.lift, job.p, own.dtype), job.lift == "exp" or is_float(own.dtype))
    kernel, stride, step = ([getattr(a, n) for a in job.windows.axes] for n in ("kernel", "stride", "step"))
    args = (tuple(kernel), tuple(stride), 0, tuple(step), False)
    return torch.nn.functional.pad(x, pads, value=none), what._replace(geometry_args=args, may_be_empty=False)


def _mean(values: torch.Tensor, counts: torch.Tensor, x: torch.Tensor, what: Description, problem: Problem,
          inputs: _Inputs) -> torch.Tensor:  # fmt: skip
    """Return sums over divisors. What is divided by zero has the gradient zero, as where nothing counts."""
    wide = TORCH[problem.job.accumulator.name]
    total = _sum(what, wide)
    y = _pool(values, total, problem)[0]
    if not y.is_floating_point():
        y = y.double()
    if inputs.weights is None:
        by = _divisor(counts, x, problem)
    else:
        factors = inputs.weights.to(wide)
        if inputs.valid is not None:
            factors = torch.where(inputs.valid, factors, 0)
        by = _pool(factors.expand(_shape(factors, x, problem)), total, problem)[0]
    by = by.to(y.dtype)
    nothing = by == 0
    return torch.where(nothing, y.detach() / by.detach(), y / torch.where(nothing, 1, by))


def _empty(inputs: _Inputs, counts: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return what a window is worth in which nothing counts."""
    if inputs.empty is not None:
        kind = torch.float64 if y.is_floating_point() else y.dtype
        return torch.tensor(inputs.empty, dtype=kind, device=y.device).to(y.dtype)
    if inputs.valid is not None and not (is_plain(counts) and bool((counts > 0).all())):
        raise ValueError(
            f"mask must leave every window some input, or empty= give a value of {y.dtype} ({inputs.where})"
        )
    return y.new_zeros(())


def _counts(valid: torch.Tensor | None, x: torch.Tensor, what: Description, problem: Problem) -> torch.Tensor:
    if valid is None:
        return _constant("valid", x, problem)
    return _pool(valid.to(torch.int8), _sum(what, None), problem)[0]


def _constant(rule: str, x: torch.Tensor, problem: Problem) -> torch.Tensor:
    elements = selection.per_window(problem.windows, problem.job.axes, x.ndim, rule)
    return torch.from_numpy(np.squeeze(elements, problem.squeeze)).to(x.device)


def _divisor(counts: torch.Tensor, x: torch.Tensor, problem: Problem) -> torch.Tensor:
    divisor = problem.job.divisor
    assert divisor is not None
    if divisor.constant is not None:
        return torch.tensor(divisor.constant, dtype=torch.float64)
    if divisor.rule == "valid":
        return counts
    return counts + (_constant("window", x, problem) - _constant("valid", x, problem))


def _mended(y: torch.Tensor, indices: list[torch.Tensor], values: torch.Tensor, none: Any, counts: torch.Tensor,
            x: torch.Tensor, what: Description, problem: Problem,
            inputs: _Inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    """Where the winner is no better than what was left out, it is the first input that counts."""
    valid = inputs.valid
    if valid is not None and x.numel():
        exact = y.detach()
        if exact.dtype != x.dtype:  # rounded, values that are not equal may have become so
            exact = _pool(values.detach(), what._replace(dtype=None, return_indices=False), problem)[0]
        tied = exact == none
        if torch.compiler.is_compiling() or not is_plain(tied) or tied.any():
            first = what._replace(function="pool", reduction="max", parameter=None, dtype=None, return_indices=True)
            places = _pool(valid.to(torch.int8), first, problem)[1]
            indices = [torch.where(tied, places, i) for i in indices]
            if y.is_floating_point():
                y = torch.where(tied, _at(x, places, counts, problem).to(y.dtype), y)
    return y, [torch.where(counts > 0, i, -1) for i in indices]


def _at(x: torch.Tensor, places: torch.Tensor, counts: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Return the inputs at flat positions in the pooled axes, which take the gradient; any where nothing counts."""
    job, squeeze = problem.job, sorted(problem.squeeze)
    places = torch.where(counts > 0, places, 0)
    for axis in squeeze:
        places = places.unsqueeze(axis)
    last = list(range(x.ndim - len(job.axes), x.ndim))
    flat = places.expand(problem.shape).movedim(job.axes, last).flatten(last[0])
    wide = x.to(TORCH[job.accumulator.name])  # gradients of halves add up in float32
    y = wide.movedim(job.axes, last).flatten(last[0]).gather(-1, flat)
    y = y.unflatten(-1, [problem.shape[a] for a in job.axes]).movedim(last, job.axes)
    for axis in reversed(squeeze):
        y = y.squeeze(axis)
    return y
