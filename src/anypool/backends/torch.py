"""A pass in torch operations: on any device that PyTorch has, differentiable by its autograd, and there to be read.

It is what runs where no kernel of ours does and PyTorch has no operator of its own for the arguments. Sums go one axis
after the other; logsumexp looks at all taps of a window at once, which takes memory for each of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from anypool.backends import Divisor, Pass
from anypool.limits import require
from anypool.windows import Axis

_UNSIGNED = ("uint16", "uint32", "uint64")  # PyTorch stores them, and does little more


def run(job: Pass, x: Any) -> tuple[Any, Any]:
    """Return the pooled tensor and, if the pass has codes, those of the winners."""
    wide = x.to(_accumulator(job, x))
    if job.merge in ("max", "min"):
        y, winners = _select(job, wide)
        return y.to(_result(job)), winners
    if job.merge == "scaled_sum":
        taps, inside = _taps(job, wide * job.p)
        y = torch.where(inside, taps, -math.inf).logsumexp(-1) / job.p
    else:
        y = _finished(job, _summed(job, _lifted(job, wide)))
    return y.to(_result(job)), None


def _accumulator(job: Pass, x: Any) -> Any:
    name = job.accumulator.name
    if name == "bool":
        return torch.uint8
    if name in _UNSIGNED:
        return torch.int64
    return torch.float32 if name == "float64" and x.device.type == "mps" else getattr(torch, name)


def _result(job: Pass) -> Any:
    return getattr(torch, job.result.name)


def _column(values: Any, axis: int, ndim: int, device: Any) -> Any:
    """Return numbers, one for each output on an axis, as a tensor that broadcasts along it."""
    return torch.as_tensor(values, device=device).reshape([-1 if a == axis else 1 for a in range(ndim)])


def _places(windows: Axis) -> tuple[Any, Any]:
    """Return where the taps of the windows on one axis lie, ``(outputs, taps)``, and which are inside the data."""
    start, _, lo, hi = windows.spans()
    t = np.arange(windows.kernel)
    inside = (lo[:, None] <= t) & (t < hi[:, None])
    return np.where(inside, start[:, None] + t * windows.step, 0), inside


def _axis_taps(windows: Axis, axis: int, x: Any) -> tuple[Any, Any]:
    """Return the taps of the windows on one axis, along a new last axis, and which of them are inside the data."""
    at, inside = _places(windows)
    taps = x.index_select(axis, torch.as_tensor(at.reshape(-1), device=x.device))
    taps = taps.unflatten(axis, at.shape).movedim(axis + 1, -1)
    shape = [at.shape[0] if a == axis else 1 for a in range(taps.ndim - 1)]
    return taps, torch.as_tensor(inside, device=x.device).reshape(*shape, at.shape[1])


def _taps(job: Pass, x: Any) -> tuple[Any, Any]:
    """Return every window's taps along one last axis, row-major over the pooled axes, and which are data."""
    ndim = x.ndim
    if x.device.type == "cpu":  # others know what they have
        n_bytes = math.prod(job.shape(x.shape)) * job.windows.n_taps * x.element_size()
        require(n_bytes, "the taps of every window", f"x: {tuple(x.shape)}")
    inside = torch.ones((1,) * ndim, dtype=torch.bool, device=x.device)
    for axis, windows in zip(job.axes, job.windows.axes, strict=True):
        x, here = _axis_taps(windows, axis, x)
        extra = inside.ndim - ndim  # the taps of the axes before
        here = here.reshape(*here.shape[:ndim], *(1,) * extra, here.shape[-1])
        inside = inside.unsqueeze(-1) & here
    return x.flatten(ndim), inside.flatten(ndim)


def _select(job: Pass, x: Any) -> tuple[Any, Any]:
    """Find winners one axis after the other; codes tell the first of equals, and the last NaN, over all axes."""
    floating = x.is_floating_point()
    lowest = -math.inf if floating else torch.iinfo(x.dtype).min
    code = torch.zeros(x.shape, dtype=torch.int64, device=x.device) if job.codes else None
    unit = job.windows.n_taps
    for axis, windows in zip(job.axes, job.windows.axes, strict=True):
        unit //= windows.kernel
        taps, inside = _axis_taps(windows, axis, x)
        codes = unit * torch.arange(windows.kernel, device=x.device)
        if code is not None:
            codes = codes + _axis_taps(windows, axis, code)[0]
        ordered = taps.abs() if job.lift == "absolute" else taps
        if job.merge == "min":
            ordered = -ordered if floating else ordered.bitwise_not()  # complements, which no integer overflows
        values = torch.where(inside, ordered, lowest)
        best = (values == values.amax(-1, keepdim=True)) & inside
        first = torch.where(best, codes, torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
        last_nan = torch.where(values != values, codes, -1).amax(-1, keepdim=True)
        winner = codes == torch.where(last_nan >= 0, last_nan, first)
        at = winner.to(torch.uint8).argmax(-1, keepdim=True)  # of an empty window, any
        x = taps.gather(-1, at).squeeze(-1)  # as it is: of what is not gathered the gradient is 0.0, whatever the sign
        code = None if code is None else codes.gather(-1, at).squeeze(-1)
    if job.lift == "absolute":
        x = x.abs()
    if code is None:
        return x, None
    return x, _flat(job, code) if job.codes == "index" else code.to(getattr(torch, job.code_dtype().name))


def _flat(job: Pass, code: Any) -> Any:
    """Return the flat positions, in the pooled axes, of taps given by their offsets."""
    flat, unit = 0, 1
    for axis, windows in reversed(list(zip(job.axes, job.windows.axes, strict=True))):
        start = _column(windows.spans()[0], axis, code.ndim, code.device)
        flat = flat + (start + code % windows.kernel * windows.step) * unit
        code, unit = code // windows.kernel, unit * windows.n_in
    return flat


def _lifted(job: Pass, x: Any) -> Any:
    if job.lift == "over_divisor":
        assert job.divisor is not None
        return x / _divisors(job.divisor, job.axes, x).to(x.dtype)
    if job.lift == "none":
        return x
    p = job.p
    for axis, windows in zip(job.axes, job.windows.axes, strict=True):
        x = _seen(windows, axis, x)
    if job.lift == "power":
        return x.abs() if p == 1 else _power(x.abs(), p)
    assert job.lift == "signed_power"
    return x if p == 1 else _power(x.abs(), p) * x.sign()


def _seen(windows: Axis, axis: int, x: Any) -> Any:
    """Return x with ones where no window looks: the slope of a NaN's power is NaN even if nobody asks for it."""
    at, inside = _places(windows)
    seen = np.zeros(windows.n_in, bool)
    seen[at[inside]] = True
    return x if seen.all() else torch.where(_column(seen, axis, x.ndim, x.device), x, 1.0)


def _power(x: Any, p: float) -> Any:
    """x^p for x >= 0, with the gradient 0 where x is 0 or the power infinite, as in the other backends."""
    y = x.detach() ** p
    if p == 2:  # which has a slope of its slope at 0
        x = torch.where(y.isinf(), torch.inf, x)
        return x * x
    usual = (x != 0) & ~y.isinf()
    return torch.where(usual, torch.where(usual, x, 1.0) ** p, y)


def _summed(job: Pass, x: Any) -> Any:
    for axis, windows in zip(job.axes, job.windows.axes, strict=True):
        taps, inside = _axis_taps(windows, axis, x)
        x = torch.where(inside, taps, 0).sum(-1)
    return x


def _divisors(divisor: Divisor, axes: tuple[int, ...], x: Any) -> Any:
    if divisor.constant is not None:
        return torch.tensor(divisor.constant, device=x.device, dtype=torch.float32)
    total: Any = torch.ones((), dtype=torch.int64, device=x.device)
    for axis, counts in zip(axes, divisor.per_axis(), strict=True):
        total = total * _column(counts, axis, x.ndim, x.device)
    return total


def _finished(job: Pass, s: Any) -> Any:
    if job.finish == "none":
        return s
    if job.finish != "divide":
        if job.p == 1:  # signs may cancel: the gradient is 0 where the sum is, as for any other p
            return torch.where(s == 0, s.detach(), s)
        return _power(s.abs(), 1 / job.p) * (s.sign() if job.finish == "signed_root" else 1)
    assert job.divisor is not None
    by = _divisors(job.divisor, job.axes, s)
    if s.is_floating_point():
        return s / by.to(s.dtype)
    if job.result.kind == "f":
        return s.double() / by
    by = by.to(torch.int64)  # halves go to the even neighbour
    quotient, rest = torch.div(s, by, rounding_mode="floor"), torch.remainder(s, by)
    return quotient + ((2 * rest > by) | ((2 * rest == by) & (quotient % 2 == 1)))
