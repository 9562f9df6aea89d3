"""The field's names and signatures. Each function only says what is meant; `anypool.operation` does it.

The drop-in names keep PyTorch's names, argument order and defaults; docs/semantics.md has the formulas.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import numpy as np
import numpy.typing as npt

from anypool import operation
from anypool.arguments import refuse_misfit
from anypool.operation import Call, Description, Selection, as_array, run

Array = npt.NDArray[Any]
P = ParamSpec("P")

_COMMON = """
    mask : array_like of bool, optional
        Which inputs count, True for those that do; broadcast to the shape of x. What does not count is never looked at,
        NaN included.
    {weights}nan : "propagate" or "omit"
        Whether NaNs count, and make their windows NaN, or are left out like masked inputs.
    empty : number, optional
        Value of a window in which nothing counts. Default: NaN; a ValueError for an integer result, or if it is empty
        by its place alone.
    return_valid : bool
        Also return how many inputs count in every window, an int64 array.
    data_format : "channels_first" or "channels_last"
        Whether x is ``(N, C, …)`` or ``(N, …, C)``; N may be missing.
    dtype : dtype, optional
        Of the result. Default: that of x; sums of integers give int64 or uint64.
    out : ndarray, optional
        Where to write the result; must have its shape and dtype and not overlap x.

    Returns
    -------
    {returns}

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type, or a window has no input at all. Nothing is written then.
"""
_WEIGHTS = """weights : array_like, optional
        Factors of the inputs, broadcast to the shape of x; the mean is then ``sum of w x / sum of w``.
    """
_RETURNS = "ndarray of shape ``(N, C, {out})``, with the axis order of x in memory"
_RETURNS_INDICES = """ndarray of shape ``(N, C, {out})``, with the axis order of x in memory
        With ``return_indices=True`` a pair of it and an int64 array: each winner's flat position in the pooled axes."""
_WINDOW = """kernel_size : int or sequence of {rank} ints
        Taps of a window on each pooled axis.
    stride : int or sequence of {rank} ints, optional
        Distance between windows; default ``kernel_size``."""
_PADDING = """padding : int, {rank} ints, {rank} (low, high) pairs, "valid", "same", "same_lower" or "causal"
        Virtual elements around the input, of any number, which no array is made for
    dilation : int or sequence of {rank} ints
        Distance between the taps of a window."""
_CEIL = """ceil_mode : bool
        Let the last window hang over the end, if it still starts inside the input or its low padding."""


def _x_shape(rank: int) -> str:
    return "(N, C, {})".format(", ".join("DHW"[3 - rank :]))


def _document(text: str, rank: int, examples: tuple[str, ...], *, indices: bool, weighs: bool) -> str:
    out = ", ".join(f"out{i + 1}" for i in range(rank)) if rank > 1 else "out"
    returns = (_RETURNS_INDICES if indices else _RETURNS).format(out=out)
    parts = {
        "window": _WINDOW,
        "padding": _PADDING,
        "ceil": _CEIL,
        "common": _COMMON.strip("\n").replace("{returns}", returns).replace("{weights}", _WEIGHTS if weighs else ""),
    }
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    for name, value in {"rank": str(rank), "x": _x_shape(rank), "example": examples[rank - 1]}.items():
        text = text.replace("{" + name + "}", value)
    return text


def _function_of(call: Callable[P, Call]) -> Callable[P, Any]:
    """Return the function that runs a call, which ``function.call`` builds without running it."""

    def function(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            if args and type(args[0]) is not np.ndarray:
                result = operation.quick(call, args, kwargs)
                if result is not NotImplemented:
                    return result
            return run(call(*args, **kwargs))
        except TypeError:
            refuse_misfit(function, args, kwargs)
            raise

    function.call = call  # type: ignore[attr-defined]
    return function


def _ranked(build: Callable[Concatenate[int, P], Call], rank: int, examples: tuple[str, ...], *,
            indices: bool = False) -> Callable[P, Any]:  # fmt: skip
    """Return the public function of one rank."""
    function: Callable[P, Any] = _function_of(functools.partial(build, rank))
    signature = inspect.signature(build)
    function.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = f"{build.__name__.strip('_')}{rank}d"
    function.__module__ = "anypool"
    weighs = "weights" in signature.parameters
    function.__doc__ = _document(build.__doc__ or "", rank, examples, indices=indices, weighs=weighs)
    return function


def public(build: Callable[P, Call], module: str = "anypool") -> Callable[P, Any]:
    """Return the public function of a call that has no rank in its name."""
    function = _function_of(build)
    functools.update_wrapper(function, build)
    function.__name__ = function.__qualname__ = build.__name__.strip("_")
    function.__module__ = module
    return function


def _call(x: Any, what: Description, out: Any, mask: Any, weights: Any, nan: Any, empty: Any,
          return_valid: Any) -> Call:  # fmt: skip
    array = as_array(x)
    usual = type(nan) is str and nan == "propagate"  # an array has no one answer to ==
    if usual and mask is None and weights is None and empty is None and return_valid is False:
        return Call(array, what, out)
    if empty is not None:
        what = what._replace(may_be_empty=True)
    return Call(array, what, out, Selection(mask, weights, nan, empty, return_valid))


def _max_pool(rank: int, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
              ceil_mode: bool = False, return_indices: bool = False, *, data_format: str = "channels_first",
              mask: Any = None, nan: str = "propagate", empty: Any = None, return_valid: bool = False,
              dtype: Any = None, out: Array | None = None) -> Call:  # fmt: skip
    """Largest value of every window: ``y[o] = max of x over window o``.

    Parameters
    ----------
    x : array_like of shape ``{x}``
    {window}
    {padding}
    {ceil}
    return_indices : bool
        Also return where the winners are: the first of equal values, the last of several NaNs.
    {common}

    Notes
    -----
    Semantics of ``torch.nn.functional.max_pool{rank}d``. NaN propagates. Any dtype, integers and bool included.

    Examples
    --------
    {example}
    """
    arguments = (kernel_size, stride, padding, dilation, ceil_mode)
    what = Description(
        f"max_pool{rank}d", "max", "sliding", arguments, rank, None, data_format, return_indices, dtype=dtype
    )
    return _call(x, what, out, mask, None, nan, empty, return_valid)


def _avg_pool(rank: int, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
              count_include_pad: bool = True, divisor_override: int | None = None, *, dilation: Any = 1,
              data_format: str = "channels_first", mask: Any = None, weights: Any = None, nan: str = "propagate",
              empty: Any = None, return_valid: bool = False, dtype: Any = None,
              out: Array | None = None) -> Call:  # fmt: skip
    """Mean of every window: ``y[o] = sum of x over window o / n(o)``.

    Parameters
    ----------
    x : array_like of shape ``{x}``
    {window}
    {padding}
    {ceil}
    count_include_pad : bool
        Whether ``n(o)`` counts padding. The part of a window that hangs over the padding (ceil_mode) never counts.
    divisor_override : int, optional
        Divide by this instead of ``n(o)``.
    {common}

    Notes
    -----
    Semantics of ``torch.nn.functional.avg_pool{rank}d``. Integers keep their dtype and round half to even.

    Examples
    --------
    {example}
    """
    arguments = (kernel_size, stride, padding, dilation, ceil_mode)
    what = Description(f"avg_pool{rank}d", "mean", "sliding", arguments, rank, None, data_format,
                       count_include_pad=count_include_pad, divisor_override=divisor_override, dtype=dtype)  # fmt: skip
    return _call(x, what, out, mask, weights, nan, empty, return_valid)


def _lp_pool(rank: int, x: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False, *,
             padding: Any = 0, dilation: Any = 1, data_format: str = "channels_first", mask: Any = None,
             nan: str = "propagate", empty: Any = None, return_valid: bool = False, dtype: Any = None,
             out: Array | None = None) -> Call:  # fmt: skip
    """Power sum of every window: ``y[o] = sign(s) |s|^(1/p)``, ``s = sum of x^p over window o``, ``p = norm_type``.

    For odd integer p the terms keep their signs, so that p = 1 is sum pooling; otherwise ``s`` is the sum of ``|x|^p``.

    Parameters
    ----------
    x : array_like of shape ``{x}``
    norm_type : float
        The exponent p > 0; ``inf`` gives the largest magnitude.
    {window}
    {ceil}
    {padding}
    {common}

    Notes
    -----
    Semantics of ``torch.nn.functional.lp_pool{rank}d``, but never NaN from numbers, and windows cut off by ceil_mode
    are not scaled up. ``pool(x, "lp", …)`` is the norm, ``(sum of |x|^p)^(1/p)``, for every p.

    Examples
    --------
    {example}
    """
    arguments = (kernel_size, stride, padding, dilation, ceil_mode)
    what = Description(f"lp_pool{rank}d", "lp", "sliding", arguments, rank, None, data_format, parameter=norm_type,
                       signed=True, dtype=dtype)  # fmt: skip
    return _call(x, what, out, mask, None, nan, empty, return_valid)


def _adaptive_avg_pool(rank: int, x: Any, output_size: Any, *, data_format: str = "channels_first", mask: Any = None,
                       weights: Any = None, nan: str = "propagate", empty: Any = None, return_valid: bool = False,
                       dtype: Any = None, out: Array | None = None) -> Call:  # fmt: skip
    """Mean of ``output_size`` windows that divide each axis: ``floor(i n / o) … ceil((i + 1) n / o)``.

    Parameters
    ----------
    x : array_like of shape ``{x}``
    output_size : int, None, or sequence of {rank} of them
        Outputs on each pooled axis; ``None`` keeps an axis as it is.
    {common}

    Notes
    -----
    Semantics of ``torch.nn.functional.adaptive_avg_pool{rank}d``; the bounds are exact for any length.

    Examples
    --------
    {example}
    """
    what = Description(f"adaptive_avg_pool{rank}d", "mean", "adaptive", (output_size,), rank, None, data_format,
                       count_include_pad=False, dtype=dtype)  # fmt: skip
    return _call(x, what, out, mask, weights, nan, empty, return_valid)


def _adaptive_max_pool(rank: int, x: Any, output_size: Any, return_indices: bool = False, *,
                       data_format: str = "channels_first", mask: Any = None, nan: str = "propagate", empty: Any = None,
                       return_valid: bool = False, dtype: Any = None, out: Array | None = None) -> Call:  # fmt: skip
    """Largest value of ``output_size`` windows that divide each axis: ``floor(i n / o) … ceil((i + 1) n / o)``.

    Parameters
    ----------
    x : array_like of shape ``{x}``
    output_size : int, None, or sequence of {rank} of them
        Outputs on each pooled axis; ``None`` keeps an axis as it is.
    return_indices : bool
        Also return where the winners are: the first of equal values, the last of several NaNs.
    {common}

    Notes
    -----
    Semantics of ``torch.nn.functional.adaptive_max_pool{rank}d``.

    Examples
    --------
    {example}
    """
    what = Description(f"adaptive_max_pool{rank}d", "max", "adaptive", (output_size,), rank, None, data_format,
                       return_indices, dtype=dtype)  # fmt: skip
    return _call(x, what, out, mask, None, nan, empty, return_valid)


def _example(name: str, arguments: tuple[str, ...], results: tuple[str, ...]) -> tuple[str, ...]:
    inputs = (
        "np.arange(6.0).reshape(1, 1, 6)",
        "np.arange(16.0).reshape(1, 1, 4, 4)",
        "np.arange(16.0).reshape(1, 1, 4, 2, 2)",
    )
    return tuple(
        ">>> import numpy as np, anypool as ap\n"
        f"    >>> ap.{name}{r}d({inputs[r - 1]}, {arguments[r - 1]}).ravel().tolist()\n"
        f"    {results[r - 1]}"
        for r in (1, 2, 3)
    )


_RANKS = (1, 2, 3)
_EXAMPLES = {
    _max_pool: _example("max_pool", ("2", "2", "2"), ("[1.0, 3.0, 5.0]", "[5.0, 7.0, 13.0, 15.0]", "[7.0, 15.0]")),
    _avg_pool: _example("avg_pool", ("2", "2", "2"), ("[0.5, 2.5, 4.5]", "[2.5, 4.5, 10.5, 12.5]", "[3.5, 11.5]")),
    _lp_pool: _example(
        "lp_pool", ("1, 2", "1, 2", "1, 2"), ("[1.0, 5.0, 9.0]", "[10.0, 18.0, 42.0, 50.0]", "[28.0, 92.0]")
    ),
    _adaptive_avg_pool: _example(
        "adaptive_avg_pool", ("4", "(1, 3)", "1"), ("[0.5, 1.5, 3.5, 4.5]", "[6.5, 7.5, 8.5]", "[7.5]")
    ),
    _adaptive_max_pool: _example(
        "adaptive_max_pool", ("4", "(1, 3)", "1"), ("[1.0, 2.0, 4.0, 5.0]", "[13.0, 14.0, 15.0]", "[15.0]")
    ),
}
max_pool1d, max_pool2d, max_pool3d = (_ranked(_max_pool, r, _EXAMPLES[_max_pool], indices=True) for r in _RANKS)
avg_pool1d, avg_pool2d, avg_pool3d = (_ranked(_avg_pool, r, _EXAMPLES[_avg_pool]) for r in _RANKS)
lp_pool1d, lp_pool2d, lp_pool3d = (_ranked(_lp_pool, r, _EXAMPLES[_lp_pool]) for r in _RANKS)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (
    _ranked(_adaptive_avg_pool, r, _EXAMPLES[_adaptive_avg_pool]) for r in _RANKS
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (
    _ranked(_adaptive_max_pool, r, _EXAMPLES[_adaptive_max_pool], indices=True) for r in _RANKS
)


@public
def global_avg_pool(x: Any, *, keepdims: bool = True, data_format: str = "channels_first", mask: Any = None,
                    weights: Any = None, nan: str = "propagate", empty: Any = None, return_valid: bool = False,
                    dtype: Any = None, out: Array | None = None) -> Call:  # fmt: skip
    """Mean over all positions of each channel.

    Parameters
    ----------
    x : array_like of shape ``(N, C, …)``, or ``(N, …, C)`` for channels_last
    keepdims : bool
        Keep the pooled axes, with size 1.
    mask, weights, nan, empty, return_valid, data_format, dtype, out
        As in `avg_pool2d`.

    Returns
    -------
    ndarray of shape ``(N, C, 1, …)``, or ``(N, C)`` without keepdims

    Raises
    ------
    ValueError, TypeError
        As in `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> ap.global_avg_pool(np.arange(8.0).reshape(1, 2, 2, 2), keepdims=False)
    array([[1.5, 5.5]])
    """
    what = Description("global_avg_pool", "mean", "global", (), None, None, data_format, keepdims=keepdims, dtype=dtype)
    return _call(x, what, out, mask, weights, nan, empty, return_valid)


@public
def global_max_pool(x: Any, *, return_indices: bool = False, keepdims: bool = True, data_format: str = "channels_first",
                    mask: Any = None, nan: str = "propagate", empty: Any = None, return_valid: bool = False,
                    dtype: Any = None, out: Array | None = None) -> Call:  # fmt: skip
    """Largest value over all positions of each channel.

    Parameters
    ----------
    x : array_like of shape ``(N, C, …)``, or ``(N, …, C)`` for channels_last
    return_indices : bool
        Also return each winner's flat position.
    keepdims : bool
        Keep the pooled axes, with size 1.
    mask, nan, empty, return_valid, data_format, dtype, out
        As in `max_pool2d`.

    Returns
    -------
    ndarray of shape ``(N, C, 1, …)``, or ``(N, C)`` without keepdims; with return_indices also an int64 array

    Raises
    ------
    ValueError, TypeError
        As in `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> ap.global_max_pool(np.arange(8).reshape(1, 2, 2, 2), keepdims=False, return_indices=True)
    (array([[3, 7]]), array([[3, 3]]))
    """
    what = Description(
        "global_max_pool", "max", "global", (), None, None, data_format, return_indices, keepdims=keepdims, dtype=dtype
    )
    return _call(x, what, out, mask, None, nan, empty, return_valid)


@public
def pool(x: Any, reduction: str, kernel_size: Any, *, axes: Any = None, stride: Any = None, padding: Any = 0,
         dilation: Any = 1, ceil_mode: bool = False, count_include_pad: bool = True,
         divisor_override: int | None = None, return_indices: bool = False, norm_type: float = 2, r: float = 1.0,
         q: float | None = None, correction: float = 0, ignore: Any = None,
         generator: np.random.Generator | None = None, data_format: str = "channels_first", mask: Any = None,
         weights: Any = None, nan: str = "propagate", empty: Any = None, return_valid: bool = False, dtype: Any = None,
         out: Array | None = None) -> Call:  # fmt: skip
    """Any reduction over sliding windows on any axes of an array of any rank.

    Parameters
    ----------
    x : array_like
    reduction : str
        "max", "min", "sum", "mean" (or "avg"), "lp", "logsumexp"; "any", "all"; "median", "quantile", "mode", "std",
        "var", "softmax" or "stochastic".
    kernel_size : int or sequence of ints
        Taps of a window on each pooled axis.
    axes : int or sequence of ints, optional
        The pooled axes. Default: as many as kernel_size has elements, counted from the last axis (from the one before
        the channels for channels_last); all axes (but the channels) for an int.
    stride, padding, dilation, ceil_mode
        As in `max_pool2d`; ``stride=None`` means kernel_size.
    count_include_pad, divisor_override
        As in `avg_pool2d`, for "mean".
    return_indices : bool
        As in `max_pool2d`, for "max", "min" and "stochastic".
    norm_type : float
        Exponent of "lp", the norm ``(sum of |x|^p)^(1/p)``.
    r : float
        Sharpness of "logsumexp", ``log(sum of exp(r x)) / r``, and of "softmax", ``sum of x exp(r x) / sum of
        exp(r x)``.
    q : float
        From 0 to 1: which "quantile".
    correction : float
        "std" and "var" divide by ``n - correction``.
    ignore : int or sequence of ints, optional
        Values that "mode" does not count.
    generator : numpy.random.Generator, optional
        Gives the draws of "stochastic", one for each element of the result in row-major order.
    mask, weights, nan, empty, return_valid, data_format, dtype, out
        As in `avg_pool2d`; weights for "sum" and "mean".

    Returns
    -------
    ndarray of the rank of x, or a pair of it and an int64 array with return_indices

    Raises
    ------
    ValueError, TypeError
        As in `max_pool2d`.

    Examples
    --------
    >>> import anypool as ap
    >>> ap.pool([1, 4, -1, 0, 2, -2, 1, 3, 3, 1], "max", 2)
    array([4, 0, 2, 3, 3])
    >>> ap.pool([[1, 2], [3, 4]], "sum", 2, axes=0)
    array([[4, 6]])
    >>> ap.pool([1, 4, -1, 0, 2, -2], "median", 3), ap.pool([7, 7, 0, 0, 0, 5], "mode", 3, ignore=0)
    (array([1., 0.]), array([7, 5]))
    """
    arguments = (kernel_size, stride, padding, dilation, ceil_mode)
    parameters = (("norm_type", norm_type), ("r", r), ("q", q), ("correction", correction), ("ignore", ignore))
    what = Description("pool", reduction, "sliding", arguments, None, axes, data_format, return_indices,
                       count_include_pad, divisor_override, parameters, dtype=dtype)  # fmt: skip
    return _call(x, what, out, mask, weights, nan, empty, return_valid)._replace(generator=generator)
