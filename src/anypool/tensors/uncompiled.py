"""What a compiler must not trace: draws. A module of its own: the mark imports the compiler, for seconds."""

from __future__ import annotations

import torch

from anypool.tensors.gathered import eager
from anypool.tensors.selection import whole

run_eagerly = torch.compiler.disable(eager)
whole_eagerly = torch.compiler.disable(whole)
