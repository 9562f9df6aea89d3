"""Measure, print and write the benchmark table."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import anypool
from anypool.backends import native
from benchmarks.measure import copy_of, interleaved, last_level_cache, machine
from benchmarks.peers import PEERS, version

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the rows stand with the tests' cases
from cases import BENCHMARKS, IMAGE_BENCHMARKS, Row

BATCHED = {"D": 4.0, "C": 0.25}  # bytes moved, as a multiple of the last-level cache


@dataclass
class Result:
    """One measured row."""

    row: Row
    size: str  # "D": larger than the last-level cache, "C": fits it
    shape: tuple[int, ...]
    moved: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        return self.seconds["copy"] / self.seconds["anypool"]

    @property
    def peers(self) -> dict[str, float]:
        return {name: t for name, t in self.seconds.items() if name in PEERS}


def sized(row: Row, size: str) -> tuple[int, ...]:
    """Return the row's shape with a batch that makes it as large as the size says."""
    shape = row.shape
    if row.function == "pool":
        return shape
    per_sample = math.prod(shape[1:]) * np.dtype(row.dtype).itemsize
    wanted = BATCHED[size] * last_level_cache()
    return (max(1, round(wanted / per_sample)), *shape[1:])


def measure(row: Row, size: str, seconds: float) -> Result:
    """Check that all agree, then time them in turn."""
    shape = sized(row, size)
    rng = np.random.default_rng(0)
    if np.dtype(row.dtype).kind == "f":
        x = rng.standard_normal(shape, dtype=np.float32).astype(row.dtype)
    else:
        x = rng.integers(0, 255, shape).astype(row.dtype)
    function = getattr(anypool, row.function)
    kwargs: dict[str, Any] = dict(row.kwargs)
    y = function(x, **kwargs)
    result = Result(row, size, shape, x.nbytes + y.nbytes)
    runs = {
        "anypool": lambda: function(x, out=y, **kwargs),
        "fresh": lambda: function(x, **kwargs),
        "copy": copy_of(result.moved),
    }
    for name, (package, prepare) in PEERS.items():
        prepared = prepare(row.function, x, kwargs) if version(package) else None
        if prepared is None:
            continue
        run, outcome = prepared
        if not np.allclose(outcome().astype(np.float64), y.astype(np.float64), rtol=1e-5, atol=1e-5):
            raise SystemExit(f"{row.name}: {name} gives another result; nothing is reported")
        runs[name] = run
    result.seconds = interleaved(runs, seconds)
    return result


def milliseconds(t: float | None) -> str:
    return "" if t is None else f"{t * 1e3:.3g}"


def table(results: list[Result]) -> list[str]:
    """Return the results as a Markdown table."""
    names = [n for n in PEERS if any(n in r.seconds for r in results)]
    head = [
        "work",
        "size",
        "shape",
        "anypool ms",
        "new output ms",
        "of copy",
        *(f"{n} ms" for n in names),
        "× PyTorch",
        "× best",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in results:
        ours = r.seconds["anypool"]
        best = min(r.peers.values()) / ours if r.peers else None
        torch = r.seconds["PyTorch"] / ours if "PyTorch" in r.seconds else None
        cells = [
            r.row.name, r.size, "×".join(map(str, r.shape)), milliseconds(ours), milliseconds(r.seconds["fresh"]),
            f"{r.efficiency:.2f}", *(milliseconds(r.seconds.get(n)) for n in names),
            "" if torch is None else f"{torch:.1f}", "" if best is None else f"{best:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def summary(results: list[Result]) -> list[str]:
    """Return what the table says in a few sentences."""
    lines = []
    for size, what in (("D", "larger than the cache"), ("C", "in the cache")):
        ratios = [
            r.seconds["PyTorch"] / r.seconds["anypool"] for r in results if r.size == size and "PyTorch" in r.seconds
        ]
        share = [r.efficiency for r in results if r.size == size]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(
                f"Data {what}: {mean:.1f} times as fast as PyTorch eager, channels-first (geometric mean of "
                f"{len(ratios)} rows, {min(ratios):.1f} to {max(ratios):.1f}); {min(share):.2f} to {max(share):.2f} "
                "of the speed of a copy."
            )
    return lines


def environment() -> list[str]:
    """Return the machine and the versions."""
    info = native.info()
    packages = ", ".join(
        f"{p} {version(p)}" for p in ("numpy", *dict.fromkeys(p for p, _ in PEERS.values())) if version(p)
    )
    return [
        f"Machine: {machine()}.",
        f"anypool {anypool.__version__} ({info['isa']}, {info['threads']} threads), {packages}.",
    ]


def report(results: list[Result]) -> str:
    """Return the page docs/benchmarks.md."""
    return "\n".join([
        "# Benchmarks",
        "",
        "Written by `make bench`. All columns of a row are medians of runs taken in turn in one process; each result",
        "was first checked to be equal. *of copy* is the time in which a plain copy reads and writes as many bytes as",
        "the pooling has to, divided by ours with `out=`; *new output* is ours with a result allocated in the call.",
        "Size D is about four times the last-level cache, C a quarter of it.",
        "",
        *environment(),
        "",
        *summary(results),
        "",
        *table(results),
        "",
    ])  # fmt: skip


def excerpt(path: Path, results: list[Result]) -> None:
    """Put the summary between the README's marks."""
    text = path.read_text()
    start, end = "<!-- benchmark:start -->", "<!-- benchmark:end -->"
    if start in text and end in text:
        before, rest = text.split(start)
        after = rest.split(end)[1]
        body = "\n".join([*summary(results), "", *environment(), "All rows: [docs/benchmarks.md](docs/benchmarks.md)."])
        path.write_text(f"{before}{start}\n{body}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, help="the Markdown page to write; the README's excerpt is written with it")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--size", choices=[*BATCHED, "both"], default="both")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    arguments = parser.parse_args()
    results = []
    for row in (*BENCHMARKS, *IMAGE_BENCHMARKS):
        if arguments.only not in row.name:
            continue
        sizes = ("D",) if row.function == "pool" else tuple(BATCHED) if arguments.size == "both" else (arguments.size,)
        for size in sizes:
            results.append(measure(row, size, arguments.seconds))
            if len(results) == 1:
                print("\n".join(table(results)), flush=True)
            else:
                print(table(results)[-1], flush=True)
    if not results:
        raise SystemExit(f"--only {arguments.only!r} matches no row")
    print("\n".join(["", *summary(results), *environment()]))
    if arguments.out:
        arguments.out.write_text(report(results))
        if Path("README.md").exists():
            excerpt(Path("README.md"), results)


if __name__ == "__main__":
    main()
