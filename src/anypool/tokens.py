"""Token pooling: vectors of tokens to vectors of sentences, spans and documents."""

from __future__ import annotations

import marshal
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anypool import memory
from anypool import runs as geometry
from anypool.arguments import number_argument, shown
from anypool.backends import asked_for, registry, tokens_native, tokens_reference
from anypool.operation import is_tensor
from anypool.reductions import is_float
from anypool.runs import Runs
from anypool.token_matrix import Matrix, matrix_of, per_row
from anypool.token_reductions import Term, result_dtype, terms_of

Array = npt.NDArray[Any]

LAYOUTS = ("mask", "lengths", "offsets", "segment_ids", "spans")
OPTIONS = ("side", "num_segments", "weights", "exclude_prefix", "empty", "norm_type", "r", "eps", "dtype")


def holds_tensors(x: Any) -> bool:
    """Whether x is a PyTorch tensor or a list of them; PyTorch is never imported for that."""
    return is_tensor(x[0] if isinstance(x, (list, tuple)) and x else x)


_tensors: Any = None


def quick(x: Any, layouts: tuple[Any, ...], what: tuple[Any, ...]) -> Any:
    """Return the pooled tensor if the call is known but for its data; `anypool.token_tensors` puts its own here."""
    return NotImplemented


def tensors() -> Any:
    """Return the module that pools tensors."""
    global _tensors
    if _tensors is None:
        from anypool import token_tensors

        _tensors = token_tensors
    return _tensors


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

    @property
    def results(self) -> tuple[int, int]:
        """The shape of what a backend writes: a row for each output, the terms side by side."""
        return len(self.runs.bounds) - 1, self.matrix.dim * len(self.terms)


def runs_of(matrix: Matrix, *, mask: Any = None, lengths: Any = None, side: Any = "right", offsets: Any = None,
            segment_ids: Any = None, num_segments: Any = None, spans: Any = None,
            exclude_prefix: Any = None) -> Runs:  # fmt: skip
    """Return which rows each output sees; at most one of the layouts may be given, none means all rows."""
    values = dict(zip(LAYOUTS, (mask, lengths, offsets, segment_ids, spans), strict=True))
    given = [name for name in LAYOUTS if values[name] is not None]
    where, leading = matrix.where, matrix.leading
    if len(given) > 1:
        raise ValueError(
            f"only one of {', '.join(LAYOUTS)} can say which tokens count, got {' and '.join(given)} ({where})"
        )
    if num_segments is not None and segment_ids is None:
        raise ValueError(f"num_segments goes with segment_ids ({where})")
    if lengths is None and not (isinstance(side, str) and side == "right"):
        raise ValueError(
            f"side goes with lengths: a mask says itself where the padding is, got side={shown(side)} ({where})"
        )
    kind = given[0] if given else ""
    if isinstance(matrix.kept, list) and kind:
        raise ValueError(f"{kind} is for one array; of a list of arrays every token counts ({where})")
    length = int(matrix.rows[0]) if len(matrix.rows) else 0
    if kind in ("offsets", "segment_ids") and leading:
        raise ValueError(f"{kind} is for packed rows: x must have 2 dimensions, got {len(leading) + 2} ({where})")
    if kind in ("mask", "lengths") and len(matrix.rows) == 0:
        length = np.shape(mask)[-1] if kind == "mask" and np.ndim(mask) else 0
    if kind == "spans" and exclude_prefix is not None:
        raise ValueError(f"exclude_prefix does not go with spans, which say themselves where they begin ({where})")
    found = _runs_from(kind, values.get(kind), matrix, length, side, num_segments)
    return found.without_prefix(exclude_prefix, where)


def _runs_from(kind: str, value: Any, matrix: Matrix, length: int, side: Any, num_segments: Any) -> Runs:
    where, leading = matrix.where, matrix.leading
    if kind == "mask":
        return geometry.from_mask(value, leading, length, where)
    if kind == "lengths":
        return geometry.from_lengths(value, side, leading, length, where)
    if kind == "offsets":
        return geometry.from_offsets(value, length, where)
    if kind == "segment_ids":
        return geometry.from_segment_ids(value, length, num_segments, where)
    if kind == "spans":
        return geometry.from_spans(value, leading, length, where)
    return geometry.whole(leading, matrix.rows)


def empty_value(empty: Any, where: str) -> float:
    """Check the value that stands for rows without a token."""
    return number_argument("empty", empty, where)


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
        raise ValueError(
            f"row {at} has no token: for {result} results empty must be an integer, got {empty!r} ({where})"
        )
    given = None if weights is None else per_row("weights", weights, matrix)
    return TokenCall(matrix, runs, terms, given, value, result, single=not runs.shape)


def natively(matrix: Matrix, runs: Runs) -> bool:
    """Return whether kernels run this; a backend chosen by name never falls back."""
    registry()  # refuses settings that would be ignored
    reason = tokens_native.reason_against(matrix, runs)
    wanted = asked_for()
    if wanted == "native" and reason is not None:
        raise NotImplementedError(f"the native backend cannot run this: {reason}")
    return reason is None and wanted != "reference"


def backend_of(call: TokenCall) -> Any:
    """Return the module that runs this."""
    return tokens_native if natively(call.matrix, call.runs) else tokens_reference


def run_call(call: TokenCall, winners: Sequence[Array | None] | None = None, into: Any = None) -> Array:
    """Return the results, ``(outputs, dim * terms)``, in a new array or in what is given."""
    y: Array = memory.empty(call.results, call.result) if into is None else into
    backend_of(call).reduce(call.matrix, call.runs, call.terms, call.weights, call.empty, y,
                          winners or [None] * len(call.terms))  # fmt: skip
    return y


class Seen:
    """How the rows that outputs see follow from what is given to say so; all but that is checked."""

    __slots__ = ("kind", "length", "matrix", "prefix", "segments", "side")

    def __init__(self, matrix: Matrix, kind: str, options: Mapping[str, Any]) -> None:
        self.matrix, self.kind, self.length = matrix.at(0), kind, int(matrix.rows[0])
        self.side, self.segments, self.prefix = options["side"], options["num_segments"], options["exclude_prefix"]

    def runs(self, value: Any) -> Runs:
        """Return the rows that each output sees."""
        runs = _runs_from(self.kind, value, self.matrix, self.length, self.side, self.segments)
        return runs if self.prefix is None else runs.without_prefix(self.prefix, self.matrix.where)


class Recipe(NamedTuple):
    """What calls that differ in their data alone have in common: it is checked once, and looked up from then on.

    A call is short beside the model that made the tokens, but that has put all else out of the caches: each function
    that need not run again saves as much as ten do where they are at hand.
    """

    seen: Seen
    native: Any
    width: int
    dtype: np.dtype[Any]


recipes: dict[Hashable, Any] = {}
_MOST_PARTS = 4096  # of a batch: a recipe has 32 bytes for each, and what a call of more costs is not its beginning


def key_of(x: Any, strides: Sequence[int], options: Mapping[str, Any], *what: Any) -> tuple[Hashable, str]:
    """Return the key of all calls that differ from this one in their data alone, and the layout that is given, or "".

    The key is None if something has to be looked at each time: a dtype, numbers of NumPy's, an array, several prefixes.
    """
    given = [name for name in LAYOUTS if options[name] is not None]
    prefix = options["exclude_prefix"]
    if len(given) > 1 or options["dtype"] is not None or not (prefix is None or type(prefix) is int):
        return None, ""
    try:
        # Bytes tell 1, 1.0 and True apart, which are equal as keys; version 2 has no references to equal objects.
        rest = marshal.dumps((what, given, options["side"], options["num_segments"], prefix,
                              options["empty"]), 2)  # fmt: skip
    except ValueError:
        return None, ""
    return (x.dtype, x.shape, strides, rest, asked_for()), given[0] if given else ""


def worth_keeping(matrix: Matrix, runs: Runs) -> bool:
    """Whether a kernel runs this, and no other data can change that."""
    return 0 < len(matrix.rows) <= _MOST_PARTS and int(matrix.rows.max()) < 2**31 and natively(matrix, runs)


def remember(key: Hashable, make: Callable[[], Any], matrix: Matrix, runs: Runs) -> None:
    """Keep what a call has found out, if it will serve others."""
    if key is None or not worth_keeping(matrix, runs):
        return
    if len(recipes) >= 1024:
        recipes.clear()
    recipes[key] = make()


def pool_tokens(x: Any, reduction: str | Sequence[str], *, mask: Any = None, lengths: Any = None, side: str = "right",
                offsets: Any = None, segment_ids: Any = None, num_segments: int | None = None, spans: Any = None,
                weights: Any = None, exclude_prefix: Any = None, empty: float = math.nan,
                norm_type: float | None = None, r: float = 1.0, eps: float = 1e-6,
                dtype: Any = None) -> Any:  # fmt: skip
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
    if type(x) is not np.ndarray:
        what = reduction, side, num_segments, weights, exclude_prefix, empty, norm_type, r, eps, dtype
        y = quick(x, (mask, lengths, offsets, segment_ids, spans), what)
        if y is not NotImplemented:
            return y
    run: Any = _arrays if not holds_tensors(x) else tensors().pool_tokens
    return run(x, reduction, mask=mask, lengths=lengths, side=side, offsets=offsets, segment_ids=segment_ids,
               num_segments=num_segments, spans=spans, weights=weights, exclude_prefix=exclude_prefix, empty=empty,
               norm_type=norm_type, r=r, eps=eps, dtype=dtype)  # fmt: skip


def recipe_of(call: TokenCall, result: np.dtype[Any], kind: str, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a call that has been checked."""
    native = tokens_native.recipe(call.matrix, call.terms, call.empty, result)
    return Recipe(Seen(call.matrix, kind, options), native, call.results[1], result)


def _arrays(x: Any, reduction: Any, **kwargs: Any) -> Array:
    key: Hashable = None
    if type(x) is np.ndarray and x.flags.aligned and kwargs["weights"] is None:
        key, kind = key_of(x, x.strides, kwargs, reduction, kwargs["norm_type"], kwargs["r"], kwargs["eps"])
        recipe = recipes.get(key)
        if recipe is not None:
            runs = recipe.seen.runs(kwargs.get(kind))
            y: Array = memory.empty((*runs.shape, recipe.width), recipe.dtype)
            tokens_native.run(recipe.native, x, y, runs)
            return y
    call = call_of(x, reduction, **kwargs)
    if key is not None and call.matrix.kept is x:
        remember(key, lambda: recipe_of(call, call.result, kind, kwargs), call.matrix, call.runs)
    y = run_call(call)
    return y.reshape(*call.runs.shape, y.shape[1])


def _differentiate(x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    from anypool.token_gradients import differentiate

    return differentiate(x, *args, **kwargs)


def _explain(*args: Any, **kwargs: Any) -> Any:
    from anypool.token_explanation import explain_tokens

    return explain_tokens(*args, **kwargs)


pool_tokens.differentiate = _differentiate  # type: ignore[attr-defined]
pool_tokens.explain = _explain  # type: ignore[attr-defined]
