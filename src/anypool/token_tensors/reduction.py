"""Reductions of tokens as operators, with their gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anypool import _native, tokens
from anypool.arguments import number_argument, shown
from anypool.backends import asked_for, tokens_native
from anypool.limits import LARGE
from anypool.tensors import plain
from anypool.tensors.spec import NUMPY
from anypool.token_gradients import Known, run_known, weights_gradient, write_gradient
from anypool.token_reductions import names_of, terms_of
from anypool.token_tensors.arguments import (
    check_dtype,
    given_layout,
    layout_of,
    result_shape,
    tensor_argument,
    unnested,
)
from anypool.token_tensors.memory import (
    Memory,
    as_array,
    as_numbers,
    composed,
    empty_result,
    matrix_of_tensor,
    watched,
    wide,
    write,
)
from anypool.token_tensors.operators import LIBRARY, differentiable, register, token_operations
from anypool.tokens import LAYOUTS, OPTIONS, TokenCall, backend_of, call_of, run_call, worth_keeping

_ARGUMENTS = (
    "Tensor x, str reduction, str layout, Tensor? where, str side, int segments, int prefix, Tensor? prefixes, "
    "Tensor? weights, float p, float r, float eps, float empty"
)
_WEIGHTS = 8  # where they stand
LIBRARY.define(f"reduce({_ARGUMENTS}) -> Tensor")
LIBRARY.define(f"reduce_known({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"reduce_backward(Tensor grad, Tensor known, Tensor winners, bool of_weights, {_ARGUMENTS}) -> (Tensor, Tensor)"
)


def _call(x: Any, reduction: str, layout: str, where: Any, side: str, segments: int, prefix: int, prefixes: Any,
          weights: Any, p: float, r: float, eps: float, empty: float) -> TokenCall:  # fmt: skip
    matrix = matrix_of_tensor(x)
    return call_of(matrix, reduction.split("+"), weights=as_numbers(weights, x), norm_type=None if p < 0 else p, r=r,
                   eps=eps, empty=empty, dtype=tokens_native.sum_dtype(matrix.dtype),  # rounded to a half by PyTorch
                   **layout_of(layout, where, side, segments, prefix, prefixes))  # fmt: skip


def _reduce(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return _run(x, _call(x, *rest))


def _run(x: torch.Tensor, call: TokenCall) -> torch.Tensor:
    if x.element_size() > 2 or backend_of(call) is not tokens_native:
        y = torch.from_numpy(run_call(call)).to(x.dtype)
    else:  # halves, rounded as they are written
        y = empty_result(call.results, x)
        run_call(call, into=Memory(y))
    return y.view(*call.runs.shape, y.shape[1])


def _reduce_known(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    call = _call(x, *rest)
    y, known = run_known(call)
    winners = [w for w in known.winners if w is not None]
    exact = torch.from_numpy(known.y if known.means is None else np.concatenate([known.y, known.means], axis=1))
    won = torch.from_numpy(np.stack(winners)) if winners else torch.empty((0, 0, 0), dtype=torch.int32)
    result = torch.from_numpy(np.array(y)).to(x.dtype)  # outputs of an operator share no memory
    return result.view(*call.runs.shape, y.shape[1]), exact, won


def _reduce_backward(grad: torch.Tensor, known: torch.Tensor, winners: torch.Tensor, of_weights: bool, x: torch.Tensor,
                     *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    call = _call(x, *rest)
    exact, won, width = as_array(known), iter(as_array(winners)), len(call.terms) * x.shape[-1]
    kept = Known(
        exact[:, :width],
        tuple(next(won) if t.reduction.give in ("select", "largest") else None for t in call.terms),
        exact[:, width:] if exact.shape[1] > width else None,
    )
    g = as_array(grad.to(wide(x)))
    of_x = torch.empty(x.shape, dtype=x.dtype)
    write(of_x, lambda out: write_gradient(call, kept, g, out))
    weights = rest[7]
    found = torch.empty(0, dtype=torch.float64)
    if of_weights:
        found = torch.from_numpy(weights_gradient(call, kept, g)).to(weights.dtype).view(weights.shape)
    return of_x, found


def _fake_reduce(x: Any, reduction: str, layout: str, where: Any, side: str, segments: int, *rest: Any) -> Any:
    n = len(reduction.split("+"))
    return x.new_empty([*result_shape(x, layout, where, segments), x.shape[-1] * n])


def _fake_reduce_known(x: Any, reduction: str, layout: str, where: Any, side: str, segments: int, *rest: Any) -> Any:
    y = _fake_reduce(x, reduction, layout, where, side, segments)
    terms = terms_of(reduction.split("+"), None if rest[3] < 0 else rest[3], rest[4], rest[5],
                     weighted=rest[2] is not None, where="")  # fmt: skip
    winners = sum(t.reduction.give in ("select", "largest") for t in terms)
    means = any(t.reduction.finish == "deviation" for t in terms)
    rows = y.numel() // y.shape[-1]
    won = (winners, rows, x.shape[-1]) if winners else (0, 0, 0)
    return (
        y,
        x.new_empty((rows, y.shape[-1] + means * x.shape[-1]), dtype=wide(x)),
        x.new_empty(won, dtype=torch.int32),
    )


def _fake_reduce_backward(grad: Any, known: Any, winners: Any, of_weights: bool, x: Any, *rest: Any) -> Any:
    weights = rest[7]
    return x.new_empty(x.shape), torch.empty_like(weights) if of_weights else x.new_empty(0, dtype=torch.float64)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, reduction, layout, where, side, segments, prefix, prefixes, weights, *numbers = inputs
    ctx.save_for_backward(x, where, prefixes, weights, *output[1:])
    ctx.rest = reduction, layout, side, segments, prefix, numbers
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gather(ctx: Any, grad: Any, *_: Any) -> Any:
    if grad is None:
        return (None,) * 13
    x, where, prefixes, weights, known, winners = ctx.saved_tensors
    reduction, layout, side, segments, prefix, numbers = ctx.rest
    of_weights = weights is not None and ctx.needs_input_grad[8]
    if torch.is_grad_enabled():  # a gradient of this gradient is wanted
        call = _call(x, reduction, layout, where, side, segments, prefix, prefixes, weights, *numbers)
        found = differentiable(lambda t, w: token_operations().pool(t, call, w), grad, (x, weights),
                                (ctx.needs_input_grad[0], of_weights))  # fmt: skip
        return found[0], *(None,) * 7, found[1], *(None,) * 4
    of_x, found = torch.ops.anypool_tokens.reduce_backward(
        grad,
        known,
        winners,
        of_weights,
        x,
        reduction,
        layout,
        where,
        side,
        segments,
        prefix,
        prefixes,
        weights,
        *numbers,
    )
    return of_x, *(None,) * 7, found if of_weights else None, *(None,) * 4


register("reduce", _reduce, _fake_reduce)
register("reduce_known", _reduce_known, _fake_reduce_known)
register("reduce_backward", _reduce_backward, _fake_reduce_backward)
torch.library.register_autograd("anypool_tokens::reduce_known", _gather, setup_context=_keep, lib=LIBRARY)


def _arguments(x: Any, reduction: Any, *, norm_type: Any, r: Any, eps: Any, empty: Any, weights: Any, dtype: Any,
               **layout: Any) -> tuple[Any, ...]:  # fmt: skip
    """Check what is known before the data are, and return the arguments of the operators."""
    x, layout = unnested(x, layout)
    check_dtype(dtype, x)
    seen = given_layout(x, layout)
    names = "+".join(names_of(reduction))
    w = None if weights is None else tensor_argument("weights", weights, x)
    at = f"x: {tuple(x.shape)}"
    p = -1.0 if norm_type is None else number_argument("norm_type", norm_type, at)
    if norm_type is not None and not p > 0:
        raise ValueError(f"norm_type must be > 0, got {shown(norm_type)} ({at})")
    rest = (number_argument(n, v, at) for n, v in (("r", r), ("eps", eps), ("empty", empty)))
    return (x, names, *seen, w, p, *rest)


# ---- what the public functions call ----------------------------------------------------------------------------------


def call_of_tensors(*args: Any, **kwargs: Any) -> TokenCall:
    """As `anypool.tokens.call_of`, for tensors."""
    found = _arguments(*args, **kwargs)
    return replace(_call(*found), result=NUMPY[found[0].dtype])


known = _native.TokenCalls(plain.TENSORS, asked_for, LARGE)
_run_known = known.run
_compiling = torch.compiler.is_dynamo_compiling  # other tracers show in the tensor, or in the modes


def quick(x: Any, layouts: tuple[Any, ...], what: tuple[Any, ...]) -> Any:
    """Return the pooled tokens if nothing but the data is new in a call."""
    return NotImplemented if _compiling() else _run_known(x, layouts, what)


tokens.quick = quick


def _remember(x: torch.Tensor, call: TokenCall, reduction: Any, kwargs: dict[str, Any]) -> None:
    """Keep what a call has found out, but for its data, if kernels run it and it can be known again."""
    segments, prefix = kwargs["num_segments"], kwargs["exclude_prefix"]
    given = [kwargs[name] for name in LAYOUTS if kwargs[name] is not None]
    if type(x) is not torch.Tensor or any(type(t) is not torch.Tensor for t in given):
        return
    if kwargs["dtype"] is not None or any(not (n is None or type(n) is int) for n in (segments, prefix)):
        return
    if not worth_keeping(call.matrix, call.runs):
        return
    recipe = tokens_native.recipe(call.matrix, call.terms, call.empty, NUMPY[x.dtype])
    what = (reduction, *(kwargs[name] for name in OPTIONS))
    known.add(x, tuple(kwargs[name] for name in LAYOUTS), what, recipe, kwargs["side"] == "left",
              -1 if segments is None else segments, -1 if prefix is None else prefix)  # fmt: skip


def pool_tokens(x: Any, reduction: Any, **kwargs: Any) -> torch.Tensor:
    """As `anypool.pool_tokens`, for tensors."""
    found = _arguments(x, reduction, **kwargs)
    given, x, w = x, found[0], found[_WEIGHTS]
    if composed(x):
        return token_operations().pool(x, _call(*found), w)
    if torch.is_grad_enabled() and (x.requires_grad or (w is not None and w.requires_grad)):
        return torch.ops.anypool_tokens.reduce_known(*found)[0]
    if not torch.compiler.is_compiling() and not watched(x):  # without the dispatcher
        call = _call(*found)
        if x is given and w is None:
            _remember(x, call, reduction, kwargs)
        return _run(x, call)
    return torch.ops.anypool_tokens.reduce(*found)
