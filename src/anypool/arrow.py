"""Token pooling of Arrow columns that hold a list of vectors in each row; their memory is used as it is.

Needs PyArrow: ``pip install "anypool[arrow]"``.

Examples
--------
>>> import numpy as np, pyarrow as pa
>>> from anypool.arrow import pool_column, vectors
>>> table = pa.table({"id": [1, 2], "tokens": vectors([np.ones((3, 2), np.float32), np.zeros((1, 2), np.float32)])})
>>> pool_column(table, "tokens", "mean")["tokens"].to_pylist()
[[1.0, 1.0], [0.0, 0.0]]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from anypool.tokens import pool_tokens

Array = npt.NDArray[Any]


def is_vectors(kind: Any) -> bool:
    """Whether a type is a list of vectors: a list of fixed-size lists of floats, or of lists."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type
    lists = pa.types.is_fixed_size_list(inner) or pa.types.is_list(inner) or pa.types.is_large_list(inner)
    return bool(lists and pa.types.is_floating(inner.value_type))


def vectors(rows: Iterable[Any]) -> Any:
    """Return arrays ``(tokens, dim)`` as an Arrow array with a list of vectors in each row.

    Parameters
    ----------
    rows : iterable of array_like of shape ``(tokens, dim)``
    """
    arrays = [np.asarray(r) for r in rows]
    dims = {a.shape[1] for a in arrays if a.ndim == 2}
    if len(dims) != 1 or any(a.ndim != 2 for a in arrays):
        raise ValueError(f"rows must be arrays (tokens, dim) of one dim, got shapes {[a.shape for a in arrays][:4]}")
    flat = pa.array(np.concatenate(arrays).reshape(-1))
    offsets = np.cumsum([0, *(len(a) for a in arrays)])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.FixedSizeListArray.from_arrays(flat, dims.pop()))


def tokens_of(column: Any, name: str = "column") -> tuple[Array, Array]:
    """Return the token vectors ``(T, D)`` of an Arrow array and each row's span of them, without a copy.

    A row that is null has no token. Raises ValueError for vectors that are null or differ in length.
    """
    if not is_vectors(column.type):
        raise ValueError(f"{name} must hold a list of vectors in each row, got {column.type}")
    column.validate(full=True)  # a file may say that rows begin where no vectors are; nobody else looks
    offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    inner = column.values
    first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    seen = inner.slice(first, last - first)
    if seen.null_count:
        raise ValueError(f"{name} holds vectors that are null")
    x = _matrix(seen, name)
    spans = np.stack([offsets[:-1], offsets[1:]], axis=1) - first
    if column.null_count:
        spans[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return x, spans


def _matrix(inner: Any, name: str) -> Array:
    if pa.types.is_fixed_size_list(inner.type):
        dim, start = inner.type.list_size, inner.offset * inner.type.list_size
        flat = inner.values.slice(start, len(inner) * dim)
    else:
        bounds = inner.offsets.to_numpy(zero_copy_only=False)
        lengths = np.diff(bounds)
        dim = int(lengths[0]) if len(lengths) else 1
        if np.any(lengths != dim):
            raise ValueError(f"{name} must hold vectors of one length, got {dim} and {lengths[lengths != dim][0]}")
        flat = inner.values.slice(int(bounds[0]), len(inner) * dim) if len(bounds) else inner.values
    if flat.null_count:
        raise ValueError(f"{name} holds numbers that are null")
    values: Array = flat.to_numpy(zero_copy_only=True).reshape(-1, dim)
    return values


def pool_array(column: Any, reduction: str | Sequence[str], name: str = "column", **options: Any) -> Array:
    """Return the pooled vectors ``(rows, D)`` of an Arrow array or chunked array."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if not chunks:
        raise ValueError(f"{name} has no rows")
    found = []
    for chunk in chunks:
        x, spans = tokens_of(chunk, name)
        if np.array_equal(spans[1:, 0], spans[:-1, 1]) and len(spans) and (spans[0, 0], spans[-1, 1]) == (0, len(x)):
            found.append(pool_tokens(x, reduction, offsets=np.append(spans[:, 0], len(x)), **options))
        else:  # rows that are null, with tokens behind them
            found.append(pool_tokens(x, reduction, spans=spans, **options))
    return np.concatenate(found) if len(found) > 1 else found[0]


def pool_column(table: Any, column: str, reduction: str | Sequence[str], *, output: str | None = None,
                **options: Any) -> Any:  # fmt: skip
    """Replace a column of token vectors by one vector a row; for ``map`` over Arrow batches.

    Parameters
    ----------
    table : pyarrow.Table or pyarrow.RecordBatch
    column : str
        A list (or large list) of fixed-size lists of floats in each row.
    reduction : str or list of str
        As in `anypool.pool_tokens`.
    output : str, optional
        Add the result under this name and keep the column.
    **options
        ``exclude_prefix``, ``empty``, ``norm_type``, ``r``, ``eps`` and ``dtype`` of `anypool.pool_tokens`.

    Returns
    -------
    pyarrow.Table or pyarrow.RecordBatch, as given

    Raises
    ------
    KeyError, ValueError
        If there is no such column, or it holds something else.
    """
    if column not in table.schema.names:
        raise KeyError(f"no column {column!r}; there are {', '.join(table.schema.names)}")
    y = pool_array(table.column(column), reduction, column, **options)
    pooled = pa.FixedSizeListArray.from_arrays(pa.array(y.reshape(-1)), y.shape[1])
    arrays, names = list(table.columns), list(table.schema.names)
    if output is None:
        arrays[names.index(column)] = pooled
    else:
        arrays, names = [*arrays, pooled], [*names, output]
    return type(table).from_arrays(arrays, names=names)
