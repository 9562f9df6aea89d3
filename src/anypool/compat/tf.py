"""TensorFlow's pooling: ``tf.nn.max_pool``, ``avg_pool``, ``pool`` and ``max_pool_with_argmax``, one to three axes.

The source of the semantics is TensorFlow 2's own code (python/ops/nn_ops.py and its kernels). Integers and bool are
taken by all functions, not only where TensorFlow has a kernel for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from anypool import functional
from anypool.arguments import flag_argument, is_sequence, shown
from anypool.compat.arguments import Counting, beside, choice, counted, in_words, integers, pairs
from anypool.operation import Call, as_array

__all__ = ["avg_pool", "max_pool", "max_pool_with_argmax", "pool"]

# The first of each rank is the default.
_FORMATS = {1: ("NWC", "NCW"), 2: ("NHWC", "NCHW"), 3: ("NDHWC", "NCDHW")}
_PADDING = {"SAME": "same", "VALID": "valid"}

_WORDS = {"x": "input", "stride": "strides", "padding": "padding", "dilation": "dilations"}
_public = in_words(__name__, kernel_size="ksize", **_WORDS)


def _axes(input: Any, data_format: Any, where: str) -> tuple[int, ...]:
    rank = input.ndim - 2
    if rank not in _FORMATS:
        raise ValueError(f"input must have 3, 4 or 5 dimensions, got {input.ndim} ({where})")
    layout = choice("data_format", data_format, _FORMATS[rank], where) if data_format is not None else _FORMATS[rank][0]
    return tuple(i for i, letter in enumerate(layout) if letter not in "NC")


def _per_axis(name: str, value: Any, axes: Sequence[int], where: str) -> tuple[int, ...]:
    """Return one number for each pooled axis of an int or of a list of 1, N or N + 2: the batch's and the channels' are
    1 then.
    """
    rank = len(axes)
    if not is_sequence(value):
        value = [value]
    if len(value) not in (1, rank, rank + 2):
        raise ValueError(
            f"{name} must be an int or have 1, {rank} or {rank + 2} elements, got {shown(value)} ({where})"
        )
    given = integers(name, value, len(value), where, at_least=1)
    if len(given) == rank + 2:
        if any(given[a] != 1 for a in range(rank + 2) if a not in axes):
            raise ValueError(f"{name} must be 1 for the batch and the channels, got {shown(value)} ({where})")
        return tuple(given[a] for a in axes)
    return given if len(given) == rank else given * rank


def _pads(padding: Any, axes: Sequence[int], where: str) -> Any:
    if isinstance(padding, str):
        return _PADDING[choice("padding", padding, tuple(_PADDING), where)]
    rank = len(axes)
    given = pairs("padding", padding, rank + 2, where)
    if any(given[a] != (0, 0) for a in range(rank + 2) if a not in axes):
        raise ValueError(f"padding must be (0, 0) for the batch and the channels, got {shown(padding)} ({where})")
    return tuple(given[a] for a in axes)


def _pooled(input: Any, reduction: str, window: tuple[str, Any], strides: Any, padding: Any, data_format: Any,
            dilations: Any = 1, *, return_indices: bool = False) -> Call:  # fmt: skip
    """Build the call; the name of the window is an argument because TensorFlow has two."""
    x = as_array(input)
    where = f"input: {tuple(x.shape)}"
    axes = _axes(x, data_format, where)
    return functional.pool.call(  # type: ignore[attr-defined,no-any-return]
        x, reduction, _per_axis(*window, axes, where), axes=axes, stride=_per_axis("strides", strides, axes, where),
        padding=_pads(padding, axes, where), dilation=_per_axis("dilations", dilations, axes, where),
        count_include_pad=False, return_indices=return_indices,
    )  # fmt: skip


@_public
def max_pool(input: Any, ksize: Any, strides: Any, padding: Any, data_format: str | None = None) -> Call:
    """``tf.nn.max_pool``: the largest value of every window.

    Parameters
    ----------
    input : array_like of shape ``(N, W, C)``, ``(N, H, W, C)`` or ``(N, D, H, W, C)``
    ksize, strides : int, or a list of 1, of one for each spatial axis, or of one for each axis
        Taps of a window, and distance between windows.
    padding : "SAME", "VALID", or a list of a (low, high) pair for each axis, batch and channels included
        "SAME" gives ``ceil(n / stride)`` outputs, odd padding at the end. Pairs may be of any size; TensorFlow limits
        them to ksize.
    data_format : str, optional
        "NWC" (default) or "NCW", "NHWC" or "NCHW", "NDHWC" or "NCDHW".

    Returns
    -------
    ndarray of shape ``(N, out1, …, C)``, or as data_format says

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type, or a window has no input at all.

    Notes
    -----
    Semantics of TensorFlow 2, but NaN propagates everywhere: TensorFlow's kernels drop it or not, by the number of
    channels. Pooling over channels is not there: ``anypool.pool`` takes any ``axes``.

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import tf
    >>> x = np.array([[0, 0, 1, 7], [0, 2, 0, 0], [5, 2, 0, 0], [0, 0, 9, 8]]).reshape(1, 4, 4, 1)
    >>> tf.max_pool(x, 3, 2, "SAME")[0, :, :, 0].tolist()
    [[5, 7], [9, 9]]
    """
    return _pooled(input, "max", ("ksize", ksize), strides, padding, data_format)


@_public
def avg_pool(input: Any, ksize: Any, strides: Any, padding: Any, data_format: str | None = None) -> Call:
    """``tf.nn.avg_pool``: the mean of every window; padding never counts.

    Parameters
    ----------
    input, ksize, strides, padding, data_format
        As in `max_pool`. Pairs of padding, which TensorFlow takes for max only, do not count either.

    Returns
    -------
    ndarray of shape ``(N, out1, …, C)``, or as data_format says

    Raises
    ------
    ValueError, TypeError
        As in `max_pool`.

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import tf
    >>> tf.avg_pool(np.arange(5.0).reshape(1, 5, 1), 2, 2, "SAME").ravel().tolist()
    [0.5, 2.5, 4.0]
    """
    return _pooled(input, "mean", ("ksize", ksize), strides, padding, data_format)


@in_words(__name__, kernel_size="window_shape", **_WORDS)
def pool(input: Any, window_shape: Any, pooling_type: str, strides: Any = None, padding: Any = "VALID",
         data_format: str | None = None, dilations: Any = None) -> Call:  # fmt: skip
    """``tf.nn.pool``: a mean or a maximum, with dilation.

    Parameters
    ----------
    input, padding, data_format
        As in `max_pool`.
    window_shape : list of one int for each spatial axis
        Taps of a window.
    pooling_type : "AVG" or "MAX"
    strides, dilations : list of one int for each spatial axis, optional
        Distance between windows and between the taps of one; default 1 (not window_shape).

    Returns
    -------
    ndarray of shape ``(N, out1, …, C)``, or as data_format says

    Raises
    ------
    ValueError, TypeError
        As in `max_pool`.

    Notes
    -----
    Where TensorFlow refuses, windows are still defined here: strides with dilations, strides beyond the window, "SAME"
    with dilations (`anypool.pool`'s ``"same"``).

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import tf
    >>> tf.pool(np.arange(6.0).reshape(1, 6, 1), [2], "AVG", dilations=[3]).ravel().tolist()
    [1.5, 2.5, 3.5]
    """
    kind = {"AVG": "mean", "MAX": "max"}[choice("pooling_type", pooling_type, ("AVG", "MAX"), "tf.nn.pool")]
    return _pooled(input, kind, ("window_shape", window_shape), 1 if strides is None else strides, padding, data_format,
                   1 if dilations is None else dilations)  # fmt: skip


@counted(kernel_size="ksize", **_WORDS)
def max_pool_with_argmax(input: Any, ksize: Any, strides: Any, padding: Any, data_format: str = "NHWC",
                         include_batch_in_index: bool = False) -> tuple[Call, Counting]:  # fmt: skip
    """``tf.nn.max_pool_with_argmax``: the largest value of every window, and where it is.

    Parameters
    ----------
    input : array_like of shape ``(N, H, W, C)``
    ksize, strides, padding
        As in `max_pool`.
    data_format : "NHWC"
        There is no other.
    include_batch_in_index : bool
        Whether positions count through the batch, ``((b * H + y) * W + x) * C + c``, or through each image,
        ``(y * W + x) * C + c``.

    Returns
    -------
    a pair of arrays of shape ``(N, out1, out2, C)``: the maxima, and their positions as int64

    Raises
    ------
    ValueError, TypeError
        As in `max_pool`.

    Notes
    -----
    Of equal values the first wins, as in TensorFlow. Its documentation calls positions wrong where padding takes part;
    these are always the winner's.

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import tf
    >>> x = np.array([[[1, 8], [3, 2]], [[7, 4], [5, 6]]]).reshape(1, 2, 2, 2)
    >>> y, argmax = tf.max_pool_with_argmax(x, 2, 2, "VALID")
    >>> y.ravel().tolist(), argmax.ravel().tolist()
    ([7, 8], [4, 1])
    """
    x = as_array(input)
    where = f"input: {tuple(x.shape)}"
    if x.ndim != 4:
        raise ValueError(f"input must have 4 dimensions, got {x.ndim} ({where})")
    choice("data_format", data_format, ("NHWC",), where)
    through = flag_argument("include_batch_in_index", include_batch_in_index, where)
    images, channels = x.shape[0], x.shape[3]
    image = math.prod(x.shape[1:]) if through else 0

    def count(indices: Any) -> Any:
        first = np.arange(images).reshape(images, 1, 1, 1) * image + np.arange(channels)
        return indices * channels + beside(indices, first)

    return _pooled(x, "max", ("ksize", ksize), strides, padding, data_format, return_indices=True), count
