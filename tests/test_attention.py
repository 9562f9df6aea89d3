"""Attention pooling against nested loops, finite differences and itself in other layouts."""

from __future__ import annotations

import math

import numpy as np
import pytest

import anypool as ap
import cases
import token_cases
import token_oracle
import tolerance

LENGTHS = (3, 0, 1, 17, 40, 16)


def wanted(row, query, values, scale) -> np.ndarray:
    out = np.full((len(query), values.shape[1]), np.nan)
    for h, q in enumerate(query.astype(float)):
        if len(row):
            scores = [scale * math.fsum(a * b for a, b in zip(t, q, strict=True)) for t in row.astype(float)]
            out[h] = token_oracle.attention(scores, values.astype(float).tolist())
    return out


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("heads", [None, 1, 3])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_values(backend, dtype, heads, scale):
    dim = 19
    rows = token_cases.rows_of(LENGTHS, dim, dtype)
    query = np.random.default_rng(1).standard_normal((heads or 1, dim)).astype(rows[0].dtype)
    truth = np.stack([wanted(r, query, r, scale or 1 / math.sqrt(dim)) for r in rows])
    rtol = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-5}.get(dtype, 1e-12)
    for laid in token_cases.layouts(rows):
        got = ap.attention_pool(laid.x, query if heads else query[0], scale=scale, **laid.kwargs)
        assert got.dtype == rows[0].dtype
        shaped = got.reshape(len(rows), heads or 1, dim).astype(np.float64)
        np.testing.assert_allclose(shaped, truth, rtol=rtol, atol=rtol, err_msg=laid.name)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_layouts_agree_to_the_bit(backend, dtype, separate):
    rows = token_cases.rows_of((70, 1, 0, 16, 131, 5), 9, dtype, seed=2)
    query = np.random.default_rng(1).standard_normal((2, 9)).astype(rows[0].dtype)
    others = token_cases.rows_of((70, 1, 0, 16, 131, 5), 6, dtype, seed=3)
    grads = np.random.default_rng(4).standard_normal((len(rows), 2, 6 if separate else 9)).astype(rows[0].dtype)
    first = None
    for laid, other in zip(token_cases.layouts(rows), token_cases.layouts(others), strict=True):
        values = {"values": other.x} if separate else {}
        y, pullback = ap.vjp(ap.attention_pool, laid.x, query, **values, **laid.kwargs)
        found = pullback(grads.reshape(y.shape))
        assert len(found) == (3 if separate else 2)
        assert not np.any(laid.outside(found[0]))
        parts = [y.reshape(grads.shape), *laid.back(found[0]), found[1]]
        if separate:
            assert not np.any(other.outside(found[2]))
            parts += other.back(found[2])
        first = first or parts
        for i, (a, b) in enumerate(zip(parts, first, strict=True)):
            assert tolerance.same_bits(a, b), f"{laid.name}, part {i}"


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("layout", ["mask", "spans"])
def test_gradients_by_finite_differences(backend, separate, layout):
    """Overlapping spans too: every token gathers from each of them."""
    rng = np.random.default_rng(5)
    x, query = rng.standard_normal((2, 7, 4)), rng.standard_normal((3, 4))
    values = rng.standard_normal((2, 7, 5)) if separate else None
    kwargs = {"mask": rng.random((2, 7)) < 0.6} if layout == "mask" else {"spans": [[(0, 7), (2, 5)], [(1, 4), (3, 3)]]}
    y, pullback = ap.vjp(ap.attention_pool, x, query, values=values, empty=0.0, **kwargs)
    g = rng.standard_normal(y.shape)
    inputs = [x, query] + ([values] if separate else [])
    for which, (a, got) in enumerate(zip(inputs, pullback(g), strict=True)):
        numeric = np.zeros(a.shape)
        for at in np.ndindex(*a.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [v.copy() for v in inputs]
                moved[which][at] += step
                out = ap.attention_pool(*moved[:2], values=moved[2] if separate else None, empty=0.0, **kwargs)
                sides.append(np.sum(out * g))
            numeric[at] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(got, numeric, rtol=1e-6, atol=1e-8)


def test_large_scores_do_not_overflow(backend):
    x = np.array([[[1000.0, 1.0], [-1000.0, 2.0], [999.0, 3.0]]], np.float32)
    y = ap.attention_pool(x, np.array([1.0, 0.0], np.float32), scale=1.0)
    weights = np.exp([0.0, -1.0]) / np.exp([0.0, -1.0]).sum()
    np.testing.assert_allclose(y[0], weights @ x[0, [0, 2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("query", "kwargs", "error", "message"),
    [
        (np.ones(3), {}, ValueError, r"query must have shape \(4,\) or \(heads, 4\), got \(3,\)"),
        (np.ones((2, 2, 4)), {}, ValueError, "query must have shape"),
        (np.ones(4, int), {}, TypeError, "query must be floating-point"),
        (np.ones(4), {"values": np.ones((2, 5, 4))}, ValueError, "values must have a row for each token"),
        (np.ones(4), {"scale": "big"}, TypeError, "scale must be a number"),
        (np.ones(4), {"scale": math.inf}, ValueError, "scale must be finite"),
        (np.ones(4), {"lengths": [1, 9]}, ValueError, r"lengths must be in \[0, 3\], got 9"),
    ],
)
def test_bad_arguments(query, kwargs, error, message):
    with pytest.raises(error, match=message):
        ap.attention_pool(np.ones((2, 3, 4)), query, **kwargs)


def test_explain_names_what_to_explain_instead():
    with pytest.raises(TypeError, match=r"fn must not be attention_pool.*explain\(pool_tokens"):
        ap.explain(ap.attention_pool, np.ones((1, 2, 3)), np.ones(3))
