"""Token pooling of PyTorch tensors: operators and their gradients, for autograd, `torch.compile` and export.

What a row's tokens are is worked out inside the operators, so that masks and offsets may be data that a compiled graph
does not know. Tensors share their memory with the kernels; only the CPU has these. Other devices, and gradients of
gradients, have `anypool.token_operations`.
"""

from __future__ import annotations

from typing import Any

import torch

from anypool.tensors import plain
from anypool.token_tensors.attention import attention_pool
from anypool.token_tensors.reduction import call_of_tensors, known, pool_tokens

__all__ = ["attention_pool", "call_of_tensors", "known", "other_device", "pool_tokens"]


def other_device(x: Any) -> str:
    """Return the device of a tensor or a list of them, if we have no kernels for it."""
    lead: torch.Tensor = x if isinstance(x, torch.Tensor) else x[0]
    return str(lead.device) if plain.elsewhere(lead) else ""
