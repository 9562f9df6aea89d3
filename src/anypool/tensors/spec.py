"""What to do with a tensor, in plain values: what an operator of `torch.library` can take as its arguments.

A `Description` says it as the caller did, and may need the array's shape to be understood. A `Spec` says the same in
full: which axes, and every size for every axis. Sizes may be symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from anypool import windows as geometry
from anypool.operation import Description, Problem, pooled_axes, reduction_of, resolve
from anypool.reductions import BFLOAT16, LARGEST_MAGNITUDE

_NAMES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
)
NUMPY: dict[Any, Any] = {getattr(torch, n): BFLOAT16 if n == "bfloat16" else np.dtype(n) for n in _NAMES}
TORCH: dict[str, Any] = {n: getattr(torch, n) for n in _NAMES}

SCHEMA = (
    "str reduction, str geometry, int[] axes, SymInt[] size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "bool ceil_mode, bool count_include_pad, int? divisor_override, float parameter, bool signed, ScalarType? dtype"
)


class Spec(NamedTuple):
    """The arguments that all operators share, in the order of `SCHEMA`."""

    reduction: str
    geometry: str  # "sliding" or "adaptive"
    axes: tuple[int, ...]
    size: tuple[int, ...]  # of the windows, or of the result
    stride: tuple[int, ...]
    padding: tuple[int, ...]  # low, high of the first axis, low, high of the next …
    dilation: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None
    parameter: float
    signed: bool
    dtype: Any

    @classmethod
    def of(cls, values: Sequence[Any]) -> Spec:
        """Return the spec that an operator was given; the dispatcher makes lists of tuples."""
        plain: list[Any] = [tuple(v) if isinstance(v, (list, tuple)) else v for v in values]
        return cls(*plain)

    def description(self) -> Description:
        """Return it as the rest of the package reads it."""
        args: tuple[Any, ...] = (self.size,)
        if self.geometry == "sliding":
            pads = tuple(zip(self.padding[::2], self.padding[1::2], strict=True))
            args = (self.size, self.stride, pads, self.dilation, self.ceil_mode)
        return Description(
            "pool", self.reduction, self.geometry, args, None, self.axes, "channels_first", False,
            self.count_include_pad, self.divisor_override, self.parameter, self.signed, True,
            None if self.dtype is None else NUMPY[self.dtype],
        )  # fmt: skip

    def batched(self) -> Spec:
        """Return the same for tensors with one more axis in front."""
        return self._replace(axes=tuple(a + 1 for a in self.axes))

    @property
    def selects(self) -> bool:
        """Whether the result is one of the inputs."""
        return self.reduction in ("max", "min")

    @property
    def linear(self) -> bool:
        """Whether the gradient needs neither the input nor the result."""
        return self.reduction in ("sum", "mean")

    def outputs(self, shape: Sequence[Any]) -> list[Any]:
        """Return the shape of the result for an input of this shape, either of which may be symbolic."""
        sizes = list(shape)
        for i, a in enumerate(self.axes):
            if self.geometry == "sliding":
                pads = (self.padding[2 * i], self.padding[2 * i + 1])
                sizes[a] = geometry.output_size(
                    shape[a], self.size[i], self.stride[i], self.dilation[i], pads, self.ceil_mode
                )
            else:
                sizes[a] = self.size[i]
        return sizes

    def taps(self, shape: Sequence[int]) -> list[int]:
        """Return how many taps the largest window has on each axis."""
        if self.geometry == "sliding":
            return list(self.size)
        return [_largest_bin(int(shape[a]), int(out)) for a, out in zip(self.axes, self.size, strict=True)]


def _largest_bin(n: int, out: int) -> int:
    """Return the most inputs of an adaptive window ``floor(i n / out) … ceil((i + 1) n / out)``."""
    if out == 0:
        return n
    whole, rest = n // out, n % out
    # i * rest runs through the multiples of the greatest common divisor of rest and out: the closest to the next one is
    # so far from it, and only if rest reaches farther does a bin see one more.
    return whole + (0 if rest == 0 else 1 if out % rest == 0 else 2)


def spec_of(what: Description, shape: Sequence[Any], where: str) -> Spec:
    """Return the spec of a call on a tensor of this shape."""
    axes = pooled_axes(tuple(shape), what, where)
    sizes = [shape[a] for a in axes]
    reduction, parameter = reduction_of(what, where)
    name = "largest" if reduction is LARGEST_MAGNITUDE else reduction.name
    ones, ceil = (1,) * len(axes), False
    size: Sequence[Any] = ones
    stride, dilation, padding = ones, ones, (0, 0) * len(axes)
    if what.geometry == "sliding":
        size, stride, pads, dilation, ceil = geometry.sliding_arguments(sizes, *what.geometry_args, where=where)
        padding = tuple(p for pair in pads for p in pair)
    elif what.geometry == "adaptive":
        given = geometry.adaptive_arguments(sizes, *what.geometry_args, where=where)
        size = [
            n if out is None else geometry.size_argument(f"output_size[{i}]", out, where, at_least=0)
            for i, (n, out) in enumerate(zip(sizes, given, strict=True))
        ]
    return Spec(
        name, "sliding" if what.geometry == "sliding" else "adaptive", axes, _numbers(size), tuple(stride),
        _numbers(padding), tuple(dilation), ceil, what.count_include_pad, what.divisor_override, parameter, what.signed,
        _dtype(what.dtype, where),
    )  # fmt: skip


def _numbers(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return sizes that ``torch.jit.trace`` may have made tensors of: its lists hold no mixture of both."""
    return tuple(int(v) if isinstance(v, torch.Tensor) else v for v in values)


def _dtype(wanted: Any, where: str) -> Any:
    if wanted is None or isinstance(wanted, torch.dtype):
        return wanted
    try:
        return TORCH[wanted.name if wanted is BFLOAT16 else np.dtype(wanted).name]
    except (TypeError, KeyError) as error:
        raise TypeError(f"dtype must be a dtype of PyTorch or NumPy, got {wanted!r} ({where})") from error


# ---- memory ----------------------------------------------------------------------------------------------------------


class _Flags(NamedTuple):
    aligned: bool = True
    c_contiguous: bool = True


class Memory(NamedTuple):
    """Of a tensor, what planning asks an array for."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    dtype: Any

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        size: int = self.dtype.itemsize
        return size

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def flags(self) -> _Flags:
        """A tensor's elements are always whole elements apart."""
        return _Flags()


def memory(shape: Sequence[int], strides: Sequence[int], dtype: Any) -> Memory:
    """Describe memory of these strides (in elements)."""
    kind = NUMPY.get(dtype)
    if kind is None:
        raise TypeError(f"x must be bool, integer, float16, bfloat16, float32 or float64, got {dtype} (x: {shape})")
    return Memory(tuple(shape), tuple(s * kind.itemsize for s in strides), kind)


def memory_of(x: torch.Tensor) -> Memory:
    """Describe where a tensor lies."""
    return memory(tuple(x.shape), x.stride(), x.dtype)


def channels_last(x: torch.Tensor) -> bool:
    """Return whether results for x lie channels-last: PyTorch's rule for tensors of 4 and 5 axes."""
    if x.ndim not in (4, 5):
        return False
    sizes, steps = x.shape, x.stride()
    if x.layout is torch.strided and all(type(n) is int for n in (*sizes, *steps)):
        # The rule of c10/core/MemoryFormat.h. PyTorch's own form of it is for symbols, too, and imports SymPy: 0.6 s.
        least = 0
        for axis in (1, *range(x.ndim - 1, 1, -1), 0):
            if sizes[axis] == 0 or steps[axis] < least or (axis == 0 and steps[1] in (0, least)):
                return False
            least = steps[axis] * sizes[axis]
        return True
    from torch._prims_common import suggest_memory_format

    return suggest_memory_format(x) is not torch.contiguous_format


def memory_format(ndim: int, last: bool) -> Any:
    """Return PyTorch's name for the order of axes in memory."""
    if not last:
        return torch.contiguous_format
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def dense(shape: Sequence[int], last: bool) -> tuple[int, ...]:
    """Return the strides of a new tensor."""
    form = memory_format(len(shape), last)
    strides: tuple[int, ...] = torch.empty(tuple(shape), device="meta", memory_format=form).stride()
    return strides


class Origin(NamedTuple):
    """What a gradient has to look like: the input's shape, dtype and order in memory."""

    shape: tuple[int, ...]
    dtype: Any
    channels_last: bool

    @classmethod
    def of(cls, x: torch.Tensor) -> Origin:
        """Return those of x."""
        return cls(tuple(x.shape), x.dtype, channels_last(x))

    def batched(self, n: int) -> Origin:
        """Return the same with n of them in front."""
        return Origin((n, *self.shape), self.dtype, False)

    def memory(self) -> Memory:
        """Describe the gradient's memory."""
        return memory(self.shape, dense(self.shape, self.channels_last), self.dtype)


def problem_of(where: Memory, spec: Spec) -> Problem:
    """Return the resolved problem for tensors of this shape and dtype."""
    return resolve(where, spec.description())  # type: ignore[arg-type]
