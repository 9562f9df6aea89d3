"""`anypool demo`: a photograph pooled, a signal worked by hand, and what a shift of one pixel changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import cbook
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import anypool as ap
from anypool.cli import files, show
from anypool.cli.files import Array, InputError
from anypool.cli.signals import COLOURS, FAINT, INK, heading, signal_figure

SIGNAL = (1, 4, -1, 0, 2, -2, 1, 3, 3, 1)
KERNELS = (2, 4, 8, 16)
SHIFT_KERNELS = (1, 2, 4, 8, 16)
# In this order they are drawn and printed; the first is the control: as few pixels, but no pooling.
METHODS = ("every k-th pixel", "max", "mean")
MEASURE = "|P(photo) - P(moved)| / |P(photo) - its mean|, |.| the root of the sum of squares"


@dataclass(frozen=True)
class Shift:
    """How much an output changes when the photograph moves, one number for each kernel."""

    kernels: tuple[int, ...]
    change: dict[str, list[float]]


def run(folder: Path, say: Callable[[str], Any]) -> None:
    """Write the figures into `folder` (made if missing, its parent must exist) and tell what they show."""
    if not folder.parent.is_dir():
        raise InputError(f"--out: the folder {folder.parent} does not exist: {folder}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out is not a folder: {folder}")
    photo = _photograph()
    folder.mkdir(exist_ok=True)
    _pool_photograph(photo, folder, say)
    _work_signal(folder, say)
    _move_photograph(photo, folder, say)
    say(f"\nThe figures are in {folder.resolve()}:")
    say("   photo.png    the photograph and its poolings, side by side")
    say("   windows.png  which pixels make which output, magnified")
    say("   signal.png   the signal, its windows and their maxima")
    say("   shift.png    what a shift of one pixel changes, without and with pooling")


def _pool_photograph(photo: Array, folder: Path, say: Callable[[str], Any]) -> None:
    say(
        f"1. A photograph of {photo.shape[1]} x {photo.shape[0]} pixels (it ships with matplotlib), max and mean pooled"
    )
    say(f"   with the kernels {', '.join(map(str, KERNELS))}, each its own stride")
    _save(folder / "photo.png", _photo_figure(photo))
    windows = ap.explain(ap.pool, photo, "max", 4, axes=(0, 1)).windows.axes
    pooled = ap.pool(photo, "max", 4, axes=(0, 1))
    _save(folder / "windows.png", show.pooling_figure(photo, pooled, windows, (0, 1), "max 4 × 4", "RGB"))


def _work_signal(folder: Path, say: Callable[[str], Any]) -> None:
    signal = np.array(SIGNAL)
    pooled = ap.pool(signal, "max", 2)
    axis = ap.explain(ap.pool, signal, "max", 2).windows.axes[0]
    windows = ["(" + " ".join(str(signal[tap]) for tap in axis.taps(o)) + ")" for o in range(axis.n_out)]
    say("\n2. A signal, max pooled with kernel 2")
    say("   signal   " + "".join(f"{value:>4}" for value in signal))
    say("   windows  " + "".join(f"{window:>8}" for window in windows))
    say("   max      " + "".join(f"{value:>8}" for value in pooled))
    _save(folder / "signal.png", signal_figure(signal, pooled, axis, "max, kernel 2"))


def _move_photograph(photo: Array, folder: Path, say: Callable[[str], Any]) -> None:
    shift = shift_experiment(photo)
    say("\n3. The photograph moves by one pixel: how much does the output change?")
    say(f"   change = {MEASURE};")
    say("   P pools k x k windows at stride k; 0 is no change, 1.4 is what two unrelated pictures give")
    say(f"   {'k':>4}" + "".join(f"{method:>18}" for method in METHODS))
    for i, k in enumerate(shift.kernels):
        row = "".join(f"{shift.change[method][i]:>18.3f}" for method in METHODS)
        say(f"   {k:>4}{row}" + ("   (no pooling)" if k == 1 else ""))
    _save(folder / "shift.png", _shift_figure(photo, shift))


def shift_experiment(photo: Array, kernels: tuple[int, ...] = SHIFT_KERNELS) -> Shift:
    """Measure the change of the output when the photograph moves one pixel to the left.

    Both crops have the same size, a multiple of every kernel, so each output on one side has its partner on the other
    and no border is made up. The difference is divided by the output's own contrast: averaging a picture flat also
    makes its differences small, and must not count as stability.
    """
    grey = photo.astype(np.float64).mean(axis=2)
    first, moved = _crops(grey, max(kernels))
    change = {
        method: [_change(_reduce(first, method, k), _reduce(moved, method, k)) for k in kernels] for method in METHODS
    }
    return Shift(kernels, change)


def _crops(grey: Array, multiple: int) -> tuple[Array, Array]:
    height = grey.shape[0] // multiple * multiple
    width = (grey.shape[1] - 1) // multiple * multiple
    return grey[:height, :width], grey[:height, 1 : width + 1]


def _reduce(picture: Array, method: str, k: int) -> Array:
    if method == "every k-th pixel":
        return picture[k // 2 :: k, k // 2 :: k]
    pooled: Array = ap.pool(picture, method, k)
    return pooled


def _change(first: Array, moved: Array) -> float:
    return float(np.linalg.norm(first - moved) / np.linalg.norm(first - first.mean()))


def _photograph() -> Array:
    from PIL import Image

    try:
        path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"the photograph that ships with matplotlib cannot be read: {error}") from None


def _save(path: Path, figure: Figure) -> None:
    with files.replacing(path) as (file,):
        show.save(figure, file, path)


def _picture(axes: Axes, picture: Array, title: str, **options: Any) -> None:
    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_title(title, fontsize=10.5, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#cccccc")


def _photo_figure(photo: Array) -> Figure:
    small, gap, margin, head = 3.0, 0.42, 0.35, 1.15  # inches: a pooled picture's height, the space around
    shape = photo.shape[1] / photo.shape[0]
    large = 2 * small + gap
    figure = Figure(
        figsize=(2 * margin + large * shape + len(KERNELS) * (small * shape + gap / 2), head + large + margin / 2)
    )

    def place(left: float, bottom: float, height: float) -> Axes:
        width, tall = figure.get_size_inches()
        return figure.add_axes((left / width, (bottom + margin / 2) / tall, height * shape / width, height / tall))

    heading(
        figure,
        "One photograph, pooled",
        "channel by channel: max keeps the largest value of each window, mean the average; k × k windows, stride k",
    )
    _picture(place(margin, 0, large), photo, f"the photograph, {photo.shape[1]} × {photo.shape[0]}")
    for op, bottom in (("max", small + gap), ("mean", 0.0)):
        for column, k in enumerate(KERNELS):
            pooled = ap.pool(photo, op, k, axes=(0, 1))
            left = margin + large * shape + gap / 2 + column * (small * shape + gap / 2)
            _picture(place(left, bottom, small), pooled, f"{op} {k} × {k}:  {pooled.shape[1]} × {pooled.shape[0]}")
    return figure


def _shift_figure(photo: Array, shift: Shift) -> Figure:
    """Left the differences one can see, right the numbers."""
    figure = Figure(figsize=(15, 4.7))
    heading(
        figure,
        "The photograph moves by one pixel: what changes in the output?",
        "light: changed, black: unchanged, all on one scale;  grey values, k × k windows at stride k",
    )
    first, moved = _crops(photo.astype(np.float64).mean(axis=2), max(shift.kernels))
    panels = [
        ("no pooling", 1, "max"),
        *((f"{method} 8 × 8" if i else "every 8th pixel", 8, method) for i, method in enumerate(METHODS)),
    ]
    for i, (name, k, method) in enumerate(panels):
        axes = figure.add_axes((0.02 + 0.158 * i, 0.08, 0.15, 0.7))
        a, b = _reduce(first, method, k), _reduce(moved, method, k)
        _picture(axes, np.abs(a - b), name, cmap="magma", vmin=0, vmax=100)
        axes.set_xlabel(f"change {_change(a, b):.2f}", fontsize=11, color=INK)
    axes = figure.add_axes((0.695, 0.17, 0.29, 0.57))
    for colour, method in zip(("#767676", COLOURS[0], COLOURS[1]), METHODS, strict=True):
        axes.plot(shift.kernels, shift.change[method], "o-", color=colour, linewidth=2.2, markersize=6)
        axes.annotate(
            method,
            (shift.kernels[-1], shift.change[method][-1]),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(shift.kernels, [str(k) if k > 1 else "1\n(no pooling)" for k in shift.kernels])
    axes.set_xlim(0.85, 75)
    axes.set_ylim(0, None)
    axes.set_xlabel("kernel k = stride", color=INK)
    axes.set_title("change, relative to the output's contrast", fontsize=11, color=INK)
    axes.grid(color="#eeeeee")
    axes.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    for spine in axes.spines.values():
        spine.set_color("#cccccc")
    return figure
