"""What the operators on tokens have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

LIBRARY: Any = torch.library.Library("anypool_tokens", "DEF")


def register(name: str, run: Any, fake: Any) -> None:
    """Give an operator what runs on the CPU, and what a compiler takes for it."""
    LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"anypool_tokens::{name}", fake, lib=LIBRARY)


def differentiable(pooled: Any, grad: torch.Tensor, inputs: Sequence[Any], needed: Sequence[bool]) -> list[Any]:
    """Return the gradient of each input that needs one, else None; they can be differentiated again."""
    # Of aliases: an input may be made from another one, and is given its part of that by whoever called this.
    own = [t if t is None else t.view_as(t) for t in inputs]
    found = iter(torch.autograd.grad(pooled(*own), [t for t, n in zip(own, needed, strict=True) if n], grad,
                                     create_graph=True))  # fmt: skip
    return [next(found) if n else None for n in needed]


def token_operations() -> Any:
    """Return the module for other devices."""
    from anypool import token_operations

    return token_operations
