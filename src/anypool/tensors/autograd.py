"""Gradients of poolings of tensors: of any order, in reverse and forward mode, batched by ``torch.func.vmap``.

What is saved for the backward pass of a max or min are the winners' offsets, one byte each up to 255 taps; of a sum or
mean nothing but shapes; lp and logsumexp keep input and result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from anypool.backends import torch as reference
from anypool.tensors import codes as winners
from anypool.tensors import kernels
from anypool.tensors.plain import is_plain
from anypool.tensors.spec import NUMPY, Memory, Origin, Spec, problem_of

_forward_mode = torch.autograd.forward_ad


def _below(name: str, kernel: Any, *tensors: Any, args: tuple[Any, ...]) -> Any:
    """Run a kernel, or the operator of that name below autograd if somebody has to see it."""
    if all(map(is_plain, tensors)):
        return kernel(*tensors, *args)
    from anypool.tensors import operators  # noqa: F401  defines the operator

    flat: tuple[Any, ...] = ()
    for a in args:
        flat += tuple(a)
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.anypool, name).default(*tensors, *flat)


def _recording(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def front(x: Any, dim: int | None, n: int) -> Any:
    """Return x with the axis that vmap batches in front."""
    return x.unsqueeze(0).expand(n, *x.shape) if dim is None else x.movedim(dim, 0)


def apply(function: Any, *args: Any) -> Any:
    """Apply a function without binding arguments by name, which takes longer than a small pooling."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


# ---- sums and means --------------------------------------------------------------------------------------------------


class Linear(Function):
    """A sum or mean; its gradient is `LinearBackward`."""

    @staticmethod
    def forward(x: Any, spec: Spec, plan: Any = None) -> Any:
        return _below("pool", kernels.pool, x, args=(spec,)) if plan is None else plan(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.spec, plan = inputs
        ctx.origin = Origin.of(x) if plan is None else plan.origin

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return sum_backward(grad, ctx.origin, ctx.spec), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: Any) -> Any:
        return apply(Linear, tangent, ctx.spec, None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, spec: Spec, plan: Any) -> Any:
        return apply(Linear, x.movedim(in_dims[0], 0), spec.batched(), None), 0


class LinearAlone(Function):
    """The same in one step instead of two, which is faster, but not for ``torch.func``."""

    @staticmethod
    def forward(ctx: Any, x: Any, spec: Spec, plan: Any) -> Any:
        ctx.spec, ctx.origin = spec, plan.origin
        return plan(x)

    backward = Linear.backward

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return Linear.jvp(ctx, *tangents)


class LinearBackward(Function):
    """The gradient of a sum or mean, whose own gradient is that sum or mean."""

    @staticmethod
    def forward(grad: Any, origin: Origin, spec: Spec) -> Any:
        return _below("sum_backward", kernels.sum_backward, grad, args=(origin, spec))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad, ctx.origin, ctx.spec = inputs
        ctx.forward_spec = ctx.spec._replace(dtype=grad.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return pool(grad, ctx.forward_spec), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: Any) -> Any:
        return apply(LinearBackward, tangent, ctx.origin, ctx.spec)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad: Any, origin: Origin, spec: Spec) -> Any:
        grad = grad.movedim(in_dims[0], 0)
        return apply(LinearBackward, grad, origin.batched(info.batch_size), spec.batched()), 0


# ---- max and min -----------------------------------------------------------------------------------------------------


class Select(Function):
    """A max or min, and the winners' offsets."""

    @staticmethod
    def forward(x: Any, spec: Spec, plan: Any = None) -> Any:
        if plan is None:
            return _below("pool_with_codes", kernels.pool_with_codes, x, args=(spec,))
        return plan.with_codes(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.spec, plan = inputs
        codes = output[1]
        ctx.mark_non_differentiable(codes)
        ctx.save_for_backward(codes)
        ctx.save_for_forward(codes)
        ctx.set_materialize_grads(False)
        ctx.origin = Origin.of(x) if plan is None else plan.origin

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        if grad is None:
            return None, None, None
        (codes,) = ctx.saved_tensors
        return select_backward(grad, codes, ctx.origin, ctx.spec), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: Any) -> Any:
        (codes,) = ctx.saved_tensors
        return winners.gather(tangent, codes, ctx.spec), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, spec: Spec, plan: Any) -> Any:
        return apply(Select, x.movedim(in_dims[0], 0), spec.batched(), None), (0, 0)


class SelectAlone(Function):
    """A max or min without its offsets: 1 us less than `Select`, but not for ``torch.func``."""

    @staticmethod
    def forward(ctx: Any, x: Any, spec: Spec, plan: Any) -> Any:
        y, codes = plan.with_codes(x)
        ctx.save_for_backward(codes)
        if _forward_mode._current_level >= 0:
            ctx.save_for_forward(codes)
        ctx.spec, ctx.origin = spec, plan.origin
        return y

    backward = Select.backward

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return Select.jvp(ctx, *tangents)[0]


class SelectBackward(Function):
    """The gradient of a max or min, whose own gradient is the choice of the same winners."""

    @staticmethod
    def forward(grad: Any, codes: Any, origin: Origin, spec: Spec) -> Any:
        return _below("select_backward", kernels.select_backward, grad, codes, args=(origin, spec))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad, codes, ctx.origin, ctx.spec = inputs
        ctx.dtype = grad.dtype
        ctx.save_for_backward(codes)
        ctx.save_for_forward(codes)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (codes,) = ctx.saved_tensors
        return winners.gather(grad, codes, ctx.spec).to(ctx.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: Any) -> Any:
        (codes,) = ctx.saved_tensors
        return apply(SelectBackward, tangent, codes, ctx.origin, ctx.spec)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad: Any, codes: Any, origin: Origin, spec: Spec) -> Any:
        grad, codes = (front(t, d, info.batch_size) for t, d in ((grad, in_dims[0]), (codes, in_dims[1])))
        return apply(SelectBackward, grad, codes, origin.batched(info.batch_size), spec.batched()), 0


# ---- lp and logsumexp ------------------------------------------------------------------------------------------------


class Power(Function):
    """An lp or logsumexp pooling."""

    @staticmethod
    def forward(x: Any, spec: Spec, plan: Any = None) -> Any:
        return _below("pool", kernels.pool, x, args=(spec,)) if plan is None else plan(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.spec, _ = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y = ctx.saved_tensors
        return power_backward(grad, x, y, ctx.spec), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: Any) -> Any:
        (x,) = ctx.saved_tensors
        return push(x, tangent, ctx.spec)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, spec: Spec, plan: Any) -> Any:
        return apply(Power, x.movedim(in_dims[0], 0), spec.batched(), None), 0


class PowerBackward(Function):
    """The gradient of an lp or logsumexp pooling; further ones are those of the same formula in torch operations."""

    @staticmethod
    def forward(grad: Any, x: Any, y: Any, spec: Spec) -> Any:
        return _below("power_backward", kernels.power_backward, grad, x, y, args=(spec,))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad, x, _, ctx.spec = inputs
        ctx.save_for_backward(grad, x)
        ctx.save_for_forward(grad, x)

    @staticmethod
    def backward(ctx: Any, grad_of_grad: Any) -> Any:
        grad, x = ctx.saved_tensors
        _, further = torch.func.vjp(lambda g, x: pull(x, g, ctx.spec), grad, x)
        of_grad, of_x = further(grad_of_grad)
        return of_grad, of_x, None, None

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Any, x_tangent: Any, *_: Any) -> Any:
        grad, x = ctx.saved_tensors
        total: Any = 0
        if grad_tangent is not None:
            total = total + pull(x, grad_tangent, ctx.spec)
        if x_tangent is not None:
            _, further = torch.func.vjp(lambda x: pull(x, grad, ctx.spec), x)
            total = total + further(x_tangent)[0]  # a Hessian is its own transpose
        return total

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad: Any, x: Any, y: Any, spec: Spec) -> Any:
        grad, x, y = (front(t, d, info.batch_size) for t, d in zip((grad, x, y), in_dims[:3], strict=True))
        return apply(PowerBackward, grad, x, y, spec.batched()), 0


def _in_torch(x: Any, spec: Spec) -> Any:
    job = problem_of(Memory(tuple(int(n) for n in x.shape), (), NUMPY[x.dtype]), spec).job
    return reference.run(job, x)[0]


def pull(x: Any, grad: Any, spec: Spec) -> Any:
    """Return the gradient of x in torch operations, which can be differentiated again."""
    _, back = torch.func.vjp(lambda x: _in_torch(x, spec), x)
    return back(grad)[0]


def push(x: Any, tangent: Any, spec: Spec) -> Any:
    """Return the directional derivative in torch operations: the gradient's own transpose, as it is linear."""
    y, back = torch.func.vjp(lambda x: _in_torch(x, spec), x)
    _, forth = torch.func.vjp(lambda g: back(g)[0], torch.zeros_like(y))
    return forth(tangent)[0]


# Not `apply` itself, which binds arguments by name: that takes longer than a small pooling.
select_alone = super(Function, SelectAlone).apply  # type: ignore[misc]
linear_alone = super(Function, LinearAlone).apply  # type: ignore[misc]


# ---- the operators' autograd kernels, and what the functions above call ----------------------------------------------


def pool(x: Any, spec: Spec) -> Any:
    """Pool, recording what a gradient needs if one will be asked for."""
    if not (_recording(x) or _transformed()):
        return _below("pool", kernels.pool, x, args=(spec,))
    if spec.selects:
        return apply(Select, x, spec, None)[0]
    return apply(Linear if spec.linear else Power, x, spec, None)


def pool_with_codes(x: Any, spec: Spec) -> Any:
    """Pool by max or min, and give the winners' offsets."""
    if not (_recording(x) or _transformed()):
        return _below("pool_with_codes", kernels.pool_with_codes, x, args=(spec,))
    return apply(Select, x, spec, None)


def sum_backward(grad: Any, origin: Origin, spec: Spec) -> Any:
    """Return the gradient of a sum or mean."""
    if not (_recording(grad) or _transformed()):
        return _below("sum_backward", kernels.sum_backward, grad, args=(origin, spec))
    return apply(LinearBackward, grad, origin, spec)


def select_backward(grad: Any, codes: Any, origin: Origin, spec: Spec) -> Any:
    """Return the gradient of a max or min."""
    if not (_recording(grad) or _transformed()):
        return _below("select_backward", kernels.select_backward, grad, codes, args=(origin, spec))
    return apply(SelectBackward, grad, codes, origin, spec)


def power_backward(grad: Any, x: Any, y: Any, spec: Spec) -> Any:
    """Return the gradient of an lp or logsumexp pooling."""
    if not (_recording(grad, x) or _transformed()):
        return _below("power_backward", kernels.power_backward, grad, x, y, args=(spec,))
    return apply(PowerBackward, grad, x, y, spec)


def _transformed() -> bool:
    """Whether ``torch.func`` transforms, or forward-mode gradients, are at work."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active or _forward_mode._current_level >= 0
