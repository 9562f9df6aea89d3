"""Arguments for the functions of `anypool.compat` and the modules of `anypool.nn`, from a maker of calls.

Each gives (arguments, keywords, whether nothing is rounded). A module's keywords are those of its constructor and of
its `forward` together.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from typing import TYPE_CHECKING, Any

import numpy as np

import cases
from anypool.compat import flax, onnx, tf

if TYPE_CHECKING:
    from calls import Maker

Arguments = tuple[list[Any], dict[str, Any], bool]

COMPAT = {f"{m.__name__.rpartition('.')[2]}.{n}": getattr(m, n) for m in (onnx, tf, flax) for n in m.__all__}
TORCH = importlib.util.find_spec("torch") is not None


def modules() -> dict[str, Any]:
    """Return the modules by name, none without PyTorch."""
    if not TORCH:
        return {}
    from anypool import nn

    return {f"nn.{name}": getattr(nn, name) for name in nn.__all__}


MODULES = modules()
# Sizes of PyTorch's own layers, which have their own errors, and the name of a folder.
OF_LAYERS = ("dim", "bottleneck", "heads", "value_dim", "config")
LAYOUT = ["mask", "lengths", "side", "offsets", "segment_ids", "num_segments", "spans"]


def keywords(name: str) -> list[str]:
    """Return what a call may name."""
    if name in COMPAT:
        return [n for n in inspect.signature(COMPAT[name]).parameters if n not in ("x", "input", "inputs", "indices")]
    own = list(inspect.signature(MODULES[name]).parameters)
    return [*own, *LAYOUT] if name in ("nn.AttentionPool", "nn.AttentiveStatsPool") else own


def made_of_module(name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Build the module and call it."""
    import torch

    torch.manual_seed(0)
    own = inspect.signature(MODULES[name]).parameters
    module = MODULES[name](**{k: v for k, v in kwargs.items() if k in own})
    repr(module)
    if name == "nn.TokenPooling":
        return module({"token_embeddings": args[0], "attention_mask": args[1]})["sentence_embedding"]
    return module(*args, **{k: v for k, v in kwargs.items() if k not in own})


# ---- functions -------------------------------------------------------------------------------------------------------


def compat(maker: Maker, name: str) -> Arguments:
    """Return arguments for a function of `anypool.compat`."""
    rank = 2 if "argmax" in name else maker.number_in(1, 3)
    whole, shape = maker.chance(0.5), maker.shape(rank)
    shape = shape if len(shape) == rank + 2 else (2, *shape)
    x = maker.array(shape, maker.one_of(cases.DTYPES + cases.FLOATS), whole=whole)
    exact = "max" in name or "min" in name or (whole and "av" in name)
    if name == "onnx.max_unpool":
        positions = max(1, math.prod(shape) * 2**rank)
        indices = maker.rng.integers(0, positions, shape)
        return [x, indices], {"kernel_shape": [2] * rank, "strides": [2] * rank}, True
    if "global" in name:
        return [x], {"p": maker.one_of((1, 2, 3.5))} if "lp" in name else {}, exact
    if name.startswith("onnx"):
        return [x], onnx_windows(maker, name, rank), exact
    if not maker.chance(0.3) or name.startswith("flax") or "argmax" in name:
        x, layout = np.moveaxis(x, 1, -1), {}
    else:
        layout = {"data_format": {1: "NCW", 2: "NCHW", 3: "NCDHW"}[rank]}
    kernel, pairs = sizes(maker, rank, 3), [(maker.number_in(0, 1), maker.number_in(0, 1)) for _ in range(rank)]
    if name.startswith("flax"):
        kwargs: dict[str, Any] = {
            "window_shape": maker.one_of((tuple(kernel), kernel)),
            "padding": maker.one_of(("VALID", "SAME", "SAME_LOWER", "same", pairs)),
        }
        if maker.chance(0.6):
            kwargs["strides"] = sizes(maker, rank, 3)
        if "avg" in name and maker.chance(0.5):
            kwargs["count_include_pad"] = False
        return [x], kwargs, exact
    around = [(0, 0), *pairs, (0, 0)] if not layout else [(0, 0), (0, 0), *pairs]
    kwargs = {"padding": maker.one_of(("VALID", "SAME", around))} | layout
    if name == "tf.pool":
        kwargs |= {"window_shape": kernel, "pooling_type": maker.one_of(("AVG", "MAX"))}
        kwargs |= {k: sizes(maker, rank, 2) for k in ("strides", "dilations") if maker.chance(0.4)}
        return [x], kwargs, exact or whole or kwargs["pooling_type"] == "MAX"
    full = [1, *kernel, 1] if not layout else [1, 1, *kernel]
    kwargs |= {"ksize": maker.one_of((kernel, full, kernel[0], [kernel[0]])), "strides": maker.number_in(1, 3)}
    if "argmax" in name and maker.chance(0.5):
        kwargs["include_batch_in_index"] = True
    return [x], kwargs, exact


def sizes(maker: Maker, rank: int, most: int) -> list[int]:
    return [maker.number_in(1, most) for _ in range(rank)]


def onnx_windows(maker: Maker, name: str, rank: int) -> dict[str, Any]:
    kernel = sizes(maker, rank, 3)
    kwargs: dict[str, Any] = {"kernel_shape": kernel}
    if maker.chance(0.6):
        kwargs["strides"] = sizes(maker, rank, 3)
    if maker.chance(0.3):
        kwargs["auto_pad"] = maker.one_of(("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"))
    elif maker.chance(0.5):
        kwargs["pads"] = [maker.number_in(0, k // 2) for k in kernel * 2]
    if maker.chance(0.2):
        kwargs["dilations"] = sizes(maker, rank, 2)
    if maker.chance(0.3):
        kwargs["ceil_mode"] = 1
    if "max" in name and maker.chance(0.4):
        kwargs |= {"return_indices": True, "storage_order": maker.number_in(0, 1)}
    if "average" in name:
        kwargs["count_include_pad"] = maker.number_in(0, 1)
    if "lp" in name:
        kwargs["p"] = maker.one_of((1, 2, 3, 2.5))
    return kwargs


# ---- modules ---------------------------------------------------------------------------------------------------------


def module(maker: Maker, name: str) -> Arguments:
    """Return arguments for a module of `anypool.nn` and its `forward`."""
    family = name.removeprefix("nn.")
    if family == "TokenPooling":
        x = maker.array((2, maker.number_in(1, 9), 5), maker.one_of(cases.FLOATS), whole=False)
        mask = maker.rng.random(x.shape[:2]) < 0.7
        return [x, mask.astype(np.int64)], {"config": maker.one_of(("mean", "max", "cls", "lasttoken"))}, False
    if family.startswith("Attent"):
        # No infinities: the gradient of the weights warns of an infinity less an infinity.
        x = maker.array((2, maker.number_in(1, 9), 4), "float32", whole=True)
        kwargs = {"dim": 4, "lengths": maker.rng.integers(0, x.shape[1] + 1, 2)}
        if family == "AttentionPool":
            kwargs |= {"heads": maker.number_in(1, 3), "project_keys": maker.chance(0.5), "flatten": maker.chance(0.5)}
        return [x], kwargs, False
    rank = int(family[-2]) if family[-1] == "d" else maker.number_in(1, 3)
    shape = maker.shape(rank)
    shape = shape if len(shape) == rank + 2 else (2, *shape)
    shape = (*shape[:2], *(max(4, n) for n in shape[2:]))
    inexact = ("BlurPool", "MaxBlurPool", "GeM", "AvgMaxPool", "CatAvgMaxPool")
    x = maker.array(shape, maker.one_of(cases.FLOATS if family in inexact else cases.DTYPES), whole=True)
    if family.startswith("MaxUnpool"):
        indices = maker.rng.integers(0, max(1, math.prod(shape[2:]) * 2**rank), shape)
        return [x, indices], {"kernel_size": 2}, True
    return [x], module_settings(maker, family, rank), family.startswith(("Max", "Min", "AdaptiveMax"))


def module_settings(maker: Maker, family: str, rank: int) -> dict[str, Any]:
    if family.startswith("Adaptive") or family in ("AvgMaxPool", "CatAvgMaxPool"):
        return {"output_size": maker.per_axis(rank, 1, 4)}
    if family.startswith("Global"):
        return {"keepdims": maker.chance(0.5)}
    if family == "GeM":
        return {"p": maker.one_of((1.0, 3.0, 2.5)), "keepdims": maker.chance(0.5)}
    if family == "BlurPool":
        return {"kernel_size": maker.number_in(1, 4), "stride": maker.number_in(1, 3)}
    if family == "MaxBlurPool":
        return {"kernel_size": 2, "stride": maker.number_in(1, 2), "padding_mode": "replicate"}
    if family.startswith("Fractional"):
        return {"kernel_size": 2, "output_size": 2, "return_indices": maker.chance(0.5)}
    kwargs = {"kernel_size": maker.per_axis(rank, 1, 3), "ceil_mode": maker.chance(0.3)}
    if maker.chance(0.5):
        kwargs["stride"] = maker.per_axis(rank, 1, 3)
    if family.startswith("LPPool"):
        return kwargs | {"norm_type": maker.one_of((2.0, 2.5, 3.0))}
    if maker.chance(0.4):
        kwargs |= {"kernel_size": maker.number_in(2, 3), "padding": 1}
    if family.startswith(("Max", "Min")):
        kwargs["return_indices"] = maker.chance(0.5)
    if family.startswith("Avg"):
        kwargs["count_include_pad"] = maker.chance(0.5)
    return kwargs
