"""Flax, and `jax.lax.reduce_window` below it. What is left out is pinned by `test_where_flax_departs`."""

from __future__ import annotations

import os
import warnings
from functools import partial

import numpy as np
import pytest

import anypool as ap
from anypool.compat import flax as compat
from grid import agrees, draw, exact, reals, rounded, ties

os.environ["JAX_PLATFORMS"] = "cpu"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations of its own
    import jax
    from flax import nnx
    from jax import lax

COUNT = 8  # each is compiled, for a second
by_rank = pytest.mark.parametrize("rank", [1, 2, 3])
by_padding = pytest.mark.parametrize("padding", ["VALID", "SAME", "SAME_LOWER", "pairs"])
NAMES = ["max_pool", "min_pool", "avg_pool"]


def theirs(function, x, *args, **kwargs):
    return np.asarray(function(jax.numpy.asarray(x), *args, **kwargs))


def arguments(case, padding):
    return {"strides": case.stride, "padding": case.pads if padding == "pairs" else padding}


def batch_of(i: int, padding: str) -> tuple[int, ...]:
    """Take none, one and two axes in turn. Flax has pairs of padding with at most one: it adds (0, 0) for one only."""
    return ((), (2,), (2, 1))[i % (2 if padding == "pairs" else 3)]


@pytest.mark.parametrize("name", NAMES[:2])
@by_padding
@by_rank
def test_selections(rank, padding, name):
    compared = 0
    for i, case in enumerate(draw(rank, 1, COUNT, dilated=False, ceil=False)):
        batch, dtype = batch_of(i, padding), ("float32", "float16", "int8", "uint8", "int32")[i % 5]
        x, options = ties((*batch, *case.sizes, 3), dtype, i), arguments(case, padding)
        compared += agrees(
            case,
            partial(theirs, getattr(nnx, name), x, case.kernel, **options),
            partial(getattr(compat, name), x, case.kernel, **options),
            first=len(batch),
        )
    assert compared > 1


@pytest.mark.parametrize("include", [True, False])
@by_padding
@by_rank
def test_avg_pool(rank, padding, include):
    compared = 0
    for i, case in enumerate(draw(rank, 2, COUNT, dilated=False, ceil=False)):
        batch = batch_of(i, padding)
        x = reals((*batch, *case.sizes, 3), seed=i)
        options = {**arguments(case, padding), "count_include_pad": include}
        compared += agrees(
            case,
            partial(theirs, nnx.avg_pool, x, case.kernel, **options),
            partial(compat.avg_pool, x, case.kernel, **options),
            partial(rounded, x=x, taps=case.taps),
            first=len(batch),
        )
    assert compared > 1


def test_averages_of_integers():
    for i, case in enumerate(draw(2, 3, 5, dilated=False, ceil=False)):
        x = ties((2, *case.sizes, 3), "int32", i)
        options = {"strides": case.stride, "padding": "SAME"}
        expected = theirs(nnx.avg_pool, x, case.kernel, **options)
        rounded(compat.avg_pool(x, case.kernel, **options), expected, case, x=x, taps=case.taps)


@pytest.mark.parametrize("name", NAMES)
@by_rank
def test_gradients(rank, name):
    """One winner takes the gradient; without ties, whose winner JAX does not promise."""
    for i, case in enumerate(draw(rank, 4, 4, dilated=False, ceil=False)):
        shape = (2, *case.sizes, 3)
        x = np.random.default_rng(i).permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
        options = {"strides": case.stride, "padding": "SAME"}
        y, pull = jax.vjp(lambda v: getattr(nnx, name)(v, case.kernel, **options), jax.numpy.asarray(x))  # noqa: B023
        g = reals(y.shape, seed=i)
        _, pullback = ap.vjp(getattr(compat, name), x, case.kernel, **options)
        rounded(pullback(g), pull(jax.numpy.asarray(g))[0], case, x=g * case.taps, taps=case.taps)


@pytest.mark.parametrize("reduction", ["max", "min", "sum"])
@by_rank
def test_reduce_window(rank, reduction):
    """What Flax has no words for: dilation, through `anypool.pool` itself."""
    identity, merge = {"max": (-np.inf, lax.max), "min": (np.inf, lax.min), "sum": (0.0, lax.add)}[reduction]
    compared = 0
    for i, case in enumerate(draw(rank, 5, COUNT, ceil=False)):
        x = reals(case.sizes, seed=i)
        compared += agrees(
            case,
            partial(
                theirs, lax.reduce_window, x, identity, merge, case.kernel, case.stride, case.pads,
                window_dilation=case.dilation,
            ),
            partial(ap.pool, x, reduction, case.kernel, stride=case.stride, padding=case.pads, dilation=case.dilation),
            partial(rounded, x=x * case.taps, taps=case.taps) if reduction == "sum" else exact,
            first=0,
        )  # fmt: skip
    assert compared > 1


def test_where_flax_departs():
    x = np.array([[1.0], [2.0]], np.float32)
    wide = {"padding": ((2, 2),)}
    assert theirs(nnx.max_pool, x, (2,), **wide).ravel().tolist() == [-np.inf, 1, 2, 2, -np.inf]
    assert theirs(nnx.min_pool, x, (2,), **wide).ravel().tolist() == [np.inf, 1, 1, 2, np.inf]
    assert theirs(nnx.avg_pool, x, (2,), **wide).ravel().tolist() == [0, 0.5, 1.5, 1, 0]
    empty = theirs(nnx.avg_pool, x, (2,), count_include_pad=False, **wide)
    np.testing.assert_array_equal(empty.ravel(), [np.nan, 1, 1.5, 2, np.nan])
    assert theirs(nnx.max_pool, x, (3,)).shape == (0, 1)
    three = np.array([[1.0], [2.0], [0.5]], np.float32)
    assert theirs(nnx.max_pool, three, (2,), padding=((-1, 0),)).ravel().tolist() == [2]
    with pytest.raises(ValueError, match="length"):
        theirs(nnx.max_pool, three[None, None], (2,), padding=((1, 0),))
    # Sums in the input's own dtype: 100 + 100 wraps around in int8; 9 · 10^4 is beyond float16.
    whole = np.full((2, 1), 100, np.int8)
    assert theirs(nnx.avg_pool, whole, (2,)).item() == -28
    assert compat.avg_pool(whole, (2,)).item() == 100
    half = np.full((9, 1), 1e4, np.float16)
    assert theirs(nnx.avg_pool, half, (9,)).item() == np.inf
    assert compat.avg_pool(half, (9,)).item() == 1e4


def test_nan_propagates_in_both():
    x = np.array([np.nan, 1, 2, np.nan, -np.inf, -np.inf], np.float32).reshape(6, 1)
    for name in NAMES:
        exact(getattr(compat, name)(x, (2,)), theirs(getattr(nnx, name), x, (2,)), name)
