"""What the table of rows does not show: the cost of a small call, and what a second thread gives."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Iterable

from benchmarks import ours
from benchmarks.measure import Run, interleaved, quiet, threads
from benchmarks.peers.pytorch import torch
from benchmarks.rows import SMALL, Row
from benchmarks.table import CACHED, prepared, sized

SMALL_CALL = Row("max", (1, 64, 7, 7), 3, 2, 1)
ROUNDS, CALLS = 7, 1000


def small_call(names: Iterable[str]) -> dict[str, float]:
    """Return the seconds of one call of `SMALL_CALL`, from Python, for us and each peer."""
    made = ours.subject(SMALL_CALL)
    runs: dict[str, Run] = {"anypool": made.into, "anypool, new output": made.fresh}
    peers, _ = prepared(made, names)
    runs |= {name: peer.run for name, peer in peers.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            quiet()
            timeit.timeit(run, number=CALLS)  # as in `measure.turn`
            times[name].append(timeit.timeit(run, number=CALLS) / CALLS)
    return {name: statistics.median(t) for name, t in times.items()}


def scaling(seconds: float) -> list[tuple[Row, float, float]]:
    """Return for rows in the cache the seconds with one thread and with all. Needs PyTorch, whose pool we use."""
    lines = []
    for row in dict.fromkeys(SMALL):
        small = sized(row, CACHED)
        if small is None:
            continue
        run = ours.subject(small).into
        times: dict[int, list[float]] = {1: [], threads(): []}
        for _ in range(3):
            for n, seen in times.items():
                torch().set_num_threads(n)
                seen.append(interleaved({"anypool": run}, seconds / 6)["anypool"])
        lines.append((small, statistics.median(times[1]), statistics.median(times[threads()])))
    return lines
