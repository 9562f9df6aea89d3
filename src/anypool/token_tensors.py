"""Token pooling of PyTorch tensors: two operators and their gradients, for autograd, `torch.compile` and export.

What a row's tokens are is worked out inside the operators, so that masks and offsets may be data that a compiled graph
does not know. Tensors share their memory with the kernels; only the CPU has these. Other devices, and gradients of
gradients, have `anypool.token_operations`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.overrides import has_torch_function_unary

from anypool import _native, tokens
from anypool.arguments import is_sequence, number_argument, shown
from anypool.attention import (
    AttentionCall,
    attend,
    attend_known,
    attention_call,
    attention_gradient,
    remember_attention,
)
from anypool.backends import asked_for, tokens_native
from anypool.limits import LARGE, require
from anypool.tensors import plain
from anypool.tensors.kernels import address_of
from anypool.tensors.spec import NUMPY
from anypool.token_gradients import Known, run_known, weights_gradient, write_gradient
from anypool.token_matrix import Matrix, check_shape, matrix_at, matrix_of
from anypool.token_reductions import names_of, terms_of
from anypool.tokens import (
    LAYOUTS,
    OPTIONS,
    TokenCall,
    backend_of,
    call_of,
    key_of,
    recipes,
    run_call,
    worth_keeping,
)
from anypool.windows import size_argument

_LARGEST = 2**62  # segments: more are refused in the operators
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_forward_mode = torch.autograd.forward_ad
_functorch: Any = torch._C._functorch
_transformed: Any = torch._C._are_functorch_transforms_active


class Memory:
    """A contiguous tensor as kernels see the arrays they write into."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.nbytes = tensor, tensor.numel() * tensor.element_size()
        self.__array_interface__ = {"data": (tensor.data_ptr(), False)}
        self.shape, self.dtype, self.itemsize = tuple(tensor.shape), NUMPY[tensor.dtype], tensor.element_size()
        self.strides = tuple(s * self.itemsize for s in tensor.stride())

    def __len__(self) -> int:
        return int(self.shape[0])


def _composed(x: torch.Tensor) -> bool:
    """Whether x is to be pooled in torch operations: on another device, transformed, or with a tangent."""
    transformed = _transformed() and not torch.compiler.is_compiling()
    return plain.elsewhere(x) or transformed or _forward_mode._current_level >= 0


def _matrix(x: torch.Tensor) -> Matrix:
    if x.dtype not in _FLOATS:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype} (x: {tuple(x.shape)})")
    if _composed(x) and x.ndim >= 2 and x.shape[-1]:  # only its shape is of interest
        return matrix_at(0, NUMPY[x.dtype], tuple(x.shape), (0,) * x.ndim, None)
    if not natively() or x.ndim < 2 or x.shape[-1] == 0:  # by way of an array, which has the errors too
        return matrix_of(_array(x))
    return matrix_at(address_of(x), NUMPY[x.dtype], tuple(x.shape), x.stride(), x.detach())


def _watched(x: torch.Tensor) -> bool:
    """Whether somebody wants to see the operator: a class, a mode or a tracer."""
    return has_torch_function_unary(x) or not plain.is_plain(x) or torch._C._get_tracing_state() is not None


def natively() -> bool:
    """Whether kernels of ours write into tensors' own memory."""
    return bool(_native.isa()) and asked_for() != "reference"


def _array(t: torch.Tensor | None) -> Any:
    if t is None:
        return None
    if t.requires_grad or t.device.type != "cpu":
        t = t.detach().cpu()
    return (t.float() if t.dtype == torch.bfloat16 else t.resolve_neg()).numpy()


def _numbers(t: torch.Tensor | None, x: torch.Tensor) -> Any:
    """What goes with the tokens, to be checked: only its shape where operations on tensors will read it."""
    if t is None or not _composed(x):
        return _array(t)
    name = "float32" if t.dtype == torch.bfloat16 else str(t.dtype).removeprefix("torch.")  # of any kind, complex too
    return np.zeros(tuple(t.shape), name)


def _known(name: str, t: torch.Tensor | None) -> Any:
    """The values of what says which tokens count, whatever transforms the tokens."""
    if t is None or not _transformed():
        return _array(t)
    while _functorch.is_gradtrackingtensor(t):
        t = _functorch.get_unwrapped(t)
    try:
        with torch._C._DisableFuncTorch():
            return _array(t)
    except RuntimeError:
        raise NotImplementedError(f"{name} must not be batched by vmap: which tokens count must be known") from None


def _layout(layout: str, where: torch.Tensor | None, side: str, segments: int, prefix: int,
            prefixes: torch.Tensor | None) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {
        "exclude_prefix": prefix or None if prefixes is None else _known("exclude_prefix", prefixes)
    }
    if layout:
        found[layout] = _known(layout, where)
    if layout == "segment_ids":
        found["num_segments"] = segments
    if layout == "lengths":
        found["side"] = side
    return found


def _result_shape(x: torch.Tensor, layout: str, where: torch.Tensor | None, segments: int) -> list[Any]:
    if layout == "offsets":
        assert where is not None
        return [where.shape[0] - 1]
    if layout == "segment_ids":
        return [segments]
    if layout == "spans":
        assert where is not None
        return list(where.shape[:-1])
    return list(x.shape[:-2])


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- reductions ------------------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor x, str reduction, str layout, Tensor? where, str side, int segments, int prefix, Tensor? prefixes, "
    "Tensor? weights, float p, float r, float eps, float empty"
)
_WEIGHTS = 8  # where they stand
_LIBRARY: Any = torch.library.Library("anypool_tokens", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"reduce({_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"reduce_known({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    f"reduce_backward(Tensor grad, Tensor known, Tensor winners, bool of_weights, {_ARGUMENTS}) -> (Tensor, Tensor)"
)


def _call(x: Any, reduction: str, layout: str, where: Any, side: str, segments: int, prefix: int, prefixes: Any,
          weights: Any, p: float, r: float, eps: float, empty: float) -> TokenCall:  # fmt: skip
    matrix = _matrix(x)
    return call_of(matrix, reduction.split("+"), weights=_numbers(weights, x), norm_type=None if p < 0 else p, r=r,
                   eps=eps, empty=empty, dtype=tokens_native.sum_dtype(matrix.dtype),  # rounded to a half by PyTorch
                   **_layout(layout, where, side, segments, prefix, prefixes))  # fmt: skip


def _empty(shape: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """Return memory for a result; where it does not fit PyTorch would be killed as it is written."""
    require(math.prod(shape) * x.element_size(), f"a result of shape {shape}", f"x: {tuple(x.shape)}")
    return torch.empty(shape, dtype=x.dtype)


def _reduce(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return _reduce_call(x, _call(x, *rest))


def _reduce_call(x: torch.Tensor, call: TokenCall) -> torch.Tensor:
    if x.element_size() > 2 or backend_of(call) is not tokens_native:
        y = torch.from_numpy(run_call(call)).to(x.dtype)
    else:  # halves, rounded as they are written
        y = _empty(call.results, x)
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
    exact, won, width = _array(known), iter(_array(winners)), len(call.terms) * x.shape[-1]
    kept = Known(
        exact[:, :width],
        tuple(next(won) if t.reduction.give in ("select", "largest") else None for t in call.terms),
        exact[:, width:] if exact.shape[1] > width else None,
    )
    g = _array(grad.to(_wide(x)))
    of_x = torch.empty(x.shape, dtype=x.dtype)
    _write(of_x, call, lambda out: write_gradient(call, kept, g, out))
    weights = rest[7]
    found = torch.empty(0, dtype=torch.float64)
    if of_weights:
        found = torch.from_numpy(weights_gradient(call, kept, g)).to(weights.dtype).view(weights.shape)
    return of_x, found


def _write(to: torch.Tensor, call: Any, run: Any) -> None:
    """Let a kernel write a gradient into a tensor, or the reference backend into an array that is copied there."""
    rows = (math.prod(to.shape[:-1]), to.shape[-1])
    if natively():
        run(Memory(to))
    else:
        array = np.empty(rows, str(_wide(to)).removeprefix("torch."))
        run(array)
        to.copy_(torch.from_numpy(array).view(to.shape))


def _fake_reduce(x: Any, reduction: str, layout: str, where: Any, side: str, segments: int, *rest: Any) -> Any:
    n = len(reduction.split("+"))
    return x.new_empty([*_result_shape(x, layout, where, segments), x.shape[-1] * n])


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
        x.new_empty((rows, y.shape[-1] + means * x.shape[-1]), dtype=_wide(x)),
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


def _differentiable(pooled: Any, grad: torch.Tensor, inputs: Sequence[Any], needed: Sequence[bool]) -> list[Any]:
    """Return the gradient of each input that needs one, else None; they can be differentiated again."""
    # Of aliases: an input may be made from another one, and is given its part of that by whoever called this.
    own = [t if t is None else t.view_as(t) for t in inputs]
    found = iter(torch.autograd.grad(pooled(*own), [t for t, n in zip(own, needed, strict=True) if n], grad,
                                     create_graph=True))  # fmt: skip
    return [next(found) if n else None for n in needed]


def _gather(ctx: Any, grad: Any, *_: Any) -> Any:
    if grad is None:
        return (None,) * 13
    x, where, prefixes, weights, known, winners = ctx.saved_tensors
    reduction, layout, side, segments, prefix, numbers = ctx.rest
    of_weights = weights is not None and ctx.needs_input_grad[8]
    if torch.is_grad_enabled():  # a gradient of this gradient is wanted
        call = _call(x, reduction, layout, where, side, segments, prefix, prefixes, weights, *numbers)
        found = _differentiable(lambda t, w: token_operations().pool(t, call, w), grad, (x, weights),
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


def _register(name: str, run: Any, fake: Any) -> None:
    _LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"anypool_tokens::{name}", fake, lib=_LIBRARY)


_register("reduce", _reduce, _fake_reduce)
_register("reduce_known", _reduce_known, _fake_reduce_known)
_register("reduce_backward", _reduce_backward, _fake_reduce_backward)
torch.library.register_autograd("anypool_tokens::reduce_known", _gather, setup_context=_keep, lib=_LIBRARY)


# ---- attention -------------------------------------------------------------------------------------------------------

_SEEN = "str layout, Tensor? where, str side, int segments, int prefix, Tensor? prefixes, float scale, float empty"
_LIBRARY.define(f"attend(Tensor x, Tensor query, Tensor? values, {_SEEN}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    f"attend_backward(Tensor grad, Tensor exact, Tensor total, Tensor x, Tensor query, Tensor? values, {_SEEN}) "
    "-> (Tensor, Tensor, Tensor)"
)


def _attention_call(x: Any, query: Any, values: Any, layout: str, where: Any, side: str, segments: int, prefix: int,
                    prefixes: Any, scale: float, empty: float) -> Any:  # fmt: skip
    of_values = None if values is None else _matrix(values)
    call = attention_call(_matrix(x), _numbers(query, x), values=of_values, scale=scale, empty=empty,
                          **_layout(layout, where, side, segments, prefix, prefixes))  # fmt: skip
    return replace(call, result=tokens_native.sum_dtype(NUMPY[x.dtype]))


def _attend(x: torch.Tensor, query: torch.Tensor, values: Any, *rest: Any) -> Any:
    call = _attention_call(x, query, values, *rest)
    _, exact, total = attend_known(call)
    kept = torch.from_numpy(exact)
    y = kept.to(x.dtype).view(*call.runs.shape, *exact.shape[1 + call.single :])
    return y.clone() if y.data_ptr() == kept.data_ptr() else y, kept, torch.from_numpy(total)


def _attend_backward(grad: torch.Tensor, exact: torch.Tensor, total: torch.Tensor, x: torch.Tensor, query: torch.Tensor,
                     values: Any, *rest: Any) -> Any:  # fmt: skip
    call = _attention_call(x, query, values, *rest)
    of_x = torch.empty(x.shape, dtype=x.dtype)
    of_values = torch.empty(0, dtype=x.dtype) if values is None else torch.empty(values.shape, dtype=x.dtype)
    g = _array(grad.to(_wide(x)))
    if natively():
        apart: Any = None if values is None else Memory(of_values)
        asked = attention_gradient(call, _array(exact), _array(total), g, Memory(of_x), apart)  # type: ignore[arg-type]
    else:
        flat, flat_values = (np.empty((m.n_rows, m.dim)) for m in (call.matrix, call.values))
        asked = attention_gradient(call, _array(exact), _array(total), g, flat, None if values is None else flat_values)
        of_x.copy_(torch.from_numpy(flat).view(x.shape))
        if values is not None:
            of_values.copy_(torch.from_numpy(flat_values).view(values.shape))
    return of_x, torch.from_numpy(asked).to(query.dtype).view(query.shape), of_values


def _fake_attend(x: Any, query: Any, values: Any, layout: str, where: Any, side: str, segments: int, *rest: Any) -> Any:
    rows = _result_shape(x, layout, where, segments)
    dim = x.shape[-1] if values is None else values.shape[-1]
    heads, n = list(query.shape[:-1]), 1
    for r in rows:
        n = n * r
    h = heads[0] if heads else 1
    return (
        x.new_empty([*rows, *heads, dim]),
        x.new_empty((n, h, dim), dtype=_wide(x)),
        x.new_empty((n, h), dtype=torch.float64),
    )


def _fake_attend_backward(grad: Any, exact: Any, total: Any, x: Any, query: Any, values: Any, *rest: Any) -> Any:
    return (
        x.new_empty(x.shape),
        query.new_empty(query.shape),
        x.new_empty(0) if values is None else values.new_empty(values.shape),
    )


def _keep_attention(ctx: Any, inputs: Any, output: Any) -> None:
    x, query, values, layout, where, side, segments, prefix, prefixes, *numbers = inputs
    ctx.save_for_backward(x, query, values, where, prefixes, *output[1:])
    ctx.rest = layout, side, segments, prefix, numbers
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gather_attention(ctx: Any, grad: Any, *_: Any) -> Any:
    if grad is None:
        return (None,) * 11
    x, query, values, where, prefixes, exact, total = ctx.saved_tensors
    layout, side, segments, prefix, numbers = ctx.rest
    if torch.is_grad_enabled():
        call = _attention_call(x, query, values, layout, where, side, segments, prefix, prefixes, *numbers)
        found = _differentiable(lambda *t: token_operations().attend(*t, call), grad, (x, query, values),
                                ctx.needs_input_grad[:3])  # fmt: skip
        return *found, *(None,) * 8
    of_x, asked, of_values = torch.ops.anypool_tokens.attend_backward(
        grad, exact, total, x, query, values, layout, where, side, segments, prefix, prefixes, *numbers
    )
    return of_x, asked, None if values is None else of_values, *(None,) * 8


_register("attend", _attend, _fake_attend)
_register("attend_backward", _attend_backward, _fake_attend_backward)
torch.library.register_autograd(
    "anypool_tokens::attend", _gather_attention, setup_context=_keep_attention, lib=_LIBRARY
)


# ---- what the public functions call ----------------------------------------------------------------------------------


def _unnested(x: Any, kwargs: dict[str, Any], name: str = "x") -> tuple[torch.Tensor, dict[str, Any]]:
    """Return packed rows and their offsets for a jagged nested tensor or a list of tensors."""
    if isinstance(x, torch.Tensor) and not x.is_nested:
        return x, kwargs
    if given := [name for name in LAYOUTS if kwargs.get(name) is not None]:
        raise ValueError(f"{given[0]} is for one dense tensor; of a nested tensor or a list every token counts")
    if isinstance(x, torch.Tensor):
        if x.layout != torch.jagged or x.dim() != 3:
            raise ValueError(
                f"nested x must be jagged, (rows, tokens, features), got {x.layout} with {x.dim()} dimensions"
            )
        jagged: Any = x
        values, offsets, lengths = jagged.values(), jagged.offsets(), jagged.lengths()
        if lengths is None:
            return values, kwargs | {"offsets": offsets}
        return values, kwargs | {"spans": torch.stack([offsets[:-1], offsets[:-1] + lengths], -1)}
    rows = _rows_of_list(x, name)
    lengths = torch.tensor([0, *(len(t) for t in rows)], device=rows[0].device)
    return torch.cat(rows), kwargs | {"offsets": lengths.cumsum(0)}


def _rows_of_list(x: Any, name: str) -> list[torch.Tensor]:
    """Check that a list holds tensors that are alike, as arrays have to be: `torch.cat` would promote dtypes."""
    if not isinstance(x, (list, tuple)) or not x:
        raise TypeError(f"{name} must be a tensor or a list of tensors, got {shown(x)}")
    for i, t in enumerate(x):
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{name} must be a list of tensors, got {type(t).__name__} at {i}")
    lead = x[0]
    if lead.dim() != 2:
        raise ValueError(f"{name} must be a list of tensors (tokens, features), got {tuple(lead.shape)} at 0")
    for i, t in enumerate(x):
        if t.dim() != 2 or (t.shape[1], t.dtype, t.device) != (lead.shape[1], lead.dtype, lead.device):
            raise ValueError(
                f"{name} must be a list of tensors (tokens, {lead.shape[1]}) of dtype {lead.dtype} on {lead.device}, "
                f"got {tuple(t.shape)} {t.dtype} on {t.device} at {i}"
            )
    return list(x)


def _given(x: torch.Tensor, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the layout as the operators take it, and check what tensors alone can get wrong."""
    given = [name for name in LAYOUTS if kwargs.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(LAYOUTS)} can say which tokens count, got {' and '.join(given)}")
    layout, side, segments, prefix = (
        given[0] if given else "",
        kwargs["side"],
        kwargs["num_segments"],
        kwargs["exclude_prefix"],
    )
    if segments is not None and layout != "segment_ids":
        raise ValueError("num_segments goes with segment_ids")
    if not isinstance(side, str) or (side != "right" and layout != "lengths"):
        raise ValueError(f'side goes with lengths and is "right" or "left", got side={shown(side)}')
    where = _tensor(layout, kwargs[layout], x) if given else None
    if layout == "segment_ids" and segments is None:
        assert where is not None
        if where.is_floating_point() or where.is_complex():
            raise TypeError(f"segment_ids must be integers, got dtype {where.dtype}")
        segments = min(int(_known(layout, where).max()), _LARGEST) + 1 if where.numel() else 0
    elif segments is not None:
        segments = min(_size("num_segments", segments, x), _LARGEST)
    if prefix is None or isinstance(prefix, torch.Tensor) or is_sequence(prefix):
        return layout, where, side, segments or 0, 0, None if prefix is None else _tensor("exclude_prefix", prefix, x)
    return layout, where, side, segments or 0, _size("exclude_prefix", prefix, x), None


def _size(name: str, value: Any, x: torch.Tensor) -> Any:
    """Check one size; a compiler's symbol is left to be one."""
    if isinstance(value, torch.SymInt):
        return value
    return size_argument(name, value, f"x: {tuple(x.shape)}", at_least=0)


def _same_dtype(dtype: Any, x: torch.Tensor) -> None:
    if dtype is not None and dtype != x.dtype:
        raise NotImplementedError(f"dtype is for arrays: of tensors convert the result, got {dtype} (x: {x.dtype})")


def _tensor(name: str, value: Any, x: torch.Tensor) -> torch.Tensor:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: its mask would be ignored; give {name}.filled(value)")
    try:
        t = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except (RuntimeError, OverflowError, ValueError, TypeError):
        raise TypeError(f"{name} must be a tensor or numbers, got {shown(value)} (x: {tuple(x.shape)})") from None
    if t.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {t.device} (x: {tuple(x.shape)})")
    return t


def _arguments(x: Any, reduction: Any, *, norm_type: Any, r: Any, eps: Any, empty: Any, weights: Any, dtype: Any,
               **layout: Any) -> tuple[Any, ...]:  # fmt: skip
    """Check what is known before the data are, and return the arguments of the operators."""
    x, layout = _unnested(x, layout)
    _same_dtype(dtype, x)
    seen = _given(x, layout)
    names = "+".join(names_of(reduction))
    w = None if weights is None else _tensor("weights", weights, x)
    at = f"x: {tuple(x.shape)}"
    p = -1.0 if norm_type is None else number_argument("norm_type", norm_type, at)
    if norm_type is not None and not p > 0:
        raise ValueError(f"norm_type must be > 0, got {shown(norm_type)} ({at})")
    rest = (number_argument(n, v, at) for n, v in (("r", r), ("eps", eps), ("empty", empty)))
    return (x, names, *seen, w, p, *rest)


def call_of_tensors(*args: Any, **kwargs: Any) -> TokenCall:
    """As `anypool.tokens.call_of`, for tensors."""
    found = _arguments(*args, **kwargs)
    return replace(_call(*found), result=NUMPY[found[0].dtype])


def _unwatched(x: Any) -> bool:
    """Whether x is a tensor that is no more than its memory, and nobody follows what is done with it."""
    if torch.compiler.is_compiling() or not isinstance(x, torch.Tensor) or _watched(x):
        return False
    return not ((x.requires_grad and torch.is_grad_enabled()) or _forward_mode._current_level >= 0 or _transformed())


def _key_of(x: torch.Tensor, kwargs: dict[str, Any], *what: Any) -> tuple[Hashable, str]:
    """As `anypool.tokens.key_of`; what says which tokens count must be a tensor as plain as x."""
    key, kind = key_of(x, x.stride(), kwargs, *what)
    where = kwargs.get(kind)
    return (key, kind) if where is None or (type(where) is torch.Tensor and plain.is_plain(where)) else (None, "")


known = _native.TokenCalls(plain.TENSORS, asked_for, LARGE)
_run = known.run
_compiling = torch.compiler.is_dynamo_compiling  # other tracers show in the tensor, or in the modes


def quick(x: Any, layouts: tuple[Any, ...], what: tuple[Any, ...]) -> Any:
    """Return the pooled tokens if nothing but the data is new in a call."""
    return NotImplemented if _compiling() else _run(x, layouts, what)


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
    if _composed(x):
        return token_operations().pool(x, _call(*found), w)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and (x.requires_grad or (w is not None and w.requires_grad)):
        return torch.ops.anypool_tokens.reduce_known(*found)[0]  # type: ignore[no-any-return]
    if not torch.compiler.is_compiling() and not _watched(x):  # without the dispatcher
        call = _call(*found)
        if x is given and w is None:
            _remember(x, call, reduction, kwargs)
        return _reduce_call(x, call)
    return torch.ops.anypool_tokens.reduce(*found)  # type: ignore[no-any-return]


def attention_pool(
    x: Any, query: Any, *, values: Any, scale: Any, empty: Any, dtype: Any, **layout: Any
) -> torch.Tensor:
    """As `anypool.attention_pool`, for tensors."""
    key: Hashable = None
    options = layout | {"empty": empty, "dtype": dtype}
    if values is None and _unwatched(x) and _unwatched(query):
        key, kind = _key_of(x, options, tuple(query.shape), scale)
        recipe = recipes.get((key, query.dtype))
        if recipe is not None:
            return _attended(x, recipe.call(address_of(x), _array(query), _array(options.get(kind))))
    if values is not None:
        values = _unnested(values, layout, "values")[0]
    x, layout = _unnested(x, layout)
    _same_dtype(dtype, x)
    at = f"x: {tuple(x.shape)}"
    check_shape(x.shape, at)
    factor = 1 / math.sqrt(x.shape[-1]) if scale is None else number_argument("scale", scale, at)
    asked = _tensor("query", query, x)
    if values is not None and values.device != x.device:
        raise ValueError(f"values must be on the device of x, {x.device}, got {values.device} ({at})")
    found = (x, asked, values, *_given(x, layout), factor, number_argument("empty", empty, at))
    if _composed(x):
        return token_operations().attend(x, asked, values, _attention_call(*found))  # type: ignore[no-any-return]
    if key is not None and natively():  # without the dispatcher
        call = _attention_call(*found)
        remember_attention((key, asked.dtype), call, kind, options)
        return _attended(x, call)
    return torch.ops.anypool_tokens.attend(*found)[0]  # type: ignore[no-any-return]


def _attended(x: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    heads = () if call.single else (len(call.query),)
    y = _empty((*call.runs.shape, *heads, call.matrix.dim), x)
    attend(call, into=Memory(y))
    return y


def other_device(x: Any) -> str:
    """Return the device of a tensor or a list of them, if we have no kernels for it."""
    lead: torch.Tensor = x if isinstance(x, torch.Tensor) else x[0]
    return str(lead.device) if plain.elsewhere(lead) else ""


def token_operations() -> Any:
    """Return the module for other devices."""
    from anypool import token_operations

    return token_operations
