"""Looking at a pooling without running it (`explain`), and its gradient without an autograd framework (`vjp`)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anypool import fractional, selection, unpooling
from anypool.arguments import flag_argument, refuse_misfit, shown
from anypool.backends import select
from anypool.operation import Call, as_array, compared, differentiate, is_tensor, resolve, tensors
from anypool.windows import Sliding, Windows, placed


def _looked_at(fn: Any, own: str, by_call: Callable[[Call], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a function's own attribute gives for its arguments, or else what its call does."""
    special, build = getattr(fn, own, None), getattr(fn, "call", None)
    try:
        if special is not None:
            return special(*args, **kwargs)
        if build is not None:
            return by_call(build(*args, **kwargs))
    except TypeError:
        refuse_misfit(fn, args, kwargs)
        raise
    raise TypeError(f"fn must be a pooling function of anypool, got {shown(fn)}")


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
    Every element of the gradient adds up what it gets in the order of the windows, and is written once: results do not
    depend on the number of threads.

    Examples
    --------
    >>> import numpy as np, anypool as ap
    >>> y, pullback = ap.vjp(ap.max_pool1d, np.array([[1.0, 4.0, -1.0, 0.0]]), 2)
    >>> pullback(np.ones_like(y))
    array([[0., 1., 0., 1.]])
    """
    found: tuple[Any, Callable[[Any], Any]] = _looked_at(fn, "differentiate", differentiate, (x, *args), kwargs)
    return found


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
    return _looked_at(fn, "explain", _explained, (x, *args), kwargs)


def _pooled(call: Call) -> Any:
    """Return x, or what stands for it in another dtype if that is pooled: floats of integers that have weights."""
    weighs = call.selection is not None and call.selection.weights is not None
    if is_tensor(call.x):
        return tensors().stand_in(call.x, call.what, selected=call.selection is not None, weighs=weighs)
    integers = weighs and call.x.dtype.kind in "biu"
    return np.empty_like(call.x, np.float64) if integers else call.x


def _explained(call: Call) -> Explanation:
    given, array = _dtype_name(call.x) if is_tensor(call.x) else call.x.dtype.name, _pooled(call)
    call = call._replace(x=array)
    if is_tensor(array):
        backend, description, notes = tensors().plan_of(array, call.what)
        array, problem = tensors().problem_of(array, call.what)
        if call.selection is not None:
            tensors().check_selection(call.x, array, problem, call.selection)
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
        dtype=given,
        accumulator=job.accumulator.name,
        result_dtype=job.result.name,
        axes=job.axes,
        windows=job.windows,
        backend=backend,
        bytes_moved=moved,
        notes=tuple(notes),
        **description,
    )


# ---- the functions that are no reduction over windows of all planes alike --------------------------------------------


def _dtype_name(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def explained_unpooling(x: Any, shape: tuple[int, ...], windows: Windows, rank: int) -> Explanation:
    """Return what puts the values of x, whose arguments have been checked, into a result of this shape.

    The windows are those of the pooling that is undone, ``rank`` how many axes positions count through.
    """
    name, itemsize, notes = _dtype_name(x), int(x.dtype.itemsize), ["the windows are those of the pooling it undoes"]
    described: dict[str, Any]
    if not is_tensor(x):
        described = {"backend": "numpy", "kernel": "numpy.put_along_axis", "isa": "NumPy", "threads": 1}
    elif x.device.type == "cpu" and x.is_floating_point():
        kernel = f"torch.nn.functional.max_unpool{rank}d"
        described = {"backend": "pytorch", "kernel": kernel, "isa": "cpu", "threads": 0}
        notes.append("torch operations instead, if indices are equal or algorithms must be deterministic")
    else:
        described = {"backend": "torch", "kernel": "torch operations", "isa": x.device.type, "threads": 0}
    return Explanation(
        reduction="max_unpool",
        formula="y[indices] = x, 0 elsewhere",
        input_shape=tuple(x.shape),
        output_shape=shape,
        dtype=name,
        accumulator=name,
        result_dtype=name,
        axes=tuple(range(len(shape) - len(windows.axes), len(shape))),
        windows=windows,
        bytes_moved=math.prod(x.shape) * (itemsize + 8) + math.prod(shape) * itemsize,
        notes=tuple(notes),
        **described,
    )


def _explain_unpooling(rank: int, x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
                       output_size: Any = None) -> Explanation:  # fmt: skip
    arguments = (kernel_size, stride, padding, output_size)
    x = as_array(x)
    if not is_tensor(x):
        unpooling.prepare(rank, x, indices, *arguments)
    else:
        places = indices.detach() if is_tensor(indices) else indices
        on_meta = places.to("meta") if is_tensor(places) else places
        tensors().unpool(rank, x.detach().to("meta"), on_meta, *arguments)
        if places.device.type == "cpu":
            unpooling.prepare(rank, np.broadcast_to(np.int8(0), tuple(x.shape)), places.numpy(), *arguments)
    kernel, strides, pads, sizes = unpooling.geometry(rank, x, *arguments)
    windows = Windows(tuple(
        Sliding(size, n, k, 1, s, p, p)
        for size, n, k, s, p in zip(sizes, x.shape[-rank:], kernel, strides, pads, strict=True)
    ))  # fmt: skip
    return explained_unpooling(x, (*x.shape[:-rank], *sizes), windows, rank)


def _explain_fractional(rank: int, x: Any, kernel_size: Any, output_size: Any = None, output_ratio: Any = None,
                        return_indices: Any = False, _random_samples: Any = None, *,
                        rng: Any = None) -> Explanation:  # fmt: skip
    x = as_array(x)
    name = _dtype_name(x)
    arguments = (kernel_size, output_size, output_ratio)
    kernel, sizes = fractional.geometry(rank, x, *arguments)
    shape = (*x.shape[:-rank], *sizes)
    indexed = flag_argument("return_indices", return_indices, f"x: {tuple(x.shape)}")
    notes = ["every plane has windows of its own"]
    described: dict[str, Any]
    if is_tensor(x):
        samples = _random_samples.to("meta") if is_tensor(_random_samples) else _random_samples
        tensors().fractional(rank, x.detach().to("meta"), *arguments, indexed, samples, rng)
        middle = [fractional.starts(n, o, k, np.float64(0.5))
                  for n, o, k in zip(x.shape[-rank:], sizes, kernel, strict=True)]  # fmt: skip
        windows, accumulator = placed(x.shape[-rank:], middle, kernel), name
        kernel_name = f"torch.nn.functional.fractional_max_pool{rank}d"
        described = {"backend": "pytorch", "kernel": kernel_name, "isa": x.device.type, "threads": 0}
    else:
        unused = copy.deepcopy(rng) if isinstance(rng, (np.random.Generator, np.random.BitGenerator)) else rng
        planes = fractional.Planes(rank, x, *arguments, _random_samples, unused)
        if math.prod(x.shape[:-rank]) == 0:  # no plane to look at: one that there could be
            planes = fractional.Planes(rank, np.empty((1, *x.shape[-rank:]), x.dtype), *arguments, None, 0)
        plane, job = next(planes.passes("index" if indexed else None))
        chosen, reasons = select(job, planes.x[plane])
        described = {"backend": chosen.name, **chosen.describe(job, planes.x[plane])}
        windows, accumulator, notes = job.windows, job.accumulator.name, [*reasons, *notes]
    return Explanation(
        reduction="max",
        formula="max(x)",
        input_shape=tuple(x.shape),
        output_shape=shape,
        dtype=name,
        accumulator=accumulator,
        result_dtype=name,
        axes=tuple(range(x.ndim - rank, x.ndim)),
        windows=windows,
        bytes_moved=math.prod(x.shape) * x.dtype.itemsize + math.prod(shape) * (x.dtype.itemsize + 8 * indexed),
        notes=tuple(notes),
        **described,
    )


for _rank, _function in enumerate((unpooling.max_unpool1d, unpooling.max_unpool2d, unpooling.max_unpool3d), 1):
    _function.explain = functools.partial(_explain_unpooling, _rank)  # type: ignore[attr-defined]
for _rank, _function in enumerate((fractional.fractional_max_pool2d, fractional.fractional_max_pool3d), 2):
    _function.explain = functools.partial(_explain_fractional, _rank)  # type: ignore[attr-defined]
