"""How time grows with size, from 1 kB to 1 GB: a table and a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.measure import last_level_cache
from benchmarks.rows import Row
from benchmarks.table import Result, measured

# From one small plane to many large ones, four times the bytes each: sides first, then channels, then the batch.
SIZES = (
    *((1, 1, side, side) for side in (14, 28, 56, 112)),
    *((1, channels, 112, 112) for channels in (4, 16, 64)),
    *((batch, 64, 112, 112) for batch in (4, 16, 64, 256)),
)
ROWS = (Row("max", SIZES[0], 3, 2, 1), Row("avg", SIZES[0], output_size=(1, 1)))
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {
    "anypool": "#000000", "PyTorch": "#D55E00", "torch.compile": "#E69F00", "ONNX Runtime": "#0072B2",
    "OpenVINO": "#009E73", "JAX": "#CC79A7",
}  # fmt: skip


def growth(names: list[str], seconds: float) -> list[list[Result]]:
    """Measure both rows at all sizes."""
    curves = []
    for row in ROWS:
        curve = []
        for shape in SIZES:
            curve.append(measured(dataclasses.replace(row, shape=shape), "", names, seconds))
            print(curve[-1].line(), flush=True)
        curves.append(curve)
    return curves


def picture(curves: list[list[Result]], path: Path) -> None:
    """Draw bytes per second over bytes; a straight growth of time is a flat line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(10, 4.6), sharey=True, layout="constrained")
    for axis, curve in zip(axes, curves, strict=True):
        sizes = [r.moved for r in curve]
        for name, colour in COLOURS.items():
            points = [(r.moved, r.moved / r.seconds[name] / 1e9) for r in curve if name in r.seconds]
            if points:
                width = 2.5 if name == "anypool" else 1.3
                axis.loglog(*zip(*points, strict=True), "o-", color=colour, label=name, linewidth=width, markersize=3.5)
        copies = [r.moved / r.seconds["copy"] / 1e9 for r in curve]
        axis.loglog(sizes, copies, ":", color="#777777", label="copy", linewidth=1.5)
        axis.axvline(last_level_cache(), color="#bbbbbb", linewidth=1, zorder=0)
        axis.annotate(
            "cache", (last_level_cache(), 0.01), xycoords=("data", "axes fraction"), color="#777777", fontsize=8,
            xytext=(3, 3), textcoords="offset points",
        )  # fmt: skip
        axis.set(title=f"{curve[0].row.name}, float32", xlabel="bytes read and written")
        axis.set_xticks([1e3, 1e6, 1e9], ["1 kB", "1 MB", "1 GB"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("GB/s, more is faster")
    ticks = [0.01, 0.1, 1, 10, 100]
    axes[0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
