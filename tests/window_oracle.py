"""The truth of reductions that need a whole window: functions of the list of values seen, from their formulas.

Part of oracle.py, and like it without anypool. Moments are exact fractions, rounded once.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction


def has_nan(values) -> bool:
    return any(v != v for v in values)


def last_nan(values) -> int:
    return max(i for i, v in enumerate(values) if v != v)


def rank_of(values, q: float) -> tuple[int, int, float]:
    """Places of the two inputs around a quantile among the sorted ones, and how far it lies from the lower."""
    position = q * (len(values) - 1)
    low = math.floor(position)
    return low, min(low + 1, len(values) - 1), position - low


def quantile(values, q: float) -> float:
    if has_nan(values):
        return math.nan
    low, high, part = rank_of(values, q)
    ordered = sorted(values)
    a, b = float(ordered[low]), float(ordered[high])
    if part == 0 or a == b:
        return a
    if math.isinf(a) or math.isinf(b):
        return a * (1 - part) + b * part
    return float(Fraction(a) * (1 - Fraction(part)) + Fraction(b) * Fraction(part))


def quantile_gradient(values, q: float) -> list[float]:
    """To the inputs at the two ranks; equal inputs stand in the order of the window."""
    slope = [0.0] * len(values)
    if has_nan(values):
        slope[last_nan(values)] = 1.0
        return slope
    low, high, part = rank_of(values, q)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    slope[order[low]] += 1 - part
    slope[order[high]] += part
    return slope


def mode(values, ignore=()):
    counts = Counter(v for v in values if int(v) not in ignore)
    most = max(counts.values())
    return min(v for v, n in counts.items() if n == most)


def in_units(values) -> tuple[list[int], int]:
    """The values as integers, and by what they were multiplied: floats are fractions of powers of two."""
    ratios = [float(v).as_integer_ratio() for v in values]
    unit = max(d for _, d in ratios)
    return [n * (unit // d) for n, d in ratios], unit


def squares(values) -> Fraction:
    """Sum of squared distances from the mean, exactly."""
    whole, unit = in_units(values)
    return Fraction(len(whole) * sum(v * v for v in whole) - sum(whole) ** 2, len(whole) * unit * unit)


def variance(values, correction: float = 0) -> float:
    if not all(map(math.isfinite, values)) or len(values) <= correction:
        return math.nan
    try:
        return float(squares(values) / (len(values) - Fraction(correction)))
    except OverflowError:
        return math.inf


def deviation(values, correction: float = 0) -> float:
    """The root of the variance, in units in which squares are numbers."""
    if not all(map(math.isfinite, values)) or len(values) <= correction:
        return math.nan
    exponent = math.frexp(max(map(abs, values)))[1]
    variance_in_units = squares(values) / (len(values) - Fraction(correction)) / Fraction(4) ** exponent
    return math.ldexp(math.sqrt(variance_in_units), exponent)


def deviations(values) -> list[float]:
    whole, unit = in_units(values)
    total = sum(whole)
    return [(len(whole) * v - total) / (len(whole) * unit) for v in whole]


def variance_gradient(values, correction: float) -> list[float]:
    return [2 * d / (len(values) - correction) for d in deviations(values)]


def deviation_gradient(values, correction: float) -> list[float]:
    std = deviation(values, correction)
    if std == 0:
        return [0.0] * len(values)
    return [d / (len(values) - correction) / std for d in deviations(values)]


def softmax_weights(values, r: float) -> list[float]:
    """exp(r x) / sum of exp(r x); the limit where inputs are infinite."""
    top = max(values, key=lambda v: r * v)
    terms = [1.0 if v == top else math.exp(r * (v - top)) for v in values]
    return [t / math.fsum(terms) for t in terms]


def softmax(values, r: float) -> float:
    if has_nan(values):
        return math.nan
    top = max(values, key=lambda v: r * v)
    if math.isinf(top):
        return top
    return math.fsum(w * v for w, v in zip(softmax_weights(values, r), values, strict=True) if w)


def softmax_gradient(values, r: float) -> list[float]:
    y = softmax(values, r)
    return [w * (1 + r * (v - y)) for w, v in zip(softmax_weights(values, r), values, strict=True)]


def drawn(values, u: float) -> int:
    """The first input at which the sum of shares passes u; infinite inputs share everything."""
    if has_nan(values):
        return last_nan(values)
    if math.inf in values:
        values = [v == math.inf for v in values]
    shares, _ = in_units(values)
    target, reached = Fraction(u) * sum(shares), 0
    for i, share in enumerate(shares):
        reached += share
        if reached > target:
            return i
    return 0


# (value, largest magnitude, how often it entered) of one window, as in oracle.reduced


def reduced(seen, reduction: str, option) -> tuple:
    if reduction in ("any", "all"):
        return (any if reduction == "any" else all)(v != 0 for v in seen), 0.0, 1.0
    if reduction == "mode":
        return mode(seen, option.ignore), 0.0, 1.0
    if reduction in ("median", "quantile"):
        q = 0.5 if reduction == "median" else option.q
        return quantile(seen, q), max((abs(float(v)) for v in seen if math.isfinite(v)), default=0.0), 1.0
    seen = [float(v) for v in seen]
    finite = [v for v in seen if math.isfinite(v)] or [0.0]
    spread = max(finite) - min(finite)
    if reduction == "softmax":
        return softmax(seen, option.r), max(max(map(abs, finite)), spread), 1.0
    var = variance(seen, option.correction)
    if reduction == "var":
        return var, spread * spread * len(seen) / max(len(seen) - option.correction, 1), 1.0
    return deviation(seen, option.correction), spread, 1.0


def gradient(seen, reduction: str, option) -> list[float]:
    if reduction in ("median", "quantile"):
        return quantile_gradient(seen, 0.5 if reduction == "median" else option.q)
    if reduction == "softmax":
        return softmax_gradient(seen, option.r)
    return (variance_gradient if reduction == "var" else deviation_gradient)(seen, option.correction)


def steepness(seen, reduction: str, option) -> float:
    """What the rounding errors of a gradient are relative to: it may cancel."""
    if reduction in ("median", "quantile"):
        return 1.0
    spread = max(seen) - min(seen)
    if reduction == "softmax":
        return max(1.0, abs(option.r) * spread)
    divisor = len(seen) - option.correction
    return 2 * spread / divisor if reduction == "var" else spread / divisor / (deviation(seen, option.correction) or 1)


GRADIENTS = ("median", "quantile", "std", "var", "softmax")
NAMES = ("any", "all", "mode", *GRADIENTS)
