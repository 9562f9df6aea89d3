"""Attention pooling: a query asks every token of a row how much it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anypool import memory
from anypool.arguments import array_argument, gradient_argument, number_argument, shown
from anypool.backends import tokens_native, tokens_reference
from anypool.reductions import is_float
from anypool.runs import Runs
from anypool.token_gradients import split_like
from anypool.token_matrix import Matrix, matrix_at, matrix_of
from anypool.token_reductions import TOKEN_REDUCTIONS, Term, result_dtype
from anypool.tokens import (
    Seen,
    TokenCall,
    empty_value,
    holds_tensors,
    key_of,
    natively,
    recipes,
    remember,
    run_call,
    runs_of,
    tensors,
)

Array = npt.NDArray[Any]
_SUM = (Term(TOKEN_REDUCTIONS["sum"]),)


@dataclass(frozen=True)
class AttentionCall:
    """A call of `attention_pool`, checked."""

    matrix: Matrix
    values: Matrix
    separate: bool
    runs: Runs
    query: Array  # (heads, dim), scaled, in the dtype of sums
    scale: float
    single: bool  # one query of shape (dim,)
    empty: float
    result: np.dtype[Any]


def attention_call(x: Any, query: Any, *, values: Any = None, scale: Any = None, empty: Any = math.nan,
                   dtype: Any = None, **layout: Any) -> AttentionCall:  # fmt: skip
    """Check the arguments of `attention_pool`; x and values may be matrices already."""
    matrix = x if isinstance(x, Matrix) else matrix_of(x)
    where = matrix.where
    if not is_float(matrix.dtype):
        raise TypeError(f"attention_pool needs floating-point x, got {matrix.dtype} ({where})")
    asked = array_argument("query", query, where)
    if asked.ndim not in (1, 2) or asked.shape[-1] != matrix.dim or asked.shape[0] == 0:
        raise ValueError(f"query must have shape ({matrix.dim},) or (heads, {matrix.dim}), got {asked.shape} ({where})")
    if not is_float(asked.dtype):
        raise TypeError(f"query must be floating-point, got {asked.dtype} ({where})")
    factor = _scale(scale, matrix.dim, where)
    other = matrix
    if values is not None:
        other = values if isinstance(values, Matrix) else matrix_of(values)
        if (
            other.leading != matrix.leading
            or not np.array_equal(other.rows, matrix.rows)
            or other.dtype != matrix.dtype
        ):
            raise ValueError(
                f"values must have a row for each token of x and its dtype {matrix.dtype}, "
                f"got {other.where} {other.dtype} ({where})"
            )
    return AttentionCall(matrix, other, values is not None, runs_of(matrix, **layout), _scaled(asked, matrix, factor),
                         factor, asked.ndim == 1, empty_value(empty, where),
                         result_dtype(_SUM, matrix.dtype, dtype, where))  # fmt: skip


def _scaled(query: Array, matrix: Matrix, factor: float) -> Array:
    wide = tokens_native.sum_dtype(matrix.dtype)
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(np.atleast_2d(query).astype(wide) * wide.type(factor))


def _scale(scale: Any, dim: int, where: str) -> float:
    if scale is None:
        return 1 / math.sqrt(dim)
    factor = number_argument("scale", scale, where)
    if not math.isfinite(factor):
        raise ValueError(f"scale must be finite, got {shown(scale)} ({where})")
    return factor


class AttentionRecipe(NamedTuple):
    """As `anypool.tokens.Recipe`, for calls without values of their own."""

    seen: Seen
    first: AttentionCall

    def call(self, address: int, query: Array, value: Any) -> AttentionCall:
        """Return the call of the tokens at an address."""
        matrix = self.first.matrix.at(address)
        return replace(self.first, matrix=matrix, values=matrix, runs=self.seen.runs(value),
                       query=_scaled(query, matrix, self.first.scale))  # fmt: skip


def remember_attention(key: Hashable, call: AttentionCall, kind: str, options: Mapping[str, Any]) -> None:
    """Keep what a call has found out, but for its data."""
    matrix = call.matrix.at(0)
    first = replace(call, matrix=matrix, values=matrix, query=call.query[:0])
    remember(key, lambda: AttentionRecipe(Seen(matrix, kind, options), first), matrix, call.runs)


def attend(call: AttentionCall, dtype: np.dtype[Any] | None = None, logsumexp: Array | None = None,
           into: Any = None) -> Array:  # fmt: skip
    """Return the pooled values, ``(outputs, heads, value dim)``, in a new array or in what is given."""
    shape = (len(call.runs.bounds) - 1, len(call.query), call.values.dim)
    y: Array = memory.empty(shape, dtype or call.result) if into is None else into
    module: Any = tokens_native if natively(call.matrix, call.runs) else tokens_reference
    module.attend(call.matrix, call.values, call.runs, call.query, call.empty, y, logsumexp)
    return y


def shaped(call: AttentionCall, y: Array) -> Array:
    """Return the results in the caller's shape: no axis of heads for a single query."""
    return y.reshape(*call.runs.shape, *y.shape[1 + call.single :])


def attention_pool(x: Any, query: Any, *, values: Any = None, scale: float | None = None, mask: Any = None,
                   lengths: Any = None, side: str = "right", offsets: Any = None, segment_ids: Any = None,
                   num_segments: int | None = None, spans: Any = None, exclude_prefix: Any = None,
                   empty: float = math.nan, dtype: Any = None) -> Any:  # fmt: skip
    """Pool tokens by attention: ``y = Σ softmax(scale · query · x_t) v_t`` over the tokens ``t`` of a row.

    Parameters
    ----------
    x : array_like of shape ``(…, L, D)``, or ``(T, D)`` for packed rows, or a list of arrays ``(L_i, D)``
    query : array_like of shape ``(D,)``, or ``(H, D)`` for several
    values : array_like of shape ``(…, L, V)``, optional
        What is summed, a row for each token; default x itself.
    scale : float, optional
        Default ``1 / √D``.
    mask, lengths, side, offsets, segment_ids, num_segments, spans, exclude_prefix, empty, dtype
        As in `pool_tokens`.

    Returns
    -------
    ndarray of shape ``(…, V)``, or ``(…, H, V)`` for several queries

    Raises
    ------
    ValueError, TypeError
        As in `pool_tokens`.

    Notes
    -----
    Scores, softmax and sum are made in one read of the tokens; scores are never stored. ``vjp(attention_pool, x, query,
    …)`` gives a pullback that returns the gradients of x and query, and of values if they were given.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> x = np.array([[[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]])
    >>> ap.attention_pool(x, np.array([4.0, 0.0]), scale=1.0, lengths=[2]).round(3)
    array([[0.982, 0.018]])
    """
    run: Any = _arrays if not (holds_tensors(x) or holds_tensors(query)) else tensors().attention_pool
    return run(x, query, values=values, scale=scale, empty=empty, dtype=dtype, mask=mask, lengths=lengths, side=side,
               offsets=offsets, segment_ids=segment_ids, num_segments=num_segments, spans=spans,
               exclude_prefix=exclude_prefix)  # fmt: skip


def _arrays(x: Any, query: Any, **kwargs: Any) -> Array:
    key: Hashable = None
    if type(x) is np.ndarray and x.flags.aligned and type(query) is np.ndarray and kwargs["values"] is None:
        key, kind = key_of(x, x.strides, kwargs, query.shape, kwargs["scale"])
        recipe = recipes.get((key, query.dtype))
        if recipe is not None:
            call: AttentionCall = recipe.call(tokens_native.address_of(x), query, kwargs.get(kind))
            return shaped(call, attend(call))
    call = attention_call(x, query, **kwargs)
    if key is not None and call.matrix.kept is x:
        remember_attention((key, query.dtype), call, kind, kwargs)
    return shaped(call, attend(call))


def attend_known(call: AttentionCall) -> tuple[Array, Array, Array]:
    """Return the result, the result before it was rounded to a half, and the logsumexp of the scores."""
    wide = tokens_native.sum_dtype(call.matrix.dtype)
    total = np.empty((len(call.runs.bounds) - 1, len(call.query)))
    exact = attend(call, np.promote_types(wide, call.result) if call.result != wide else wide, total)
    with np.errstate(over="ignore"):
        return exact.astype(call.result, copy=False), exact, total


def attention_gradient(call: AttentionCall, exact: Array, total: Array, grad: Array, out: Array,
                       out_values: Array | None) -> Array:  # fmt: skip
    """Write the gradients of x and values, ``(rows, dim)``, and return that of the query, ``(heads, dim)``."""
    wide = tokens_native.sum_dtype(call.matrix.dtype)
    g = np.ascontiguousarray(grad.reshape(exact.shape), wide)
    with np.errstate(invalid="ignore"):  # rows without a token
        known = np.stack([total, np.einsum("shv,shv->sh", exact.astype(np.float64), g.astype(np.float64))], axis=-1)
    if not natively(call.matrix, call.runs):
        found = tokens_reference.attend_gradient(
            call.matrix, call.values, call.runs, call.query, g, known, out, out_values
        )
        scaled: Array = (found * call.scale).astype(wide)
        return scaled
    values = call.values if call.separate else None
    tokens_native.Gradients(call.matrix, call.runs).attention(values, call.query, g, known, out, out_values)
    each = memory.empty((*total.shape, call.matrix.dim), wide)
    tokens_native.attend(call.matrix, call.values, call.runs, call.query, 0.0, each, None, g, known)
    total_gradient: Array = _sum_rows(each.reshape(len(each), call.query.size)).reshape(call.query.shape) * wide.type(
        call.scale
    )
    return total_gradient


def _sum_rows(rows: Array) -> Array:
    """Add up rows in the order of a token sum, whose error does not grow with their number."""
    item = rows.itemsize
    matrix = matrix_at(
        rows.__array_interface__["data"][0], rows.dtype, rows.shape, [s // item for s in rows.strides], rows
    )
    added: Array = run_call(TokenCall(matrix, runs_of(matrix), _SUM, None, 0.0, rows.dtype, True))[0]
    return added


def _differentiate(x: Any, query: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    """For `anypool.vjp`: the pullback returns the gradients of x and query, and of values if given."""
    call = attention_call(x, query, **kwargs)
    y, exact, total = attend_known(call)
    result = shaped(call, y)
    shape, matrix, values = result.shape, call.matrix, kwargs.get("values")

    def pullback(grad_y: Any) -> tuple[Any, ...]:
        """Return the gradients with respect to x, query and values."""
        g = gradient_argument(grad_y, shape, matrix.where)
        dtype = matrix.dtype.newbyteorder("=")
        out = memory.empty((matrix.n_rows, matrix.dim), dtype)
        apart = memory.empty((matrix.n_rows, call.values.dim), dtype) if call.separate else None
        of_query = attention_gradient(call, exact, total, g.astype(call.result, copy=False), out, apart)
        asked = np.asarray(query)
        found = (split_like(out, x, matrix), of_query.reshape(asked.shape).astype(asked.dtype))
        return found if apart is None else (*found, split_like(apart, values, call.values))

    return result, pullback


def _explain(*_: Any, **__: Any) -> Any:
    raise TypeError(
        "fn must not be attention_pool, which explain does not know: "
        'explain(pool_tokens, x, "mean", …) tells which tokens the same layout counts'
    )


attention_pool.differentiate = _differentiate  # type: ignore[attr-defined]
attention_pool.explain = _explain  # type: ignore[attr-defined]
