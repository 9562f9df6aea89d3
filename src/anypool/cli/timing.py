"""How fast was it? Median times, and the floor to compare with: copying the same number of bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

BUDGET_SECONDS = 0.3  # a command must not feel slow because it measures itself
MAX_RUNS = 15
# Two buffers of 128 MiB are past every cache, so a larger copy is only longer, not slower per byte.
MAX_COPY = 2**27


@dataclass(frozen=True)
class Timing:
    """The median time of a pooling, and of copying as many bytes in the same process."""

    seconds: float
    runs: int
    bytes_moved: int
    copy_seconds: float

    @property
    def gb_per_s(self) -> float:
        """Bytes read and written, in 10^9 per second."""
        return self.bytes_moved / self.seconds / 1e9

    @property
    def of_copy(self) -> float:
        """1 is as fast as copying the same number of bytes."""
        return self.copy_seconds / self.seconds

    def __str__(self) -> str:
        return f"{readable(self.seconds)}, {self.gb_per_s:.3g} GB/s, {self.of_copy:.2f} of copy speed"


def readable(seconds: float) -> str:
    """0.0000123 -> '12.3 us'."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def median_seconds(work: Callable[[], object]) -> tuple[float, int]:
    """Time `work` until the budget is spent; return the median and how many runs it is of."""
    times: list[float] = []
    while len(times) < MAX_RUNS and (not times or sum(times) < BUDGET_SECONDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return max(statistics.median(times), 1e-9), len(times)


def copy_seconds(bytes_moved: int, threads: int) -> float:
    """Seconds to read half of `bytes_moved` and write the other half, the faster of one thread and `threads`."""
    size = max(1, bytes_moved // 2)
    length = min(size, MAX_COPY)
    source, target = np.ones(length, np.uint8), np.zeros(length, np.uint8)  # written once: no page faults below
    best, _ = median_seconds(lambda: np.copyto(target, source))
    if threads > 1:
        pieces = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
        with ThreadPoolExecutor(threads) as pool:

            def copy() -> None:
                for _ in pool.map(lambda piece: np.copyto(*piece), pieces):
                    pass

            best = min(best, median_seconds(copy)[0])
    return best * size / length


def measure(work: Callable[[], object], first: float, bytes_moved: int, threads: int) -> Timing:
    """Time `work`, which took `first` seconds when it ran cold, and the copy it is compared with.

    Work longer than the budget is not repeated: its first time counts, reading a memory-mapped file included.
    Nor is work on an empty array, which is none.
    """
    repeat = first < BUDGET_SECONDS and bytes_moved > 0
    seconds, runs = median_seconds(work) if repeat else (max(first, 1e-9), 1)
    return Timing(seconds, runs, bytes_moved, copy_seconds(bytes_moved, threads))
