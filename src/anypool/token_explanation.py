"""What a call of `pool_tokens` has understood: which tokens count, where the padding is, and what would run."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from anypool import _native
from anypool.backends import tokens_native
from anypool.reductions import is_float
from anypool.tokens import LAYOUTS, TokenCall, backend_of, call_of, holds_tensors, pool_tokens, tensors


@dataclass(frozen=True)
class TokenExplanation:
    """What a call would pool. ``print`` it, or read its fields; ``to_dict()`` is ready for JSON.

    ``padded_left``, ``padded_right`` and ``with_holes`` count the outputs whose rows have tokens that do not count
    before the first that does, behind the last one, and between them. They are None without a mask or lengths.
    """

    reductions: tuple[str, ...]
    layout: str
    dtype: str
    accumulator: str
    result_dtype: str
    output_shape: tuple[int, ...]
    tokens: int
    rows: int
    shortest: int
    longest: int
    empty_outputs: int
    padded_left: int | None
    padded_right: int | None
    with_holes: int | None
    backend: str
    isa: str
    bytes_moved: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers, strings, lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def __str__(self) -> str:
        outputs = int(np.prod(self.output_shape[:-1]))
        lines = [
            f"{', '.join(self.reductions)} of {outputs:,} {_plural('row', outputs)} of tokens",
            f"  tokens   {self.tokens:,} count of {self.rows:,} ({self.layout}); "
            f"{self.shortest:,} to {self.longest:,} in a row",
        ]
        if self.padded_left is not None:
            lines.append(
                f"  padding  on the left of {self.padded_left:,}, on the right of {self.padded_right:,}, "
                f"holes in {self.with_holes:,}"
            )
        if self.empty_outputs:
            lines.append(f"  empty    {self.empty_outputs:,} without a token")
        lines += [
            f"  output   {self.output_shape} {self.result_dtype} of {self.dtype}, accumulated in {self.accumulator}",
            f"  backend  {self.backend}" + (f" ({self.isa})" if self.isa else ""),
            f"  memory   {self.bytes_moved:,} bytes read and written, at least",
        ]
        return "\n".join(lines + [f"  note     {n}" for n in self.notes])


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def _padding(call: TokenCall) -> tuple[int, int, int]:
    """Return how many outputs have padding before, behind and between their tokens."""
    runs, rows = call.runs, call.matrix.rows
    used = np.flatnonzero(runs.count)
    output = runs.output[used]
    first = np.flatnonzero(np.diff(output, prepend=-1))  # the first run of each output that has a token, and the last
    last = np.append(first[1:], len(output))[: len(first)] - 1
    start, end = runs.start[used], runs.start[used] + runs.count[used]
    behind = end[last] < rows[runs.part[used][last]]
    between = len(output) - len(first)
    holed = len(np.unique(output[np.flatnonzero(np.diff(output, prepend=-1) == 0)])) if between else 0
    return int((start[first] > 0).sum()), int(behind.sum()), holed


def explain_tokens(*args: Any, **kwargs: Any) -> TokenExplanation:
    """Return what `pool_tokens` would pool; nothing is computed, but the arguments are checked."""
    try:
        bound = inspect.signature(pool_tokens).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"pool_tokens() {error}") from None
    bound.apply_defaults()
    given = bound.arguments
    of_tensors = holds_tensors(given["x"])
    call: TokenCall = (tensors().call_of_tensors if of_tensors else call_of)(**given)
    device = tensors().other_device(given["x"]) if of_tensors else ""
    layout = next((name for name in LAYOUTS if given[name] is not None), "")
    runs, matrix, tokens = call.runs, call.matrix, call.runs.tokens
    reason = f"a tensor on {device}" if device else tokens_native.reason_against(matrix, runs)
    backend = "torch" if device else "native" if backend_of(call) is tokens_native else "reference"
    sides = _padding(call) if layout in ("mask", "lengths") else (None, None, None)
    results = len(tokens) * matrix.dim * len(call.terms)
    return TokenExplanation(
        reductions=tuple(t.reduction.name for t in call.terms),
        layout=layout or "all of them",
        dtype=matrix.dtype.name,
        accumulator=tokens_native.sum_dtype(matrix.dtype).name if is_float(matrix.dtype) else call.result.name,
        result_dtype=call.result.name,
        output_shape=(*runs.shape, matrix.dim * len(call.terms)),
        tokens=int(runs.count.sum()),
        rows=matrix.n_rows,
        shortest=int(tokens.min(initial=tokens.max(initial=0))),
        longest=int(tokens.max(initial=0)),
        empty_outputs=int((tokens == 0).sum()),
        padded_left=sides[0],
        padded_right=sides[1],
        with_holes=sides[2],
        backend=backend,
        isa=_native.isa() if backend == "native" else "",
        bytes_moved=int(runs.count.sum()) * matrix.dim * matrix.dtype.itemsize + results * call.result.itemsize,
        notes=() if reason is None else (reason,),
    )
