"""Results and gradients of more than 32 MB, which are written around the caches, whole lines of memory at a time."""

from __future__ import annotations

import numpy as np
import pytest

import anypool as ap
import cases
import tolerance

SAME = {"kernel_size": 3, "stride": 1, "padding": 1}


@pytest.mark.parametrize("at", [0, 1, 15], ids=lambda n: f"{n} elements behind a line")
@pytest.mark.parametrize(
    ("function", "dtype", "shape", "windows", "kernel"),
    [
        ("max", "float32", (305, 5, 81, 71), SAME, "planes at once"),
        ("mean", "float32", (305, 5, 81, 71), {"kernel_size": 5, "stride": 1, "padding": 2}, "planes at once"),
        ("min", "bfloat16", (12345, 31, 7, 7), SAME, "planes at once"),
        ("mean", "float64", (107, 90, 10, 60), SAME, "planes at once"),
        ("max", "float32", (17, 3, 401, 501), SAME, "fused rows"),
        ("mean", "float64", (17, 3, 201, 501), {"kernel_size": 3, "stride": (1, 1), "padding": (2, 1)}, "fused rows"),
        ("max", "float32", (45, 401, 1001), {"kernel_size": 2, "stride": (1, 2)}, "fused rows"),  # stored as usual
        ("max", "float32", (45, 401, 501, 1), {"axes": (1, 2), **SAME}, "fused rows"),
        ("min", "float32", (23, 150, 90, 33), {"axes": (1, 2), **SAME}, "fused rows"),  # pixels
        ("mean", "float32", (23, 150, 90, 33), {"axes": (1, 2), "kernel_size": 2, "stride": 1}, "fused rows"),
        ("max", "bfloat16", (45, 150, 90, 67), {"axes": (1, 2), "kernel_size": 5, "stride": 1}, "fused rows"),
        ("max", "float32", (5, 1500, 900, 3), {"axes": (1, 2), **SAME}, "fused rows"),  # pictures
        ("max", "float32", (305, 5, 81, 71), {"kernel_size": 13, "stride": 1, "padding": 6}, "wide rows"),
        ("min", "float32", (9, 1100, 1001), {"kernel_size": 31, "stride": 1, "padding": 15}, "wide rows"),
        ("max", "float32", (65, 160_001), {"axes": (1,), "kernel_size": 64, "stride": 1}, "wide rows"),
        ("max", "float32", (43_011, 14, 14), {"kernel_size": 7, "stride": 1, "padding": 3}, "planes in lanes"),
        ("lp", "float32", (23, 150, 90, 33), {"axes": (1, 2), **SAME}, "sums of pixels"),
        ("sum", "float32", (45, 401, 501), {"kernel_size": (3, 7), "stride": 1, "dilation": 2}, "rows"),
    ],
)
def test_results_written_around_the_caches(function, dtype, shape, windows, kernel, at):
    """More than 32 MB: the bits of its parts, wherever memory lines begin; and nothing beside it is written."""
    windows = {"axes": (len(shape) - 2, len(shape) - 1), **windows}
    x = cases.rng(1).standard_normal(shape, np.float32).astype(cases.dtype_of(dtype))
    x.reshape(-1)[:: x.size // 7] = np.nan  # what has been written when one is met is written again
    assert x.nbytes > 32 << 20
    said = ap.explain(ap.pool, x, function, **windows)
    if said.isa == "x86_64_v4":
        assert kernel in said.kernel
    size = said.output_shape
    memory = np.full(64 + int(np.prod(size)), 7, x.dtype)
    first = -memory.ctypes.data % 64 // memory.itemsize + at
    got = memory[first:][: int(np.prod(size))].reshape(size)
    ap.pool(x, function, out=got, **windows)
    for i in range(0, len(x), step := max(1, len(x) // 5)):
        assert tolerance.same_bits(ap.pool(x[i : i + step], function, **windows), got[i : i + step])
    assert (memory[:first] == 7).all()
    assert (memory[first + got.size :] == 7).all()


@pytest.mark.parametrize("at", [0, 1, 15], ids=lambda n: f"{n} elements behind a line")
@pytest.mark.parametrize("gap", [0, 3, 16], ids=lambda n: f"rows {n} apart")
@pytest.mark.parametrize(
    ("reduction", "dtype", "shape", "window"),
    [
        ("mean", "float32", (301, 181, 163), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("sum", "float64", (151, 97, 301), {"kernel_size": 2, "stride": 2}),
        ("max", "float32", (301, 181, 163), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("max", "float16", (12345, 7, 7, 31), {"kernel_size": 2, "stride": 2}),  # rows shorter than a line
        ("min", "float32", (3, 3001, 1001), {"kernel_size": (2, 3), "stride": (1, 2)}),
        ("mean", "float32", (3, 3001, 1001), {"kernel_size": 8, "stride": 8, "ceil_mode": True}),  # repeated rows
        ("sum", "bfloat16", (12345, 7, 7, 31), {"kernel_size": (1, 4), "stride": (2, 3)}),
        ("mean", "float64", (17, 90, 100, 31), {"kernel_size": 3, "stride": 3, "axes": (1, 2)}),  # channels last
        ("lp", "float32", (3, 3001, 1001), {"kernel_size": 4, "stride": 4}),
        ("max", "float32", (305, 5, 81, 71), {"kernel_size": 3, "stride": 1, "padding": 1}),  # planes at once
        ("mean", "float32", (305, 5, 81, 71), {"kernel_size": 3, "stride": 1, "padding": 1}),
        ("sum", "bfloat16", (12345, 31, 7, 7), {"kernel_size": 3, "stride": 1, "padding": 1}),
        ("max", "float64", (57, 90, 90, 10), {"kernel_size": 3, "stride": 1, "padding": 1, "axes": (1, 2)}),
        ("mean", "float32", (23, 150, 90, 33), {"kernel_size": 3, "stride": 2, "padding": 1, "axes": (1, 2)}),
        ("sum", "bfloat16", (45, 150, 90, 33), {"kernel_size": 5, "stride": 2, "padding": 1, "axes": (1, 2)}),
        ("max", "float32", (301, 181, 163), {"kernel_size": (181, 163)}),  # put in blocks, codes of two bytes
        ("max", "float32", (301, 181, 163), {"kernel_size": 7, "stride": 3, "padding": 3}),
        ("min", "float16", (12345, 7, 7, 31), {"kernel_size": (7, 31)}),
        ("max", "bfloat16", (601, 181, 163), {"kernel_size": 5, "stride": 2, "padding": 2}),
        ("max", "float32", (23, 150, 90, 33), {"kernel_size": 3, "stride": 2, "padding": 1, "axes": (1, 2)}),  # pixels
        ("max", "float32", (23, 150, 90, 33), {"kernel_size": 13, "stride": 1, "padding": 6, "axes": (1, 2)}),
        ("mean", "float16", (70001, 17, 15), {"kernel_size": (17, 15)}),  # whole planes, short and long
        ("sum", "float32", (4, 3000, 1001), {"kernel_size": (3000, 1001)}),
    ],
)
def test_gradients_written_around_the_caches(reduction, dtype, shape, window, gap, at):
    """More than 32 MB: the bits of its parts, wherever memory lines begin; and nothing beside it is written."""
    window = {"axes": (len(shape) - 2, len(shape) - 1), **window}
    x = cases.rng(1).standard_normal(shape, np.float32).astype(dtype)
    assert x.nbytes > 32 << 20
    y, pullback = ap.vjp(ap.pool, x, reduction, **window)
    g = cases.rng(2).standard_normal(y.shape, np.float32).astype(dtype)
    whole = (*shape[:-1], shape[-1] + gap)
    memory = np.full(64 + np.prod(whole), 7, dtype)
    first = -memory.ctypes.data % 64 // memory.itemsize + at
    wide = memory[first : first + np.prod(whole)].reshape(whole)
    got = wide[..., : shape[-1]]
    pullback(g, out=got)
    for i in range(0, len(x), step := max(1, len(x) // 3)):
        part = slice(i, i + step)
        _, some = ap.vjp(ap.pool, x[part], reduction, **window)
        assert tolerance.same_bits(some(g[part]), got[part])
    assert (wide[..., shape[-1] :] == 7).all()
    assert (memory[:first] == 7).all()
    assert (memory[first + wide.size :] == 7).all()
