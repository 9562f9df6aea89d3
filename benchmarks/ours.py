"""Our side of a row: its data, the calls that are timed, and the check against the readable backend."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import anypool
from anypool import backends
from benchmarks.measure import Run
from benchmarks.rows import CHANNELS_LAST, CROPPED, STEPPED, TRANSPOSED, Row

Array = npt.NDArray[Any]
CHECKED = 1 << 19  # elements that the reference backend, which is slow, pools again


class Disagreement(Exception):
    """Two results that should be equal are not: nothing is reported."""


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def channels_first(row: Row, array: Array) -> Array:
    """Return a view of shape (N, C, …) of an array in the row's order."""
    return np.moveaxis(array, -1, 1) if row.order == CHANNELS_LAST else array


def channels_last_again(row: Row, array: Array) -> Array:
    """Return an array of shape (N, C, …) as a view in the row's order."""
    return np.moveaxis(array, 1, -1) if row.order == CHANNELS_LAST else array


def values(row: Row) -> Array:
    """Return random data of the row's shape, laid out in its order."""
    n, c, *spatial = row.shape
    positive = row.reduction == "lp"  # what libraries make of odd powers of negative numbers differs
    if row.order == CHANNELS_LAST:
        return values_of((n, *spatial, c), row.dtype, positive=positive)
    if row.order == TRANSPOSED:
        return values_of((n, c, *spatial[::-1]), row.dtype).swapaxes(-1, -2)
    if row.order == CROPPED:
        inner = (slice(None), slice(None), *[slice(8, -8)] * row.rank)
        return values_of((n, c, *(s + 16 for s in spatial)), row.dtype)[inner]
    if row.order == STEPPED:
        return values_of((n, c, *spatial[:-1], 2 * spatial[-1]), row.dtype)[..., ::2]
    return values_of(row.shape, row.dtype, positive=positive)


def values_of(shape: tuple[int, ...], dtype: str, *, positive: bool = False) -> Array:
    """Return bytes for integers, a normal distribution for floats."""
    rng, wanted = np.random.default_rng(0), dtype_of(dtype)
    if wanted.kind in "iu":
        return rng.integers(0, 256, shape, np.uint8).astype(wanted, copy=False)
    drawn = np.float64 if dtype == "float64" else np.float32  # float64: digits that a detour over float32 would lose
    values: Array = rng.standard_normal(shape, drawn)
    return (np.abs(values) if positive else values).astype(wanted, copy=False)


def call(row: Row) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function of the package and its arguments."""
    kwargs: dict[str, Any] = {"data_format": "channels_last"} if row.order == CHANNELS_LAST else {}
    if row.is_global:
        return getattr(anypool, f"global_{row.reduction}_pool"), kwargs
    if row.output_size:
        return getattr(anypool, f"adaptive_{row.reduction}_pool{row.rank}d"), kwargs | {"output_size": row.output_size}
    kwargs |= {"kernel_size": row.kernel, "stride": row.stride}
    if row.padding:
        kwargs["padding"] = row.padding
    if row.dilation > 1:
        kwargs["dilation"] = row.dilation
    if row.ceil:
        kwargs["ceil_mode"] = True
    if row.reduction == "logsumexp":
        return anypool.pool, kwargs | {"reduction": "logsumexp", "kernel_size": (row.kernel,) * row.rank}
    if row.reduction == "lp":
        kwargs["norm_type"] = row.norm_type
    if row.mode == "indices":
        kwargs["return_indices"] = True
    return getattr(anypool, f"{row.reduction}_pool{row.rank}d"), kwargs


def selected(row: Row, x: Array) -> dict[str, Any]:
    """Return the mask of a row that has one, of the size of x: a function of x, so that its parts are those of x."""
    return {"mask": x > -1} if row.mode == "mask" else {}


def outcome(row: Row, x: Array, grad: Array | None = None) -> tuple[Array, ...]:
    """Return what the row is about: the result, the result and the indices, or the gradient."""
    function, kwargs = call(row)
    if row.mode == "backward":
        y, pullback = anypool.vjp(function, x, **kwargs)
        return (pullback(np.ones_like(y) if grad is None else grad),)
    y = function(x, **kwargs, **selected(row, x))
    return y if isinstance(y, tuple) else (y,)


@dataclass
class Subject:
    """One row at one size, ready to be timed."""

    row: Row
    x: Array
    results: tuple[Array, ...]  # what every peer has to agree with
    grad: Array | None  # backward: what is pulled back
    moved: int  # bytes that have to be read and written
    into: Run  # with out=, where there is one
    fresh: Run  # with a result allocated in the call


def code_bytes(row: Row) -> int:
    """Return the bytes of one offset code, see docs/design.md."""
    return 1 if row.taps() <= 255 else 2 if row.taps() <= 65535 else 4


def subject(row: Row) -> Subject:
    """Make the data and the calls, and check the result."""
    x = values(row)
    made = _backward(row, x) if row.mode == "backward" else _forward(row, x)
    check(made)
    made.fresh()  # whoever touches memory first pays for it, the peers when they are checked
    return made


def _forward(row: Row, x: Array) -> Subject:
    function, kwargs = call(row)
    kwargs |= selected(row, x)
    if row.mode == "training":
        function = functools.partial(anypool.vjp, function)
    results = outcome(row, x)
    target = results[0]
    beside = selected(row, x).values()
    moved = x.nbytes + sum(a.nbytes for a in (*results, *beside))
    moved += (row.mode == "training") * code_bytes(row) * target.size

    def into() -> object:
        return function(x, **kwargs, out=target)

    target.fill(0)
    into()  # what is timed is what is checked
    return Subject(row, x, results, None, moved, into, lambda: function(x, **kwargs))


def _backward(row: Row, x: Array) -> Subject:
    function, kwargs = call(row)
    y, pullback = anypool.vjp(function, x, **kwargs)
    grad = values_of(y.shape, row.dtype)
    kept = {"max": code_bytes(row) * y.size, "lp": x.nbytes + y.nbytes}.get(row.reduction, 0)

    target = pullback(grad)

    def into() -> object:
        return pullback(grad, out=target)

    target.fill(0)
    into()  # what is timed is what is checked
    return Subject(row, x, (target,), grad, grad.nbytes + kept + x.nbytes, into, lambda: pullback(grad))


def check(made: Subject) -> None:
    """Compare a part of the result with that of the backend that is NumPy and nothing else."""
    row = made.row
    planes = max(1, CHECKED // math.prod(row.spatial))

    def part(array: Array) -> Array:
        return channels_last_again(row, channels_first(row, array)[:1, :planes])

    with backends.use("reference"):
        wanted = outcome(row, part(made.x), None if made.grad is None else part(made.grad))
    if difference := disagreement(row, tuple(map(part, made.results)), wanted):
        raise Disagreement(f"{row.name}: ours and the reference backend: {difference}")


def tolerance(row: Row) -> float:
    """Return by how much two right results may differ, of values of about 1 (integers: of up to 255)."""
    if row.reduction == "max" and row.mode != "backward":
        return 0.0
    if dtype_of(row.dtype).kind in "iu":
        return 1.0  # a mean may be rounded up or to even
    return {"float64": 1e-12, "float16": 0.01, "bfloat16": 0.05}.get(row.dtype, 1e-4)


def disagreement(row: Row, got: tuple[Array, ...], wanted: tuple[Array, ...]) -> str | None:
    """Return None if two outcomes are equal up to what rounding explains, else by how much they differ."""
    wide = np.float64 if row.dtype == "float64" else np.float32
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape:
            return f"shape {a.shape}, not {b.shape}"
        if np.array_equal(a, b):
            continue
        both = (a != a) & (b != b)  # windows in which nothing counts
        a, b = (np.where(both, 0, v).astype(wide, copy=False) for v in (a, b))
        if np.array_equal(a, b):
            continue
        apart = float(np.max(np.abs(a - b), initial=0.0))
        if not 0.0 < apart <= tolerance(row):  # neither NaN nor a difference too small for float32
            return f"results differ by up to {apart:g}"
    return None
