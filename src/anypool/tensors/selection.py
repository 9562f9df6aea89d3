"""Masks, omitted NaNs, weights and empty windows for tensors.

A tensor in this machine's memory that records no gradient is pooled as the array that it is (`anypool.selection`).
Otherwise the same steps run as operations that autograd, compilers and other devices know.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from anypool import selection, tensors
from anypool.arguments import flag_argument
from anypool.backends import torch as reference
from anypool.operation import Call, Description, Problem, Selection
from anypool.reductions import find, neutral
from anypool.tensors.plain import array_of, has_tangent, is_plain
from anypool.tensors.spec import NUMPY, TORCH, memory_of

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def run(x: torch.Tensor, what: Description, given: Selection, out: torch.Tensor | None, generator: Any) -> Any:
    """Return the pooled tensor, then the indices and the counts if they are asked for."""
    others = [a for a in (given.mask, given.weights) if isinstance(a, torch.Tensor)]
    where = f"x: {tuple(x.shape)}"
    for name, a in (("mask", given.mask), ("weights", given.weights)):
        if isinstance(a, torch.Tensor) and a.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {a.device} ({where})")
    reduction = find(what.reduction)
    followed = any(has_tangent(a) for a in (x, *others))
    recorded = torch.is_grad_enabled() and any(a.requires_grad for a in (x, *others)) and reduction.adjoint is not None
    if not x.is_floating_point():
        if not is_plain(x):
            raise NotImplementedError(f"mask, nan and empty need floating-point tensors on {x.device}, got {x.dtype}")
        if given.weights is not None:
            x = x.double()
    values = (x, given.mask, given.weights, out)
    if not recorded and not followed and all(_is_memory(a) for a in values):
        array, mask, weights, into = map(_array, values)
        named = what._replace(dtype=NUMPY.get(what.dtype, what.dtype))
        result = selection.run(Call(array, named, into, given._replace(mask=mask, weights=weights), generator))
        parts = result if isinstance(result, tuple) else (result,)
        found = tuple(out if p is into and out is not None else torch.from_numpy(p) for p in parts)
        return found if isinstance(result, tuple) else found[0]
    if out is not None:
        raise ValueError(f"out needs plain tensors that record no gradient ({where})")
    if reduction.function is not None or reduction.adjoint is None:
        raise NotImplementedError(
            f"{reduction.name!r} with mask, nan or empty needs plain tensors of the CPU that record no gradient, of a "
            f"dtype that NumPy has ({where})"
        )
    return _composed(x, what, given)


def _is_memory(value: Any) -> bool:
    """Return whether a value is an array, or a tensor that can be one."""
    if not isinstance(value, torch.Tensor):
        return True
    return not torch.compiler.is_compiling() and is_plain(value) and value.dtype != torch.bfloat16


def _array(value: Any) -> Any:
    return array_of(value) if isinstance(value, torch.Tensor) else value


def _composed(x: torch.Tensor, what: Description, given: Selection) -> Any:
    at, problem = tensors.problem_of(x, what)
    scalars = Selection(None, None, given.nan, given.empty, given.return_valid)
    checked = selection.Selected(problem, at, scalars, None)  # type: ignore[arg-type]
    if what.may_be_empty and not problem.windows.some_empty:
        what = what._replace(may_be_empty=False)
    mask = _broadcast("mask", given.mask, x, problem)
    weights = _broadcast("weights", given.weights, x, problem)
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got dtype {mask.dtype} ({checked.where})")
    if weights is not None:
        checked.check_weights()
    valid = mask
    if checked.omit:
        valid = (x == x) if mask is None else (x == x) & mask
    job = problem.job
    counts = _counts(valid, x, what, problem)
    wide = _WIDE.get(x.dtype, x.dtype)
    values = x if weights is None else x.to(wide) * weights.to(wide)
    none = float(neutral(job.merge, job.lift, job.p, memory_of(x).dtype))
    if valid is not None:
        values = torch.where(valid, values, none)
    divides = job.finish == "divide"
    exact = what
    if divides:
        exact = _sum(what, wide)
    y, *indices = _pool(values, exact, problem)
    if divides:
        if weights is not None:
            factors = weights if valid is None else torch.where(valid, weights, 0)
            by = _pool(factors.to(wide).expand(_shape(factors, x, problem)), _sum(what, wide), problem)[0]
        else:
            by = _divisor(counts, x, problem)
        y = y / by.to(y.dtype)
    if indices:
        indices = [_mended(indices[0], y, none, valid, counts, what, problem)]
    y = torch.where(counts > 0, y, float(checked.empty)).to(TORCH[job.result.name])
    if flag_argument("return_valid", given.return_valid, checked.where):
        indices.append(counts.expand(y.shape).clone())
    return (y, *indices) if indices else y


def _broadcast(name: str, value: Any, x: torch.Tensor, problem: Problem) -> torch.Tensor | None:
    """Return a tensor of the rank of x that is as long as x on the pooled axes."""
    if value is None:
        return None
    tensor = torch.as_tensor(value, device=x.device)
    tensor = tensor.reshape(selection.broadcast_shape(name, tuple(tensor.shape), tuple(x.shape)))
    return tensor.expand(_shape(tensor, x, problem))


def _shape(tensor: torch.Tensor, x: torch.Tensor, problem: Problem) -> list[int]:
    return [x.shape[a] if a in problem.job.axes else n for a, n in enumerate(tensor.shape)]


def _sum(what: Description, dtype: torch.dtype | None) -> Description:
    """Return the sum over the same windows."""
    return what._replace(function="pool", reduction="sum", return_indices=False, count_include_pad=True,
                         divisor_override=None, parameter=None, dtype=dtype)  # fmt: skip


def _pool(x: torch.Tensor, what: Description, problem: Problem) -> list[torch.Tensor]:
    if problem.windows.some_empty:  # kernels expect that every window has an input
        _, own = tensors.problem_of(x, what)
        if x.numel() == 0:
            return [x.new_zeros(own.shape).squeeze(own.squeeze), x.new_zeros(own.shape, dtype=torch.int64)]
        found = reference.run(own.job, x)
        results = [t for t in found if t is not None]
        for axis in reversed(problem.squeeze):
            results = [t.squeeze(axis) for t in results]
        return results[: 1 + own.return_indices]
    result = tensors.run(x, what)
    return list(result) if isinstance(result, tuple) else [result]


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


def _mended(indices: torch.Tensor, y: torch.Tensor, none: float, valid: torch.Tensor | None, counts: torch.Tensor,
            what: Description, problem: Problem) -> torch.Tensor:  # fmt: skip
    """Where the winner is no better than what was left out, it is the first input that counts."""
    if valid is not None:
        first = what._replace(function="pool", reduction="max", parameter=None, dtype=None)
        places = _pool(valid.to(torch.int8), first, problem)[1]
        indices = torch.where(y == none, places, indices)
    return torch.where(counts > 0, indices, -1)
