"""A battery of operations and the digest of every result, as JSON: `python battery.py`.

Run once per instruction set and thread count by test_isa.py; equal digests are equal bits.
"""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np

import anypool as ap
import cases
import oracle
import token_cases
import token_oracle
import tolerance

# Large enough to be shared between threads, with rows no vector length divides.
LARGE = {
    1: (3, 5, 100_003),
    2: (3, 17, 181, 203),
    3: (2, 5, 37, 41, 67),
}


def digest(*arrays: np.ndarray) -> str:
    h = hashlib.sha256()
    for a in arrays:
        h.update(f"{a.shape} {a.dtype}".encode())
        h.update(tolerance.canonical_bits(a).tobytes())
    return h.hexdigest()[:16]


def pooled(x: np.ndarray, reduction: str, layout: str, kwargs: dict) -> str:
    """Digest of values, indices and gradient."""
    rank = x.ndim - 2
    moved = cases.to_layout(x, layout)
    if layout == "channels_last":
        moved = np.ascontiguousarray(moved)
    kwargs = {"axes": cases.pooled_axes(rank, layout), **kwargs}
    if x.dtype.kind in "biu":
        results = (ap.pool(moved, reduction, **kwargs),)
    else:
        y, pullback = ap.vjp(ap.pool, moved, reduction, **kwargs)
        first = np.moveaxis(y, -1, 1).shape if layout == "channels_last" else y.shape
        grad = np.linspace(-1, 1, y.size).astype(y.dtype).reshape(first)
        grad = cases.to_layout(grad, layout)
        results = (y, pullback(grad))
    if reduction in ("max", "min"):
        results += (ap.pool(moved, reduction, return_indices=True, **kwargs)[1],)
    return digest(*(np.moveaxis(a, -1, 1) if layout == "channels_last" else a for a in results))


def small() -> dict[str, str]:
    """Every reduction, layout and dtype, on special values in every lane."""
    found = {}
    for rank in (1, 2, 3):
        for turn, array in enumerate(cases.VALUES):
            for step, windows in enumerate(cases.WINDOWS):
                shape = cases.SHAPES[rank][(turn + step) % len(cases.SHAPES[rank])]
                kwargs = windows.kwargs(rank)
                if oracle.has_empty_window(oracle.sliding_axes(shape[2:], **kwargs)):
                    continue
                dtype = array.dtypes[(turn + step) % len(array.dtypes)]
                reduction = array.reductions[(turn + step // 2) % len(array.reductions)]
                x = array.build(shape, cases.dtype_of(dtype))
                for layout in cases.LAYOUTS:
                    name = f"{array.name} {shape} {dtype} {reduction} {windows.name!r} {layout}"
                    found[name] = pooled(x, reduction, layout, kwargs)
    return found


def large() -> dict[str, str]:
    """Work that is shared between threads."""
    found = {}
    for rank, shape in LARGE.items():
        for turn, reduction in enumerate(cases.REDUCTIONS):
            dtype = ("float32", "float64", cases.HALVES[-1], "float16")[(rank + turn) % 4]
            x = cases.plain(shape, cases.dtype_of(dtype))
            for kwargs in ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 7, "stride": 1}):
                for layout in cases.LAYOUTS:
                    found[f"{shape} {dtype} {reduction} {kwargs} {layout}"] = pooled(x, reduction, layout, kwargs)
        x = cases.plain(shape, np.dtype(np.float32))
        found[f"{shape} global"] = digest(ap.global_avg_pool(x), *ap.global_max_pool(x, return_indices=True))
        adaptive = getattr(ap, f"adaptive_avg_pool{rank}d")
        found[f"{shape} adaptive"] = digest(adaptive(x, 5), adaptive(x.astype(np.uint8), 5))
    return found


def tokens() -> dict[str, str]:
    """Token pooling: rows of every length, one that several threads share, attention, gradients."""
    found = {}
    lengths = (70, 1, 0, 16, 333, 5, 3000)
    for turn, (name, dtype) in enumerate(itertools.product(token_oracle.NAMES, cases.FLOATS)):
        rows = token_cases.rows_of(lengths, 37 + turn % 3, dtype)
        y, pullback = ap.vjp(ap.pool_tokens, rows, name)
        grad = np.linspace(-1, 1, y.size).astype(y.dtype).reshape(y.shape)
        found[f"{name} {dtype}"] = digest(y, *pullback(grad))
    spans = np.sort(np.random.default_rng(0).integers(0, 3000, (200, 2)), axis=1)
    for dtype in cases.FLOATS:
        x = token_cases.rows_of((3000,), 67, dtype)[0]
        several = ["mean", "max", "std", "weightedmean"]
        y, pullback = ap.vjp(ap.pool_tokens, x, several, spans=spans)
        found[f"spans {dtype}"] = digest(y, pullback(np.ones_like(y)))
        y, pullback = ap.vjp(ap.attention_pool, x, x[:3], spans=spans)
        found[f"attention {dtype}"] = digest(y, *pullback(np.ones_like(y)))
        y, pullback = ap.vjp(ap.attention_pool, x, x[0])
        found[f"attention, one row {dtype}"] = digest(y, *pullback(np.ones_like(y)))
    large = cases.plain((50_000, 131), np.dtype(np.float32))
    for name in token_oracle.NAMES:
        y, pullback = ap.vjp(ap.pool_tokens, large, name)
        found[f"{name}, one long row"] = digest(y, pullback(np.ones_like(y)))
    return found


if __name__ == "__main__":
    from anypool.backends import native

    print(json.dumps({"info": native.info(), "small": small(), "large": large(), "tokens": tokens()}))
