"""No array of the input's size is made besides the output: no copy, no padding, no zero fill.

Each case runs in its own process: tracemalloc sees every NumPy array, the peak resident set sees
what native code takes. The input is far larger than everything that may be added to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import anypool as ap
from anypool import memory

MB = 1 << 20
INPUT = 128 * MB
SLACK = 20 * MB  # thread stacks, per-thread rows, lazily loaded modules

PROBE = """
import json, resource, sys, tracemalloc
import numpy as np
import anypool as ap

def probe(make, call):
    x = make()
    ap.max_pool2d(np.ones((1, 1, 8, 8), x.dtype), 2)  # threads and modules are there
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    tracemalloc.start()
    kept = call(x)
    _, peak = tracemalloc.get_traced_memory()
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    output = sum(a.nbytes for a in (kept if isinstance(kept, tuple) else (kept,)))
    print(json.dumps({"input": x.nbytes, "peak": peak, "rise": rise, "output": output}))
"""

SHAPE = "(4, 64, 362, 362)"  # 128 MiB of float32
FLOAT32 = f"np.ones({SHAPE}, np.float32)"
HALF = "np.ones((8, 64, 362, 362), np.float16)"
INPUTS = {
    "float32": FLOAT32,
    "float64": "np.ones((2, 64, 362, 362))",
    "float16": HALF,
    "int8": "np.ones((16, 64, 362, 362), np.int8)",
    "transposed": f"{FLOAT32}.transpose(0, 1, 3, 2)",
    "channels last memory": "np.moveaxis(np.ones((4, 362, 362, 64), np.float32), -1, 1)",
    "reversed": f"{FLOAT32}[::-1, :, ::-1, ::-1]",
    "every second column": "np.ones((4, 64, 362, 724), np.float32)[..., ::2]",
    "plane": "np.ones((1, 1, 5792, 5792), np.float32)",
    "bfloat16": "np.ones((8, 64, 362, 362), __import__('ml_dtypes').bfloat16)",
}
STEM = "ap.max_pool2d(x, 3, 2, 1)"
CASES = [(STEM, name) for name in INPUTS] + [
    ("ap.max_pool2d(x, 3, 2, 1, return_indices=True)", "float32"),
    ("ap.max_pool2d(x, 2)", "transposed"),
    ("ap.max_pool2d(x, 13, 8, 6)", "float32"),
    ("ap.max_pool2d(x, 3, 2, 1, 2)", "channels last memory"),
    ("ap.avg_pool2d(x, 3, 2, 1)", "float32"),
    ("ap.avg_pool2d(x, 3, 2, 1)", "bfloat16"),
    ("ap.avg_pool2d(x, 3, 2, 1)", "transposed"),
    ("ap.avg_pool2d(x, 4)", "channels last memory"),
    ("ap.avg_pool2d(x, 4)", "int8"),
    ("ap.pool(x, 'sum', (4, 4))", "float16"),
    ("ap.pool(x, 'lp', (4, 4))", "float32"),
    ("ap.pool(x, 'logsumexp', (4, 4))", "float32"),
    ("ap.pool(x, 'min', 2, axes=(2, 3), padding='same')", "reversed"),
    ("ap.adaptive_avg_pool2d(x, 7)", "float32"),
    ("ap.adaptive_max_pool2d(x, 7)", "channels last memory"),
    ("ap.global_avg_pool(x)", "float32"),
    ("ap.global_avg_pool(x)", "bfloat16"),
    ("ap.global_max_pool(x)", "channels last memory"),
    ("ap.global_avg_pool(x)", "plane"),
    ("ap.max_pool2d(np.moveaxis(x, 1, -1), 3, 2, 1, data_format='channels_last')", "channels last memory"),
    # the gradient is as large as the input and the one such array; winners are a byte each
    ("ap.vjp(ap.max_pool2d, x, 4)[1](np.ones((4, 64, 90, 90), np.float32))", "float32"),
    ("ap.vjp(ap.avg_pool2d, x, 4)[1](np.ones((4, 64, 90, 90), np.float32))", "channels last memory"),
]


@pytest.mark.parametrize(("call", "name"), CASES)
def test_peak(call, name):
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    script = PROBE + f"probe(lambda: {INPUTS[name]}, lambda x: {call})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["input"] >= 0.95 * INPUT
    gradient = 8 * MB * 5 if "vjp" in call else 0  # y, its gradient, the winners
    for what in ("peak", "rise"):
        extra = seen[what] - seen["output"] - gradient
        assert extra < SLACK, f"{call} on {name}: {what} has {extra / MB:.0f} MiB besides the output: {seen}"


def test_huge_virtual_input():
    """A 0-stride array far larger than what may be allocated is pooled in place."""
    x = np.broadcast_to(np.float32(2.5), (1, 1, 1 << 14, 1 << 14))
    assert ap.max_pool2d(x, 1 << 13).tolist() == [[[[2.5, 2.5], [2.5, 2.5]]]]


LARGE_INPUT = np.random.default_rng(0).standard_normal((4, 32, 362, 362), np.float32)


def test_memory_of_a_large_result_serves_the_next():
    first = ap.max_pool2d(LARGE_INPUT, 3, 1, 1)
    assert first.nbytes >= memory.LARGE
    at, wanted = first.ctypes.data, first.copy()
    del first
    again = ap.max_pool2d(LARGE_INPUT, 3, 1, 1)
    assert again.ctypes.data == at
    np.testing.assert_array_equal(again, wanted)


def test_memory_of_a_large_result_lives_as_long_as_a_view():
    y = ap.max_pool2d(LARGE_INPUT, 3, 1, 1)
    at, view, wanted = y.ctypes.data, y[1, :, ::2], y[1, :, ::2].copy()
    del y
    other = ap.max_pool2d(-LARGE_INPUT, 3, 1, 1)
    assert other.ctypes.data != at
    np.testing.assert_array_equal(view, wanted)


def test_large_results_keep_the_axis_order():
    x = np.moveaxis(np.ascontiguousarray(np.moveaxis(LARGE_INPUT, 1, -1)), -1, 1)
    y = ap.max_pool2d(x, 3, 1, 1)
    assert y.strides == x.strides
    np.testing.assert_array_equal(y, ap.max_pool2d(LARGE_INPUT, 3, 1, 1))


def test_kept_memory_is_bounded():
    results = [ap.max_pool2d(LARGE_INPUT, 3, 1, 1) for _ in range(memory.KEPT_BLOCKS + 3)]
    assert len({r.ctypes.data for r in results}) == len(results)
    results.clear()
    assert len(memory._kept) <= memory.KEPT_BLOCKS
    assert sum(map(len, memory._kept)) <= memory.KEPT_BYTES


def test_large_results_of_many_threads():
    wanted = [ap.avg_pool2d(LARGE_INPUT * k, 3, 1, 1) for k in range(4)]

    def check(turn: int) -> bool:
        k = turn % 4
        return np.array_equal(ap.avg_pool2d(LARGE_INPUT * k, 3, 1, 1), wanted[k])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(16)))


def test_more_than_there_is():
    x = np.broadcast_to(np.float32(1), (1 << 20, 1, 1 << 12, 1 << 12))  # 64 TB of results
    with pytest.raises(MemoryError, match="TiB"):
        ap.max_pool2d(x, 1)
