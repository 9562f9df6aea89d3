"""Geometry: which inputs does each output see?

A window set is a product of axes. On one axis, output ``o`` sees the inputs ``start(o) + t * step`` for the taps
``lo(o) <= t < hi(o)``; the other taps of the window lie in the padding. Nothing here knows what is done with the
inputs, their dtype or where they are stored.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from anypool.arguments import flag_argument, is_sequence, shown
from anypool.cached import cached_property
from anypool.limits import require

Ints = npt.NDArray[np.int64]
DivisorRule = Literal["window", "valid"]

_LARGEST = 2**62  # positions, sizes and taps stay below it, so that sums of two never overflow 64 bits
_REACH = 2**40  # a window with its padding: products with sizes of rows stay far from overflow
_TABLE_BYTES = 160  # for each window of a `Table` while it is made: Python's numbers and NumPy's


@dataclass(frozen=True)
class Axis:
    """Windows on one axis of ``n_in`` inputs, one for each of ``n_out`` outputs."""

    n_in: int
    n_out: int
    kernel: int  # taps of the largest window
    step: int  # distance between taps

    def spans(self, outputs: Ints | None = None) -> tuple[Ints, Ints, Ints, Ints]:
        """Return arrays ``(start, taps, lo, hi)`` for the given outputs (all of them by default)."""
        raise NotImplementedError

    def taps(self, o: int) -> range:
        """Return the input positions that window ``o`` sees, padding left out."""
        start, _, lo, hi = (int(a[0]) for a in self.spans(np.array([o], np.int64)))
        return range(start + lo * self.step, start + hi * self.step, self.step)

    def divisor(self, rule: DivisorRule) -> Ints:
        """Return by how many elements a mean divides: those in the data, or those in the padded extent."""
        _, _, lo, hi = self.spans()
        return hi - lo

    def transpose(self) -> Axis:
        """Return the axis whose window ``j`` holds the outputs that see input ``j``."""
        raise NotImplementedError

    def part(self, first: int, stop: int) -> tuple[Axis, slice]:
        """Return the windows ``first … stop`` as those of an axis of their own, and which inputs that axis has."""
        raise NotImplementedError

    def _clip(self, start: Ints, taps: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        lo = np.where(start < 0, -(start // self.step), 0)
        hi = np.minimum(np.where(start >= self.n_in, 0, (self.n_in - 1 - start) // self.step + 1), taps)
        return start, taps, np.minimum(lo, hi), hi


@dataclass(frozen=True)
class Sliding(Axis):
    """Window ``o`` starts at ``o * stride - pad`` and has ``kernel`` taps, ``step`` (the dilation) apart."""

    stride: int
    pad: int = 0
    pad_hi: int = 0

    def spans(self, outputs: Ints | None = None) -> tuple[Ints, Ints, Ints, Ints]:
        o = np.arange(self.n_out, dtype=np.int64) if outputs is None else outputs
        return self._clip(o * self.stride - self.pad, np.full(o.shape, self.kernel, np.int64))

    def divisor(self, rule: DivisorRule) -> Ints:
        if rule == "valid":
            return super().divisor(rule)
        # PyTorch's rule: explicit padding counts, the part of a ceil_mode window that hangs over it does not.
        start = np.arange(self.n_out, dtype=np.int64) * self.stride - self.pad
        return np.clip((self.n_in + self.pad_hi - 1 - start) // self.step + 1, 0, self.kernel)

    def transpose(self) -> Axis:
        if self.stride == 1:
            pad = (self.kernel - 1) * self.step - self.pad
            return Sliding(self.n_out, self.n_in, self.kernel, self.step, 1, pad)
        return self.transposed()

    def transposed(self) -> Transposed:
        """Return the same whatever the stride: not as windows that slide, even where they would."""
        return Transposed(self.n_out, self.n_in, self.kernel, self.step // math.gcd(self.step, self.stride), self)

    def part(self, first: int, stop: int) -> tuple[Axis, slice]:
        start = first * self.stride - self.pad
        end = (stop - 1) * self.stride - self.pad + (self.kernel - 1) * self.step + 1
        lo, hi = max(start, 0), min(end, self.n_in)
        inputs = slice(lo, max(lo, hi))
        part = Sliding(inputs.stop - lo, stop - first, self.kernel, self.step, self.stride, lo - start,
                       self.n_in + self.pad_hi - inputs.stop)  # fmt: skip
        return part, inputs

    def first_empty(self) -> int | None:
        """Return an output whose window lies wholly in the padding, if there is one."""
        # A window that starts inside the data sees its first tap. Of those that start before it, the first reaches the
        # least far; the others can miss the data only if it is shorter than the gap between two taps. Which of it they
        # then meet is their start modulo that gap: it comes again after so many windows, and while none misses, every
        # window meets another input.
        before = 1
        if self.n_in < self.step:
            again = self.step // math.gcd(self.step, self.stride)
            before = max(1, min(self.n_out, -(-max(self.pad, 0) // self.stride), again, self.n_in + 1))
        for i in range(0, before, 1 << 20):
            outputs = np.append(np.arange(i, min(before, i + (1 << 20)), dtype=np.int64), self.n_out - 1)
            _, _, lo, hi = self.spans(outputs)
            empty = outputs[lo >= hi]
            if empty.size:
                return int(empty[0])
        return None


@dataclass(frozen=True)
class Table(Axis):
    """Window ``o`` is ``first[o], first[o] + step, …``, ``count[o]`` taps, all inside the data; both ascend weakly."""

    first: tuple[int, ...]
    count: tuple[int, ...]

    @cached_property
    def _arrays(self) -> tuple[Ints, Ints]:
        return np.array(self.first, np.int64), np.array(self.count, np.int64)

    def spans(self, outputs: Ints | None = None) -> tuple[Ints, Ints, Ints, Ints]:
        first, count = self._arrays
        if outputs is not None:
            first, count = first[outputs], count[outputs]
        return first, count, np.zeros_like(first), count

    def transpose(self) -> Axis:
        first, count = self._arrays
        j = np.arange(self.n_in)
        start = np.searchsorted(first + count, j, side="right")
        stop = np.maximum(np.searchsorted(first, j, side="right"), start)
        return Table(self.n_out, self.n_in, int((stop - start).max(initial=1)), 1, tuple(start.tolist()),
                     tuple((stop - start).tolist()))  # fmt: skip

    def part(self, first: int, stop: int) -> tuple[Axis, slice]:
        starts, counts = self.first[first:stop], self.count[first:stop]
        lo, hi = starts[0], max(a + (n - 1) * self.step + 1 for a, n in zip(starts, counts, strict=True))
        part = Table(hi - lo, stop - first, self.kernel, self.step, tuple(a - lo for a in starts), counts)
        return part, slice(lo, hi)


@dataclass(frozen=True)
class Transposed(Axis):
    """Of the axis ``of``: input ``j``'s window is the outputs that saw it."""

    of: Sliding

    def spans(self, outputs: Ints | None = None) -> tuple[Ints, Ints, Ints, Ints]:
        of = self.of
        j = (np.arange(self.n_out, dtype=np.int64) if outputs is None else outputs) + of.pad
        first = -((-(j - (of.kernel - 1) * of.step)) // of.stride)
        last = j // of.stride
        # o must satisfy (j - o * stride) % dilation == 0; the solutions are `step` apart, if there are any.
        # With both divided by their greatest common divisor the stride has an inverse, which says how far the first is.
        common = of.step // self.step
        rest = j - first * of.stride
        inverse = pow(of.stride // common, -1, self.step) if self.step > 1 else 0
        small = self.step < 2**31  # else products leave 64 bits
        shift = (
            rest // common % self.step * inverse % self.step
            if small
            else np.array([int(v) // common * inverse % self.step for v in rest], np.int64)
        )
        start = first + np.where(rest % common == 0, shift, 0)
        taps = np.where((rest % common == 0) & (start <= last), (last - start) // self.step + 1, 0)
        return self._clip(start, taps)

    def transpose(self) -> Axis:
        return self.of


@dataclass(frozen=True)
class Windows:
    """A product of axes: output ``(o1, …, ok)`` sees the inputs ``W1(o1) × … × Wk(ok)``."""

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of outputs on each axis."""
        return tuple(a.n_out for a in self.axes)

    @property
    def n_taps(self) -> int:
        """Taps of the largest window."""
        return math.prod(a.kernel for a in self.axes)

    def transpose(self) -> Windows:
        """Return the windows of the adjoint: which outputs does each input reach?"""
        sliding = [a for a in self.axes if isinstance(a, Sliding) and a.n_out == 1]
        if len(sliding) == len(self.axes):  # of one output in all, a stride says nothing: its gradient fills the plane
            return Windows(tuple(a.transposed() for a in sliding))
        return Windows(tuple(a.transpose() for a in self.axes))

    @cached_property
    def some_empty(self) -> bool:
        """Whether some window lies wholly in the padding."""
        return any(
            a.n_in == 0 or (isinstance(a, Sliding) and a.first_empty() is not None) for a in self.axes if a.n_out
        )


# ---- arguments -------------------------------------------------------------------------------------------------------


def _error(name: str, rule: str, value: Any, where: str) -> ValueError:
    return ValueError(f"{name} {rule}, got {shown(value)} ({where})")


def size_argument(name: str, value: Any, where: str, *, at_least: int | None = None) -> int:
    """Check one integer argument. bool and float are not sizes."""
    number = None
    if not isinstance(value, (bool, np.bool_)):
        with suppress(TypeError):  # an array that is no integer
            number = operator.index(value)
    if number is None:
        raise TypeError(f"{name} must be an int, got {shown(value)} of type {type(value).__name__} ({where})")
    if at_least is not None and number < at_least:
        raise _error(name, f"must be >= {at_least}", number, where)
    if abs(number) >= _LARGEST:
        raise _error(name, "must be below 2**62", number, where)
    return number


def sizes_argument(name: str, value: Any, rank: int, where: str, *, at_least: int) -> tuple[int, ...]:
    """Check an int for all axes or a sequence with one int for each; one stands for all, as in PyTorch."""
    if is_sequence(value):
        items = list(value)
        if len(items) == 1:
            items *= rank
        if len(items) != rank:
            raise _error(name, f"must be one int or {rank} ints, one for each pooled axis", value, where)
        return tuple(size_argument(f"{name}[{i}]", v, where, at_least=at_least) for i, v in enumerate(items))
    return (size_argument(name, value, where, at_least=at_least),) * rank


def _pads(padding: Any, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
          where: str) -> list[tuple[int, int]]:  # fmt: skip
    rank = len(sizes)
    if isinstance(padding, str):
        if padding == "valid":
            return [(0, 0)] * rank
        if padding == "causal":
            return [((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True)]
        if padding in ("same", "same_lower"):
            pads = []
            for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
                total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
                small, large = total // 2, total - total // 2
                pads.append((small, large) if padding == "same" else (large, small))
            return pads
        raise _error(
            "padding", 'must be "valid", "same", "same_lower", "causal", ints or (low, high) pairs', padding, where
        )
    if is_sequence(padding) and any(is_sequence(p) for p in padding):
        if len(padding) != rank:
            raise _error("padding", f"must have {rank} (low, high) pairs", padding, where)
        pads = []
        for i, pair in enumerate(padding):
            if not is_sequence(pair) or len(pair) != 2:
                raise _error(f"padding[{i}]", "must be a (low, high) pair, as another one is", pair, where)
            lo, hi = sizes_argument(f"padding[{i}]", pair, 2, where, at_least=0)
            pads.append((lo, hi))
        return pads
    return [(p, p) for p in sizes_argument("padding", padding, rank, where, at_least=0)]


def output_size(n: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], ceil_mode: bool) -> int:
    """Return the number of windows, by PyTorch's rule: with ceil_mode the last one still starts inside the input or its
    left padding.
    """
    spare = n + sum(pads) - dilation * (kernel - 1) - 1
    out = (spare + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= n + pads[0]:
        out -= 1
    return out


def sliding_arguments(sizes: Sequence[int], kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                      ceil_mode: bool = False, *,
                      where: str = "") -> tuple[Any, Any, list[tuple[int, int]], Any, bool]:  # fmt: skip
    """Return kernel, stride, (low, high) padding and dilation of every axis, and ceil_mode: what `sliding` was told."""
    rank = len(sizes)
    kernel = sizes_argument("kernel_size", kernel_size, rank, where, at_least=1)
    unset = stride is None or (is_sequence(stride) and len(stride) == 0)
    strides = kernel if unset else sizes_argument("stride", stride, rank, where, at_least=1)
    dilations = sizes_argument("dilation", dilation, rank, where, at_least=1)
    pads = _pads(padding, sizes, kernel, strides, dilations, where)
    return kernel, strides, pads, dilations, flag_argument("ceil_mode", ceil_mode, where)


def _check_reach(i: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], where: str) -> None:
    """Refuse, of the arguments of axis ``i``, the one that makes a window reach too far."""
    below = "below 2**40 elements"
    if dilation * (kernel - 1) + 1 >= _REACH:
        name, value = ("dilation", dilation) if dilation >= kernel else ("kernel_size", kernel)
        raise _error(f"{name}[{i}]", f"must keep the span of a window {below}", value, where)
    if sum(pads) >= _REACH:
        raise _error(f"padding[{i}]", f"must be {below}, both sides together", pads, where)
    if stride >= _REACH:
        raise _error(f"stride[{i}]", f"must be {below}", stride, where)


def sliding(sizes: Sequence[int], kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
            ceil_mode: bool = False, *, may_be_empty: bool = False, where: str = "") -> Windows:  # fmt: skip
    """Windows that slide: PyTorch's kernel_size, stride, padding, dilation and ceil_mode, with freer padding.

    Parameters
    ----------
    sizes : sequence of int
        Inputs on each pooled axis.
    kernel_size, stride, dilation : int or sequence of int
        In elements; ``stride=None`` means ``kernel_size``.
    padding : int, sequence of int, sequence of (low, high) pairs, "valid", "same", "same_lower" or "causal"
        Of any size. ``"same"`` gives ``ceil(n / stride)`` outputs, odd padding at the end (TensorFlow's rule),
        ``"same_lower"`` at the beginning; ``"causal"`` pads only before, so that an output sees no later input.
    may_be_empty : bool
        Whether windows may lie wholly in the padding.
    where : str
        What error messages say about the array.

    Raises
    ------
    ValueError
        If an argument is out of range, there would be no output, or a window lies wholly in the padding.
    """
    kernel, strides, pads, dilations, ceil = sliding_arguments(
        sizes, kernel_size, stride, padding, dilation, ceil_mode, where=where
    )
    axes = []
    for i, (n, k, s, d, p) in enumerate(zip(sizes, kernel, strides, dilations, pads, strict=True)):
        reach = d * (k - 1) + 1
        _check_reach(i, k, s, d, p, where)
        out = output_size(n, k, s, d, p, ceil)
        if (n < 1 and not may_be_empty) or out < 1:
            raise _error(
                f"kernel_size[{i}]",
                f"must fit the input: a window spans {reach} of {n} + {sum(p)} (padding) elements",
                k,
                where,
            )
        axis = Sliding(n, out, k, d, s, *p)
        if not may_be_empty and (empty := axis.first_empty()) is not None:
            rule = f"must leave every window some input, or empty= give a value: window {empty} has none"
            raise _error(f"padding[{i}]", rule, p, where)
        axes.append(axis)
    if math.prod(kernel) >= _LARGEST:
        raise _error("kernel_size", "must give a window fewer than 2**62 taps", tuple(kernel), where)
    return Windows(tuple(axes))


def adaptive_arguments(sizes: Sequence[int], output_size: Any, *, where: str = "") -> list[Any]:
    """Return what output_size says for every axis, None included."""
    rank = len(sizes)
    given = list(output_size) if is_sequence(output_size) else [output_size]
    if len(given) == 1:
        given *= rank
    if len(given) != rank:
        raise _error("output_size", f"must be one int or {rank} ints, one for each pooled axis", output_size, where)
    return given


def adaptive(sizes: Sequence[int], output_size: Any, *, may_be_empty: bool = False, where: str = "") -> Windows:
    """Windows that divide an axis: output ``i`` of ``o`` sees ``floor(i n / o) … ceil((i + 1) n / o)``, as in PyTorch.

    ``None`` for an axis keeps its size. The bounds are exact integers, for any length.
    """
    given = adaptive_arguments(sizes, output_size, where=where)
    outputs = [n if w is None else w for n, w in zip(sizes, given, strict=True)]
    axes: list[Axis] = []
    for i, (n, wanted) in enumerate(zip(sizes, given, strict=True)):
        out = n if wanted is None else size_argument(f"output_size[{i}]", wanted, where, at_least=0)
        if n < 1 and not may_be_empty:
            raise _error(f"x.shape along pooled axis {i}", "must be >= 1, or empty= give a value", n, where)
        if out > n and math.prod(o for o in outputs if isinstance(o, int)) >= 2**40:
            raise _error(f"output_size[{i}]", "must give fewer than 2**40 outputs in all", out, where)
        if out == 0 or n % out == 0:
            width = max(n // out if out else n, 1)
            axes.append(Sliding(n, out, width, 1, width))
            continue
        require(out * _TABLE_BYTES, f"the list of {out} windows", where)
        o = np.arange(out, dtype=np.int64) if out * n < _LARGEST else np.arange(out, dtype=object)
        first, stop = o * n // out, -(-(o + 1) * n // out)
        count = stop - first
        axes.append(Table(n, out, int(count.max()), 1, tuple(first.tolist()), tuple(count.tolist())))
    return Windows(tuple(axes))


def whole(sizes: Sequence[int], *, may_be_empty: bool = False, where: str = "") -> Windows:
    """One window over everything: global pooling."""
    if may_be_empty:
        return Windows(tuple(Sliding(n, 1, max(n, 1), 1, max(n, 1)) for n in sizes))
    return sliding(sizes, tuple(sizes), where=where) if min(sizes, default=1) > 0 else adaptive(sizes, 1, where=where)


def placed(sizes: Sequence[int], starts: Iterable[Sequence[int]], kernel: Sequence[int]) -> Windows:
    """Windows of one size at given places on each axis, as fractional pooling draws them."""
    return Windows(tuple(
        Table(n, len(s), k, 1, tuple(int(v) for v in s), (k,) * len(s))
        for n, s, k in zip(sizes, starts, kernel, strict=True)
    ))  # fmt: skip
