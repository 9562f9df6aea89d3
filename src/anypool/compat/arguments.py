"""What the frameworks' modules share: lists of integers, and positions of winners counted another way."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import numpy as np

from anypool.arguments import is_sequence, refuse_misfit, shown
from anypool.functional import public
from anypool.inspection import explain, vjp
from anypool.operation import Call, differentiate, run
from anypool.windows import size_argument

P = ParamSpec("P")
Counting = Callable[[Any], Any]  # flat positions in the pooled axes, of the result's shape -> the framework's


def integers(name: str, value: Any, count: int, where: str, *, at_least: int) -> tuple[int, ...]:
    """Check a sequence of exactly `count` integers: where PyTorch takes one for all axes, others do not."""
    if not is_sequence(value):
        raise TypeError(f"{name} must be a sequence of {count} ints, got {shown(value)} ({where})")
    if len(value) != count:
        raise ValueError(f"{name} must have {count} elements, got {shown(value)} ({where})")
    return tuple(size_argument(f"{name}[{i}]", v, where, at_least=at_least) for i, v in enumerate(value))


def pairs(name: str, value: Any, count: int, where: str) -> tuple[tuple[int, int], ...]:
    """Check a sequence of exactly `count` (low, high) paddings."""
    if not is_sequence(value) or len(value) != count:
        raise ValueError(f"{name} must have {count} (low, high) pairs, got {shown(value)} ({where})")
    checked = []
    for i, pair in enumerate(value):
        low, high = integers(f"{name}[{i}]", pair, 2, where, at_least=0)
        checked.append((low, high))
    return tuple(checked)


def choice(name: str, value: Any, choices: Sequence[Any], where: str) -> Any:
    """Check that an argument is one of a few names, or one of a few integers: a float is none, nor an array."""
    kinds = str if isinstance(choices[0], str) else (int, np.integer, np.bool_)
    if not isinstance(value, kinds) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)} ({where})")
    return value


# ---- public functions ------------------------------------------------------------------------------------------------


def said_as(function: Callable[P, Any], names: Mapping[str, str]) -> Callable[P, Any]:
    """Return the function with its errors in a framework's words: ``names`` has them for the words of `anypool.pool`.

    An argument is named first in a message, and the array last, in parentheses. What it has no argument for is not
    advised.
    """

    @functools.wraps(function)
    def said(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            text = str(error).replace(", or empty= give a value", "")
            # Without the place in a list: frameworks' lists may have other elements as well.
            text = re.sub(r"^(\w+)(\[\d+\])?(?= )", lambda m: names.get(m[1], m[0]), text)
            if "x" in names:
                text = re.sub(r"\(x: (?=\([^()]*\)\)$)", f"({names['x']}: ", text)
            if text != str(error):
                error.args = (text,)
            raise

    return said


def in_words(module: str, **names: str) -> Callable[[Callable[P, Call]], Callable[P, Any]]:
    """Return what makes public functions of calls, whose errors use the framework's words."""
    return lambda build: _complete(public(build, module), names)


def counted(**names: str) -> Callable[[Callable[P, tuple[Call, Counting]]], Callable[P, Any]]:
    """Return what makes public functions of calls whose indices are counted the framework's way."""
    return lambda build: _complete(_counted(build), names)


def _complete(function: Callable[P, Any], names: Mapping[str, str]) -> Callable[P, Any]:
    complete = said_as(function, names)
    complete.differentiate = said_as(functools.partial(vjp, function), names)  # type: ignore[attr-defined]
    complete.explain = said_as(functools.partial(explain, function), names)  # type: ignore[attr-defined]
    return complete


def _counted(build: Callable[P, tuple[Call, Counting]]) -> Callable[P, Any]:
    def translated(result: Any, count: Counting) -> Any:
        return (result[0], count(result[1])) if isinstance(result, tuple) else result

    @functools.wraps(build)
    def function(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            call, count = build(*args, **kwargs)
        except TypeError:
            refuse_misfit(build, args, kwargs)
            raise
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
