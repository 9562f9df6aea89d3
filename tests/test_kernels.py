"""The kernels that the native backend has for common windows, each on shapes that it takes, against the reference.

What `explain` says proves which one ran; rows end in the middle of a vector, NaNs and infinities stand in every lane,
and there are more planes than are taken at a time.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import anypool as ap
import cases
import tolerance
from anypool import operation

HALVES = [
    name for name in ("float16", "bfloat16") if name in {d if isinstance(d, str) else d.name for d in cases.HALVES}
]
FLOATS = ["float32", "float64", *HALVES]

# name: (shape, channels last?, arguments of pool, part of the kernel's description)
WINDOWS = {
    "rows, stride 1": ((2, 3, 9, 131), False, {"kernel_size": (3, 3), "stride": 1, "padding": 1}, "fused rows"),
    "rows, stride 2": ((2, 3, 9, 131), False, {"kernel_size": (3, 3), "stride": 2, "padding": 1}, "fused rows"),
    "short rows, 3x3": ((3, 23, 17, 20), False, {"kernel_size": (3, 3), "stride": 2}, "fused rows"),
    "short rows, padding": (
        (3, 23, 17, 20), False, {"kernel_size": (3, 3), "stride": 2, "padding": 1}, "fused rows",
    ),
    "short rows, 2x2": ((3, 37, 11, 17), False, {"kernel_size": (2, 2), "stride": 1}, "fused rows"),
    "short rows, 2x2 apart": ((3, 37, 12, 14), False, {"kernel_size": (2, 2)}, "fused rows"),
    "short rows, ceil": (
        (3, 37, 14, 28), False, {"kernel_size": (3, 3), "stride": 2, "ceil_mode": True}, "fused rows",
    ),
    "rows, 2x2": ((2, 3, 10, 141), False, {"kernel_size": (2, 2)}, "fused rows"),
    "rows, four": ((2, 3, 1003), False, {"kernel_size": (4,)}, "fused rows"),
    "rows, 2x2x2": ((2, 3, 6, 7, 50), False, {"kernel_size": (2, 2, 2)}, "fused rows"),
    "flat planes, 3x3": ((2, 9, 19, 35), False, {"kernel_size": (3, 3), "stride": 1, "padding": 1}, "planes at once"),
    "flat planes, 5x5": ((2, 9, 20, 21), False, {"kernel_size": (5, 5), "stride": 1, "padding": 2}, "planes at once"),
    "flat planes, dilation": (
        (2, 9, 18, 23), False, {"kernel_size": (3, 3), "stride": 1, "padding": 2, "dilation": 2}, "planes at once",
    ),
    "tiny planes": ((3, 23, 7, 7), False, {"kernel_size": (3, 3), "stride": 1, "padding": 1}, "planes at once"),
    "tiny planes, one column": (
        (3, 23, 7, 1), False, {"kernel_size": (3, 3), "stride": 1, "padding": 1}, "planes at once",
    ),
    "blocks, width 8": ((2, 5, 24, 56), False, {"kernel_size": (3, 8)}, "planes at once"),
    "blocks, width 16": ((2, 5, 24, 112), False, {"kernel_size": (8, 16)}, "planes at once"),
    "blocks, width 2": ((2, 5, 16, 14), False, {"kernel_size": (4, 2)}, "planes at once"),
    "whole planes": ((3, 7, 7, 7), False, {"kernel_size": (7, 7)}, "planes at once"),
    "whole wide planes": ((2, 3, 11, 203), False, {"kernel_size": (11, 203)}, "planes at once"),
    "turned rows": (
        (2, 3, 25, 121), False, {"kernel_size": (3, 11), "stride": (2, 9), "padding": (1, 5)}, "turned rows",
    ),
    "turned rows, two columns": (
        (3, 5, 25, 97), False, {"kernel_size": (2, 57), "stride": (2, 40)}, "turned rows",
    ),
    "wide rows": (
        (2, 3, 40, 131), False, {"kernel_size": (13, 31), "stride": 1, "padding": (6, 15)}, "wide rows",
    ),
    "wide rows, one column": ((2, 3, 40, 37), False, {"kernel_size": (17, 1), "stride": 1}, "wide rows"),
    "wide rows, narrow": (
        (3, 5, 11, 9), False, {"kernel_size": (8, 3), "stride": 1, "padding": ((7, 0), (1, 2))}, "wide rows",
    ),
    "wide rows, four": ((1, 2, 33, 70), False, {"kernel_size": (9, 5), "stride": 1}, "wide rows"),
    "wide rows, signals": ((2, 3, 1003), False, {"kernel_size": (64,), "stride": 1}, "wide rows"),
    "wide rows, many signals": ((3, 5, 180), False, {"kernel_size": (65,), "stride": 1, "padding": 32}, "wide rows"),
    "wide rows, tiles": (
        (1, 2, 3, 9001), False, {"kernel_size": (2, 300), "stride": 1, "padding": (1, 150)}, "wide rows",
    ),
    "wide rows, many planes": (
        (3, 5, 20, 20), False, {"kernel_size": (13, 13), "stride": 1, "padding": 6}, "wide rows",
    ),
    "wide rows, few planes": (
        (1, 7, 20, 20), False, {"kernel_size": (13, 13), "stride": 1, "padding": 6}, "wide rows",
    ),
    "doubled rows, channels last": (
        (1, 67, 30, 20), True, {"kernel_size": (13, 9), "stride": 1, "padding": (12, 4)}, "rows",
    ),
    "doubled rows, stride": (
        (2, 3, 70, 40), False, {"kernel_size": (32, 16), "stride": 2, "padding": (31, 8)}, "rows",
    ),
    "one column": ((2, 3, 131, 1), False, {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)}, "fused rows"),
    "one column of planes": (
        (2, 3, 131, 1, 1), False, {"kernel_size": (64, 1, 1), "stride": 1, "padding": (32, 0, 0)}, "wide rows",
    ),
    "wide rows, every second plane": (
        (2, 3, 5, 21, 30), False, {"kernel_size": (1, 9, 9), "stride": (2, 1, 1), "padding": (0, 4, 4)}, "wide rows",
    ),
    "wide rows, blocks": ((1, 1, 150, 90), False, {"kernel_size": (7, 7), "stride": 1, "padding": 3}, "wide rows"),
    "lanes": ((3, 23, 20, 20), False, {"kernel_size": (13, 13), "stride": 1, "padding": 6}, "planes in lanes"),
    "lanes, uneven padding": (
        (3, 23, 11, 9), False, {"kernel_size": (8, 3), "stride": 1, "padding": ((7, 0), (1, 2))}, "planes in lanes",
    ),
    "lanes, more results than inputs": (
        (2, 17, 9, 6), False, {"kernel_size": (8, 4), "stride": 1, "padding": (4, 2)}, "planes in lanes",
    ),
    "lanes, windows as large as planes": (
        (2, 40, 5, 7), False, {"kernel_size": (11, 13), "stride": 1, "padding": (5, 6)}, "planes in lanes",
    ),
    "lanes, no padding": ((2, 19, 23, 18), False, {"kernel_size": (9, 7), "stride": 1}, "planes in lanes"),
    "lanes, one row": (
        (3, 23, 6, 31), False, {"kernel_size": (1, 8), "stride": 1, "padding": (0, 4)}, "planes in lanes",
    ),
    "lanes, one column": (
        (3, 23, 31, 6), False, {"kernel_size": (8, 1), "stride": 1, "padding": (4, 0)}, "planes in lanes",
    ),
    "lanes, signals": ((3, 23, 180), False, {"kernel_size": (65,), "stride": 1, "padding": 32}, "planes in lanes"),
    "pixels, 3x3": ((2, 70, 9, 11), True, {"kernel_size": (3, 3), "stride": 2, "padding": 1}, "fused rows"),
    "pixels, dilation": (
        (2, 70, 9, 11), True, {"kernel_size": (3, 3), "stride": 1, "padding": 2, "dilation": 2}, "fused rows",
    ),
    "pixels, 3x3, stride 1": (
        (2, 70, 9, 11), True, {"kernel_size": (3, 3), "stride": 1, "padding": 1}, "fused rows",
    ),
    "pixels, 5x5": ((1, 67, 9, 11), True, {"kernel_size": (5, 5), "stride": 1, "padding": 2}, "fused rows"),
    "pixels, 5x5, stride 2": (
        (1, 67, 9, 11), True, {"kernel_size": (5, 5), "stride": 2, "padding": 2}, "fused rows",
    ),
    "pixels, 2x2": ((2, 64, 9, 11), True, {"kernel_size": (2, 2)}, "fused rows"),
    "pixels, 3": ((2, 67, 31), True, {"kernel_size": (3,), "stride": 1, "padding": 1}, "fused rows"),
    "pixels, 3x3x3": ((1, 66, 5, 6, 7), True, {"kernel_size": (3, 3, 3), "stride": 2, "padding": 1}, "fused rows"),
    "pictures, 3x3": ((2, 3, 9, 61), True, {"kernel_size": (3, 3), "stride": 1, "padding": 1}, "fused rows"),
    "pictures, 2x2": ((2, 3, 9, 61), True, {"kernel_size": (2, 2)}, "fused rows"),
    "pictures, 2x2, padding": ((2, 3, 9, 61), True, {"kernel_size": (2, 2), "padding": 1}, "fused rows"),
    "pictures, 2x2, wide, padding before": (
        (2, 3, 8, 200), True, {"kernel_size": (2, 2), "padding": ((1, 0), (1, 0))}, "fused rows",
    ),
}  # fmt: skip

SHARED = ("wide rows", "planes in lanes")  # have no sums


def laid_out(x: np.ndarray, channels_last: bool) -> tuple[np.ndarray, dict]:
    axes = tuple(range(2, x.ndim))
    if not channels_last:
        return x, {"axes": axes}
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)), {"axes": tuple(a - 1 for a in axes)}


def both(x: np.ndarray, reduction: str, **kwargs):
    results = []
    for name in ("native", "reference"):
        with ap.backends.use(name):
            results.append(ap.pool(x, reduction, **kwargs))
    return results


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reduction", ["max", "min", "mean", "sum"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats(window, reduction, dtype):
    shape, last, kwargs, kernel = WINDOWS[window]
    for which in ("numbers", "NaN in each lane", "one NaN at the end", "infinities and zeros"):
        x, axes = laid_out(cases.special(shape, cases.dtype_of(dtype), which), last)
        arguments = axes | kwargs
        said = ap.explain(ap.pool, x, reduction, **arguments)
        if dtype == "float32" and said.isa == "x86_64_v4":  # shorter vectors have no kernel for each of these rows
            assert kernel in said.kernel or (kernel in SHARED and reduction not in ("max", "min"))
        native, reference = both(x, reduction, **arguments)
        assert tolerance.same_bits(native, reference), which


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "uint8"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2)], ids=str)
def test_rows_of_every_length(window, dtype):
    """Whatever part of a vector ends a row is pooled, and nothing beside it is seen or written."""
    kernel, stride, padding = window
    dtype = cases.dtype_of(dtype)
    for columns in range(kernel, 3 * 64 // dtype.itemsize + 3):
        inside = (slice(None), slice(None), slice(3, 3 + columns))
        beside = np.full((3, 7, columns + 6), 101 if dtype.kind in "iu" else np.nan, dtype)
        x, mask = beside[inside], np.ones(beside.shape, bool)[inside]
        x[:] = cases.rng(columns).integers(0, 100, x.shape)
        mask[:] = cases.rng(columns).random(x.shape) < 0.8
        kwargs = {"axes": (1, 2), "kernel_size": kernel, "stride": stride, "padding": padding}
        if dtype == np.float32 and kernel <= 3:
            assert "fused rows" in ap.explain(ap.pool, x, "max", **kwargs).kernel, columns
        calls = [("max", {}), ("mean", {})]
        if dtype.kind not in "iu":
            calls += [("max", {"mask": mask}), ("mean", {"mask": mask}), ("max", {"return_indices": True})]
        for reduction, more in calls:
            native, wanted = both(x, reduction, **kwargs, **more)
            if more.get("return_indices"):
                np.testing.assert_array_equal(native[1], wanted[1])
                native, wanted = native[0], wanted[0]
            assert tolerance.same_bits(native, wanted), (columns, reduction, *more)
            if more.get("return_indices"):
                continue
            around = np.full((3, native.shape[1], native.shape[2] + 6), 77, dtype)
            ap.pool(x, reduction, out=around[:, :, 3:-3], **kwargs, **more)
            assert tolerance.same_bits(around[:, :, 3:-3], wanted), (columns, reduction, *more)
            around[:, :, 3:-3] = 77
            assert (around == 77).all(), (columns, reduction, *more)


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "uint8"])
@pytest.mark.parametrize("window", [(2, 2, 0), (2, 2, 1), (3, 2, 0), (3, 2, 1), (3, 1, 0), (5, 2, 2)], ids=str)
def test_dense_rows_of_every_length(window, dtype):
    """Where rows lie without gaps, a row is read with what lies beside it, and stored with what the next one covers."""
    kernel, stride, padding = window
    dtype = cases.dtype_of(dtype)
    kwargs = {"axes": (1, 2), "kernel_size": kernel, "stride": stride, "padding": padding}
    for columns in range(kernel, 4 * 64 // dtype.itemsize + 3):
        for planes in (1, 3):
            x = cases.rng(columns).integers(0, 100, (planes, 7, columns)).astype(dtype)
            for reduction in ("max", "mean"):
                native, wanted = both(x, reduction, **kwargs)
                assert tolerance.same_bits(native, wanted), (columns, planes, reduction)
                around = np.full(native.size + 256, 77, dtype)
                out = around[128:-128].reshape(native.shape)
                ap.pool(x, reduction, out=out, **kwargs)
                assert tolerance.same_bits(out, wanted), (columns, planes, reduction)
                out[...] = 77
                assert (around == 77).all(), (columns, planes, reduction)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("window", [(3, 2, 0), (2, 1, 0), (3, 1, 0), (3, 1, 1), (5, 2, 2)], ids=str)
def test_one_nan_in_the_first_rows_of_a_plane(window, dtype):
    """Kernels that look through each row once, as it enters a window, look through those of the first window, too."""
    size, stride, padding = window
    for n in (4, 7, 12, 20):
        x = cases.special((66, n, n + 1), cases.dtype_of(dtype), "numbers")
        for plane, row in itertools.product((0, 33, 65), (0, 1)):
            y = x.copy()
            y[plane, row, n // 2] = np.nan
            for reduction in ("max", "min"):
                windows = {"axes": (1, 2), "kernel_size": size, "stride": stride, "padding": padding}
                assert tolerance.same_bits(*both(y, reduction, **windows)), (n, plane, row, reduction)
                (native, places), (reference, wanted) = both(y, reduction, return_indices=True, **windows)
                assert tolerance.same_bits(native, reference), (n, plane, row, reduction)
                np.testing.assert_array_equal(places, wanted)


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_wide_windows_of_views(reduction):
    """Rows from last to first, every second row, one row many times, one channel many times."""
    x = cases.special((2, 3, 40, 131), np.dtype(np.float32), "infinities and zeros")
    wide = {"axes": (2, 3), "kernel_size": (9, 20), "stride": 1, "padding": (4, 10)}
    rows, channels = np.broadcast_to(x[:, :, :1], x.shape), np.broadcast_to(x[:, :1], x.shape)
    for view in (x[:, :, ::-1], x[:, :, ::2], rows, channels):
        reference = both(view, reduction, **wide)[1]
        with ap.backends.use("native"):
            out = np.empty(reference.shape, np.float32)  # rows that lie one after the other, whatever those of x do
            assert tolerance.same_bits(ap.pool(view, reduction, out=out, **wide), reference)
        if 0 not in view.strides:  # else the result lies otherwise, unless it is told where
            assert "wide rows" in ap.explain(ap.pool, view, reduction, **wide).kernel


@pytest.mark.parametrize("kernel", [(2**40 - 2**22 + 16, 4_194_240), (2_500_000, 1), (1, 50_000_000), (2**22, 2**39)])
def test_windows_wider_than_memory(kernel):
    """Rows of a block of these would take more than there is, or more than 64 bits can tell."""
    x = np.array([[1, 3], [4, 2]], np.uint8)
    windows = {"axes": (0, 1), "kernel_size": kernel, "stride": 1, "padding": tuple((k - 1, 0) for k in kernel)}
    assert "wide rows" not in ap.explain(ap.pool, x, "max", **windows).kernel
    rows, columns = (k > 1 for k in kernel)
    wanted = np.maximum.accumulate(x, axis=0) if rows else x
    wanted = np.maximum.accumulate(wanted, axis=1) if columns else wanted
    np.testing.assert_array_equal(ap.pool(x, "max", **windows), wanted)


# Windows of the list above whose rows are loaded first where they have to be lifted, or do not lie side by side.
LOADED = [name for name, (_, last, _, kernel) in WINDOWS.items() if kernel == "fused rows" and not last]


@pytest.mark.parametrize("window", LOADED)
@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 2.5, np.inf])
@pytest.mark.parametrize("dtype", [*FLOATS, "int16"])
def test_powers(window, p, dtype):
    shape, _, kwargs, kernel = WINDOWS[window]
    for which in ("numbers", "NaN in each lane", "infinities and zeros"):
        x = cases.special(shape, cases.dtype_of(dtype), "numbers" if dtype == "int16" else which)
        arguments = {"axes": tuple(range(2, x.ndim)), "norm_type": p} | kwargs
        if dtype == "float32":  # two lanes of float64 have no kernel for each of these rows
            assert kernel in ap.explain(ap.pool, x, "lp", **arguments).kernel
        native, reference = both(x, "lp", **arguments)
        if p in (1, 2, 4, np.inf) or (p == 3 and native.dtype != np.float64):  # NumPy's cbrt is not the C library's
            assert tolerance.same_bits(native, reference), which
        else:
            eps = 2.0 ** -tolerance.FORMATS[native.dtype.name][0]
            np.testing.assert_allclose(native.astype(np.float64), reference.astype(np.float64), rtol=3 * eps, atol=0)


@pytest.mark.parametrize("window", LOADED)
@pytest.mark.parametrize("reduction", ["max", "min", "mean", "sum"])
@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", "int32"])
def test_elements_far_apart(window, reduction, dtype):
    """Every second column, columns from last to first, and rows as columns."""
    shape, _, kwargs, kernel = WINDOWS[window]
    axes = {"axes": tuple(range(2, len(shape)))}
    for which in ("numbers", "NaN in each lane", "infinities and zeros"):
        if cases.dtype_of(dtype).kind in "iu":
            x = np.random.default_rng(6).integers(0, 256, shape).astype(dtype)
        else:
            x = cases.special(shape, cases.dtype_of(dtype), which)
        every_second = np.repeat(x, 2, axis=-1)[..., ::2]
        backwards = x[..., ::-1].copy()[..., ::-1]
        as_columns = np.ascontiguousarray(np.swapaxes(x, 1, -1)).swapaxes(1, -1)
        transposed = np.ascontiguousarray(np.swapaxes(x, -2, -1)).swapaxes(-2, -1)
        wanted = both(x, reduction, **axes, **kwargs)[1]
        for apart in (every_second, backwards, as_columns, transposed):
            with ap.backends.use("native"):
                assert tolerance.same_bits(ap.pool(apart, reduction, **axes, **kwargs), wanted), which
        columns = np.empty(np.swapaxes(wanted, -2, -1).shape, wanted.dtype).swapaxes(-2, -1)
        out = np.zeros((*wanted.shape, 3), wanted.dtype)[..., 1]
        with ap.backends.use("native"):
            for to in (columns, out):
                assert tolerance.same_bits(ap.pool(x, reduction, out=to, **axes, **kwargs), wanted), which
        assert not out.base[..., 0].any()
        assert not out.base[..., 2].any()
        if dtype == "float32":
            assert kernel in ap.explain(ap.pool, every_second, reduction, **axes, **kwargs).kernel


# (shape, output size): bins that differ, on planes whose rows are turned sixteen at a time, the last ones fewer.
BINS = {
    "3x5 of 31x57": ((2, 7, 31, 57), (3, 5)),
    "7x7 of 19x61": ((1, 5, 19, 61), (7, 7)),
    "1x2 of 9x51": ((3, 7, 9, 51), (1, 2)),
    "more than there are": ((2, 3, 5, 17), (7, 23)),
    "volumes": ((1, 3, 5, 6, 19), (2, 3, 7)),
    "signals": ((3, 11, 103), (10,)),
}


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", "int16", "int32", "int64"])
def test_bins_that_differ(bins, dtype):
    """Maxima, their indices, means and their gradients, whatever the order of the axes in memory."""
    shape, size = BINS[bins]
    of_max, of_mean = (getattr(ap, f"adaptive_{name}_pool{len(size)}d") for name in ("max", "avg"))
    for which in ("numbers", "NaN in each lane", "infinities and zeros"):
        whole = cases.dtype_of(dtype).kind in "iu"
        if whole:
            x = np.random.default_rng(6).integers(0, 120, shape).astype(dtype)
        else:
            x = cases.special(shape, cases.dtype_of(dtype), which)
        assert "turned rows" in ap.explain(of_max, x, size).kernel
        as_columns = np.ascontiguousarray(np.swapaxes(x, 1, -1)).swapaxes(1, -1)
        results = []
        for name in ("native", "reference"):
            with ap.backends.use(name):
                found = [*of_max(x, size, return_indices=True), of_max(as_columns, size), of_mean(x, size)]
                if not whole:
                    y, pullback = ap.vjp(of_mean, x, size)
                    found += [y, pullback(y)]
                results.append(found)
        for native, reference in zip(*results, strict=True):
            assert tolerance.same_bits(native, reference), which


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("planes", [1, 19])
def test_planes_as_windows(planes, dtype):
    """Whatever the rows and the columns of a plane, and wherever the next one lies."""
    ways = set()
    for rows, columns in itertools.product((1, 3, 7, 8, 9, 17, 41), (1, 7, 8, 9, 28, 33, 64, 112, 300)):
        kwargs = {"kernel_size": (rows, columns), "axes": (1, 2)}
        for which in ("numbers", "one NaN at the end"):
            x = cases.special((planes, rows + 1, columns), cases.dtype_of(dtype), which)
            for view in (x[:, 1:].copy(), x[:, 1:], x[::-1, :-1]):
                for reduction in ("max", "mean")[: 1 + (which == "numbers")]:
                    assert tolerance.same_bits(*both(view, reduction, **kwargs)), (rows, columns, which, reduction)
            ways.add(ap.explain(ap.pool, x[:, 1:], "max", **kwargs).kernel)
    assert any("planes at once" in way for way in ways)


@pytest.mark.parametrize("shape", [(5000, 7, 250), (900, 100, 100), (2400, 64, 56)])
def test_planes_that_no_cache_holds(shape):
    """Rows are read in another order than those of the same planes alone, but merged in the same one."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    kwargs = {"kernel_size": shape[1:], "axes": (1, 2)}
    for reduction in ("max", "sum"):
        y = ap.pool(x, reduction, **kwargs)
        for plane in (0, 17, -1):
            assert tolerance.same_bits(y[plane], ap.pool(x[plane], reduction, kernel_size=shape[1:], axes=(0, 1)))


# (shape, output size): on planes whose rows fit a vector, or half of one.
NARROW = {
    "3x5 of 7x7": ((3, 23, 7, 7), (3, 5)),
    "one plane": ((1, 1, 7, 7), (3, 5)),
    "5 of 14x14": ((2, 9, 14, 14), (5, 5)),
    "4x3 of 16x8": ((1, 19, 16, 8), (4, 3)),
    "2 of 5x3": ((2, 17, 5, 3), (2, 2)),
    "more than there are": ((2, 3, 5, 6), (7, 8)),
    "few of many rows": ((1, 5, 15, 7), (2, 5)),
    "all columns": ((2, 3, 7, 5), (3, 5)),
}


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("dtype", FLOATS)
def test_bins_of_narrow_planes(narrow, dtype):
    """Maxima, minima and means; views of the input, and results that lie apart."""
    shape, size = NARROW[narrow]
    for which in ("numbers", "NaN in each lane", "one NaN at the end", "infinities and zeros"):
        x = cases.special(shape, cases.dtype_of(dtype), which)
        said = ap.explain(ap.adaptive_max_pool2d, x, size)
        if dtype == "float32" and said.isa in ("x86_64_v3", "x86_64_v4") and shape[-1] <= 8:
            assert "narrow planes" in said.kernel
        wide = np.zeros((*shape[:-2], shape[-2] + 2, shape[-1] + 3), x.dtype)
        inside = wide[..., 1:-1, 2:-1]
        inside[...] = x
        for of in (ap.adaptive_max_pool2d, ap.adaptive_avg_pool2d):
            with ap.backends.use("reference"):
                wanted = of(x, size)
            out = np.zeros((*wanted.shape[:-1], wanted.shape[-1] + 2), wanted.dtype)
            with ap.backends.use("native"):
                for y in (of(x, size), of(inside, size), of(x, size, out=out[..., 1:-1])):
                    assert tolerance.same_bits(y, wanted), which
                assert tolerance.same_bits(of(x[:, ::2], size), wanted[:, ::2]), which
                assert tolerance.same_bits(of(x.swapaxes(0, 1), size), wanted.swapaxes(0, 1)), which
            assert not out[..., 0].any()
            assert not out[..., -1].any()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_means(window, dtype, include):
    """Divisors that differ at the borders, and sums that are ties."""
    shape, last, kwargs, _ = WINDOWS[window]
    x = np.random.default_rng(6).integers(0, 256, shape).astype(dtype)
    x, axes = laid_out(x, last)
    native, reference = both(x, "mean", count_include_pad=include, **axes, **kwargs)
    assert tolerance.same_bits(native, reference)


@pytest.mark.parametrize("window", WINDOWS)
def test_means_of_large_ints(window):
    """Sums that 32 bits do not hold, and quotients that are ties or close to one."""
    shape, last, kwargs, _ = WINDOWS[window]
    limits = np.iinfo(np.int32)
    rng = np.random.default_rng(7)
    ends = np.array([limits.min, limits.min + 1, -1, 0, 1, limits.max - 1, limits.max])
    for x in (rng.integers(limits.min, limits.max, shape, np.int32, endpoint=True),
              rng.choice(ends, shape).astype(np.int32)):  # fmt: skip
        x, axes = laid_out(x, last)
        for override in (None, 1, 2, 3):  # quotients that 32 bits do not hold wrap
            native, reference = both(x, "mean", divisor_override=override, **axes, **kwargs)
            assert tolerance.same_bits(native, reference), override


@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 6, 7, 9, 16, 25, 27, 255, 1000, 1001, 100_000])
@pytest.mark.parametrize("window", ["rows, stride 1", "rows, 2x2", "pictures, 2x2", "pictures, 3x3", "pixels, 2x2"])
def test_bytes_are_divided_exactly(window, divisor):
    shape, last, kwargs, _ = WINDOWS[window]
    for x in (np.full(shape, 255, np.uint8), np.random.default_rng(7).integers(0, 256, shape, np.uint8)):
        x, axes = laid_out(x, last)
        native, reference = both(x, "mean", divisor_override=divisor, **axes, **kwargs)
        assert tolerance.same_bits(native, reference)


@pytest.mark.parametrize("padding", [0, 1, ((1, 0), (0, 1))], ids=str)
def test_means_of_triples_of_bytes(padding):
    """Planes side by side, whose rows end in each lane of two vectors and more, and divisors that differ."""
    for columns in range(3, 140):
        x = cases.rng(columns).integers(0, 256, (5, 3 + columns % 4, columns), np.uint8)
        windows = {"axes": (1, 2), "kernel_size": 3, "stride": 1, "padding": padding}
        for view in (x, x[::-1], x[:, ::-1], x[::2]):
            for include in (True, False):
                native, reference = both(view, "mean", count_include_pad=include, **windows)
                assert tolerance.same_bits(native, reference), (columns, view.strides, include)


# Sums over few rows and columns of pixels: what is summed must be lifted first.
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 1, 1), (3, 2, 1), ((2, 3), (1, 2), 1), (3, 4, 0)], ids=str)
@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("dtype", [*FLOATS, "int16"])
def test_powers_of_pixels(window, p, dtype):
    kernel, stride, padding = window
    kwargs = {"axes": (1, 2), "kernel_size": kernel, "stride": stride, "padding": padding, "norm_type": p}
    for channels, which in itertools.product((2, 3, 5, 16, 33, 70, 131), ("numbers", "NaN in each lane")):
        shape = (2, 9, 11, channels)
        x = cases.special(shape, cases.dtype_of(dtype), "numbers" if dtype == "int16" else which)
        assert "sums of pixels" in ap.explain(ap.pool, x, "lp", **kwargs).kernel
        wide = np.zeros((*shape[:-1], channels + 3), x.dtype)[..., 1:-2]
        wide[...] = x
        for view in (x, wide, x[:, ::-1, ::-1]):
            assert tolerance.same_bits(*both(view, "lp", **kwargs)), (channels, which, view.strides)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "int64"])
@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("window", WINDOWS)
def test_integers(window, reduction, dtype):
    shape, last, kwargs, kernel = WINDOWS[window]
    info = np.iinfo(dtype)
    values = np.random.default_rng(8).integers(info.min, info.max, shape, dtype, endpoint=True)
    x, axes = laid_out(values, last)
    if kernel == "wide rows":
        has_one = dtype in ("uint8", "uint16", "int16", "int32")
        assert (kernel in ap.explain(ap.pool, x, reduction, **axes, **kwargs).kernel) == has_one
    native, reference = both(x, reduction, **axes, **kwargs)
    assert tolerance.same_bits(native, reference)


CODED = {
    "3x3 s2": ((2, 3, 13, 131), {"kernel_size": (3, 3), "stride": 2, "padding": 1}),
    "3x3 s1": ((2, 3, 13, 67), {"kernel_size": (3, 3), "stride": 1, "padding": 1}),
    "3x3 s2 ceil": ((2, 3, 14, 130), {"kernel_size": (3, 3), "stride": 2, "ceil_mode": True}),
    "2x2": ((2, 3, 10, 141), {"kernel_size": (2, 2)}),
    "2x2 s1": ((2, 3, 10, 41), {"kernel_size": (2, 2), "stride": 1, "padding": 1}),
    "3 s2, longer than a block": ((1, 2, 12_007), {"kernel_size": (3,), "stride": 2, "padding": 1}),
    "2": ((2, 3, 101), {"kernel_size": (2,)}),
    "3 s2, one column": ((2, 3, 131, 1), {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)}),
    "2x2x2": ((1, 2, 5, 6, 51), {"kernel_size": (2, 2, 2), "stride": 2, "padding": 1}),
}


@pytest.mark.parametrize("window", CODED)
@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_winners(window, reduction, dtype):
    """Indices, and the gradient, which is made from codes: ties, all -inf, NaNs."""
    shape, kwargs = CODED[window]
    of = cases.dtype_of(dtype)
    values = [cases.special(shape, of, w) for w in ("numbers", "NaN in each lane", "infinities and zeros")]
    worst = -np.inf if reduction == "max" else np.inf
    values += [np.round(values[0]), np.full(shape, worst, of)]
    for x in values:
        axes = {"axes": tuple(range(2, x.ndim))}
        said = ap.explain(ap.pool, x, reduction, return_indices=True, **axes, **kwargs)
        assert "fused rows" in said.kernel or (dtype == "float16" and said.isa == "x86_64_v2")
        (native, places), (reference, wanted) = both(x, reduction, return_indices=True, **axes, **kwargs)
        assert tolerance.same_bits(native, reference)
        np.testing.assert_array_equal(places, wanted)
        gradients = []
        for name in ("native", "reference"):
            with ap.backends.use(name):
                y, pullback = ap.vjp(ap.pool, x, reduction, **axes, **kwargs)
                gradients.append(pullback(np.ones_like(y)))
        np.testing.assert_array_equal(*(g.astype(np.float64) for g in gradients))


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize(
    "window", [(2, 2, 0), (2, 2, 1), (2, 1, 0), (3, 2, 0), (3, 2, 1), (3, 1, 0), (3, 1, 1)], ids=str
)
def test_winners_of_rows_of_every_length(window, dtype):
    """Rows without gaps are read with what lies beside them, which wins nothing; others are not."""
    kernel, stride, padding = window
    kwargs = {"axes": (1, 2), "kernel_size": kernel, "stride": stride, "padding": padding}
    for columns in range(kernel, 80):
        values = cases.rng(columns).integers(0, 4, (3, 7, columns + 1)).astype(cases.dtype_of(dtype))
        values[0, 1:4, :5] = values[2, 2:5, columns // 2 :] = -np.inf  # windows in which nothing is larger
        for x in (np.ascontiguousarray(values[:, :, 1:]), values[:, :, :-1]):
            (native, places), (reference, wanted) = both(x, "max", return_indices=True, **kwargs)
            assert tolerance.same_bits(native, reference), columns
            np.testing.assert_array_equal(places, wanted, str(columns))
            gradients = []
            for name in ("native", "reference"):
                with ap.backends.use(name):
                    y, pullback = ap.vjp(ap.pool, x, "max", **kwargs)
                    gradients.append(pullback(np.ones_like(y)).astype(np.float64))
            np.testing.assert_array_equal(*gradients, str(columns))


# ---- how backends cut and remember their work ------------------------------------------------------------------------


def test_arrays_of_ever_new_strides():
    """What is compiled for one shape is kept for a bounded number of strides."""
    wide = cases.rng(0).standard_normal((3, 8, 8 * 80)).astype(np.float32)
    mask = cases.rng(1).random((3, 8, 8)) < 0.7
    call = ap.pool.call(wide[..., :8].copy(), "max", (2, 3), stride=1)
    job = operation.resolve(call.x, call.what).job
    largest, before = 0, len(job.compiled)
    for step in range(1, 80):
        x = wide[..., : 8 * step : step]
        assert np.array_equal(ap.pool(x, "max", (2, 3), stride=1), ap.pool(x.copy(), "max", (2, 3), stride=1))
        masked = ap.pool(x, "max", (2, 3), stride=1, mask=mask)
        assert tolerance.same_bits(masked, ap.pool(x.copy(), "max", (2, 3), stride=1, mask=mask))
        largest = max(largest, len(job.compiled))
    assert before < largest <= 64


def test_more_axes_than_kernels_know():
    x = cases.rng(0).standard_normal((2, *(1,) * 16, 5))
    explained = ap.explain(ap.pool, x, "max", 2, axes=-1)
    assert explained.backend == "reference"
    assert explained.notes == ("native: more than 16 axes that are not pooled",)
    y = ap.pool(x, "max", 2, axes=-1)
    assert y.shape == (2, *(1,) * 16, 2)
    assert np.array_equal(y, np.maximum(x[..., 0:4:2], x[..., 1:4:2]))
    with ap.backends.use("native"), pytest.raises(NotImplementedError, match="more than 16 axes that are not pooled"):
        ap.pool(x, "max", 2, axes=-1)


@pytest.mark.parametrize("axes", [(1, 2), (0, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("reduction", ["max", "min", "sum", "mean", "lp", "logsumexp"])
def test_pieces_of_the_reference_do_not_matter(reduction, axes, monkeypatch):
    from anypool.backends import reference

    x = cases.rng(2).standard_normal((3, 7, 8, 5))
    found = []
    with ap.backends.use("reference"):
        for piece in (4 << 20, 300, 1):
            monkeypatch.setattr(reference, "_PIECE", piece)
            y, pullback = ap.vjp(ap.pool, x, reduction, 2, axes=axes, padding=1)
            found.append((y, pullback(cases.rng(3).standard_normal(y.shape))))
    for y, grad in found[1:]:
        assert tolerance.same_bits(y, found[0][0])
        assert tolerance.same_bits(grad, found[0][1])
