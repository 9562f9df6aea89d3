"""Oracle results for entries of the case table, each computed once per test run.

A truth is computed for channels first and moved to the layout asked for, so layouts and backends
share it and are thereby compared with each other too.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

import cases
import oracle
from oracle import Truth

ARRAYS = {a.name: a for a in cases.ZOO}
WINDOWS = {w.name: w for w in cases.WINDOWS}

# What `pool` and the oracle call the same thing.
NAMES = {"count_include_pad": "include_pad", "divisor_override": "divisor"}

# Options worth trying for each reduction, as keyword arguments of `pool`.
OPTIONS = {
    "mean": ({}, {"count_include_pad": False}, {"divisor_override": 300}),  # no integer overflows
    "lp": tuple({"norm_type": p} for p in cases.NORM_TYPES),
    "logsumexp": ({}, {"r": 4.0}, {"r": 0.25}),
    "quantile": tuple({"q": q} for q in (0.3, 0.0, 0.5, 0.9, 1.0)),
    "std": ({}, {"correction": 1}),
    "var": ({}, {"correction": 1}, {"correction": 0.5}),
    "softmax": ({}, {"r": 4.0}, {"r": -0.5}),
    "mode": ({}, {"ignore": (999,)}),
}


def options(reduction: str, turn: int | None = None) -> dict:
    """The options of a reduction in turn, or the first."""
    table = OPTIONS.get(reduction, ({},))
    return table[(turn or 0) % len(table)]


def oracle_options(given: dict) -> dict:
    return {NAMES.get(k, k): v for k, v in given.items()}


@functools.cache
def _sliding(array: str, shape, dtype: str, windows: str, reduction: str, extra) -> Truth | None:
    rank = len(shape) - 2
    geometry = oracle.sliding_axes(shape[2:], **WINDOWS[windows].kwargs(rank))
    if oracle.has_empty_window(geometry):
        return None
    x = ARRAYS[array].build(shape, cases.dtype_of(dtype))
    return oracle.pool(x, range(2, 2 + rank), geometry, reduction, **dict(extra))


def sliding(array, shape, dtype: str, windows, reduction: str, given: dict, layout: str) -> Truth | None:
    """Truth of sliding windows; None where the geometry must be refused."""
    extra = tuple(sorted(oracle_options(given).items()))
    truth = _sliding(array.name, shape, dtype, windows.name, reduction, extra)
    return None if truth is None else in_layout(truth, layout)


@functools.cache
def _gradient(array: str, shape, dtype: str, windows: str, reduction: str, extra, turn: int):
    rank = len(shape) - 2
    geometry = oracle.sliding_axes(shape[2:], **WINDOWS[windows].kwargs(rank))
    if oracle.has_empty_window(geometry):
        return None
    x = ARRAYS[array].build(shape, cases.dtype_of(dtype))
    out = shape[:2] + tuple(len(axis) for axis in geometry)
    grad = cases.rng(turn).standard_normal(out).astype(x.dtype)
    return grad, oracle.pullback(x, grad, range(2, 2 + rank), geometry, reduction, **dict(extra))


def gradient(array, shape, dtype: str, windows, reduction: str, given: dict, layout: str, turn: int):
    """(upstream gradient, truth of the input's gradient); None where the geometry must be refused."""
    extra = tuple(sorted(oracle_options(given).items()))
    found = _gradient(array.name, shape, dtype, windows.name, reduction, extra, turn)
    return None if found is None else (cases.to_layout(found[0], layout), in_layout(found[1], layout))


def in_layout(truth: Truth, layout: str) -> Truth:
    """A channels-first truth in the layout asked for."""
    parts = {name: cases.to_layout(part, layout) for name, part in vars(truth).items() if isinstance(part, np.ndarray)}
    return replace(truth, **parts)
