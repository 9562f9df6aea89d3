"""The case table of the tests: arrays, window arguments, dtypes. What is measured stands in benchmarks/rows.py.

Every entry says why it is there. Importing this needs NumPy only; the hypothesis strategies
drawn from the same tables are in strategies.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

try:
    import ml_dtypes
except ModuleNotFoundError:  # bfloat16 is optional, for the package and for its tests
    ml_dtypes = None

# ------------------------------------------------------------------------------------ dtypes

BOOL = ("bool",)
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
HALVES = ("float16",) if ml_dtypes is None else ("float16", "bfloat16")
FLOATS = (*HALVES, "float32", "float64")
DTYPES = (*BOOL, *INTEGERS, *FLOATS)

REDUCTIONS = ("max", "min", "sum", "mean", "lp", "logsumexp")  # that merge states and have a gradient
OF_WINDOWS = ("median", "quantile", "std", "var", "softmax")  # that need a whole window, and have a gradient
WITHOUT_GRADIENT = ("any", "all", "mode")
LAYOUTS = ("channels_first", "channels_last")


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def limits(dtype: np.dtype):
    """Smallest and largest finite value."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return info.min, info.max
    info = ml_dtypes.finfo(dtype) if dtype.name == "bfloat16" else np.finfo(dtype)
    return float(info.min), float(info.max)


# --------------------------------------------------------------------------------- array zoo


@dataclass(frozen=True)
class Array:
    """One inhabitant of the zoo: `build(shape, dtype)` makes it, `why` says what it catches."""

    name: str
    why: str
    build: Callable[[tuple[int, ...], np.dtype], np.ndarray] = field(repr=False)
    dtypes: tuple[str, ...] = DTYPES
    reductions: tuple[str, ...] = REDUCTIONS


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([20250, *key])


def plain(shape, dtype) -> np.ndarray:
    """Ordinary data: normal floats, full-range small integers, fair bools."""
    generator = rng(len(shape), *shape)
    if dtype.kind == "b":
        return generator.random(shape) < 0.5
    if dtype.kind in "iu":
        bits = min(8 * dtype.itemsize, 40) - (dtype.kind == "i")
        low = 0 if dtype.kind == "u" else -(1 << bits)
        return generator.integers(low, 1 << bits, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def ties(shape, dtype) -> np.ndarray:
    values = rng(1, *shape).integers(0, 2 if dtype.kind == "b" else 4, shape)
    return (values if dtype.kind in "bu" else values - 2).astype(dtype)


def constant(shape, dtype) -> np.ndarray:
    return np.full(shape, 1, dtype)


def ramp(sign: int):
    def build(shape, dtype):
        steps = np.arange(int(np.prod(shape))).reshape(shape) % 100
        return (steps if sign > 0 else 99 - steps).astype(dtype)

    return build


def sprinkled(*values):
    """Plain data with special values at every third place, in turn."""

    def build(shape, dtype):
        x = plain(shape, dtype)
        flat = x.reshape(-1)
        for i, v in enumerate(values):
            flat[i * 3 :: 3 * len(values)] = v
        return x

    return build


def all_of(value):
    return lambda shape, dtype: np.full(shape, value, dtype)


def lowest(shape, dtype) -> np.ndarray:
    return np.full(shape, limits(dtype)[0], dtype)


def extremes(shape, dtype) -> np.ndarray:
    x = np.empty(shape, dtype)
    x.reshape(-1)[0::2], x.reshape(-1)[1::2] = limits(dtype)
    return x


def offset(shape, dtype) -> np.ndarray:
    big = min(1e9, limits(dtype)[1] / 64)
    return (big + plain(shape, np.dtype(np.float64))).astype(dtype)


def subnormal(shape, dtype) -> np.ndarray:
    tiny = float(np.ldexp(1.0, {"float16": -24, "bfloat16": -133, "float32": -149}.get(dtype.name, -1074)))
    return (rng(2, *shape).integers(-9, 10, shape) * tiny).astype(dtype)


def moving_nan(shape, dtype) -> np.ndarray:
    """Row i has its NaN at place i: every lane of every row."""
    x = plain(shape, dtype)
    rows = x.reshape(-1, shape[-1])
    for i in range(len(rows)):
        rows[i, i % shape[-1]] = np.nan
    return x


def transposed(shape, dtype) -> np.ndarray:
    return plain(shape[::-1], dtype).transpose()


def fortran(shape, dtype) -> np.ndarray:
    return np.asfortranarray(plain(shape, dtype))


def channels_swapped(shape, dtype) -> np.ndarray:
    """The other layout's memory under this layout's shape."""
    return np.moveaxis(plain((shape[0], *shape[2:], shape[1]), dtype), -1, 1)


def negative(shape, dtype) -> np.ndarray:
    return plain(shape, dtype)[(slice(None, None, -1),) * len(shape)]


def reversed_rows(shape, dtype) -> np.ndarray:
    return plain(shape, dtype)[..., ::-1]


def sliced(shape, dtype) -> np.ndarray:
    room = tuple(2 * n + 3 for n in shape)
    return plain(room, dtype)[tuple(slice(1, 1 + 2 * n, 2) for n in shape)]


def cropped(shape, dtype) -> np.ndarray:
    room = tuple(n + 2 for n in shape)
    return plain(room, dtype)[tuple(slice(1, 1 + n) for n in shape)]


def broadcast_batch(shape, dtype) -> np.ndarray:
    return np.broadcast_to(plain(shape[1:], dtype), shape)


def broadcast_row(shape, dtype) -> np.ndarray:
    return np.broadcast_to(plain((*shape[:-1], 1), dtype), shape)


def broadcast_column(shape, dtype) -> np.ndarray:
    return np.broadcast_to(plain((*shape[:-2], 1, shape[-1]), dtype), shape)


def broadcast_scalar(shape, dtype) -> np.ndarray:
    return np.broadcast_to(np.array(1, dtype), shape)


def read_only(shape, dtype) -> np.ndarray:
    x = plain(shape, dtype)
    x.flags.writeable = False
    return x


def misaligned(shape, dtype) -> np.ndarray:
    x = plain(shape, dtype)
    room = np.empty(x.nbytes + 1, np.uint8)
    y = room[1:].view(dtype).reshape(shape)
    y[...] = x
    return y


SELECT = ("max", "min")
SMOOTH = ("max", "min", "sum", "mean", "logsumexp")

VALUES = (
    Array("plain", "ordinary data", plain),
    Array("ties", "four values only: the first in row-major order wins", ties),
    Array("constant", "everything ties", constant),
    Array("rising", "the last tap wins", ramp(+1)),
    Array("falling", "the first tap wins", ramp(-1)),
    Array("signed zeros", "-0.0 equals 0.0, so the first one wins", sprinkled(-0.0, 0.0), FLOATS),
    Array("all -0.0", "a padded window must not turn into 0.0", all_of(-0.0), FLOATS, SELECT),
    Array("nan", "NaN propagates", sprinkled(np.nan), FLOATS),
    Array("moving nan", "NaN in every lane, head and tail of a row", moving_nan, FLOATS),
    Array("all nan", "the last NaN wins", all_of(np.nan), FLOATS),
    Array("infinities", "inf - inf is NaN, inf is data", sprinkled(np.inf, -np.inf), FLOATS),
    Array("nan and inf", "NaN beats inf in max, min and norms", sprinkled(np.inf, np.nan), FLOATS),
    Array("all -inf", "equals the identity of max, but has a valid index", all_of(-np.inf), FLOATS, SMOOTH),
    Array("all inf", "equals the identity of min", all_of(np.inf), FLOATS),
    Array("lowest", "the smallest value is data", lowest, INTEGERS + FLOATS, SELECT),
    Array("extremes", "signed and unsigned comparisons, wide sums", extremes, INTEGERS[:6], SMOOTH[:4]),
    Array("extremes 64", "no detour through float64", extremes, INTEGERS[6:], ("max", "min", "sum")),
    Array("offset", "1e9 + noise: a sum that cancels would show", offset, FLOATS, SMOOTH),
    Array("subnormal", "no flush to zero", subnormal, FLOATS, ("max", "min", "sum")),
)

MEMORY = (
    Array("transposed", "the slow axis is contiguous", transposed),
    Array("fortran", "column-major", fortran),
    Array("other layout", "channels last under channels first, or the reverse", channels_swapped),
    Array("negative", "all strides negative", negative),
    Array("reversed rows", "a negative inner stride", reversed_rows),
    Array("sliced", "every second element of everything", sliced),
    Array("cropped", "rows are contiguous, planes are not", cropped),
    Array("broadcast batch", "0-stride outer axis", broadcast_batch),
    Array("broadcast row", "0-stride inner axis", broadcast_row),
    Array("broadcast column", "0-stride middle axis", broadcast_column),
    Array("broadcast scalar", "all strides 0", broadcast_scalar),
    Array("read-only", "inputs are only read", read_only),
    Array("misaligned", "data at an odd address", misaligned),
)

ZOO = VALUES + MEMORY

# Channels-first shapes for each number of pooled axes. Rows are narrower than, equal to and
# wider than a vector of any level (4 to 64 lanes), sizes are odd and non-divisible.
SHAPES = {
    1: ((2, 3, 19), (1, 2, 1), (1, 33, 5), (3, 2, 67), (1, 1, 130)),
    2: ((2, 3, 7, 9), (1, 1, 1, 1), (1, 17, 5, 4), (2, 1, 3, 35), (1, 2, 13, 1)),
    3: ((2, 2, 5, 4, 7), (1, 1, 1, 1, 1), (1, 17, 3, 4, 2), (1, 1, 2, 5, 34)),
}
EMPTY_SHAPES = {rank: ((0, 3) + (9,) * rank, (2, 0) + (9,) * rank) for rank in (1, 2, 3)}


def special(shape: tuple[int, ...], dtype: np.dtype, which: str) -> np.ndarray:
    """Standard normal numbers, among them what `which` says: for kernels that treat vectors with a NaN apart."""
    x = np.random.default_rng(5).standard_normal(shape).astype(dtype)
    flat = x.reshape(-1)
    if which == "NaN in each lane":
        flat[:: max(1, flat.size // 40) | 1] = np.nan
    elif which == "one NaN at the end":
        flat[-1] = np.nan
    elif which == "infinities and zeros":
        flat[::3], flat[1::7], flat[2::5] = -np.inf, np.inf, -0.0
    return x


def to_layout(x: np.ndarray, layout: str) -> np.ndarray:
    """A channels-first array as the layout names it (a view)."""
    return x if layout == "channels_first" else np.moveaxis(x, 1, -1)


def pooled_axes(rank: int, layout: str) -> tuple[int, ...]:
    first = 2 if layout == "channels_first" else 1
    return tuple(range(first, first + rank))


# ------------------------------------------------------------------------- window arguments


@dataclass(frozen=True)
class Windows:
    """Sliding-window arguments; per-axis tuples are cut to the rank."""

    name: str
    why: str
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    def kwargs(self, rank: int) -> dict[str, Any]:
        def cut(value):
            return value[:rank] if isinstance(value, tuple) else value

        return {
            "kernel_size": cut(self.kernel_size),
            "stride": cut(self.stride),
            "padding": cut(self.padding),
            "dilation": cut(self.dilation),
            "ceil_mode": self.ceil_mode,
        }


WINDOWS = (
    Windows("2", "the field's most common", 2),
    Windows("3 s2 p1", "ResNet's stem: overlap and padding", 3, 2, 1),
    Windows("3 s1 p1", "Inception's: same size out", 3, 1, 1),
    Windows("1", "a copy", 1),
    Windows("1 s2", "a strided copy", 1, 2),
    Windows("2 s3", "stride beyond the kernel leaves inputs unseen", 2, 3),
    Windows("3 s2 ceil", "the overhang does not count", 3, 2, 0, 1, True),
    Windows("3 s2 p1 ceil", "padding counts, overhang does not", 3, 2, 1, 1, True),
    Windows("2 s2 p1 ceil", "a last window that would start in the padding is dropped", 2, 2, 1, 1, True),
    Windows("2 d2", "dilation", 2, 1, 0, 2),
    Windows("3 s2 p2 d2 ceil", "dilation with everything else", 3, 2, 2, 2, True),
    Windows("3 s4 d3 p3", "taps further apart than a short axis", 3, 4, 3, 3),
    Windows("2 d4 p2", "a short axis falls between the taps: an error", 2, 1, 2, 4),
    Windows("5 s1 p2", "SPP: wide window, stride 1", 5, 1, 2),
    Windows("9 s1 p4", "wider than the input: the whole axis from everywhere", 9, 1, 4),
    Windows("13 s3 p6", "very wide, strided", 13, 3, 6),
    Windows("4 s4", "stride-4 de-interleave", 4, 4),
    Windows("3 s3 p1", "kernel equals stride, padded", 3, 3, 1),
    Windows("per axis", "axes must not be swapped", (3, 2, 1), (1, 2, 3), (1, 0, 0), (1, 2, 1)),
    Windows("per axis, rest", "the other way round", (1, 3, 2), (2, 1, 1), (0, 1, 1), (1, 1, 2), True),
    Windows("per side", "low and high must not be swapped", 3, 2, ((0, 2), (2, 0), (1, 2))),
    Windows("per side ceil", "an overhang after unequal sides", 3, 2, ((2, 1), (0, 1), (0, 2)), 1, True),
    Windows("beyond k/2", "padding has no limit but emptiness", 4, 3, ((3, 2), (3, 3), (2, 3))),
    Windows("valid", "no padding by name", 2, 1, "valid"),
    Windows("same", "the odd one goes to the end", 2, 1, "same"),
    Windows("same s2", "depends on the size", 3, 2, "same"),
    Windows("same d2", "reaches over the dilated kernel", 3, 1, "same", 2),
    Windows("same_lower", "the odd one goes to the start", 2, 1, "same_lower"),
    Windows("causal", "an output never sees its future", 3, 1, "causal"),
    Windows("causal s2 d2", "all of the above", 2, 2, "causal", 2),
    Windows("same, no overlap", "stride beyond the kernel needs no padding", 2, 3, "same"),
)

# A few that together reach every branch, for tests that multiply other things.
CORE_WINDOWS = tuple(
    w for w in WINDOWS if w.name in ("2", "3 s2 p1", "5 s1 p2", "3 s2 p2 d2 ceil", "per side ceil", "same")
)

NORM_TYPES = (1, 2, 3, 2.5, float("inf"))
