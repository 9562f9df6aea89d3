"""The native backend: C++ kernels for the CPU, compiled once per instruction-set level.

This module turns a `Pass` and the strides of its arrays into the plain numbers of ``src/native/plan.hpp``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from anypool import _native
from anypool.backends import Array, Pass
from anypool.layouts import canonical
from anypool.limits import require
from anypool.memory import described_like
from anypool.reductions import is_float
from anypool.windows import Axis, Sliding, Table, Transposed, Windows

# The enumerations of plan.hpp, in its order.
_DTYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)
_NUMBER = {name: i for i, name in enumerate(_DTYPES)} | {"bool": 0}
_CODES = {None: 0, "uint8": 1, "uint16": 2, "int32": 3, "int64": 4, "index": 5}
_MERGES = ("max", "min", "sum", "scaled_sum")
_LIFTS = ("none", "absolute", "power", "signed_power", "exp", "over_divisor", "over_power", "over_exp")
_FINISHES = ("none", "divide", "root", "signed_root", "log", "times_power", "times_signed_power", "times_exp")
_RULES = ("window", "valid", "constant")
_MAX_OUTER = 16
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000, "float64": 0x7FF0_0000_0000_0000}
_MOST_SCRATCH = 1 << 22  # bytes, for inputs of which not all count: more than that leaves a core's cache
_MAX_GAP = 4096  # outputs that a kernel goes through to find the first that saw an input
_HALVES = ("float16", "bfloat16")
_TRUE = np.asarray(True)
_NO_AXIS = Sliding(1, 1, 1, 1, 1)


@functools.cache  # NumPy puts a name together anew each time, in 4 µs
def number_of(dtype: Any) -> int:
    """Return what the kernels call a dtype."""
    return _NUMBER[dtype.name]


class Native:
    """See `anypool.backends.Backend`."""

    name = "native"
    at_once = True

    def supports(self, job: Pass, x: Array) -> str | None:
        flags = x.flags
        if not flags.aligned or (not flags.c_contiguous and any(s % x.itemsize for s in x.strides)):
            return "elements that are not aligned"
        try:
            reason: str | None = job.compiled["supports"]
        except KeyError:
            reason = job.compiled["supports"] = _reason_against(job, x)
        return reason

    def describe(self, job: Pass, x: Array) -> dict[str, Any]:
        shape = job.shape(x.shape)
        y = described_like(x, job.result, shape)
        codes = described_like(x, job.code_dtype(), shape) if job.codes else None
        return describe(job, recipe_for(job, x, y, codes))

    def run(self, job: Pass, x: Array, out: Array, codes: Array | None = None, aux: Array | None = None,
            post: Array | None = None) -> None:  # fmt: skip
        recipe_for(job, x, out, codes, aux, post).run(x, out, codes, aux, post)

    def select_backward(self, job: Pass, grad: Array, codes: Array, out: Array) -> None:
        require(8 * job.windows.n_taps, "a table of the window's taps")
        recipe_for(job, grad, out, codes, backward=True).run(grad, out, codes)

    def leave_out(self, x: Array, mask: Array | None, none: Any, omit: bool) -> tuple[Array, Array]:
        y = np.empty_like(x)
        valid = np.empty_like(x, bool) if omit else None
        given = np.broadcast_to(_TRUE if mask is None else mask, x.shape)
        axes = [
            [n, *steps, step // x.itemsize]
            for n, *steps, step in zip(x.shape, x.strides, given.strides, y.strides, strict=True)
        ]
        largest = _INFINITY[x.dtype.name] if omit else 0
        _native.leave_out(x, given, y, valid, axes, x.itemsize, _bits(none), largest)
        counts = mask if valid is None else valid
        assert counts is not None  # else all counts, and nobody asks
        return y, counts

    def run_selected(self, job: Pass, x: Array, out: Array, mask: Array | None, none: Any, omit: bool,
                     empty: Any) -> bool:  # fmt: skip
        given, recipe = _selected_recipe(job, x, out, mask, none, omit)
        if recipe is None:
            return False
        recipe.run(x, out, None, given, None, 0 if empty is None else _bits(empty))
        return True

    def describe_selected(
        self, job: Pass, x: Array, mask: Array | None, none: Any, omit: bool
    ) -> dict[str, Any] | None:
        out = described_like(x, job.result, job.shape(x.shape))
        recipe = _selected_recipe(job, x, out, mask, none, omit)[1]
        return None if recipe is None else describe(job, recipe)


def _selected_recipe(job: Pass, x: Array, out: Array, mask: Array | None, none: Any,
                     omit: bool) -> tuple[Array, Any]:  # fmt: skip
    """Return the mask as kernels take it, and the recipe that looks at it, or None."""
    given = _TRUE if mask is None else mask
    if none.dtype != x.dtype or (job.finish == "divide" and not is_float(job.accumulator)):
        return given, None  # integers are divided exactly, elsewhere
    if given.shape != x.shape:
        given = np.broadcast_to(given, x.shape)
    key = ("selected", x.strides, given.strides, out.strides, omit)
    recipe = job.compiled.get(key)
    if recipe is None:
        _make_room(job)
        with np.errstate(over="ignore"):  # the smallest int32 as a float16
            tied = _bits(job.result.type(none)) if job.merge in ("max", "min") else 0
        masking = [_bits(none), tied, _INFINITY[x.dtype.name] if omit else 0]
        recipe = job.compiled[key] = _compile(job, x, out, None, given, None, masking=masking)
    return given, recipe if recipe.scratch <= _MOST_SCRATCH else None


BACKEND = Native()


def _bits(value: np.generic) -> int:
    return int(np.asarray(value).view(f"u{value.itemsize}"))


def describe(job: Pass, recipe: _native.Recipe) -> dict[str, Any]:
    """Return what a recipe runs: kernel, isa, threads."""
    return {
        "kernel": f"{job.lift}+{job.merge}+{job.finish}, {job.accumulator} states, {recipe.way}",
        "isa": _native.isa(),
        "threads": recipe.threads,
    }


def _reason_against(job: Pass, x: Array) -> str | None:
    """Return why no array of this shape and dtype can be pooled here, or None."""
    if not _native.isa():
        return f"no kernels for this CPU or ANYPOOL_ISA; built: {', '.join(_native.isa_built())}"
    if job.function is not None:
        return "a reduction that needs every input of a window at once"
    if len(job.axes) > 3:
        return f"more than 3 pooled axes ({len(job.axes)})"
    if job.merge not in _MERGES or job.lift not in _LIFTS or job.finish not in _FINISHES:
        return f"no kernel for {job.lift}+{job.merge}+{job.finish}"
    if not x.dtype.isnative:
        return f"byte order of {x.dtype}"
    if x.ndim - len(job.axes) > _MAX_OUTER:
        return f"more than {_MAX_OUTER} axes that are not pooled"
    if any(_gap(a, coded=job.codes == "offset") > _MAX_GAP for a in job.windows.axes):
        return f"the gradient of a dilation above {_MAX_GAP}"
    return None


def _gap(a: Axis, *, coded: bool) -> int:
    """Return how many outputs lie between those that see one input, if a gradient has to look for them."""
    transposed = a.transpose() if coded and isinstance(a, Sliding) else a
    return transposed.step if isinstance(transposed, Transposed) else 1


def check_environment() -> None:
    """Refuse settings that would be ignored."""
    probe = np.zeros(3, np.uint8)[1:]
    if _native.data_pointer(probe) != probe.__array_interface__["data"][0]:
        raise ImportError("this NumPy lays out its arrays as no NumPy did that anypool knows; please report it")
    level = os.environ.get("ANYPOOL_ISA", "")
    if level and level not in _native.isa_built():
        raise ValueError(f"ANYPOOL_ISA must be one of {', '.join(_native.isa_built())}, got {level!r}")
    if level and not _native.isa():
        raise ValueError(f"ANYPOOL_ISA is {level!r}, which this CPU cannot run")
    threads = os.environ.get("ANYPOOL_NUM_THREADS", "")
    if threads and not (threads.isascii() and threads.isdigit() and int(threads) > 0):
        raise ValueError(f"ANYPOOL_NUM_THREADS must be a positive integer, got {threads!r}")


def info() -> dict[str, Any]:
    """Return what was built and what runs: instruction-set levels, threads and whose they are."""
    return {
        "isa": _native.isa(),
        "isa_built": _native.isa_built(),
        "threads": _native.thread_count(),
        "thread_pool": _native.thread_pool(),
    }


def recipe_for(job: Pass, x: Array, y: Array, codes: Array | None = None, aux: Array | None = None,
               post: Array | None = None, *, backward: bool = False) -> _native.Recipe:  # fmt: skip
    """Return what runs a pass on arrays that lie so: of them only shapes, dtypes and strides (in bytes) are read."""
    # A pass is for one shape and dtype; strides are what is left, and for plain poolings those of two arrays.
    key: Any = (x.strides, y.strides)
    if codes is not None or aux is not None or backward:
        others = (None if a is None else (a.strides, a.dtype) for a in (codes, aux, post))
        key = (*key, backward, *others)
    recipe: _native.Recipe | None = job.compiled.get(key)
    if recipe is None:
        _make_room(job)
        recipe = job.compiled[key] = _compile(job, x, y, codes, aux, post, backward=backward)
    return recipe


def _make_room(job: Pass) -> None:
    if len(job.compiled) >= 64:  # arrays of ever new strides; what was compiled for the others is cheap to redo
        job.compiled.clear()


def _compile(job: Pass, x: Array, y: Array, codes: Array | None, aux: Array | None, post: Array | None, *,
             backward: bool = False, masking: Sequence[int] = ()) -> _native.Recipe:  # fmt: skip
    # A gradient can be merged with its neighbours only where all the arrays lie alike.
    arrays = (x, y, codes, aux, post)
    elements = [None if a is None else [s // a.itemsize for s in a.strides] for a in arrays]
    lead, second, *others = elements
    if math.prod(x.shape) < math.prod(y.shape):  # of a single pixel, strides do not tell whether channels come first
        lead, second = second, lead
    layout = canonical(x.shape, job.axes, *(e for e in (lead, second, *others) if e is not None))
    strides = [layout.strides(e or [0] * x.ndim) for e in elements]
    divisor = job.divisor
    code = None if codes is None else "index" if job.codes == "index" else codes.dtype.name
    choices = [
        number_of(x.dtype),
        _NUMBER[_lane(job, x.dtype, coded=code is not None, backward=backward)],
        number_of(y.dtype),
        _CODES[code],
        _MERGES.index(job.merge),
        _LIFTS.index(job.lift),
        _FINISHES.index(job.finish),
        0 if divisor is None else 2 if divisor.constant is not None else _RULES.index(divisor.rule),
        number_of(x.dtype if aux is None else aux.dtype),
    ]
    constant = 1.0 if divisor is None or divisor.constant is None else divisor.constant
    forward = job.windows if divisor is None else divisor.windows
    recipe = _native.Recipe(choices, constant, job.p, _axes(job.windows), _axes(forward), list(layout.outer_sizes),
                            layout.inner_size, strides, backward, masking)  # fmt: skip
    if not masking:  # whose scratch memory is small, or it is not run
        require(recipe.scratch * recipe.threads, "room for the rows of a window", f"x: {x.shape}")
    return recipe


def _lane(job: Pass, x: np.dtype[Any], *, coded: bool, backward: bool) -> Any:
    """Return the type that a kernel adds or compares in: the narrowest in which nothing is lost."""
    acc = job.accumulator
    if backward:
        wide = acc.name == "float64" or job.windows.n_taps >= 2**30
        return "float64" if wide else "float32"
    if job.merge == "sum" and acc.kind in "iu" and x.itemsize <= 2:
        largest = 2 ** (8 * x.itemsize) * job.windows.n_taps
        return "int32" if largest < 2**31 else acc.name
    if not coded:
        return acc.name
    # Codes lie beside values of the same width, 4 or 8 bytes.
    if job.windows.n_taps >= 2**30:
        return "float64" if acc.kind == "f" else "uint64" if acc.name == "uint64" else "int64"
    if acc.kind == "f" or acc.name == "uint64":
        return acc.name
    return "int64" if acc.name in ("uint32", "int64") else "int32"


def _axes(windows: Windows) -> list[list[int]]:
    return [_axis(a) for a in [_NO_AXIS] * (3 - len(windows.axes)) + list(windows.axes)]


def _axis(a: Axis) -> list[int]:
    if isinstance(a, Table):
        return [1, a.n_in, a.n_out, a.kernel, 1, a.step, 0, 0, *a.first, *a.count]
    if isinstance(a, Transposed):
        of = a.of
        return [2, a.n_in, a.n_out, of.kernel, of.stride, of.step, of.pad, 0]
    assert isinstance(a, Sliding)
    return [0, a.n_in, a.n_out, a.kernel, a.stride, a.step, a.pad, a.pad_hi]
