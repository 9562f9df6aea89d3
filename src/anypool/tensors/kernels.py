"""The native kernels on tensors in this machine's memory: recipes on addresses, results that PyTorch allocates.

What a recipe needs is looked up by shapes and strides; a tensor is then no more than its address. Where no kernel of
ours fits, the same pass runs in torch operations (`anypool.backends.torch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch

from anypool import limits
from anypool.backends import Pass, asked_for, select
from anypool.backends import torch as reference
from anypool.backends.native import recipe_for
from anypool.tensors.codes import scatter
from anypool.tensors.spec import (
    TORCH,
    Memory,
    Origin,
    Spec,
    channels_last,
    dense,
    memory,
    memory_of,
    problem_of,
)


def torch_dtype(result: Any, x: Any) -> Any:
    """Return the dtype of a result: int64 for sums of narrow unsigned integers, as PyTorch hardly knows uint64."""
    return torch.int64 if result.name == "uint64" and x is not torch.uint64 else TORCH[result.name]


def address_of(x: torch.Tensor) -> int:
    """Return where a tensor's elements are; one whose storage was given back has none."""
    address: int = x.data_ptr()
    # A view into a storage without memory is told to be as far from nothing as it is from the storage's beginning.
    if address < 2**32 and x.numel() and not x.untyped_storage().data_ptr():
        raise ValueError(f"x must have memory, its storage has {x.untyped_storage().nbytes()} bytes: {tuple(x.shape)}")
    return address


class Forward:
    """A forward pass on tensors of one shape, dtype and strides."""

    __slots__ = (
        "cast",
        "code_dtype",
        "dtype",
        "job",
        "large",
        "mask",
        "origin",
        "recipe",
        "shape",
        "spec",
        "strides",
        "why_not",
    )

    def __init__(self, x: torch.Tensor, spec: Spec, codes: str | None) -> None:
        at, problem = memory_of(x), problem_of(memory_of(x), spec)
        self.spec, self.origin = spec, Origin.of(x)
        self.job: Pass = problem.job if codes is None else problem.job.changed(codes=codes)
        self.shape = problem.shape
        self.strides = dense(self.shape, self.origin.channels_last)
        self.dtype = torch_dtype(self.job.result, x.dtype)
        self.cast = self.dtype is not x.dtype
        self.code_dtype = TORCH[self.job.code_dtype().name] if codes else None
        self.mask = at.itemsize - 1
        n_bytes = math.prod(self.shape) * (
            self.dtype.itemsize + (0 if self.code_dtype is None else self.code_dtype.itemsize)
        )
        self.large = n_bytes if n_bytes >= limits.LARGE else 0  # bytes that may be more than there are
        y = Memory(self.shape, tuple(s * self.job.result.itemsize for s in self.strides), self.job.result)
        c = memory(self.shape, self.strides, self.code_dtype) if codes else None
        backend, self.why_not = select(self.job, at)  # type: ignore[arg-type]
        self.recipe = recipe_for(self.job, at, y, c) if backend.name == "native" else None  # type: ignore[arg-type]

    def __call__(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Return the pooled tensor."""
        if y is None:
            y = self.result(x)
        if self.recipe is None:
            return y.copy_(reference.run(self.job, x)[0])
        address = address_of(x)
        if address & self.mask:
            x = x.clone(memory_format=torch.preserve_format)
            return self.for_aligned(x)(x, y)
        self.recipe.run(address, y.data_ptr())
        return y

    def with_codes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pooled tensor and the winners' offsets or indices."""
        y = self.result(x)
        codes = x.new_empty_strided(self.shape, self.strides, dtype=self.code_dtype)
        if self.recipe is None:
            values, winners = reference.run(self.job, x)
            return y.copy_(values), codes.copy_(winners)
        address = address_of(x)
        if address & self.mask:
            x = x.clone(memory_format=torch.preserve_format)
            return self.for_aligned(x).with_codes(x)
        self.recipe.run(address, y.data_ptr(), codes.data_ptr())
        return y, codes

    def result(self, x: torch.Tensor) -> torch.Tensor:
        """Return memory for the result; where it does not fit PyTorch would be killed as it is written."""
        if self.large:
            limits.require(self.large, f"the result of shape {tuple(self.shape)}", f"x: {self.origin.shape}")
        if self.cast:
            return x.new_empty_strided(self.shape, self.strides, dtype=self.dtype)
        return x.new_empty_strided(self.shape, self.strides)  # naming the dtype takes a tenth of a small pooling

    def for_aligned(self, x: torch.Tensor) -> Forward:
        """Return the same pass for an aligned copy, which may lie otherwise."""
        return Forward(x, self.spec, self.job.codes)


_known: dict[Hashable, Any] = {}


def _remember(key: Hashable, make: Callable[[], Any]) -> Any:
    key = (key, asked_for())
    found = _known.get(key)
    if found is None:
        if len(_known) >= 1024:
            _known.clear()
        found = _known[key] = make()
    return found


def forward(x: torch.Tensor, spec: Spec, codes: str | None = None) -> Forward:
    """Return the forward pass for x; the same one for every tensor that lies so."""
    key = (codes, spec, x.shape, x.stride(), x.dtype)
    found: Forward = _remember(key, lambda: Forward(x, spec, codes))
    return found


def pool(x: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Return the pooled tensor."""
    return forward(x, spec)(x)


def pool_with_codes(x: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result of a max or min, and each winner's offset in its window."""
    return forward(x, spec, "offset").with_codes(x)


def _backward(name: str, spec: Spec, origin: Origin, grad: torch.Tensor, others: tuple[torch.Tensor, ...],
              make: Callable[[Memory, Memory], Any]) -> tuple[torch.Tensor, Any]:  # fmt: skip
    """Return memory for the gradient of x, and what `make` makes of where that and the arguments lie."""
    lie = tuple((o.stride(), o.dtype) for o in others)
    key = (name, spec, origin, grad.stride(), grad.dtype, lie)

    def prepare() -> Any:
        out = origin.memory()
        n_bytes = math.prod(origin.shape) * out.itemsize
        return make(memory_of(grad), out), tuple(s // out.itemsize for s in out.strides), n_bytes

    recipe, strides, n_bytes = _remember(key, prepare)
    limits.require(n_bytes, "the gradient of x", f"x: {origin.shape}")
    return grad.new_empty_strided(origin.shape, strides, dtype=origin.dtype), recipe


def sum_backward(grad: torch.Tensor, origin: Origin, spec: Spec) -> torch.Tensor:
    """Return the gradient of a sum or mean."""

    def make(g: Memory, out: Memory) -> Any:
        job = problem_of(out, spec).adjoint
        native = select(job, g)[0].name == "native"  # type: ignore[arg-type]
        return recipe_for(job, g, out) if native else None  # type: ignore[arg-type]

    out, recipe = _backward("sum", spec, origin, grad, (), make)
    if recipe is None:
        return out.copy_(sum_in_torch(grad, origin, spec))
    recipe.run(grad.data_ptr(), out.data_ptr())
    return out


def sum_in_torch(grad: torch.Tensor, origin: Origin, spec: Spec) -> torch.Tensor:
    """Return the gradient of a sum or mean in torch operations."""
    if not grad.numel():  # no output saw anything
        return grad.new_zeros(origin.shape)
    y: torch.Tensor = reference.run(problem_of(origin.memory(), spec).adjoint, grad)[0]
    return y


def select_backward(grad: torch.Tensor, codes: torch.Tensor, origin: Origin, spec: Spec) -> torch.Tensor:
    """Return the gradient of a max or min: every winner takes that of its window."""

    def make(g: Memory, out: Memory) -> Any:
        job = problem_of(out, spec).coded
        native = select(job, out)[0].name == "native"  # type: ignore[arg-type]
        return recipe_for(job, g, out, memory_of(codes), backward=True) if native else None  # type: ignore[arg-type]

    out, recipe = _backward("select", spec, origin, grad, (codes,), make)
    if recipe is None:
        return out.copy_(scatter(grad, codes, origin, spec))
    recipe.run(grad.data_ptr(), out.data_ptr(), codes.data_ptr())
    return out


def power_backward(grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Return the gradient of an lp or logsumexp pooling."""
    origin = Origin(tuple(x.shape), x.dtype, channels_last(x))
    if y.element_size() < 4:  # y before it was rounded to a half, which would weigh on every weight
        exact = problem_of(memory_of(x), spec).job.accumulator.name
        y = pool(x, spec._replace(dtype=getattr(torch, exact)))

    def make(g: Memory, out: Memory) -> Any:
        job = problem_of(out, spec).adjoint
        native = select(job, g)[0].name == "native"  # type: ignore[arg-type]
        return recipe_for(job, g, out, None, memory_of(y), memory_of(x)) if native else None  # type: ignore[arg-type]

    out, recipe = _backward("power", spec, origin, grad, (x, y), make)
    if recipe is None:
        from anypool.tensors.autograd import pull

        return out.copy_(pull(x, grad, spec))
    recipe.run(grad.data_ptr(), out.data_ptr(), None, y.data_ptr(), x.data_ptr())
    return out
