"""Poolings of PyTorch tensors: which way a call goes.

A tensor in this machine's memory runs on the native kernels: at once where no gradient is recorded, through an
``autograd.Function`` where one is. A compiler, an exporter, a fake or a wrapped tensor sees an operator of
`anypool.tensors.operators`. On other devices PyTorch's own operator runs where it has one for the arguments, and
otherwise the pass in torch operations (`anypool.backends.torch`).
"""

from __future__ import annotations

import marshal
import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from anypool import _native, limits, operation, unpooling
from anypool import fractional as fractional_pooling
from anypool.arguments import flag_argument, shown
from anypool.backends import asked_for, native, registry, select
from anypool.backends import torch as reference
from anypool.operation import Description, Problem, resolve
from anypool.operation import overlap as _overlap
from anypool.reductions import find
from anypool.tensors import autograd, gathered, kernels, plain
from anypool.tensors.codes import flat_indices
from anypool.tensors.plain import PLAIN, is_plain
from anypool.tensors.pytorch import ORIGINALS, Own, deterministic_elsewhere, own
from anypool.tensors.spec import NUMPY, TORCH, Memory, Spec, channels_last, memory, memory_format, memory_of, spec_of

_keys = torch._C._dispatch_keys
_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_records = torch.is_grad_enabled
_compiling = torch.compiler.is_dynamo_compiling  # other tracers show in the tensor, or in the modes
_transformed = torch._C._are_functorch_transforms_active
_Tensor = torch.Tensor
_forward_mode = torch.autograd.forward_ad
_HALVES = (torch.float16, torch.bfloat16)


class Call:
    """One description for tensors of one shape, dtype and strides: what there is to look up before a kernel runs."""

    __slots__ = (
        *("absolute", "alone", "autocast", "coded", "direct", "final", "function", "indices"),
        *("plan", "spec", "squeezed", "strides", "what"),
    )
    plan: Any

    def __init__(self, x: torch.Tensor, what: Description) -> None:
        at = memory_of(x)
        self.what = what = _with_numpy_dtype(what)
        problem = resolve(at, what)  # type: ignore[arg-type]  # says what is wrong, in the caller's words
        self.spec, self.absolute = _without_absolute(spec_of(what, at.shape, f"x: {at.shape}"))
        self.indices = problem.return_indices
        self.autocast = x.dtype in _HALVES and widened_by_autocast(what)
        self.final = tuple(n for a, n in enumerate(problem.shape) if a not in problem.squeeze)
        self.plan = self.function = self.alone = None
        self.squeezed = len(self.final) != len(problem.shape)
        self.direct = False  # a kernel writes the result, of the dtype of x, and nothing else
        if not self.absolute:
            floating = problem.job.result.name in ("float16", "bfloat16", "float32", "float64")
            selects, linear = self.spec.selects, self.spec.linear
            if floating:
                self.function = autograd.Select if selects else autograd.Linear if linear else autograd.Power
                if not self.indices:
                    self.alone = autograd.select_alone if selects else autograd.linear_alone if linear else None
            self.plan = kernels.forward(x, self.spec, "index" if self.indices else None)
            self.coded = kernels.forward(x, self.spec, "offset") if selects else self.plan  # what a gradient needs
            self.strides = tuple(s for a, s in enumerate(self.plan.strides) if a not in problem.squeeze)
            plan = self.plan
            self.direct = not (plan.recipe is None or self.indices or plan.large or plan.cast or self.autocast)


def _with_numpy_dtype(what: Description) -> Description:
    """Return the description with NumPy's word for a dtype of PyTorch's."""
    return what._replace(dtype=NUMPY[what.dtype]) if what.dtype in NUMPY else what


def _without_absolute(spec: Spec) -> tuple[Spec, bool]:
    """Largest magnitudes are a max of absolute values."""
    return (spec._replace(reduction="max"), True) if spec.reduction == "largest" else (spec, False)


def widened_by_autocast(what: Description) -> bool:
    """PyTorch's autocast for CPUs computes 3-D poolings of halves in float32."""
    return what.function.endswith("3d")


_calls: dict[Hashable, Call] = {}


def _remember(key: Hashable, call: Call) -> Call:
    if len(_calls) >= 1024:
        _calls.clear()
    _calls[key] = call
    return call


known = _native.WindowCalls(plain.TENSORS, asked_for)
_run = known.run


def quick(build: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the pooled tensor if nothing needs to be looked into: plain memory, arguments of plain numbers."""
    if _compiling():
        return NotImplemented
    y = _run(build, args, kwargs)  # as few functions as can be: beside a model each of them is out of the caches
    return _looked_into(build, args, kwargs) if y is NotImplemented else y


def _looked_into(build: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if "out" in kwargs or not isinstance(x, _Tensor) or has_torch_function_unary(x):
        return NotImplemented
    if _keys(x).raw_repr() not in PLAIN or _modes() or _tracing() is not None:
        return NotImplemented
    try:
        # Bytes tell 1, 1.0 and True apart, which are equal as keys; version 2 has no references to equal objects.
        rest = marshal.dumps((args[1:], kwargs) if kwargs else args[1:], 2)
    except ValueError:  # a torch.Size, a dtype
        return NotImplemented
    key = (build, x.shape, x.stride(), x.dtype, rest, asked_for())
    call = _calls.get(key)
    if call is None:
        built = build(*args, **kwargs)
        if built.selection is not None or gathered.needs_whole_windows(built.what) or _of_nonzero(x, built.what):
            return NotImplemented
        call = _remember(key, Call(x, built.what))
    if call.direct and not (x.requires_grad and _records()):
        known.add(build, args, kwargs, call.plan.recipe, call.final, call.strides, call.plan.mask)
    return _pooled(x, call, None)


operation.quick = quick


def _pooled(x: torch.Tensor, call: Call, out: torch.Tensor | None) -> Any:
    plan = call.plan
    if plan is None or (call.autocast and torch.is_autocast_enabled("cpu")):
        return _composed(x, call, out)
    if (x.requires_grad and _records()) or _forward_mode._current_level >= 0:
        if call.alone is None or out is not None or _transformed():
            return _recorded(x, call, out)
        y = call.alone(x, call.spec, call.coded)
        return y.reshape(call.final) if call.squeezed else y
    if out is not None:
        return _into(x, call, out)
    return _plainly(x, call)


def _of_nonzero(x: torch.Tensor, what: Description) -> bool:
    """Return whether it is `x != 0` that is pooled."""
    return what.reduction in ("any", "all") and x.dtype is not torch.bool


def run(x: torch.Tensor, what: Description, out: torch.Tensor | None = None, generator: Any = None) -> Any:
    """Return the pooled tensor, or the pair (tensor, indices)."""
    if has_torch_function_unary(x):
        return handle_torch_function(run, (x,), x, what, out, generator)
    if _of_nonzero(x, what):
        return run(x != 0, what, out)
    if gathered.needs_whole_windows(what):
        return _gathered(x, what, out, generator)
    if torch.compiler.is_compiling():
        return _operators(x, what, "x: a tensor that is traced")
    if _keys(x).raw_repr() not in PLAIN or _modes() or _tracing() is not None:
        return _watched(x, what, out)
    try:
        named = what if what.dtype is None else what._replace(dtype=str(what.dtype))
        key = (None, x.shape, x.stride(), x.dtype, marshal.dumps(tuple(named), 2), asked_for())
    except ValueError:
        return _pooled(x, Call(x, what), out)
    return _pooled(x, _calls.get(key) or _remember(key, Call(x, what)), out)


def _plainly(x: torch.Tensor, call: Call) -> Any:
    if call.indices:
        y, indices = call.plan.with_codes(x)
        return y.reshape(call.final), indices.reshape(call.final)
    return call.plan(x).reshape(call.final)


def _recorded(x: torch.Tensor, call: Call, out: torch.Tensor | None) -> Any:
    """Pool and let autograd know."""
    if out is not None:
        raise ValueError(f"out must not be given where a gradient is recorded (x: {tuple(x.shape)})")
    if call.function is None:  # an integer result has no gradient
        return _plainly(x, call)
    if not call.spec.selects:
        y = autograd.apply(call.function, x, call.spec, call.plan)
    else:
        y, codes = autograd.apply(autograd.Select, x, call.spec, call.coded)
        if call.indices:
            return y.reshape(call.final), flat_indices(codes, call.spec, x.shape).reshape(call.final)
    return y.reshape(call.final) if call.squeezed else y


def _gathered(x: torch.Tensor, what: Description, out: torch.Tensor | None, generator: Any) -> Any:
    """Pool by a reduction that needs whole windows."""
    what = _with_numpy_dtype(what)
    if out is not None:
        _, problem = gathered.problem_of(x, what)
        if x.requires_grad and _records():
            raise ValueError(f"out must not be given where a gradient is recorded (x: {tuple(x.shape)})")
        _check_out(x, out, problem.shape, TORCH[problem.job.result.name])
    y, indices = gathered.run(x, what, generator)
    y = y if out is None else out.copy_(y)
    return y if indices is None else (y, indices)


def _into(x: torch.Tensor, call: Call, out: torch.Tensor) -> Any:
    """Pool into memory of the caller's."""
    _check_out(x, out, call.final, call.plan.dtype)
    if call.indices:
        y, indices = _plainly(x, call)
        return out.copy_(y), indices
    if out.stride() == call.plan.strides and not out.data_ptr() % out.element_size():
        return call.plan(x, out)
    return out.copy_(_plainly(x, call))


def _check_out(x: torch.Tensor, out: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out must be a tensor as x is, got {type(out).__name__} (x: {tuple(x.shape)})")
    if tuple(out.shape) != shape or out.dtype != dtype or _keys(out).raw_repr() not in PLAIN:
        raise ValueError(
            f"out must be a tensor of shape {shape} and dtype {dtype} on the CPU, "
            f"got {tuple(out.shape)}, {out.dtype}, {out.device} (x: {tuple(x.shape)})"
        )
    if out.requires_grad and _records():
        raise ValueError(f"out must not require a gradient (x: {tuple(x.shape)})")
    if torch._debug_has_internal_overlap(out) == 1 or _overlap(_as_numpy(x), _as_numpy(out)):
        raise ValueError(f"out must not overlap x or itself (x: {tuple(x.shape)})")


def _as_numpy(x: torch.Tensor) -> Any:
    return x.detach().view(TORCH[f"int{8 * x.element_size()}"]).numpy()


# ---- the other ways --------------------------------------------------------------------------------------------------


def _composed(x: torch.Tensor, call: Call, out: torch.Tensor | None) -> Any:
    """Largest magnitudes, and what autocast computes in float32: another tensor first, then the same again."""
    if call.autocast and torch.is_autocast_enabled("cpu"):
        return run(x.float(), call.what, out)
    wide = x if x.is_floating_point() else x.double()
    return run(wide.abs(), call.what._replace(reduction="max", parameter=None, signed=False), out)


def _watched(x: torch.Tensor, what: Description, out: torch.Tensor | None) -> Any:
    """Pool a tensor that is no plain memory, or that somebody watches."""
    theirs = own(x, what, out)
    tracing = torch._C._get_tracing_state() is not None
    unusual = x.layout is not torch.strided or x.is_nested or x.is_quantized
    elsewhere = plain.elsewhere(x)
    if unusual or elsewhere or tracing or is_traceable_wrapper_subclass(x):  # a class that knows PyTorch's operators
        if isinstance(theirs, Own):
            return theirs(x)
        if unusual:
            raise NotImplementedError(
                f"x is a {x.layout} tensor, which our kernels do not read; {theirs} (x: {tuple(x.shape)})"
            )
    if out is not None:
        raise ValueError(f"out needs plain tensors of the CPU (x: {tuple(x.shape)} on {x.device})")
    if elsewhere:
        return _in_torch_operations(x, what)
    return _operators(x, what, f"x: {tuple(x.shape)}")


def problem_of(x: torch.Tensor, what: Description) -> tuple[Memory, Problem]:
    """Return the resolved problem, and what it is resolved for."""
    at = memory(tuple(x.shape), (), x.dtype)
    return at, resolve(at, _with_numpy_dtype(what))  # type: ignore[arg-type]


def _in_torch_operations(x: torch.Tensor, what: Description) -> Any:
    _, problem = problem_of(x, what)
    y, indices = reference.run(problem.job, x)
    form = memory_format(y.ndim, channels_last(x))
    results = [t.contiguous(memory_format=form) for t in (y, indices) if t is not None]
    for axis in reversed(problem.squeeze):
        results = [t.squeeze(axis) for t in results]
    return tuple(results) if problem.return_indices else results[0]


def autocasts(x: torch.Tensor, what: Description) -> bool:
    """Whether autocast, which is on, has x in float32."""
    device = x.device.type  # PyTorch raises if asked about autocast on "meta"
    halves = x.dtype in _HALVES and widened_by_autocast(what)
    return halves and device != "meta" and torch.is_autocast_enabled(device)


def _operators(x: torch.Tensor, what: Description, where: str) -> Any:
    """Pool by operators of `torch.library`, which everything that traces, fakes or wraps tensors understands."""
    from anypool.tensors import operators  # noqa: F401  defines them

    if autocasts(x, what):
        x = x.float()
    spec, absolute = _without_absolute(spec_of(what, x.shape, where))
    if absolute:
        x = (x if x.is_floating_point() else x.double()).abs()
    transformed = torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()
    ops = autograd if transformed else None
    if not what.return_indices:
        y = ops.pool(x, spec) if ops else torch.ops.anypool.pool(x, *spec)
        return _squeezed(y, what, spec)
    y, codes = ops.pool_with_codes(x, spec) if ops else torch.ops.anypool.pool_with_codes(x, *spec)
    return _squeezed(y, what, spec), _squeezed(flat_indices(codes, spec, x.shape), what, spec)


def _squeezed(y: Any, what: Description, spec: Spec) -> Any:
    if what.keepdims:
        return y
    for axis in reversed(spec.axes):
        y = y.squeeze(axis)
    return y


# ---- gradients without a graph, and the functions that are PyTorch's own ---------------------------------------------


def differentiate(x: torch.Tensor, what: Description, out: Any,
                  generator: Any = None) -> tuple[Any, Callable[[Any], torch.Tensor]]:  # fmt: skip
    """Return (result, pullback), by autograd."""
    reduction = find(what.reduction)
    if reduction.adjoint is None:
        raise TypeError(f"vjp needs a reduction with a gradient, got {reduction.name!r} (x: {tuple(x.shape)})")
    return pulled(run, x, what, out, generator)


def pulled(function: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
    """Return (function(x, …), pullback), by autograd."""
    if not x.is_floating_point():
        raise TypeError(f"vjp needs floating-point x and result, got {x.dtype} (x: {tuple(x.shape)})")
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        result = function(leaf, *args, **kwargs)
    y, *others = result if isinstance(result, tuple) else (result,)

    def pullback(grad_y: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gradient with respect to x, given that with respect to the result."""
        for name, given, shape in (("grad_y", grad_y, y.shape), ("out", out, x.shape)):
            if isinstance(given, torch.Tensor) and given.shape == shape and given.device == x.device:
                continue
            if name == "grad_y" or given is not None:
                got = f"{tuple(given.shape)} on {given.device}" if isinstance(given, torch.Tensor) else shown(given)
                what = "the result's shape" if name == "grad_y" else "the shape of x,"
                raise ValueError(f"{name} must be a tensor of {what} {tuple(shape)} on {x.device}, got {got}")
        if grad_y.is_complex():
            raise TypeError(f"grad_y must be real numbers, got {grad_y.dtype} (x: {tuple(x.shape)})")
        if out is not None and (out.dtype != x.dtype or out.requires_grad):
            got = f"{out.dtype}, requires_grad={out.requires_grad} (x: {tuple(x.shape)})"
            raise ValueError(f"out must be of dtype {x.dtype} and require no gradient, got {got}")
        (grad_x,) = torch.autograd.grad(y, leaf, grad_y.to(y.dtype), retain_graph=True)
        return grad_x if out is None else out.copy_(grad_x)

    return (y.detach(), *others) if others else y.detach(), pullback


def selected(x: torch.Tensor, what: Description, given: operation.Selection, out: torch.Tensor | None = None,
             generator: Any = None) -> Any:  # fmt: skip
    """Pool the inputs that count."""
    from anypool.tensors import selection

    return selection.run(x, what, given, out, generator)


def check_selection(x: torch.Tensor, at: Memory, problem: Problem, given: operation.Selection) -> None:
    """Refuse what `selected` would refuse."""
    from anypool.tensors import selection

    selection.check(x, at, problem, given)


def unpool(rank: int, x: torch.Tensor, indices: Any, kernel_size: Any, stride: Any, padding: Any, size: Any) -> Any:
    """Put maxima back. Of equal indices PyTorch's own operator keeps any, and gives each of them a gradient."""
    where = f"x: {tuple(x.shape)}"
    geometry = unpooling.geometry(rank, x, kernel_size, stride, padding, size)
    sizes = geometry[-1]
    if not isinstance(indices, torch.Tensor) or indices.dtype != torch.int64:
        kind = indices.dtype if isinstance(indices, torch.Tensor) else type(indices).__name__
        raise TypeError(f"indices must be a tensor of int64, got {kind} ({where})")
    if indices.shape != x.shape or indices.device != x.device:
        got = f"{tuple(indices.shape)} on {indices.device}"
        raise ValueError(f"indices must have the shape of x and be on {x.device}, got {got} ({where})")
    positions = math.prod(sizes)
    shape = (*x.shape[:-rank], *sizes)
    if math.prod(shape) >= 2**59:
        raise ValueError(f"the result of shape {shape} would not fit in memory ({where})")
    limits.require(math.prod(shape) * x.element_size(), f"the result of shape {shape}", where)
    if not indices.numel():
        return x.sum().to(x.dtype) + x.new_zeros(shape)  # zeros that record a gradient if x does
    if not torch.compiler.is_compiling() and is_plain(indices):
        low, high = (int(v) for v in indices.aminmax())
        if low < 0 or high >= positions:
            raise ValueError(f"indices must be in [0, {positions}), got {low} … {high} ({where})")
        known = indices.device.type == "cpu" and x.is_floating_point()
        if (
            known
            and not torch.are_deterministic_algorithms_enabled()
            and unpooling.distinct(indices.numpy(), rank, positions)
        ):
            return ORIGINALS[f"max_unpool{rank}d"](x, indices, *geometry)
    if x.device.type == "cpu":  # two int64 for each place, a bool, and its value twice
        limits.require(math.prod(shape) * (17 + 2 * x.element_size()), "the owner of every place of the result", where)
    values, places = x.flatten(-rank), indices.flatten(-rank)
    own = torch.arange(places.shape[-1], device=places.device).expand_as(places)
    owner = places.new_full((*places.shape[:-1], positions), -1).scatter_reduce(-1, places, own, "amax")
    y = torch.where(owner < 0, x.new_zeros(()), values.gather(-1, owner.clamp(min=0))).reshape(shape)
    return y.contiguous(memory_format=memory_format(4, channels_last(x))) if rank == 2 and x.ndim == 4 else y


def fractional(rank: int, x: torch.Tensor, kernel_size: Any, output_size: Any, output_ratio: Any, return_indices: bool,
               samples: Any, rng: Any) -> Any:  # fmt: skip
    """Pool windows at pseudo-random places, by PyTorch's own operator and with its draws."""
    where = f"x: {tuple(x.shape)}"
    kernel, sizes = fractional_pooling.geometry(rank, x, kernel_size, output_size, output_ratio)
    if rank == 3 and any(o + k > n for o, k, n in zip(sizes, kernel, x.shape[-3:], strict=True)):
        raise ValueError(
            f"output_size + kernel_size must be <= the size of each axis in PyTorch's operator, "
            f"got {sizes} + {kernel} ({where})"
        )
    indexed = flag_argument("return_indices", return_indices, where)
    shape = (x.shape[0] if x.ndim == rank + 2 else 1, x.shape[-rank - 1], rank)
    if samples is not None and (not isinstance(samples, torch.Tensor) or samples.shape != shape):
        given = tuple(samples.shape) if isinstance(samples, torch.Tensor) else type(samples).__name__
        raise ValueError(f"_random_samples must be a tensor of shape {shape}, got {given} ({where})")
    if samples is not None and samples.dtype != x.dtype:
        raise TypeError(f"_random_samples must have the dtype of x, {x.dtype}, got {samples.dtype} ({where})")
    if not (rng is None or isinstance(rng, torch.Generator)):
        raise TypeError(f"rng must be a torch.Generator for a tensor, got {shown(rng)} ({where})")
    if samples is None and rng is not None:
        samples = torch.rand(shape, dtype=x.dtype, device=x.device, generator=rng)
    function = ORIGINALS[f"fractional_max_pool{rank}d"]
    if not deterministic_elsewhere(x):
        return function(x, kernel, sizes, None, indexed, _random_samples=samples)
    indices = function(x.detach(), kernel, sizes, None, True, _random_samples=samples)[1]
    y = x.flatten(-rank).gather(-1, indices.flatten(-rank)).reshape(indices.shape)
    return (y, indices) if indexed else y


# ---- looking ---------------------------------------------------------------------------------------------------------


def stand_in(x: torch.Tensor, what: Description, *, selected: bool, weighs: bool) -> torch.Tensor:
    """Return x, or a tensor like the one that autocast or weights have pooled in its place; nothing is computed."""
    if autocasts(x, what) and not selected:
        return torch.empty_like(x, dtype=torch.float32, requires_grad=False)
    integers = weighs and not (x.is_floating_point() or x.is_complex())
    return torch.empty_like(x, dtype=torch.float64) if integers else x


def plan_of(x: torch.Tensor, what: Description) -> tuple[str, dict[str, Any], list[str]]:
    """Return the backend that would run, its own words about it, and why it is not one before it."""
    device = f"{x.device.type}"
    if what.may_be_empty:
        at, problem = problem_of(x, what)
        if problem.windows.some_empty:
            backend = registry()["reference"]
            described = backend.describe(problem.job, at)  # type: ignore[arg-type]
            return backend.name, described, ["native: kernels expect an input in every window"]
        what = what._replace(may_be_empty=False)
    if _of_nonzero(x, what):
        return plan_of(torch.empty_like(x, dtype=torch.bool), what)
    if gathered.needs_whole_windows(what):
        at, problem = gathered.problem_of(x, _with_numpy_dtype(what))
        backend, reasons = select(problem.job, at)  # type: ignore[arg-type]
        return backend.name, backend.describe(problem.job, at), reasons  # type: ignore[arg-type]
    if _keys(x).raw_repr() in PLAIN:
        call = Call(x, what)
        if call.plan is None:
            floating = x.detach() if x.is_floating_point() else x.double()
            return plan_of(floating, what._replace(reduction="max", parameter=None, signed=False))
        if call.plan.recipe is not None:
            return "native", native.describe(call.plan.job, call.plan.recipe), []
        reasons = call.plan.why_not or ["native: another backend was asked for"]
        return "torch", {"kernel": "torch operations", "isa": device, "threads": torch.get_num_threads()}, reasons
    reasons = [f"native: no kernels for {'device ' + device if device != 'cpu' else 'such a tensor'}"]
    theirs = own(x, what)
    if isinstance(theirs, Own) and plain.elsewhere(x):
        return "pytorch", {"kernel": f"torch.nn.functional.{theirs.name}", "isa": device, "threads": 0}, reasons
    if not plain.elsewhere(x):
        return "operator", {"kernel": "torch.ops.anypool.pool", "isa": device, "threads": 0}, reasons
    return "torch", {"kernel": "torch operations", "isa": device, "threads": 0}, [*reasons, f"pytorch: {theirs}"]
