"""JAX, compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.ours import Subject
from benchmarks.peers.prepared import Prepared, windows
from benchmarks.rows import CHANNELS_FIRST, CHANNELS_LAST, Row


@functools.cache
def jax() -> Any:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return jax


def _jax_function(row: Row) -> Callable[[Any], Any] | None:
    sizes = windows(row)
    if sizes is None or row.reduction not in ("max", "avg") or (row.reduction == "avg" and row.ceil):
        return None
    lax, jnp = jax().lax, jax().numpy
    if row.is_global:
        axes = tuple(range(1, 1 + row.rank)) if row.order == CHANNELS_LAST else tuple(range(2, 2 + row.rank))
        return functools.partial({"max": jnp.max, "avg": jnp.mean}[row.reduction], axis=axes, keepdims=True)

    def everywhere(pooled: tuple[Any, ...], other: Any) -> tuple[Any, ...]:
        return (other, *pooled, other) if row.order == CHANNELS_LAST else (other, other, *pooled)

    # ceil: what hangs over the end is padding of a maximum
    over = [
        (m - 1) * s + row.dilation * (k - 1) + 1 - n - 2 * row.padding
        for n, m, k, s in zip(row.spatial, row.out_spatial(), *sizes, strict=True)
    ]
    arguments = {
        "window_dimensions": everywhere(sizes[0], 1),
        "window_strides": everywhere(sizes[1], 1),
        "padding": everywhere(tuple((row.padding, row.padding + max(0, o)) for o in over), (0, 0)),
        "window_dilation": everywhere((row.dilation,) * row.rank, 1),
    }

    def largest(a: Any) -> Any:
        lowest = -np.inf if jnp.issubdtype(a.dtype, jnp.floating) else jnp.iinfo(a.dtype).min
        return lax.reduce_window(a, np.array(lowest, a.dtype), lax.max, **arguments)

    def mean(a: Any) -> Any:
        total = lax.reduce_window(a, np.array(0, a.dtype), lax.add, **arguments)
        return total / np.array(np.prod(sizes[0]), a.dtype)

    return largest if row.reduction == "max" else mean


def jax_jit(made: Subject) -> Prepared | None:
    """JAX, ``lax.reduce_window`` compiled for exactly these shapes."""
    row = made.row
    # What its pooling keeps for the gradient is the input: there is no forward of training that differs.
    if row.order not in (CHANNELS_FIRST, CHANNELS_LAST) or row.mode not in ("forward", "backward"):
        return None
    if made.x.dtype.kind in "iu" and row.reduction == "avg":
        return None
    function = _jax_function(row)
    if function is None:
        return None
    arguments = [jax().device_put(made.x)]
    if row.mode == "backward":
        arguments.append(jax().device_put(made.grad))

    def backward(a: Any, g: Any) -> Any:
        return jax().vjp(function, a)[1](g)[0]

    compiled = jax().jit(backward if row.mode == "backward" else function).lower(*arguments).compile()

    def run() -> Any:
        return compiled(*arguments).block_until_ready()

    return Prepared(run, lambda: (np.asarray(run()),))
