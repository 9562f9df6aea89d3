"""What the options of `anypool pool` mean: text in, values out, or an `InputError` naming the option and the text."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np

from anypool.cli.files import InputError, Source
from anypool.reductions import REDUCTIONS

OPERATIONS = (*REDUCTIONS, "avg")  # avg is the field's other name for mean
NAMED_PADDINGS = ("valid", "same", "same_lower", "causal")
OPTION_OF = {
    "reduction": "--op",
    "kernel_size": "--kernel",
    "stride": "--stride",
    "padding": "--padding",
    "dilation": "--dilation",
    "axes": "--axes",
    "norm_type": "--norm-type",
    "r": "--r",
    "q": "--q",
    "correction": "--correction",
    "ignore": "--ignore",
    "generator": "--seed",
    "ceil_mode": "--ceil",
    "count_include_pad": "--count-include-pad",
    "dtype": "--dtype",
    "x": "IN",
}
# Options only some operations have; given with another they would be silently ignored, so they are refused.
BELONGS_TO = {
    "norm_type": ("lp",),
    "r": ("logsumexp", "softmax"),
    "q": ("quantile",),
    "correction": ("std", "var"),
    "ignore": ("mode",),
    "seed": ("stochastic",),
    "count_include_pad": ("mean", "avg"),
}

Size = int | tuple[int, ...]


def with_option_names(message: str) -> str:
    """`kernel_size[0] must be ...` -> `--kernel[0] must be ...`: name the option, not the library's argument."""
    names = "|".join(OPTION_OF)
    # The first word is the argument; elsewhere only names that cannot be ordinary words (`x`, `r`, `stride` can).
    message = re.sub(rf"^({names})\b", lambda found: OPTION_OF[found[1]], message)
    return re.sub(rf"(?<!-)\b({names})\b", lambda found: OPTION_OF[found[1]] if "_" in found[1] else found[1], message)


def sizes(option: str, text: str) -> Size:
    """`2` -> 2, `3x3` -> (3, 3); whether the numbers make sense is for the core to say."""
    if not re.fullmatch(r"-?\d+(x-?\d+)*", text):
        raise InputError(f"{option} must be a size like 2, 3x3 or 2x2x2, got {text!r}")
    found = tuple(int(part) for part in text.split("x"))
    return found[0] if len(found) == 1 else found


def padding_sizes(text: str) -> str | Size | tuple[tuple[int, int], ...]:
    """`1`, `1x0`, `1:2x0:1` (before:after, per axis) or a name."""
    if text in NAMED_PADDINGS:
        return text
    if re.fullmatch(r"-?\d+:-?\d+(x-?\d+:-?\d+)*", text):
        pairs = [part.split(":") for part in text.split("x")]
        return tuple((int(before), int(after)) for before, after in pairs)
    try:
        return sizes("--padding", text)
    except InputError:
        names = ", ".join(NAMED_PADDINGS)
        raise InputError(f"--padding must be a size like 1, 1x0 or 1:2x0:1, or one of {names}, got {text!r}") from None


def number(option: str, text: str) -> int | float:
    """Keep a whole number an int, so that messages and JSON say 2 and not 2.0."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{option} must be a number, got {text!r}") from None
    if math.isnan(value):
        raise InputError(f"{option} must be a number, got {text!r}")
    return int(value) if value.is_integer() else value


def dtype_named(text: str) -> np.dtype[Any]:
    """`float32` -> its dtype; NumPy's abbreviations, strings and objects are refused."""
    try:
        found = np.dtype(text)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biuf" or found.name != text:
        raise InputError(f"--dtype must be a dtype like float32, float64 or uint8, got {text!r}")
    return found


def pooled_axes(text: str | None, kernel: Size, source: Source) -> tuple[int, ...]:
    """Return the axes asked for, or height and width of an image, or an array's last ones."""
    shape = source.array.shape
    rank = len(shape)
    if text is None:
        if source.is_image:
            return (0, 1)
        count = min(2, rank) if isinstance(kernel, int) else len(kernel)
        if count > rank or rank == 0:
            raise InputError(f"--kernel has {count or 1} sizes, the input has {rank} axes: {shape}")
        return tuple(range(rank - count, rank))
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise InputError(f"--axes must be a list like 0,1, got {text!r}")
    axes = [int(part) for part in text.split(",")]
    if any(not -rank <= axis < rank for axis in axes):
        raise InputError(f"--axes must be between {-rank} and {rank - 1}, got {text} for shape {shape}")
    found = tuple(axis % rank for axis in axes)
    if any(a >= b for a, b in itertools.pairwise(found)):
        raise InputError(f"--axes must rise, each axis once, got {text} for shape {shape}")
    return found


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """`255` or `0,255`."""
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise InputError(f"{option} must be a list of whole numbers like 0,255, got {text!r}")
    return tuple(int(part) for part in text.split(","))


READ = {"ignore": whole_numbers, "norm_type": number, "r": number, "q": number, "correction": number}


def operation_options(op: str, **given: Any) -> dict[str, Any]:
    """Check the operation's name and the options that belong to one operation only; None is one that was not given."""
    if op not in OPERATIONS:
        raise InputError(f"--op must be one of {', '.join(OPERATIONS)}, got {op!r}")
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        option = OPTION_OF.get(name, f"--{name}")
        if op not in BELONGS_TO[name]:
            raise InputError(f"{option} is an option of --op {BELONGS_TO[name][0]}, got --op {op}")
        found[name] = READ[name](option, value) if name in READ else value
    if op in BELONGS_TO["seed"] and "seed" not in found:
        raise InputError(f"--op {op} draws at random and needs a --seed")
    if op in BELONGS_TO["q"] and "q" not in found:
        raise InputError(f"--op {op} needs --q, which quantile, from 0 to 1")
    return found
