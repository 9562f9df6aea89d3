"""Timing: everything that is compared runs in turn, again and again, so that a machine that drifts drifts for all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[], object]

# What a short run needs to be at its best: its threads awake, its data in the caches. One untimed run is not enough: of
# runs of 0.12 ms on a virtual machine, the first after a pause takes 3 ms and the fourth still 0.3.
WARM = 0.02
# A run as long as this notices neither sleeping threads nor what the caches held: one is enough.
SLOW = 0.25
TURN = 5  # timed runs, back to back, and more of short ones: as many as fit into
SHORT = 0.002


def timed(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def quiet(most: float = 0.2) -> None:
    """Wait until no thread of this process is busy.

    Threads that wait for more work spin: 10 ms for OpenMP (PyTorch, and ours beside it), 50 ms for ONNX Runtime. On as
    many cores as threads they would slow down whoever comes next.
    """
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.01)  # the system counts a running thread's time in steps of 4 ms
        if time.process_time() - before < 0.002:
            return


def turn(run: Run) -> list[float]:
    """Return the times of a few runs, back to back, after some that are not timed."""
    quiet()
    end = time.perf_counter() + WARM
    first = timed(run)
    if first > SLOW:
        return [first]
    while time.perf_counter() < end:
        run()
    times: list[float] = []
    while len(times) < TURN or sum(times) < SHORT:
        times.append(timed(run))
    return times


def interleaved(runs: dict[str, Run], seconds: float, least: int = 3) -> dict[str, float]:
    """Return the median time of each run in seconds, all of them taken in turn for about `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for name in order:
            if sum(times[name]) < seconds / 4:  # one that is slow gets few turns
                times[name] += turn(runs[name])
        order.append(order.pop(0))  # who comes after a peer that gave back much memory has to fetch it anew
        rounds += 1
    return {name: statistics.median(t) for name, t in times.items()}


def threads() -> int:
    """Return how many threads everybody gets: the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# A server's whole socket shares its last-level cache. Of one of 300 MB, two cores copied 64 MB at 45 GB/s, 256 MB at 20
# and 1 GB at 18: data far larger than a core's share is in memory, and four times the whole would take minutes a row.
SHARE = 32 << 20


def last_level_cache() -> int:
    """Return what the cores in use may count as their last-level cache, in bytes; 32 MB if the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return min(max(sizes, default=SHARE), SHARE * threads())


def machine() -> str:
    """Return the processor's name and the number of cores this process may use."""
    name = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {threads()} cores, {last_level_cache() >> 20} MB last-level cache"


def copy_of(n_bytes: int) -> Run:
    """Return a copy that reads and writes `n_bytes` in all, on PyTorch's threads if it is there.

    Of the copies at hand PyTorch's is the fastest in the cache (4 MB: 37 µs; NumPy on one thread 50 µs) and as fast as
    two of NumPy's, on a thread each, beyond it.
    """
    source = np.ones(max(1, n_bytes // 8), np.float32)
    target = np.zeros_like(source)
    try:
        import torch
    except ImportError:
        return lambda: np.copyto(target, source)
    a, b = torch.from_numpy(source), torch.from_numpy(target)
    return lambda: b.copy_(a)
