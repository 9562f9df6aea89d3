"""Partial results: any chunking, merged in any order, agrees with the whole."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

import anypool as ap
import tolerance

KINDS = [(name, {}) for name in ("mean", "sum", "mean_sqrt_len", "weightedmean", "std", "lp", "gem", "logsumexp")]
KINDS += [("lp", {"norm_type": np.inf}), ("logsumexp", {"r": -2.0}), (["mean", "max", "std", "last"], {})]
EXACT = ("max", "min", "first", "last")


def chunks(rng, lengths):
    """Cut every row into chunks: (row, start, stop), in a random order."""
    found = []
    for row, n in enumerate(lengths):
        cuts = np.unique(np.concatenate([[0, n], rng.integers(0, n + 1, 4)]))
        found += [(row, int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    return [found[i] for i in rng.permutation(len(found))]


LENGTHS = (40, 1, 0, 133, 7)


def spread(kind, kwargs, rows, rng, workers=3, **extra):
    """Chunks of all rows given to several states, which are merged in a random order."""
    states = [ap.PoolState(kind, **kwargs) for _ in range(workers)]
    todo = chunks(rng, LENGTHS)
    for i in range(0, len(todo), 2):
        some = todo[i : i + 2]
        packed = np.concatenate([rows[r][a:b] for r, a, b in some])
        offsets = np.cumsum([0, *(b - a for _, a, b in some)])
        given = {k: np.concatenate([v[r][a:b] for r, a, b in some]) for k, v in extra.items()}
        states[i % workers].update(
            packed, offsets=offsets, rows=[r for r, _, _ in some], start=[a for _, a, _ in some], **given
        )
    states = [pickle.loads(pickle.dumps(states[i])) for i in rng.permutation(workers)]
    first = states[0]
    for other in states[1:]:
        first.merge(other)
    return first


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("kind", "kwargs"), KINDS, ids=str)
def test_any_chunking_and_order(backend, kind, kwargs, dtype):
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal((n, 6)).astype(dtype) for n in LENGTHS]
    whole = ap.pool_tokens(rows, kind, **kwargs)
    for _ in range(4):
        got = spread(kind, kwargs, rows, rng).result()
        assert got.dtype == dtype
        rtol = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(got, whole, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kind", EXACT)
def test_selections_are_exact(backend, kind):
    rng = np.random.default_rng(4)
    rows = [np.round(2 * rng.standard_normal((n, 6))).astype(np.float32) for n in LENGTHS]
    rows[3][[20, 99], 0] = np.nan
    whole = ap.pool_tokens(rows, kind)
    for _ in range(6):
        assert tolerance.same_bits(spread(kind, {}, rows, rng).result(), whole)


@pytest.mark.parametrize("kind", ["max", "min"])
def test_indices(backend, kind):
    """The first of equal values, the last of several NaNs, whatever came first."""
    rng = np.random.default_rng(5)
    rows = [np.round(2 * rng.standard_normal((n, 6))) for n in LENGTHS]
    rows[3][[20, 99], 0] = np.nan
    places = np.full((len(rows), 6), -1)
    for i, row in enumerate(rows):
        if len(row):
            places[i] = row.argmax(0) if kind == "max" else row.argmin(0)
    places[3, 0] = 99
    for _ in range(6):
        values, indices = spread(kind, {"return_indices": True}, rows, rng).result()
        assert tolerance.same_bits(values, ap.pool_tokens(rows, kind))
        assert indices.dtype == np.int64
        assert indices.tolist() == places.tolist()


@pytest.mark.parametrize("kind", ["mean", "sum", "std"])
def test_weights(kind):
    rng = np.random.default_rng(6)
    rows = [rng.standard_normal((n, 6)) for n in LENGTHS]
    weights = [rng.random(n) for n in LENGTHS]
    whole = ap.pool_tokens(rows, kind, weights=weights)
    got = spread(kind, {"weighted": True}, rows, rng, weights=weights).result()
    np.testing.assert_allclose(got, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("separate", [False, True])
def test_attention(backend, heads, separate):
    rng = np.random.default_rng(7)
    rows = [rng.standard_normal((n, 6)) for n in LENGTHS]
    values = [rng.standard_normal((n, 4)) for n in LENGTHS]
    query = rng.standard_normal((heads, 6) if heads else 6)
    extra = {"values": values} if separate else {}
    whole = ap.attention_pool(rows, query, scale=3.0, **extra)
    got = spread("attention", {"query": query, "scale": 3.0}, rows, rng, **extra).result()
    assert got.shape == whole.shape
    np.testing.assert_allclose(got, whole, rtol=1e-12, atol=1e-12)


def test_padded_batches_and_places_that_go_on():
    """Without `start` a row's next tokens follow those this state has seen; a row may come twice in one update."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, 30, 3))
    whole = ap.pool_tokens(x, ["weightedmean", "last"])
    state = ap.PoolState(["weightedmean", "last"])
    state.update(x[:, :10]).update(x[:, 10:20], mask=np.ones((2, 10)))
    state.update(np.concatenate([x[1, 20:25], x[0, 20:30], x[1, 25:30]]), offsets=[0, 5, 15, 20], rows=[1, 0, 1])
    np.testing.assert_allclose(state.result(), whole, rtol=1e-12)


@pytest.mark.parametrize("kind", ["mean", "max", "std", ["first", "weightedmean"], "attention"])
def test_states_without_an_update(kind):
    """Merging one changes nothing, merging into one takes over what the other has seen; both go through pickle."""
    x = np.random.default_rng(9).standard_normal((2, 8, 3))
    given = {"query": np.ones(3)} if kind == "attention" else {}
    blank, seen = ap.PoolState(kind, **given), ap.PoolState(kind, **given).update(x, lengths=[8, 0])
    blank = pickle.loads(pickle.dumps(blank))
    assert (blank.rows, blank.count.tolist(), blank.partials) == (0, [], [])
    with pytest.raises(ValueError, match="result needs an update first"):
        blank.result()
    before = seen.result()
    assert seen.merge(blank) is seen
    assert tolerance.same_bits(seen.result(), before)
    assert blank.merge(seen) is blank
    assert tolerance.same_bits(blank.result(), before)
    blank.update(x[1:], rows=[1], start=0)
    assert tolerance.same_bits(seen.result(), before)
    whole = ap.attention_pool(x, **given) if kind == "attention" else ap.pool_tokens(x, kind)
    np.testing.assert_allclose(blank.result(), whole, rtol=1e-12)
    assert ap.PoolState(kind, **given).merge(ap.PoolState(kind, **given)).rows == 0


def test_one_start_for_all_rows():
    x = np.random.default_rng(10).standard_normal((2, 9, 3))
    whole = ap.PoolState("max", return_indices=True).update(x).result()
    state = ap.PoolState("max", return_indices=True).update(x[:, 4:], start=4).update(x[:, :4], start=np.int64(0))
    for got, wanted in zip(state.result(), whole, strict=True):
        assert tolerance.same_bits(got, wanted)
    np.testing.assert_array_equal(whole[1], x.argmax(1))
    heavy = ap.PoolState("weightedmean").update(x[:, 4:], start=4).result()
    by = np.arange(5, 10)[:, None]
    np.testing.assert_allclose(heavy, (x[:, 4:] * by).sum(1) / by.sum(), rtol=1e-12)


def test_results_that_are_integers():
    x = np.array([[3, -7], [5, 2]])
    state = ap.PoolState("sum").update(x, rows=[1])
    with pytest.raises(ValueError, match="row 0 has no token: for int64 results empty must be an integer"):
        state.result()
    state = ap.PoolState("sum", empty=-1).update(x, rows=[1])
    assert state.result().dtype == np.int64
    assert state.result().tolist() == [[-1, -1], [8, -5]]


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "uint8"])
@pytest.mark.parametrize("reduction", ["max", "min", "first", "last", "sum", ["max", "sum"], ["mean", "max"]], ids=str)
def test_integers_are_exact(reduction, dtype):
    """Beyond 2**53, and where sums wrap around, in any chunks."""
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(limits.min, limits.max, (3, 40, 5), dtype, endpoint=True)
    wanted = ap.pool_tokens(x, reduction)
    for cuts in ([], [1], [7, 8, 30]):
        state, start = ap.PoolState(reduction), 0
        for stop in (*cuts, 40):
            state.update(x[:, start:stop])
            start = stop
        for found in (state.result(), pickle.loads(pickle.dumps(state)).result()):
            assert found.dtype == wanted.dtype
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(found, wanted, rtol=1e-12)
            else:
                np.testing.assert_array_equal(found, wanted)
    empty = ap.PoolState(reduction, empty=7).update(x, offsets=None).update(x[:1, :0], rows=[4]).result()
    assert (empty[3:] == 7).all()


def test_counts_beyond_float32():
    """2**24 tokens and one more: a count or a sum in float32 would stand still."""
    state = ap.PoolState(["sum", "mean"])
    ones = np.broadcast_to(np.float32(1), (1 << 20, 1))
    for _ in range(16):
        state.update(ones)
    state.update(np.ones((1, 1), np.float32))
    assert state.count.tolist() == [(1 << 24) + 1]
    assert state.partials[0]["sum"].item() == (1 << 24) + 1
    assert state.result()[0, 1] == 1


def test_what_is_unpickled_must_fit_together():
    x, query = np.ones((4, 3)), np.ones((2, 3))
    held = ap.PoolState("attention", query=query).update(x).__getstate__()
    other = ap.PoolState("attention", query=np.ones((1, 3))).update(x).__getstate__()
    for wrong, message in (
        (held | {"partials": other["partials"]}, "1 heads for 2 queries"),
        (held | {"count": np.array([-4])}, "counts must be int64 and not negative"),
        (held | {"partials": [{"value": np.zeros((1, 2, 3))}]}, "the arrays do not belong together"),
        ({k: v for k, v in held.items() if k != "count"}, "'count'"),
    ):
        with pytest.raises(ValueError, match=f"this is not the state of a PoolState: .*{message}"):
            ap.PoolState.__new__(ap.PoolState).__setstate__(wrong)
    state = ap.PoolState.__new__(ap.PoolState)
    state.__setstate__(held)
    assert state.result().tolist() == [[[1.0] * 3] * 2]


def test_bad_arguments():
    x = np.ones((4, 3))
    for given in ({"weighted": True}, {"return_indices": True}):
        with pytest.raises(ValueError, match="attention has neither weights nor indices"):
            ap.PoolState("attention", query=np.ones(3), **given)
    with pytest.raises(ValueError, match="other must hold 3 features of float64, got 2 of float64"):
        ap.PoolState("mean").update(x).merge(ap.PoolState("mean").update(x[:, :2]))
    with pytest.raises(ValueError, match="other must hold 3 features of float64, got 3 of float32"):
        ap.PoolState("mean").update(x).merge(ap.PoolState("mean").update(x.astype(np.float32)))
    for start, error, message in (
        (-1, ValueError, "start must be >= 0, got -1"),
        (1.5, TypeError, "start must be an int, got 1.5"),
        ([1, 2], ValueError, r"start must be one int in \[0, 2\*\*62\) or 1, got \[1, 2\]"),
        ([-3], ValueError, r"or 1, got \[-3\] \(x: \(4, 3\)\)"),
    ):
        with pytest.raises(error, match=message):
            ap.PoolState("mean").update(x, start=start)
    with pytest.raises(ValueError, match="result needs an update first"):
        ap.PoolState("mean").result()
    with pytest.raises(ValueError, match="reduction must be one of"):
        ap.PoolState("average")
    with pytest.raises(ValueError, match=r'query goes with reduction "attention"'):
        ap.PoolState("attention")
    with pytest.raises(ValueError, match=r'return_indices needs "max" or "min" alone'):
        ap.PoolState("mean", return_indices=True)
    with pytest.raises(ValueError, match="rows must be 2 numbers >= 0"):
        ap.PoolState("mean").update(x, offsets=[0, 2, 4], rows=[0])
    with pytest.raises(ValueError, match="weights must be given if and only if"):
        ap.PoolState("mean", weighted=True).update(x)
    with pytest.raises(ValueError, match="x must have 3 features of float64 as before"):
        ap.PoolState("mean").update(x).update(x.astype(np.float32))
    with pytest.raises(ValueError, match="other must be a PoolState of the same settings"):
        ap.PoolState("mean").merge(ap.PoolState("sum"))
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"x must be an array here, got a tensor: give x\.numpy\(\)"):
        ap.PoolState("mean").update(torch.ones(4, 3))
    assert ap.PoolState("sum", empty=0.0).update(x, rows=[2]).result()[:2].tolist() == [[0.0] * 3] * 2
