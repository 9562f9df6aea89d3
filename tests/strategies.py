"""Hypothesis strategies over the tables of cases.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

import cases
import oracle

FLOAT_VALUES = (0.0, -0.0, 1.0, -1.0, 2.5, -7.0, 1e-3, 3e4)
SPECIAL_VALUES = (*FLOAT_VALUES, float("inf"), float("-inf"), float("nan"))


@st.composite
def arrays(draw, rank: int, dtypes=cases.DTYPES, *, special: bool = True, longest: int = 20) -> np.ndarray:
    """A channels-first array with `rank` pooled axes: any memory order, few distinct values."""
    lead = (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    sizes = tuple(draw(st.integers(1, longest if a == rank - 1 else 8)) for a in range(rank))
    dtype = cases.dtype_of(draw(st.sampled_from(dtypes)))
    shape = lead + sizes
    order = draw(st.permutations(range(len(shape))))
    steps = tuple(slice(None, None, draw(st.sampled_from((1, -1)))) for _ in shape)
    return values(draw, tuple(shape[a] for a in order), dtype, special).transpose(np.argsort(order))[steps]


def values(draw, shape, dtype, special: bool) -> np.ndarray:
    """Data from a seed rather than element by element: quick to draw, still replayable."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if dtype.kind == "b":
        return generator.random(shape) < 0.5
    if dtype.kind in "iu":
        low, high = cases.limits(dtype)
        if draw(st.booleans()):
            return generator.integers(max(low, -3), 4, shape).astype(dtype)
        return generator.integers(low, high, shape, dtype, endpoint=True)
    pool = SPECIAL_VALUES if special and draw(st.booleans()) else FLOAT_VALUES
    x = generator.choice(pool, shape) if draw(st.booleans()) else generator.standard_normal(shape)
    return x.astype(dtype)


@st.composite
def windows(draw, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Sliding-window arguments that leave no window empty on axes of these sizes."""
    rank = len(sizes)

    def per_axis(low: int, high: int):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, dilation = per_axis(1, 6), per_axis(1, 3)
    stride = draw(st.none() | st.tuples(*[st.integers(1, 5)] * rank))
    padding = draw(
        st.just(0)
        | st.sampled_from(oracle.NAMED_PADDINGS)
        | st.tuples(*(st.integers(0, k // 2) for k in kernel))
        | st.tuples(*(st.tuples(st.integers(0, k), st.integers(0, k)) for k in kernel))
    )
    kwargs = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
    }
    assume(not oracle.has_empty_window(oracle.sliding_axes(sizes, **kwargs)))
    return kwargs


@st.composite
def pooling(draw, dtypes=cases.DTYPES, *, special: bool = True, longest: int = 20, ranks=(1, 2, 3)):
    """(x, axes, kwargs): an array and windows that fit it, for `pool(x, reduction, axes=axes, ...)`."""
    rank = draw(st.sampled_from(ranks))
    x = draw(arrays(rank, dtypes, special=special, longest=longest))
    return x, tuple(range(2, 2 + rank)), draw(windows(x.shape[2:]))
