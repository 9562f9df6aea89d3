"""Token pooling in NumPy, one output after the other: what the reductions mean, to be read.

It runs everything, integers too. Sums are float64; an output's tokens are gathered first, so it never matters where
they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool.runs import Runs
from anypool.token_matrix import Matrix
from anypool.token_reductions import Term

Array = npt.NDArray[Any]

# Of the tokens (n, dim), as float64 unless a reduction keeps them, of weights or positions (n, 1), and of p and eps.
_RESULTS: dict[str, Callable[[Array, Array, Term], Array]] = {
    "over_count": lambda x, w, t: x.sum(0) / len(x),
    "over_root_count": lambda x, w, t: x.sum(0) / np.sqrt(len(x)),
    "over_weight": lambda x, w, t: (w * x).sum(0) / w.sum(),
    "deviation": lambda x, w, t: np.sqrt((w * (x - _center(x, w)) ** 2).sum(0) / w.sum()),
    "root": lambda x, w, t: (np.abs(x) ** t.p).sum(0) ** (1 / t.p),
    "mean_root": lambda x, w, t: ((_clamped(x, t) ** t.p).sum(0) / len(x)) ** (1 / t.p),
    "log": lambda x, w, t: _logsumexp(x * t.p) / t.p,
    "first": lambda x, w, t: x[0],
    "last": lambda x, w, t: x[-1],
}
# What a reduction keeps, when that is the result.
_KEPT: dict[str | None, Callable[[Array, Array, Term], Array]] = {
    "sum": lambda x, w, t: x.sum(0),
    "weighted": lambda x, w, t: (w * x).sum(0),
    "positions": lambda x, w, t: (w * x).sum(0),
    "max": lambda x, w, t: _winner(x, "max"),
    "min": lambda x, w, t: _winner(x, "min"),
    "largest": lambda x, w, t: np.abs(_winner(x, "largest")),
    "moments": lambda x, w, t: _center(x, w),
    "weighted_moments": lambda x, w, t: _center(x, w),
    "power": lambda x, w, t: (np.abs(x) ** t.p).sum(0),
    "clamped": lambda x, w, t: (_clamped(x, t) ** t.p).sum(0),
}


def _center(x: Array, w: Array) -> Array:
    center: Array = x[0] + (w * (x - x[0])).sum(0) / w.sum()
    return center


def _clamped(x: Array, t: Term) -> Array:
    clamped: Array = np.where(x < t.eps, t.eps, x)
    return clamped


def _exp_below(x: Array, top: Array) -> Array:
    """Return ``exp(x - top)``, 1 also for an infinity and itself."""
    with np.errstate(all="ignore"):
        found: Array = np.exp(np.where(x == top, 0.0, x - top))
    return found


def _logsumexp(x: Array) -> Array:
    top = x.max(0)
    found: Array = top + np.log(_exp_below(x, top).sum(0))
    return found


def winners_of(x: Array, keep: str) -> Array:
    """Return the ordinal of each column's winner: the first of equals, the last of several NaNs."""
    lifted = np.abs(x) if keep == "largest" else x
    nan = lifted != lifted
    found = lifted.argmin(0) if keep == "min" else lifted.argmax(0)  # of a NaN the first
    last = len(x) - 1 - nan[::-1].argmax(0)
    places: Array = np.where(nan.any(0), last, found)
    return places


def _winner(x: Array, keep: str) -> Array:
    best: Array = np.take_along_axis(x, winners_of(x, keep)[None], 0)[0]  # of zeros of both signs the first
    return best


def _weights(term: Term, runs: Runs, output: int, n: int, given: Array | None) -> Array:
    if term.reduction.keep == "positions":
        before = 0 if runs.skipped is None else int(runs.skipped[output])
        return np.arange(before + 1, before + n + 1, dtype=np.float64)[:, None]
    return np.ones((n, 1)) if given is None else given[:, None]


def _numbers(matrix: Matrix, runs: Runs, output: int) -> Array:
    """Return the row numbers of an output's tokens."""
    starts = matrix.numbers(runs)
    found = [
        np.arange(starts[r], starts[r] + runs.count[r]) for r in range(runs.bounds[output], runs.bounds[output + 1])
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _wide(x: Array, reduction: Any) -> Array:
    return x if x.dtype.kind in "biu" and reduction.integers in ("keep", "sum") else x.astype(np.float64)


def reduce(matrix: Matrix, runs: Runs, terms: Sequence[Term], weights: Array | None, empty: float, y: Array,
           winners: Sequence[Array | None]) -> None:  # fmt: skip
    """As `anypool.backends.tokens_native.reduce`."""
    for o in range(len(runs.bounds) - 1):
        tokens = matrix.tokens(runs, o)
        if not len(tokens):
            y[o] = empty
        given = None if weights is None else weights[_numbers(matrix, runs, o)]
        for i, (term, won) in enumerate(zip(terms, winners, strict=True)):
            if won is not None:
                won[o] = winners_of(tokens, str(term.reduction.keep)) if len(tokens) else -1
            if len(tokens):
                x = _wide(tokens, term.reduction)
                w = _weights(term, runs, o, len(x), given)
                with np.errstate(all="ignore"):
                    finish = term.reduction.finish
                    table = _KEPT[term.reduction.keep] if finish == "none" else _RESULTS[finish]
                    found = table(x, w, term)
                if y.dtype.itemsize == 2:  # halves are rounded from floats, as in the kernels
                    found = found.astype(np.float32)
                y[o, i * matrix.dim : (i + 1) * matrix.dim] = found


def _gift(term: Term, x: Array, w: Array, a: Array, b: Array | None, by: float, won: Array | None) -> Array:
    """Return what each token of an output gets of the gradient ``a``."""
    give = term.reduction.give
    k = np.arange(len(x))[:, None]
    if give in ("uniform", "positions", "weighted"):
        return a * (np.ones((len(x), 1)) if give == "uniform" else w) / by
    if give in ("select", "largest"):
        chosen = np.where(k == won, a, 0.0)
        return chosen * np.sign(x) if give == "largest" else chosen
    if give in ("first", "last"):
        return np.where(k == (0 if give == "first" else len(x) - 1), a, 0.0)
    assert b is not None
    if give in ("deviation", "weighted_deviation"):
        share: Array = w * a * (x - b)
        return share
    if give == "power":
        if term.p == 1:
            return a * np.sign(x)
        return np.where(b == 0, 0.0, a * np.abs(x / b) ** (term.p - 1) * np.sign(x))
    if give == "clamped":
        return np.where(x <= term.eps, 0.0, a * (np.maximum(x, term.eps) / b) ** (term.p - 1) / by)
    apart = term.p * (x - b)
    return np.where(np.isnan(apart) & (x == b), 0.0, a * np.exp(apart))


def gradient(matrix: Matrix, runs: Runs, terms: Sequence[Any], weights: Array | None, out: Array) -> None:
    """As `anypool.backends.tokens_native.Gradients.run`; terms are (term, a, b, by, winners)."""
    total = np.zeros((matrix.n_rows, matrix.dim))
    for o in range(len(runs.bounds) - 1):
        rows = _numbers(matrix, runs, o)
        if not len(rows):
            continue
        x = matrix.tokens(runs, o).astype(np.float64)
        given = None if weights is None else weights[rows]
        for term, a, b, by, won in terms:
            w = _weights(term, runs, o, len(x), given)
            with np.errstate(all="ignore"):
                total[rows] += _gift(term, x, w, a[o].astype(np.float64), None if b is None else b[o],
                                     1.0 if by is None else by[o], None if won is None else won[o])  # fmt: skip
    out[...] = total.reshape(out.shape)


def attend(matrix: Matrix, values: Matrix, runs: Runs, query: Array, empty: float, y: Array,
           logsumexp: Array | None) -> None:  # fmt: skip
    """As `anypool.backends.tokens_native.attend`."""
    for o in range(len(runs.bounds) - 1):
        x, v = (m.tokens(runs, o).astype(np.float64) for m in (matrix, values))
        if not len(x):
            y[o] = empty
            if logsumexp is not None:
                logsumexp[o] = -np.inf
            continue
        with np.errstate(all="ignore"):
            scores = x @ query.astype(np.float64).T  # (n, heads)
            if logsumexp is not None:
                logsumexp[o] = _logsumexp(scores)
            weights = _exp_below(scores, scores.max(0))
            y[o] = (weights / weights.sum(0)).T @ v


def attend_gradient(matrix: Matrix, values: Matrix, runs: Runs, query: Array, grad: Array, known: Array, out: Array,
                    out_values: Array | None) -> Array:  # fmt: skip
    """Write the gradients of x and values, and return that of the scaled query."""
    q, g = query.astype(np.float64), grad.astype(np.float64)
    total, apart = np.zeros((matrix.n_rows, matrix.dim)), np.zeros((values.n_rows, values.dim))
    of_query = np.zeros_like(q)
    for o in range(len(runs.bounds) - 1):
        rows = _numbers(matrix, runs, o)
        x, v = (m.tokens(runs, o).astype(np.float64) for m in (matrix, values))
        if not len(x):
            continue
        with np.errstate(all="ignore"):
            p = _exp_below(x @ q.T, known[o, :, 0])
            ds = p * (v @ g[o].T - known[o, :, 1])
            total[rows] += ds @ q
            (total if out_values is None else apart)[rows] += p @ g[o]
            of_query += ds.T @ x
    out[...] = total.reshape(out.shape)
    if out_values is not None:
        out_values[...] = apart.reshape(out_values.shape)
    return of_query
