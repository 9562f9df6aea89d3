"""A battery of operations and the digest of every result, as JSON: `python battery.py PART ...`.

Run once per instruction set and thread count by test_determinism.py; equal digests are equal bits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from typing import Any

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


def pulled(fn: Any, x: Any, *args: Any, **kwargs: Any) -> str:
    """Digest of everything a call gives, indices too, and of its gradients."""
    y, pullback = ap.vjp(fn, x, *args, **kwargs)
    results = y if isinstance(y, tuple) else (y,)
    gradients = pullback(np.linspace(-1, 1, results[0].size).astype(results[0].dtype).reshape(results[0].shape))
    return digest(*results, *(gradients if isinstance(gradients, tuple) else (gradients,)))


def named() -> dict[str, str]:
    """Every function that is neither `pool` nor one of tokens, on work that is shared between threads."""
    found = {}
    for rank, shape in LARGE.items():
        for dtype in cases.FLOATS:
            x = cases.plain(shape, cases.dtype_of(dtype))
            y, places = getattr(ap, f"max_pool{rank}d")(x, 2, return_indices=True)
            mask = np.random.default_rng(rank).random(x.shape) < 0.6
            selected = {"mask": mask, "nan": "omit", "return_valid": True}
            found |= {
                f"max_pool{rank}d, masked {dtype}": pulled(
                    getattr(ap, f"max_pool{rank}d"), x, 3, 2, 1, return_indices=True, **selected
                ),
                f"avg_pool{rank}d, masked {dtype}": pulled(getattr(ap, f"avg_pool{rank}d"), x, 3, 2, 1, **selected),
                f"max_pool{rank}d {dtype}": pulled(getattr(ap, f"max_pool{rank}d"), x, 3, 2, 1, return_indices=True),
                f"avg_pool{rank}d {dtype}": pulled(
                    getattr(ap, f"avg_pool{rank}d"), x, 3, 2, 1, count_include_pad=False
                ),
                f"lp_pool{rank}d {dtype}": pulled(getattr(ap, f"lp_pool{rank}d"), x, 3, 3, 2),
                f"adaptive_avg_pool{rank}d {dtype}": pulled(getattr(ap, f"adaptive_avg_pool{rank}d"), x, 7),
                f"adaptive_max_pool{rank}d {dtype}": pulled(getattr(ap, f"adaptive_max_pool{rank}d"), x, 7, True),
                f"max_unpool{rank}d {dtype}": pulled(
                    getattr(ap, f"max_unpool{rank}d"), y, places, 2, output_size=shape
                ),
                f"global_avg_pool {shape} {dtype}": pulled(ap.global_avg_pool, x),
                f"global_max_pool {shape} {dtype}": pulled(ap.global_max_pool, x, return_indices=True),
            }
            if rank > 1:
                fractional = getattr(ap, f"fractional_max_pool{rank}d")
                found[f"fractional_max_pool{rank}d {dtype}"] = pulled(fractional, x, 3, 9, return_indices=True, rng=7)
        for dtype in ("bool", "uint8", "int16", "int32", "uint64"):
            x = cases.plain(shape, np.dtype(dtype))
            kwargs = {"axes": cases.pooled_axes(rank, "channels_first"), "stride": 2, "padding": 1}
            for reduction in ("max", "min", "sum", "mean"):
                found[f"{reduction} {shape} {dtype}"] = digest(ap.pool(x, reduction, (3,) * rank, **kwargs))
    return found


def alone() -> dict[str, list[str]]:
    """Pairs that must be equal: an image among others and alone, rows of outputs and just the inputs they see."""
    found = {}
    for (rank, shape), reduction in itertools.product(LARGE.items(), cases.REDUCTIONS):
        for dtype in ("float32", "float16"):
            x = cases.plain(shape, np.dtype(dtype))
            kwargs = {"kernel_size": (3,) * rank, "stride": 2, "axes": tuple(range(-rank, 0))}
            y, pullback = ap.vjp(ap.pool, x, reduction, **kwargs)
            grad = np.linspace(-1, 1, y.size).astype(y.dtype).reshape(y.shape)
            whole = pullback(grad)
            one, back = ap.vjp(ap.pool, x[1, 2], reduction, **kwargs)
            name = f"{reduction} {shape} {dtype}"
            found[f"{name}: one of a batch"] = [digest(y[1, 2], whole[1, 2]), digest(one, back(grad[1, 2]))]
            begin, end = y.shape[2] // 3, y.shape[2] // 2  # of the outputs
            part = ap.pool(x[:, :, 2 * begin : 2 * (end - 1) + 3], reduction, **kwargs)
            found[f"{name}: a chunk"] = [digest(y[:, :, begin:end]), digest(part)]
    rows = token_cases.rows_of((70, 1, 0, 16, 333, 5, 3000), 67, "float32")
    for name in token_oracle.NAMES:
        y = ap.pool_tokens(rows, name)
        for i in (0, 3, 6):
            found[f"tokens {name}, row {i}"] = [digest(y[i]), digest(ap.pool_tokens(rows[i], name))]
    y = ap.attention_pool(rows, rows[0][:2])
    found["attention"] = [digest(y[6]), digest(ap.attention_pool(rows[6], rows[0][:2]))]
    return found


def tensors() -> dict[str, list[str]]:
    """Pairs that must be equal: tensors and arrays, with gradients."""
    import torch

    def numpy(t: Any) -> np.ndarray:
        return t.detach().numpy()

    def of_tensor(fn: Any, x: np.ndarray, *args: Any, **kwargs: Any) -> str:
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        y = fn(leaf, *args, **kwargs)
        results = y if isinstance(y, tuple) else (y,)
        grad = np.linspace(-1, 1, results[0].numel()).astype(x.dtype).reshape(results[0].shape)
        (gradient,) = torch.autograd.grad(results[0], leaf, torch.from_numpy(grad))
        return digest(*map(numpy, results), numpy(gradient))

    found = {}
    for dtype in ("float16", "float32", "float64"):
        x = cases.plain(LARGE[2], np.dtype(dtype))
        tokens = cases.plain((5, 700, 67), np.dtype(dtype))
        calls = {reduction: (ap.pool, x, reduction, (3, 3)) for reduction in cases.REDUCTIONS}
        calls |= {
            "adaptive_avg_pool2d": (ap.adaptive_avg_pool2d, x, 7),
            "adaptive_max_pool2d": (ap.adaptive_max_pool2d, x, 7, True),
            "global_avg_pool": (ap.global_avg_pool, x),
            **{f"tokens {name}": (ap.pool_tokens, tokens, name) for name in token_oracle.NAMES},
        }
        for name, call in calls.items():
            found[f"{name} {dtype}"] = [of_tensor(*call), pulled(*call)]
    return found


PARTS = {f.__name__: f for f in (small, large, tokens, named, alone, tensors)}

if __name__ == "__main__":
    from anypool.backends import native

    results = {name: PARTS[name]() for name in sys.argv[1:]}
    print(json.dumps({"info": native.info(), **results}))
