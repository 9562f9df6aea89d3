"""Laws that hold for every array and every window, found by hypothesis or by construction.

Invariances are bit for bit: layout, batch, memory order, chunking. (Threads and instruction sets:
test_determinism.py, because they are chosen once per process.)
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import anypool as ap
import cases
import oracle
import tolerance

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import strategies  # noqa: E402

pytestmark = pytest.mark.usefixtures("backend")

# The backend fixture is set once for all examples of a test, which is what is wanted.
law = hypothesis.settings(
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
reductions = st.sampled_from(cases.REDUCTIONS)
LINEAR = ("sum", "mean")


thorough = hypothesis.settings(law, max_examples=500)


@thorough
@given(strategies.pooling(), reductions)
def test_equals_the_oracle(drawn, reduction):
    x, axes, w = drawn
    hypothesis.assume(not (reduction == "mean" and x.dtype.itemsize == 8 and x.dtype.kind in "iu"))
    hypothesis.assume(not (reduction in ("lp", "logsumexp") and x.dtype.kind in "iu" and x.dtype.itemsize > 4))
    truth = oracle.pool(x, axes, oracle.sliding_axes(x.shape[2:], **w), reduction)
    got = ap.pool(x, reduction, axes=axes, **w)
    ulps = tolerance.ULPS.get(reduction)
    tolerance.check(got, truth, oracle.result_dtype(reduction, x.dtype), ulps, (reduction, x.shape, x.dtype, w))


@thorough
@given(strategies.pooling())
def test_indices_equal_the_oracle(drawn):
    x, axes, w = drawn
    truth = oracle.pool(x, axes, oracle.sliding_axes(x.shape[2:], **w), "max")
    y, places = ap.pool(x, "max", axes=axes, return_indices=True, **w)
    assert np.array_equal(places, truth.indices)
    planes = x.reshape(*x.shape[:2], -1)
    chosen = np.take_along_axis(planes, places.reshape(*x.shape[:2], -1), -1).reshape(y.shape)
    assert tolerance.same_bits(y, chosen), "the value is the element at its index, sign of zero included"


@law
@given(strategies.pooling(cases.FLOATS))
def test_min_is_minus_max_of_minus(drawn):
    x, axes, w = drawn
    assert tolerance.same_bits(ap.pool(x, "min", axes=axes, **w), -ap.pool(-x, "max", axes=axes, **w))


@law
@given(strategies.pooling(cases.BOOL + cases.INTEGERS + ("float32",), ranks=(2, 3)), st.sampled_from(["max", "min"]))
def test_selection_is_separable(drawn, reduction):
    """One axis after the other gives what all at once give."""
    x, axes, w = drawn
    y = x
    for place, axis in enumerate(axes):
        one = {k: (v[place],) if isinstance(v, tuple) else v for k, v in w.items()}
        y = ap.pool(y, reduction, axes=(axis,), **one)
    assert np.array_equal(y, ap.pool(x, reduction, axes=axes, **w), equal_nan=x.dtype.kind == "f")


@law
@given(strategies.pooling(("int8", "uint8", "int16", "uint16", "int32"), ranks=(2, 3)))
def test_sum_is_separable(drawn):
    x, axes, w = drawn
    y = x
    for place, axis in enumerate(axes):
        one = {k: (v[place],) if isinstance(v, tuple) else v for k, v in w.items()}
        y = ap.pool(y, "sum", axes=(axis,), **one)
    assert np.array_equal(y, ap.pool(x, "sum", axes=axes, **w))


@law
@given(strategies.pooling(("float64",), special=False), st.sampled_from(LINEAR), st.booleans(), st.integers(0, 99))
def test_adjoint_identity(drawn, reduction, include, seed):
    """<A x, g> = <x, A^T g>."""
    x, axes, w = drawn
    y, pullback = ap.vjp(ap.pool, x, reduction, axes=axes, count_include_pad=include, **w)
    g = cases.rng(seed).standard_normal(y.shape)
    left, right = math.fsum((y * g).flat), math.fsum((x * pullback(g)).flat)
    mass = math.fsum(np.abs(ap.pool(np.abs(x), reduction, axes=axes, count_include_pad=include, **w) * g).flat)
    assert abs(left - right) <= 1e-13 * mass


@law
@given(strategies.pooling(("float32", "float64")), st.sampled_from(["max", "min"]), st.integers(0, 99))
def test_gradient_mass_of_selection(drawn, reduction, seed):
    """Every upstream gradient arrives at exactly one input, also with ties, NaN and infinities."""
    x, axes, w = drawn
    y, pullback = ap.vjp(ap.pool, x, reduction, axes=axes, **w)
    g = cases.rng(seed).integers(-8, 9, y.shape).astype(x.dtype)
    slope = pullback(g)
    assert np.array_equal(slope.sum(axes), g.sum(axes))
    assert np.count_nonzero(pullback(np.ones_like(g))) <= g.size
    assert pullback(np.ones_like(g)).sum() == g.size


@law
@given(strategies.pooling(("float32",), special=False), st.integers(0, 99))
def test_gradient_mass_of_mean(drawn, seed):
    x, axes, w = drawn
    y, pullback = ap.vjp(ap.pool, x, "mean", axes=axes, count_include_pad=False, **w)
    g = cases.rng(seed).random(y.shape).astype(np.float32)
    assert pullback(g).sum(dtype=np.float64) == pytest.approx(g.sum(dtype=np.float64), rel=1e-6)


@law
@given(strategies.pooling(), reductions)
def test_memory_order_does_not_matter(drawn, reduction):
    x, axes, w = drawn
    y = ap.pool(x, reduction, axes=axes, **w)
    for same in (
        np.ascontiguousarray(x),
        np.asfortranarray(x),
        np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    ):
        assert tolerance.same_bits(ap.pool(same, reduction, axes=axes, **w), y), same.strides


@law
@given(strategies.pooling(), reductions)
def test_layout_does_not_matter(drawn, reduction):
    """channels_last gives the bits of channels_first."""
    x, axes, w = drawn
    y = ap.pool(x, reduction, axes=axes, **w)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    got = ap.pool(last, reduction, data_format="channels_last", **w)
    assert tolerance.same_bits(np.moveaxis(got, -1, 1), y)


@law
@given(strategies.pooling(), reductions)
def test_batch_does_not_matter(drawn, reduction):
    """A plane alone gives the bits it gives among others, values and gradients."""
    x, axes, w = drawn
    inner = tuple(a - 2 for a in axes)
    y = ap.pool(x, reduction, axes=axes, **w)
    for index in np.ndindex(*x.shape[:2]):
        assert tolerance.same_bits(ap.pool(x[index], reduction, axes=inner, **w), y[index])


@law
@given(strategies.pooling(cases.FLOATS, special=False), reductions, st.integers(0, 99))
def test_batch_and_layout_do_not_matter_to_gradients(drawn, reduction, seed):
    x, axes, w = drawn
    y, pullback = ap.vjp(ap.pool, x, reduction, axes=axes, **w)
    g = cases.rng(seed).standard_normal(y.shape).astype(x.dtype)
    whole = pullback(g)
    _, back = ap.vjp(ap.pool, np.moveaxis(x, 1, -1), reduction, data_format="channels_last", **w)
    assert tolerance.same_bits(np.moveaxis(back(np.moveaxis(g, 1, -1)), -1, 1), whole)
    inner = tuple(a - 2 for a in axes)
    for index in np.ndindex(*x.shape[:2]):
        alone = ap.vjp(ap.pool, x[index], reduction, axes=inner, **w)[1](g[index])
        assert tolerance.same_bits(alone, whole[index])


@law
@given(
    strategies.arrays(1, cases.FLOATS, longest=60),
    reductions,
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.data(),
)
def test_a_chunk_equals_the_whole(x, reduction, kernel, stride, dilation, data):
    """Outputs [a, b) from just the inputs they see are bit for bit those of the whole."""
    reach = dilation * (kernel - 1) + 1
    hypothesis.assume(x.shape[2] >= reach)
    w = {"axes": (2,), "stride": stride, "dilation": dilation}
    y = ap.pool(x, reduction, kernel, **w)
    a = data.draw(st.integers(0, y.shape[2] - 1))
    b = data.draw(st.integers(a + 1, y.shape[2]))
    chunk = x[:, :, a * stride : (b - 1) * stride + reach]
    assert tolerance.same_bits(ap.pool(chunk, reduction, kernel, **w), y[:, :, a:b])


@law
@given(strategies.pooling(("float32", "bfloat16") if cases.ml_dtypes else ("float32",)), reductions)
def test_a_window_is_all_that_counts(drawn, reduction):
    """What no window sees changes nothing, and constant shifts of position change nothing."""
    x, axes, w = drawn
    geometry = oracle.sliding_axes(x.shape[2:], **w)
    y = ap.pool(x, reduction, axes=axes, **w)
    hidden = x.copy()
    for a, windows in zip(axes, geometry, strict=True):
        seen = {p for window in windows for p in window.positions}
        for unseen in set(range(x.shape[a])) - seen:
            hidden[(slice(None),) * a + (unseen,)] = np.nan
    assert tolerance.same_bits(ap.pool(hidden, reduction, axes=axes, **w), y)


@law
@given(strategies.pooling(), reductions)
def test_out_is_honoured(drawn, reduction):
    """A poisoned `out=` is filled completely, whatever its strides, and returned."""
    x, axes, w = drawn
    y = ap.pool(x, reduction, axes=axes, **w)
    poison = np.nan if tolerance.is_float(y.dtype) else 1 if y.dtype.kind == "b" else 99
    for out in (
        np.full(y.shape, poison, y.dtype),
        np.full(y.shape[::-1], poison, y.dtype).transpose(),
        np.full((*y.shape, 2), poison, y.dtype)[..., 1],
        np.full(y.shape, poison, y.dtype)[..., ::-1],
    ):
        assert ap.pool(x, reduction, axes=axes, out=out, **w) is out
        assert tolerance.same_bits(out, y)


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_pooling_twice_gives_the_same(reduction):
    x = cases.plain((4, 8, 33, 35), np.dtype(np.float32))
    first = ap.pool(x, reduction, (3, 3), stride=2, padding=1)
    for _ in range(5):
        assert tolerance.same_bits(ap.pool(x, reduction, (3, 3), stride=2, padding=1), first)
