"""Threads, forks and interrupts: many callers at once, children of a process that has pooled, Ctrl-C.

A process chooses its threads once, and what goes wrong here hangs or dies: each case has a process of its own. What
they print is compared, so that none passes by doing nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

START = """
import os, signal, sys, threading, time
import numpy as np
import anypool as ap
from anypool.compat import flax, onnx, tf

rng = np.random.default_rng(0)

def calls():
    # (name, call): small ones that stay on their thread and large ones that are shared, of different shapes.
    found = []
    for k in range(16):
        x = rng.standard_normal((2, 3 + k, 41 + 7 * k, 67 + 5 * k)).astype(np.float32)
        t = rng.standard_normal((500 + 300 * k, 33 + k)).astype(np.float32)
        ends = [0, 3, 3, len(t) // 2, len(t)]
        mask, image = x > -0.5, np.ascontiguousarray(x[0])
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        y, places = ap.max_pool2d(x, 2, return_indices=True)
        # Of one image: its windows are gathered in NumPy, which takes long.
        of_windows = [("median", {}), ("std", {"correction": 1}), ("softmax", {}), ("quantile", {"q": 0.3})][k % 4]
        found += [
            lambda x=x, mask=mask, k=k: ap.pool(x, ("max", "mean")[k % 2], (3, 3), stride=2, mask=mask),
            lambda x=x, mask=mask: pulled(ap.avg_pool2d, x, 3, 2, 1, mask=mask, weights=mask + 0.5),
            lambda x=x, mask=mask: ap.max_pool2d(x, 2, mask=mask, nan="omit", return_indices=True, return_valid=True),
            lambda image=image, of=of_windows: pulled(ap.pool, image, of[0], (3, 3), **of[1]),
            lambda y=y, places=places, x=x: pulled(ap.max_unpool2d, y, places, 2, output_size=x.shape),
            lambda x=x, k=k: pulled(ap.fractional_max_pool2d, x, 2, (9, 11), rng=k),
            lambda x=x: pulled(onnx.max_pool, x, [3, 3], strides=[2, 2], return_indices=True),
            lambda last=last: pulled(tf.avg_pool, last, 3, 2, "SAME"),
            lambda last=last: flax.min_pool(last, (2, 3), (2, 2), "SAME"),
            lambda x=x: ap.max_pool2d(x, 3, 2, 1, return_indices=True),
            lambda x=x: ap.avg_pool2d(x, 5, 1, 2),
            lambda x=x: ap.pool(x, "logsumexp", (2, 3)),
            lambda x=x: pulled(ap.max_pool2d, x, 3, 2),
            lambda x=x: pulled(ap.lp_pool2d, x, 2.5, 3, 2),
            lambda x=x: ap.adaptive_avg_pool2d(np.moveaxis(x, 1, -1), 5, data_format="channels_last"),
            lambda t=t, ends=ends: ap.pool_tokens(t, ["mean", "max", "std"], offsets=ends),
            lambda t=t, ends=ends: pulled(ap.attention_pool, t, t[:2], offsets=ends),
        ]
    return found

def pulled(fn, x, *args, **kwargs):
    y, pullback = ap.vjp(fn, x, *args, **kwargs)
    y, *places = y if isinstance(y, tuple) else (y,)
    gradients = pullback(np.nan_to_num(y))
    return (y, *places, *(gradients if isinstance(gradients, tuple) else (gradients,)))

def same(a, b):
    a, b = (v if isinstance(v, tuple) else (v,) for v in (a, b))
    return len(a) == len(b) and all(np.array_equal(p, q, equal_nan=True) for p, q in zip(a, b))
"""

AT_ONCE = """
work = calls()
alone = [call() for call in work]
wrong, start = [], threading.Barrier(64)

def caller(number):
    start.wait()
    for turn in range(6):
        at = (number * 7 + turn * 29) % len(work)
        if not same(work[at](), alone[at]):
            wrong.append(at)

callers = [threading.Thread(target=caller, args=(n,)) for n in range(64)]
for c in callers: c.start()
for c in callers: c.join()
print("wrong", wrong, "threads", ap.backends.native.info()["threads"], ap.backends.native.info()["thread_pool"])
"""

FORK = """
import warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # threads there are: that is what is tested
work = calls()[-34:]
wanted = [call() for call in work]
children = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        ok = all(same(call(), w) for call, w in zip(work, wanted))
        if ok and n == 0:  # and a grandchild, after the child's own pool has run
            inner = os.fork()
            if inner == 0:
                os._exit(0 if same(work[0](), wanted[0]) else 2)
            ok = os.waitpid(inner, 0)[1] == 0
        os._exit(0 if ok else 1)
    children.append(pid)
ends = [os.waitpid(pid, 0)[1] for pid in children]
print("children", ends, "parent", all(same(call(), w) for call, w in zip(work, wanted)))
"""

# A fork while other threads are in the middle of their calls: their locks are taken in the child, for good.
FORK_AMID_CALLS = """
import warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
work = calls()[-17:]
wanted = [call() for call in work]
stop = threading.Event()

def busy():
    while not stop.is_set():
        for call in work: call()

callers = [threading.Thread(target=busy) for _ in range(3)]
for c in callers: c.start()
ends = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(same(call(), w) for call, w in zip(work, wanted)) else 1)
    ends.append(os.waitpid(pid, 0)[1])
stop.set()
for c in callers: c.join()
print("children", set(ends))
"""

# The same where it can be held still: the other thread is in the middle of a property that is computed once.
FORK_AMID_PROPERTY = """
import warnings
from anypool.cached import cached_property
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
begun, go = threading.Event(), threading.Event()

class Slow:
    @cached_property
    def value(self):
        begun.set()
        go.wait(30)
        return 1

caller = threading.Thread(target=lambda: Slow().value)
caller.start()
begun.wait(30)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    go.set()
    slow = Slow()
    os._exit(0 if slow.value == slow.value == 1 and slow.__dict__ == {"value": 1} else 1)
child = os.waitpid(pid, 0)[1]
go.set()
caller.join()
print("child", child)
"""

PROCESSES = """
import multiprocessing, warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
work = calls()[-34:]
wanted = [call() for call in work]

def one(at):
    return same(work[at](), wanted[at])

with multiprocessing.get_context("fork").Pool(3) as pool:
    print("right", sum(pool.map(one, range(len(work)))), "of", len(work))
"""

# 2**26 elements of one number take a second to raise to a power, and no memory.
INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
x = np.broadcast_to(np.float32(1.5), (1, 16, 2048, 2048))
small = rng.standard_normal((1, 3, 200, 300)).astype(np.float32)
after = calls()[:17]
before = ap.max_pool2d(small, 3, 2, 1)
wanted = [call() for call in after]
begun = time.perf_counter()
ap.pool(x[:, :1], "lp", (2048, 2048), norm_type=2.5)
planned = 16 * (time.perf_counter() - begun)
out = np.zeros((1, 16, 1, 1), np.float32)
begun = time.perf_counter()
threading.Timer(min(0.1, planned / 4), lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    ap.pool(x, "lp", (2048, 2048), norm_type=2.5, out=out)
    for _ in range(10_000_000): pass  # the signal arrives here at the latest
    print("no KeyboardInterrupt")
except KeyboardInterrupt:
    took = time.perf_counter() - begun
    usable = same(ap.max_pool2d(small, 3, 2, 1), before) and not ap.pool(x, "max", (64, 64)).std()
    usable = usable and all(same(call(), w) for call, w in zip(after, wanted))
    print("interrupted", took < 4 * planned + 30, "usable", usable, "out", len(np.unique(out)) == 1)
"""


def said(script: str, threads: int) -> str:
    env = os.environ | {"ANYPOOL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "error", "-c", START + script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    return done.stdout.strip()


def test_many_threads_at_once():
    assert said(AT_ONCE, 7) == "wrong [] threads 7 anypool"


@pytest.mark.parametrize("library", ["", "import torch\n"], ids=["own pool", "PyTorch's pool"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
class TestFork:
    @pytest.fixture(autouse=True)
    def torch_is_there(self, library):
        if library:
            pytest.importorskip("torch")

    def test_children_pool(self, library):
        assert said(library + FORK, 7) == "children [0, 0, 0, 0] parent True"

    def test_fork_amid_calls(self, library):
        assert said(library + FORK_AMID_CALLS, 3) == "children {0}"

    def test_pool_of_processes(self, library):
        assert said(library + PROCESSES, 3) == "right 34 of 34"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_fork_amid_property():
    assert said(FORK_AMID_PROPERTY, 3) == "child 0"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent so on Windows")
@pytest.mark.parametrize("threads", [1, 3])
def test_interrupt(threads):
    """Ctrl-C is an exception as soon as the call is done, and the next calls are right."""
    assert said(INTERRUPT, threads) == "interrupted True usable True out True"
