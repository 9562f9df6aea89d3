"""Gradients of token pooling, without a framework and for those that have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool import memory
from anypool.arguments import gradient_argument, shown
from anypool.backends import tokens_native, tokens_reference
from anypool.operation import overlap
from anypool.reductions import is_float
from anypool.runs import Ints, Runs
from anypool.token_matrix import Matrix, is_list_of_arrays, matrix_of
from anypool.token_reductions import TOKEN_REDUCTIONS, Term, kept
from anypool.tokens import TokenCall, backend_of, call_of, run_call

Array = npt.NDArray[Any]

_NEED_Y = ("power", "clamped", "exponentials")


def divisors(call: TokenCall, term: Term) -> Array | None:
    """Return what a token's share of the gradient is divided by, for each output."""
    n = call.runs.tokens.astype(np.float64)
    by = term.reduction.by
    if by == "count":
        return n
    if by == "root_count":
        return np.sqrt(n)
    if by == "positions":
        before = 0.0 if call.runs.skipped is None else call.runs.skipped
        return n * (n + 1) / 2 + before * n
    return None


def weight_sums(call: TokenCall) -> Array:
    """Return the sum of weights of each output."""
    assert call.weights is not None
    one = matrix_of(call.weights[:, None])
    runs = call.runs
    flat = Runs(runs.shape, np.zeros_like(runs.part), call.matrix.numbers(runs), runs.count, runs.bounds)
    sums = run_call(TokenCall(one, flat, (Term(TOKEN_REDUCTIONS["sum"]),), None, 0.0, np.dtype(np.float64), False))
    return sums[:, 0]


@dataclass(frozen=True)
class Known:
    """What gradients need of the forward pass: results before they were rounded to a half, winners, means."""

    y: Array
    winners: tuple[Array | None, ...]
    means: Array | None


def run_known(call: TokenCall) -> tuple[Array, Known]:
    """Return the result, and what its gradient needs."""
    wide = tokens_native.sum_dtype(call.matrix.dtype)
    terms = call.terms
    deviating = [t for t in terms if t.reduction.finish == "deviation"][:1]
    terms = (*terms, *(Term(kept(t.reduction)) for t in deviating))  # the means they are about
    shape = (len(call.runs.bounds) - 1, call.matrix.dim)
    winners = tuple(
        memory.empty(shape, np.dtype(np.int32)) if t.reduction.give in ("select", "largest") else None for t in terms
    )
    exact = replace(call, terms=terms, result=np.promote_types(wide, call.result) if call.result != wide else wide)
    y = run_call(exact, winners)
    width = len(call.terms) * call.matrix.dim
    of_terms = y[:, :width]
    known = Known(of_terms, winners[: len(call.terms)], y[:, width:] if deviating else None)
    with np.errstate(over="ignore"):
        return of_terms.astype(call.result, copy=False), known


def gifts(
    call: TokenCall, known: Known, grad: Array
) -> list[tuple[Term, Array, Array | None, Array | None, Array | None]]:
    """Return for each term what the tokens of each output get, in the parts that the kernels know."""
    wide = tokens_native.sum_dtype(call.matrix.dtype)
    g = np.ascontiguousarray(grad.reshape(len(call.runs.bounds) - 1, len(call.terms) * call.matrix.dim), wide)
    dim, found = call.matrix.dim, []
    for i, (term, won) in enumerate(zip(call.terms, known.winners, strict=True)):
        columns = slice(i * dim, (i + 1) * dim)
        a, b, by = g[:, columns], None, divisors(call, term)
        give = term.reduction.give
        if give == "weighted" and term.reduction.finish == "over_weight":
            by = weight_sums(call)
        if give in _NEED_Y:
            b = np.ascontiguousarray(known.y[:, columns], wide)
        if give in ("deviation", "weighted_deviation"):
            assert known.means is not None
            b = np.ascontiguousarray(known.means, wide)
            sigma = known.y[:, columns].astype(wide, copy=False)
            total = (call.runs.tokens if call.weights is None else weight_sums(call)).astype(wide)[:, None]
            with np.errstate(all="ignore"):
                a = np.where(sigma == 0, 0, a / (total * sigma)).astype(wide, copy=False)
        found.append((term, a, b, by, won))
    return found


def write_gradient(call: TokenCall, known: Known, grad: Array, out: Array) -> None:
    """Write the gradient of x, ``(rows, dim)`` one after the other."""
    terms = gifts(call, known, grad)
    if backend_of(call) is tokens_native:
        tokens_native.Gradients(call.matrix, call.runs).run(terms, call.weights, out)
    else:
        tokens_reference.gradient(call.matrix, call.runs, terms, call.weights, out)


def weights_gradient(call: TokenCall, known: Known, grad: Array) -> Array:
    """Return the gradient of the weights, one for each row of x; 0 for rows that no output saw."""
    assert call.weights is not None
    dim, total = call.matrix.dim, weight_sums(call)[:, None]
    wide = tokens_native.sum_dtype(call.matrix.dtype)
    g = grad.reshape(len(total), -1).astype(np.float64)
    tokens = _token_rows(call)
    found = np.zeros(call.matrix.n_rows)
    output = np.repeat(np.arange(len(total)), call.runs.tokens)
    for i, term in enumerate(call.terms):
        part, y = g[:, i * dim : (i + 1) * dim], known.y[:, i * dim : (i + 1) * dim].astype(np.float64)
        finish = term.reduction.finish
        a, b, m, rest = part, None, None, 0.0
        with np.errstate(all="ignore"):
            if finish == "over_weight":
                a, m = part / total, y
            elif finish == "deviation":
                assert known.means is not None
                a, m = np.zeros_like(part), known.means
                b = np.where(y == 0, 0.0, part / (2 * total * y))
                rest = -(b * y * y).sum(1)[output]
        rows = [None if v is None else np.ascontiguousarray(v, wide) for v in (a, b, m)]
        np.add.at(found, tokens, _dots(call, *rows) + rest)
    return found


def _token_rows(call: TokenCall) -> Ints:
    """Return the number of the row of every token, output after output."""
    count, first = call.runs.count, call.matrix.numbers(call.runs)
    before = np.cumsum(count) - count
    rows: Ints = np.arange(count.sum(), dtype=np.int64) + np.repeat(first - before, count)
    return rows


def _dots(call: TokenCall, a: Any, b: Any, m: Any) -> Array:
    """Return ``Σ_c a (x - m) + b (x - m)²`` for every token."""
    if backend_of(call) is tokens_native:
        return tokens_native.dots(call.matrix, call.runs, a, b, m)
    found = []
    for o in range(len(a)):
        with np.errstate(all="ignore"):
            d = call.matrix.tokens(call.runs, o).astype(np.float64) - (0.0 if m is None else m[o])
        with np.errstate(all="ignore"):
            found.append((a[o] * d + (0.0 if b is None else b[o] * d * d)).sum(1))
    return np.concatenate(found) if found else np.zeros(0)


def split_like(flat: Array, x: Any, matrix: Matrix) -> Any:
    """Return a gradient ``(rows, dim)`` in the shape of x: an array, or a list of them."""
    if is_list_of_arrays(x):
        return [flat[a : a + n] for a, n in zip(matrix.first.tolist(), matrix.rows.tolist(), strict=True)]
    length = int(matrix.rows[0]) if len(matrix.rows) else np.shape(x)[-2]
    return flat.reshape(*matrix.leading, length, matrix.dim)


def differentiate(x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    """For `anypool.vjp`: ``pullback(grad_y, out=None)``; out may be given to reuse its memory."""
    call = call_of(x, *args, **kwargs)
    if call.weights is not None:
        call = replace(call, weights=call.weights.copy())  # the pullback reads them again
    matrix = call.matrix
    if not is_float(matrix.dtype):
        raise TypeError(f"vjp needs floating-point x, got {matrix.dtype} ({matrix.where})")
    y, known = run_known(call)
    y = y.reshape(*call.runs.shape, y.shape[1])
    shape = y.shape

    def pullback(grad_y: Any, out: Array | None = None) -> Any:
        """Return the gradient with respect to x, given that with respect to the result."""
        g = gradient_argument(grad_y, shape, matrix.where)
        flat = gradient_memory(out, (matrix.n_rows, matrix.dim), matrix, grad_y=g, weights=call.weights)
        write_gradient(call, known, g.astype(call.result, copy=False), flat)
        return split_like(flat, x, matrix) if out is None else out

    return y, pullback


def gradient_memory(out: Any, shape: tuple[int, int], matrix: Matrix, **read: Array | None) -> Array:
    """Return memory for a gradient: new, or the caller's as rows, which must not overlap what is read."""
    dtype = matrix.dtype.newbyteorder("=")
    if out is None:
        return memory.empty(shape, dtype)
    wanted = (*matrix.leading, int(matrix.rows[0]) if len(matrix.rows) else 0, matrix.dim)
    if (
        not isinstance(out, np.ndarray)
        or isinstance(out, (np.ma.MaskedArray, np.matrix))
        or out.shape != wanted
        or out.dtype != dtype
        or not (out.flags.c_contiguous and out.flags.writeable)
    ):
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else shown(out)
        raise ValueError(
            f"out must be a writeable, contiguous {dtype} array of shape {wanted}, got {given} ({matrix.where})"
        )
    parts = matrix.kept if isinstance(matrix.kept, list) else [matrix.kept]
    for name, array in (*(("x", p) for p in parts), *read.items()):
        if array is not None and overlap(array, out):
            raise ValueError(f"out must not overlap {name} ({matrix.where})")
    return out.reshape(shape)
