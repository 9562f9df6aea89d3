"""Layout of token pooling: a user's array, or list of arrays, as parts of rows; nothing is copied.

A row is ``dim`` elements, ``col`` apart; part ``i`` has ``rows[i]`` of them, ``row`` apart, from ``base[i]`` on. So
batches of any rank, transposed and sliced arrays, packed arrays and lists of arrays are alike to the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool.arguments import array_argument
from anypool.cached import cached_property
from anypool.operation import as_array, is_tensor, regular
from anypool.reductions import check_dtype, is_float
from anypool.runs import Ints, Runs

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Matrix:
    """Rows of tokens. ``kept`` are the arrays themselves, one for each part or one for all."""

    address: int
    dtype: np.dtype[Any]
    dim: int
    row: int
    col: int
    base: Ints  # elements from the address to the first row of each part
    rows: Ints
    leading: tuple[int, ...]  # axes before those of a sequence
    kept: Any
    where: str

    @cached_property
    def first(self) -> Ints:
        """The number of each part's first row, all rows counted through."""
        first: Ints = np.cumsum(self.rows) - self.rows
        return first

    def at(self, address: int) -> Matrix:
        """Return the matrix of other data that lie alike."""
        return replace(self, address=address, kept=None)

    @property
    def n_rows(self) -> int:
        """How many rows there are in all."""
        return int(self.rows.sum())

    def offsets(self, runs: Runs) -> Ints:
        """Elements from the address to each run's first row."""
        offsets: Ints = self.base[runs.part] + runs.start * self.row
        return offsets

    def numbers(self, runs: Runs) -> Ints:
        """The number of each run's first row."""
        numbers: Ints = self.first[runs.part] + runs.start
        return numbers

    def tokens(self, runs: Runs, output: int) -> Array:
        """Return an output's tokens as a new array ``(n, dim)``."""
        found = [
            self._part(int(runs.part[r]))[runs.start[r] : runs.start[r] + runs.count[r]]
            for r in range(runs.bounds[output], runs.bounds[output + 1])
        ]
        return np.ascontiguousarray(np.concatenate(found)) if found else np.empty((0, self.dim), self.dtype)

    def _part(self, i: int) -> Array:
        if isinstance(self.kept, list):
            part: Array = self.kept[i]
            return part
        whole: Array = self.kept[np.unravel_index(i, self.leading)] if self.leading else self.kept
        return whole


def shape_text(x: Any) -> str:
    """What error messages say about x."""
    return f"x: {tuple(x.shape)}" if hasattr(x, "shape") else f"x: {len(x)} arrays"


def is_list_of_arrays(x: Any) -> bool:
    """Whether x is a list of sequences and not one nested list of numbers."""
    return isinstance(x, (list, tuple)) and len(x) > 0 and all(hasattr(a, "shape") for a in x)


def matrix_of(x: Any) -> Matrix:
    """Return an array ``(…, rows, dim)``, or a list of arrays ``(rows, dim)``, as a matrix."""
    if is_list_of_arrays(x):
        return _of_list([_checked(as_array(a), f"x[{i}]: {np.shape(a)}") for i, a in enumerate(x)])
    if is_tensor(x):
        raise TypeError(f"x must be an array here, got a tensor: give x.numpy() (x: {tuple(x.shape)})")
    array = as_array(x)
    array = _checked(array, f"x: {array.shape}")
    item = array.itemsize
    return matrix_at(_address(array), array.dtype, array.shape, [s // item for s in array.strides], array)


def matrix_at(address: int, dtype: np.dtype[Any], shape: Sequence[int], strides: Sequence[int], kept: Any) -> Matrix:
    """Return what lies at an address as a matrix; strides are in elements."""
    base: Ints = np.zeros((), np.int64)
    for n, s in zip(shape[:-2], strides[:-2], strict=True):
        base = base[..., None] + np.arange(n, dtype=np.int64) * s
    leading = tuple(shape[:-2])
    rows = np.full(math.prod(leading), shape[-2], np.int64)
    return Matrix(address, dtype, shape[-1], strides[-2], strides[-1], base.reshape(-1), rows, leading, kept,
                  f"x: {tuple(shape)}")  # fmt: skip


def check_shape(shape: Sequence[int], where: str) -> None:
    """Refuse an x without tokens or features."""
    if len(shape) < 2:
        raise ValueError(f"x must have at least 2 dimensions, tokens and features, got {len(shape)} ({where})")
    if shape[-1] == 0:
        raise ValueError(f"x must have at least one feature in its last dimension, got 0 ({where})")


def _checked(array: Array, where: str) -> Array:
    check_shape(array.shape, where)
    check_dtype(array.dtype, where)
    if not regular(array):  # a field of a packed record, or the other byte order: the one case that is copied
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _of_list(arrays: list[Array]) -> Matrix:
    lead = arrays[0]
    for i, a in enumerate(arrays):
        if a.ndim != 2 or a.shape[1] != lead.shape[1] or a.dtype != lead.dtype:
            raise ValueError(
                f"x must be a list of arrays (tokens, {lead.shape[1]}) of dtype {lead.dtype}, "
                f"got {a.shape} {a.dtype} at {i}"
            )
    item = lead.itemsize
    # The strides of all that have a step to make; of arrays with no row or one they say nothing.
    row, col = next((a.strides for a in arrays if len(a) > 1), (lead.shape[1] * item, item))
    if any((a.strides != (row, col) if len(a) > 1 else a.strides[1] != col) for a in arrays if len(a)):
        arrays = [np.ascontiguousarray(a) for a in arrays]
        row, col = lead.shape[1] * item, item
    addresses = [_address(a) for a in arrays]
    base = np.array([(a - addresses[0]) // item for a in addresses], np.int64)
    rows = np.array([len(a) for a in arrays], np.int64)
    return Matrix(addresses[0], lead.dtype, lead.shape[1], row // item, col // item, base, rows, (len(arrays),), arrays,
                  f"x: {len(arrays)} arrays (…, {lead.shape[1]})")  # fmt: skip


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def per_row(name: str, value: Any, matrix: Matrix) -> Array:
    """Check numbers given for each row, as weights are, and return them flat, as float64."""
    if isinstance(matrix.kept, list):
        given = [array_argument(name, v, matrix.where) for v in value] if isinstance(value, (list, tuple)) else []
        if [v.shape for v in given] != [(n,) for n in matrix.rows]:
            raise ValueError(f"{name} must be a list of arrays, one number for each token ({matrix.where})")
        found = np.concatenate(given)
    else:
        found = array_argument(name, value, matrix.where)
        wanted = (*matrix.leading, int(matrix.rows[0]) if len(matrix.rows) else found.shape[-1] if found.ndim else 0)
        if found.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, one for each token, got {found.shape} ({matrix.where})")
    if not is_float(found.dtype) and found.dtype.kind not in "biu":
        raise TypeError(f"{name} must be numbers, got dtype {found.dtype} ({matrix.where})")
    return np.ascontiguousarray(found.reshape(-1), np.float64)
