"""anypool: every pooling operation of deep learning, for any array, at the speed of memory."""

import importlib
from typing import TYPE_CHECKING, Any

from anypool.fractional import fractional_max_pool2d, fractional_max_pool3d
from anypool.functional import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    global_avg_pool,
    global_max_pool,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    pool,
)
from anypool.inspection import explain, vjp
from anypool.unpooling import max_unpool1d, max_unpool2d, max_unpool3d

if TYPE_CHECKING:
    from anypool.attention import attention_pool
    from anypool.state import PoolState
    from anypool.token_config import TokenPooling
    from anypool.tokens import pool_tokens

# What is imported when it is first asked for: token pooling, which who pools images does not need and which takes as
# long to import as all the rest; and what needs PyTorch or PyArrow.
_LAZY = {
    "PoolState": "anypool.state",
    "TokenPooling": "anypool.token_config",
    "attention_pool": "anypool.attention",
    "pool_tokens": "anypool.tokens",
}
_MODULES = ("arrow", "backends", "nn", "torch")


def __getattr__(name: str) -> Any:
    """Import a lazy name, once."""
    if name in _LAZY:
        found = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
        return found
    if name in _MODULES:
        return importlib.import_module(f"anypool.{name}")
    raise AttributeError(f"module 'anypool' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all names, those included that nobody has asked for yet."""
    return sorted({*globals(), *_LAZY, *_MODULES})


__version__ = "0.1.0"

__all__ = [
    "PoolState",
    "TokenPooling",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "attention_pool",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "explain",
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "global_avg_pool",
    "global_max_pool",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "pool",
    "pool_tokens",
    "vjp",
]
