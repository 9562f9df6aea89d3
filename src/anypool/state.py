"""Mergeable partial results: token pooling of sequences that come in pieces, or from several workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool.arguments import array_argument, flag_argument, number_argument, shown
from anypool.attention import attend, attention_call
from anypool.limits import require
from anypool.reductions import check_dtype
from anypool.runs import Ints, _integers
from anypool.token_gradients import weight_sums
from anypool.token_matrix import Matrix, matrix_of, per_row
from anypool.token_reductions import Term, TokenReduction, kept, result_dtype, terms_of
from anypool.tokens import TokenCall, empty_value, run_call, runs_of
from anypool.windows import size_argument

Array = npt.NDArray[Any]
Partial = dict[str, Array]  # arrays whose first axis is the rows

_NOT_YET = np.iinfo(np.int64).max
_SUMS = ("sum", "positions", "weighted", "power", "clamped")
_MOMENTS = ("moments", "weighted_moments")


# ---- one term: what is kept, the state of no token, how two states merge, what comes of one --------------------------


def _identity(term: Term, rows: int, dim: int, held: np.dtype[Any]) -> Partial:
    shape = (rows, dim)
    keep = term.reduction.keep
    if keep in _SUMS:
        return {"sum": np.zeros(shape, held), "weight": np.zeros(rows)}
    if keep in _MOMENTS:
        return {"mean": np.zeros(shape), "squares": np.zeros(shape), "weight": np.zeros(rows)}
    if keep == "exponentials":
        return {"log": np.full(shape, -np.inf)}
    return {"value": np.zeros(shape, held), "place": np.full(shape, -1, np.int64)}  # -1: none yet


def _merge(term: Term, a: Partial, b: Partial) -> Partial:
    keep = term.reduction.keep
    if keep in _SUMS:
        return {name: a[name] + b[name] for name in a}
    if keep in _MOMENTS:
        total = a["weight"] + b["weight"]
        share = np.divide(b["weight"], total, out=np.zeros_like(total), where=total != 0)[:, None]
        apart = b["mean"] - a["mean"]
        squares = a["squares"] + b["squares"] + apart * apart * (a["weight"][:, None] * share)
        return {"mean": np.where(share == 1, b["mean"], a["mean"] + apart * share), "squares": squares, "weight": total}
    if keep == "exponentials":
        return {"log": np.logaddexp(a["log"], b["log"])}
    wins = _wins(term, a, b)
    return {name: np.where(wins, b[name], a[name]) for name in a}


def _wins(term: Term, a: Partial, b: Partial) -> Array:
    """Return where b's value is taken: a total order, so that any order of merging gives the same."""
    earlier, later = b["place"] < a["place"], b["place"] > a["place"]
    if term.reduction.finish == "first":
        better = earlier
    elif term.reduction.finish == "last":
        better = later
    else:
        (x, y) = (b["value"], a["value"]) if term.reduction.keep == "min" else (a["value"], b["value"])
        nan_a, nan_b = np.isnan(a["value"]), np.isnan(b["value"])
        numbers = (x < y) | ((x == y) & earlier)
        better = np.where(nan_a | nan_b, nan_b & (~nan_a | later), numbers)
    return np.where(a["place"] < 0, True, np.where(b["place"] < 0, False, better))


def _finish(term: Term, partial: Partial, count: Ints) -> Array:
    n = count[:, None].astype(np.float64)
    finish = term.reduction.finish
    if finish in ("root", "mean_root"):
        found = (partial["sum"] if finish == "root" else partial["sum"] / n) ** (1 / term.p)
    elif finish == "over_count":
        found = partial["sum"] / n
    elif finish == "over_root_count":
        found = partial["sum"] / np.sqrt(n)
    elif finish == "over_weight":
        found = partial["sum"] / partial["weight"][:, None]
    elif finish == "deviation":
        found = np.sqrt(np.maximum(partial["squares"], 0) / partial["weight"][:, None])
    elif finish == "log":
        found = partial["log"] / term.p
    else:
        found = partial["sum"] if "sum" in partial else partial["value"]
    return found


class PoolState:
    """What is known of rows whose tokens have been seen in part: ``update``, ``merge``, ``result``.

    Parameters
    ----------
    reduction : str or list of str
        As in `pool_tokens`, or "attention".
    query, scale
        As in `attention_pool`, for "attention".
    weighted : bool
        Whether `update` gets weights, for "mean", "sum" and "std".
    return_indices : bool
        For "max" or "min" alone: `result` returns the values and each winner's place in its row.
    norm_type, r, eps, empty
        As in `pool_tokens`.

    Notes
    -----
    Sums are float64 and counts integers; where results are integers sums are, too, and wrap around as those of
    `pool_tokens` do. Merging states in any order and any chunking agrees with pooling the whole to rounding, for max,
    min, first, last and integers exactly. What depends on a token's place in its row (weightedmean, first,
    last, an index, equal values) needs ``start`` in `update` where a row is spread over several states.

    States can be pickled. They hold arrays of the size of the result and nothing of the tokens.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> x = np.arange(12.0).reshape(6, 2)
    >>> state = ap.PoolState("mean")
    >>> state.update(x[:4], offsets=[0, 1, 4]).update(x[4:], rows=[1]).result()
    array([[0., 1.],
           [6., 7.]])
    """

    def __init__(self, reduction: str | Sequence[str], *, query: Any = None, scale: float | None = None,
                 weighted: bool = False, return_indices: bool = False, norm_type: float | None = None, r: float = 1.0,
                 eps: float = 1e-6, empty: float = math.nan) -> None:  # fmt: skip
        self.attention = isinstance(reduction, str) and reduction == "attention"
        self.reduction = reduction
        self.query = None if query is None else np.array(array_argument("query", query, "PoolState"))
        self.scale = None if scale is None else number_argument("scale", scale, "PoolState")
        self.weighted = flag_argument("weighted", weighted, "PoolState")
        self.return_indices = flag_argument("return_indices", return_indices, "PoolState")
        self._numbers = {"norm_type": norm_type, "r": r, "eps": eps}
        self.empty = empty_value(empty, "PoolState")
        if self.attention != (query is not None):
            raise ValueError(
                f'query goes with reduction "attention", got reduction {shown(reduction)} and query {shown(query)}'
            )
        if self.attention and (weighted or return_indices):
            raise ValueError("attention has neither weights nor indices")
        self.terms: tuple[Term, ...] = ()
        if not self.attention:
            self.terms = terms_of(reduction, norm_type, r, eps, weighted=self.weighted, where="PoolState")
        if return_indices and [t.reduction.keep for t in self.terms] not in (["max"], ["min"]):
            raise ValueError(f'return_indices needs "max" or "min" alone, got reduction {shown(reduction)}')
        self.dtype: np.dtype[Any] | None = None
        self.dim = 0
        self.count: Ints = np.zeros(0, np.int64)
        self.partials: list[Partial] = []

    @property
    def rows(self) -> int:
        """How many rows there are so far."""
        return len(self.count)

    def update(self, x: Any, *, rows: Any = None, start: Any = None, weights: Any = None, mask: Any = None,
               lengths: Any = None, side: str = "right", offsets: Any = None, segment_ids: Any = None,
               num_segments: int | None = None, spans: Any = None, values: Any = None) -> PoolState:  # fmt: skip
        """Add tokens and return the state itself.

        Parameters
        ----------
        x, mask, lengths, side, offsets, segment_ids, num_segments, spans, weights, values
            As in `pool_tokens` and `attention_pool`.
        rows : sequence of int, optional
            The row that each sequence or segment of x belongs to; default 0, 1, 2, …
        start : int or sequence of int, optional
            The place in its row of each segment's first token; default the number of tokens this state has seen of it.
        """
        matrix = matrix_of(x)
        where = matrix.where
        if (weights is not None) != self.weighted:
            raise ValueError(
                f"weights must be given if and only if the state is weighted, got {weights is not None} ({where})"
            )
        runs = runs_of(matrix, mask=mask, lengths=lengths, side=side, offsets=offsets, segment_ids=segment_ids,
                       num_segments=num_segments, spans=spans)  # fmt: skip
        n = len(runs.bounds) - 1
        where_to = self._rows(rows, n, where)
        needed = int(where_to.max(initial=-1)) + 1
        self._check(matrix, needed)
        runs = replace(runs, skipped=self._starts(start, where_to, runs.tokens, where))
        if self.attention:
            new = self._attend(matrix, values, runs)
        else:
            given = None if weights is None else per_row("weights", weights, matrix)
            new = self._reduce(matrix, runs, given)
        self._grow(matrix, needed, new)  # nothing has changed until here
        turn = _occurrence(where_to)
        for k in range(int(turn.max(initial=-1)) + 1):  # a row that comes twice is merged twice
            chosen = np.flatnonzero((turn == k) & (runs.tokens > 0))
            self._merge_rows(where_to[chosen], [{name: a[chosen] for name, a in p.items()} for p in new])
            self.count[where_to[chosen]] += runs.tokens[chosen]
        return self

    def merge(self, other: PoolState) -> PoolState:
        """Add what another state has seen of the same rows, and return the state itself."""
        if not isinstance(other, PoolState) or self._settings() != other._settings():
            raise ValueError(f"other must be a PoolState of the same settings as {self!r}, got {shown(other)}")
        if other.dtype is None:
            return self
        if self.dtype is None:
            self.dtype, self.dim = other.dtype, other.dim
            self.partials = self._identities(self.rows, other.partials)
        if (self.dim, self.dtype) != (other.dim, other.dtype):
            raise ValueError(f"other must hold {self.dim} features of {self.dtype}, got {other.dim} of {other.dtype}")
        self._extend(other.rows)
        seen = np.flatnonzero(other.count)
        self._merge_rows(seen, [{name: a[seen] for name, a in p.items()} for p in other.partials])
        self.count[seen] += other.count[seen]
        return self

    def result(self) -> Any:
        """Return the results so far, ``(rows, D)``; with return_indices a pair with int64 places, -1 for none."""
        if self.dtype is None:
            raise ValueError("result needs an update first")
        none = self.count == 0
        result = self._result(self.dtype)
        if result.kind in "iu" and none.any() and not self.empty.is_integer():
            raise ValueError(
                f"row {int(np.flatnonzero(none)[0])} has no token: for {result} results empty must be an integer"
            )
        with np.errstate(all="ignore"):
            if self.attention:
                found = [self.partials[0]["value"]]
            else:
                found = [_finish(t, p, self.count) for t, p in zip(self.terms, self.partials, strict=True)]
            y = np.concatenate(found, axis=-1)
            if none.any():
                y[none] = self.empty if y.dtype.kind == "f" else int(self.empty)
        if self.attention and self.query is not None and self.query.ndim == 1:
            y = y[:, 0]
        y = y.astype(result)
        return (y, self.partials[0]["place"].copy()) if self.return_indices else y

    def __getstate__(self) -> dict[str, Any]:
        """Return settings and arrays, for pickle."""
        settings = {"reduction": self.reduction, "query": self.query, "scale": self.scale, "weighted": self.weighted,
                    "return_indices": self.return_indices, "empty": self.empty, **self._numbers}  # fmt: skip
        return {"settings": settings, "dtype": self.dtype, "count": self.count, "partials": self.partials}

    def __setstate__(self, state: Any) -> None:
        """Take what `__getstate__` gave; a ValueError says that its parts do not fit together."""
        try:
            settings, dtype, count, partials = (state[k] for k in ("settings", "dtype", "count", "partials"))
            self.__init__(**settings)  # type: ignore[misc]
            if dtype is not None:
                check_dtype(dtype, "PoolState")
                self.count, self.partials, self.dtype = count, partials, dtype
                self.dim = self._fitting_dim()
        except (KeyError, AttributeError, TypeError, IndexError) as error:
            raise ValueError(f"this is not the state of a PoolState: {shown(error)}") from None

    def _fitting_dim(self) -> int:
        """Return the number of features of the arrays held, if they are what `update` makes."""
        first = next(iter(self.partials[0].values()))
        wanted = (
            self._identities(0, self.partials)
            if self.attention
            else [_identity(t, 0, first.shape[1], self._held(self.dtype)) for t in self.terms]
        )
        for held, like in zip(self.partials, wanted, strict=True):
            if {n: (a.dtype, a.shape[1:]) for n, a in held.items()} != {
                n: (a.dtype, a.shape[1:]) for n, a in like.items()
            } or any(len(a) != self.rows for a in held.values()):
                raise TypeError(f"the arrays do not belong together: {[a.shape for a in held.values()]}")
        if self.count.dtype != np.int64 or self.count.ndim != 1 or (self.count < 0).any():
            raise TypeError("counts must be int64 and not negative")
        heads = None if self.query is None else len(np.atleast_2d(self.query))
        if heads is not None and first.shape[1] != heads:
            raise TypeError(f"{first.shape[1]} heads for {heads} queries")
        return int(first.shape[1] if self.query is None else self.query.shape[-1])

    def __repr__(self) -> str:
        return f"PoolState({self.reduction!r}, {self.rows} rows, {int(self.count.sum())} tokens)"

    # ---- within

    def _result(self, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
        assert dtype is not None
        return dtype if self.attention else result_dtype(self.terms, dtype, None, "PoolState")

    def _held(self, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
        """Return the dtype of sums and values: integers are floats only where results are."""
        result = self._result(dtype)
        return result if result.kind in "iu" else np.dtype(np.float64)

    def _settings(self) -> tuple[Any, ...]:
        query = None if self.query is None else (self.query.shape, self.query.tobytes())
        return self.attention, self.terms, query, self.scale, self.weighted, self.return_indices

    def _rows(self, rows: Any, n: int, where: str) -> Ints:
        if rows is None:
            return np.arange(n, dtype=np.int64)
        given = _integers("rows", rows, where)
        if given.shape != (n,) or (given.size and given.min() < 0):
            raise ValueError(
                f"rows must be {n} numbers >= 0, one for each sequence or segment, got {shown(rows)} ({where})"
            )
        return given

    def _starts(self, start: Any, rows: Ints, tokens: Ints, where: str) -> Ints:
        if start is None:
            before = np.zeros_like(tokens)
            order = np.argsort(rows, kind="stable")
            total = np.cumsum(tokens[order]) - tokens[order]
            first = np.searchsorted(rows[order], rows[order])
            before[order] = total - total[first]
            seen = np.zeros_like(tokens)
            seen[rows < self.rows] = self.count[rows[rows < self.rows]]
            return seen + before
        if not isinstance(start, (list, tuple, np.ndarray)):
            return np.full(len(rows), size_argument("start", start, where, at_least=0), np.int64)
        given = _integers("start", start, where)
        if given.shape != rows.shape or (given.size and not (given.min() >= 0 and given.max() < 2**62)):
            raise ValueError(f"start must be one int in [0, 2**62) or {len(rows)}, got {shown(start)} ({where})")
        return given

    def _check(self, matrix: Matrix, rows: int) -> None:
        if self.dtype is not None and (matrix.dim != self.dim or matrix.dtype.newbyteorder("=") != self.dtype):
            raise ValueError(
                f"x must have {self.dim} features of {self.dtype} as before, got {matrix.dtype} ({matrix.where})"
            )
        heads = 1 if self.query is None else len(np.atleast_2d(self.query))
        require(rows * (matrix.dim * heads * max(1, len(self.terms)) + 1) * 16, f"a state of {rows} rows", matrix.where)

    def _grow(self, matrix: Matrix, rows: int, new: list[Partial]) -> None:
        if self.dtype is None:
            self.dtype, self.dim = matrix.dtype.newbyteorder("="), matrix.dim
            self.partials = self._identities(0, new)
        if self.attention and (width := self.partials[0]["value"].shape[-1]) != new[0]["value"].shape[-1]:
            raise ValueError(
                f"values must have {width} features as before, got {new[0]['value'].shape[-1]} ({matrix.where})"
            )
        self._extend(rows)

    def _extend(self, rows: int) -> None:
        more = rows - self.rows
        if more > 0:
            self.count = np.concatenate([self.count, np.zeros(more, np.int64)])
            none = self._identities(more, self.partials)
            self.partials = [
                {name: np.concatenate([p[name], q[name]]) for name in p}
                for p, q in zip(self.partials, none, strict=True)
            ]

    def _identities(self, rows: int, like: list[Partial]) -> list[Partial]:
        if self.attention:
            value = like[0]["value"]
            return [{"value": np.zeros((rows, *value.shape[1:])), "log": np.full((rows, value.shape[1]), -np.inf)}]
        return [_identity(t, rows, self.dim, self._held(self.dtype)) for t in self.terms]

    def _merge_rows(self, rows: Ints, new: list[Partial]) -> None:
        terms: Sequence[Term | None] = [None] if self.attention else self.terms
        with np.errstate(all="ignore"):
            for term, old, add in zip(terms, self.partials, new, strict=True):
                seen = {k: v[rows] for k, v in old.items()}
                merged = _merge_attention(seen, add) if term is None else _merge(term, seen, add)
                for name, a in merged.items():
                    old[name][rows] = a

    def _attend(self, matrix: Matrix, values: Any, runs: Any) -> list[Partial]:
        call = replace(attention_call(matrix, self.query, values=values, scale=self.scale, empty=0.0), runs=runs)
        total = np.empty((len(runs.bounds) - 1, len(call.query)))
        return [{"value": attend(call, np.dtype(np.float64), total), "log": total}]

    def _reduce(self, matrix: Matrix, runs: Any, weights: Array | None) -> list[Partial]:
        """Return each term's state for each segment, made by the same kernels as a result."""
        asked: list[Term] = []
        for t in self.terms:
            if t.reduction.finish in ("first", "last", "log"):
                asked.append(t)
            else:
                asked.append(replace(t, reduction=kept(t.reduction)))
                if t.reduction.keep in _MOMENTS:
                    asked.append(t)
        n = len(runs.bounds) - 1
        winners = [
            np.empty((n, matrix.dim), np.int32) if t.reduction.keep in ("max", "min", "largest") else None
            for t in asked
        ]
        call = TokenCall(matrix, runs, tuple(asked), weights, 0.0, self._held(matrix.dtype.newbyteorder("=")), True)
        y = run_call(call, winners)
        parts = iter(zip(np.split(y, len(asked), axis=1), winners, strict=True))
        return [self._partial(t, runs, parts, _weight(t.reduction, runs, call)) for t in self.terms]

    def _partial(self, term: Term, runs: Any, parts: Any, weight: Array) -> Partial:
        y, won = next(parts)
        keep, finish = term.reduction.keep, term.reduction.finish
        if keep in _SUMS:
            return {"sum": y, "weight": weight}
        if keep in _MOMENTS:
            deviation, _ = next(parts)
            return {"mean": y, "squares": deviation**2 * weight[:, None], "weight": weight}
        if keep == "exponentials":
            return {"log": y * term.p}
        start = runs.skipped[:, None]
        if finish == "first":
            place = np.broadcast_to(start, y.shape)
        elif finish == "last":
            place = np.broadcast_to(start + runs.tokens[:, None] - 1, y.shape)
        else:
            place = start + won
        return {"value": y, "place": place}


def _weight(reduction: TokenReduction, runs: Any, call: TokenCall) -> Array:
    if reduction.keep in ("weighted", "weighted_moments"):
        return weight_sums(call)
    n: Array = runs.tokens.astype(np.float64)
    if reduction.keep == "positions":
        n = n * (n + 1) / 2 + runs.skipped * n
    return n


def _merge_attention(a: Partial, b: Partial) -> Partial:
    top = np.maximum(a["log"], b["log"])
    low = np.where(np.isneginf(top), 0.0, top)  # two states of no token
    left, right = np.exp(a["log"] - low), np.exp(b["log"] - low)
    total = left + right
    value = (a["value"] * left[..., None] + b["value"] * right[..., None]) / np.where(total == 0, 1.0, total)[..., None]
    return {"value": value, "log": np.where(np.isneginf(top), top, low + np.log(total))}


def _occurrence(rows: Ints) -> Ints:
    """Return how often each entry's row came before it."""
    order = np.argsort(rows, kind="stable")
    first = np.searchsorted(rows[order], rows[order])
    turn = np.empty_like(rows)
    turn[order] = np.arange(len(rows)) - first
    return turn
