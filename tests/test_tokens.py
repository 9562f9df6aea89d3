"""Token pooling against nested loops, and against itself: every layout gives the same bits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import anypool as ap
import cases
import token_cases
import token_oracle
import tolerance
from oracle import Truth

# Lengths around chunks of 16 tokens and the blocks of the gradient, and rows without a token.
LENGTHS = (3, 0, 1, 17, 40, 16, 5, 0, 33, 2)
DIMS = (1, 7, 35)
PARAMETERS = [(name, {}) for name in token_oracle.NAMES] + [
    ("lp", {"norm_type": 1.0}),
    ("lp", {"norm_type": 3.0}),
    ("lp", {"norm_type": 2.5}),
    ("lp", {"norm_type": math.inf}),
    ("gem", {"norm_type": 2.0, "eps": 0.1}),
    ("gem", {"norm_type": 4.5}),
    ("logsumexp", {"r": 4.0}),
    ("logsumexp", {"r": -0.5}),
]
IDS = [name + "".join(f" {k}={v}" for k, v in kwargs.items()) for name, kwargs in PARAMETERS]
# Beyond rounding of what enters: powers and exponentials have functions of a few ulps of their own.
ULPS = {"max": None, "min": None, "first": None, "last": None, "std": 6, "lp": 4, "gem": 6, "logsumexp": 4}
GRADIENT_ULPS = {"std": 16, "lp": 16, "gem": 16, "logsumexp": 16}


def oracle_kwargs(name: str, kwargs: dict) -> dict:
    default = {"lp": 2.0, "gem": 3.0}.get(name, 2.0)
    return {"p": kwargs.get("norm_type", default), "r": kwargs.get("r", 1.0), "eps": kwargs.get("eps", 1e-6)}


def truth(rows, name, kwargs, *, weights=None, skipped=0) -> Truth:
    dim = rows[0].shape[1]
    values, scale, weight = (np.full((len(rows), dim), fill) for fill in (np.nan, 0.0, 1.0))
    for i, row in enumerate(rows):
        for c in range(dim):
            x = [float(v) for v in row[skipped:, c]]
            if not x:
                continue
            w = None if weights is None else [float(v) for v in weights[i][skipped:]]
            values[i, c] = token_oracle.value(
                name, x, weights=w, skipped=min(skipped, len(row)), **oracle_kwargs(name, kwargs)
            )
            scale[i, c] = max(max(map(abs, x)), abs(values[i, c]))
            weight[i, c] = {"sum": len(x), "mean_sqrt_len": math.sqrt(len(x))}.get(name, 1.0)
    return Truth(values, scale, weight)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize(("name", "kwargs"), PARAMETERS, ids=IDS)
def test_values(backend, name, kwargs, dtype):
    for dim in DIMS:
        rows = token_cases.rows_of(LENGTHS, dim, dtype)
        wanted = truth(rows, name, kwargs)
        for laid in token_cases.layouts(rows):
            got = token_cases.flat(laid, ap.pool_tokens(laid.x, name, **laid.kwargs, **kwargs))
            tolerance.check(got, wanted, rows[0].dtype, ULPS.get(name, 2), f"{name} {laid.name} {dim}")


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize(("name", "kwargs"), PARAMETERS, ids=IDS)
def test_gradients(backend, name, kwargs, dtype):
    dim = 5
    rows = token_cases.rows_of(LENGTHS, dim, dtype, seed=1)
    grads = np.random.default_rng(3).standard_normal((len(rows), dim)).astype(rows[0].dtype)
    for laid in token_cases.layouts(rows):
        y, pullback = ap.vjp(ap.pool_tokens, laid.x, name, **laid.kwargs, **kwargs)
        grad = pullback(grads.reshape(y.shape))
        assert not np.any(laid.outside(grad)), f"{laid.name}: padding has a gradient"
        for i, got in enumerate(laid.back(grad)):
            assert got.dtype == rows[0].dtype
            wanted, scale = np.zeros(got.shape), np.zeros(got.shape)
            for c in range(dim):
                x = [float(v) for v in rows[i][:, c]]
                if x:
                    g = float(grads[i, c])
                    wanted[:, c] = token_oracle.shares(name, x, g, **oracle_kwargs(name, kwargs))
                    scale[:, c] = max(abs(g), np.abs(wanted[:, c]).max())
            ulps = GRADIENT_ULPS.get(name, 2)
            tolerance.check(got, Truth(wanted, scale, np.ones_like(scale)), got.dtype, ulps, f"{name} {laid.name} {i}")


@pytest.mark.parametrize("name", ["mean", "sum", "std"])
def test_weights(backend, name):
    rng = np.random.default_rng(5)
    rows = token_cases.rows_of(LENGTHS, 6, "float32")
    weights = [rng.random(n) + 0.1 for n in LENGTHS]
    wanted = truth(rows, name, {}, weights=weights)
    for laid in token_cases.layouts(rows):
        if isinstance(laid.x, list):
            given = weights
        else:
            given = np.full(laid.x.shape[:-1], np.nan)
            for p, w in zip(laid.places, weights, strict=True):
                given[p] = w
        y, pullback = ap.vjp(ap.pool_tokens, laid.x, name, weights=given, **laid.kwargs)
        tolerance.check(token_cases.flat(laid, y), wanted, np.float32, 6, f"{name} {laid.name}")
        grad = pullback(np.ones_like(y))
        assert not np.any(laid.outside(grad))
        for row, w, got in zip(rows, weights, laid.back(grad), strict=True):
            for c in range(6):
                if len(row):
                    shares = token_oracle.shares(name, [float(v) for v in row[:, c]], 1.0, weights=list(w))
                    np.testing.assert_allclose(got[:, c], shares, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prefix", [0, 2, 100, "each"])
@pytest.mark.parametrize("name", ["mean", "first", "last", "weightedmean", "max"])
def test_excluded_prefix(backend, name, prefix):
    rows = token_cases.rows_of(LENGTHS, 4, "float32")
    each = [i % 4 for i in range(len(rows))] if prefix == "each" else [prefix] * len(rows)
    wanted = np.concatenate([truth([r], name, {}, skipped=k).values for r, k in zip(rows, each, strict=True)])
    for laid in token_cases.layouts(rows):
        if "spans" in laid.kwargs:
            with pytest.raises(ValueError, match="exclude_prefix does not go with spans"):
                ap.pool_tokens(laid.x, name, exclude_prefix=1, **laid.kwargs)
            continue
        given = each if prefix == "each" else prefix
        got, pullback = ap.vjp(ap.pool_tokens, laid.x, name, exclude_prefix=given, **laid.kwargs)
        np.testing.assert_allclose(token_cases.flat(laid, got), wanted, rtol=1e-5, atol=1e-6, err_msg=laid.name)
        for row, k, grad in zip(rows, each, laid.back(pullback(np.ones_like(got))), strict=True):
            assert not grad[:k].any(), laid.name
            for c in range(4 if len(row) > k else 0):
                shares = token_oracle.shares(name, [float(v) for v in row[k:, c]], 1.0, skipped=k)
                np.testing.assert_allclose(grad[k:, c], shares, rtol=1e-5, atol=1e-6, err_msg=laid.name)


# ------------------------------------------------------------------------------------ bit for bit


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize(("name", "kwargs"), PARAMETERS, ids=IDS)
def test_layouts_agree_to_the_bit(backend, name, kwargs, dtype):
    """Forward and backward, and as each row alone."""
    rows = token_cases.rows_of((70, 1, 0, 16, 131, 5), 9, dtype, seed=2)
    laid_out = token_cases.layouts(rows)
    assert len(laid_out) == 14
    grads = np.random.default_rng(4).standard_normal((len(rows), 9)).astype(rows[0].dtype)
    first_y = first_grads = None
    alone = [Alone(r) for r in rows]
    for laid in (*laid_out, *alone):
        y, pullback = ap.vjp(ap.pool_tokens, laid.x, name, **laid.kwargs, **kwargs)
        if isinstance(laid, Alone):
            i = alone.index(laid)
            assert tolerance.same_bits(y, first_y[i]), f"row {i} alone"
            assert tolerance.same_bits(pullback(grads[i]), first_grads[i]), f"gradient of row {i} alone"
            continue
        parts = laid.back(pullback(grads.reshape(y.shape)))
        y = token_cases.flat(laid, y)
        if first_y is None:
            first_y, first_grads = y, parts
        assert tolerance.same_bits(y, first_y), laid.name
        for i, (a, b) in enumerate(zip(parts, first_grads, strict=True)):
            assert tolerance.same_bits(a, b), f"gradient, {laid.name}, row {i}"


class Alone:
    """One row as a sequence of its own."""

    def __init__(self, row):
        self.x, self.kwargs = row, {}


@pytest.mark.parametrize("name", token_oracle.NAMES)
def test_permuting_rows_permutes_results(backend, name):
    rng = np.random.default_rng(8)
    x = rng.standard_normal((12, 50, 17)).astype(np.float32)
    mask = rng.random((12, 50)) < 0.6
    order = rng.permutation(12)
    y, pullback = ap.vjp(ap.pool_tokens, x, name, mask=mask)
    z, pullback_z = ap.vjp(ap.pool_tokens, x[order], name, mask=mask[order])
    g = rng.standard_normal(y.shape).astype(np.float32)
    assert tolerance.same_bits(z, y[order])
    assert tolerance.same_bits(pullback_z(g[order]), pullback(g)[order])


@pytest.mark.parametrize(
    "several", [["mean", "max"], ["std", "first", "sum", "mean", "last", "lp"], list(token_oracle.NAMES[:8])]
)
def test_several_at_once_are_each_alone(backend, several):
    rows = token_cases.rows_of(LENGTHS, 11, "float32")
    for laid in token_cases.layouts(rows):
        y, pullback = ap.vjp(ap.pool_tokens, laid.x, several, **laid.kwargs)
        single = [ap.pool_tokens(laid.x, name, **laid.kwargs) for name in several]
        assert tolerance.same_bits(y, np.concatenate(single, axis=-1)), laid.name
        g = np.random.default_rng(6).standard_normal(y.shape).astype(np.float32)
        parts = np.split(g, len(several), axis=-1)
        total = [0.0] * len(rows)
        for name, part in zip(several, parts, strict=True):
            grads = laid.back(ap.vjp(ap.pool_tokens, laid.x, name, **laid.kwargs)[1](part))
            total = [a + b.astype(np.float64) for a, b in zip(total, grads, strict=True)]
        for a, b in zip(laid.back(pullback(g)), total, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=laid.name)


def test_lists_of_arrays_of_any_strides(backend):
    """An empty array or one of a single row says nothing about strides, wherever it stands."""
    rng = np.random.default_rng(15)
    whole = rng.standard_normal((40, 12))
    kinds = [whole[:0], whole[3:4], whole[5:9], np.asfortranarray(whole[9:20]), whole[20:40:3], whole[39:20:-2]]
    for order in itertools.permutations(range(6), 3):
        rows = [kinds[i][:, :7] for i in order] + [kinds[i][:, 1:8] for i in order]
        got = ap.pool_tokens(rows, ["sum", "last"], empty=0.0)
        for row, y in zip(rows, got, strict=True):
            np.testing.assert_allclose(y[:7], row.sum(0), atol=1e-12)
            assert np.array_equal(y[7:], row[-1] if len(row) else np.zeros(7))


def test_names_may_be_repeated_and_aliased(backend):
    x = np.arange(12.0).reshape(4, 3)
    assert ap.pool_tokens(x, ["cls", "first", "avg", "mean"]).tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
        4.5,
        5.5,
        6.5,
        4.5,
        5.5,
        6.5,
    ]


# ------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("length", range(1, 7))
def test_first_and_last_of_every_mask(backend, length):
    masks = np.array(list(itertools.product([False, True], repeat=length)))
    x = np.tile(np.arange(1.0, length + 1)[None, :, None], (len(masks), 1, 2)).astype(np.float32)
    got = {name: ap.pool_tokens(x, name, mask=masks, empty=-1.0) for name in ("first", "last")}
    for i, mask in enumerate(masks):
        at = [t + 1 for t in range(length) if mask[t]] or [-1]
        assert got["first"][i].tolist() == [at[0]] * 2, mask
        assert got["last"][i].tolist() == [at[-1]] * 2, mask


@pytest.mark.parametrize("name", token_oracle.NAMES)
def test_masked_rubbish_never_leaks(backend, name):
    rng = np.random.default_rng(9)
    x = rng.standard_normal((6, 40, 20)).astype(np.float32)
    mask = rng.random((6, 40)) < 0.5
    mask[0] = False
    clean, dirty = np.where(mask[..., None], x, 0.0), x.copy()
    dirty[~mask] = token_cases.rubbish(dirty[~mask].shape, np.float32)
    grads = np.ones((6, 20), np.float32)
    results = []
    for data in (clean.astype(np.float32), dirty):
        y, pullback = ap.vjp(ap.pool_tokens, data, name, mask=mask)
        results.append((y, pullback(grads)))
    assert tolerance.same_bits(results[0][0], results[1][0])
    assert tolerance.same_bits(results[0][1], results[1][1])
    assert np.isnan(results[1][0][0]).all()
    assert np.isfinite(results[1][0][1:]).all()
    assert not results[1][1][~mask].any()


@pytest.mark.parametrize("name", token_oracle.NAMES)
def test_nan_and_infinity_of_tokens_propagate(backend, name):
    x = np.ones((2, 20, 3), np.float32)
    x[0, 7, 0], x[0, 3, 1], x[0, 19, 2] = np.nan, np.inf, -np.inf
    y = ap.pool_tokens(x, name)
    if name not in ("first", "last"):
        assert np.isnan(y[0, 0])
        wanted = token_oracle.value("max" if name == "gem" else name, [1.0, np.inf]) if name != "std" else np.nan
        if name not in ("std", "min"):
            assert y[0, 1] == wanted
    assert np.isfinite(y[1]).all()


def test_several_nans_the_last_one_wins(backend):
    x = np.array([[1.0], [np.nan], [5.0], [np.nan], [2.0]])
    for name in ("max", "min"):
        y, pullback = ap.vjp(ap.pool_tokens, x, name)
        assert np.isnan(y[0])
        assert pullback(np.ones(1)).ravel().tolist() == [0, 0, 0, 1, 0]


def test_ties_go_to_the_first(backend):
    x = np.tile(np.array([[2.0], [7.0], [7.0], [-3.0], [-3.0]]), (12, 1))
    assert np.flatnonzero(ap.vjp(ap.pool_tokens, x, "max")[1](np.ones(1))).tolist() == [1]
    assert np.flatnonzero(ap.vjp(ap.pool_tokens, x, "min")[1](np.ones(1))).tolist() == [3]


# ------------------------------------------------------------------------------------ spans


def test_overlapping_and_nested_spans(backend):
    rng = np.random.default_rng(10)
    x = rng.standard_normal((90, 13)).astype(np.float32)
    spans = [(0, 90), (10, 60), (20, 30), (20, 30), (5, 5), (89, 90), (0, 1), (25, 88)]
    for name in token_oracle.NAMES:
        y, pullback = ap.vjp(ap.pool_tokens, x, name, spans=spans)
        g = rng.standard_normal(y.shape).astype(np.float32)
        total = np.zeros(x.shape)
        for i, (a, b) in enumerate(spans):
            if a == b:
                assert np.isnan(y[i]).all()
                continue
            row, back = ap.vjp(ap.pool_tokens, x[a:b], name)
            assert tolerance.same_bits(y[i], row), (name, i)
            total[a:b] += back(g[i]).astype(np.float64)
        np.testing.assert_allclose(pullback(g), total, rtol=2e-5, atol=1e-6, err_msg=name)


def test_spans_of_a_batch_of_any_rank(backend):
    rng = np.random.default_rng(11)
    x = rng.standard_normal((2, 3, 20, 4))
    spans = np.sort(rng.integers(0, 21, (2, 3, 5, 2)), axis=-1)
    y = ap.pool_tokens(x, "sum", spans=spans, empty=0.0)
    assert y.shape == (2, 3, 5, 4)
    for at in np.ndindex(2, 3, 5):
        a, b = spans[at]
        np.testing.assert_allclose(y[at], x[at[:2]][a:b].sum(0), rtol=1e-12, atol=1e-12)


def test_leading_axes(backend):
    rng = np.random.default_rng(12)
    x = rng.standard_normal((2, 3, 4, 30, 5)).astype(np.float32)
    mask = rng.random((2, 3, 4, 30)) < 0.5
    y, pullback = ap.vjp(ap.pool_tokens, x.transpose(2, 0, 1, 3, 4), "mean", mask=mask.transpose(2, 0, 1, 3))
    flat, back = ap.vjp(ap.pool_tokens, x.reshape(24, 30, 5), "mean", mask=mask.reshape(24, 30))
    assert tolerance.same_bits(y.transpose(1, 2, 0, 3).reshape(24, 5), flat)
    g = rng.standard_normal((24, 5)).astype(np.float32)
    grad = pullback(g.reshape(2, 3, 4, 5).transpose(2, 0, 1, 3))
    assert tolerance.same_bits(grad.transpose(1, 2, 0, 3, 4).reshape(24, 30, 5), back(g))


# ------------------------------------------------------------------------------------ empties, integers, dtypes


def test_a_row_without_a_token(backend):
    x = np.ones((2, 3, 4), np.float32)
    for name in token_oracle.NAMES:
        assert np.isnan(ap.pool_tokens(x, name, lengths=[0, 3])[0]).all()
        y, pullback = ap.vjp(ap.pool_tokens, x, name, lengths=[0, 3], empty=7.0)
        assert (y[0] == 7).all()
        assert not pullback(np.ones_like(y))[0].any()


def test_empty_batches_and_sequences(backend):
    assert ap.pool_tokens(np.ones((0, 3, 4)), "mean", mask=np.ones((0, 3))).shape == (0, 4)
    assert ap.pool_tokens(np.ones((0, 3, 4)), ["mean", "max"]).shape == (0, 8)
    assert ap.pool_tokens(np.ones((0, 4)), "sum", offsets=[0]).shape == (0, 4)
    assert np.isnan(ap.pool_tokens(np.ones((2, 0, 4)), "max")).all()
    assert np.isnan(ap.pool_tokens(np.ones((2, 0, 4)), "max", mask=np.ones((2, 0)))).all()
    assert ap.pool_tokens(np.ones((2, 0, 4)), "sum", mask=np.ones((2, 0), bool), empty=3.0).tolist() == [[3.0] * 4] * 2
    assert np.isnan(ap.pool_tokens(np.ones((0, 4)), "sum", offsets=[0, 0, 0])).all()
    y, pullback = ap.vjp(ap.pool_tokens, np.ones((2, 0, 4)), "mean")
    assert pullback(np.ones_like(y)).shape == (2, 0, 4)


def test_arrays_that_no_kernel_reads(backend):
    """Those of the other byte order, and fields of packed records; results and gradients are native."""
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    record = np.zeros(x.shape, np.dtype([("kind", "i1"), ("value", "f4")]))
    record["value"] = x
    for name in ("mean", "max", ["std", "last"]):
        wanted, pullback = ap.vjp(ap.pool_tokens, x, name, lengths=[5, 2])
        g = np.ones_like(wanted)
        for given in (x.astype(x.dtype.newbyteorder()), record["value"], list(record["value"])):
            kwargs = {} if isinstance(given, list) else {"lengths": [5, 2]}
            y, pull = ap.vjp(ap.pool_tokens, given, name, **kwargs)
            if isinstance(given, list):
                assert tolerance.same_bits(y, ap.pool_tokens(x, name))
                continue
            assert tolerance.same_bits(y, wanted)
            assert pull(g).dtype.isnative
            assert tolerance.same_bits(pull(g), pullback(g))


def test_integers():
    x = np.array([[[1, -5], [4, 9], [100, 100]]], np.int8)
    mask = [[1, 1, 0]]
    assert ap.pool_tokens(x, "max", mask=mask).tolist() == [[4, 9]]
    assert ap.pool_tokens(x, "max", mask=mask).dtype == np.int8
    assert ap.pool_tokens(x, "sum", mask=mask).tolist() == [[5, 4]]
    assert ap.pool_tokens(x, "sum", mask=mask).dtype == np.int64
    assert ap.pool_tokens(x, "mean", mask=mask).tolist() == [[2.5, 2.0]]
    assert ap.pool_tokens(x, "max", mask=[[0, 0, 0]], empty=-1).tolist() == [[-1, -1]]
    with pytest.raises(ValueError, match="row 0 has no token: for int8 results empty must be an integer, got nan"):
        ap.pool_tokens(x, "max", mask=[[0, 0, 0]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_asked_for(backend, dtype):
    x = token_cases.rows_of((300, 4), 6, "float16")
    y = ap.pool_tokens(x, "sum", dtype=dtype)
    assert y.dtype == dtype
    wanted = np.stack([r.astype(np.float64).sum(0) for r in x])
    np.testing.assert_allclose(y, wanted, rtol=2e-3 if dtype == "float16" else 1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_error_does_not_grow_with_length(dtype):
    """200,000 tokens whose mean is far from their differences."""
    rng = np.random.default_rng(13)
    x = (3.0 + 0.1 * rng.standard_normal((200_000, 2))).astype(cases.dtype_of(dtype))
    exact = x.astype(np.float64)
    mean = np.array([math.fsum(column) / len(x) for column in exact.T])
    std = np.array([token_oracle.spread(column.tolist(), [1.0] * len(x)) for column in exact.T])
    got = ap.pool_tokens(x, ["mean", "std", "lp"], dtype=np.float64)
    unit = float(tolerance.ulp(3.0, tolerance.accumulator(dtype)))
    assert np.all(np.abs(got[:2] - mean) <= 4 * unit)
    assert np.all(np.abs(got[2:4] / std - 1) <= (1e-6 if dtype != "float64" else 1e-13))
    np.testing.assert_allclose(got[4:], [math.sqrt(math.fsum(column**2)) for column in exact.T], rtol=1e-14)


def test_std_of_an_outlier_first():
    """A first token far from all others spoils nothing."""
    x = np.concatenate([[[1e6]], 1e-2 * np.random.default_rng(14).standard_normal((5000, 1))])
    assert ap.pool_tokens(x[1:], "std")[0] == pytest.approx(x[1:].std(), rel=1e-13)
    assert ap.pool_tokens(x, "std")[0] == pytest.approx(x.std(), rel=1e-13)


@pytest.mark.parametrize("tensors", [False, True])
def test_explain_tells_which_tokens_count(tensors):
    """Every mask of four tokens in one batch, counted by hand."""
    masks = np.array(list(itertools.product([0, 1], repeat=4)))
    x = np.ones((16, 4, 3), np.float32)
    if tensors:
        torch = pytest.importorskip("torch")
        said = ap.explain(ap.pool_tokens, torch.from_numpy(x), ["mean", "max"], mask=torch.from_numpy(masks))
    else:
        said = ap.explain(ap.pool_tokens, x, ["mean", "max"], mask=masks)
    rows = ["".join(map(str, m)) for m in masks if m.any()]
    assert said.padded_left == sum(r.startswith("0") for r in rows)
    assert said.padded_right == sum(r.endswith("0") for r in rows)
    assert said.with_holes == sum("0" in r.strip("0") for r in rows)
    assert (said.tokens, said.rows, said.shortest, said.longest, said.empty_outputs) == (32, 64, 0, 4, 1)
    assert said.output_shape == (16, 6)
    assert (said.accumulator, said.result_dtype) == ("float32", "float32")
    assert said.bytes_moved == 4 * (32 * 3 + 16 * 6)
    assert "32 count of 64 (mask); 0 to 4 in a row" in str(said)
    assert said.to_dict()["reductions"] == ["mean", "max"]


def test_explain_of_other_layouts():
    rows = token_cases.rows_of(LENGTHS, 5, "float32", seed=1)
    for laid in token_cases.layouts(rows):
        said = ap.explain(ap.pool_tokens, laid.x, "mean", **laid.kwargs)
        assert (said.tokens, said.longest) == (sum(LENGTHS), max(LENGTHS)), laid.name
        assert said.output_shape == ap.pool_tokens(laid.x, "mean", **laid.kwargs).shape, laid.name
        assert said.empty_outputs == LENGTHS.count(0), laid.name
    said = ap.explain(ap.pool_tokens, np.ones((3, 2), np.int32), "max")
    assert said.backend == "reference"
    assert said.notes == ("no token kernels for int32",)
    assert "int32" in str(said)
    with pytest.raises(TypeError, match=r"pool_tokens\(\) got an unexpected keyword argument 'maks'"):
        ap.explain(ap.pool_tokens, np.ones((3, 2)), "max", maks=1)
    with pytest.raises(ValueError, match="mask must have shape"):
        ap.explain(ap.pool_tokens, np.ones((1, 3, 2)), "max", mask=[True])
