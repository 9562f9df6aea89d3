"""Timing: everything that is compared runs in turn, again and again, so that a machine that drifts drifts for all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[], object]


def interleaved(runs: dict[str, Run], seconds: float, least: int = 5) -> dict[str, float]:
    """Return the median time of each run in seconds, all of them taken in turn for about `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # warm: caches, page tables, lazily compiled code
        run()
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, run in runs.items():
            # A slow peer is not worth more than a few rounds.
            if len(times[name]) >= 3 and sum(times[name]) > seconds:
                continue
            run()  # what comes before left other data in the caches
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def last_level_cache() -> int:
    """Return the size of the last-level cache in bytes, 32 MB if the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=32 << 20)


def machine() -> str:
    """Return the processor's name and the number of cores this process may use."""
    name = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {last_level_cache() >> 20} MB last-level cache"


def copy_of(n_bytes: int) -> Run:
    """Return a copy that reads and writes `n_bytes` in all, on PyTorch's threads if it is there."""
    source = np.ones(max(1, n_bytes // 8), np.float32)
    target = np.empty_like(source)
    target.fill(0)
    try:
        import torch
    except ImportError:
        return lambda: np.copyto(target, source)
    a, b = torch.from_numpy(source), torch.from_numpy(target)
    return lambda: b.copy_(a)
