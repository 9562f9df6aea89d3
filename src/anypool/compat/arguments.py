"""What the frameworks' modules share: lists of integers, and positions of winners counted another way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import numpy as np

from anypool.operation import Call, differentiate, run
from anypool.windows import size_argument

P = ParamSpec("P")
Counting = Callable[[Any], Any]  # flat positions in the pooled axes, of the result's shape -> the framework's


def integers(name: str, value: Any, count: int, where: str, *, at_least: int) -> tuple[int, ...]:
    """Check a sequence of exactly `count` integers: where PyTorch takes one for all axes, others do not."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a sequence of {count} ints, got {value!r} ({where})")
    if len(value) != count:
        raise ValueError(f"{name} must have {count} elements, got {value!r} ({where})")
    return tuple(size_argument(f"{name}[{i}]", v, where, at_least=at_least) for i, v in enumerate(value))


def pairs(name: str, value: Any, count: int, where: str) -> tuple[tuple[int, int], ...]:
    """Check a sequence of exactly `count` (low, high) paddings."""
    if not isinstance(value, Sequence | np.ndarray) or len(value) != count:
        raise ValueError(f"{name} must have {count} (low, high) pairs, got {value!r} ({where})")
    checked = []
    for i, pair in enumerate(value):
        low, high = integers(f"{name}[{i}]", pair, 2, where, at_least=0)
        checked.append((low, high))
    return tuple(checked)


def choice(name: str, value: Any, choices: Sequence[Any], where: str) -> Any:
    """Check that an argument is one of a few values."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r} ({where})")
    return value


def counted(build: Callable[P, tuple[Call, Counting]]) -> Callable[P, Any]:
    """Return the public function of a call whose indices are counted the framework's way."""

    def translated(result: Any, count: Counting) -> Any:
        return (result[0], count(result[1])) if isinstance(result, tuple) else result

    @functools.wraps(build)
    def function(*args: P.args, **kwargs: P.kwargs) -> Any:
        call, count = build(*args, **kwargs)
        return translated(run(call), count)

    def pulled(*args: P.args, **kwargs: P.kwargs) -> Any:
        call, count = build(*args, **kwargs)
        result, pullback = differentiate(call)
        return translated(result, count), pullback

    function.call = lambda *args, **kwargs: build(*args, **kwargs)[0]  # type: ignore[attr-defined]
    function.differentiate = pulled  # type: ignore[attr-defined]
    return function


def beside(indices: Any, places: Any) -> Any:
    """Return a NumPy array of integers as what the indices are, an array or a tensor on some device."""
    return places if type(indices) is np.ndarray else indices.new_tensor(places)
