"""Measure, print and write the benchmark tables."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.calls import scaling, small_call
from benchmarks.growth import growth
from benchmarks.ours import Disagreement
from benchmarks.peers import PEERS
from benchmarks.report import Report, environment, summary, write
from benchmarks.rows import FAMILIES, QUICK, Family
from benchmarks.table import CACHED, LARGER, Result, measured, sized

QUICK_PEERS = ("PyTorch", "ONNX Runtime", "OpenVINO", "OpenCV")  # those that need no compiler


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, help="the page to write; a picture and the README's excerpt come with it")
    parser.add_argument("--quick", action="store_true", help="few rows, no curves: two minutes")
    parser.add_argument("--only", default="", help="only families or rows whose name contains this")
    parser.add_argument("--size", choices=[LARGER, CACHED, "both"], default="both")
    parser.add_argument("--peers", nargs="*", choices=[*PEERS], help="only these; default: all that are installed")
    parser.add_argument("--seconds", type=float, help="for each row and size; default 2, quick 1")
    return parser.parse_args()


def run(family: Family, only: str, sizes: list[str], names: list[str], seconds: float) -> list[Result]:
    """Measure one family's rows."""
    results: list[Result] = []
    for row in family.rows:
        if only not in family.title and only not in row.name:
            continue
        for size in sizes:
            scaled = sized(row, size)
            if scaled is None:
                continue
            if not results:
                print(f"\n{family.title}", flush=True)
            results.append(measured(scaled, size, names, seconds, narrow=family.most_of_narrow is not None))
            print(results[-1].line(), flush=True)
    return results


def main() -> None:
    options = arguments()
    began = time.perf_counter()
    wanted = options.peers if options.peers is not None else QUICK_PEERS if options.quick else PEERS
    names = [name for name in wanted if PEERS[name].version()]
    seconds = options.seconds or (1.0 if options.quick else 2.0)
    sizes = [LARGER, CACHED] if options.size == "both" else [options.size]
    families = (Family("Quick", QUICK),) if options.quick else FAMILIES
    report = Report()
    try:
        for family in families:
            if results := run(family, options.only, sizes, names, seconds):
                report.families.append((family, results))
        if not options.only:
            report.small = small_call(names)
        if not options.only and not options.quick:
            if "PyTorch" in names:
                report.threads = scaling(seconds)
            print("\nSize")
            report.curves = growth(names, seconds)
    except Disagreement as error:
        raise SystemExit(f"nothing is reported: {error}") from None
    if not report.families:
        raise SystemExit(f"--only {options.only!r} matches no row")
    print("\n".join(["", *summary(report), *environment(), f"{time.perf_counter() - began:.0f} s in all"]))
    if options.out:
        write(report, options.out)


if __name__ == "__main__":
    main()
