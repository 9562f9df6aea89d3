"""Algebra: what is done with the inputs of a window?

A reduction is a declaration: how an element is lifted into a state, how states merge, how a state becomes a result.
States are tuples of arrays; the functions here work on NumPy arrays of any shape and are the definition. Backends may
run the same names faster, and say so in ``supports``. A reduction that no small state can hold declares a function of
whole windows instead (`anypool.window_functions`). Nothing here knows rank, layout, padding or backends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool import window_functions as functions
from anypool.arguments import dtype_argument, shown
from anypool.window_functions import WindowFunction

Array = npt.NDArray[Any]
State = tuple[Array, ...]

LOG2E = 1.0 / math.log(2.0)
ZERO_EXPONENT = -(2.0**1020)


# ---- merging: (state of the earlier inputs, state of the later inputs) -> state --------------------------------------


def _better(left: Array, right: Array, larger: bool) -> Any:
    """Return where the later value wins: it must be better, not equal; but a NaN beats everything, the last NaN too."""
    wins = right > left if larger else right < left
    return wins | (right != right)


def _select(larger: bool) -> Callable[[State, State], State]:
    def merge(left: State, right: State) -> State:
        wins = _better(left[0], right[0], larger)
        if len(left) == 2:  # with positions: the order is total, so any order of merging gives the same winner
            (a, i), (b, j) = left, right
            both_nan = (a != a) & (b != b)
            wins = np.where(both_nan, j > i, (wins & ~(a != a)) | ((a == b) & (j < i)))
            return np.where(wins, b, a), np.where(wins, j, i)
        return (np.where(wins, right[0], left[0]),)

    return merge


def _add(left: State, right: State) -> State:
    return (left[0] + right[0],)


def _add_scaled(left: State, right: State) -> State:
    """Add ``a · 2^b`` numbers: no overflow, no search for a maximum first."""
    (a, i), (b, j) = left, right
    top = np.maximum(i, j)
    shift = -2000  # beyond it a double is zero
    return a * np.exp2(np.maximum(i - top, shift)) + b * np.exp2(np.maximum(j - top, shift)), top


MERGES: dict[str, Callable[[State, State], State]] = {
    "max": _select(True),
    "min": _select(False),
    "sum": _add,
    "scaled_sum": _add_scaled,
}


def identity(merge: str, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return the state of no input at all."""
    if merge == "sum":
        return (dtype.type(-0.0 if dtype.kind == "f" else 0),)
    if merge == "scaled_sum":
        return (0.0, ZERO_EXPONENT)
    lowest = merge == "max"
    if dtype.kind == "b":
        return (np.bool_(not lowest),)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return (dtype.type(info.min if lowest else info.max),)
    return (dtype.type(-np.inf if lowest else np.inf),)


def neutral(merge: str, lift: str, p: float, dtype: np.dtype[Any]) -> Any:
    """Return the input that changes no window's result: an integer's may be a float."""
    if lift == "exp":
        return (dtype if is_float(dtype) else np.dtype(np.float64)).type(-math.inf if p > 0 else math.inf)
    if merge == "sum":
        return dtype.type(-0.0 if is_float(dtype) else 0)
    if lift == "nonzero":
        return dtype.type(merge == "min")
    return dtype.type(0) if lift == "absolute" else identity(merge, dtype)[0]


# ---- lifting: element -> state; and finishing: state -> result -------------------------------------------------------


def _power(x: Array, p: float) -> Array:
    """Return |x|^p; whole exponents up to 16 by squaring, factors from the lowest binary digit on, as kernels do."""
    x = np.abs(x)
    if p > 16 or p != int(p):
        return np.power(x, p, dtype=np.float64).astype(x.dtype)
    y = None
    for place, digit in enumerate(reversed(f"{int(p):b}")):
        if place:
            x = x * x
        if digit == "1":
            y = x if y is None else y * x
    assert y is not None  # p is positive
    return y


def sign(x: Array) -> Array:
    """Return the sign, which is 0 for a NaN, as PyTorch says."""
    signs: Array = np.where(x == x, np.sign(x), x.dtype.type(0))
    return signs


def _root(s: Array, p: float) -> Array:
    """Return sign(s) |s|^(1/p), rounded once."""
    if p == 1:
        return s
    wide = s.astype(np.float64)
    if p == 3:
        root: Array = np.cbrt(wide)
    else:
        wide = np.abs(wide)
        root = np.sqrt(wide) if p == 2 else np.sqrt(np.sqrt(wide)) if p == 4 else np.power(wide, 1 / p)
        root = np.copysign(root, s)
    return root.astype(s.dtype)


def scaled(factor: Array, exponent: Array) -> State:
    """``factor · 2^exponent`` as a scaled number, for any real exponent."""
    whole = np.floor(np.where(np.isfinite(exponent), exponent, 0.0))
    a = factor * np.exp2(exponent - whole)
    zero = np.isneginf(exponent) | (factor == 0)
    exponents = np.where(np.isposinf(exponent), -ZERO_EXPONENT, whole)  # an infinity stands above every finite one
    return np.where(zero, factor * 0.0, a), np.where(zero, ZERO_EXPONENT, exponents)


LIFTS: dict[str, Callable[[Array, float], State]] = {
    "none": lambda x, p: (x,),
    "nonzero": lambda x, p: (x != 0,),
    "absolute": lambda x, p: (np.abs(x),),
    "power": lambda x, p: (_power(x, p),),
    "signed_power": lambda x, p: (np.copysign(_power(x, p), x),),
    "exp": lambda x, p: scaled(np.ones_like(x), x * (p * LOG2E)),
}

FINISHES: dict[str, Callable[[State, float], Array]] = {
    "none": lambda s, p: s[0],
    "root": lambda s, p: _root(s[0], p),
    "signed_root": lambda s, p: _root(s[0], p),
    "log": lambda s, p: (np.log(s[0]) + s[1] * math.log(2.0)) / p,
}


def divide_half_even(total: Array, n: Array) -> Any:
    """Return the integer quotients, halves rounded to the even neighbour."""
    quotient, rest = np.divmod(total, n)
    more = rest > n - rest
    tie = rest == n - rest
    return quotient + (more | (tie & (quotient % 2 == 1))).astype(total.dtype)


def plain_gradient(lift: str, p: float, x: np.dtype[Any]) -> bool:
    """Return whether the adjoint of a power sum needs no scaled numbers: all its terms are numbers of float64.

    Powers of float32 up to the third, times a gradient and however many of them there are: at most ``2^(4·128 + 30)``.
    """
    return lift == "over_power" and p in (1, 2, 3, 4) and x.itemsize <= 4


def lift_gradient(name: str, g: Array, y: Array, p: float, *, plain: bool) -> State:
    """Lift a gradient for the adjoint of a power or exponential sum: ``g·|y|^(1-p)`` or ``g·exp(-p·y)``."""
    if name == "over_exp":
        return scaled(g, -y * (p * LOG2E))
    zero = y == 0
    if plain:
        return (np.where(zero, 0.0, g) / np.where(zero, 1.0, np.abs(y)) ** (p - 1),)
    return scaled(np.where(zero, 0.0, g), (1 - p) * np.log2(np.where(zero, 1.0, np.abs(y))))


def finish_gradient(name: str, state: State, x: Array, p: float) -> Array:
    """Finish that adjoint with the input's own factor: ``exp(p·x)``, or ``|x|^(p-1)`` with or without the sign of x."""
    a, b = state if len(state) == 2 else (state[0], np.zeros(()))
    if name == "times_exp":
        grown = a * np.exp2(b + x * (p * LOG2E))
    else:
        zero = x == 0
        if len(state) == 1:
            grown = a * np.abs(x) ** (p - 1)
        else:
            grown = a * np.exp2(b + (p - 1) * np.log2(np.where(zero, 1.0, np.abs(x))) if p != 1 else b)
        if name == "times_power":
            grown = grown * np.sign(x)
        elif p != 1:
            grown = np.where(zero, grown * 0.0, grown)
    return np.where(a == 0, 0.0, grown)


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reduction:
    """One reduction. ``parameter`` names its number (an exponent or a sharpness), ``adjoint`` its gradient.

    The adjoint is ``"select"`` (the winner takes the gradient), ``"function"`` (that of the window function), None (no
    gradient) or a pair ``(lift, finish)``: the gradient of x is ``finish(x) * sum over the windows that saw x of
    lift(gradient, y)``.
    """

    name: str
    formula: str
    merge: str
    lift: str = "none"
    finish: str = "none"
    parameter: str | None = None
    adjoint: str | tuple[str, str] | None = ("none", "none")
    integers: str = "keep"  # integer input gives: "keep" the dtype, 64-bit "sum", or "float"; any input gives: "bool"
    function: WindowFunction | None = None  # instead of merge, lift and finish
    floats: bool = True  # whether it is defined for floats

    @property
    def selects(self) -> bool:
        """Whether the result is one of the inputs, so that it has an index."""
        return self.adjoint == "select"


def _of_windows(name: str, formula: str, function: WindowFunction, parameter: str | None = None, *,
                integers: str = "float", floats: bool = True) -> Reduction:  # fmt: skip
    adjoint = "select" if function.chooses else None if function.gradient is None else "function"
    return Reduction(name, formula, "gather", "none", "none", parameter, adjoint, integers, function, floats)


REDUCTIONS: dict[str, Reduction] = {
    r.name: r
    for r in (
        Reduction("max", "max(x)", "max", adjoint="select"),
        Reduction("min", "min(x)", "min", adjoint="select"),
        Reduction("sum", "Σ x", "sum", integers="sum"),
        Reduction("mean", "Σ x / n", "sum", finish="divide", adjoint=("over_divisor", "none")),
        Reduction("lp", "(Σ |x|^p)^(1/p)", "sum", "power", "root", "norm_type", ("over_power", "times_power"), "float"),
        Reduction(
            "logsumexp", "log(Σ exp(r x)) / r", "scaled_sum", "exp", "log", "r", ("over_exp", "times_exp"), "float"
        ),
        Reduction("any", "∃ x ≠ 0", "max", "nonzero", adjoint=None, integers="bool"),
        Reduction("all", "∀ x ≠ 0", "min", "nonzero", adjoint=None, integers="bool"),
        _of_windows("median", "quantile(x, 1/2)", functions.MEDIAN),
        _of_windows("quantile", "x at rank q (n - 1), interpolated", functions.QUANTILE, "q"),
        _of_windows("mode", "the most frequent x", functions.MODE, integers="keep", floats=False),
        _of_windows("std", "√(Σ (x - mean)² / (n - correction))", functions.DEVIATION, "correction"),
        _of_windows("var", "Σ (x - mean)² / (n - correction)", functions.VARIANCE, "correction"),
        _of_windows("softmax", "Σ x exp(r x) / Σ exp(r x)", functions.SOFTMAX, "r"),
        _of_windows("stochastic", "x with probability x / Σ x", functions.STOCHASTIC, integers="keep"),
    )
}

# What holds for a parameter, and in words. Comparisons alone: a compiler may trace them with a number it does not know.
PARAMETERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "norm_type": (lambda p: p > 0, "> 0"),
    "r": (lambda r: -math.inf < r < math.inf and r != 0, "finite and not 0"),
    "q": (lambda q: 0 <= q <= 1, "between 0 and 1"),
    "correction": (lambda c: 0 <= c < math.inf, "finite and >= 0"),
}

# Not in the table, because each is another form of a reduction that is: p = inf, and PyTorch's lp for odd p.
LARGEST_MAGNITUDE = Reduction("lp", "max|x|", "max", "absolute", adjoint="select", integers="float")
SIGNED_LP = Reduction("lp", "sign(s)·|s|^(1/p), s = Σ x^p", "sum", "signed_power", "signed_root", "norm_type",
                      ("over_power", "times_signed_power"), "float")  # fmt: skip

ALIASES = {"avg": "mean"}


def find(name: Any) -> Reduction:
    """Return the reduction of that name, or raise a ValueError that lists the names there are."""
    found = REDUCTIONS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {shown(name)}")
    return found


# ---- dtypes ----------------------------------------------------------------------------------------------------------


class Bfloat16:
    """Stands for a dtype that NumPy has only with ml_dtypes: what this package asks a dtype for, and no more."""

    name = "bfloat16"
    type = float
    kind = "V"
    itemsize = 2
    isnative = True

    def newbyteorder(self, _: str) -> Bfloat16:
        """Return itself: it is only ever used for memory of this machine."""
        return self

    def __repr__(self) -> str:
        return self.name


BFLOAT16: Any = Bfloat16()


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether kernels treat the dtype as floating-point: float16, bfloat16, float32 or float64."""
    # By kind and size: NumPy puts a name together anew each time, in 4 µs.
    return (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or (dtype.kind == "V" and dtype.name == "bfloat16")


def check_dtype(dtype: np.dtype[Any], where: str) -> None:
    """Refuse what cannot be pooled: complex numbers, objects, text, dates, records."""
    if not (is_float(dtype) or dtype.kind in "biu"):
        raise TypeError(f"x must be bool, integer, float16, bfloat16, float32 or float64, got dtype {dtype} ({where})")


def dtypes(reduction: Reduction, x: np.dtype[Any], wanted: Any, where: str) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the dtypes a reduction of ``x`` accumulates in and returns.

    Halves accumulate in float32 and round once; integers add up exactly in 64 bits.
    """
    check_dtype(x, where)
    x = x.newbyteorder("=")
    result: np.dtype[Any]
    if not reduction.floats and is_float(x):
        raise TypeError(f"x must be bool or integer for {reduction.name!r}, got dtype {x} ({where})")
    if reduction.integers == "bool":
        result = np.dtype(bool)
    elif is_float(x):
        result = x
    elif reduction.integers == "float" or (reduction.finish == "divide" and x.kind == "b"):
        result = np.dtype(np.float64)
    elif reduction.integers == "sum":
        result = np.dtype(np.uint64 if x.kind == "u" else np.int64)
    else:
        result = x
    if wanted is not None:
        wanted = BFLOAT16 if wanted is BFLOAT16 else dtype_argument(wanted, where)
        if not (is_float(wanted) or wanted.kind in "biu"):
            raise TypeError(f"dtype must be bool, integer or a float of at most 64 bits, got {wanted} ({where})")
        if not (is_float(wanted) or np.can_cast(result, wanted, "safe")):
            raise TypeError(f"dtype must be a float or hold every {result} value, got {wanted} ({where})")
        result = wanted
    if reduction.merge == "scaled_sum" or (reduction.function is not None and reduction.function.wide):
        return np.dtype(np.float64), result
    if reduction.integers == "bool":
        return np.dtype(bool), result
    if reduction.function is not None:  # it compares inputs
        return np.dtype(np.float32) if x.name in ("float16", "bfloat16") else x, result
    if reduction.integers == "float":  # powers need a float to be powers in
        return np.dtype(np.float64 if not is_float(x) or "float64" in (x.name, result.name) else np.float32), result
    if reduction.selects:
        return np.dtype(np.float32) if x.name in ("float16", "bfloat16") else x, result
    if is_float(x):
        return np.dtype(np.float64 if "float64" in (x.name, result.name) else np.float32), result
    return np.dtype(np.uint64 if x.kind == "u" else np.int64), result
