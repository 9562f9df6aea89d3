"""Figures of a one-dimensional pooling: numbers in boxes, and the windows between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from anypool.cli.files import Array

INK = "#222222"
FAINT = "#767676"
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#E69F00", "#0072B2", "#CC79A7", "#009E73")
BOXES = 18  # more numbers in a row cannot be read
SAMPLES = 20_000  # a line drawn from more points looks the same


class Axis(Protocol):
    """What a figure needs to know of `anypool.windows.Axis`."""

    @property
    def n_in(self) -> int:
        """Number of inputs."""

    @property
    def n_out(self) -> int:
        """Number of outputs."""

    def taps(self, o: int, /) -> range:
        """Return the inputs that output `o` sees."""


def number(value: Any) -> str:
    """Write a value short enough for a box."""
    return str(int(value)) if np.asarray(value).dtype.kind in "biu" else f"{float(value):.3g}"


def sizes(x: Array, y: Array, note: str = "") -> str:
    """Write the second line of a figure: what went in, what came out, which part is shown."""
    ends = (
        f"{name} {' × '.join(map(str, array.shape))} {array.dtype.name}"
        for name, array in (("input", x), ("output", y))
    )
    return ",  ".join([*ends, *([note] if note else [])])


def heading(figure: Figure, title: str, detail: str) -> None:
    """Draw a title and a quieter second line, a fixed distance from the top whatever the figure's height."""
    inch = 1 / figure.get_figheight()
    figure.text(0.02, 1 - 0.12 * inch, title, fontsize=15, weight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.48 * inch, detail, fontsize=10.5, color=FAINT, va="top")


def signal_figure(x: Array, y: Array, window: Axis, title: str, note: str = "") -> Figure:
    """Draw a signal, its windows and its outputs; of a long one the whole as a line and the middle as boxes."""
    long = window.n_in > BOXES
    outputs = _middle(window) if long else range(window.n_out)
    figure = Figure(figsize=(13, 7.4 if long else 4.2))
    boxes = figure.add_axes((0.02, 0.03, 0.96, 0.43 if long else 0.74))
    _boxes(boxes, x, y, window, outputs)
    if long:
        line = figure.add_axes((0.06, 0.57, 0.91, 0.3))
        _lines(line, x, y, window, outputs)
    heading(figure, title, sizes(x, y, note))
    return figure


def _middle(window: Axis) -> range:
    """Choose the outputs around the middle whose inputs fit in a row of boxes; at least one."""
    first = last = window.n_out // 2
    while last + 1 < window.n_out and window.taps(last + 1)[-1] - window.taps(first)[0] < BOXES:
        last += 1
    while first > 0 and window.taps(last)[-1] - window.taps(first - 1)[0] < BOXES:
        first -= 1
    return range(first, last + 1)


def _boxes(axes: Axes, x: Array, y: Array, window: Axis, outputs: range) -> None:
    seen = [window.taps(o) for o in outputs]
    left, right = 0, window.n_in
    if window.n_in > BOXES:
        left = seen[0][0]
        right = min(left + BOXES, seen[-1][-1] + 1)
    lanes = _lanes(seen)
    floor = 1.6 - 0.3 * max(lanes)
    axes.set_xlim(left - 2.0, right - 0.3)
    hidden = seen[-1][-1] + 1 - right  # of one window longer than the row
    axes.set_ylim(floor - 1.8, 2.95)
    axes.set_axis_off()
    # A max or a min comes from one of its inputs: mark it, so that the eye finds where each output is from.
    winners = {tap for o, taps in zip(outputs, seen, strict=True) for tap in taps if x[tap] == y[o]}
    for position in range(left, right):
        won = position in winners
        _box(axes, position, 2.2, x[position], "#fff6d6" if won else "#f4f4f4", INK if won else "#bbbbbb", bold=won)
        axes.text(position, 2.78, str(position), ha="center", va="center", fontsize=8, color=FAINT)
    for o, taps, lane in zip(outputs, seen, lanes, strict=True):
        _window(axes, taps, right - 1, COLOURS[o % len(COLOURS)], 1.6 - 0.3 * lane, floor - 0.62)
    for o, taps in zip(outputs, seen, strict=True):
        centre = (taps[0] + min(taps[-1], right - 1)) / 2
        _box(axes, centre, floor - 1.0, y[o], "white", COLOURS[o % len(COLOURS)], bold=True)
        if hidden > 0:
            axes.text(centre + 0.7, floor - 1.0, f"… and {hidden} more inputs", va="center", fontsize=11, color=FAINT)
        axes.text(centre, floor - 1.57, str(o), ha="center", va="center", fontsize=8, color=FAINT)
    axes.text(left - 0.75, 2.2, "input", ha="right", va="center", fontsize=11, color=INK)
    axes.text(left - 0.75, floor - 1.0, "output", ha="right", va="center", fontsize=11, color=INK)


def _window(axes: Axes, taps: range, last: int, colour: str, level: float, bottom: float) -> None:
    """Draw a bracket under the inputs that one output sees, and the way down to it."""
    start, stop = taps[0] - 0.4, min(taps[-1], last) + 0.4
    axes.plot([start, stop], [level, level], color=colour, linewidth=4, solid_capstyle="round")
    for tap in taps:
        if tap <= last:
            axes.plot([tap, tap], [level, 1.72], color=colour, linewidth=1.5)
    centre = (start + stop) / 2
    funnel = [(start, level), (stop, level), (centre + 0.38, bottom), (centre - 0.38, bottom)]
    axes.add_patch(Polygon(funnel, closed=True, color=colour, alpha=0.15, linewidth=0))


def _lanes(seen: list[range]) -> list[int]:
    """Put overlapping windows under one another: the first free lane for each."""
    ends: list[int] = []
    lanes = []
    for taps in seen:
        lane = next((i for i, end in enumerate(ends) if end < taps[0]), len(ends))
        ends[lane : lane + 1] = [taps[-1]]
        lanes.append(lane)
    return lanes


def _box(axes: Axes, x: float, y: float, value: Any, fill: str, edge: str, *, bold: bool) -> None:
    box = FancyBboxPatch((x - 0.32, y - 0.3), 0.64, 0.6, boxstyle="round,pad=0.06", facecolor=fill, edgecolor=edge)
    box.set_linewidth(2.0 if bold else 1.2)
    axes.add_patch(box)
    text = number(value)
    low, high = axes.get_xlim()
    room = 0.7 * 72 * axes.bbox.width / axes.figure.dpi / (high - low)  # points inside the box
    fits = min(13.0, room / (0.7 * len(text)))
    axes.text(x, y, text, ha="center", va="center", fontsize=fits, weight="bold" if bold else "normal", color=INK)


def _lines(axes: Axes, x: Array, y: Array, window: Axis, outputs: Iterable[int]) -> None:
    step_in, step_out = max(1, window.n_in // SAMPLES), max(1, window.n_out // SAMPLES)
    centres = [(window.taps(o)[0] + window.taps(o)[-1]) / 2 for o in range(0, window.n_out, step_out)]
    axes.plot(np.arange(0, window.n_in, step_in), x[::step_in], color="#b0b0b0", linewidth=1, label="input")
    style = "o-" if window.n_out <= 40 else "-"  # one output alone has no line
    axes.plot(
        centres,
        y[::step_out],
        style,
        color=COLOURS[1],
        linewidth=1.4,
        markersize=5,
        label="output, at its window's centre",
    )
    shown = [window.taps(o) for o in outputs]
    end = min(shown[-1][-1] + 1, shown[0][0] + BOXES)
    axes.axvspan(shown[0][0] - 0.5, end - 0.5, color=COLOURS[0], alpha=0.35, linewidth=0, label="boxes below")
    axes.margins(x=0.01)
    axes.tick_params(labelsize=8, labelcolor=FAINT, length=0)
    axes.grid(color="#eeeeee")
    for spine in axes.spines.values():
        spine.set_color("#cccccc")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=9, frameon=False, borderaxespad=0.2)
