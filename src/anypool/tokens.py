"""Token pooling: vectors of tokens to vectors of sentences, spans and documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool import runs as geometry
from anypool.backends import tokens_native, tokens_reference, asked_for
from anypool.reductions import is_float
from anypool.runs import Runs
from anypool.token_matrix import Matrix, is_list_of_arrays, matrix_of, per_row
from anypool.token_reductions import TOKEN_REDUCTIONS, Term, kept, result_dtype, terms_of

Array = npt.NDArray[Any]

LAYOUTS = ("mask", "lengths", "offsets", "segment_ids", "spans")


@dataclass(frozen=True)
class TokenCall:
    """A call of `pool_tokens`, checked: what every backend runs, and gradients are made from."""

    matrix: Matrix
    runs: Runs
    terms: tuple[Term, ...]
    weights: Array | None
    empty: float
    result: np.dtype[Any]
    single: bool  # a list of arrays or a batch gives a row for each; one sequence gives one vector


def runs_of(matrix: Matrix, *, mask: Any = None, lengths: Any = None, side: Any = "right", offsets: Any = None,
            segment_ids: Any = None, num_segments: Any = None, spans: Any = None,
            exclude_prefix: Any = None) -> Runs:  # fmt: skip
    """Return which rows each output sees; at most one of the layouts may be given, none means all rows."""
    values = dict(zip(LAYOUTS, (mask, lengths, offsets, segment_ids, spans), strict=True))
    given = [name for name in LAYOUTS if values[name] is not None]
    where, leading = matrix.where, matrix.leading
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(LAYOUTS)} can say which tokens count, got {' and '.join(given)} ({where})")
    if num_segments is not None and segment_ids is None:
        raise ValueError(f"num_segments goes with segment_ids ({where})")
    if side != "right" and lengths is None:
        raise ValueError(f"side goes with lengths: a mask says itself where the padding is, got side={side!r} ({where})")
    kind = given[0] if given else None
    if isinstance(matrix.kept, list) and kind is not None:
        raise ValueError(f"{kind} is for one array; of a list of arrays every token counts ({where})")
    length = int(matrix.rows[0]) if len(matrix.rows) else 0
    if kind in ("offsets", "segment_ids") and leading:
        raise ValueError(f"{kind} is for packed rows: x must have 2 dimensions, got {len(leading) + 2} ({where})")
    if kind in ("mask", "lengths") and len(matrix.rows) == 0:
        length = np.shape(mask)[-1] if kind == "mask" and np.ndim(mask) else 0
    if kind == "mask":
        found = geometry.from_mask(mask, leading, length, where)
    elif kind == "lengths":
        found = geometry.from_lengths(lengths, side, leading, length, where)
    elif kind == "offsets":
        found = geometry.from_offsets(offsets, length, where)
    elif kind == "segment_ids":
        found = geometry.from_segment_ids(segment_ids, length, num_segments, where)
    elif kind == "spans":
        if exclude_prefix is not None:
            raise ValueError(f"exclude_prefix does not go with spans, which say themselves where they begin ({where})")
        found = geometry.from_spans(spans, leading, length, where)
    else:
        found = geometry.whole(leading, matrix.rows)
    return found.without_prefix(exclude_prefix, where)


def empty_value(empty: Any, where: str) -> float:
    """Check the value that stands for rows without a token."""
    if isinstance(empty, (bool, np.bool_)) or not isinstance(empty, (int, float, np.integer, np.floating)):
        raise TypeError(f"empty must be a number, got {empty!r} of type {type(empty).__name__} ({where})")
    return float(empty)


def call_of(x: Any, reduction: Any, *, mask: Any = None, lengths: Any = None, side: Any = "right", offsets: Any = None,
            segment_ids: Any = None, num_segments: Any = None, spans: Any = None, weights: Any = None,
            exclude_prefix: Any = None, empty: Any = math.nan, norm_type: Any = None, r: Any = 1.0, eps: Any = 1e-6,
            dtype: Any = None) -> TokenCall:  # fmt: skip
    """Check the arguments of `pool_tokens`; ``x`` may be a `Matrix` already."""
    matrix = x if isinstance(x, Matrix) else matrix_of(x)
    where = matrix.where
    terms = terms_of(reduction, norm_type, r, eps, weighted=weights is not None, where=where)
    runs = runs_of(matrix, mask=mask, lengths=lengths, side=side, offsets=offsets, segment_ids=segment_ids,
                   num_segments=num_segments, spans=spans, exclude_prefix=exclude_prefix)  # fmt: skip
    result = result_dtype(terms, matrix.dtype, dtype, where)
    value = empty_value(empty, where)
    if not is_float(result) and (at := runs.first_empty()) is not None and not value.is_integer():
        raise ValueError(f"row {at} has no token: for {result} results empty must be an integer, got {empty!r} ({where})")
    given = None if weights is None else per_row("weights", weights, matrix)
    return TokenCall(matrix, runs, terms, given, value, result, single=not runs.shape)


def _backend(call: TokenCall) -> Any:
    """Return the module that runs this; a backend chosen by name never falls back."""
    reason = tokens_native.reason_against(call.matrix, call.runs)
    wanted = asked_for()
    if wanted == "native" and reason is not None:
        raise NotImplementedError(f"the native backend cannot run this: {reason}")
    return tokens_reference if wanted == "reference" or reason is not None else tokens_native


def run_call(call: TokenCall, winners: Sequence[Array | None] | None = None) -> Array:
    """Return the results, ``(outputs, dim * terms)``."""
    y = np.empty((len(call.runs.bounds) - 1, call.matrix.dim * len(call.terms)), call.result)
    _backend(call).reduce(call.matrix, call.runs, call.terms, call.weights, call.empty, y,
                          winners or [None] * len(call.terms))  # fmt: skip
    return y


def pool_tokens(x: Any, reduction: str | Sequence[str], *, mask: Any = None, lengths: Any = None, side: str = "right",
                offsets: Any = None, segment_ids: Any = None, num_segments: int | None = None, spans: Any = None,
                weights: Any = None, exclude_prefix: Any = None, empty: float = math.nan,
                norm_type: float | None = None, r: float = 1.0, eps: float = 1e-6, dtype: Any = None) -> Any:  # fmt: skip
    """Pool the tokens of each row, segment or span into one vector: ``y[o] = reduce of x[t] over the tokens t of o``.

    Parameters
    ----------
    x : array_like of shape ``(…, L, D)``, or ``(T, D)`` for packed rows, or a list of arrays ``(L_i, D)``
    reduction : str or list of str
        "mean", "sum", "max", "min", "first" (or "cls"), "last", "mean_sqrt_len", "weightedmean", "std", "lp", "gem" or
        "logsumexp". Several are computed in one read of the data and stand side by side in the result.
    mask : array_like of shape ``(…, L)``, optional
        True or 1 for the tokens that count, False or 0 for padding, on any side and with any holes.
    lengths : array_like of shape ``(…)``, optional
        The number of tokens of each row; ``side`` ("right" or "left") is the side the padding is on.
    offsets : array_like of shape ``(n + 1,)``, optional
        Segment ``i`` of packed rows is ``offsets[i]`` up to ``offsets[i + 1]`` (cu_seqlens).
    segment_ids : array_like of shape ``(T,)``, optional
        The segment of each packed row, sorted. ``num_segments`` may be above the last id plus one.
    spans : array_like of shape ``(S, 2)`` for packed rows, ``(…, S, 2)`` for a batch, optional
        Half-open ``(start, stop)``: overlapping, nested or empty. There is a result for each.
    weights : array_like, optional
        A number for each token, for "mean" (``Σ w x / Σ w``), "sum" and "std". Those of padding are not read.
    exclude_prefix : int or array_like, optional
        Leave out this many of each row's first tokens (a prompt). The positions of "weightedmean" still count them.
    empty : float
        The result of a row without a token.
    norm_type, r, eps : float
        The exponent of "lp" (default 2) and "gem" (default 3), the sharpness of "logsumexp", the least value in "gem".
    dtype : dtype, optional
        A float dtype for the result; default that of x.

    Returns
    -------
    ndarray of shape ``(…, D)``, ``(n, D)`` for segments, ``(…, S, D)`` for spans; ``k D`` for ``k`` reductions

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type or shape. Nothing is computed then.

    Notes
    -----
    The result is a function of a row's tokens alone, to the bit: not of the layout, the padding, the batch around the
    row, the number of threads or the instruction set. Padding is never read.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> x = np.array([[[1.0], [3.0], [9.0]], [[np.nan], [2.0], [4.0]]])
    >>> ap.pool_tokens(x, "mean", mask=[[1, 1, 0], [0, 1, 1]])
    array([[2.],
           [3.]])
    >>> ap.pool_tokens([[1.0], [3.0], [5.0]], ["first", "max"], spans=[(0, 2), (1, 3), (1, 1)])
    array([[ 1.,  3.],
           [ 3.,  5.],
           [nan, nan]])
    """
    call = call_of(x, reduction, mask=mask, lengths=lengths, side=side, offsets=offsets, segment_ids=segment_ids,
                   num_segments=num_segments, spans=spans, weights=weights, exclude_prefix=exclude_prefix, empty=empty,
                   norm_type=norm_type, r=r, eps=eps, dtype=dtype)  # fmt: skip
    y = run_call(call)
    return y.reshape(*call.runs.shape, y.shape[1])


# ---- gradients -------------------------------------------------------------------------------------------------------

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
    winners = tuple(np.empty(shape, np.int32) if t.reduction.give in ("select", "largest") else None for t in terms)
    exact = replace(call, terms=terms, result=np.promote_types(wide, call.result) if call.result != wide else wide)
    y = run_call(exact, winners)
    width = len(call.terms) * call.matrix.dim
    return y[:, :width].astype(call.result, copy=False), Known(y, winners[: len(call.terms)], y[:, width:] if deviating else None)


def gifts(call: TokenCall, known: Known, grad: Array) -> list[tuple[Term, Array, Array | None, Array | None, Array | None]]:
    """Return for each term what the tokens of each output get, in the parts that the kernels know."""
    wide = tokens_native.sum_dtype(call.matrix.dtype)
    g = np.ascontiguousarray(grad.reshape(len(call.runs.bounds) - 1, -1), wide)
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
    if _backend(call) is tokens_native:
        tokens_native.Gradients(call.matrix, call.runs).run(terms, call.weights, out)
    else:
        tokens_reference.gradient(call.matrix, call.runs, terms, call.weights, out)


def split_like(flat: Array, x: Any, matrix: Matrix) -> Any:
    """Return a gradient ``(rows, dim)`` in the shape of x: an array, or a list of them."""
    if is_list_of_arrays(x):
        return [flat[a : a + n] for a, n in zip(matrix.first.tolist(), matrix.rows.tolist(), strict=True)]
    length = int(matrix.rows[0]) if len(matrix.rows) else np.shape(x)[-2]
    return flat.reshape(*matrix.leading, length, matrix.dim)


def _differentiate(x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    """For `anypool.vjp`: ``pullback(grad_y, out=None)``; out may be given to reuse its memory."""
    call = call_of(x, *args, **kwargs)
    matrix = call.matrix
    if not is_float(matrix.dtype):
        raise TypeError(f"vjp needs floating-point x, got {matrix.dtype} ({matrix.where})")
    y, known = run_known(call)
    y = y.reshape(*call.runs.shape, y.shape[1])
    shape = y.shape

    def pullback(grad_y: Any, out: Array | None = None) -> Any:
        """Return the gradient with respect to x, given that with respect to the result."""
        g = np.asarray(grad_y)
        if g.shape != shape:
            raise ValueError(f"grad_y must have the result's shape {shape}, got {g.shape} ({matrix.where})")
        flat = gradient_memory(out, (matrix.n_rows, matrix.dim), matrix)
        write_gradient(call, known, g.astype(call.result, copy=False), flat)
        return split_like(flat, x, matrix) if out is None else out

    return y, pullback


def gradient_memory(out: Array | None, shape: tuple[int, int], matrix: Matrix) -> Array:
    """Return memory for a gradient: new, or the caller's as rows."""
    dtype = matrix.dtype.newbyteorder("=")
    if out is None:
        return np.empty(shape, dtype)
    wanted = (*matrix.leading, int(matrix.rows[0]) if len(matrix.rows) else 0, matrix.dim)
    if not isinstance(out, np.ndarray) or out.shape != wanted or out.dtype != dtype or not (
        out.flags.c_contiguous and out.flags.writeable
    ):
        raise ValueError(f"out must be a writeable, contiguous {dtype} array of shape {wanted} ({matrix.where})")
    return out.reshape(shape)


pool_tokens.differentiate = _differentiate  # type: ignore[attr-defined]
