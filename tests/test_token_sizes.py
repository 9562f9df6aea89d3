"""Large token data: no temporary of its size, long sequences, very many spans."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import anypool as ap
import tolerance
from test_memory import MB, PROBE

INPUT = 128 * MB
SLACK = 20 * MB
MAKE = "np.ones((64, 512, 1024), np.float32)"
HALF = "np.ones((128, 512, 1024), np.float16)"
MASK = "np.random.default_rng(0).random(x.shape[:2]) < 0.7"
CASES = [
    (f"ap.pool_tokens(x, 'mean', mask={MASK})", MAKE),
    (f"ap.pool_tokens(x, 'max', mask={MASK})", HALF),
    (f"ap.pool_tokens(x, ['mean', 'max', 'std', 'logsumexp'], mask={MASK})", HALF),
    ("ap.pool_tokens(x, 'weightedmean', lengths=np.full(64, 500), side='left')", MAKE),
    ("ap.pool_tokens(x.reshape(-1, 1024), 'sum', offsets=[0, 5, 32768])", MAKE),
    ("ap.pool_tokens(x.reshape(-1, 1024), 'std', spans=np.stack([np.arange(9999), np.arange(9999) + 20], 1))", MAKE),
    ("ap.pool_tokens(list(x), 'mean')", MAKE),
    ("ap.pool_tokens(x.transpose(0, 2, 1), 'mean')", "np.ones((64, 1024, 512), np.float32)"),
    (f"ap.attention_pool(x, np.ones((2, 1024), np.float32), mask={MASK})", MAKE),
    (f"ap.vjp(ap.pool_tokens, x, ['mean', 'max'], mask={MASK})[1](np.ones((64, 2048), np.float32))", MAKE),
]


@pytest.mark.parametrize(("call", "make"), CASES)
def test_peak(call, make):
    script = PROBE + f"probe(lambda: {make}, lambda x: {call})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["input"] >= 0.95 * INPUT
    for what in ("peak", "rise"):
        extra = seen[what] - seen["output"]
        assert extra < SLACK, f"{call}: {what} has {extra / MB:.0f} MiB besides the output: {seen}"


@pytest.mark.parametrize("reduction", ["mean", "max", "std", "weightedmean", "logsumexp"])
def test_a_hundred_thousand_tokens(reduction):
    """One long sequence is cut among threads; the bits are those of the same tokens found one run at a time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100_000, 48)).astype(np.float32)
    y, pullback = ap.vjp(ap.pool_tokens, x, reduction)
    spread = np.full((2, 100_000, 48), np.nan, np.float32)
    mask = np.ones((2, 100_000), bool)
    mask[1, ::3] = False
    spread[0] = x
    spread[1][mask[1]] = x[: mask[1].sum()]
    both = ap.pool_tokens(spread, reduction, mask=mask)
    assert tolerance.same_bits(both[0], y)
    assert tolerance.same_bits(both[1], ap.pool_tokens(x[: mask[1].sum()], reduction))
    exact = {
        "mean": x.mean(0, np.float64),
        "max": x.max(0),
        "std": x.std(0, np.float64),
        "weightedmean": np.average(x.astype(np.float64), 0, np.arange(1, 100_001)),
        "logsumexp": np.log(np.exp(x.astype(np.float64)).sum(0)),
    }[reduction]
    np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-8)
    assert pullback(np.ones_like(y)).shape == x.shape


def test_a_million_spans():
    """Forward and backward within seconds, and right where it is looked at."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200_000, 8)).astype(np.float32)
    start = rng.integers(0, 200_000 - 40, 1_000_000)
    spans = np.stack([start, start + rng.integers(0, 40, 1_000_000)], 1)
    begin = time.perf_counter()
    y, pullback = ap.vjp(ap.pool_tokens, x, "mean", spans=spans)
    grad = pullback(np.nan_to_num(y))
    assert time.perf_counter() - begin < 60
    for i in rng.integers(0, 1_000_000, 100):
        assert tolerance.same_bits(y[i], ap.pool_tokens(x, "mean", spans=spans[i : i + 1])[0])
    for t in rng.integers(0, 200_000, 20):
        seen = np.flatnonzero((spans[:, 0] <= t) & (t < spans[:, 1]))
        share = y[seen].astype(np.float64) / np.diff(spans[seen], axis=1)
        np.testing.assert_allclose(grad[t], share.sum(0), rtol=1e-5, atol=1e-6)


def test_a_million_short_segments():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2_000_000, 4)).astype(np.float32)
    offsets = np.concatenate([[0], np.sort(rng.integers(0, 2_000_001, 999_999)), [2_000_000]])
    y = ap.pool_tokens(x, "sum", offsets=offsets, empty=0.0)
    wanted = np.add.reduceat(np.concatenate([x, np.zeros((1, 4))]), offsets[:-1])
    wanted[np.diff(offsets) == 0] = 0
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_wide_tokens_are_cut_into_strips():
    """A vocabulary of scores for each token, as SPLADE pools them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 10, 30_522)).astype(np.float32)
    mask = rng.random((3, 10)) < 0.8
    y, pullback = ap.vjp(ap.pool_tokens, x, ["max", "sum"], mask=mask)
    kept = np.where(mask[..., None], x, -np.inf)
    assert np.array_equal(y[:, :30_522], kept.max(1))
    np.testing.assert_allclose(y[:, 30_522:], np.where(mask[..., None], x, 0).sum(1), rtol=1e-4, atol=1e-5)
    grad = pullback(np.ones_like(y))
    np.testing.assert_array_equal(grad, mask[..., None] * (1.0 + (kept == kept.max(1, keepdims=True))))
