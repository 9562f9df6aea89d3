"""Execution: how is a pooling run on this array?

A backend is an object with ``supports``, ``run`` and ``select_backward``; the registry below lists them, fastest first.
Backends know arrays and machines, but neither the names of operators nor the rules of padding: they get a `Pass`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from anypool.window_functions import WindowFunction
from anypool.windows import Ints, Windows

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Divisor:
    """What a mean divides by: ``constant``, or the elements of each window by ``rule`` ("window" or "valid")."""

    windows: Windows  # those of the forward pass, also in its adjoint
    rule: str = "window"
    constant: float | None = None

    def per_axis(self) -> list[Ints]:
        """Return, for every axis, the number of elements each window counts there; the divisor is their product."""
        return [a.divisor("valid" if self.rule == "valid" else "window") for a in self.windows.axes]


@dataclass(frozen=True)
class Pass:
    """One run over windows: everything a backend has to know, made once for many arrays of one shape and dtype."""

    windows: Windows
    axes: tuple[int, ...]  # the pooled axes of the array
    merge: str
    lift: str
    finish: str
    p: float
    accumulator: np.dtype[Any]
    result: np.dtype[Any]
    divisor: Divisor | None = None
    codes: str | None = None  # also give each winner's "index" (flat in the pooled axes) or "offset" (in its window)
    function: WindowFunction | None = None  # what makes results of whole windows, instead of merge, lift and finish
    ignore: tuple[int, ...] = ()  # values that do not count, of a pass with such a function
    compiled: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # a backend's own, by strides

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps of the largest window on each axis."""
        return tuple(a.kernel for a in self.windows.axes)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the result for an input of this shape."""
        sizes = list(shape)
        for axis, windows in zip(self.axes, self.windows.axes, strict=True):
            sizes[axis] = windows.n_out
        return tuple(sizes)

    def changed(self, **fields: Any) -> Pass:
        """Return another pass that differs in these fields."""
        return replace(self, compiled={}, **fields)

    def code_dtype(self) -> np.dtype[Any]:
        """Return the dtype of the codes: int64 for indices, for offsets the smallest that holds every tap."""
        taps = self.windows.n_taps
        if self.codes == "index" or taps > 2**31 - 1:
            return np.dtype(np.int64)
        return np.dtype(np.uint8 if taps <= 255 else np.uint16 if taps <= 65535 else np.int32)


class Backend(Protocol):
    """What a backend offers."""

    name: str
    at_once: bool  # whether a result is written by one call into native code, which Ctrl-C does not cut short

    def supports(self, job: Pass, x: Array) -> str | None:
        """Return None if it can run ``job`` on ``x``, else the reason why not."""

    def run(self, job: Pass, x: Array, out: Array, codes: Array | None = None, aux: Array | None = None,
            post: Array | None = None) -> None:  # fmt: skip
        """Write the pooled ``x`` into ``out``; ``aux`` and ``post`` are y and x of the forward pass, for an adjoint."""

    def select_backward(self, job: Pass, grad: Array, codes: Array, out: Array) -> None:
        """Write into ``out`` the gradient of a max or min: each input gathers what the windows it won give."""

    def leave_out(self, x: Array, mask: Array | None, none: Any, omit: bool) -> tuple[Array, Array]:
        """Return x with ``none`` where it does not count, and where it does: in the mask, and no NaN with ``omit``."""

    def run_selected(self, job: Pass, x: Array, out: Array, mask: Array | None, none: Any, omit: bool,
                     empty: Any) -> bool:  # fmt: skip
        """Do all that in one go, with ``empty`` where nothing counts, or return False: there is no kernel for it."""

    def describe_selected(
        self, job: Pass, x: Array, mask: Array | None, none: Any, omit: bool
    ) -> dict[str, Any] | None:
        """Return what `describe` returns, of what `run_selected` would run, or None."""

    def describe(self, job: Pass, x: Array) -> dict[str, Any]:
        """Return what would run: kernel, isa, threads."""


@functools.cache
def registry() -> dict[str, Backend]:
    """Return the backends by name, the fastest first."""
    from anypool.backends import native, reference

    if _ASKED and _ASKED not in BACKENDS:
        raise ValueError(f"ANYPOOL_BACKEND must be one of {', '.join(BACKENDS)}, got {_ASKED!r}")
    native.check_environment()
    return {b.name: b for b in (native.BACKEND, reference.BACKEND)}


BACKENDS = ("native", "reference")
_ASKED = os.environ.get("ANYPOOL_BACKEND", "")
_forced: ContextVar[str] = ContextVar("anypool_backend", default=_ASKED)
# The backend that was chosen explicitly, or "": a plan made without it must not serve with it. Small poolings ask each
# time, so it is no function of ours.
asked_for = _forced.get


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Run everything inside on one backend: ``with anypool.backends.use("reference"): …``. It never falls back."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    token = _forced.set(name or _ASKED)
    try:
        yield
    finally:
        _forced.reset(token)


def select(job: Pass, x: Array) -> tuple[Backend, list[str]]:
    """Return the first backend that supports the job, and why those before it do not."""
    known = registry()
    forced = asked_for()
    if forced:
        if reason := known[forced].supports(job, x):
            raise NotImplementedError(f"the {forced} backend cannot run this: {reason}")
        return known[forced], []
    reasons: list[str] = []
    for backend in known.values():
        reason = backend.supports(job, x)
        if reason is None:
            return backend, reasons
        reasons.append(f"{backend.name}: {reason}")
    raise NotImplementedError("; ".join(reasons))
