"""No kernel reads or writes outside its arrays: each array begins or ends at a page that must not be touched.

A kernel that does is killed by the system, so every case runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the pages are made as Linux makes them")

GUARD = """
import ctypes, mmap, sys
import numpy as np
import anypool as ap, cases, test_kernels

PAGE = mmap.PAGESIZE
c = ctypes.CDLL(None, use_errno=True)
maps = []

def between_pages(a, at_end):
    pages = -(-a.nbytes // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    maps.append(memory)
    whole = np.frombuffer(memory, np.uint8)
    first = (pages - 1) * PAGE - a.nbytes if at_end else PAGE
    b = whole[first : first + a.nbytes].view(a.dtype).reshape(a.shape)
    b[...] = a
    for page in (0, pages - 1):
        assert c.mprotect(ctypes.c_void_p(whole.ctypes.data + page * PAGE), PAGE, 0) == 0
    return b
"""

# Planes that windows tile.
WHOLE = {
    "1 of 7x7": ((3, 23, 7, 7), (1, 1)),
    "1 of 20x33": ((2, 9, 20, 33), (1, 1)),
    "7x7 of 56x56": ((2, 5, 56, 56), (7, 7)),
    "1 of 9x260": ((1, 3, 9, 260), (1, 1)),
}

SCRIPT = (
    f"{GUARD}\nWHOLE = {WHOLE}\n"
    + """
name, dtype = sys.argv[1:]
bins = WHOLE.get(name) or test_kernels.NARROW.get(name) or test_kernels.BINS.get(name)
if bins:
    x = np.abs(np.random.default_rng(0).standard_normal(bins[0]) * 50).astype(dtype)
    for kind in ("max", "avg"):
        of = getattr(ap, f"adaptive_{kind}_pool{len(bins[1])}d")
        wanted = of(x, bins[1])
        mask = np.random.default_rng(1).random(x.shape) < 0.7
        masked = of(x, bins[1], mask=mask, empty=1)
        for at_end in (True, False):
            guarded, out = between_pages(x, at_end), between_pages(np.zeros_like(wanted), at_end)
            of(guarded, bins[1], out=out)
            assert np.array_equal(out, wanted)
            of(guarded, bins[1], out=out, mask=between_pages(mask, at_end), empty=1)
            assert np.array_equal(out, masked)
    sys.exit()
coded = name in test_kernels.CODED
shape, *rest = (test_kernels.CODED if coded else test_kernels.WINDOWS)[name]
last, kwargs = (False, rest[0]) if coded else rest[:2]
x = np.abs(np.random.default_rng(0).standard_normal(shape) * 50).astype(cases.dtype_of(dtype))
x, axes = test_kernels.laid_out(x, last)
for reduction in ("max", "mean"):
    wanted = ap.pool(x, reduction, **axes, **kwargs)
    mask = np.random.default_rng(1).random(x.shape) < 0.7
    masked = ap.pool(x, reduction, **axes, **kwargs, mask=mask, empty=1)
    for at_end in (True, False):
        guarded = between_pages(x, at_end)
        out = between_pages(np.zeros_like(wanted), at_end)
        ap.pool(guarded, reduction, out=out, **axes, **kwargs)
        assert np.array_equal(out.astype(float), wanted.astype(float))
        ap.pool(guarded, reduction, out=out, **axes, **kwargs, mask=between_pages(mask, at_end), empty=1)
        assert np.array_equal(out.astype(float), masked.astype(float))
        if reduction == "max":
            ap.pool(guarded, reduction, return_indices=True, **axes, **kwargs)
        if dtype.startswith("float"):
            y, pullback = ap.vjp(ap.pool, guarded, reduction, out=out, **axes, **kwargs)
            pullback(between_pages(np.ones_like(y), at_end), out=between_pages(np.zeros_like(x), at_end))
"""
)


# Rows and planes with gaps, in memory that begins with the first element and ends with the last one.
VIEWS = (
    GUARD
    + """
dtype, = sys.argv[1:]
shape = n, channels, rows, columns = 3, 5, 23, 30
for gap, below in ((0, 3), (1, 0), (16, 0), (16, 5), (40, 2), (1000, 0)):
    pitch = columns + gap
    plane = (rows + below) * pitch
    flat = np.random.default_rng(0).standard_normal((n * channels - 1) * plane + (rows - 1) * pitch + columns) * 50
    strides = [np.dtype(dtype).itemsize * step for step in (channels * plane, plane, pitch, 1)]
    for at_end in (True, False):
        guarded = between_pages(np.abs(flat).astype(dtype), at_end)
        x = np.lib.stride_tricks.as_strided(guarded, shape, strides)
        copied = np.ascontiguousarray(x)
        for of in (
            lambda a: ap.max_pool2d(a, 3, 2, 1), lambda a: ap.avg_pool2d(a, 3, 2, 1), lambda a: ap.max_pool2d(a, 2),
            lambda a: ap.max_pool2d(a, 3, 1, 1), lambda a: ap.max_pool2d(a, 3, 2, return_indices=True)[1],
            lambda a: ap.max_pool3d(a, (2, 3, 3), (2, 2, 2)), lambda a: ap.max_pool2d(a[..., ::-1, :], 3, 2),
        ):
            assert np.array_equal(of(x), of(copied))
"""
)


def run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"


def names() -> list[str]:
    import test_kernels

    return [*test_kernels.WINDOWS, *test_kernels.CODED, *test_kernels.NARROW, *test_kernels.BINS, *WHOLE]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("name", names())
def test_nothing_outside(name, dtype):
    run(SCRIPT, name, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "float64"])
def test_nothing_outside_of_views(dtype):
    run(VIEWS, dtype)
