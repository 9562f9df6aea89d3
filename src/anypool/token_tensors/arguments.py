"""Arguments that are tensors: checked, and as operators take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from anypool.arguments import is_sequence, shown
from anypool.token_tensors.memory import known_values
from anypool.tokens import LAYOUTS
from anypool.windows import size_argument

_LARGEST = 2**62  # segments: more are refused in the operators


def unnested(x: Any, kwargs: dict[str, Any], name: str = "x") -> tuple[torch.Tensor, dict[str, Any]]:
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


def given_layout(x: torch.Tensor, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the layout as the operators take it, and check what tensors alone can get wrong."""
    given = [name for name in LAYOUTS if kwargs.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(LAYOUTS)} can say which tokens count, got {' and '.join(given)}")
    layout = given[0] if given else ""
    side, segments, prefix = kwargs["side"], kwargs["num_segments"], kwargs["exclude_prefix"]
    if segments is not None and layout != "segment_ids":
        raise ValueError("num_segments goes with segment_ids")
    if not isinstance(side, str) or (side != "right" and layout != "lengths"):
        raise ValueError(f'side goes with lengths and is "right" or "left", got side={shown(side)}')
    where = tensor_argument(layout, kwargs[layout], x) if given else None
    if layout == "segment_ids" and segments is None:
        assert where is not None
        if where.is_floating_point() or where.is_complex():
            raise TypeError(f"segment_ids must be integers, got dtype {where.dtype}")
        segments = min(int(known_values(layout, where).max()), _LARGEST) + 1 if where.numel() else 0
    elif segments is not None:
        segments = min(_size("num_segments", segments, x), _LARGEST)
    prefixes = None
    if isinstance(prefix, torch.Tensor) or is_sequence(prefix):
        prefix, prefixes = 0, tensor_argument("exclude_prefix", prefix, x)
    elif prefix is not None:
        prefix = _size("exclude_prefix", prefix, x)
    return layout, where, side, segments or 0, prefix or 0, prefixes


def _size(name: str, value: Any, x: torch.Tensor) -> Any:
    """Check one size; a compiler's symbol is left to be one."""
    if isinstance(value, torch.SymInt):
        return value
    return size_argument(name, value, f"x: {tuple(x.shape)}", at_least=0)


def check_dtype(dtype: Any, x: torch.Tensor) -> None:
    """Check the dtype of a result, which is that of x."""
    if dtype is not None and dtype != x.dtype:
        raise NotImplementedError(f"dtype is for arrays: of tensors convert the result, got {dtype} (x: {x.dtype})")


def tensor_argument(name: str, value: Any, x: torch.Tensor) -> torch.Tensor:
    """Return an argument that goes with x as a tensor; numbers become one."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: its mask would be ignored; give {name}.filled(value)")
    if isinstance(value, (list, tuple)) and len(value) == 0:  # of nothing, which has no dtype of its own
        return torch.empty((0, 2) if name == "spans" and x.dim() == 2 else 0, dtype=torch.int64, device=x.device)
    try:
        t = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except (RuntimeError, OverflowError, ValueError, TypeError):
        raise TypeError(f"{name} must be a tensor or numbers, got {shown(value)} (x: {tuple(x.shape)})") from None
    if t.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {t.device} (x: {tuple(x.shape)})")
    return t


def layout_of(layout: str, where: torch.Tensor | None, side: str, segments: int, prefix: int,
              prefixes: torch.Tensor | None) -> dict[str, Any]:  # fmt: skip
    """Return the layout as `anypool.tokens.call_of` takes it."""
    found: dict[str, Any] = {
        "exclude_prefix": prefix or None if prefixes is None else known_values("exclude_prefix", prefixes)
    }
    if layout:
        found[layout] = known_values(layout, where)
    if layout == "segment_ids":
        found["num_segments"] = segments
    if layout == "lengths":
        found["side"] = side
    return found


def result_shape(x: torch.Tensor, layout: str, where: torch.Tensor | None, segments: int) -> list[Any]:
    """Return the shape of what is pooled, but for its features."""
    if layout == "offsets":
        assert where is not None
        return [where.shape[0] - 1]
    if layout == "segment_ids":
        return [segments]
    if layout == "spans":
        assert where is not None
        return list(where.shape[:-1])
    return list(x.shape[:-2])
