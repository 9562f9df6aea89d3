"""One row of the table: sized, checked, measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks import ours
from benchmarks.measure import Run, copy_of, interleaved, last_level_cache
from benchmarks.peers import PEERS
from benchmarks.peers.prepared import Prepared, pointed_at
from benchmarks.rows import Row

# Bytes moved, as a multiple of the last-level cache. An eighth, because a virtual machine shares the cache: of 32 MB,
# data of 8 MB is measurably not there any more at the next run.
LARGER, CACHED = "D", "C"
MULTIPLES = {LARGER: 4.0, CACHED: 0.125}
# Where the fastest peer is as close as this, a few turns do not tell who is faster: the row is measured anew, so many
# times as long, and only that counts.
CLOSE, LONGER = 1.25, 4
MOST = {LARGER: math.inf, CACHED: 0.25}  # a row whose smallest form moves more than this has no such size


@dataclass
class Result:
    """One measured row. `seconds` has ours with out= ("anypool") and without ("fresh"), "copy", and the peers."""

    row: Row
    size: str
    moved: int
    seconds: dict[str, float]
    refused: dict[str, str] = field(default_factory=dict)  # peers that gave another result, or failed

    @property
    def efficiency(self) -> float:
        return self.seconds["copy"] / self.seconds["anypool"]

    def times_as_fast(self, peer: str) -> float | None:
        """Return the peer's time over ours: into memory of the caller's if the peer can do that, else a new array."""
        if peer not in self.seconds:
            return None
        return self.seconds[peer] / self.seconds["anypool" if PEERS[peer].into else "fresh"]

    def best(self, names: Iterable[str] = PEERS) -> tuple[str, float] | None:
        """Return the peer that is fastest beside us."""
        ratios = {name: ratio for name in names if (ratio := self.times_as_fast(name)) is not None}
        return min(ratios.items(), key=lambda item: item[1]) if ratios else None

    def line(self) -> str:
        """Return what a terminal shows."""
        best = self.best()
        words = [
            f"{self.row.name:36} {self.size:1} {'×'.join(map(str, self.row.shape)):>19}",
            f"{milliseconds(self.seconds['anypool']):>7} ms, new {milliseconds(self.seconds['fresh']):>7},",
            f"{self.efficiency:5.2f} of copy",
        ]
        if best:
            words.append(f"{best[1]:5.2f} × {best[0]}")
        if "3 wide" in self.seconds:
            words.append(f"{self.seconds['anypool'] / self.seconds['3 wide']:5.2f} × 3-wide")
        return " ".join(words + [f"[{name}: {why}]" for name, why in self.refused.items()])


def milliseconds(t: float | None) -> str:
    """Return three digits."""
    if t is None:
        return ""
    t *= 1e3
    return f"{t:.0f}" if t >= 99.95 else f"{t:.{max(0, 2 - math.floor(math.log10(t)))}f}"


def per_plane(row: Row) -> int:
    """Return the bytes that one channel of one sample moves."""
    itemsize = ours.dtype_of(row.dtype).itemsize
    outputs = math.prod(row.out_spatial())
    beside = {"indices": 8, "training": ours.code_bytes(row), "backward": ours.code_bytes(row)}.get(row.mode, 0)
    return math.prod(row.spatial) * (itemsize + (row.mode == "mask")) + outputs * (itemsize + beside)


def sized(row: Row, size: str) -> Row | None:
    """Return the row with the batch, and if one sample is too much the channels, that the size asks for."""
    if row.fixed:
        return row if size == LARGER else None
    planes = MULTIPLES[size] * last_level_cache() / per_plane(row)
    if planes < 1:
        return row.resized(1, 1) if per_plane(row) <= MOST[size] * last_level_cache() else None
    channels = row.shape[1]
    return row.resized(max(1, round(planes / channels)), min(channels, int(planes)))


def prepared(made: ours.Subject, names: Iterable[str]) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Return the peers that run the row and agree with us, and why others do not. Keep them: they own their outputs."""
    ready: dict[str, Prepared] = {}
    refused: dict[str, str] = {}
    wanted = made.results
    if made.row.mode == "mask":
        return ready, refused  # no library has one
    if made.row.mode == "indices":
        wanted = (wanted[0], pointed_at(made.x, wanted[1]))
    for name in names:
        try:
            peer = PEERS[name].prepare(made)
            difference = peer and ours.disagreement(made.row, peer.results(), wanted)
        except Exception as error:  # another library's fault must not end the run; the report names it
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        if difference:
            refused[name] = difference
        elif peer:
            ready[name] = peer
    return ready, refused


def measured(row: Row, size: str, names: Iterable[str], seconds: float, narrow: bool = False) -> Result:
    """Check that all agree, then time them in turn. `narrow` adds the 3-wide window on the same data."""
    made = ours.subject(row)
    runs: dict[str, Run] = {"anypool": made.into, "copy": copy_of(made.moved)}
    if made.fresh is not made.into:
        runs["fresh"] = made.fresh
    if narrow:
        three = ours.subject(dataclasses.replace(row, kernel=3, padding=min(row.padding, 1)))
        runs["3 wide"] = three.into
    peers, refused = prepared(made, names)
    runs |= {name: peer.run for name, peer in peers.items()}
    for patience in (1, LONGER):
        times = interleaved(runs, seconds * patience)
        times.setdefault("fresh", times["anypool"])
        result = Result(row, size, made.moved, times, refused)
        best = result.best()
        if best is None or not 1 / CLOSE < best[1] < CLOSE:
            break
    return result
