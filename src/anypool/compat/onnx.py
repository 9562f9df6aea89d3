"""ONNX's pooling operators by the rules of opset 22: attributes are arguments, inputs are arrays ``(N, C, D1, …)``.

The source of the semantics is the operators' specification (onnx/defs/nn/defs.cc); where it leaves a question open,
that of ONNX Runtime. Any number of spatial axes. Integers and bool are taken by all functions, not only where ONNX
lists them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from anypool import functional
from anypool.arguments import array_argument, shown
from anypool.compat.arguments import Counting, beside, choice, counted, in_words, integers
from anypool.functional import pool
from anypool.inspection import Explanation, explain, explained_unpooling, vjp
from anypool.limits import require
from anypool.operation import Call, Description, as_array, is_tensor, pullback_of, tensors
from anypool.unpooling import max_unpool1d
from anypool.windows import Sliding, Windows

__all__ = [
    "average_pool",
    "global_average_pool",
    "global_lp_pool",
    "global_max_pool",
    "lp_pool",
    "max_pool",
    "max_unpool",
]

_AUTO_PAD = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}

_WORDS = {
    "kernel_size": "kernel_shape",
    "stride": "strides",
    "padding": "pads",
    "dilation": "dilations",
    "norm_type": "p",
}
_public = in_words(__name__, **_WORDS)


def _spatial_rank(x: Any, where: str) -> int:
    if x.ndim < 3:
        raise ValueError(f"x must be (N, C, D1, …), got {x.ndim} dimensions ({where})")
    return int(x.ndim) - 2


def _planes(x: Any) -> Any:
    x = as_array(x)
    _spatial_rank(x, f"x: {tuple(x.shape)}")
    return x


def _ints(name: str, value: Any, count: int, default: int, where: str, *, at_least: int) -> tuple[int, ...]:
    return (default,) * count if value is None else integers(name, value, count, where, at_least=at_least)


def _windows(x: Any, kernel_shape: Any, strides: Any, pads: Any, dilations: Any, auto_pad: Any,
             ceil_mode: Any) -> dict[str, Any]:  # fmt: skip
    """Return ONNX's attributes in the words of `pool`."""
    where = f"x: {tuple(x.shape)}"
    rank = _spatial_rank(x, where)
    sides = _ints("pads", pads, 2 * rank, 0, where, at_least=0)
    choice("auto_pad", auto_pad, ("NOTSET", *_AUTO_PAD), where)
    if auto_pad != "NOTSET" and any(sides):
        raise ValueError(f"pads must not be given with auto_pad={auto_pad!r}, got {shown(pads)} ({where})")
    ceil = bool(choice("ceil_mode", ceil_mode, (0, 1), where))
    return {
        "kernel_size": integers("kernel_shape", kernel_shape, rank, where, at_least=1),
        "axes": tuple(range(2, rank + 2)),
        "stride": _ints("strides", strides, rank, 1, where, at_least=1),
        "padding": _AUTO_PAD.get(auto_pad, tuple(zip(sides[:rank], sides[rank:], strict=True))),
        "dilation": _ints("dilations", dilations, rank, 1, where, at_least=1),
        # With auto_pad the two formulas for the output size give the same numbers.
        "ceil_mode": ceil and auto_pad == "NOTSET",
    }


def _counting(shape: Sequence[int], storage_order: int) -> Counting:
    """Return how ONNX counts positions: through the whole tensor, column-major ones column by column in each plane."""
    planes, sizes = math.prod(shape[:2]), shape[2:]
    size = math.prod(sizes)

    def count(indices: Any) -> Any:
        if storage_order:
            rest, indices = indices, 0
            for axis in reversed(range(len(sizes))):
                indices = indices + rest % sizes[axis] * math.prod(sizes[:axis])
                rest = rest // sizes[axis]
        first = np.arange(planes).reshape(*shape[:2], *[1] * len(sizes)) * size
        return indices + beside(indices, first)

    return count


@counted(**_WORDS)
def max_pool(x: Any, kernel_shape: Any, *, strides: Any = None, pads: Any = None, dilations: Any = None,
             auto_pad: str = "NOTSET", ceil_mode: int = 0, storage_order: int = 0,
             return_indices: bool = False) -> tuple[Call, Counting]:  # fmt: skip
    """ONNX's ``MaxPool``: the largest value of every window.

    Parameters
    ----------
    x : array_like of shape ``(N, C, D1, …)``
    kernel_shape : sequence of ints
        Taps of a window on each spatial axis.
    strides, dilations : sequence of ints, optional
        Distance between windows and between the taps of one; default 1 (not kernel_shape).
    pads : sequence of ints, optional
        ``[D1 begin, D2 begin, …, D1 end, D2 end, …]``; default 0.
    auto_pad : "NOTSET", "SAME_UPPER", "SAME_LOWER" or "VALID"
        Instead of pads: ``ceil(n / stride)`` outputs, odd padding at the end (UPPER) or the beginning (LOWER); or none.
    ceil_mode : 0 or 1
        Round the number of windows up; one that would start in the padding at the end is dropped.
    storage_order : 0 or 1
        Whether indices count the positions of a plane row by row or column by column.
    return_indices : bool
        Also return ONNX's second output.

    Returns
    -------
    ndarray of shape ``(N, C, out1, …)``, or with return_indices a pair of it and an int64 array: the winners' positions
    in the whole of x, planes one after the other

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type; if a window has no input at all, for which ONNX has no
        rule (ONNX Runtime gives the lowest finite number and index -1); if there is no window at all (ONNX Runtime
        gives an empty tensor).

    Notes
    -----
    Semantics of ONNX opset 22. NaN propagates and of equal values the first wins, as in `anypool.max_pool2d`; ONNX says
    nothing about either. ONNX Runtime departs from the specification where `auto_pad` meets dilations or ceil_mode.

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import onnx
    >>> x = np.arange(1.0, 26).reshape(1, 1, 5, 5)
    >>> y, indices = onnx.max_pool(x, [2, 2], strides=[2, 2], storage_order=1, return_indices=True)
    >>> y.tolist(), indices.tolist()
    ([[[[7.0, 9.0], [17.0, 19.0]]]], [[[[6, 16], [8, 18]]]])
    """
    x = as_array(x)
    windows = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    order = choice("storage_order", storage_order, (0, 1), f"x: {tuple(x.shape)}")
    return pool.call(x, "max", return_indices=return_indices, **windows), _counting(x.shape, order)  # type: ignore[attr-defined]


@_public
def average_pool(x: Any, kernel_shape: Any, *, strides: Any = None, pads: Any = None, dilations: Any = None,
                 auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0) -> Call:  # fmt: skip
    """ONNX's ``AveragePool``: the mean of every window.

    Parameters
    ----------
    x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode
        As in `max_pool`.
    count_include_pad : 0 or 1
        Whether the divisor counts padding, `pads` or `auto_pad`. What hangs over it with ceil_mode never counts.

    Returns
    -------
    ndarray of shape ``(N, C, out1, …)``

    Raises
    ------
    ValueError, TypeError
        As in `max_pool`.

    Notes
    -----
    Semantics of ONNX opset 22. Integers, which ONNX does not average, keep their dtype and round half to even.

    Examples
    --------
    >>> from anypool.compat import onnx
    >>> x = [[[1.0, 2.0, 3.0, 4.0]]]
    >>> onnx.average_pool(x, [3], strides=[2], pads=[1, 1], ceil_mode=1).tolist()
    [[[1.5, 3.0, 4.0]]]
    >>> onnx.average_pool(x, [3], strides=[2], pads=[1, 1], ceil_mode=1, count_include_pad=1).tolist()
    [[[1.0, 3.0, 2.0]]]
    """
    x = as_array(x)
    windows = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    include = bool(choice("count_include_pad", count_include_pad, (0, 1), f"x: {tuple(x.shape)}"))
    return pool.call(x, "mean", count_include_pad=include, **windows)  # type: ignore[attr-defined,no-any-return]


@_public
def lp_pool(x: Any, kernel_shape: Any, *, p: float = 2, strides: Any = None, pads: Any = None, dilations: Any = None,
            auto_pad: str = "NOTSET", ceil_mode: int = 0) -> Call:  # fmt: skip
    """ONNX's ``LpPool``: the norm ``(Σ |x|^p)^(1/p)`` of every window.

    Parameters
    ----------
    x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode
        As in `max_pool`.
    p : float
        The exponent, ``> 0``; ONNX has integers only.

    Returns
    -------
    ndarray of shape ``(N, C, out1, …)``

    Raises
    ------
    ValueError, TypeError
        As in `max_pool`.

    Notes
    -----
    Semantics of ONNX opset 22: signs do not count, unlike `anypool.lp_pool2d`, which is PyTorch's. A window cut off by
    padding or ceil_mode is the norm of what is there.

    Examples
    --------
    >>> from anypool.compat import onnx
    >>> onnx.lp_pool([[[3.0, -4.0, -1.0]]], [2]).round(3).tolist(), onnx.lp_pool([[[3.0, -4.0]]], [2], p=1).tolist()
    ([[[5.0, 4.123]]], [[[7.0]]])
    """
    x = as_array(x)
    windows = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return pool.call(x, "lp", norm_type=p, **windows)  # type: ignore[attr-defined,no-any-return]


@_public
def global_average_pool(x: Any) -> Call:
    """ONNX's ``GlobalAveragePool``: the mean of each plane, of shape ``(N, C, 1, …)``.

    Examples
    --------
    >>> from anypool.compat import onnx
    >>> onnx.global_average_pool([[[1.0, 2.0, 6.0]]]).tolist()
    [[[3.0]]]
    """
    return functional.global_avg_pool.call(_planes(x))  # type: ignore[attr-defined,no-any-return]


@_public
def global_max_pool(x: Any) -> Call:
    """ONNX's ``GlobalMaxPool``: the largest value of each plane, of shape ``(N, C, 1, …)``.

    Examples
    --------
    >>> from anypool.compat import onnx
    >>> onnx.global_max_pool([[[1.0, 2.0, 6.0]]]).tolist()
    [[[6.0]]]
    """
    return functional.global_max_pool.call(_planes(x))  # type: ignore[attr-defined,no-any-return]


@_public
def global_lp_pool(x: Any, *, p: float = 2) -> Call:
    """ONNX's ``GlobalLpPool``: the norm ``(Σ |x|^p)^(1/p)`` of each plane, of shape ``(N, C, 1, …)``.

    Examples
    --------
    >>> from anypool.compat import onnx
    >>> onnx.global_lp_pool([[[3.0, 0.0, -4.0]]]).tolist()
    [[[5.0]]]
    """
    return Call(_planes(x), Description("global_lp_pool", "lp", "global", (), None, parameter=p))


class _Unpooling(NamedTuple):
    """A checked unpooling. Positions count through the whole tensor, so it is one row, of a kernel that makes it as
    long as the result.
    """

    x: Any
    row: Any
    places: Any
    kernel: int
    shape: tuple[int, ...]
    pooling: tuple[tuple[int, ...], ...]  # that is undone: kernel, stride, padding before and behind, on each axis


def _unpooling(x: Any, indices: Any, kernel_shape: Any, *, strides: Any = None, pads: Any = None,
               output_shape: Any = None) -> _Unpooling:  # fmt: skip
    x = as_array(x)
    where = f"x: {tuple(x.shape)}"
    rank = _spatial_rank(x, where)
    kernel = integers("kernel_shape", kernel_shape, rank, where, at_least=1)
    steps = _ints("strides", strides, rank, 1, where, at_least=1)
    sides = _ints("pads", pads, 2 * rank, 0, where, at_least=0)
    lows, highs = sides[:rank], sides[rank:]
    if output_shape is None:
        sizes = zip(x.shape[2:], steps, kernel, lows, highs, strict=True)
        shape = (*x.shape[:2], *((n - 1) * s + k - lo - hi for n, s, k, lo, hi in sizes))
        if min(shape[2:]) < 1:
            raise ValueError(f"pads must leave an output, got {shown(pads)} for shape {shape} ({where})")
    else:
        shape = integers("output_shape", output_shape, rank + 2, where, at_least=0)
    places = indices if is_tensor(indices) and is_tensor(x) else array_argument("indices", indices, where)
    if tuple(places.shape) != tuple(x.shape):
        raise ValueError(f"indices must have the shape of x, got {tuple(places.shape)} ({where})")
    n, total = math.prod(x.shape), math.prod(shape)
    if total < n:
        raise ValueError(f"the result must have as many elements as x or more, got shape {shape} ({where})")
    if total >= 2**59:
        name, given = ("kernel_shape", kernel_shape) if output_shape is None else ("output_shape", output_shape)
        raise ValueError(f"{name} must give fewer than 2**59 elements, got {shown(given)} for shape {shape} ({where})")
    require(total * x.dtype.itemsize, f"the result of shape {shape}", where)
    row = (1, n) if total else (0, 1)  # nothing, too, is checked by max_unpool1d, which gives no empty rows
    pooling = kernel, steps, lows, highs
    return _Unpooling(x, x.reshape(row), places.reshape(row), total - n + 1, shape, pooling)


def _of_row(function: Callable[..., Any], of: _Unpooling) -> Any:
    """Call a function of `anypool.max_unpool1d`; its errors are about x, which it does not know."""
    try:
        return function(of.row, of.places, of.kernel, 1)
    except (ValueError, TypeError) as error:
        error.args = (str(error).replace(f"(x: {tuple(of.row.shape)})", f"(x: {tuple(of.x.shape)})"),)
        raise


def max_unpool(x: Any, indices: Any, kernel_shape: Any, *, strides: Any = None, pads: Any = None,
               output_shape: Any = None) -> Any:  # fmt: skip
    """ONNX's ``MaxUnpool``: the values of a `max_pool` back where they came from; everywhere else 0.

    Parameters
    ----------
    x : array_like of shape ``(N, C, D1, …)``
    indices : integer array_like of the same shape
        Positions in the whole result, row-major, as `max_pool` gives them for ``storage_order=0``.
    kernel_shape, strides, pads : sequences of ints
        As in the `max_pool` to undo; they give the result's shape.
    output_shape : sequence of ints, optional
        The result's shape, ``(N, C, …)``, where several would have pooled to that of x.

    Returns
    -------
    ndarray of output_shape, or with ``(n - 1) * stride + kernel - pads`` positions on each spatial axis

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type, or an index lies outside the result.

    Notes
    -----
    Semantics of ONNX opset 22 in the reading of ONNX Runtime: indices are positions in output_shape, so that unpooling
    undoes pooling. ONNX's own example counts them in the shape it would have had otherwise (onnx#2398).

    Examples
    --------
    >>> from anypool.compat import onnx
    >>> y, indices = onnx.max_pool([[[1.0, 4.0, 3.0, 2.0, 0.0]]], [2], strides=[2], return_indices=True)
    >>> onnx.max_unpool(y, indices, [2], strides=[2], output_shape=[1, 1, 5]).tolist()
    [[[0.0, 4.0, 3.0, 0.0, 0.0]]]
    """
    of = _unpooling(x, indices, kernel_shape, strides=strides, pads=pads, output_shape=output_shape)
    return _of_row(max_unpool1d, of).reshape(of.shape)


def _differentiate_unpooling(x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    if is_tensor(x):
        pulled: tuple[Any, Callable[..., Any]] = tensors().pulled(max_unpool, x, *args, **kwargs)
        return pulled
    of = _unpooling(x, *args, **kwargs)
    row, pullback = _of_row(functools.partial(vjp, max_unpool1d), of)

    def gradient(g: Any, grad_x: Any) -> None:
        grad_x[...] = pullback(g.reshape(row.shape)).reshape(grad_x.shape)

    y = row.reshape(of.shape)
    return y, pullback_of(of.x, y, gradient)


def _explain_unpooling(*args: Any, **kwargs: Any) -> Explanation:
    of = _unpooling(*args, **kwargs)
    _of_row(functools.partial(explain, max_unpool1d), of)  # checks dtypes and indices
    windows = Windows(tuple(
        Sliding(size, n, k, 1, s, lo, hi)
        for size, n, k, s, lo, hi in zip(of.shape[2:], of.x.shape[2:], *of.pooling, strict=True)
    ))  # fmt: skip
    return explained_unpooling(of.x, of.shape, windows, 1)


max_unpool.differentiate = _differentiate_unpooling  # type: ignore[attr-defined]
max_unpool.explain = _explain_unpooling  # type: ignore[attr-defined]
