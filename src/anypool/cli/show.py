"""Figures of a pooling: the input, the output, and a few windows with lines to the outputs they make.

Matplotlib's object interface only (`Figure`), so nothing depends on a display or changes pyplot's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from anypool.cli.files import Array
from anypool.cli.signals import COLOURS, FAINT, INK, Axis, heading, number, signal_figure, sizes

HALO: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=4.0, foreground="white")]
WHOLE = 40  # an input up to this size is drawn whole, pixel by pixel, with no magnified part
PATCH = 28  # about so many input pixels are magnified
MOST_PIXELS = 1200  # a panel has no more; larger inputs are drawn from every n-th pixel
NUMBERS = 13  # cells per side up to which the values are written into them


@dataclass(frozen=True)
class Identity:
    """The windows of an axis that is drawn but not pooled: every output sees its own input."""

    n_in: int

    @property
    def n_out(self) -> int:
        """As many outputs as inputs."""
        return self.n_in

    def taps(self, o: int, /) -> range:
        """Output `o` sees input `o`."""
        return range(o, o + 1)


@dataclass(frozen=True)
class Plane:
    """A two-dimensional view of an input and its output, `(H, W)` or `(H, W, colours)`, and the windows between."""

    x: Array
    y: Array
    rows: Axis
    columns: Axis
    note: str = ""


@dataclass(frozen=True)
class Part:
    """Half-open ranges of rows and columns."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, picture: Array) -> Array:
        """Cut this part out of a picture."""
        return picture[self.top : self.bottom, self.left : self.right]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edges, with the middle of a pixel at its index."""
        return (self.left - 0.5, self.right - 0.5, self.bottom - 0.5, self.top - 0.5)


def pooling_figure(
    x: Array, y: Array, windows: Sequence[Axis], axes: Sequence[int], title: str, mode: str | None = None
) -> Figure:
    """Draw how `x` became `y`.

    Parameters
    ----------
    x, y : ndarray
        Input and output.
    windows : sequence of Axis
        One per pooled axis.
    axes : sequence of int
        The pooled axes, rising.
    title : str
        The operation, as the figure's heading.
    mode : str, optional
        Pillow's mode when `x` is an image; it decides how the channels are shown.
    """
    if mode is None and len(axes) == 1:
        line = tuple(slice(None) if axis == axes[0] else 0 for axis in range(x.ndim))
        return signal_figure(np.asarray(x[line]), np.asarray(y[line]), windows[0], title)
    plane = _plane(x, y, windows, axes, mode)
    small = max(plane.x.shape[:2]) <= WHOLE
    return _whole_figure(plane, title, x, y) if small else _magnified_figure(plane, title, x, y)


def save(figure: Figure, file: IO[bytes], path: Path) -> None:
    """Write a figure in the format the path's extension names."""
    figure.savefig(file, format=path.suffix.lower().removeprefix("."), dpi=130, facecolor="white")


def _plane(x: Array, y: Array, windows: Sequence[Axis], axes: Sequence[int], mode: str | None) -> Plane:
    if mode is not None:
        by_axis = dict(zip(axes, windows, strict=True))
        rows, columns = (by_axis.get(axis, Identity(x.shape[axis])) for axis in (0, 1))
        return Plane(_rgb(x, mode), _rgb(y, mode), rows, columns)
    *outer, rows, columns = windows
    at_x: list[Any] = [0] * x.ndim
    at_y: list[Any] = [0] * x.ndim
    for axis, window in zip(axes, outer, strict=False):  # the middle output, and the middle of what it sees
        taps = window.taps(window.n_out // 2)
        at_y[axis] = window.n_out // 2
        at_x[axis] = taps[len(taps) // 2]
    for axis in axes[-2:]:
        at_x[axis] = at_y[axis] = slice(None)
    note = ""
    if x.ndim > 2:
        depth = [str(len(window.taps(window.n_out // 2))) for window in outer]
        note = f"shown: input[{_index(at_x)}] and output[{_index(at_y)}]"
        note += f" (a window is {' × '.join(depth)} such slices deep)" if depth else ""
    return Plane(np.asarray(x[tuple(at_x)]), np.asarray(y[tuple(at_y)]), rows, columns, note)


def _rgb(picture: Array, mode: str) -> Array:
    """Show colours that are not red, green and blue (print, video) as what they look like."""
    if mode not in ("CMYK", "YCbCr", "LAB") or picture.dtype != np.uint8:
        return np.asarray(picture)
    from PIL import Image

    size = (picture.shape[1], picture.shape[0])
    image = Image.frombytes(mode, size, np.ascontiguousarray(picture).tobytes())
    if mode == "LAB":  # Pillow converts Lab only through colour management
        return np.asarray(picture)
    return np.asarray(image.convert("RGB"))


def _index(at: list[Any]) -> str:
    return ", ".join(":" if isinstance(part, slice) else str(part) for part in at)


class _Painter:
    """Shows input and output on one scale where their values share one, each on its own otherwise (a sum)."""

    def __init__(self, plane: Plane) -> None:
        self.colour = plane.x.ndim == 3
        low, high = _limits(plane.x)
        self.x_scale = Normalize(low, high)
        y_low, y_high = _limits(plane.y)
        slack = 1e-6 * max(abs(low), abs(high))
        shared = low - slack <= y_low and y_high <= high + slack
        self.y_scale = self.x_scale if shared else Normalize(min(0.0, y_low), y_high)
        self.map = "gray" if plane.x.dtype.kind in "bu" else "viridis"

    def show(self, axes: Axes, picture: Array, part: Part, *, output: bool) -> None:
        values = part.of(picture)
        step = max(1, -(-max(values.shape[:2]) // MOST_PIXELS))
        values = values[::step, ::step]
        scale = self.y_scale if output else self.x_scale
        if self.colour:
            axes.imshow(_colours(values, scale), extent=part.extent, interpolation="nearest", aspect="equal")
        else:
            axes.imshow(
                values.astype(np.float64),
                extent=part.extent,
                cmap=self.map,
                norm=scale,
                interpolation="nearest",
                aspect="equal",
            )
        axes.tick_params(length=0, labelsize=8, labelcolor=FAINT)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        flat = 4 * values.shape[0] < values.shape[1]
        axes.yaxis.set_major_locator(MaxNLocator(2 if flat else 6, integer=True))
        if values.shape[0] == 1:
            axes.set_yticks([part.top])
        if output:
            axes.yaxis.tick_right()  # on the left are the arrows
        for spine in axes.spines.values():
            spine.set_color("#cccccc")

    def write_values(self, axes: Axes, picture: Array, part: Part, *, output: bool) -> None:
        """Write the numbers into the cells, when they are few enough to read."""
        values = part.of(picture)
        if self.colour or max(values.shape) > NUMBERS:
            return
        scale = self.y_scale if output else self.x_scale
        for (row, column), value in np.ndenumerate(values):
            light = float(scale(float(value))) > (0.5 if self.map == "gray" else 0.65)
            axes.text(
                part.left + column,
                part.top + row,
                number(value),
                ha="center",
                va="center",
                fontsize=8 if len(number(value)) <= 4 else 6.5,
                color=INK if light else "white",
            )


def _limits(picture: Array) -> tuple[float, float]:
    if picture.dtype == np.uint8:
        return 0.0, 255.0
    step = max(1, max(picture.shape[:2], default=1) // MOST_PIXELS)
    values = picture[::step, ::step].astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _colours(values: Array, scale: Normalize) -> Array:
    """Channels as RGB(A) between 0 and 1, from grey and alpha, colour, or colour and alpha."""
    unit = np.nan_to_num(np.clip(np.asarray(scale(values.astype(np.float64))), 0.0, 1.0))
    if unit.shape[2] < 3:
        unit = np.concatenate([np.repeat(unit[..., :1], 3, axis=2), unit[..., 1:]], axis=2)
    shown: Array = unit[..., :4]
    return shown


def _whole_figure(plane: Plane, title: str, x: Array, y: Array) -> Figure:
    figure = Figure(figsize=(11, 6.2))
    left, right = figure.add_axes((0.05, 0.07, 0.5, 0.73)), figure.add_axes((0.66, 0.16, 0.31, 0.55))
    ins = Part(0, plane.x.shape[0], 0, plane.x.shape[1])
    outs = Part(0, plane.y.shape[0], 0, plane.y.shape[1])
    painter = _Painter(plane)
    _cells(painter, left, plane.x, ins, output=False)
    _cells(painter, right, plane.y, outs, output=True)
    left.set_title("input", fontsize=11, color=INK)
    right.set_title("output", fontsize=11, color=INK)
    _windows(figure, left, right, plane, outs)
    heading(figure, title, sizes(x, y, plane.note))
    return figure


def _magnified_figure(plane: Plane, title: str, x: Array, y: Array) -> Figure:
    figure = Figure(figsize=(17, 5.6))
    boxes = ((0.03, 0.23), (0.285, 0.23), (0.555, 0.2), (0.775, 0.195))
    whole_in, part_in, part_out, whole_out = (figure.add_axes((x0, 0.07, width, 0.74)) for x0, width in boxes)
    outs = _busiest(plane)
    ins = _seen(plane, outs)
    painter = _Painter(plane)
    painter.show(whole_in, plane.x, Part(0, plane.x.shape[0], 0, plane.x.shape[1]), output=False)
    painter.show(whole_out, plane.y, Part(0, plane.y.shape[0], 0, plane.y.shape[1]), output=True)
    _cells(painter, part_in, plane.x, ins, output=False)
    _cells(painter, part_out, plane.y, outs, output=True)
    for axes, name in (
        (whole_in, "input"),
        (part_in, f"{ins.bottom - ins.top} × {ins.right - ins.left} inputs, magnified"),
        (part_out, f"the {outs.bottom - outs.top} × {outs.right - outs.left} outputs they make"),
        (whole_out, "output"),
    ):
        axes.set_title(name, fontsize=11, color=INK)
    for axes in (part_in, part_out):  # the frames in the whole pictures say where they are from
        axes.set_xticks([])
        axes.set_yticks([])
    _magnifier(figure, whole_in, part_in, ins, to_right=True)
    _magnifier(figure, whole_out, part_out, outs, to_right=False)
    _windows(figure, part_in, part_out, plane, outs)
    heading(figure, title, sizes(x, y, plane.note))
    return figure


def _cells(painter: _Painter, axes: Axes, picture: Array, part: Part, *, output: bool) -> None:
    painter.show(axes, picture, part, output=output)
    tall, wide = part.bottom - part.top, part.right - part.left
    if max(tall, wide) > 2 * min(tall, wide):  # pooled along one axis: square cells would leave a sliver
        axes.set_aspect("auto")
    if max(tall, wide) <= WHOLE:
        for row in range(part.top + 1, part.bottom):
            axes.axhline(row - 0.5, color="white", linewidth=0.4, alpha=0.5)
        for column in range(part.left + 1, part.right):
            axes.axvline(column - 0.5, color="white", linewidth=0.4, alpha=0.5)
    painter.write_values(axes, picture, part, output=output)


def _busiest(plane: Plane) -> Part:
    """Find the block of outputs with the most detail, small enough to magnify; flat sky would show nothing."""
    height, width = (_outputs_shown(axis) for axis in (plane.rows, plane.columns))
    best, found = -1.0, Part(0, height, 0, width)
    for top in np.unique(np.linspace(0, plane.rows.n_out - height, 32).astype(int)):
        for left in np.unique(np.linspace(0, plane.columns.n_out - width, 32).astype(int)):
            part = Part(int(top), int(top) + height, int(left), int(left) + width)
            values = np.nan_to_num(part.of(plane.y).astype(np.float64), posinf=0, neginf=0)
            detail = float(np.abs(np.diff(values, axis=0)).sum() + np.abs(np.diff(values, axis=1)).sum())
            if detail > best:
                best, found = detail, part
    return found


def _outputs_shown(axis: Axis) -> int:
    step = axis.taps(axis.n_out // 2 + 1).start - axis.taps(axis.n_out // 2).start if axis.n_out > 3 else 1
    return min(axis.n_out, max(3, min(9, round(PATCH / 2 / max(1, step)))))


def _seen(plane: Plane, outs: Part) -> Part:
    """Return the inputs that a block of outputs sees."""
    rows = [plane.rows.taps(o) for o in range(outs.top, outs.bottom)]
    columns = [plane.columns.taps(o) for o in range(outs.left, outs.right)]
    top, bottom = min(taps[0] for taps in rows), max(taps[-1] for taps in rows) + 1
    left, right = min(taps[0] for taps in columns), max(taps[-1] for taps in columns) + 1
    return Part(top, bottom, left, right)


def _magnifier(figure: Figure, whole: Axes, part: Axes, box: Part, *, to_right: bool) -> None:
    """Frame the magnified part in the whole picture and join the frame to its magnification."""
    left, right, bottom, top = box.extent
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=INK, linewidth=1.4)
    frame.set_path_effects(HALO)
    whole.add_patch(frame)
    near, far = (right, left) if to_right else (left, right)
    for level in (top, bottom):
        line = ConnectionPatch((near, level), (far, level), whole.transData, part.transData, color=FAINT, linewidth=0.8)
        figure.add_artist(line)


def _windows(figure: Figure, left: Axes, right: Axes, plane: Plane, outs: Part) -> None:
    """Outline a few windows on the input and, in the same colour, the outputs they make."""
    one_row = outs.bottom - outs.top == 1  # then each line needs a height of its own
    for colour, level, (row, column) in zip(COLOURS, (0.1, 0.25, 0.75, 0.9), _chosen(outs), strict=False):
        rows, columns = plane.rows.taps(row), plane.columns.taps(column)
        if rows.step > 1 or columns.step > 1:  # dilation: mark the inputs that count, not those between
            for r in rows:
                for c in columns:
                    left.add_patch(_outline(range(r, r + 1), range(c, c + 1), colour, 2.0))
        else:
            left.add_patch(_outline(rows, columns, colour, 3.0))
        right.add_patch(_outline(range(row, row + 1), range(column, column + 1), colour, 3.0))
        # Start and end beside the middle of a cell, where the numbers are.
        extent = rows[-1] - rows[0] + 1
        leave = rows[0] - 0.5 + (extent * level if one_row else max(extent // 2, 0.17))
        arrive = row - 0.5 + (level if one_row else 0.17)
        line = ConnectionPatch(
            (columns[-1] + 0.5, leave),
            (column - 0.5, arrive),
            left.transData,
            right.transData,
            color=colour,
            linewidth=2.2,
            arrowstyle="-|>",
        )
        line.set_mutation_scale(14)
        line.set_path_effects([patheffects.withStroke(linewidth=4.2, foreground="white", alpha=0.85)])
        figure.add_artist(line)


def _outline(rows: range, columns: range, colour: str, width: float) -> Rectangle:
    corner = (columns[0] - 0.5, rows[0] - 0.5)
    box = Rectangle(corner, columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1, fill=False, edgecolor=colour)
    box.set_linewidth(width)
    box.set_path_effects([patheffects.withStroke(linewidth=width + 2, foreground="white"), patheffects.Normal()])
    box.set_zorder(5)
    return box


def _chosen(outs: Part) -> list[tuple[int, int]]:
    """Up to four outputs, one to a row from top to bottom, so that their lines do not cross."""
    height, width = outs.bottom - outs.top, outs.right - outs.left
    count = min(len(COLOURS), height) if height > 1 else min(len(COLOURS), width)
    across = (0.75, 0.35, 0.9, 0.15)
    if height == 1:
        return [(outs.top, outs.left + round(i * (width - 1) / max(1, count - 1))) for i in range(count)]
    rows = [outs.top + round(i * (height - 1) / max(1, count - 1)) for i in range(count)]
    return [(row, outs.left + round(share * (width - 1))) for row, share in zip(rows, across, strict=False)]
