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
from anypool.compat import flax, onnx, tf

# Large enough to be shared between threads, with rows no vector length divides.
LARGE = {
    1: (3, 5, 100_003),
    2: (3, 17, 181, 203),
    3: (2, 5, 37, 41, 67),
}

# Windows that overlap, that do not quite, and that touch.
MASKED_WINDOWS = (
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 2, "stride": 2},
)

# Gathered windows are slow, and several boxes are enough.
GATHERED = {1: (2, 3, 60_001), 2: (2, 3, 121, 163), 3: (1, 3, 17, 31, 37)}
OF_WINDOWS = {
    "median": {},
    "quantile": {"q": 0.3},
    "std": {"correction": 1},
    "var": {},
    "softmax": {"r": -1.5},
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


def forward(x: np.ndarray, reduction: str, layout: str, **kwargs: Any) -> str:
    """Digest of the result of `pool` alone, the same in either layout."""
    first = layout == "channels_first"
    lying = {k: v if first else np.ascontiguousarray(np.moveaxis(v, 1, -1)) for k, v in kwargs.items() if k == "mask"}
    moved = x if first else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    kwargs |= {"axes": cases.pooled_axes(x.ndim - 2, layout), **lying}
    kernel = ap.explain(ap.pool, moved, reduction, **kwargs).kernel
    assert "masked" in kernel or not first, kernel  # else this is a test of something else
    y = ap.pool(moved, reduction, **kwargs)
    return digest(y if first else np.moveaxis(y, -1, 1))


def masked() -> dict[str, str]:
    """Kernels that take values and mask in one go: no gradient and no counts, which go another way."""
    found = {}
    for rank, shape in LARGE.items():
        random = np.random.default_rng(rank)
        masks = {"full": random.random(shape) < 0.6, "channels alike": random.random((shape[0], 1, *shape[2:])) < 0.6}
        x = cases.plain(shape, np.dtype(np.float64))
        x.reshape(-1)[::97] = np.nan
        inputs = {dtype: x.astype(dtype) for dtype in ("float32", "float64")}
        for turn, (dtype, kwargs, reduction) in enumerate(
            itertools.product(inputs, MASKED_WINDOWS, ("max", "min", "sum", "mean"))
        ):
            x = inputs[dtype]
            which = list(masks)[turn % 5 == 0]
            for layout in cases.LAYOUTS:
                name = f"{shape} {dtype} {reduction} {kwargs}, {which}"
                found[f"{name} {layout}"] = forward(x, reduction, layout, mask=masks[which], **kwargs)
            if turn % 3 == 0:
                found[f"{name}, without NaN"] = forward(x, reduction, "channels_first", nan="omit", **kwargs)
    return found


def windows() -> dict[str, str]:
    """Reductions of whole windows, which are gathered in boxes; any and all; factors beside a mask."""
    found = {}
    for rank, shape in GATHERED.items():
        x = cases.plain(shape, np.dtype(np.float32))
        x.reshape(-1)[::1009] = np.nan
        kwargs = {"kernel_size": (3,) * rank, "stride": 1 if rank < 3 else 2, "axes": tuple(range(-rank, 0))}
        mask = np.random.default_rng(rank).random(shape) < 0.6
        for turn, (reduction, given) in enumerate(OF_WINDOWS.items()):
            dtype = cases.dtype_of(cases.FLOATS[(rank + turn) % len(cases.FLOATS)])
            found[f"{reduction} {shape}"] = pulled(ap.pool, x.astype(dtype), reduction, **kwargs, **given)
            selected = {"mask": mask, "nan": "omit"}
            y = ap.pool(x, reduction, **kwargs, **given, **selected)
            found[f"{reduction} {shape}, masked"] = digest(y)
        found[f"stochastic {shape}"] = pulled(
            ap.pool, np.abs(x), "stochastic", **kwargs, generator=np.random.default_rng(3)
        )
        labels = cases.ties(shape, np.dtype(np.uint8))
        found[f"mode {shape}"] = digest(ap.pool(labels, "mode", **kwargs, mask=mask, ignore=2, empty=9))
        x = cases.plain(LARGE[rank], np.dtype(np.float32))
        sparse = np.where(x > 1.5, x, 0)
        factors = np.random.default_rng(rank).random((1, *x.shape[1:]))
        for reduction in ("any", "all"):
            found[f"{reduction} {x.shape}"] = digest(
                *(ap.pool(a, reduction, **kwargs) for a in (sparse, sparse != 0, 1 - (sparse > 0).astype(np.int16)))
            )
        for reduction, dtype in itertools.product(("sum", "mean"), cases.FLOATS):
            found[f"{reduction}, weighted {x.shape} {dtype}"] = pulled(
                ap.pool, x.astype(cases.dtype_of(dtype)), reduction, **kwargs, weights=factors
            )
        mask = np.random.default_rng(rank).random(x.shape) < 0.6
        found[f"adaptive, weighted and masked {x.shape}"] = digest(
            getattr(ap, f"adaptive_avg_pool{rank}d")(x, 7, weights=factors, mask=mask)
        )
    return found


def framework_calls(rank: int, x: np.ndarray) -> dict[str, tuple[Any, ...]]:
    """Calls of the frameworks' functions: (function, x, further arguments)."""
    two, three = [2] * rank, [3] * rank
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    return {
        "onnx.max_pool": (onnx.max_pool, x, three, {"strides": two, "return_indices": True, "storage_order": 1}),
        "onnx.average_pool": (onnx.average_pool, x, three, {"strides": two, "auto_pad": "SAME_LOWER"}),
        "onnx.lp_pool": (onnx.lp_pool, x, two, {"p": 3, "pads": [1] * rank + [0] * rank}),
        "onnx.global_average_pool": (onnx.global_average_pool, x, {}),
        "onnx.global_max_pool": (onnx.global_max_pool, x, {}),
        "onnx.global_lp_pool": (onnx.global_lp_pool, x, {"p": 1}),
        "tf.max_pool": (tf.max_pool, last, 3, 2, "SAME", {}),
        "tf.avg_pool": (tf.avg_pool, last, 3, 2, "SAME", {}),
        "tf.pool": (tf.pool, last, two, "AVG", {"dilations": two}),
        "flax.max_pool": (flax.max_pool, last, three, two, "SAME", {}),
        "flax.min_pool": (flax.min_pool, last, three, two, "SAME_LOWER", {}),
        "flax.avg_pool": (flax.avg_pool, last, three, two, [(1, 1)] * rank, {"count_include_pad": False}),
    } | (
        {"tf.max_pool_with_argmax": (tf.max_pool_with_argmax, last, 3, 2, "SAME", {"include_batch_in_index": True})}
        if rank == 2
        else {}
    )


def compat() -> dict[str, str]:
    """The frameworks' functions."""
    found = {}
    for rank, shape in LARGE.items():
        for turn, dtype in enumerate(cases.FLOATS[rank % 2 :: 2]):
            x = cases.plain(shape, cases.dtype_of(dtype))
            calls = framework_calls(rank, x)
            for name in list(calls)[turn % 2 :: 2] if rank != 2 else calls:
                *call, kwargs = calls[name]
                found[f"{name} {shape} {dtype}"] = pulled(*call, **kwargs)
            y, places = onnx.max_pool(x, [2] * rank, strides=[2] * rank, return_indices=True)
            given = {"strides": [2] * rank, "output_shape": list(shape)}
            found[f"onnx.max_unpool {shape} {dtype}"] = digest(onnx.max_unpool(y, places, [2] * rank, **given))
    return found


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
    found |= alone_selected()
    rows = token_cases.rows_of((70, 1, 0, 16, 333, 5, 3000), 67, "float32")
    for name in token_oracle.NAMES:
        y = ap.pool_tokens(rows, name)
        for i in (0, 3, 6):
            found[f"tokens {name}, row {i}"] = [digest(y[i]), digest(ap.pool_tokens(rows[i], name))]
    y = ap.attention_pool(rows, rows[0][:2])
    found["attention"] = [digest(y[6]), digest(ap.attention_pool(rows[6], rows[0][:2]))]
    return found


def alone_selected() -> dict[str, list[str]]:
    """The same with inputs left out, with factors, and of whole windows."""
    found = {}
    for (rank, shape), reduction in itertools.product(LARGE.items(), ("max", "min", "sum", "mean")):
        for dtype, given in itertools.product(("float32", "float64"), MASKED_WINDOWS):
            x = cases.plain(shape, np.dtype(dtype))
            x.reshape(-1)[::101] = np.nan
            mask = np.random.default_rng(rank).random(shape) < 0.6
            kwargs = given | {"axes": tuple(range(-rank, 0))}
            y = ap.pool(x, reduction, mask=mask, **kwargs)
            one = ap.pool(x[1, 2], reduction, mask=mask[1, 2], **kwargs)
            name = f"{reduction} {shape} {dtype} {given}"
            found[f"{name}, masked: one of a batch"] = [digest(y[1, 2]), digest(one)]
            y = ap.pool(x, reduction, nan="omit", **kwargs)
            found[f"{name}, without NaN: one of a batch"] = [
                digest(y[1, 2]), digest(ap.pool(x[1, 2], reduction, nan="omit", **kwargs))
            ]  # fmt: skip
            if given.get("padding"):
                continue
            k, s = given["kernel_size"], given["stride"]
            y = ap.pool(x, reduction, mask=mask, **kwargs)
            begin, end = y.shape[2] // 3, y.shape[2] // 2  # of the outputs
            seen = (slice(None), slice(None), slice(s * begin, s * (end - 1) + k))
            part = ap.pool(x[seen], reduction, mask=mask[seen], **kwargs)
            found[f"{name}, masked: a chunk"] = [digest(y[:, :, begin:end]), digest(part)]
        if reduction in ("sum", "mean"):
            factors = np.random.default_rng(rank).random(shape)
            x, kwargs = np.nan_to_num(x), {"kernel_size": (3,) * rank, "axes": tuple(range(-rank, 0))}
            y = ap.pool(x, reduction, weights=factors, **kwargs)
            one = ap.pool(x[1, 2], reduction, weights=factors[1, 2], **kwargs)
            found[f"{reduction} {shape}, weighted: one of a batch"] = [digest(y[1, 2]), digest(one)]
    for rank, shape in GATHERED.items():
        x = cases.plain(shape, np.dtype(np.float32))
        kwargs = {"kernel_size": (3,) * rank, "stride": 2, "axes": tuple(range(-rank, 0))}
        calls = {name: (x, name, given) for name, given in OF_WINDOWS.items()}
        calls |= {"mode": (cases.ties(shape, np.dtype(np.uint8)), "mode", {})}
        calls |= {name: (np.where(x > 1.5, x, 0), name, {}) for name in ("any", "all")}
        for name, (a, reduction, given) in calls.items():
            y = ap.pool(a, reduction, **kwargs, **given)
            one = ap.pool(a[-1, 2], reduction, **kwargs, **given)
            found[f"{name} {shape}: one of a batch"] = [digest(y[-1, 2]), digest(one)]
            begin, end = y.shape[2] // 3, y.shape[2] // 2  # of the outputs
            part = ap.pool(a[:, :, 2 * begin : 2 * (end - 1) + 3], reduction, **kwargs, **given)
            found[f"{name} {shape}: a chunk"] = [digest(y[:, :, begin:end]), digest(part)]
        # Draws are one after the other, so only what comes first has the same ones alone.
        y, one = (ap.pool(np.abs(a), "stochastic", generator=np.random.default_rng(3), **kwargs) for a in (x, x[0, 0]))
        found[f"stochastic {shape}: the first of a batch"] = [digest(y[0, 0]), digest(one)]
    return found


def selected_calls(x: np.ndarray) -> dict[str, tuple[Any, ...]]:
    """What has a gradient and is not in the table of `tensors`: (function, x, further arguments)."""
    part = np.ascontiguousarray(x[:1, :3, :61, :67])
    mask, factors = part > -0.5, np.abs(part)
    y, places = ap.max_pool2d(part, 2, return_indices=True)
    equal = np.ascontiguousarray(places // 5 * 5)  # several values for one place
    calls = {f"{name}, a part": (ap.pool, part, name, (3, 3), given) for name, given in OF_WINDOWS.items()}
    for reduction in ("sum", "mean"):
        calls[f"{reduction}, weighted"] = (ap.pool, part, reduction, (3, 3), {"weights": factors, "mask": mask})
    calls |= {
        "max, masked, with indices": (ap.pool, part, "max", (3, 3), {"mask": mask, "return_indices": True}),
        "max_unpool2d": (ap.max_unpool2d, y, places, 2, {"output_size": part.shape}),
        "max_unpool2d, equal indices": (ap.max_unpool2d, y, equal, 2, {"output_size": part.shape}),
    }
    return calls | framework_calls(2, part)


def tensors() -> dict[str, list[str]]:
    """Pairs that must be equal: tensors and arrays, with gradients."""
    import torch

    def numpy(t: Any) -> np.ndarray:
        return t.detach().numpy()

    def as_tensors(arguments: dict) -> dict:
        return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}

    def of_tensor(fn: Any, x: np.ndarray, *args: Any, **kwargs: Any) -> str:
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        args = as_tensors(dict(enumerate(args))).values()
        y = fn(leaf, *args, **as_tensors(kwargs))
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
        found |= {
            f"{name} {dtype}": [of_tensor(*call, **kwargs), pulled(*call, **kwargs)]
            for name, (*call, kwargs) in selected_calls(x).items()
        }
        for which, kwargs in {"masked": {"mask": x > -0.5}, "without NaN": {"nan": "omit"}}.items():
            for reduction, given in itertools.product(("max", "min", "sum", "mean"), MASKED_WINDOWS):
                plain = ap.pool(torch.from_numpy(x), reduction, axes=(2, 3), **given, **as_tensors(kwargs))
                wanted = ap.pool(x, reduction, axes=(2, 3), **given, **kwargs)
                found[f"{reduction} {given}, {which} {dtype}"] = [digest(numpy(plain)), digest(wanted)]
            for name, given in OF_WINDOWS.items():
                part = x[:1, :3, :61, :67]
                selected = {"mask": kwargs["mask"][:1, :3, :61, :67]} if "mask" in kwargs else kwargs
                plain = ap.pool(torch.from_numpy(part), name, (3, 3), **given, **as_tensors(selected))
                wanted = ap.pool(part, name, (3, 3), **given, **selected)
                found[f"{name}, {which} {dtype}"] = [digest(numpy(plain)), digest(wanted)]
    return found


PARTS = {f.__name__: f for f in (small, large, tokens, named, masked, windows, compat, alone, tensors)}

if __name__ == "__main__":
    from anypool.backends import native

    results = {name: PARTS[name]() for name in sys.argv[1:]}
    print(json.dumps({"info": native.info(), **results}))
