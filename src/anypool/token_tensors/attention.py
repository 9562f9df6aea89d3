"""Attention over tokens as an operator, with its gradient."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anypool.arguments import number_argument
from anypool.attention import (
    AttentionCall,
    attend,
    attend_known,
    attention_call,
    attention_gradient,
    remember_attention,
)
from anypool.backends import tokens_native
from anypool.tensors import plain
from anypool.tensors.kernels import address_of
from anypool.tensors.spec import NUMPY
from anypool.token_matrix import check_shape
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
    followed,
    matrix_of_tensor,
    watched,
    wide,
    writes_natively,
)
from anypool.token_tensors.operators import LIBRARY, differentiable, register, token_operations
from anypool.tokens import key_of, recipes

_SEEN = "str layout, Tensor? where, str side, int segments, int prefix, Tensor? prefixes, float scale, float empty"
LIBRARY.define(f"attend(Tensor x, Tensor query, Tensor? values, {_SEEN}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"attend_backward(Tensor grad, Tensor exact, Tensor total, Tensor x, Tensor query, Tensor? values, {_SEEN}) "
    "-> (Tensor, Tensor, Tensor)"
)


def _call(x: Any, query: Any, values: Any, layout: str, where: Any, side: str, segments: int, prefix: int,
          prefixes: Any, scale: float, empty: float) -> Any:  # fmt: skip
    of_values = None if values is None else matrix_of_tensor(values)
    call = attention_call(matrix_of_tensor(x), as_numbers(query, x), values=of_values, scale=scale, empty=empty,
                          **layout_of(layout, where, side, segments, prefix, prefixes))  # fmt: skip
    return replace(call, result=tokens_native.sum_dtype(NUMPY[x.dtype]))


def _attend(x: torch.Tensor, query: torch.Tensor, values: Any, *rest: Any) -> Any:
    call = _call(x, query, values, *rest)
    _, exact, total = attend_known(call)
    kept = torch.from_numpy(exact)
    y = kept.to(x.dtype).view(*call.runs.shape, *exact.shape[1 + call.single :])
    return y.clone() if y.data_ptr() == kept.data_ptr() else y, kept, torch.from_numpy(total)


def _attend_backward(grad: torch.Tensor, exact: torch.Tensor, total: torch.Tensor, x: torch.Tensor, query: torch.Tensor,
                     values: Any, *rest: Any) -> Any:  # fmt: skip
    call = _call(x, query, values, *rest)
    of_x = torch.empty(x.shape, dtype=x.dtype)
    of_values = torch.empty(0, dtype=x.dtype) if values is None else torch.empty(values.shape, dtype=x.dtype)
    g = as_array(grad.to(wide(x)))
    if writes_natively():
        apart: Any = None if values is None else Memory(of_values)
        asked = attention_gradient(call, as_array(exact), as_array(total), g, Memory(of_x), apart)  # type: ignore[arg-type]
    else:
        flat, flat_values = (np.empty((m.n_rows, m.dim)) for m in (call.matrix, call.values))
        apart = None if values is None else flat_values
        asked = attention_gradient(call, as_array(exact), as_array(total), g, flat, apart)
        of_x.copy_(torch.from_numpy(flat).view(x.shape))
        if values is not None:
            of_values.copy_(torch.from_numpy(flat_values).view(values.shape))
    return of_x, torch.from_numpy(asked).to(query.dtype).view(query.shape), of_values


def _fake_attend(x: Any, query: Any, values: Any, layout: str, where: Any, side: str, segments: int, *rest: Any) -> Any:
    rows = result_shape(x, layout, where, segments)
    dim = x.shape[-1] if values is None else values.shape[-1]
    heads, n = list(query.shape[:-1]), 1
    for r in rows:
        n = n * r
    h = heads[0] if heads else 1
    return (
        x.new_empty([*rows, *heads, dim]),
        x.new_empty((n, h, dim), dtype=wide(x)),
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
        call = _call(x, query, values, layout, where, side, segments, prefix, prefixes, *numbers)
        found = differentiable(lambda *t: token_operations().attend(*t, call), grad, (x, query, values),
                                ctx.needs_input_grad[:3])  # fmt: skip
        return *found, *(None,) * 8
    of_x, asked, of_values = torch.ops.anypool_tokens.attend_backward(
        grad, exact, total, x, query, values, layout, where, side, segments, prefix, prefixes, *numbers
    )
    return of_x, asked, None if values is None else of_values, *(None,) * 8


register("attend", _attend, _fake_attend)
register("attend_backward", _attend_backward, _fake_attend_backward)
torch.library.register_autograd("anypool_tokens::attend", _gather_attention, setup_context=_keep_attention, lib=LIBRARY)


def _attended(x: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    heads = () if call.single else (len(call.query),)
    y = empty_result((*call.runs.shape, *heads, call.matrix.dim), x)
    attend(call, into=Memory(y))
    return y


# ---- what the public function calls ----------------------------------------------------------------------------------


def _unwatched(x: Any) -> bool:
    """Whether x is a tensor that is no more than its memory, and nobody follows what is done with it."""
    if torch.compiler.is_compiling() or not isinstance(x, torch.Tensor) or watched(x):
        return False
    return not ((x.requires_grad and torch.is_grad_enabled()) or followed())


def _key_of(x: torch.Tensor, kwargs: dict[str, Any], *what: Any) -> tuple[Hashable, str]:
    """As `anypool.tokens.key_of`; what says which tokens count must be a tensor as plain as x."""
    key, kind = key_of(x, x.stride(), kwargs, *what)
    where = kwargs.get(kind)
    return (key, kind) if where is None or (type(where) is torch.Tensor and plain.is_plain(where)) else (None, "")


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
            return _attended(x, recipe.call(address_of(x), as_array(query), as_array(options.get(kind))))
    if values is not None:
        values = unnested(values, layout, "values")[0]
    x, layout = unnested(x, layout)
    check_dtype(dtype, x)
    at = f"x: {tuple(x.shape)}"
    check_shape(x.shape, at)
    factor = 1 / math.sqrt(x.shape[-1]) if scale is None else number_argument("scale", scale, at)
    asked = tensor_argument("query", query, x)
    if values is not None and values.device != x.device:
        raise ValueError(f"values must be on the device of x, {x.device}, got {values.device} ({at})")
    found = (x, asked, values, *given_layout(x, layout), factor, number_argument("empty", empty, at))
    if composed(x):
        return token_operations().attend(x, asked, values, _call(*found))
    if key is not None and writes_natively():  # without the dispatcher
        call = _call(*found)
        remember_attention((key, asked.dtype), call, kind, options)
        return _attended(x, call)
    return torch.ops.anypool_tokens.attend(*found)[0]
