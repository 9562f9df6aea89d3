"""No kernel reads or writes outside its arrays: each array begins or ends at a page that must not be touched.

A kernel that does is killed by the system, so every case runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the pages are made as Linux makes them")

SCRIPT = """
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

name, dtype = sys.argv[1:]
bins = test_kernels.NARROW.get(name) or test_kernels.BINS.get(name)
if bins:
    x = np.abs(np.random.default_rng(0).standard_normal(bins[0]) * 50).astype(dtype)
    for kind in ("max", "avg"):
        of = getattr(ap, f"adaptive_{kind}_pool{len(bins[1])}d")
        wanted = of(x, bins[1])
        for at_end in (True, False):
            out = between_pages(np.zeros_like(wanted), at_end)
            of(between_pages(x, at_end), bins[1], out=out)
            assert np.array_equal(out, wanted)
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


def names() -> list[str]:
    import test_kernels

    return [*test_kernels.WINDOWS, *test_kernels.CODED, *test_kernels.NARROW, *test_kernels.BINS]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("name", names())
def test_nothing_outside(name, dtype):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, dtype], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
