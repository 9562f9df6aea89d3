"""The independent truth of token pooling: plain loops over Python numbers, one output, one feature at a time.

Nothing here imports anypool. `value` is what the tokens of a row give, `shares` what each of them gets of a gradient.
Sums are `math.fsum`.
"""

from __future__ import annotations

import math

NAMES = (
    "mean", "sum", "max", "min", "first", "last", "mean_sqrt_len", "weightedmean", "std", "lp", "gem", "logsumexp"
)  # fmt: skip


# ------------------------------------------------------------------------------- values


def largest(values: list[float]) -> tuple[float, int]:
    """The largest and its place: the first of equals, the last NaN before everything."""
    best, at = values[0], 0
    for i, v in enumerate(values):
        if math.isnan(v) or (not math.isnan(best) and v > best):
            best, at = v, i
    return best, at


def smallest(values: list[float]) -> tuple[float, int]:
    best, at = largest([-v for v in values])
    return -best, at


def positions(n: int, skipped: int) -> list[int]:
    return list(range(skipped + 1, skipped + n + 1))


def centre(x: list[float], w: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, w, strict=True)) / math.fsum(w)


def spread(x: list[float], w: list[float]) -> float:
    if all(v == x[0] for v in x):  # exactly; the centre below may be off by its last bit
        return 0.0
    middle = centre(x, w)
    return math.sqrt(math.fsum(b * (a - middle) ** 2 for a, b in zip(x, w, strict=True)) / math.fsum(w))


def logsumexp(x: list[float], r: float) -> float:
    top = max(r * v for v in x)
    if math.isinf(top):
        return top / r
    return (top + math.log(math.fsum(math.exp(r * v - top) for v in x))) / r


def value(name: str, x: list[float], *, weights=None, skipped: int = 0, p: float = 2.0, r: float = 1.0,
          eps: float = 1e-6) -> float:  # fmt: skip
    """What the tokens' numbers give; at least one token."""
    n = len(x)
    w = [1.0] * n if weights is None else weights
    if name in ("mean", "sum") and weights is not None:
        total = math.fsum(a * b for a, b in zip(x, w, strict=True))
        return total / math.fsum(w) if name == "mean" else total
    if name == "weightedmean":
        return centre(x, [float(k) for k in positions(n, skipped)])
    if name == "lp":
        if p == math.inf:
            return largest([abs(v) for v in x])[0]
        return math.fsum(abs(v) ** p for v in x) ** (1 / p)
    if name == "gem":
        return (math.fsum(max(v, eps) ** p for v in x) / n) ** (1 / p)
    return {
        "mean": lambda: math.fsum(x) / n,
        "sum": lambda: math.fsum(x),
        "max": lambda: largest(x)[0],
        "min": lambda: smallest(x)[0],
        "first": lambda: x[0],
        "last": lambda: x[-1],
        "mean_sqrt_len": lambda: math.fsum(x) / math.sqrt(n),
        "std": lambda: spread(x, w),
        "logsumexp": lambda: logsumexp(x, r),
    }[name]()


def shares(name: str, x: list[float], g: float, *, weights=None, skipped: int = 0, p: float = 2.0, r: float = 1.0,
           eps: float = 1e-6) -> list[float]:  # fmt: skip
    """What each token gets of the gradient `g`: by the definition, with the result worked out again."""
    n = len(x)
    w = [1.0] * n if weights is None else weights
    y = value(name, x, weights=weights, skipped=skipped, p=p, r=r, eps=eps)

    def only(at: int, share: float = g) -> list[float]:
        return [share if i == at else 0.0 for i in range(n)]

    if name == "mean":
        return [g * v / math.fsum(w) for v in w]
    if name == "sum":
        return [g * v for v in w]
    if name == "max":
        return only(largest(x)[1])
    if name == "min":
        return only(smallest(x)[1])
    if name == "first":
        return only(0)
    if name == "last":
        return only(n - 1)
    if name == "mean_sqrt_len":
        return [g / math.sqrt(n)] * n
    if name == "weightedmean":
        k = positions(n, skipped)
        return [g * v / sum(k) for v in k]
    if name == "std":
        return [0.0 if y == 0 else g * b * (a - centre(x, w)) / (math.fsum(w) * y) for a, b in zip(x, w, strict=True)]
    if name == "lp" and p == math.inf:
        at = largest([abs(v) for v in x])[1]
        return only(at, g * math.copysign(1.0, x[at]) if x[at] else 0.0)
    if name == "lp":
        return [0.0 if y == 0 or v == 0 else g * math.copysign((abs(v) / y) ** (p - 1), v) for v in x]
    if name == "gem":
        return [0.0 if v <= eps else g * (v / y) ** (p - 1) / n for v in x]
    return [g * math.exp(r * (v - y)) for v in x]


def attention(scores: list[float], values: list[list[float]]) -> list[float]:
    """Softmax of the scores over the tokens, and the values' sum with these weights."""
    top = max(scores)
    e = [math.exp(s - top) for s in scores]
    total = math.fsum(e)
    return [math.fsum(a * v[c] for a, v in zip(e, values, strict=True)) / total for c in range(len(values[0]))]
