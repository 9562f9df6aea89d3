"""Which inputs count? Masks, omitted NaNs, weights and empty windows, for any reduction and on any backend.

What does not count is replaced by the value that changes nothing (`reductions.neutral`), a piece at a time, so that no
copy of the whole array is made; a second pass, over the mask, tells how many inputs are left in every window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from anypool import operation
from anypool.arguments import array_argument, flag_argument, number_argument, shown
from anypool.backends import Array, Backend, Divisor, Pass, registry, select
from anypool.backends.gathered import Source, pull
from anypool.cached import cached_property
from anypool.layouts import axis_order
from anypool.memory import empty_like
from anypool.operation import (
    Call,
    Description,
    Gradient,
    Problem,
    Selection,
    bools,
    gathering,
    output,
    pullback_of,
    refuse_generator,
    refuse_integers,
    refuse_without_gradient,
    resolve,
    tensors,
)
from anypool.reductions import check_dtype, divide_half_even, find, is_float, neutral, sign
from anypool.windows import Windows

PIECE = 1 << 22  # bytes of the input taken at once: they stay in a core's cache from one pass to the next

_COUNT, _BYTE, _BOOL = np.dtype(np.int64), np.dtype(np.uint8), np.dtype(bool)
_ONE = np.asarray(1)


class Piece(NamedTuple):
    """A part of the outputs, the inputs they see, and their windows over these."""

    inputs: tuple[slice, ...]
    outputs: tuple[slice, ...]
    windows: Windows
    first: int  # flat position, in the pooled axes, of its first input


def pieces(x: Array, windows: Windows, axes: tuple[int, ...], itemsize: int, *,
           whole_windows: bool = False) -> Iterator[Piece]:  # fmt: skip
    """Cut the slowest axes of ``x`` until the inputs of a piece take no more than `PIECE` bytes, if that is possible.

    A pooled axis is cut between outputs, never into pieces so small that most inputs would be read twice, and not at
    all with ``whole_windows``. Winners have flat positions, for which only the first pooled axis can be cut.
    """
    every = (slice(None),) * x.ndim
    rest = x.size * itemsize
    cuts: list[tuple[int, int]] = []  # (axis, its outputs in a piece)
    for axis in axis_order(x.strides):
        if rest <= PIECE or axis in axes[1:]:
            break
        if whole_windows and axis in axes:
            continue
        rest //= x.shape[axis]
        step = max(1, PIECE // max(rest, 1))
        if axis in axes:
            a = windows.axes[0]
            step = max(1, max(step, 4 * a.kernel * a.step) * a.n_out // a.n_in)
        cuts.append((axis, step))

    def cut(piece: Piece, which: int) -> Iterator[Piece]:
        if which == len(cuts):
            yield piece
            return
        axis, step = cuts[which]
        for at in range(0, windows.axes[0].n_out if axis in axes else x.shape[axis], step):
            chosen = inputs = slice(at, at + step)
            some, first = piece.windows, 0
            if axis in axes:
                part, inputs = windows.axes[0].part(at, min(at + step, windows.axes[0].n_out))
                some = Windows((part, *windows.axes[1:]))
                first = inputs.start * math.prod(a.n_in for a in windows.axes[1:])
            smaller = Piece(
                _at(piece.inputs, axis, inputs), _at(piece.outputs, axis, chosen), some, piece.first + first
            )
            yield from cut(smaller, which + 1)

    yield from cut(Piece(every, every, windows, 0), 0)


def _at(slices: tuple[slice, ...], axis: int, chosen: slice) -> tuple[slice, ...]:
    return (*slices[:axis], chosen, *slices[axis + 1 :])


def _part(array: Array, slices: tuple[slice, ...]) -> Array:
    """Return the part of an array that is broadcast: an axis of size one is there for every piece."""
    return array[tuple(slice(None) if n == 1 else s for s, n in zip(slices, array.shape, strict=True))]


class Passes(NamedTuple):
    """What runs on a piece."""

    values: Pass  # what each window makes of the inputs that count
    counts: Pass  # how many they are
    weights: Pass  # what their weights add up to
    first: Pass  # where the first of them is
    padded: bool  # whether some window has elements of the padding


class Selected:
    """A problem together with the inputs that count; ``codes`` as of a `Pass`."""

    def __init__(self, problem: Problem, x: Array, given: Selection, codes: str | None) -> None:
        self.where = where = f"x: {x.shape}"
        job = problem.job
        if not isinstance(given.nan, str) or given.nan not in ("propagate", "omit"):
            raise ValueError(f'nan must be "propagate" or "omit", got {shown(given.nan)} ({where})')
        self.problem, self.windows, self.axes, self.codes = problem, job.windows, job.axes, codes
        self.omit = given.nan == "omit" and is_float(x.dtype)
        self.return_valid = flag_argument("return_valid", given.return_valid, where)
        self.mask = None if given.mask is None else self._broadcast("mask", given.mask, x, "b", "bool")
        self.weights = None
        if given.weights is not None:
            self.check_weights()
            weights = self._broadcast("weights", given.weights, x, "fiu", "real numbers")
            self.weights = weights.astype(job.accumulator, copy=False)
        self.empty = self._empty(given.empty)
        self._counted: tuple[Any, Any] = (None, None)

    def check_weights(self) -> None:
        """Refuse weights for what is no weighted sum or mean."""
        job = self.problem.job
        if job.merge != "sum" or job.lift != "none":
            name = self.problem.reduction.name
            raise ValueError(f"weights need a sum or mean, got reduction {name!r} ({self.where})")
        if job.divisor is not None and job.divisor.constant is not None:
            raise ValueError(f"weights and divisor_override exclude each other ({self.where})")

    def _broadcast(self, name: str, value: Any, x: Array, kinds: str, words: str) -> Array:
        array = array_argument(name, value, self.where)
        if array.dtype.kind not in kinds and not ("f" in kinds and is_float(array.dtype)):
            raise TypeError(f"{name} must be {words}, got dtype {array.dtype} ({self.where})")
        if array.shape == x.shape:
            return array
        array = array.reshape(broadcast_shape(name, array.shape, x.shape))
        sizes: list[int] = list(array.shape)
        for axis in self.axes:
            sizes[axis] = x.shape[axis]
        return array if array.shape == tuple(sizes) else np.broadcast_to(array, sizes)

    def _empty(self, value: Any) -> Any:
        """Return the value of an empty window in the dtype of the result; None where there is none."""
        dtype = self.problem.job.result
        if value is None:
            return dtype.type(np.nan) if is_float(dtype) else None
        if not (dtype.kind == "b" and isinstance(value, (bool, np.bool_))):
            number_argument("empty", value, self.where)
        if is_float(dtype):
            with np.errstate(over="ignore"):
                return dtype.type(value)
        value = value.item() if isinstance(value, np.generic) else value  # NumPy would compare in the type of the value
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not (low <= value <= high and int(value) == value):
            raise ValueError(f"empty must be a value of {dtype}, got {shown(value)} ({self.where})")
        return dtype.type(int(value))

    @property
    def plain(self) -> bool:
        """Whether every input counts and every window has one."""
        return (self.mask is None and not self.omit and self.weights is None and not self.return_valid
                and not self.windows.some_empty and not self.problem.job.ignore)  # fmt: skip

    @cached_property
    def counted_mask(self) -> Array:
        """The mask, as bytes that can be added up; the kernels that look at it themselves take any."""
        assert self.mask is not None
        return bools(self.mask)

    # ---- passes ----

    @property
    def divides(self) -> bool:
        return self.problem.job.finish == "divide"

    @property
    def selects(self) -> bool:
        return self.problem.job.merge in ("max", "min")

    def passes(self, x: Array, windows: Windows) -> Passes:
        # A pass is for arrays of one shape and dtype; those of masks and weights follow from that of x.
        shapes = [None if a is None else a.shape for a in (self.mask, self.weights)]
        key = (windows, x.shape, *shapes, self.omit, self.codes)
        found: Passes | None = self.problem.passes.get(key)
        if found is None:
            job = self.problem.job
            values = job.changed(windows=windows, codes=self.codes)
            if self.divides:
                values = values.changed(finish="none", divisor=None, result=job.accumulator)
            elif self.codes:  # not rounded: two values that are not equal must not become so
                values = values.changed(result=job.accumulator)
            ones = Pass(windows, self.axes, "sum", "none", "none", 1.0, _COUNT, _COUNT)
            counts = ones
            if windows.n_taps <= 255:  # the kernels of means of bytes are faster than those of long sums
                counts = ones.changed(finish="divide", divisor=Divisor(windows, "window", 1.0), result=_BYTE)
            weights = ones.changed(accumulator=job.accumulator, result=job.accumulator)
            first = ones.changed(merge="max", accumulator=_BOOL, result=_BOOL, codes=self.codes)
            pairs = zip(Divisor(windows, "window").per_axis(), Divisor(windows, "valid").per_axis(), strict=True)
            padded = any((window != inside).any() for window, inside in pairs)
            found = self.problem.passes[key] = Passes(values, counts, weights, first, padded)
        return found

    def _run(self, job: Pass, x: Array, y: Array, codes: Array | None = None) -> None:
        if x.size:
            backend(job.windows, job, x).run(job, x, y, codes)

    def _sums(self, job: Pass, x: Array) -> Array:
        y = np.zeros(job.shape(x.shape), job.result)
        self._run(job, x, y)
        return y

    def valid(self, x: Array, piece: Piece) -> Array | None:
        """Return which of a piece's inputs count, or None for all."""
        mask = None if self.mask is None else _part(self.counted_mask, piece.inputs)
        if not self.omit:
            return mask
        numbers: Array = x == x
        if mask is not None:
            numbers &= mask
        return numbers

    def counts(self, x: Array, valid: Array | None, piece: Piece) -> Array:
        """Return how many inputs count in each window; it broadcasts to the result as the mask does to x."""
        if valid is None:
            return per_window(piece.windows, self.axes, x.ndim, "valid")
        if self.omit:
            return self._sums(self.passes(x, piece.windows).counts, valid)
        # The next piece may have the same part of the mask.
        key = (piece.windows, valid.shape, valid.__array_interface__["data"])
        if self._counted[0] != key:
            self._counted = key, self._sums(self.passes(x, piece.windows).counts, valid)
        counts: Array = self._counted[1]
        return counts

    def divisor(self, counts: Array, ndim: int, passes: Passes) -> Array:
        """Return what a mean without weights divides by."""
        divisor = self.problem.job.divisor
        assert divisor is not None
        if divisor.constant is not None:
            return np.asarray(divisor.constant)
        if divisor.rule == "valid":
            return counts
        if not passes.padded:
            return counts
        window, inside = (per_window(passes.values.windows, self.axes, ndim, rule) for rule in ("window", "valid"))
        padding: Array = window - inside  # what is masked is none
        return np.add(counts, padding)

    def refuse_empty(self, x: Array) -> None:
        """Say so where a window is empty and there is no value for it, before anything is written."""
        if self.empty is not None or (self.mask is None and not self.omit):
            return
        for piece in self.pieces(x):
            part = x[piece.inputs]
            if not self.counts(part, self.valid(part, piece), piece).all():
                result = self.problem.job.result
                raise ValueError(
                    f"mask must leave every window some input, or empty= give a value of {result} ({self.where})"
                )

    # ---- forward ----

    def forward(self, x: Array, y: Array, codes: Array | None, valid: Array | None, by: Array | None = None,
                out: Array | None = None) -> None:  # fmt: skip
        """Write the result, the winners, how many inputs count and, for a gradient, what a mean divides by.

        If y is memory of the caller's, it gets the result when that is whole: Ctrl-C leaves no half of it.
        """
        if codes is None and valid is None and by is None and self._at_once(x, y):
            return
        into = y if out is None else empty_like(y, y.dtype, y.shape)
        for piece in self.pieces(x):
            part, some = x[piece.inputs], piece.outputs
            counts, divisor = self._forward(part, piece, into[some], None if codes is None else codes[some])
            if valid is not None:
                valid[some] = counts
            if by is not None:
                by[some] = np.where(counts > 0, divisor, 0)
        if into is not y:
            y[...] = into

    def pieces(self, x: Array, *, whole_windows: bool = False) -> Iterator[Piece]:
        """Cut x so that a piece stays small as what it is added up in."""
        itemsize = max(x.itemsize, self.problem.job.accumulator.itemsize)
        return pieces(x, self.windows, self.axes, itemsize, whole_windows=whole_windows)

    def _at_once(self, x: Array, y: Array) -> bool:
        """Write the result, if there is a kernel that looks at the mask itself; return whether there is."""
        if not self._masks(x):
            return False
        job = self.problem.job
        none = neutral(job.merge, job.lift, job.p, x.dtype)
        return backend(self.windows, job, x).run_selected(job, x, y, self.mask, none, self.omit, self.empty)

    def _masks(self, x: Array) -> bool:
        return self.weights is None and (self.mask is not None or self.omit) and x.size > 0

    def kernel(self, x: Array) -> dict[str, Any] | None:
        """Return what looks at the mask itself, as a backend describes it, or None."""
        if not self._masks(x) or self.codes or self.return_valid:
            return None
        job = self.problem.job
        none = neutral(job.merge, job.lift, job.p, x.dtype)
        return backend(self.windows, job, x).describe_selected(job, x, self.mask, none, self.omit)

    def _forward(self, x: Array, piece: Piece, y: Array, codes: Array | None) -> tuple[Array, Array]:
        passes = self.passes(x, piece.windows)
        values, valid, weights = self._inputs(x, piece)
        job = passes.values
        state = y if y.dtype == job.result else empty_like(y, job.result, y.shape)
        self._run(job, values, state, codes)
        tied = None
        if self.selects and valid is not None:
            with np.errstate(over="ignore"):  # the largest uint16 as a float16
                tied = state == state.dtype.type(neutral(job.merge, job.lift, job.p, x.dtype))
        # A window in which nothing counts has no winner that is better than what was left out; one wholly in the
        # padding does not even have that.
        certain = not (self.return_valid or self.windows.some_empty)
        all_count = certain and tied is not None and not tied.any()
        counts, by = _ONE if all_count else self.counts(x, valid, piece), _ONE
        if self.divides:
            by = self.divisor(counts, x.ndim, passes) if weights is None else self._sums(passes.weights, weights)
            self._divide(state, counts, by, y)
        elif state is not y:
            with np.errstate(over="ignore"):
                y[...] = state
        if codes is not None and tied is not None:
            assert valid is not None
            self._mend(codes, tied, valid, passes.first)
        if self.codes == "index" and codes is not None:
            codes += piece.first
        nothing = counts == 0
        if nothing.any():
            np.copyto(y, self.empty, where=nothing)
            if self.codes == "index" and codes is not None:
                np.copyto(codes, -1, where=nothing)
        return counts, by

    def _divide(self, state: Array, counts: Array, by: Array, y: Array) -> None:
        with np.errstate(all="ignore"):
            if state.dtype.kind == "f":
                np.divide(state, by.astype(state.dtype), out=y, casting="unsafe")
            elif is_float(y.dtype):
                np.divide(state, by, out=y, casting="unsafe")
            else:
                y[...] = divide_half_even(state, np.where(counts > 0, by, 1).astype(state.dtype))

    def _inputs(self, x: Array, piece: Piece) -> tuple[Array, Array | None, Array | None]:
        """Return a piece's inputs, weighed, with the neutral one where nothing counts; what counts; and weights."""
        job = self.problem.job
        if self.weights is not None:
            valid, weights = self.valid(x, piece), _part(self.weights, piece.inputs)
            with np.errstate(all="ignore"):
                values = x.astype(job.accumulator, copy=False) * weights
            if valid is None:
                return values, None, weights
            nothing = weights.dtype.type(0)
            return np.where(valid, values, values.dtype.type(-0.0)), valid, np.where(valid, weights, nothing)
        mask = None if self.mask is None else _part(self.counted_mask, piece.inputs)
        if mask is None and not self.omit:
            return x, None, None
        none = neutral(job.merge, job.lift, job.p, x.dtype)
        values, valid = backend(self.windows, job, x).leave_out(x.astype(none.dtype, copy=False), mask, none, self.omit)
        return values, valid, None

    def _mend(self, codes: Array, tied: Array, valid: Array, first: Pass) -> None:
        """Where the winner is no better than what was left out, it is the first input that counts."""
        if tied.any():
            places = np.empty(first.shape(valid.shape), codes.dtype)
            self._run(first, valid, np.empty(places.shape, bool), places)
            np.copyto(codes, places, where=tied)

    # ---- backward ----

    def pull(self, job: Pass, x: Array, g: Array, by: Array, y: Array, grad_x: Array) -> None:
        """Write the gradient of a sum: ``job`` over the transposed windows, for what counts."""
        accumulator = job.accumulator
        through = job.finish != "none"
        for piece in self.pieces(x, whole_windows=True):
            part, out = x[piece.inputs], piece.outputs
            valid = self.valid(part, piece)
            some = np.broadcast_to(by[out] != 0, g[out].shape)
            scaled = np.zeros_like(g[out], accumulator)
            np.divide(g[out], by[out].astype(accumulator), out=scaled, where=some, casting="unsafe")
            aux, post = (y[out], self._inputs(part, piece)[0]) if through else (None, None)
            into = grad_x[piece.inputs]
            exact = into if into.dtype == job.result else empty_like(into, job.result, into.shape)
            run = self._adjoint(job, part)
            if scaled.size and exact.size:
                backend(self.windows, run, scaled).run(run, scaled, exact, None, aux, post)
            else:
                exact[...] = 0
            if self.weights is not None:
                exact *= _part(self.weights, piece.inputs)
            if exact is not into:
                into[...] = exact
            if valid is not None:
                np.copyto(into, 0, where=~valid)

    def _adjoint(self, job: Pass, x: Array) -> Pass:
        key = (job, x.shape)
        found: Pass | None = self.problem.passes.get(key)
        if found is None:
            found = self.problem.passes[key] = job.changed()
        return found


def backend(windows: Windows, job: Pass, x: Array) -> Backend:
    """Return what runs a pass; kernels expect that every window of the forward pass has an input."""
    return registry()["reference"] if windows.some_empty else select(job, x)[0]


def broadcast_shape(name: str, given: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a mask or of weights with ones in front, if they broadcast to that of x."""
    if len(given) > len(shape) or any(n not in (1, m) for n, m in zip(given[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name} must broadcast to the shape of x, got shape {given} (x: {shape})")
    return (1,) * (len(shape) - len(given)) + given


def per_window(windows: Windows, axes: tuple[int, ...], ndim: int, rule: str) -> Array:
    """Return the elements of each window, padding included or not."""
    total = np.ones((1,) * ndim, np.int64)
    for axis, n in zip(axes, Divisor(windows, rule).per_axis(), strict=True):
        total = total * n.reshape([-1 if a == axis else 1 for a in range(ndim)])
    return total


def run(call: Call) -> Any:
    """Return the pooled array, then the indices and the counts if they are asked for."""
    x, what, out, given, generator = call
    assert given is not None
    if type(x) is not np.ndarray:
        return tensors().selected(x, what, given, out, generator)
    with np.errstate(all="ignore"):
        return _run(x, what, out, given, generator)


def _run(x: Array, what: Description, out: Array | None, given: Selection, generator: Any) -> Any:
    x, problem, selected = _selected(x, what, given, "index")
    if selected.plain:
        return operation.run(Call(x, what, out, generator=generator))
    if problem.reduction.function is not None:
        return _gathered(selected, x, out, gathering().drawn(problem, generator))
    refuse_generator(problem, generator, selected.where)
    y, codes, valid = _allocated(selected, x, out, _COUNT if problem.return_indices else None)
    selected.forward(x, y, codes, valid, out=out)
    return _results(problem, out, y, codes, valid)


def explained(call: Call) -> tuple[dict[str, Any] | None, str]:
    """Return what a kernel that looks at the mask itself says of itself, or None; and a note on what runs."""
    in_pieces = "what does not count is left out of pieces of the input; another pass counts the rest"
    if type(call.x) is not np.ndarray:
        return None, in_pieces
    assert call.selection is not None
    x, problem, selected = _selected(call.x, call.what, call.selection, "index")
    if selected.plain:
        return None, "every input counts"
    found = None if problem.reduction.function is not None else selected.kernel(x)
    return found, "what does not count is left out by the kernel" if found else in_pieces


def _selected(x: Array, what: Description, given: Selection, codes: str | None) -> tuple[Array, Problem, Selected]:
    check_dtype(x.dtype, f"x: {x.shape}")
    if given.weights is not None and not is_float(x.dtype):
        x = x.astype(np.float64)  # there are no weighted integers
    problem = resolve(x, what)
    indexed = problem.return_indices or codes == "offset"
    return x, problem, Selected(problem, x, given, codes if indexed and problem.reduction.selects else None)


def _allocated(selected: Selected, x: Array, out: Array | None,
               codes: np.dtype[Any] | None) -> tuple[Array, Array | None, Array | None]:  # fmt: skip
    beside = (0 if codes is None else codes.itemsize) + (8 if selected.return_valid else 0)
    y = output(selected.problem, x, out, beside, mask=selected.mask, weights=selected.weights)
    selected.refuse_empty(x)
    return (y, None if codes is None else empty_like(y, codes, y.shape),
            empty_like(y, _COUNT, y.shape) if selected.return_valid else None)  # fmt: skip


def _results(problem: Problem, out: Array | None, y: Array, *others: Array | None) -> Any:
    squeezed = [a.squeeze(problem.squeeze) if problem.squeeze else a for a in others if a is not None]
    first = out if out is not None else y.squeeze(problem.squeeze) if problem.squeeze else y
    return (first, *squeezed) if squeezed else first


def differentiate(call: Call) -> tuple[Any, Callable[..., Any]]:
    """Return (result, pullback)."""
    with np.errstate(all="ignore"):
        return _differentiate(call)


def _differentiate(call: Call) -> tuple[Any, Callable[..., Any]]:
    x, what, out, given, generator = call
    assert given is not None
    given = given._replace(mask=_copied(given.mask), weights=_copied(given.weights))  # which a pullback reads again
    if type(x) is not np.ndarray:
        refuse_without_gradient(find(what.reduction), f"x: {tuple(x.shape)}")
        pulled: tuple[Any, Callable[..., Any]] = tensors().pulled(tensors().selected, x, what, given, out, generator)
        return pulled
    given_dtype = x.dtype
    x, problem, selected = _selected(x, what, given, "offset")
    if not is_float(given_dtype):  # also where weights make floats of them
        raise TypeError(f"vjp needs floating-point x, got {given_dtype} ({selected.where})")
    if selected.plain:
        return operation.differentiate(Call(x, what, out, generator=generator))
    refuse_integers(problem, x)
    refuse_generator(problem, generator, selected.where)
    if problem.reduction.function is not None:
        return _gathered_gradient(selected, x, out, gathering().drawn(problem, generator))
    selects = problem.reduction.adjoint == "select"
    y, codes, valid = _allocated(selected, x, out, problem.coded.code_dtype() if selects else None)
    accumulator = problem.job.accumulator
    by = np.empty(y.shape, np.float64 if accumulator == np.float64 else np.float32)  # 0 where nothing counts
    selected.forward(x, y, codes, valid, by, out)
    result = run(call) if problem.return_indices else _results(problem, out, y, valid)
    if codes is not None:
        gradient = _select_gradient(selected, x, codes, by)
        return result, pullback_of(x, y.squeeze(problem.squeeze), gradient)
    aux = y
    if y.dtype.itemsize < 4 and problem.adjoint.finish != "none":  # before it was rounded
        aux = empty_like(y, accumulator, y.shape)
        exact = replace(problem, job=problem.job.changed(result=accumulator))
        Selected(exact, x, given, None).forward(x, aux, None, None)
    gradient = _sum_gradient(selected, x, aux, by)
    return result, pullback_of(x, y.squeeze(problem.squeeze), gradient, x=x)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _source(selected: Selected, x: Array) -> Source:
    mask = None if selected.mask is None else np.broadcast_to(selected.counted_mask, x.shape)
    return Source(x, mask, selected.omit)


def _gathered(selected: Selected, x: Array, out: Array | None, draws: Array | None) -> Any:
    """Pool by a function of whole windows, which takes what counts with the rest."""
    problem = selected.problem
    select(problem.job, x)  # a backend that was asked for may be one that cannot
    y = output(problem, x, out, 24, mask=selected.mask)
    codes = empty_like(y, _COUNT, y.shape) if problem.return_indices else None
    source, own = _source(selected, x), out is None
    n = gathering().pool(problem, source, y, codes=codes, draws=draws, empty=selected.empty, own=own)
    return _results(problem, out, y, codes, n if selected.return_valid else None)


def _gathered_gradient(selected: Selected, x: Array, out: Array | None,
                       draws: Array | None) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
    problem, source = selected.problem, _source(selected, x)
    result = _gathered(selected, x, out, draws)
    if not problem.reduction.selects:
        return result, pullback_of(x, _first(result), lambda g, grad_x: pull(problem.job, g, source, grad_x), x=x)
    y = empty_like(x, problem.job.result, problem.shape)
    codes = empty_like(y, problem.coded.code_dtype(), y.shape)
    some = gathering().pool(problem, source, y, codes=codes, draws=draws, as_offsets=True, empty=selected.empty) > 0
    job = gathering().chosen(problem)

    def gradient(g: Array, grad_x: Array) -> None:
        g = np.where(some, g, g.dtype.type(0))
        backend(selected.windows, job, g).select_backward(job, g, codes, grad_x)

    return result, pullback_of(x, _first(result), gradient)


def _first(result: Any) -> Array:
    array: Array = result[0] if isinstance(result, tuple) else result
    return array


def _select_gradient(selected: Selected, x: Array, codes: Array, by: Array) -> Gradient:
    problem = selected.problem
    signs = sign(x) if problem.job.lift == "absolute" else None

    def gradient(g: Array, grad_x: Array) -> None:
        g = np.where(by != 0, np.expand_dims(g, problem.squeeze), g.dtype.type(0))
        backend(selected.windows, problem.coded, g).select_backward(problem.coded, g, codes, grad_x)
        if signs is not None:
            grad_x *= signs
            grad_x += 0  # no -0.0 where no window looked

    return gradient


def _sum_gradient(selected: Selected, x: Array, aux: Array, by: Array) -> Gradient:
    problem = selected.problem
    job = problem.adjoint
    if job.finish == "none":  # the divisors are ours
        wide = job.accumulator if selected.weights is not None else job.result
        job = job.changed(lift="none", divisor=None, result=wide)
    else:
        aux = np.where(by != 0, aux, aux.dtype.type(0))
    return lambda g, grad_x: selected.pull(job, x, np.expand_dims(g, problem.squeeze), by, aux, grad_x)
