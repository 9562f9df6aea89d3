"""From a call to a result: what the public functions share.

A public function builds a `Call`: an array and a description of what to do with it. `run`, `vjp` and `explain` each
take it from there. A description is resolved into a `Problem` once for every shape and dtype, and kept.
"""

from __future__ import annotations

import marshal
import math
import operator
import sys
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anypool import limits
from anypool import windows as geometry
from anypool.arguments import array_argument, flag_argument, gradient_argument, is_sequence, number_argument, shown
from anypool.backends import Backend, Divisor, Pass, select
from anypool.cached import cached_property
from anypool.layouts import axis_order
from anypool.memory import empty, empty_like
from anypool.reductions import (
    LARGEST_MAGNITUDE,
    PARAMETERS,
    SIGNED_LP,
    Reduction,
    check_dtype,
    dtypes,
    find,
    is_float,
    plain_gradient,
    sign,
)
from anypool.windows import Windows

Array = npt.NDArray[Any]
Gradient = Callable[[Array, Array], None]  # (gradient of the result, where to write that of x)


def quick(build: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result for a tensor that was seen before, given what builds a call, and its arguments.

    `anypool.tensors` puts its own function here: it spares small tensors the description of what is already known. A
    function stands here before, as a compiler that traces the first call of a program refuses None to become one.
    """
    return NotImplemented


class Description(NamedTuple):
    """What to do, apart from the array: hashable when its arguments are."""

    function: str
    reduction: Any
    geometry: str  # "sliding", "adaptive" or "global"
    geometry_args: tuple[Any, ...]
    rank: int | None  # pooled axes, for the functions that have it in their name
    axes: Any = None  # for those that have not
    data_format: Any = "channels_first"
    return_indices: Any = False
    count_include_pad: Any = True
    divisor_override: Any = None
    parameter: Any = None  # norm_type, or what pool() takes: pairs of names and values
    signed: bool = False  # PyTorch's lp for odd exponents
    keepdims: Any = True
    dtype: Any = None
    may_be_empty: bool = False  # whether a window may have no input at all, because `empty` gives its value


class Selection(NamedTuple):
    """Which inputs count, and what a window is worth in which none does; as the caller wrote it."""

    mask: Any
    weights: Any
    nan: Any
    empty: Any
    return_valid: Any


class Call(NamedTuple):
    """A public function's call, before anything has run."""

    x: Array
    what: Description
    out: Array | None = None
    selection: Selection | None = None  # None: all inputs count
    generator: Any = None  # of the draws of stochastic pooling


@dataclass(frozen=True)
class Problem:
    """A description resolved for arrays of one shape and dtype."""

    job: Pass
    reduction: Reduction
    return_indices: bool
    squeeze: tuple[int, ...]  # pooled axes of size one that the caller does not want
    shape: tuple[int, ...]  # of the result, those axes included
    dtype: np.dtype[Any]  # of the input

    @property
    def windows(self) -> Windows:
        """The windows of the forward pass."""
        return self.job.windows

    @cached_property
    def passes(self) -> dict[Any, Any]:
        """Passes over pieces, for calls in which not all inputs count: kept from one call to the next."""
        return {}

    @cached_property
    def size(self) -> int:
        """Number of elements of the result."""
        return math.prod(self.shape)

    @cached_property
    def coded(self) -> Pass:
        """The pass of a max or min that also gives the winners' offsets."""
        return self.job.changed(codes="offset")

    @cached_property
    def adjoint(self) -> Pass:
        """The pass over the transposed windows that gives the gradient of a sum."""
        assert isinstance(self.reduction.adjoint, tuple)
        lift, finish = self.reduction.adjoint
        through = lift in ("over_power", "over_exp")
        wide = through or self.job.accumulator == np.float64
        return self.job.changed(
            windows=self.job.windows.transpose(),
            merge="scaled_sum" if through and not plain_gradient(lift, self.job.p, self.dtype) else "sum",
            lift=lift,
            finish=finish,
            accumulator=np.dtype(np.float64 if wide else np.float32),
            result=self.dtype,
            codes=None,
        )


def as_array(x: Any) -> Array:
    """Return x as a plain NumPy array, without a copy if it is one; a tensor as it is."""
    if type(x) is np.ndarray:
        return bools(x) if x.dtype.kind == "b" else x
    if is_tensor(x):
        return x  # type: ignore[no-any-return]
    if isinstance(x, (np.ndarray, np.generic, list, tuple, bool, int, float)):
        return array_argument("x", x, "nested lists must be of equal lengths")
    raise TypeError(
        "x must be a NumPy array (or nested lists of numbers) or a PyTorch tensor, "
        f"got {type(x).__module__}.{type(x).__name__}"
    )


def is_tensor(x: Any) -> bool:
    """Return whether x is a PyTorch tensor, or stands for one in a graph; PyTorch is never imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and (isinstance(x, torch.Tensor) or hasattr(type(x), "__torch_function__"))


def bools(a: Array) -> Array:
    """Return an array of bools whose bytes are 0 and 1, as sums of them need: views of bytes may have others."""
    given = a.view(np.uint8)
    return given != 0 if given.size and given.max() > 1 else a


def regular(a: Array) -> bool:
    """Return whether elements lie where a processor wants them: native, aligned, whole elements apart."""
    return a.dtype.isnative and a.flags.aligned and not any(s % a.itemsize for s in a.strides)


# ---- resolving -------------------------------------------------------------------------------------------------------

_problems: dict[Hashable, Problem] = {}
_GEOMETRIES: dict[str, Any] = {
    "sliding": geometry.sliding,
    "adaptive": geometry.adaptive,
    "global": geometry.whole,
}


def resolve(x: Array, what: Description) -> Problem:
    """Return the problem for an array; the same one for every array of this shape and dtype."""
    try:
        # Bytes tell 1, 1.0 and True apart, which are equal as keys; version 2 has no references to equal objects.
        key = (x.shape, x.dtype, marshal.dumps(tuple(what), 2))
        known = _problems.get(key)
    except (ValueError, TypeError):  # a dtype, a NumPy integer, an array or a symbol of sizes: resolved anew each time
        return _resolve(x.shape, x.dtype, what)
    if known is None:
        known = _resolve(x.shape, x.dtype, what)
        if len(_problems) >= 1024:
            _problems.clear()
        _problems[key] = known
    return known


def _resolve(shape: tuple[int, ...], dtype: np.dtype[Any], what: Description) -> Problem:
    where = f"x: {shape}"
    check_dtype(dtype, where)
    axes = pooled_axes(shape, what, where)
    sizes = [shape[a] for a in axes]
    windows = _GEOMETRIES[what.geometry](sizes, *what.geometry_args, may_be_empty=what.may_be_empty, where=where)
    reduction, p = reduction_of(what, where)
    accumulator, result = dtypes(reduction, dtype, what.dtype, where)
    indices = flag_argument("return_indices", what.return_indices, where)
    if indices and not reduction.selects:
        raise ValueError(f"return_indices needs max, min or stochastic, got reduction {reduction.name!r} ({where})")
    lift = "none" if reduction.lift == "nonzero" and dtype == accumulator else reduction.lift
    job = Pass(
        windows, axes, reduction.merge, lift, reduction.finish, p, accumulator, result,
        divisor=_divisor(what, reduction, windows, is_float(result), where), codes="index" if indices else None,
        function=reduction.function, ignore=ignored(what, reduction, where),
    )  # fmt: skip
    result_shape = job.shape(shape)
    check_size(result_shape, result, where)
    keepdims = flag_argument("keepdims", what.keepdims, where)
    return Problem(job, reduction, indices, () if keepdims else axes, result_shape, dtype.newbyteorder("="))


def pooled_axes(shape: tuple[int, ...], what: Description, where: str) -> tuple[int, ...]:
    """Return the axes that a description pools of an array of this shape."""
    ndim = len(shape)
    if not isinstance(what.data_format, str) or what.data_format not in ("channels_first", "channels_last"):
        raise ValueError(
            f'data_format must be "channels_first" or "channels_last", got {shown(what.data_format)} ({where})'
        )
    last = what.data_format == "channels_last"
    if what.rank is not None:
        if ndim not in (what.rank + 1, what.rank + 2):
            raise ValueError(
                f"{what.function} takes {what.rank + 1} or {what.rank + 2} dimensions, got {ndim} ({where})"
            )
        return tuple(range(ndim - what.rank - last, ndim - last))
    if what.geometry == "global":
        if ndim < 3:
            raise ValueError(f"{what.function} takes (N, C, …) or (N, …, C), got {ndim} dimensions ({where})")
        return tuple(range(1, ndim - 1)) if last else tuple(range(2, ndim))
    if what.axes is None:
        kernel = what.geometry_args[0]
        if ndim - last < 1:
            raise ValueError(f"x must have an axis to pool, got {ndim} dimensions ({where})")
        count = len(kernel) if is_sequence(kernel) else ndim - last
        if not 1 <= count <= ndim - last:
            raise ValueError(f"kernel_size must have 1 to {ndim - last} elements, got {shown(kernel)} ({where})")
        return tuple(range(ndim - count - last, ndim - last))
    given = what.axes if is_sequence(what.axes) else (what.axes,)
    axes = []
    for i, a in enumerate(given):
        axis = geometry.size_argument(f"axes[{i}]", a, where)
        if not -ndim <= axis < ndim:
            raise ValueError(f"axes[{i}] must be in [{-ndim}, {ndim}), got {axis} ({where})")
        axes.append(axis % ndim)
    if not axes or len(set(axes)) != len(axes):
        raise ValueError(f"axes must name at least one axis, each once, got {shown(what.axes)} ({where})")
    return tuple(axes)


def reduction_of(what: Description, where: str) -> tuple[Reduction, float]:
    """Return the reduction and its parameter: norm_type for lp, r for logsumexp, …"""
    reduction = find(what.reduction)
    _refuse_unused(what, reduction, where)
    if reduction.parameter is None:
        return reduction, 1.0
    name = reduction.parameter
    value = _parameter(what, name)
    p = number_argument(name, value, where)
    holds, words = PARAMETERS[name]
    if not holds(p):
        raise ValueError(f"{name} must be {words}, got {shown(value)} ({where})")
    if reduction.name == "lp":
        if p == math.inf:
            return LARGEST_MAGNITUDE, p
        return (SIGNED_LP if what.signed and p % 2 == 1 else reduction), p
    return reduction, p


_DEFAULTS = {"norm_type": 2, "r": 1, "q": None, "correction": 0, "ignore": None}  # those of pool()


def _refuse_unused(what: Description, reduction: Reduction, where: str) -> None:
    """Refuse what pool() was given for another reduction: a typing error, most often, which must not go unnoticed."""
    if what.function != "pool" or not isinstance(what.parameter, tuple):
        return
    for name, value in what.parameter:
        default = _DEFAULTS[name]
        usual = value is default or (isinstance(value, (int, float)) and value == default)
        if not usual and name != reduction.parameter and not (name == "ignore" and reduction.name == "mode"):
            raise ValueError(f"{name} is not for reduction {reduction.name!r}, got {shown(value)} ({where})")


def refuse_generator(problem: Problem, generator: Any, where: str) -> None:
    """Refuse a generator where nothing is drawn."""
    function = problem.reduction.function
    if generator is not None and (function is None or not function.draws):
        raise ValueError(f"generator is not for reduction {problem.reduction.name!r}, got {shown(generator)} ({where})")


def _parameter(what: Description, name: str) -> Any:
    given = what.parameter
    return dict(given)[name] if what.function == "pool" and isinstance(given, tuple) else given  # pool() takes them all


def ignored(what: Description, reduction: Reduction, where: str) -> tuple[int, ...]:
    """Return the values that do not count."""
    if reduction.name != "mode":
        return ()
    given = _parameter(what, "ignore")
    if given is None:
        return ()
    values = given if is_sequence(given) else (given,)
    return tuple(_label(f"ignore[{i}]", v, where) for i, v in enumerate(values))


def _label(name: str, value: Any, where: str) -> int:
    if not isinstance(value, (bool, np.bool_)):
        with suppress(TypeError):  # an array that is no integer
            return operator.index(value)
    raise TypeError(f"{name} must be an int, got {shown(value)} of type {type(value).__name__} ({where})")


def _divisor(what: Description, reduction: Reduction, windows: Windows, floating: bool, where: str) -> Divisor | None:
    include = flag_argument("count_include_pad", what.count_include_pad, where)
    if what.divisor_override is not None:
        constant = geometry.size_argument("divisor_override", what.divisor_override, where)
        if constant == 0:
            raise ValueError(f"divisor_override must not be 0 ({where})")
        if reduction.finish != "divide":
            raise ValueError(f"divisor_override needs a mean, got reduction {reduction.name!r} ({where})")
        if constant < 0 and not floating:
            raise ValueError(f"divisor_override must be > 0 for an integer result, got {constant} ({where})")
        return Divisor(windows, "window", float(constant))
    return Divisor(windows, "window" if include else "valid") if reduction.finish == "divide" else None


def check_size(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Refuse a result whose bytes 64 bits cannot count; indices have its shape and 8 bytes each."""
    if math.prod(shape) * max(dtype.itemsize, 8) >= 2**63:
        raise ValueError(f"the result of shape {shape} would not fit in memory ({where})")


# ---- running ---------------------------------------------------------------------------------------------------------


def output(problem: Problem, x: Array, out: Array | None, codes: int, **read: Array | None) -> Array:
    """Return where the result goes: new memory, or ``out`` if it will do and overlaps nothing that is read.

    The ``codes`` bytes beside each of its elements are counted, not allocated.
    """
    job, shape = problem.job, problem.shape
    if problem.size * 16 >= limits.LARGE:  # else everything together is less
        each = codes + (0 if out is not None else job.result.itemsize)
        limits.require(problem.size * each, f"the result of shape {shape}", f"x: {x.shape}")
    if out is None:
        return empty_like(x, job.result, shape)
    squeeze = problem.squeeze
    _check_out(
        out, tuple(n for a, n in enumerate(shape) if a not in squeeze) if squeeze else shape, job.result, x=x, **read
    )
    return np.expand_dims(out, squeeze) if squeeze else out


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], **read: Array | None) -> None:
    """Refuse an ``out`` that a result cannot be written into, or that overlaps an array which is still to be read."""
    if type(out) is not np.ndarray:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
        if isinstance(out, np.ma.MaskedArray):
            raise TypeError(f"out must not be a masked array: its mask would be ignored (its shape: {out.shape})")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out must have shape {shape} and dtype {dtype}, got {out.shape} and {out.dtype}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError(f"out must be writeable (its shape: {shape})")
    if not flags.c_contiguous or not flags.aligned:
        if not regular(out):
            raise ValueError(
                f"out must be aligned, its strides multiples of {out.itemsize}, got {out.strides} (its shape: {shape})"
            )
        if out.size and overlaps_itself(out):
            raise ValueError(f"out must not overlap itself, got strides {out.strides} (its shape: {shape})")
    for name, array in read.items():
        if array is not None and overlap(array, out):
            raise ValueError(f"out must not overlap {name} (its shape: {shape})")


def overlaps_itself(a: Array) -> bool:
    """Return whether elements of an array may share memory: not if each axis steps over all faster ones."""
    reach = a.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (n - 1) + reach
    return False


def overlap(a: Array, b: Array) -> bool:
    """Return whether two arrays share memory, or may do so in ways too intricate to find out."""
    if not np.may_share_memory(a, b):
        return False
    limit: Any = 100_000  # steps of an exact search; NumPy's stubs know only -1 and 0
    try:
        return bool(np.shares_memory(a, b, max_work=limit))
    except np.exceptions.TooHardError:
        return True


def selecting() -> Any:
    """Return the module for calls in which not all inputs count."""
    import anypool.selection

    return anypool.selection


def tensors() -> Any:
    """Return the module that takes tensors; whoever has one has imported PyTorch."""
    import anypool.tensors

    return anypool.tensors


def gathering() -> Any:
    """Return the module that runs reductions which need whole windows."""
    import anypool.gathering

    return anypool.gathering


def run(call: Call) -> Any:
    """Return the pooled array, or the pair (array, indices)."""
    if call.selection is not None:
        return selecting().run(call)
    x = call.x
    if type(x) is not np.ndarray:
        return tensors().run(x, call.what, call.out, call.generator)
    problem = resolve(x, call.what)
    if call.generator is not None:
        refuse_generator(problem, call.generator, f"x: {x.shape}")
    y = output(problem, x, call.out, 8 if problem.return_indices else 0)
    if problem.reduction.function is not None:
        return gathering().run(problem, call, y)
    x, problem = compared(x, call.what, problem)
    backend, _ = select(problem.job, x)
    indices = empty_like(y, np.dtype(np.int64), y.shape) if problem.return_indices else None
    _write(backend, problem.job, x, y, indices, call.out)
    if indices is not None:
        return _squeezed(problem, y, call.out), _squeezed(problem, indices, None)
    return _squeezed(problem, y, call.out)


def _write(backend: Backend, job: Pass, x: Array, y: Array, codes: Array | None, out: Array | None) -> None:
    """Run a pass; y gets the result when it is whole, if it is the caller's: Ctrl-C leaves no half of it."""
    whole = y if out is None or backend.at_once else empty_like(y, y.dtype, y.shape)
    backend.run(job, x, whole, codes)
    if whole is not y:
        y[...] = whole


def compared(x: Array, what: Description, problem: Problem) -> tuple[Array, Problem]:
    """Return ``x != 0`` and its problem where that is what is pooled: kernels know bools, which take a byte each."""
    if problem.job.lift != "nonzero" or x.size >= limits.LARGE:
        return x, problem
    x = x != 0
    return x, resolve(x, what)


def _squeezed(problem: Problem, y: Array, out: Array | None) -> Array:
    if out is not None:
        return out
    return y.squeeze(problem.squeeze) if problem.squeeze else y


def refuse_without_gradient(reduction: Reduction, where: str) -> None:
    """Refuse a reduction that has no gradient of anything."""
    if reduction.adjoint is None:
        raise TypeError(f"vjp needs a reduction with a gradient, got {reduction.name!r} ({where})")


def refuse_integers(problem: Problem, x: Array) -> None:
    """Refuse a gradient that there is none of."""
    refuse_without_gradient(problem.reduction, f"x: {x.shape}")
    if not is_float(x.dtype) or not is_float(problem.job.result):
        raise TypeError(f"vjp needs floating-point x and result, got {x.dtype} and {problem.job.result} (x: {x.shape})")


def differentiate(call: Call) -> tuple[Any, Callable[[Any], Array]]:
    """Return (result, pullback)."""
    if call.selection is not None:
        selected: tuple[Any, Callable[[Any], Array]] = selecting().differentiate(call)
        return selected
    x = call.x
    if type(x) is not np.ndarray:
        pulled: tuple[Any, Callable[[Any], Array]] = tensors().differentiate(x, call.what, call.out, call.generator)
        return pulled
    problem = resolve(x, call.what)
    refuse_integers(problem, x)
    if problem.reduction.function is not None:
        found: tuple[Any, Callable[[Any], Array]] = gathering().differentiate(problem, call)
        return found
    result: Any
    reads: dict[str, Array] = {}  # what a gradient reads besides that of the result
    refuse_generator(problem, call.generator, f"x: {x.shape}")
    if problem.reduction.adjoint == "select":
        y, gradient = _select(problem, x, call.out)  # one run gives the result and the codes
        result = run(call) if problem.return_indices else y
        at_once = problem.job.lift == "none" and select(problem.coded, x)[0].at_once
    else:
        result = y = run(call)
        gradient, reads = _sum_gradient(problem, x, y)
        at_once = select(problem.adjoint, y)[0].at_once
    squeeze = problem.squeeze

    def unsqueezed(g: Array, grad_x: Array) -> None:
        gradient(np.expand_dims(g, squeeze), grad_x)

    return result, pullback_of(x, y, unsqueezed if squeeze else gradient, at_once=at_once, **reads)


def pullback_of(x: Array, y: Array, gradient: Gradient, /, *, at_once: bool = False,
                **reads: Array) -> Callable[..., Array]:  # fmt: skip
    """Return the function a user gets for a gradient: what it is given is checked, memory is allocated.

    ``reads`` are the arrays that ``gradient`` keeps; nothing else is kept alive. Unless ``gradient`` writes all of its
    result ``at_once``, memory of the caller's gets it when it is whole: Ctrl-C leaves no half of it.
    """
    y_shape, y_dtype, shape, dtype = y.shape, y.dtype, x.shape, x.dtype.newbyteorder("=")
    order = axis_order(x.strides)

    def pullback(grad_y: Any, out: Array | None = None) -> Array:
        """Return the gradient with respect to x, given that with respect to the result."""
        with np.errstate(all="ignore"):
            g = gradient_argument(grad_y, y_shape, f"x: {shape}").astype(y_dtype, copy=False)
            if out is not None:
                _check_out(out, shape, dtype, grad_y=g, **reads)
            grad_x = out if out is not None and at_once else empty(shape, dtype, order)
            gradient(g, grad_x)
        if out is None or grad_x is out:
            return grad_x
        out[...] = grad_x
        return out

    return pullback


def _select(problem: Problem, x: Array, out: Array | None) -> tuple[Array, Gradient]:
    """Return the result of a max or min and the gradient, which needs the winners' offsets and nothing of x."""
    job = problem.coded
    kind = job.code_dtype()
    y = output(problem, x, out, kind.itemsize)
    codes = empty_like(x, kind, job.shape(x.shape))
    backend, _ = select(job, x)
    _write(backend, job, x, y, codes, out)
    signs = sign(x) if job.lift == "absolute" else None

    def gradient(g: Array, grad_x: Array) -> None:
        select(job, g)[0].select_backward(job, g, codes, grad_x)
        if signs is not None:
            grad_x *= signs
            grad_x += 0  # no -0.0 where no window looked

    return _squeezed(problem, y, out), gradient


def _sum_gradient(problem: Problem, x: Array, y: Array) -> tuple[Gradient, dict[str, Array]]:
    """Return the gradient of a sum over windows, which is a sum over the transposed ones, and the arrays it keeps."""
    forward, job = problem.job, problem.adjoint
    if job.lift not in ("over_power", "over_exp"):
        return lambda g, grad_x: select(job, g)[0].run(job, g, grad_x), {}
    # x and y take part; y before it was rounded to a half, which would weigh on every weight.
    aux = np.expand_dims(y, problem.squeeze) if problem.squeeze else y
    post = x if regular(x) else x.astype(job.result)
    if y.dtype.itemsize < 4:
        exact = forward.changed(result=forward.accumulator)
        aux = empty_like(x, exact.result, exact.shape(x.shape))
        select(exact, x)[0].run(exact, x, aux)

    def gradient(g: Array, grad_x: Array) -> None:
        select(job, g)[0].run(job, g, grad_x, None, aux, post)

    return gradient, {"x": post, "y": aux}
