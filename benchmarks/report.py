"""The page docs/benchmarks.md and the excerpt in README.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anypool
from anypool.backends import native
from benchmarks.calls import SMALL_CALL
from benchmarks.measure import machine
from benchmarks.peers import PEERS, version
from benchmarks.rows import CHANNELS_FIRST, QUICK, Family, Row
from benchmarks.table import CACHED, LARGER, Result, milliseconds

PICTURE = "pictures/size.png"
ABOUT = f"""\
Written by `make bench`. All times of a row are medians of runs taken in turn in one process, with as many threads for
everybody; a result that differs from ours is not timed. Ours is compared with the NumPy backend first.

- **size** {LARGER}: about four times the last-level cache, of which 32 MB count for each core in use, as others share
  it; {CACHED}: an eighth of that, so that it stays there between runs. Batch and channels are scaled, planes never. A
  turn begins when no thread is busy, and with untimed runs that wake threads and fill the cache, the copy's like any
  other.
- Where the fastest peer is closer than a quarter, on either side, a row is measured anew for four times as long, and
  only that counts.
- **ms**: ours with `out=`; **new**: with a result allocated in the call.
- **of copy**: the time in which a copy reads and writes as many bytes as the pooling has to, divided by ours with
  `out=`. Bold: below what the family aims at.
- **×**: the time of a peer divided by ours. Peers that write into the caller's memory (ONNX Runtime, OpenVINO, OpenCV)
  are compared with ours that does, too, the others with *new*. Bold: the peer is faster.
- PyTorch is eager and gets the memory format of the row, as do torch.compile, OpenVINO and JAX. An empty cell: the peer
  cannot run the row.
"""


@dataclass
class Report:
    """All that was measured."""

    families: list[tuple[Family, list[Result]]] = field(default_factory=list)
    small: dict[str, float] = field(default_factory=dict)
    threads: list[tuple[Row, float, float]] = field(default_factory=list)
    curves: list[list[Result]] = field(default_factory=list)

    @property
    def results(self) -> list[Result]:
        return [r for _, results in self.families for r in results]


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    """Return a Markdown table."""
    head = list(head)
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]


def mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def ratio(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.2f}" if value < 1.995 else f"{value:.1f}"
    return f"**{text}**" if value < 1 else text


def target(family: Family, size: str) -> float | None:
    return family.larger if size == LARGER else family.cached


def names_in(results: list[Result]) -> list[str]:
    return [name for name in PEERS if any(name in r.seconds for r in results)]


def family_lines(family: Family, results: list[Result]) -> list[str]:
    """Return one family's heading, note and table."""
    names, wide = names_in(results), any("3 wide" in r.seconds for r in results)
    head = ["work", "size", "shape", "ms", "new", "of copy", *["× 3-wide"] * wide]
    head += [f"{n} ms" for n in names] + ["× PyTorch", "× best"]
    lines = []
    for r in results:
        aim, best = target(family, r.size), r.best()
        share = f"{r.efficiency:.2f}"
        cells = [
            r.row.name, r.size, "×".join(map(str, r.row.shape)), milliseconds(r.seconds["anypool"]),
            milliseconds(r.seconds["fresh"]), f"**{share}**" if aim and r.efficiency < aim else share,
        ]  # fmt: skip
        if wide:
            multiple, most = r.seconds["anypool"] / r.seconds["3 wide"], family.most_of_narrow or math.inf
            cells.append(f"**{multiple:.2f}**" if multiple > most else f"{multiple:.2f}")
        cells += [milliseconds(r.seconds.get(n)) for n in names]
        cells += [ratio(r.times_as_fast("PyTorch")), ratio(best and best[1])]
        lines.append(cells)
    aims = [f"{aim} of a copy at {size}" for size in (LARGER, CACHED) if (aim := target(family, size))]
    if family.most_of_narrow:
        aims.append(f"{family.most_of_narrow} times the 3-wide window")
    note = [family.note] * bool(family.note) + [f"Aim: {', '.join(aims)}."] * bool(aims)
    return [f"## {family.title}", "", *([" ".join(note), ""] if note else []), *table(head, lines), ""]


def summary(report: Report) -> list[str]:
    """Return what the tables say in a few sentences."""
    lines = []
    for size, what in ((LARGER, "larger than the cache"), (CACHED, "in the cache")):
        rows = [r for r in report.results if r.size == size and r.row.order == CHANNELS_FIRST and not r.row.fixed]
        rows = [r for r in rows if r.row.mode == "forward" and r.row.dtype == "float32"]
        eager = [ratio for r in rows if (ratio := r.times_as_fast("PyTorch")) is not None]
        best = [found[1] for r in rows if (found := r.best()) is not None]
        if eager:
            lines.append(
                f"- Data {what}, float32, channels-first: {mean(eager):.1f} times as fast as PyTorch eager and "
                f"{mean(best):.1f} times as fast as the best peer of each row (geometric means of {len(eager)} rows; "
                f"{min(eager):.1f} to {max(eager):.0f} and {min(best):.1f} to {max(best):.0f}). At the speed of "
                f"a copy in every row they would be {mean(at_copy_speed(rows, 'PyTorch')):.1f} and "
                f"{mean(at_copy_speed(rows, None)):.1f}."
            )
    aimed = [(r, aim) for family, results in report.families for r in results if (aim := target(family, r.size))]
    if aimed:
        met = sum(r.efficiency >= aim for r, aim in aimed)
        lines.append(f"- {met} of {len(aimed)} rows reach the share of copy speed they aim at.")
    slower = [r for r in report.results if (found := r.best()) and found[1] < 1]
    compared = sum(r.best() is not None for r in report.results)
    if compared:
        lines.append(f"- A peer is faster on {len(slower)} of {compared} rows.")
    if report.small:
        lines.append(
            f"- One call of {SMALL_CALL.name} on {'×'.join(map(str, SMALL_CALL.shape))}: "
            + ", ".join(f"{name} {t * 1e6:.1f} µs" for name, t in report.small.items()) + "."
        )  # fmt: skip
    if report.threads:
        gains = [one / both for _, one, both in report.threads]
        lines.append(f"- From one thread to all, in the cache: {mean(gains):.2f} times as fast (geometric mean).")
    return lines


def at_copy_speed(rows: list[Result], peer: str | None) -> list[float]:
    """Return how many times as fast as a peer, or as the best one, what only moves the bytes would be."""
    ratios = [r.times_as_fast(peer) if peer else (r.best() or (None, None))[1] for r in rows]
    return [ratio / r.efficiency for r, ratio in zip(rows, ratios, strict=True) if ratio is not None]


def environment() -> list[str]:
    """Return the machine and the versions."""
    info = native.info()
    installed = {p: version(p) for p in ("numpy", *(peer.packages[0] for peer in PEERS.values()))}
    missing = [name for name, peer in PEERS.items() if peer.version() is None]
    lines = [
        f"Machine: {machine()}.",
        f"anypool {anypool.__version__} ({info['isa']}, {info['threads']} threads), "
        + ", ".join(f"{p} {v}" for p, v in installed.items() if v) + ".",
    ]  # fmt: skip
    return lines + [f"Not installed: {', '.join(missing)}."] * bool(missing)


def page(report: Report) -> str:
    """Return the page docs/benchmarks.md."""
    lines = ["# Benchmarks", "", ABOUT, *environment(), "", *summary(report), ""]
    for family, results in report.families:
        lines += family_lines(family, results)
    lines += slower_lines(report) + thread_lines(report) + growth_lines(report) + refused_lines(report)
    return "\n".join(lines)


def slower_lines(report: Report) -> list[str]:
    rows = [(r, *found) for r in report.results if (found := r.best()) and found[1] < 1]
    if not rows:
        return []
    lines = [(r.row.name, r.row.mode, r.size, name, ratio(times)) for r, name, times in rows]
    return ["## Where a peer is faster", "", *table(["work", "kind", "size", "peer", "×"], lines), ""]


def thread_lines(report: Report) -> list[str]:
    if not report.threads:
        return []
    lines = [
        (row.name, "×".join(map(str, row.shape)), milliseconds(one), milliseconds(both), f"{one / both:.2f}")
        for row, one, both in report.threads
    ]
    return ["## Threads", "", *table(["work", "shape", "one thread ms", "all ms", "×"], lines), ""]


def growth_lines(report: Report) -> list[str]:
    """Return the picture of size, and the numbers behind it."""
    if not report.curves:
        return []
    lines = ["## Size", "", f"![GB/s over bytes for {', '.join(c[0].row.name for c in report.curves)}]({PICTURE})", ""]
    for curve in report.curves:
        names = names_in(curve)
        cells = [
            (r.row.name, "×".join(map(str, r.row.shape)), f"{r.moved / 1e3:.0f}",
             *(milliseconds(r.seconds.get(n)) for n in ("anypool", "copy", *names)))
            for r in curve
        ]  # fmt: skip
        lines += [*table(["work", "shape", "kB", "ms", "copy ms", *(f"{n} ms" for n in names)], cells), ""]
    return lines


def refused_lines(report: Report) -> list[str]:
    everywhere = report.results + [r for curve in report.curves for r in curve]
    lines = [(r.row.name, r.size, name, why) for r in everywhere for name, why in r.refused.items()]
    if not lines:
        return []
    return ["## Not reported", "", *table(["work", "size", "peer", "because"], lines), ""]


def excerpt(text: str, report: Report) -> str:
    """Return the README with the summary and the best known rows between its marks."""
    start, end = "<!-- benchmark:start -->", "<!-- benchmark:end -->"
    before, rest = text.split(start)
    after = rest.split(end)[1]
    shown = [r for r in report.results if r.size == LARGER and r.row.mode == "forward" and _known(r.row)]
    lines = []
    for r in shown:
        best = r.best()
        lines.append([
            r.row.name, "×".join(map(str, r.row.shape)), milliseconds(r.seconds["anypool"]), f"{r.efficiency:.2f}",
            ratio(r.times_as_fast("PyTorch")), f"{ratio(best[1])} ({best[0]})" if best else "",
        ])  # fmt: skip
    body = [
        *summary(report), "", *table(["work", "shape", "ms", "of copy", "× PyTorch", "× best peer"], lines), "",
        *environment(), "All rows, and what the columns mean: [docs/benchmarks.md](docs/benchmarks.md).",
    ]  # fmt: skip
    return "\n".join([before + start, *body, end + after])


def _known(row: Row) -> bool:
    return row.dtype == "float32" and any(
        row.resized(1, 1) == q.resized(1, 1) and row.order == CHANNELS_FIRST for q in QUICK
    )


def write(report: Report, out: Path) -> None:
    """Write the page, the picture beside it and the excerpt in README.md."""
    from benchmarks.growth import picture

    (out.parent / PICTURE).parent.mkdir(parents=True, exist_ok=True)  # after half an hour is no time to ask for it
    if report.curves:
        picture(report.curves, out.parent / PICTURE)
    out.write_text(page(report))
    readme = Path("README.md")
    readme.write_text(excerpt(readme.read_text(), report))
