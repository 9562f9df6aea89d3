"""Calls with tensors: arrays become tensors on the way in and arrays again on the way out."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

import cases


def hostile_tensors() -> list[Any]:
    """Return tensors and what belongs to them that no one should pass."""
    import torch

    ones = torch.ones(2, 3)
    return [
        torch.tensor(2), torch.tensor([2, 2]), torch.tensor(2.5), torch.tensor(True), torch.float32, torch.int8,
        torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(3, device="meta"), ones.to_sparse(),
        ones.to(torch.complex64), torch.ones(2, 3, requires_grad=True), ones.expand(1000, 2, 3), torch.nan * ones,
        ones.to(torch.float8_e5m2), ones.bool(), torch.tensor([2**62]), torch.tensor([-1]), torch.Generator(),
        torch.nn.Parameter(ones), torch.nn.ReLU(), torch.device("cpu"), torch.Size([2, 2]), torch.channels_last,
    ]  # fmt: skip


def with_tensors(value: Any) -> Any:
    """Return a value whose plain arrays are tensors, of the same memory where that is possible."""
    if type(value) is list and value and all(type(v) is np.ndarray for v in value):
        return [with_tensors(v) for v in value]
    if type(value) is not np.ndarray:
        return value
    import torch

    bits = value.view(np.int16) if value.dtype.name == "bfloat16" else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only
        try:
            t = torch.from_numpy(bits if bits.flags.writeable else bits.copy())
        except ValueError:  # of negative strides, or not of this machine's byte order
            t = torch.from_numpy(np.array(bits, bits.dtype.newbyteorder("=")))
        except TypeError:  # objects, texts, dates: a hostile argument stays one
            return value
    return t.view(torch.bfloat16) if bits is not value else t


def with_arrays(value: Any) -> Any:
    """Return a result whose tensors are arrays."""
    import torch

    if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
        return type(value)(with_arrays(v) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.dtype is torch.bfloat16:
        return value.view(torch.int16).numpy().view(cases.dtype_of("bfloat16"))
    return value.numpy()


def gradient_of(shape: Any) -> np.ndarray:
    """Return what a result of this shape gets: small numbers; one for all where they would take much memory."""
    size = math.prod(shape)
    if size > 1 << 24:
        return np.lib.stride_tricks.as_strided(np.ones(1, np.float32), shape, (0,) * len(shape))
    return (np.arange(size) % 5 - 2).reshape(shape).astype(np.float32)


def through_autograd(fn: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Make a call that records, and return its results and the gradient of the first argument."""
    import torch

    records = isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
    leaf = args[0].detach().requires_grad_() if records else args[0]
    y = fn(leaf, *args[1:], **kwargs)
    first = y[0] if isinstance(y, tuple) else y
    if not (records and isinstance(first, torch.Tensor) and first.requires_grad):  # a hostile argument saw to that
        return y
    return y, *torch.autograd.grad(
        first, leaf, with_tensors(gradient_of(first.shape)).to(first.dtype), allow_unused=True
    )
