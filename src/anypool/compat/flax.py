"""Flax's pooling: ``flax.nnx.max_pool``, ``avg_pool`` and ``min_pool``, the first two also in ``flax.linen``.

Channels are the last axis; the axes before the window's are the batch, any number of them or none. The source of the
semantics is Flax's own code (linen/pooling.py) over ``jax.lax.reduce_window``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anypool.arguments import is_sequence, shown
from anypool.compat.arguments import choice, in_words, integers, pairs
from anypool.functional import pool
from anypool.operation import Call, as_array, is_tensor
from anypool.reductions import is_float

__all__ = ["avg_pool", "max_pool", "min_pool"]

_PADDING = {"VALID": "valid", "SAME": "same", "SAME_LOWER": "same_lower"}

_public = in_words(__name__, x="inputs", kernel_size="window_shape", stride="strides")


def _pooled(inputs: Any, reduction: str, window_shape: Any, strides: Any, padding: Any, **options: Any) -> Call:
    x = as_array(inputs)
    where = f"inputs: {tuple(x.shape)}"
    if x.ndim < 2:
        raise ValueError(f"inputs must have 2 dimensions or more, the last for channels, got {x.ndim} ({where})")
    rank = len(window_shape) if is_sequence(window_shape) else 0
    if not 1 <= rank < x.ndim:
        raise ValueError(f"window_shape must have 1 to {x.ndim - 1} elements, got {shown(window_shape)} ({where})")
    if isinstance(padding, str):
        pads: Any = _PADDING[choice("padding", padding.upper(), tuple(_PADDING), where)]
    else:
        pads = pairs("padding", padding, rank, where)
    return pool.call(  # type: ignore[attr-defined,no-any-return]
        x, reduction, integers("window_shape", window_shape, rank, where, at_least=1),
        stride=1 if strides is None else integers("strides", strides, rank, where, at_least=1),
        padding=pads, data_format="channels_last", **options,
    )  # fmt: skip


@_public
def max_pool(inputs: Any, window_shape: Any, strides: Any = None, padding: Any = "VALID") -> Call:
    """``flax.nnx.max_pool``: the largest value of every window.

    Parameters
    ----------
    inputs : array_like of shape ``(…, D1, D2, …, C)``
        As many ``D`` as window_shape has elements.
    window_shape : sequence of ints
        Taps of a window on each axis.
    strides : sequence of ints, optional
        Distance between windows; default 1 (not window_shape).
    padding : "VALID", "SAME", "SAME_LOWER", or a sequence of (low, high) pairs
        "SAME" gives ``ceil(n / stride)`` outputs, odd padding at the end; "SAME_LOWER" at the beginning.

    Returns
    -------
    ndarray of shape ``(…, out1, out2, …, C)``

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type; for negative padding, which crops in Flax; if a window has
        no input at all, which gives ``-inf`` in Flax (``inf`` in `min_pool`); if there is no window at all, which
        gives an empty array in Flax.

    Notes
    -----
    Semantics of Flax 0.12. NaN propagates in both.

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import flax
    >>> flax.max_pool(np.array([[2.0], [5.0], [1.0], [0.0]]), (2,), padding="SAME").ravel().tolist()
    [5.0, 5.0, 1.0, 0.0]
    """
    return _pooled(inputs, "max", window_shape, strides, padding)


@_public
def min_pool(inputs: Any, window_shape: Any, strides: Any = None, padding: Any = "VALID") -> Call:
    """``flax.nnx.min_pool``: the smallest value of every window.

    Parameters
    ----------
    inputs, window_shape, strides, padding
        As in `max_pool`.

    Returns
    -------
    ndarray of shape ``(…, out1, out2, …, C)``

    Raises
    ------
    ValueError, TypeError
        As in `max_pool`.

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import flax
    >>> flax.min_pool(np.array([[2.0], [5.0], [1.0], [0.0]]), (2,), strides=(2,)).ravel().tolist()
    [2.0, 0.0]
    """
    return _pooled(inputs, "min", window_shape, strides, padding)


@_public
def avg_pool(inputs: Any, window_shape: Any, strides: Any = None, padding: Any = "VALID",
             count_include_pad: bool = True) -> Call:  # fmt: skip
    """``flax.nnx.avg_pool``: the mean of every window; padding counts unless it is told not to, "SAME" too.

    Parameters
    ----------
    inputs, window_shape, strides, padding
        As in `max_pool`.
    count_include_pad : bool
        Whether the divisor counts padding.

    Returns
    -------
    ndarray of shape ``(…, out1, out2, …, C)``

    Raises
    ------
    ValueError, TypeError
        As in `max_pool`. A window with no input gives 0 in Flax, or NaN without count_include_pad.

    Notes
    -----
    Semantics of Flax 0.12. Integers give float32; Flax adds them up in their own dtype, which can wrap around, and
    halves in a half.

    Examples
    --------
    >>> import numpy as np
    >>> from anypool.compat import flax
    >>> x = np.array([[2.0], [4.0], [6.0]])
    >>> flax.avg_pool(x, (2,), padding="SAME").ravel().tolist()
    [3.0, 5.0, 3.0]
    >>> flax.avg_pool(x, (2,), padding="SAME", count_include_pad=False).ravel().tolist()
    [3.0, 5.0, 6.0]
    """
    x: Any = as_array(inputs)
    floating = x.is_floating_point() if is_tensor(x) else is_float(x.dtype)
    return _pooled(x, "mean", window_shape, strides, padding, count_include_pad=count_include_pad,
                   dtype=None if floating else np.float32)  # fmt: skip
