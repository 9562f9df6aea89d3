"""Reductions that need every input of a window at once, and any and all: against loops, NumPy and their own laws."""

from __future__ import annotations

import itertools
import math
import re
import statistics
import tracemalloc

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import anypool as ap
import cases
import oracle
import tolerance
import truths
import window_oracle
from anypool.backends import gathered
from anypool.operation import resolve

RANKS = (1, 2, 3)
by_rank = pytest.mark.parametrize("rank", RANKS)
by_layout = pytest.mark.parametrize("layout", cases.LAYOUTS)
ALL = (*cases.OF_WINDOWS, *cases.WITHOUT_GRADIENT)
GIVEN = {"quantile": {"q": 0.3}, "var": {"correction": 1}}
FLOATS = ("float32", "float16", "bfloat16", "float64", "int16")


def built(array, shape, dtype: str, layout: str) -> np.ndarray:
    return cases.to_layout(array.build(shape, cases.dtype_of(dtype)), layout)


def check_pool(array, shape, dtype, windows, reduction, given, layout) -> bool:
    """Compare one `pool` call; False where the geometry is an error (and was refused)."""
    x, rank = built(array, shape, dtype, layout), len(shape) - 2
    kwargs = windows.kwargs(rank) | given | {"axes": cases.pooled_axes(rank, layout)}
    truth = truths.sliding(array, shape, dtype, windows, reduction, given, layout)
    if truth is None:
        with pytest.raises(ValueError, match=r"kernel_size|padding"):
            ap.pool(x, reduction, **kwargs)
        return False
    what = f"pool({array.name} {shape} {dtype} {layout}, {reduction}, windows {windows.name!r}, {given})"
    wanted = oracle.result_dtype(reduction, x.dtype)
    tolerance.check(ap.pool(x, reduction, **kwargs), truth, wanted, tolerance.ULPS.get(reduction), what)
    return True


def dtypes_of(reduction, array) -> list[str]:
    """Dtypes in which this array and this reduction exist."""
    wanted = ("int16", "uint8", "bool") if reduction == "mode" else FLOATS
    return [d for d in wanted if d in array.dtypes and d in cases.DTYPES]


def tame(reduction, array) -> bool:
    """Whether a bound on rounding errors exists: not where squares of an offset, or of the largest value, are taken."""
    return reduction not in ("std", "var") or array.name not in ("lowest", "extremes 64")


# ---- against the loops -----------------------------------------------------------------------------------------------


@by_layout
@by_rank
@pytest.mark.parametrize("reduction", ALL)
def test_zoo(reduction, rank, layout):
    """Every array of the zoo, with windows, shapes and dtypes in turn."""
    done = 0
    for turn, array in enumerate(cases.ZOO):
        dtypes = dtypes_of(reduction, array)
        if not dtypes or not tame(reduction, array):
            continue
        for more, (shape, windows) in enumerate(itertools.product(cases.SHAPES[rank], cases.CORE_WINDOWS)):
            if (turn + more) % 5:
                continue
            dtype = dtypes[(turn + more // 5) % len(dtypes)]
            done += check_pool(array, shape, dtype, windows, reduction, truths.options(reduction, more), layout)
    assert done > 60


@by_layout
@by_rank
@pytest.mark.parametrize("reduction", ALL)
def test_windows(reduction, rank, layout):
    """Every set of window arguments, on ordinary and on tied data."""
    done = 0
    for turn, (windows, shape) in enumerate(itertools.product(cases.WINDOWS, cases.SHAPES[rank])):
        array = truths.ARRAYS["ties" if turn % 2 else "plain"]
        dtype = "int32" if reduction == "mode" else "float32"
        done += check_pool(array, shape, dtype, windows, reduction, truths.options(reduction, turn), layout)
    assert done > 60


@by_layout
@by_rank
@pytest.mark.parametrize("reduction", ALL)
def test_dtypes(reduction, rank, layout):
    for dtype, name in itertools.product(cases.DTYPES, ("plain", "ties", "extremes", "extremes 64", "lowest")):
        array = truths.ARRAYS[name]
        if dtype not in array.dtypes or not tame(reduction, array):
            continue
        for turn, windows in enumerate(cases.CORE_WINDOWS[:3]):
            shape = cases.SHAPES[rank][turn % 4]
            if reduction == "mode" and dtype in cases.FLOATS:
                with pytest.raises(TypeError, match=f"x must be bool or integer for 'mode', got dtype {dtype}"):
                    ap.pool(built(array, shape, dtype, layout), "mode", 1)
                continue
            check_pool(array, shape, dtype, windows, reduction, truths.options(reduction, turn), layout)


@pytest.mark.parametrize("reduction", ALL)
def test_any_axes_of_any_rank(reduction):
    """One axis, distant axes, the batch axis, four axes at once, axes in another order."""
    whole = cases.ties((3, 4, 5, 6, 4), np.dtype(np.int32 if reduction == "mode" else np.float32))
    given = GIVEN.get(reduction, {})
    for x, axes in (
        (whole[0, 0, 0, :, 0], (0,)),
        (whole[0, 0], (-1,)),
        (whole, (0, 2)),
        (whole, (0, 1, 2, 4)),
        (whole[0, 0], (2, 0)),
    ):
        for w in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": ((1, 0),) * len(axes)}):
            truth = oracle.pool(x, axes, oracle.sliding_axes([x.shape[a] for a in axes], **w), reduction, **given)
            got = ap.pool(x, reduction, axes=axes, **w, **given)
            wanted = oracle.result_dtype(reduction, x.dtype)
            tolerance.check(got, truth, wanted, tolerance.ULPS.get(reduction), f"{reduction} {x.shape} {axes} {w}")


@by_layout
@by_rank
@pytest.mark.parametrize("reduction", cases.OF_WINDOWS)
def test_gradients(reduction, rank, layout):
    """`vjp` against scattering every window's part."""
    names = ["plain", "ties", "transposed", "negative", "broadcast row"]
    names += ["nan", "moving nan", "all nan"] if reduction in ("median", "quantile") else []
    done = 0
    for turn, (name, windows, shape) in enumerate(itertools.product(names, cases.WINDOWS, cases.SHAPES[rank])):
        if turn % 3:
            continue
        dtype = cases.FLOATS[(turn // 3) % len(cases.FLOATS)]
        given = truths.options(reduction, turn)
        w, array, axes = windows.kwargs(rank), truths.ARRAYS[name], cases.pooled_axes(rank, layout)
        if lonely(shape, w, given):
            continue  # test_too_few_inputs
        found = truths.gradient(array, shape, dtype, windows, reduction, given, layout, turn)
        if found is None:
            continue
        grad, truth = found
        moved = built(array, shape, dtype, layout)
        y, pullback = ap.vjp(ap.pool, moved, reduction, axes=axes, **w, **given)
        assert tolerance.same_bits(y, ap.pool(moved, reduction, axes=axes, **w, **given))
        what = f"vjp({reduction}, {name} {shape} {dtype} {layout}, windows {windows.name!r}, {given})"
        tolerance.check(pullback(grad), truth, moved.dtype, tolerance.GRADIENT_ULPS[reduction], what)
        done += 1
    assert done > 30


def lonely(shape, w, given) -> bool:
    """Whether a window has too few inputs for the correction."""
    windows = oracle.sliding_axes(shape[2:], **w)
    least = math.prod(min((len(a.positions) for a in axis), default=0) for axis in windows)
    return 0 < least <= given.get("correction", -1)


@by_rank
@by_layout
@pytest.mark.parametrize("reduction", ALL)
def test_empty_batch(reduction, rank, layout):
    for shape in cases.EMPTY_SHAPES[rank]:
        x = cases.to_layout(np.zeros(shape, np.int8 if reduction == "mode" else np.float32), layout)
        given = {"stride": 2, "axes": cases.pooled_axes(rank, layout), **GIVEN.get(reduction, {})}
        y = ap.pool(x, reduction, 3, **given)
        assert y.shape == cases.to_layout(np.zeros(shape[:2] + (4,) * rank), layout).shape
        assert y.dtype == oracle.result_dtype(reduction, x.dtype)
        if reduction in cases.OF_WINDOWS:
            y, pullback = ap.vjp(ap.pool, x, reduction, 3, **given)
            assert pullback(y).shape == x.shape


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("reduction", ["any", "all"])
def test_any_and_all_on_both_backends(reduction, dtype, backend):
    """NaN is not zero. Kernels are given `x != 0`."""
    x = truths.ARRAYS["ties"].build((2, 3, 9, 8), cases.dtype_of(dtype))
    if dtype in cases.FLOATS:
        x[0] = np.nan
    call = {"axes": (2, 3), "kernel_size": 2, "stride": 1, "padding": 1}
    assert ap.explain(ap.pool, x, reduction, **call).backend == backend
    wanted = oracle.pool(x, (2, 3), oracle.sliding_axes((9, 8), 2, 1, 1), reduction).values
    got = ap.pool(x, reduction, **call)
    assert got.dtype == bool
    assert np.array_equal(got, wanted)
    assert np.array_equal(ap.pool(x, reduction, **call, dtype=np.float32), wanted.astype(np.float32))
    assert np.array_equal(ap.pool(x, reduction, **call), ap.pool(x != 0, reduction, **call))


# ---- against NumPy ---------------------------------------------------------------------------------------------------

PLAIN = cases.plain((2, 3, 11, 13), np.dtype(np.float64))
TAPS = sliding_window_view(PLAIN, (3, 4), axis=(2, 3)).reshape(2, 3, 9, 10, 12)
CALL = {"kernel_size": (3, 4), "stride": 1}


def test_like_numpy():
    assert np.array_equal(ap.pool(PLAIN, "median", **CALL), np.median(TAPS, -1))
    odd = ap.pool(PLAIN, "median", (3, 3), stride=1)
    assert np.array_equal(odd, np.median(sliding_window_view(PLAIN, (3, 3), axis=(2, 3)), (-2, -1)))
    for q in (0, 0.1, 1 / 3, 0.5, 0.77, 1):
        np.testing.assert_allclose(ap.pool(PLAIN, "quantile", q=q, **CALL), np.quantile(TAPS, q, axis=-1), 0, 1e-15)
    for correction in (0, 1, 2.5):
        got = ap.pool(PLAIN, "var", correction=correction, **CALL)
        np.testing.assert_allclose(got, TAPS.var(-1, ddof=correction), rtol=1e-14)
        got = ap.pool(PLAIN, "std", correction=correction, **CALL)
        np.testing.assert_allclose(got, TAPS.std(-1, ddof=correction), rtol=1e-14)
    whole = (PLAIN * 9).astype(int)
    taps = sliding_window_view(whole, (3, 4), axis=(2, 3)).reshape(-1, 12)
    assert np.array_equal(ap.pool(whole, "median", **CALL).reshape(-1), [statistics.median(t) for t in taps.tolist()])
    assert np.array_equal(
        ap.pool(whole, "mode", **CALL).reshape(-1), [min(statistics.multimode(t)) for t in taps.tolist()]
    )


def test_wide_integers_are_ordered_exactly():
    """Not as floats, in which these are equal."""
    x = np.array([2**63 - 1, 2**63 - 3, 2**63 - 2], np.int64)
    assert ap.pool(x, "mode", 3, ignore=2**63 - 3).item() == 2**63 - 2
    assert ap.pool(np.array([2**64 - 1, 2**64 - 1, 5], np.uint64), "mode", 3).item() == 2**64 - 1
    assert ap.pool(x - 2**62, "median", 3).item() == float(2**62 - 2)


def test_moments_of_any_size():
    """Squares neither overflow nor vanish, and an offset costs no bits."""
    base = np.array([1.0, 2.0, 4.0, 9.0])
    for size in (1e300, 1e-300, 1e154, 1e-160):
        assert ap.pool(base * size, "std", 4)[0] == pytest.approx(base.std() * size, rel=1e-14)
    assert ap.pool(np.array([1.7e308, -1.7e308]), "std", 2)[0] == 1.7e308
    assert ap.pool(base * 1e300, "var", 4)[0] == math.inf
    assert ap.pool(base * 1e-150, "var", 4)[0] == pytest.approx(base.var() * 1e-300, rel=1e-14)
    assert ap.pool(base + 2.0**40, "std", 4)[0] == ap.pool(base, "std", 4)[0]
    assert ap.pool(np.full(3, 0.1), "std", 3)[0] == 0
    half = np.full(300, 300, np.float16)
    half[0] = 0
    assert ap.pool(half, "std", 300)[0] == np.float16(half.astype(float).std())


def test_too_few_inputs():
    """Nothing can be divided by n - correction <= 0."""
    x = np.array([1.0, 2.0, 3.0])
    got = ap.pool(x, "var", 2, stride=2, padding=((0, 1),), correction=1)
    np.testing.assert_array_equal(got, [0.5, math.nan])
    _, pullback = ap.vjp(ap.pool, x, "std", 2, stride=2, padding=((0, 1),), correction=1)
    np.testing.assert_allclose(pullback(np.ones(2)), [-(0.5**0.5), 0.5**0.5, math.nan])


def test_infinities():
    inf, nan = math.inf, math.nan
    x = np.array([-inf, 1, inf, 2, inf, inf, -inf, -inf, 3])
    for reduction, wanted in (
        ("median", [1, inf, -inf]),
        ("std", [nan, nan, nan]),
        ("var", [nan, nan, nan]),
        ("softmax", [inf, inf, 3]),
    ):
        np.testing.assert_array_equal(ap.pool(x, reduction, 3), wanted, reduction)
    np.testing.assert_array_equal(ap.pool(x[:2], "quantile", 2, q=0.25), [-inf])
    np.testing.assert_array_equal(ap.pool(x[[0, 2]], "median", 2), [nan])
    np.testing.assert_array_equal(ap.pool(x, "softmax", 3, r=-1), [-inf, 2, -inf])
    np.testing.assert_array_equal(ap.pool(-x[[2, 4]], "softmax", 2), [-inf])
    _, pullback = ap.vjp(ap.pool, x, "softmax", 3)
    np.testing.assert_array_equal(pullback(np.ones(3)), [0, 0, 1, 0, 0.5, 0.5, 0, 0, 1])
    big = np.array([1.7e308, -1.7e308, 1.7e308, 1.7e308])
    np.testing.assert_array_equal(ap.pool(big, "softmax", 2), [1.7e308, 1.7e308])
    np.testing.assert_array_equal(ap.pool(big, "median", 2), [0, 1.7e308])


def test_gradients_of_ties():
    """Equal inputs are in the order of the window: where the median has a derivative, this is it."""
    x = np.array([2.0, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0])
    _, pullback = ap.vjp(ap.pool, x, "median", 4)
    assert pullback(np.array([1.0, 1.0])).tolist() == [0.5, 0, 0.5, 0, 0, 0.5, 0.5, 0]
    _, pullback = ap.vjp(ap.pool, np.array([math.inf, 1.0]), "quantile", 2, stride=1, padding=1, q=1)
    assert pullback(np.array([1.0, 10.0, 100.0])).tolist() == [11, 100]  # padding has no part in it
    _, pullback = ap.vjp(ap.pool, np.array([math.nan, 1.0, math.nan, 2.0]), "median", 4)
    assert pullback(np.ones(1)).tolist() == [0, 0, 1, 0]


# ---- laws, bit for bit -----------------------------------------------------------------------------------------------


def call(x, reduction, **kwargs):
    """(result, gradient or None)."""
    given = GIVEN.get(reduction, {})
    if reduction in cases.WITHOUT_GRADIENT:
        return ap.pool(x, reduction, **kwargs, **given), None
    y, pullback = ap.vjp(ap.pool, x, reduction, **kwargs, **given)
    return y, pullback(np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype))


def same(a, b) -> bool:
    return all(p is q is None or tolerance.same_bits(p, q) for p, q in zip(a, b, strict=True))


ARGUMENTS = (
    {"kernel_size": 3, "stride": 2, "padding": 1, "axes": (2, 3)},
    {"kernel_size": (3, 7), "stride": 1, "padding": ((1, 0), (4, 2)), "axes": (2, 3)},
    {"kernel_size": 2, "stride": 3, "axes": (0, 2, 3)},
    {"kernel_size": 2, "dilation": 3, "stride": 1, "axes": (3, 2)},
    {"kernel_size": (2, 1, 5), "stride": 1, "axes": (1, 0, 3)},
    {"kernel_size": (9, 8), "stride": (1, 30), "padding": ((8, 8), (0, 0)), "axes": (2, 3)},
)


def data(reduction, shape=(2, 3, 9, 8)):
    x = cases.plain(shape, np.dtype(np.float32))
    return (2 * x).astype(np.int8) if reduction == "mode" else x


@pytest.mark.parametrize("reduction", ALL)
def test_pieces_do_not_matter(reduction, monkeypatch):
    """Wherever the result is cut, forward and backward."""
    x = data(reduction)
    for kwargs in ARGUMENTS:
        monkeypatch.setattr(gathered, "PIECE", 1 << 19)
        whole = call(x, reduction, **kwargs)
        for piece in (1, 50, 300):
            monkeypatch.setattr(gathered, "PIECE", piece)
            assert same(call(x, reduction, **kwargs), whole), (kwargs, piece)


@pytest.mark.parametrize("piece", [1, 3, 1 << 19])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 5), (2, 7), (3, 3)])
def test_gradients_of_windows_with_gaps_between_them(kernel, stride, piece, monkeypatch):
    """What no window sees has the gradient zero, also where the result is cut."""
    monkeypatch.setattr(gathered, "PIECE", piece)
    x = cases.rng(1).standard_normal((2, 61))
    y, pullback = ap.vjp(ap.pool, x, "median", kernel, axes=1, stride=stride)
    g = cases.rng(2).standard_normal(y.shape)
    wanted = np.zeros_like(x)
    for o in range(y.shape[1]):
        at = o * stride + np.argsort(x[:, o * stride : o * stride + kernel], axis=1)
        for place in {(kernel - 1) // 2, kernel // 2}:
            share = g[:, o] / (1 if kernel % 2 else 2)
            wanted[np.arange(2), at[:, place]] += share
    np.testing.assert_allclose(pullback(g), wanted, rtol=1e-15)


@pytest.mark.parametrize(
    ("n", "kernel", "stride", "padding"), [(1, 2, 2, 4), (1, 3, 1, 3), (2, 2, 3, 5), (3, 1, 4, 1), (0, 2, 2, 2)]
)
@pytest.mark.parametrize("reduction", ["median", "std", "softmax"])
@pytest.mark.parametrize("piece", [1, 1 << 19])
def test_windows_in_the_padding(reduction, n, kernel, stride, padding, piece, monkeypatch):
    """Those without an input are worth what was asked for and give no gradient; the others are those of the data."""
    monkeypatch.setattr(gathered, "PIECE", piece)
    x = cases.rng(3).standard_normal((2, n))
    kwargs = {"axes": 1, "stride": stride, "padding": padding, "empty": -7.0}
    y, pullback = ap.vjp(ap.pool, x, reduction, kernel, **kwargs)
    g = cases.rng(4).standard_normal(y.shape)
    grad = np.zeros_like(x)
    for o in range(y.shape[1]):
        first = o * stride - padding
        seen = slice(max(0, first), min(n, max(0, first + kernel)))
        if x[:, seen].shape[1] == 0:
            assert (y[:, o] == -7).all()
            continue
        alone, pull = ap.vjp(ap.pool, x[:, seen], reduction, x[:, seen].shape[1], axes=1)
        np.testing.assert_allclose(y[:, o], alone[:, 0], rtol=1e-14)
        grad[:, seen] += pull(g[:, o : o + 1])
    assert np.array_equal(ap.pool(x, reduction, kernel, **kwargs), y)
    np.testing.assert_allclose(pullback(g), grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("reduction", ALL)
def test_memory_order_batch_and_layout_do_not_matter(reduction):
    x = data(reduction)
    for kwargs in ARGUMENTS:
        whole = call(x, reduction, **kwargs)
        other = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        for lying in (np.asfortranarray(x), other, x[::-1].copy()[::-1], x.astype(x.dtype.newbyteorder(">"))):
            assert same(call(lying, reduction, **kwargs), whole), (kwargs, lying.strides)
    given = {"kernel_size": 3, "stride": 1, "padding": "same", **GIVEN.get(reduction, {})}
    whole = ap.pool(x, reduction, axes=(2, 3), **given)
    last = ap.pool(np.moveaxis(x, 1, -1), reduction, **(given | {"kernel_size": (3, 3)}), data_format="channels_last")
    assert tolerance.same_bits(np.moveaxis(last, -1, 1), whole)
    for n, c in np.ndindex(2, 3):
        assert tolerance.same_bits(ap.pool(x[n, c], reduction, **given), whole[n, c])
    chunk = ap.pool(x[..., 2:8, 3:8], reduction, **(given | {"padding": 0}), axes=(2, 3))
    assert tolerance.same_bits(chunk, whole[..., 3:7, 4:7])


@pytest.mark.parametrize("reduction", ALL)
def test_out_and_lists(reduction):
    x = data(reduction)
    wanted = ap.pool(x, reduction, 3, axes=(2, 3), **GIVEN.get(reduction, {}))
    assert np.array_equal(
        ap.pool(x.tolist(), reduction, 3, axes=(2, 3), **GIVEN.get(reduction, {})).shape, wanted.shape
    )
    for out in (np.zeros_like(wanted), np.zeros((*wanted.shape, 2), wanted.dtype)[..., 1]):
        assert ap.pool(x, reduction, 3, axes=(2, 3), out=out, **GIVEN.get(reduction, {})) is out
        assert tolerance.same_bits(np.ascontiguousarray(out), wanted)
    with pytest.raises(ValueError, match="out must"):
        ap.pool(x, reduction, 3, axes=(2, 3), out=np.zeros(3, wanted.dtype), **GIVEN.get(reduction, {}))
    if reduction in cases.OF_WINDOWS:
        double = ap.pool(x, reduction, 3, axes=(2, 3), dtype=np.float64, **GIVEN.get(reduction, {}))
        assert np.array_equal(double.astype(np.float32), wanted)


@pytest.mark.parametrize("reduction", [*cases.OF_WINDOWS, "mode", "stochastic"])
def test_memory_is_bounded(reduction):
    """A 31 x 31 window of every pixel has a thousand times the inputs; a wide window has 2^19 of its own."""
    x = cases.plain((48, 96), np.dtype(np.float32))
    x = (x * 3).astype(np.int16) if reduction == "mode" else np.abs(x)
    long = np.resize(x.reshape(-1), 1 << 20)
    given = {"generator": np.random.default_rng(0)} if reduction == "stochastic" else GIVEN.get(reduction, {})
    for array, kwargs, bound in (
        (x, {"kernel_size": 31, "stride": 1, "padding": 15}, 32 << 20),
        (long, {"kernel_size": 1 << 19}, 32 << 20),
    ):
        tracemalloc.start()
        y = ap.pool(array, reduction, **kwargs, **given)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < bound + 2 * y.nbytes, f"{peak / 2**20:.0f} MB"
    if reduction in cases.OF_WINDOWS:
        y, pullback = ap.vjp(ap.pool, x, reduction, 31, stride=1, padding=15, **given)
        tracemalloc.start()
        pullback(y)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (32 << 20) + 2 * x.nbytes, f"{peak / 2**20:.0f} MB"


# ---- stochastic ------------------------------------------------------------------------------------------------------


def stochastic(x, *args, seed=0, **kwargs):
    return ap.pool(x, "stochastic", *args, generator=np.random.default_rng(seed), **kwargs)


@by_layout
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_draws(dtype, layout):
    """One uniform number for each element of the result, in row-major order, against exact shares."""
    for name, shape in itertools.product(("ties", "plain", "constant"), ((2, 3, 9, 8), (1, 2, 13, 1))):
        x = (np.abs(built(truths.ARRAYS[name], shape, dtype, layout).astype(float)) / 2).astype(cases.dtype_of(dtype))
        axes = cases.pooled_axes(2, layout)
        for windows in cases.CORE_WINDOWS:
            w = windows.kwargs(2)
            geometry = oracle.sliding_axes(shape[2:], **w)
            if oracle.has_empty_window(geometry):
                continue
            y, places = stochastic(x, axes=axes, return_indices=True, **w)
            u = oracle.Planes(np.random.default_rng(0).random(y.shape), axes)
            planes, ys, at = oracle.Planes(x, axes), oracle.Planes(y, axes), oracle.Planes(places, axes)
            for outer in np.ndindex(*planes.outer):
                flat = planes.flat(outer)
                rows = oracle.flat_windows(geometry, planes.inner)
                for (_, seen), draw, value, place in zip(
                    rows, u.flat(outer), ys.flat(outer), at.flat(outer), strict=True
                ):
                    assert place == seen[window_oracle.drawn([float(flat[i]) for i in seen], draw)]
                    assert value == flat[place]
            assert y.dtype == x.dtype


def test_draws_do_not_depend_on_pieces(monkeypatch):
    x = np.abs(cases.plain((3, 4, 9, 8), np.dtype(np.float32)))
    whole = stochastic(x, 3, stride=2, padding=1, axes=(2, 3), return_indices=True)
    for lying, piece in ((x, 1), (x, 100), (np.asfortranarray(x), 50)):
        monkeypatch.setattr(gathered, "PIECE", piece)
        got = stochastic(lying, 3, stride=2, padding=1, axes=(2, 3), return_indices=True)
        assert all(map(np.array_equal, got, whole))
    assert not np.array_equal(stochastic(x, 3, stride=2, padding=1, axes=(2, 3), seed=1), whole[0])


def test_draws_have_the_right_frequencies():
    x = np.broadcast_to(np.array([1.0, 0.0, 4.0, 5.0]), (20_000, 4))
    y = stochastic(x, (4,))
    shares = [np.mean(y == v) for v in (1, 0, 4, 5)]
    np.testing.assert_allclose(shares, [0.1, 0, 0.4, 0.5], atol=4 * math.sqrt(0.25 / 20_000))
    two_sums = ap.pool(x * x, "sum", (4,)) / ap.pool(x, "sum", (4,))
    assert y.mean() == pytest.approx(two_sums[0, 0], abs=0.05)


def test_draws_of_special_windows():
    x = np.array([0.0, 0.0, 1.0, math.inf, math.nan, math.nan, 1.7e308, 1.7e308, 5e-324, 0.0, -0.0, 0.0])
    y, places = stochastic(x, 2, return_indices=True)
    np.testing.assert_array_equal(y, [0, math.inf, math.nan, 1.7e308, 5e-324, 0])
    assert places.tolist() in ([0, 3, 5, 6, 8, 10], [0, 3, 5, 7, 8, 10])
    y, places = stochastic(np.zeros(3), 2, stride=2, padding=((1, 0),), return_indices=True)
    assert places.tolist() == [0, 1]  # the first input, not the padding before it
    for bad, text in ((-1.5, "-1.5"), (-math.inf, "-inf")):
        with pytest.raises(ValueError, match=re.escape(f"x must be >= 0 for stochastic pooling, got {text}")):
            stochastic(np.array([1.0, bad]), 2)
    with pytest.raises(TypeError, match=r"generator must be a numpy\.random\.Generator for 'stochastic', got None"):
        ap.pool(np.ones(4), "stochastic", 2)
    with pytest.raises(TypeError, match=r"generator must be a numpy\.random\.Generator for 'stochastic', got 3"):
        ap.pool(np.ones(4), "stochastic", 2, generator=3)


def test_the_chosen_input_takes_the_gradient():
    x = np.abs(cases.plain((2, 3, 9, 8), np.dtype(np.float32)))
    kwargs = {"kernel_size": 3, "stride": 2, "padding": 1, "axes": (2, 3)}
    y, pullback = ap.vjp(ap.pool, x, "stochastic", generator=np.random.default_rng(4), **kwargs)
    (z, places), same_pullback = ap.vjp(
        ap.pool, x, "stochastic", generator=np.random.default_rng(4), return_indices=True, **kwargs
    )
    assert np.array_equal(y, z)
    g = cases.rng(1).integers(-9, 9, y.shape).astype(np.float32)
    wanted = np.zeros((2, 3, 72))
    for at in np.ndindex(*y.shape):
        wanted[(*at[:2], places[at])] += g[at]
    for back in (pullback, same_pullback):
        assert np.array_equal(back(g), wanted.reshape(x.shape))


# ---- what callers may leave out --------------------------------------------------------------------------------------


def gather(x, reduction, *, mask=None, omit_nan=False, kernel_size=(3, 3), **given):
    """(result, counts, gradient of ones) by the module that gathers, with inputs left out."""
    kernel = ap.pool.call(x, reduction, kernel_size, stride=1, padding=1, **given)
    problem = resolve(x, kernel.what)
    y, counts = np.full(problem.shape, np.nan), np.full(problem.shape, -1)
    source = gathered.Source(x, mask, omit_nan)
    gathered.run(problem.job, source, y, counts=counts)
    slope = np.full(x.shape, np.nan)
    gathered.pull(problem.job, np.ones_like(y), source, slope)
    return y, counts, slope


@pytest.mark.parametrize("how", ["mask", "nan", "both"])
@pytest.mark.parametrize("reduction", cases.OF_WINDOWS)
def test_inputs_left_out(reduction, how):
    """They count for nothing, whatever stands there; a window without inputs is NaN, and its gradient nobody's."""
    given = GIVEN.get(reduction, {}) if reduction != "var" else {}
    x = cases.plain((2, 7, 8), np.dtype(np.float64))
    out = cases.rng(3).random(x.shape) < 0.5
    out[0, :4, :4] = True
    x[out] = math.nan if how != "mask" else 1e300
    mask = None if how == "nan" else ~out if how == "mask" else ~out | (cases.rng(4).random(x.shape) < 0.5)
    y, counts, slope = gather(x, reduction, mask=mask, omit_nan=how != "mask", **given)
    windows = oracle.flat_windows(oracle.sliding_axes((7, 8), 3, 1, 1), (7, 8))
    option = oracle.Options(q=given.get("q"))
    wanted = np.zeros_like(x)
    for n in range(2):
        flat, left = x[n].reshape(-1), out[n].reshape(-1)
        for o, (_, seen) in enumerate(windows):
            kept = [i for i in seen if not left[i]]
            values = [float(flat[i]) for i in kept]
            assert counts[n].flat[o] == len(kept)
            if not kept:
                assert math.isnan(y[n].flat[o])
                continue
            assert y[n].flat[o] == pytest.approx(window_oracle.reduced(values, reduction, option)[0], rel=1e-13)
            for i, d in zip(kept, window_oracle.gradient(values, reduction, option), strict=True):
                wanted[n].flat[i] += d
    assert (counts == 0).any()
    np.testing.assert_allclose(slope, wanted, rtol=1e-12, atol=1e-13)


def test_ignored_labels():
    x = np.array([[255, 255, 3, 1], [255, 1, 1, 3], [7, 7, 255, 255]], np.uint8)
    assert ap.pool(x, "mode", (1, 4)).tolist() == [[255], [1], [7]]
    assert ap.pool(x, "mode", (1, 4), ignore=255).tolist() == [[1], [1], [7]]
    assert ap.pool(x, "mode", (1, 4), ignore=[1, 255, -4, 1000]).tolist() == [[3], [3], [7]]
    assert ap.pool(x == 255, "mode", (1, 4), ignore=1).tolist() == [[False], [False], [False]]
    with pytest.raises(
        ValueError,
        match=re.escape("ignore must leave every window some input, or empty= give a value: window (2, 0) has none"),
    ):
        ap.pool(x, "mode", (1, 4), ignore=(7, 255))
    for bad in (1.5, True, "7", [1, 2.0]):
        with pytest.raises(TypeError, match=r"ignore\[\d\] must be an int"):
            ap.pool(x, "mode", 2, ignore=bad)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_explain_and_chosen_backends():
    x = np.zeros((8, 8), np.float32)
    found = ap.explain(ap.pool, x, "median", 3)
    assert (found.backend, found.kernel) == ("reference", "gathered windows")
    assert found.notes == ("native: a reduction that needs every input of a window at once",)
    assert "quantile(x, 1/2)" in str(found)
    with ap.backends.use("native"):
        with pytest.raises(NotImplementedError, match="every input of a window at once"):
            ap.pool(x, "median", 3)
        with pytest.raises(NotImplementedError, match="every input of a window at once"):
            ap.vjp(ap.pool, x, "std", 3)
    assert ap.explain(ap.pool, x > 0, "any", 3).backend == "native"


@pytest.mark.parametrize(
    ("given", "exception", "text"),
    [
        ({"reduction": "quantile"}, TypeError, "q must be a number, got None of type NoneType (x: (4, 4))"),
        ({"reduction": "quantile", "q": 1.5}, ValueError, "q must be between 0 and 1, got 1.5 (x: (4, 4))"),
        ({"reduction": "quantile", "q": math.nan}, ValueError, "q must be between 0 and 1, got nan (x: (4, 4))"),
        ({"reduction": "std", "correction": -1}, ValueError, "correction must be finite and >= 0, got -1 (x: (4, 4))"),
        ({"reduction": "var", "correction": "1"}, TypeError, "correction must be a number, got '1' of type str"),
        ({"reduction": "softmax", "r": 0}, ValueError, "r must be finite and not 0, got 0 (x: (4, 4))"),
        ({"reduction": "median", "return_indices": True}, ValueError, "return_indices needs max, min or stochastic"),
        ({"reduction": "any", "return_indices": True}, ValueError, "return_indices needs max, min or stochastic"),
        ({"reduction": "median", "divisor_override": 2}, ValueError, "divisor_override needs a mean"),
        ({"reduction": "median", "dtype": np.int64}, TypeError, "dtype must be a float or hold every float64 value"),
        (
            {"reduction": "medain"},
            ValueError,
            "lp, logsumexp, any, all, median, quantile, mode, std, var, softmax, sto",
        ),
    ],
)
def test_bad_argument(given, exception, text):
    with pytest.raises(exception, match=re.escape(text)):
        ap.pool(np.ones((4, 4)), kernel_size=2, **given)


def test_what_has_no_gradient():
    x = np.ones((4, 4))
    for reduction, dtype in (("any", np.float32), ("all", None)):
        with pytest.raises(TypeError, match=f"vjp needs a reduction with a gradient, got '{reduction}'"):
            ap.vjp(ap.pool, x, reduction, 2, dtype=dtype)
    with pytest.raises(TypeError, match="vjp needs a reduction with a gradient, got 'mode'"):
        ap.vjp(ap.pool, x.astype(int), "mode", 2)
    with pytest.raises(TypeError, match="vjp needs floating-point x and result, got int64"):
        ap.vjp(ap.pool, x.astype(int), "median", 2)
    with pytest.raises(ValueError, match="out must not overlap x"):
        ap.vjp(ap.pool, x, "median", 2)[1](np.ones((2, 2)), out=x)


@pytest.mark.parametrize("reduction", ["median", "std", "softmax", "mode", "any", "all", "stochastic"])
def test_masks(reduction):
    """What is masked may be anything: the result is that of each window's other inputs, and their gradient."""
    rng = np.random.default_rng(3)
    integers = reduction in ("mode", "any", "all")
    x = np.abs(rng.integers(0, 3, (2, 40)) if integers else rng.standard_normal((2, 40)))
    mask = rng.random(x.shape) < 0.6
    hidden = np.where(mask, x, 99 if integers else np.nan)
    given = {"generator": np.random.default_rng(1)} if reduction == "stochastic" else {}
    arguments = {"axes": 1, "mask": mask, "empty": 0, "return_valid": True}
    y, n = ap.pool(hidden, reduction, 4, **arguments, **given)
    np.testing.assert_array_equal(n, mask.reshape(2, 10, 4).sum(-1))
    for place in np.ndindex(y.shape):
        seen = x.reshape(2, 10, 4)[place][mask.reshape(2, 10, 4)[place]]
        if not seen.size:
            assert y[place] == 0
        elif reduction == "stochastic":
            assert y[place] in seen
        else:
            assert y[place] == pytest.approx(ap.pool(seen, reduction, seen.size)[0], rel=1e-12)
    if not integers:
        arguments["return_valid"] = False
        _, pullback = ap.vjp(ap.pool, hidden, reduction, 4, **arguments, **given)
        gradient = pullback(np.ones((2, 10)))
        assert np.isfinite(gradient).all()
        assert (gradient[~mask] == 0).all()


def test_nothing_is_written_where_a_mode_has_nothing():
    out = np.full(2, 7)
    with pytest.raises(ValueError, match=r"mask and ignore must leave every window some input, or empty= give a value"):
        ap.pool([1, 2, 3, 3], "mode", 2, mask=[True, True, True, False], ignore=3, out=out)
    assert out.tolist() == [7, 7]
    assert ap.pool([1, 2, 3, 3], "mode", 2, mask=[True, True, True, False], ignore=3, empty=-1).tolist() == [1, -1]
