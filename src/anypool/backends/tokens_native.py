"""Token pooling on the native kernels: plans as the plain numbers of ``src/native/token_plan.hpp``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool import _native
from anypool.backends.native import number_of
from anypool.reductions import is_float
from anypool.runs import Ints, Runs
from anypool.token_matrix import Matrix
from anypool.token_reductions import Term

Array = npt.NDArray[Any]

# The enumerations of token_plan.hpp, in its order.
_KEEPS = ("sum", "positions", "weighted", "max", "min", "largest", "moments", "weighted_moments", "power", "clamped",
          "exponentials")  # fmt: skip
_FINISHES = ("none", "over_count", "over_root_count", "over_weight", "deviation", "root", "mean_root", "log", "first",
             "last")  # fmt: skip
_GIVES = ("uniform", "positions", "weighted", "select", "largest", "first", "last", "deviation", "weighted_deviation",
          "power", "clamped", "exponentials", "attention")  # fmt: skip
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_BLOCK = 32  # kBlockRows
# A gradient beyond this will have left the cache before it is read, so it is written around it.
_AROUND_CACHE = 24 << 20


def reason_against(matrix: Matrix, runs: Runs) -> str | None:
    """Return None if the kernels can pool this, else why not."""
    if not is_float(matrix.dtype):
        return f"no token kernels for {matrix.dtype}"
    if not _native.isa():
        return f"no kernels for this CPU or ANYPOOL_ISA; built: {', '.join(_native.isa_built())}"
    if runs.count.size and int(runs.tokens.max(initial=0)) >= 2**31:
        return "a row of 2**31 tokens or more"
    return None


def sum_dtype(x: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which tokens are added, and in which gradients come to the kernels."""
    return _DOUBLE if x.kind == "f" and x.itemsize == 8 else _SINGLE


def address_of(array: Array | None) -> int:
    """Return where an array's elements are, or 0."""
    if array is None:
        return 0
    if type(array) is np.ndarray:
        return _native.data_pointer(array)
    address: int = array.__array_interface__["data"][0]
    return address


def _parts(matrix: Matrix) -> tuple[int, Ints, Ints]:
    return len(matrix.rows), matrix.base, matrix.first


def _runs(runs: Runs) -> tuple[int, Ints, Ints, Ints, Ints]:
    return len(runs.bounds) - 1, runs.bounds, runs.part, runs.start, runs.count


def recipe(matrix: Matrix, terms: Sequence[Term], empty: float, result: np.dtype[Any],
           winners: Sequence[Array | None] = (), y_row: int | None = None) -> Any:  # fmt: skip
    """Return what calls on data that lie like this have in common; results are ``y_row`` elements apart."""
    kept: dict[tuple[Any, ...], int] = {}
    rows: list[tuple[int, float, float, int]] = []
    results = []
    for i, term in enumerate(terms):
        reduction, won = term.reduction, address_of(winners[i]) if winners else 0
        at = 0
        if reduction.keep is not None:
            key = (reduction.keep, term.p, term.eps, won)  # sums that several results need are kept once
            if key not in kept:
                kept[key] = len(rows)
                rows.append((_KEEPS.index(reduction.keep), term.p, term.eps, won))
            at = kept[key]
        results.append((_FINISHES.index(reduction.finish), at, i * matrix.dim))
    width = matrix.dim * len(terms) if y_row is None else y_row
    shape = [number_of(matrix.dtype), number_of(result), matrix.dim, matrix.row, matrix.col, width]
    return _native.TokenRecipe(shape, _parts(matrix), empty, rows, results)


def run(made: Any, x: Any, y: Any, runs: Runs, weights: Array | None = None) -> None:
    """Run a recipe on tokens and into a result; each is an array or an address."""
    skipped = None if runs.skipped is None else np.ascontiguousarray(runs.skipped, np.int64)
    made.run(x, y, _runs(runs), weights, skipped)


def reduce(matrix: Matrix, runs: Runs, terms: Sequence[Term], weights: Array | None, empty: float, y: Array,
           winners: Sequence[Array | None]) -> None:  # fmt: skip
    """Write every term's result into its block of columns of ``y``, and where its winners are.

    ``y`` is ``(outputs, dim * terms)``; winners are an int32 array ``(outputs, dim)`` for each term, or None.
    """
    apart = y.strides[0] // y.itemsize if len(y) > 1 else y.shape[-1]
    run(recipe(matrix, terms, empty, y.dtype, winners, apart), matrix.address, address_of(y), runs, weights)


class Gradients:
    """The runs as a gradient needs them: in the order of the rows, or listed for each block of rows."""

    def __init__(self, matrix: Matrix, runs: Runs) -> None:
        self.matrix, self.runs = matrix, runs
        used = np.flatnonzero(runs.count)
        numbers = matrix.numbers(runs)
        order = used[np.argsort(numbers[used], kind="stable")]
        ends = numbers[order] + runs.count[order]
        disjoint = not order.size or bool(np.all(numbers[order][1:] >= ends[:-1]))
        taken = order if disjoint else used
        self.list: Ints | None = None
        self.list_bounds: Ints | None = None
        flat, count = numbers[taken], runs.count[taken]
        if not disjoint:
            self.list, self.list_bounds = _blocks(flat, count, matrix.n_rows)
        fields = (matrix.offsets(runs)[taken], count, flat, runs.output[taken], runs.ordinal[taken])
        skipped = runs.skipped
        self.kept = [*fields, self.list, self.list_bounds, runs.tokens, skipped]
        self.kept = [None if a is None else np.ascontiguousarray(a, np.int64) for a in self.kept]
        self.numbers = [len(taken), *(address_of(a) for a in self.kept)]
        self.taken = taken

    def run(self, terms: Sequence[tuple[Term, Array, Array | None, Array | None, Array | None]], weights: Array | None,
            out: Array) -> None:  # fmt: skip
        """Write the gradient; each term has ``a``, ``b``, what it is divided by, and its winners."""
        gifts = []
        for term, a, b, by, won in terms:
            a_row, b_row = (0 if v is None else v.strides[0] // v.itemsize for v in (a, b))
            at_a, at_b, at_by, at_won = (address_of(v) for v in (a, b, by, won))
            gifts.append((_GIVES.index(term.reduction.give), term.p, term.eps, at_a, at_b, a_row, b_row, at_by, at_won))
        self._run(gifts, weights, out, [])

    def attention(self, values: Matrix | None, query: Array, grad: Array, known: Array, out: Array,
                  out_values: Array | None) -> None:  # fmt: skip
        """Write the gradient of attention pooling: of x and, if they are apart, of the values."""
        heads = len(query)
        if values is None:
            m = self.matrix
            where = [m.dim, m.row, m.col, 0, m.address]
        else:
            offsets = np.ascontiguousarray(values.offsets(self.runs)[self.taken], np.int64)
            where = [values.dim, values.row, values.col, address_of(offsets), values.address]
        extra = [heads, *where, address_of(query), address_of(grad), address_of(known), address_of(out_values)]
        self._run([(_GIVES.index("attention"), 1.0, 0.0, 0, 0, 0, 0, 0, 0)], None, out, extra)

    def _run(self, gifts: list[Any], weights: Array | None, out: Array, attention: list[int]) -> None:
        m = self.matrix
        shape = [number_of(m.dtype), m.dim, m.row, m.col, m.n_rows]
        arrays = [m.address, address_of(weights), address_of(out)]
        _native.token_gradient(shape, self.numbers, arrays, out.nbytes > _AROUND_CACHE, gifts, attention)


def _blocks(flat: Ints, count: Ints, rows: int) -> tuple[Ints, Ints]:
    """Return for every block of rows the runs that touch it, in ascending order."""
    first = flat // _BLOCK
    touched = (flat + count - 1) // _BLOCK - first + 1
    runs = np.repeat(np.arange(len(flat), dtype=np.int64), touched)
    before = np.cumsum(touched) - touched
    blocks = first[runs] + np.arange(len(runs), dtype=np.int64) - before[runs]
    bounds = np.zeros(-(-rows // _BLOCK) + 1, np.int64)
    np.cumsum(np.bincount(blocks, minlength=len(bounds) - 1), out=bounds[1:])
    return runs[np.argsort(blocks, kind="stable")], bounds


def attend(matrix: Matrix, values: Matrix, runs: Runs, query: Array, empty: float, y: Array, logsumexp: Array | None,
           grad: Array | None = None, known: Array | None = None) -> None:  # fmt: skip
    """Write attention pooling ``(outputs, heads, value dim)``; with ``grad``, each output's gradient of the query."""
    shape = [number_of(matrix.dtype), number_of(y.dtype), matrix.dim, matrix.row, matrix.col, values.dim, values.row,
             values.col, len(query)]  # fmt: skip
    arrays = [matrix.address, values.address, *(address_of(a) for a in (query, y, logsumexp, grad, known))]
    _native.token_attention(shape, _parts(matrix), _parts(values), _runs(runs), arrays, empty)


def dots(matrix: Matrix, runs: Runs, a: Array, b: Array | None, m: Array | None) -> Array:
    """Return ``Σ_c a (x - m) + b (x - m)²`` for every token of every run, run after run."""
    y = np.empty(int(runs.tokens.sum()))
    shape = [number_of(matrix.dtype), matrix.dim, matrix.row, matrix.col]
    _native.token_dots(shape, _parts(matrix), _runs(runs), [matrix.address, *(address_of(v) for v in (a, b, m, y))])
    return y
