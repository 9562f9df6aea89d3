"""What winners' offsets mean: positions of taps, in torch operations that also take symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anypool.tensors.spec import Origin, Spec, memory_format


def flat_indices(codes: Any, spec: Spec, shape: Sequence[Any]) -> Any:
    """Return each winner's flat position in the pooled axes of an input of this shape, as PyTorch counts."""
    rest, flat, unit = codes.to(torch.int64), 0, 1
    for i, taps in reversed(list(enumerate(spec.taps(shape)))):
        axis = spec.axes[i]
        outputs = torch.arange(codes.shape[axis], device=codes.device)
        if spec.geometry == "sliding":
            start, step = outputs * spec.stride[i] - spec.padding[2 * i], spec.dilation[i]
        else:
            start, step = outputs * shape[axis] // max(spec.size[i], 1), 1
        place = start.reshape([-1 if a == axis else 1 for a in range(codes.ndim)]) + rest % taps * step
        flat, rest, unit = flat + place * unit, rest // taps, unit * shape[axis]
    return flat


def _pooled_last(x: Any, axes: Sequence[int]) -> Any:
    last = list(range(x.ndim - len(axes), x.ndim))
    return x.movedim(list(axes), last).flatten(last[0])


def _back(flat: Any, like: Sequence[Any], axes: Sequence[int]) -> Any:
    last = list(range(len(like) - len(axes), len(like)))
    return flat.unflatten(-1, [like[a] for a in axes]).movedim(last, list(axes))


def gather(x: Any, codes: Any, spec: Spec) -> Any:
    """Return the input that each window chose: a max pooling whose winners are known."""
    flat = _pooled_last(flat_indices(codes, spec, x.shape), spec.axes)
    return _back(_pooled_last(x, spec.axes).gather(-1, flat), codes.shape, spec.axes)


def scatter(grad: Any, codes: Any, origin: Origin, spec: Spec) -> Any:
    """Return the gradient of a max pooling: what each window gives to the input that it chose."""
    flat = _pooled_last(flat_indices(codes, spec, origin.shape), spec.axes)
    pooled = _pooled_last(grad, spec.axes)
    n = 1
    for a in spec.axes:
        n = n * origin.shape[a]
    total = pooled.new_zeros([*pooled.shape[:-1], n]).scatter_add(-1, flat, pooled)
    out = _back(total, origin.shape, spec.axes).to(origin.dtype)
    return out.contiguous(memory_format=memory_format(out.ndim, origin.channels_last))
