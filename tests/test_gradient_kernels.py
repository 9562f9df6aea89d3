"""The kernels of gradients, each on shapes that it takes, against the reference.

Rows end in the middle of a vector, or are shorter than one.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import anypool as ap
import cases
import tolerance

# Windows that leave sizes as they are: of stride 1, with as much padding as that takes.
SIZES_KEPT = {
    "3": ((5, 3, 1003), {"kernel_size": (3,)}),
    "9, five apart": ((3, 2, 203), {"kernel_size": (9,), "dilation": 5}),
    "1": ((3, 2, 203), {"kernel_size": (1,)}),
    "255": ((2, 2, 300), {"kernel_size": (255,)}),  # codes of one byte just suffice
    "3x3": ((2, 9, 19, 35), {"kernel_size": (3, 3)}),
    "3x3, tiny planes": ((3, 23, 7, 7), {"kernel_size": (3, 3)}),
    "3x3, one column": ((3, 23, 7, 1), {"kernel_size": (3, 3)}),
    "3x3, one element": ((3, 23, 1, 1), {"kernel_size": (3, 3)}),
    "3x3, wide planes": ((1, 2, 90, 301), {"kernel_size": (3, 3)}),
    "3x3, two apart": ((2, 9, 18, 23), {"kernel_size": (3, 3), "dilation": 2}),
    "5x5": ((2, 9, 20, 21), {"kernel_size": (5, 5)}),
    "3x7": ((2, 3, 12, 13), {"kernel_size": (3, 7)}),
    "13x13": ((2, 3, 20, 20), {"kernel_size": (13, 13)}),
    "3x3x3": ((2, 3, 5, 6, 7), {"kernel_size": (3, 3, 3)}),
}


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("windows", SIZES_KEPT)
@pytest.mark.parametrize("reduction", ["max", "min", "sum", "mean"])
def test_gradients_of_windows_that_keep_sizes(reduction, windows, dtype):
    """An array without gaps is one long row to them: what is near in it, but in another row or plane, has no part."""
    shape, more = SIZES_KEPT[windows]
    dtype = cases.dtype_of(dtype)
    padding = tuple(k // 2 * more.get("dilation", 1) for k in more["kernel_size"])
    options = [{}] if reduction != "mean" else [{}, {"count_include_pad": False}, {"divisor_override": 7}]
    for which, one in itertools.product(("numbers", "infinities and zeros", "NaN in each lane"), options):
        x = cases.special(shape, dtype, which)
        last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        wide = np.zeros((*shape[:-1], shape[-1] + 3), dtype)[..., 1:-2]
        wide[...] = x
        for view in (np.round(x) if which == "numbers" else x, last, x[0], x[:, 1], x[::-1], wide):
            found = []
            for name in ("native", "reference"):
                with ap.backends.use(name):
                    axes = tuple(range(view.ndim - len(padding), view.ndim))
                    y, pullback = ap.vjp(ap.pool, view, reduction, stride=1, padding=padding, axes=axes, **more, **one)
                    found.append(pullback(cases.special(y.shape, dtype, "infinities and zeros")))
            assert tolerance.same_bits(*found), (which, one, view.strides)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_gradients_of_narrow_windows(kernel, stride, dtype):
    """Rows that end in the middle of a vector, one vector long or shorter; taps that are far apart over h."""
    for columns in (5, 16, 33, 67, 131):
        for padding in (0, 1, kernel // 2, ((1, 0), (0, kernel - 1))):
            windows = {"kernel_size": (3, kernel), "stride": (1, stride), "dilation": (2, 1), "ceil_mode": True}
            x = cases.special((2, 3, 12, columns), cases.dtype_of(dtype), "numbers")
            gradients = []
            for name in ("native", "reference"):
                with ap.backends.use(name):
                    y, pullback = ap.vjp(ap.pool, x, "max", axes=(2, 3), padding=padding, **windows)
                    weights = cases.special(y.shape, cases.dtype_of(dtype), "numbers")
                    gradients.append(pullback(weights))
            assert tolerance.same_bits(*gradients), (columns, padding)


# Windows over rows, by how many of their outputs an input row is seen: kernel, stride, dilation.
SEEN_BY = {
    "one": (1, 1, 1),
    "none or one": (2, 3, 1),
    "one or two": (3, 2, 1),
    "up to three": (3, 1, 1),
    "up to three, two apart": (3, 1, 2),
    "up to two, three apart": (3, 2, 3),
    "up to five": (5, 1, 1),
}


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("depth", [1, 4])
def test_gradients_of_maxima_in_rows_of_every_length(depth, kernel, stride, dtype):
    """Rows begin before the first window or with it, and end in each lane; nothing beside them is written."""
    dtype, by = cases.dtype_of(dtype), itertools.cycle(SEEN_BY.values())
    for columns, low, high in itertools.product((*range(6, 37), 64, 65), range(kernel), (0, kernel - 1)):
        taps, step, apart = next(by)
        x = cases.special((2, depth, 11, columns), dtype, "numbers")
        windows = {
            "kernel_size": (min(depth, 2), taps, kernel),
            "stride": (1, step, stride),
            "dilation": (1, apart, 1),
            "padding": ((0, 0), (taps // 2, 0), (low, high)),
        }
        found = []
        for backend in ("native", "reference"):
            with ap.backends.use(backend):
                y, pullback = ap.vjp(ap.pool, x, "max", axes=(1, 2, 3), **windows)
                around = np.full((2, depth, 11, columns + 9), 9, dtype)
                pullback(cases.special(y.shape, dtype, "infinities and zeros"), out=around[..., 4:-5])
                found.append(around)
        assert tolerance.same_bits(*found), (columns, windows)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kernel", [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_gradients_of_sums_two_apart(kernel, reduction, dtype):
    """What an output got is spread over pairs of rows and columns, some of which no window saw."""
    dtype = cases.dtype_of(dtype)
    options = [{}] if reduction == "sum" else [{}, {"count_include_pad": False}, {"divisor_override": 7}]
    for width in (7, 15, 16, 17, 31, 32, 33, 64, 65, 70):
        x = np.zeros((2, 2, 7 + width % 5, width), dtype)
        for low, high, ceil, more in itertools.product(range(kernel[0]), range(kernel[1]), (False, True), options):
            results = []
            for backend in ("native", "reference"):
                with ap.backends.use(backend):
                    padding = ((low, 0), (high, min(low, kernel[1] - 1)))
                    y, pullback = ap.vjp(
                        ap.pool, x, reduction, kernel, stride=2, padding=padding, ceil_mode=ceil, axes=(2, 3), **more
                    )
                    g = np.random.default_rng(width).standard_normal((*y.shape, 2)).astype(dtype)[..., 0]
                    g[..., :1] *= -0.0
                    out = np.full((2, 2, 2 * x.shape[2], width + 3), 9, dtype)[:, :, ::2, 1:-2]
                    assert pullback(g, out=out) is out
                    results.append(out)
            assert tolerance.same_bits(*results), (width, low, high, ceil, more)


# Windows that few outputs see an input by, over pixels.
PIXELS = {
    "2x2": {"kernel_size": 2},
    "2x2, overlapping": {"kernel_size": 2, "stride": 1},
    "3x3": {"kernel_size": 3, "stride": 1, "padding": 1},
    "3x3, two apart": {"kernel_size": 3, "stride": 2, "padding": 1},
    "3x3, to the last": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "3x3, with gaps": {"kernel_size": 3, "stride": 4, "padding": 1},
    "4x4": {"kernel_size": 4},
    "5x5": {"kernel_size": 5, "stride": 2, "padding": 2},
    "7x2": {"kernel_size": (7, 2), "stride": (3, 1), "padding": ((3, 2), (0, 1))},
}


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("windows", PIXELS)
def test_gradients_of_sums_over_pixels(windows, dtype):
    """As many channels as fill vectors, a few more, or fewer than one; inputs that no output saw get 0.0."""
    windows = PIXELS[windows]
    options = [("sum", {}), ("mean", {}), ("mean", {"count_include_pad": False}), ("mean", {"divisor_override": 7})]
    for channels in (2, 3, 5, 8, 16, 17, 33, 67, 131):
        x = cases.special((2, 13, 14, channels), cases.dtype_of(dtype), "numbers")
        wide = np.zeros((*x.shape[:-1], channels + 3), x.dtype)[..., 1:-2]
        for view, (reduction, more) in itertools.product((x, wide, x[:, ::-1], x[:, 1], x.swapaxes(1, 2)), options):
            axes = (view.ndim - 3, view.ndim - 2) if view.ndim == 4 else (view.ndim - 2,)
            one = {name: v if np.isscalar(v) else v[-len(axes) :] for name, v in windows.items()}
            found = pulled(view, ap.pool, reduction, axes=axes, **one, **more)
            assert tolerance.same_bits(*found), (channels, reduction, more, view.strides)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("size", [1, (3, 5), (6, 7), (20, 30)], ids=str)  # bins that tile, differ, overlap
def test_gradients_of_adaptive_means(size, dtype):
    for shape in ((2, 19, 12, 21), (2, 19, 15, 23)):
        for view in views(cases.special(shape, cases.dtype_of(dtype), "numbers")):
            assert tolerance.same_bits(*pulled(view, ap.adaptive_avg_pool2d, size)), view.strides


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("padding", [0, 1])
def test_gradients_of_whole_planes(padding, dtype):
    """One output for each plane, whose strides do not tell where the channels are: those of the gradient do."""
    for n in (1, 2, 3, 5, 7, 8, 14, 33, 56):
        x = cases.rng(n).standard_normal((5, 3, n, n + 1), np.float32).astype(cases.dtype_of(dtype))
        size = (n + 2 * padding, n + 1 + 2 * padding)
        windows = {"axes": (2, 3), "kernel_size": size, "padding": padding}
        last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, 3)), 3, 1)
        g = cases.special((5, 3, 1, 1), x.dtype, "infinities and zeros")
        g[2, 1] = np.nan
        for reduction, more in (("sum", {}), ("mean", {}), ("mean", {"count_include_pad": False}),
                                ("mean", {"divisor_override": 7}), ("mean", {"stride": 1})):  # fmt: skip
            for view in (x, last, x[::-1, :, :, ::-1]):
                found = []
                for backend in ("native", "reference"):
                    with ap.backends.use(backend):
                        found.append(ap.vjp(ap.pool, view, reduction, **windows, **more)[1](g))
                assert tolerance.same_bits(*found), (n, reduction, more, view.strides)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 2.5])
@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_gradients_of_powers(p, dtype):
    """Small exponents are multiplied out, others go by way of logarithms: the same numbers, tiny and huge included."""
    x = np.random.default_rng(9).standard_normal((2, 3, 12, 37))
    x[0, 0] *= 1e-3 if dtype == "float16" else 1e-6
    x[0, 1] *= 1e2 if dtype == "float16" else 1e6
    x[1, 0, :6] = 0
    x = x.astype(cases.dtype_of(dtype))
    windows = {"kernel_size": (3, 3), "stride": 2, "padding": 1}
    bound = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 2e-2}[dtype]

    def gradient(backend: str, x: np.ndarray, function, *args, **kwargs) -> np.ndarray:
        with ap.backends.use(backend):
            y, pullback = ap.vjp(function, x, *args, **windows, **kwargs)
            return pullback(np.ones_like(y)).astype(np.float64)

    norm = (ap.pool, "lp")
    exact = gradient("reference", x.astype(np.float64), *norm, norm_type=p)
    for backend in ("native", "reference"):
        got = gradient(backend, x, *norm, norm_type=p)
        np.testing.assert_allclose(got, exact, rtol=bound, atol=bound * 1e-2 if dtype == "float16" else 1e-30)
    # with signs, where sums cancel: what both make of the same y
    signed = [gradient(backend, x, ap.lp_pool2d, norm_type=p) for backend in ("native", "reference")]
    np.testing.assert_allclose(*signed, rtol=bound, atol=bound * 1e-2 if dtype == "float16" else 1e-30)


# Roots of other orders differ in their last bit from one backend to the other, and gradients with them.
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (4, 4, 0), (2, 3, 0)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "p"), [*itertools.product([*cases.HALVES, "float32"], [1, 2]), ("float32", 3), ("float32", 4)]
)
def test_gradients_of_small_powers_are_rounded_once(dtype, p, window):
    """They are computed in float64; halves would be rounded twice if they went by way of a float."""
    kernel, stride, padding = window
    windows = {"kernel_size": (kernel, kernel), "stride": stride, "padding": padding}
    values = ("numbers", "infinities and zeros", "NaN in each lane")
    for columns, which in itertools.product((5, 8, 16, 31, 33, 70), values):
        x = cases.special((2, 18, 7, columns), cases.dtype_of(dtype), which)
        last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        for view, function in itertools.product((x, last, x[:, :, :, ::-1]), ("lp", "lp_pool2d")):
            found = []
            for name in ("native", "reference"):
                with ap.backends.use(name), np.errstate(all="ignore"):
                    if function == "lp":
                        y, pullback = ap.vjp(ap.pool, view, "lp", norm_type=p, axes=(2, 3), **windows)
                    else:
                        y, pullback = ap.vjp(ap.lp_pool2d, view, p, **windows)
                    found.append(pullback(cases.special(y.shape, y.dtype, "numbers")).astype(np.float64))
            np.testing.assert_array_equal(*found, f"{columns, which, function, view.strides}")


# Windows whose gradients are put where their winners are, output after output; or gathered, pixel by pixel.
PUT = {
    "7x7, overlapping": ((2, 19, 23, 29), {"kernel_size": 7, "stride": 2, "padding": 3}),
    "5x5, apart": ((2, 19, 23, 29), {"kernel_size": 5, "stride": 6, "padding": 2}),
    "3x3 of narrow rows": ((3, 40, 9, 13), {"kernel_size": 3, "stride": 2}),
    "whole planes": ((3, 40, 7, 9), {"kernel_size": (7, 9)}),
    "whole large planes": ((2, 20, 70, 80), {"kernel_size": (70, 80)}),  # more taps than a table has
    "wide windows of few planes": ((1, 1, 300, 400), {"kernel_size": 31, "stride": 5, "padding": 15}),  # in blocks
    "volumes": ((2, 18, 7, 9, 11), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "volumes, two apart": ((2, 18, 7, 9, 11), {"kernel_size": (3, 2, 2), "stride": 2, "dilation": (2, 1, 3)}),
    "signals": ((3, 17, 401), {"kernel_size": 9, "stride": 4, "padding": 4}),
    "255 taps": ((2, 5, 40, 40), {"kernel_size": (15, 17), "stride": 3, "padding": (7, 8)}),
    "256 taps": ((2, 5, 40, 40), {"kernel_size": 16, "stride": 3, "padding": 8}),
}


def pulled(x: np.ndarray, function, *args, **kwargs) -> list[np.ndarray]:
    found = []
    for name in ("native", "reference"):
        with ap.backends.use(name):
            y, pullback = ap.vjp(function, x, *args, **kwargs)
            found.append(pullback(cases.special(y.shape, y.dtype, "infinities and zeros")))
    return found


def views(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same shape in memory of several orders, with gaps between rows, and backwards."""
    wide = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)[..., 1:-2]
    wide[...] = x
    return (
        x,
        np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        x[:, ::-1],
        x[..., ::-1],
        wide,
        x.T.copy().T,
    )


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("windows", PUT)
@pytest.mark.parametrize("reduction", ["max", "min"])
def test_gradients_put_where_the_winners_are(reduction, windows, dtype):
    shape, more = PUT[windows]
    for which in ("numbers", "infinities and zeros", "NaN in each lane"):
        x = cases.special(shape, cases.dtype_of(dtype), which)
        for view in views(np.round(x) if which == "numbers" else x):
            found = pulled(view, ap.pool, reduction, axes=tuple(range(2, x.ndim)), **more)
            assert tolerance.same_bits(*found), (which, view.strides)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("size", [1, (3, 5), (5, 3), (7, 7), (20, 30)], ids=str)  # bins that tile, differ, overlap
def test_gradients_of_adaptive_maxima(size, dtype):
    for shape in ((2, 19, 14, 21), (2, 19, 15, 23)):
        for view in views(np.round(cases.special(shape, cases.dtype_of(dtype), "numbers"))):
            assert tolerance.same_bits(*pulled(view, ap.adaptive_max_pool2d, size)), view.strides
