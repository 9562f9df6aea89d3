"""Max unpooling: winners back to their places, zeros elsewhere. The inverse that `return_indices` is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool.arguments import array_argument, is_sequence, shown
from anypool.limits import require
from anypool.operation import as_array, check_size, is_tensor, pullback_of, tensors
from anypool.reductions import check_dtype
from anypool.windows import sizes_argument

Array = npt.NDArray[Any]


def geometry(
    rank: int, x: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> tuple[tuple[int, ...], ...]:
    """Check the arguments for an array or tensor; return kernel, stride, padding and size of every unpooled axis."""
    where = f"x: {tuple(x.shape)}"
    if x.ndim not in (rank + 1, rank + 2):
        raise ValueError(f"max_unpool{rank}d takes {rank + 1} or {rank + 2} dimensions, got {x.ndim} ({where})")
    kernel = sizes_argument("kernel_size", kernel_size, rank, where, at_least=1)
    strides = (
        kernel
        if stride is None or (is_sequence(stride) and not len(stride))
        else sizes_argument("stride", stride, rank, where, at_least=1)
    )
    pads = sizes_argument("padding", padding, rank, where, at_least=0)
    default = [(n - 1) * s - 2 * p + k for n, k, s, p in zip(x.shape[-rank:], kernel, strides, pads, strict=True)]
    if output_size is None:
        sizes = default
    else:
        given = list(output_size) if is_sequence(output_size) else [output_size] * rank
        if len(given) == rank + 2:  # the whole shape, as x.shape before pooling
            given = given[-rank:]
        sizes = list(sizes_argument("output_size", given, rank, where, at_least=1))
        for i, (size, base, s) in enumerate(zip(sizes, default, strides, strict=True)):
            if not base - s < size < base + s:
                raise ValueError(
                    f"output_size[{i}] must be between {base - s} and {base + s} (exclusive), got {size} ({where})"
                )
    if min(sizes) < 1:
        raise ValueError(f"padding must leave an output, got {shown(padding)} for sizes {sizes} ({where})")
    return kernel, strides, pads, tuple(sizes)


def prepare(rank: int, x: Any, indices: Any, kernel_size: Any, stride: Any, padding: Any,
             output_size: Any) -> tuple[Array, Array, tuple[int, ...]]:  # fmt: skip
    x = as_array(x)
    check_dtype(x.dtype, f"x: {x.shape}")
    where = f"x: {x.shape}"
    *_, sizes = geometry(rank, x, kernel_size, stride, padding, output_size)
    indices = array_argument("indices", indices, where)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {indices.dtype} ({where})")
    if indices.shape != x.shape:
        raise ValueError(f"indices must have the shape of x, got {indices.shape} ({where})")
    positions = math.prod(sizes)
    if indices.size and not (indices.min() >= 0 and indices.max() < positions):
        raise ValueError(f"indices must be in [0, {positions}), got {indices.min()} … {indices.max()} ({where})")
    shape = (*x.shape[:-rank], *sizes)
    check_size(shape, x.dtype, where)
    require(math.prod(shape) * x.itemsize, f"the result of shape {shape}", where)
    return x, indices, sizes


def _flat(a: Array, rank: int) -> Any:
    return a.reshape(*a.shape[:-rank], math.prod(a.shape[-rank:]))


def _unpool(x: Array, indices: Array, sizes: tuple[int, ...]) -> Any:
    rank = len(sizes)
    y = np.zeros((*x.shape[:-rank], math.prod(sizes)), x.dtype)
    np.put_along_axis(y, _flat(indices, rank).astype(np.intp, copy=False), _flat(x, rank), axis=-1)
    return y.reshape(*x.shape[:-rank], *sizes)


def distinct(indices: Array, rank: int, positions: int) -> bool:
    """Whether no two indices of a plane are equal; they have been checked."""
    places = _flat(indices, rank).reshape(-1, math.prod(indices.shape[-rank:]))
    taken = np.zeros((len(places), positions), bool)
    taken[np.arange(len(places))[:, None], places] = True
    return bool(np.count_nonzero(taken) == places.size)


def _kept(places: Array, positions: int) -> Any:
    """Tell which values stay: the last of those with the same place."""
    own = np.broadcast_to(np.arange(places.shape[-1]), places.shape)
    owner = np.empty((*places.shape[:-1], positions), np.intp)
    np.put_along_axis(owner, places, own, axis=-1)
    return np.take_along_axis(owner, places, axis=-1) == own


def _make(rank: int) -> Callable[..., Any]:
    def max_unpool(
        x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
    ) -> Any:
        if is_tensor(x):
            return tensors().unpool(rank, x, indices, kernel_size, stride, padding, output_size)
        return _unpool(*prepare(rank, x, indices, kernel_size, stride, padding, output_size))

    def differentiate(x: Any, indices: Any, *args: Any, **kwargs: Any) -> tuple[Array, Callable[[Any], Array]]:
        if is_tensor(x):
            pulled: tuple[Any, Callable[[Any], Any]] = tensors().pulled(max_unpool, x, indices, *args, **kwargs)
            return pulled
        x, places, sizes = prepare(rank, x, indices, *_arguments(*args, **kwargs))
        if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
            raise TypeError(f"vjp needs floating-point x, got {x.dtype} (x: {x.shape})")
        y = _unpool(x, places, sizes)
        flat = _flat(places, rank).astype(np.intp)  # a copy: the caller may write into theirs

        def gradient(g: Array, grad_x: Array) -> None:
            g = np.take_along_axis(_flat(g, rank), flat, axis=-1)
            grad_x[...] = np.where(_kept(flat, math.prod(sizes)), g, 0).reshape(grad_x.shape)

        return y, pullback_of(x, y, gradient)

    max_unpool.__name__ = max_unpool.__qualname__ = f"max_unpool{rank}d"
    max_unpool.__module__ = "anypool"
    max_unpool.__doc__ = _DOC.format(rank=rank, spatial=", ".join("DHW"[3 - rank :]), example=_EXAMPLES[rank - 1])
    max_unpool.differentiate = differentiate  # type: ignore[attr-defined]
    return max_unpool


def _arguments(
    kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> tuple[Any, Any, Any, Any]:
    return kernel_size, stride, padding, output_size


_DOC = """Put the values of a max pooling back where they came from; everywhere else 0.

    Parameters
    ----------
    x : array_like of shape ``(N, C, {spatial})``, N optional
    indices : int array of the shape of x
        Flat positions in the pooled axes, as ``max_pool{rank}d(…, return_indices=True)`` gives them. Where two are
        equal, the later one in row-major order is kept.
    kernel_size, stride, padding : int or sequence of {rank} ints
        Those of the pooling.
    output_size : sequence of ints, optional
        Size of the pooled axes, or the whole shape, where several sizes would have pooled to this one.

    Returns
    -------
    ndarray of shape ``(N, C, …)`` with ``(n - 1) * stride - 2 * padding + kernel_size`` positions on each pooled axis

    Raises
    ------
    ValueError
        If shapes differ, or an index lies outside the output.
    TypeError
        If the indices are not integers.

    Notes
    -----
    Semantics of ``torch.nn.functional.max_unpool{rank}d``, with a defined result for duplicate indices, whose gradient
    goes to the value that is kept.

    Examples
    --------
    {example}
    """

_EXAMPLES = tuple(
    f""">>> import numpy as np, anypool as ap
    >>> y, indices = ap.max_pool{r}d(np.arange({4 * 2 ** (r - 1)}.0).reshape{shape}, 2, return_indices=True)
    >>> ap.max_unpool{r}d(y, indices, 2).ravel().tolist()
    {result}"""
    for r, shape, result in (
        (1, (1, 1, 4), [0.0, 1.0, 0.0, 3.0]),
        (2, (1, 1, 2, 4), [0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 7.0]),
        (3, (1, 1, 4, 2, 2), [*[0.0] * 7, 7.0, *[0.0] * 7, 15.0]),
    )
)

max_unpool1d, max_unpool2d, max_unpool3d = (_make(r) for r in (1, 2, 3))
