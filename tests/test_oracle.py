"""The oracle is right: worked examples, and PyTorch where PyTorch has the operation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import cases
import oracle
import tolerance


def pool1(x, reduction, *, windows=None, **kwargs):
    extra = {k: kwargs.pop(k) for k in ("include_pad", "divisor", "norm_type", "r", "signed") if k in kwargs}
    axes = windows or oracle.sliding_axes((len(x),), **kwargs)
    return oracle.pool(np.asarray(x), (0,), axes, reduction, **extra)


def test_worked_example():
    signal = [1, 4, -1, 0, 2, -2, 1, 3, 3, 1]
    truth = pool1(signal, "max", kernel_size=2)
    assert truth.values.tolist() == [4, 0, 2, 3, 3]
    assert truth.indices.tolist() == [1, 3, 4, 7, 8]


def test_ties_and_nan():
    nan = math.nan
    assert pool1([1.0, 3.0, 3.0], "max", kernel_size=3).indices.tolist() == [1]
    assert pool1([nan, 1.0, nan, 2.0], "min", kernel_size=4).indices.tolist() == [2]
    assert pool1([-math.inf] * 2, "max", kernel_size=2).indices.tolist() == [0]


def test_integer_rules():
    def mean(*x, dtype=np.int8):
        return pool1(np.array(x, dtype), "mean", kernel_size=len(x)).values.item()

    assert [mean(1, 2), mean(2, 3), mean(-1, -2), mean(-2, -3), mean(127, 127, 126)] == [2, 2, -2, -2, 127]
    assert mean(True, False, dtype=bool) == 0.5
    big = np.array([2**63 - 1, 1], np.int64)
    assert pool1(big, "sum", kernel_size=2).values.item() == -(2**63)
    assert pool1(np.array([255, 255], np.uint8), "sum", kernel_size=2).values.dtype == np.uint64


def test_named_paddings():
    assert oracle.named_padding("same", 5, 2, 1, 1) == (0, 1)
    assert oracle.named_padding("same_lower", 5, 2, 1, 1) == (1, 0)
    assert oracle.named_padding("same", 7, 3, 2, 1) == (1, 1)
    assert oracle.named_padding("causal", 5, 3, 1, 2) == (4, 0)
    for n, k, s, d in itertools.product(range(1, 9), range(1, 5), range(1, 4), range(1, 3)):
        for name in ("same", "same_lower", "causal"):
            assert len(oracle.sliding(n, k, s, *oracle.named_padding(name, n, k, s, d), d, False)) == -(-n // s)


def test_divisor_of_a_ceil_overhang():
    # 5 inputs, padding 1: the last window starts at 3 and sees 3, 4, and one padding: divisor 3
    truth = pool1(np.ones(5), "mean", kernel_size=4, stride=2, padding=1, ceil_mode=True)
    assert truth.values.tolist() == [0.75, 1.0, 2 / 3]


def test_lp_and_logsumexp():
    assert pool1([3.0, -4.0], "lp", kernel_size=2).values.item() == 5
    assert pool1([3.0, -4.0], "lp", kernel_size=2, norm_type=math.inf).values.item() == 4
    assert pool1([3.0, -4.0], "lp", kernel_size=2, norm_type=1, signed=True).values.item() == -1
    assert pool1([0.0, 0.0], "logsumexp", kernel_size=2).values.item() == math.log(2)
    assert pool1([-math.inf] * 2, "logsumexp", kernel_size=2).values.item() == -math.inf


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_gradient_is_the_derivative(reduction):
    x = cases.rng(3).permutation(12).reshape(3, 4) / 4 - 1.1
    windows = oracle.sliding_axes(x.shape, kernel_size=(2, 3), stride=1, padding=1, ceil_mode=True)
    y = oracle.pool(x, (0, 1), windows, reduction, norm_type=3, r=2.0).values
    g = cases.rng(4).standard_normal(y.shape)
    got = oracle.pullback(x, g, (0, 1), windows, reduction, norm_type=3, r=2.0).values
    for at in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[at] = 1e-5
        high, low = (
            np.sum(g * oracle.pool(x + s, (0, 1), windows, reduction, norm_type=3, r=2.0).values) for s in (step, -step)
        )
        assert got[at] == pytest.approx((high - low) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_against_pytorch(rank):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = cases.ties((1, 2, 7, 6, 5)[: 2 + rank], np.dtype(np.float64))
    axes = tuple(range(2, 2 + rank))
    for k, s, p, d, ceil in itertools.product((1, 2, 3, 4), (None, 1, 2, 3), (0, 1, 2), (1, 2), (False, True)):
        if p > k // 2 or d * (k - 1) + 1 > 5 + 2 * p:
            continue
        windows = oracle.sliding_axes(x.shape[2:], k, s, p, d, ceil)
        max_pool = getattr(functional, f"max_pool{rank}d")
        y, indices = max_pool(torch.from_numpy(x), k, s, p, d, ceil, return_indices=True)
        if oracle.has_empty_window(windows):
            assert torch.isinf(y).any()
            continue
        truth = oracle.pool(x, axes, windows, "max")
        assert np.array_equal(truth.values, y.numpy())
        assert np.array_equal(truth.indices, indices.numpy())
        if d > 1:
            continue
        for include in (True, False):
            avg = getattr(functional, f"avg_pool{rank}d")(torch.from_numpy(x), k, s, p, ceil, include)
            truth = oracle.pool(x, axes, windows, "mean", include_pad=include)
            tolerance.check(avg.numpy(), truth, np.float64, 2, (k, s, p, ceil, include))


def test_adaptive_against_pytorch():
    torch = pytest.importorskip("torch")
    for n, out in itertools.product(range(1, 12), range(1, 14)):
        x = cases.plain((1, 1, n), np.dtype(np.float64))
        y, indices = torch.nn.functional.adaptive_max_pool1d(torch.from_numpy(x), out, return_indices=True)
        truth = oracle.pool(x, (2,), [oracle.adaptive(n, out)], "max")
        assert np.array_equal(truth.values, y.numpy())
        assert np.array_equal(truth.indices, indices.numpy())
