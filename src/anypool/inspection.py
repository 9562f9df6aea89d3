"""Looking at a pooling without running it (`explain`), and its gradient without an autograd framework (`vjp`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anypool import selection
from anypool.arguments import shown
from anypool.backends import select
from anypool.operation import Call, compared, differentiate, is_tensor, resolve, tensors
from anypool.windows import Sliding, Windows


def _call_of(fn: Any, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    build = getattr(fn, "call", None)
    if build is None:
        raise TypeError(f"fn must be a pooling function of anypool, got {shown(fn)}")
    call: Call = build(x, *args, **kwargs)
    return call


def vjp(fn: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Pool, and return with the result the function that pulls a gradient back: ``vjp(fn, x, …) -> (y, pullback)``.

    Parameters
    ----------
    fn : function
        A pooling function of this package.
    x : array_like
        Floating-point input. For lp and logsumexp the pullback keeps x and y and reads them again: do not change them.
    *args, **kwargs
        Further arguments of fn.

    Returns
    -------
    y : the result of ``fn(x, …)``
    pullback : function
        ``pullback(grad_y, out=None)`` is the gradient with respect to x, an array of its shape and dtype; ``out`` is
        where to write it, and must not overlap what the gradient is made from.

    Raises
    ------
    TypeError
        If x is not floating-point.

    Notes
    -----
    The convention is that of ``jax.vjp``. The gradient of a max goes to the winner alone, the first of equal values.
    Every element of the gradient is gathered from the windows that saw it and written once: results do not depend on
    the number of threads.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> y, pullback = ap.vjp(ap.max_pool1d, np.array([[1.0, 4.0, -1.0, 0.0]]), 2)
    >>> pullback(np.ones_like(y))
    array([[0., 1., 0., 1.]])
    """
    own = getattr(fn, "differentiate", None)
    if own is not None:
        result: tuple[Any, Callable[[Any], Any]] = own(x, *args, **kwargs)
        return result
    return differentiate(_call_of(fn, x, args, kwargs))


@dataclass(frozen=True)
class Explanation:
    """What a call would run. ``print`` it, or read its fields; ``to_dict()`` is ready for JSON."""

    reduction: str
    formula: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: str
    accumulator: str
    result_dtype: str
    axes: tuple[int, ...]
    windows: Windows
    backend: str
    kernel: str
    isa: str
    threads: int
    bytes_moved: int
    notes: tuple[str, ...]

    def _windows_text(self) -> str:
        parts = []
        for axis, a in zip(self.axes, self.windows.axes, strict=True):
            text = f"axis {axis}: {a.n_in} -> {a.n_out}, "
            if isinstance(a, Sliding):
                text += f"kernel {a.kernel}, stride {a.stride}"
                text += f", padding ({a.pad}, {a.pad_hi})" if a.pad or a.pad_hi else ""
            else:
                text += f"up to {a.kernel} taps"
            parts.append(text + (f", dilation {a.step}" if a.step > 1 and a.kernel > 1 else ""))
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers, strings, lists."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if k != "windows"}
        return fields | {"windows": self._windows_text()}

    def __str__(self) -> str:
        lines = [
            f"{self.reduction}: {self.formula}",
            f"  input    {self.input_shape} {self.dtype}",
            f"  output   {self.output_shape} {self.result_dtype}, accumulated in {self.accumulator}",
            f"  windows  {self._windows_text()}",
            f"  backend  {self.backend} ({self.kernel})",
            f"  machine  {self.isa}"
            + (f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""),
            f"  memory   {self.bytes_moved:,} bytes read and written, at least",
        ]
        return "\n".join(lines + [f"  note     {n}" for n in self.notes])


def explain(fn: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what ``fn(x, …)`` would run: windows, backend, kernel, instruction set, threads, bytes.

    Parameters
    ----------
    fn : function
        A pooling function of this package.
    x, *args, **kwargs
        Its arguments; nothing is computed, but they are checked.

    Returns
    -------
    Explanation, or for `pool_tokens` a TokenExplanation: which tokens count, and where the padding is

    Raises
    ------
    ValueError, TypeError
        As fn would.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> e = ap.explain(ap.max_pool2d, np.zeros((1, 8, 32, 32), np.float32), 3, stride=2, padding=1)
    >>> e.output_shape, e.backend, e.bytes_moved
    ((1, 8, 16, 16), 'native', 40960)
    >>> print(ap.explain(ap.pool_tokens, np.zeros((2, 4, 3)), "mean", mask=[[1, 1, 0, 0], [0, 1, 1, 1]]))
    mean of 2 rows of tokens
      tokens   5 count of 8 (mask); 2 to 3 in a row
      padding  on the left of 1, on the right of 1, holes in 0
      output   (2, 3) float64 of float64, accumulated in float64
      backend  native (...)
      memory   168 bytes read and written, at least
    """
    own = getattr(fn, "explain", None)
    if own is not None:
        return own(x, *args, **kwargs)
    call = _call_of(fn, x, args, kwargs)
    array: Any = call.x
    if is_tensor(array):
        backend, description, notes = tensors().plan_of(array, call.what)
        array, problem = tensors().problem_of(array, call.what)
    else:
        problem = resolve(array, call.what)
        pooled, run = compared(array, call.what, problem)
        chosen, notes = select(run.job, pooled)
        backend, description = chosen.name, chosen.describe(run.job, pooled)
    job = problem.job
    if call.selection is not None:
        said = selection.explained(call)
        description, notes = said[0] or description, [*notes, said[1]]
    shape = job.shape(array.shape)
    moved = math.prod(array.shape) * array.itemsize + math.prod(shape) * (
        job.result.itemsize + (8 if problem.return_indices else 0)
    )
    return Explanation(
        reduction=problem.reduction.name,
        formula=problem.reduction.formula,
        input_shape=array.shape,
        output_shape=tuple(n for a, n in enumerate(shape) if a not in problem.squeeze),
        dtype=array.dtype.name,
        accumulator=job.accumulator.name,
        result_dtype=job.result.name,
        axes=job.axes,
        windows=job.windows,
        backend=backend,
        bytes_moved=moved,
        notes=tuple(notes),
        **description,
    )
