"""Token pooling against what people write today, and against reading the tokens: `python -m benchmarks.tokens`.

Efficiency is the time to read the valid tokens and write the result, at the better of two speeds measured beside it (a
copy that moves as many bytes, and PyTorch's sum of as many bytes), divided by our time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anypool as ap
from anypool import nn_tokens  # noqa: F401  the operators are there before anything is timed
from benchmarks.measure import Run, copy_of, interleaved, machine

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
REDUCTIONS = ("mean", "sum", "max", "weightedmean", "std", "mean+max+std", "attention")


@dataclass
class Data:
    """One shape: padded or packed tokens, and what says which count."""

    name: str
    x: torch.Tensor
    kwargs: dict[str, Any]
    tokens: int
    outputs: int
    mask: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    def moved(self, columns: int = 1) -> int:
        """Bytes of the tokens that count and of the result."""
        return (self.tokens + self.outputs * columns) * self.x.shape[-1] * self.x.element_size()


def shapes(dtype: torch.dtype) -> Iterator[Data]:
    """The four shapes of the page: a batch, packed rows, one long row, many short ones."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    lengths = torch.randint(1, 513, (64,), generator=generator)
    mask = torch.arange(512) < lengths[:, None]
    yield Data("64×512×768, random lengths", random(64, 512, 768), {"lengths": lengths}, int(lengths.sum()), 64, mask)
    cuts = torch.randperm(16_383, generator=generator)[:127] + 1
    offsets = torch.cat([torch.tensor([0]), cuts.sort()[0], torch.tensor([16_384])])
    yield Data("16384×768 packed, 128 rows", random(16_384, 768), {"offsets": offsets}, 16_384, 128, None, offsets)
    long = random(200_000, 1024)
    yield Data("1×200000×1024", long, {}, 200_000, 1, None, torch.tensor([0, 200_000]))
    yield Data("4096×16×384", random(4096, 16, 384), {}, 4096 * 16, 4096, torch.ones(4096, 16, dtype=torch.bool))


def ours(data: Data, reduction: str) -> Run:
    if reduction == "attention":
        query = torch.ones(data.x.shape[-1], dtype=data.x.dtype)
        return lambda: ap.attention_pool(data.x, query, **data.kwargs)
    names = reduction.split("+")
    return lambda: ap.pool_tokens(data.x, names if len(names) > 1 else names[0], **data.kwargs)


def peers(data: Data, reduction: str) -> dict[str, Run]:
    """What people write for this, by name."""
    x, mask, offsets = data.x, data.mask, data.offsets
    found: dict[str, Run] = {}
    if mask is not None and reduction in ("mean", "sum", "max"):
        counts = mask.sum(1, keepdim=True)

        def sentence_transformers() -> torch.Tensor:  # the formula of its Pooling module, 6.2
            m = mask.unsqueeze(-1).to(x.dtype)
            total = (x * m).sum(dim=1, dtype=torch.float32)
            return (total / m.sum(dim=1, dtype=torch.float32).clamp(min=1e-9)).to(x.dtype)

        def masked_max() -> torch.Tensor:
            m = mask.unsqueeze(-1).expand_as(x).to(x.dtype)
            return x.masked_fill(m == 0, -math.inf).max(dim=1).values

        if reduction == "max":
            found["sentence-transformers"] = masked_max
        else:
            if reduction == "mean":
                found["sentence-transformers"] = sentence_transformers
            scaled = mask.to(x.dtype) / (counts.to(x.dtype) if reduction == "mean" else 1)
            found["masked bmm"] = lambda: torch.bmm(scaled.unsqueeze(1), x).squeeze(1)
            if x.dtype == torch.float32:
                array, m = x.numpy(), mask.numpy()
                found["NumPy"] = lambda: np.einsum("bld,bl->bd", array, m.astype(np.float32))
    if offsets is not None and reduction in ("mean", "sum", "max"):
        if x.dtype != torch.bfloat16:
            found["segment_reduce"] = lambda: torch.segment_reduce(x, reduction, offsets=offsets, axis=0)
        ids = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        if reduction == "sum":
            empty = torch.zeros(len(offsets) - 1, x.shape[1], dtype=x.dtype)
            found["index_add_"] = lambda: empty.clone().index_add_(0, ids, x)
        every = torch.arange(len(x))
        found["embedding_bag"] = lambda: torch.nn.functional.embedding_bag(every, x, offsets[:-1], mode=reduction)
    return found


def backward(data: Data, reduction: str) -> Run:
    """Our gradient, into memory that is there already."""
    array = data.x.numpy()
    kwargs = {k: np.asarray(v) for k, v in data.kwargs.items()}
    y, pullback = ap.vjp(ap.pool_tokens, array, reduction, **kwargs)
    grad, out = np.ones_like(y), np.empty_like(array)
    return lambda: pullback(grad, out=out)


def reading(n_bytes: int) -> Run:
    x = torch.ones(max(1, n_bytes // 4))
    return lambda: x.sum()


def measure(runs: dict[str, Run], n_bytes: int, seconds: float) -> tuple[dict[str, float], float]:
    """Return everybody's seconds and the floor's."""
    for run in runs.values():
        run()  # what the first call imports and compiles is nobody's speed
    floors: dict[str, Callable[[], object]] = {"copy": copy_of(n_bytes), "read": reading(n_bytes)}
    times = interleaved(floors | runs, seconds)
    return times, min(times.pop("copy"), times.pop("read"))


def rows(dtypes: list[str], seconds: float, reductions: list[str]) -> Iterator[str]:
    """Yield the lines of the table, as they are measured."""
    yield "| tokens | dtype | reduction | ms | of copy or read | × best peer | peers, ms |"
    yield "|---|---|---|---|---|---|---|"
    for dtype in dtypes:
        for data in shapes(DTYPES[dtype]):
            for reduction in reductions:
                run, others = ours(data, reduction), peers(data, reduction)
                times, floor = measure({"anypool": run} | others, data.moved(len(reduction.split("+"))), seconds)
                yield line(data.name, dtype, reduction, times, floor)
            for reduction in ("mean", "max") if dtype == "float32" and data.x.numel() < 10**8 else ():
                n_bytes = data.x.numel() * data.x.element_size() + data.outputs * data.x.shape[-1] * 4
                times, floor = measure({"anypool": backward(data, reduction)}, n_bytes, seconds)
                yield line(data.name, dtype, f"{reduction}, backward", times, floor)


def line(shape: str, dtype: str, reduction: str, times: dict[str, float], floor: float) -> str:
    """Return one row of the table."""
    mine = times.pop("anypool")
    best = f"{min(times.values()) / mine:.2f}" if times else ""
    others = ", ".join(f"{name} {t * 1e3:.2f}" for name, t in sorted(times.items(), key=lambda i: i[1]))
    return f"| {shape} | {dtype} | {reduction} | {mine * 1e3:.2f} | {floor / mine:.2f} | {best} | {others} |"


NOTE = """\
Written by `python -m benchmarks.tokens`. *Of copy or read*: the time to read the valid tokens and write the result, at
the better of two speeds measured beside it (a copy that moves as many bytes, and PyTorch's sum of as many bytes),
divided by ours. *× best peer*: the time of the fastest peer divided by ours; below 1 the peer is faster."""


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokens")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--reductions", default=",".join(REDUCTIONS))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--out", type=Path, help="append to this page")
    options = parser.parse_args()
    print(f"{machine()}, torch {torch.__version__}\n")
    done = []
    for text in rows(options.dtypes.split(","), options.seconds, options.reductions.split(",")):
        print(text, flush=True)
        done.append(text)
    if options.out:
        with options.out.open("a", encoding="utf-8") as page:
            page.write("\n".join(["", "## Tokens", "", NOTE, "", *done, ""]))


if __name__ == "__main__":
    main()
