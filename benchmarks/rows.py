"""What is measured: the rows of the table, by family, each with the efficiency it aims at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

CHANNELS_FIRST, CHANNELS_LAST = "channels-first", "channels-last"
TRANSPOSED, CROPPED, STEPPED = "transposed", "cropped", "every second column"


@dataclass(frozen=True)
class Row:
    """One pooling. Kernels are the same on each pooled axis; `output_size` instead of a kernel is adaptive."""

    reduction: str  # "max", "avg", "lp" or "logsumexp"
    shape: tuple[int, ...]  # (N, C, …), whatever the order in memory; N and C are scaled to the size wanted
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    ceil: bool = False
    output_size: tuple[int, ...] = ()
    norm_type: float = 2.0
    dtype: str = "float32"
    order: str = CHANNELS_FIRST  # of the memory
    mode: str = "forward"  # or "indices"; "mask"; "training", a forward that keeps what the gradient needs; "backward"
    fixed: bool = False  # measured at its own shape only

    @property
    def rank(self) -> int:
        return len(self.shape) - 2

    @property
    def is_global(self) -> bool:
        return bool(self.output_size) and math.prod(self.output_size) == 1

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def name(self) -> str:
        reduction = f"lp, p = {self.norm_type:g}," if self.reduction == "lp" else self.reduction
        if self.is_global:
            words = ["global", reduction]
        elif self.output_size:
            words = [reduction, "→", "×".join(map(str, self.output_size))]
        else:
            words = [reduction, "×".join([str(self.kernel)] * self.rank), f"s{self.stride}"]
            words += [f"p{self.padding}"] * (self.padding > 0) + [f"d{self.dilation}"] * (self.dilation > 1)
            words += ["ceil"] * self.ceil
        extras = [self.order] * (self.order != CHANNELS_FIRST) + [self.dtype] * (self.dtype != "float32")
        return ", ".join([" ".join(words), *extras])

    def resized(self, batch: int, channels: int) -> Row:
        """Return the row with another batch and number of channels."""
        return dataclasses.replace(self, shape=(batch, channels, *self.spatial))

    def out_spatial(self) -> tuple[int, ...]:
        """Return the sizes of the pooled axes after pooling."""
        if self.output_size:
            return self.output_size
        span = self.dilation * (self.kernel - 1) + 1
        sizes = []
        for n in self.spatial:
            room = n + 2 * self.padding - span
            m = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
            sizes.append(m - (self.ceil and (m - 1) * self.stride >= n + self.padding))
        return tuple(sizes)

    def taps(self) -> int:
        """Return the number of taps of the largest window."""
        if not self.output_size:
            return int(self.kernel**self.rank)
        return math.prod(
            max(-(-(i + 1) * n // o) - i * n // o for i in range(o))
            for n, o in zip(self.spatial, self.output_size, strict=True)
        )


@dataclass(frozen=True)
class Family:
    """Rows that aim at the same efficiency: `larger` than the last-level cache, `cached` in it."""

    title: str
    rows: tuple[Row, ...]
    larger: float | None = None
    cached: float | None = None
    most_of_narrow: float | None = None  # wide windows: time, at most, as a multiple of that of the 3-wide window
    note: str = ""


RESNET = (8, 64, 112, 112)
VGG = (8, 64, 224, 224)
INCEPTION = (8, 256, 35, 35)
YOLO = (8, 256, 20, 20)
SIGNALS = (32, 128, 16000)
VOLUMES = (2, 32, 32, 64, 64)
BOTH = ("max", "avg")


def in_both_orders(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        yield row
        yield dataclasses.replace(row, order=CHANNELS_LAST)


def adaptive() -> Iterator[Row]:
    for reduction in BOTH:
        for shape, output_size in (
            ((8, 512, 56, 56), (1, 1)),
            ((8, 512, 56, 56), (7, 7)),
            ((8, 512, 57, 57), (7, 7)),  # 7 does not divide 57: windows of two lengths
            ((8, 512, 56, 56), (3, 5)),
            ((8, 2048, 7, 7), (1, 1)),
            ((8, 2048, 7, 7), (3, 5)),
        ):
            yield Row(reduction, shape, output_size=output_size)


def images() -> Iterator[Row]:
    grey, rgb = (1, 1, 4096, 4096), (1, 3, 4096, 4096)
    for shape, order in ((grey, CHANNELS_FIRST), (rgb, CHANNELS_LAST)):
        for reduction in ("avg", "max"):
            yield Row(reduction, shape, 2, 2, dtype="uint8", order=order, fixed=True)
            yield Row(reduction, shape, 3, 1, 1, dtype="uint8", order=order, fixed=True)
    yield Row("avg", grey, 2, 2, fixed=True)
    yield Row("avg", (1, 1, 128, 512, 512), 2, 2, dtype="uint8", fixed=True)


SMALL = (
    *(Row(r, RESNET, 3, 2, 1) for r in BOTH),
    *(Row(r, VGG, 2, 2) for r in BOTH),
    *(Row(r, INCEPTION, 3, 1, 1) for r in BOTH),
    Row("max", YOLO, 3, 2),
    *(Row(r, (1, 3, 2160, 3840), 2, 2) for r in BOTH),  # few planes: threads must share one
    Row("max", RESNET, 3, 2, ceil=True),  # GoogLeNet
    Row("max", (8, 64, 111, 111), 3, 2, ceil=True),  # SqueezeNet
)
TINY = (Row("max", YOLO, 5, 1, 2), *(Row(r, (8, 832, 7, 7), 3, 1, 1) for r in BOTH))

FAMILIES = (
    Family("Small windows", tuple(in_both_orders(SMALL)), 0.85, 0.6),
    Family("5×5 windows and tiny planes", tuple(in_both_orders(TINY)), 0.85, 0.4),
    Family(
        "Wide windows",
        (Row("max", YOLO, 13, 1, 6), Row("max", (1, 3, 1024, 1024), 31, 1, 15), Row("max", (1, 128, 160000), 64, 1)),
        most_of_narrow=1.5,
        note="*× 3-wide* is the time as a multiple of that of the 3-wide window of the same stride on the same data.",
    ),
    Family("Signals", tuple(Row(r, SIGNALS, k, k) for k, r in product((2, 4), BOTH)), 0.85, 0.6),
    Family(
        "Volumes",
        (*(Row(r, VOLUMES, 2, 2) for r in BOTH), *(Row(r, VOLUMES, 3, 2, 1) for r in BOTH)),
        0.85,
        0.6,
    ),
    Family("Adaptive and global", tuple(adaptive()), 0.85, 0.6),
    Family("Dilation", tuple(in_both_orders([Row("max", (8, 64, 56, 56), 3, 1, 2, dilation=2)])), 0.6, 0.4),
    Family(
        "With indices",
        tuple(Row("max", s, k, 2, p, mode="indices") for s, k, p in ((RESNET, 3, 1), (VGG, 2, 0))),
        0.7,
        0.5,
        note="The bytes of the int64 indices, which no library writes into memory of the caller's except ONNX Runtime "
        "and OpenVINO, count as written.",
    ),
    Family(
        "Training forward",
        tuple(Row("max", s, k, 2, p, mode="training") for s, k, p in ((RESNET, 3, 1), (VGG, 2, 0))),
        0.7,
        0.5,
        note="The result, and what its gradient needs: codes of one byte for ours, which are allocated in the call, "
        "int64 indices for PyTorch. The bytes of our codes count as written.",
    ),
    Family(
        "Backward",
        (
            *in_both_orders(Row(r, RESNET, 3, 2, 1, mode="backward") for r in BOTH),
            *(Row(r, VGG, 2, 2, mode="backward") for r in BOTH),
            *(Row(r, INCEPTION, 3, 1, 1, mode="backward") for r in BOTH),
            Row("max", YOLO, 5, 1, 2, mode="backward"),
            Row("max", (8, 64, 56, 56), 7, 2, 3, mode="backward"),
            Row("lp", VGG, 2, 2, mode="backward"),
            *(Row(r, (8, 512, 56, 56), output_size=(n, n), mode="backward") for n in (7, 1) for r in BOTH),
        ),
        0.8,
        0.5,
        note="The gradient alone, without its forward.",
    ),
    Family(
        "Other dtypes",
        tuple(
            row
            for dtype in ("float16", "bfloat16", "uint8", "int32", "float64")
            for row in (Row("max", RESNET, 3, 2, 1, dtype=dtype), Row("avg", VGG, 2, 2, dtype=dtype))
        ),
        0.85,
        0.6,
    ),
    Family("Images", tuple(images()), 0.8, note="One picture or volume, at its own size."),
    Family(
        "Strided input",
        tuple(Row("max", RESNET, 3, 2, 1, order=order) for order in (TRANSPOSED, CROPPED, STEPPED)),
        0.5,
        0.5,
        note="The input is a view, the result as if it had been contiguous. The bytes of the view's elements count, "
        "not those between them.",
    ),
    Family(
        "Masks",
        (
            *(Row(r, s, k, t, p, mode="mask") for s, k, t, p in ((RESNET, 3, 2, 1), (VGG, 2, 2, 0)) for r in BOTH),
            *(Row(r, (8, 512, 56, 56), output_size=n, mode="mask") for n in ((1, 1), (7, 7)) for r in BOTH),
        ),
        0.5,
        0.5,
        note="A mask of the size of the input, whose bytes count as read. No other library has masks.",
    ),
    Family(
        "Powers and exponentials",
        (
            *(Row("lp", VGG, 2, 2, norm_type=p) for p in (1.0, 2.0, 3.0, math.inf)),
            Row("logsumexp", VGG, 2, 2),
        ),
        note="No targets: they compute more than they move.",
    ),
)

# For everyday use: what tells soonest that something became slower.
QUICK = (
    Row("max", RESNET, 3, 2, 1),
    Row("max", RESNET, 3, 2, 1, order=CHANNELS_LAST),
    Row("max", VGG, 2, 2),
    Row("avg", VGG, 2, 2),
    Row("avg", INCEPTION, 3, 1, 1),
    Row("max", YOLO, 13, 1, 6),
    Row("avg", SIGNALS, 4, 4),
    Row("max", VOLUMES, 2, 2),
    Row("avg", (8, 512, 56, 56), output_size=(1, 1)),
    Row("max", RESNET, 3, 2, 1, mode="indices"),
    Row("max", RESNET, 3, 2, 1, mode="backward"),
    Row("avg", VGG, 2, 2, dtype="bfloat16"),
    Row("avg", (1, 1, 4096, 4096), 2, 2, dtype="uint8", fixed=True),
)
