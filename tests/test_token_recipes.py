"""Calls of token pooling that differ in their data alone: the second is looked up and gives what the first would."""

from __future__ import annotations

import numpy as np
import pytest

import anypool as ap
import token_cases
import tolerance
from anypool import attention, tokens

LENGTHS = (3, 0, 17, 16, 40)
NAMES = ("mean", "max", "last", "weightedmean", "std", ["sum", "min"])


@pytest.fixture(autouse=True)
def forgotten():
    tokens.recipes.clear()
    yield
    tokens.recipes.clear()


def other_data(laid, lengths):
    """The same layout of other rows: as many of them, in the same room."""
    rows = token_cases.rows_of(lengths, 5, "float32", seed=9)
    return next(other for other in token_cases.layouts(rows, seed=1) if other.name == laid.name)


def laid_out():
    return token_cases.layouts(token_cases.rows_of(LENGTHS, 5, "float32"))


def checked(monkeypatch):
    """Count the calls that are checked from the start."""
    seen = []
    for module, name in ((tokens, "call_of"), (attention, "attention_call")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, whole=whole, **k: (seen.append(1), whole(*a, **k))[1])
    return seen


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_the_second_call_gives_what_the_first_would(name):
    for laid in laid_out():
        ap.pool_tokens(laid.x, name, **laid.kwargs)
        other = other_data(laid, LENGTHS[::-1])
        again = ap.pool_tokens(other.x, name, **other.kwargs)
        tokens.recipes.clear()
        assert tolerance.same_bits(again, ap.pool_tokens(other.x, name, **other.kwargs)), laid.name


def test_attention_too():
    queries = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    for laid in laid_out():
        for query, heads in ((queries[0], queries[1]), (queries[0, 0], queries[1, 0])):
            ap.attention_pool(laid.x, query, **laid.kwargs)
            other = other_data(laid, LENGTHS[::-1])
            again = ap.attention_pool(other.x, heads, **other.kwargs)
            tokens.recipes.clear()
            assert tolerance.same_bits(again, ap.attention_pool(other.x, heads, **other.kwargs)), laid.name


def test_it_is_looked_up(monkeypatch):
    seen = checked(monkeypatch)
    x, offsets, query = np.ones((9, 4), np.float32), np.array([0, 4, 9]), np.ones(4, np.float32)
    for _ in range(3):
        ap.pool_tokens(x, "mean", offsets=offsets)
        ap.attention_pool(x, query, offsets=offsets)
    assert len(seen) == 2
    ap.pool_tokens(x, "mean", offsets=offsets, weights=np.ones(9))
    ap.pool_tokens(x, "mean", offsets=offsets, dtype=np.float64)
    ap.pool_tokens(x, "mean", offsets=offsets, exclude_prefix=[1, 2])
    ap.pool_tokens(x, "mean", offsets=offsets, empty=np.float64(0))
    ap.pool_tokens([x, x], "mean")
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"offsets": np.array([0, 5, 4, 9])}, "must not fall"),
        ({"offsets": np.array([0, 4, 8])}, "must end with the number of rows"),
        ({"offsets": np.array([0.0, 9.0])}, "must be integers"),
        ({"offsets": np.ma.masked_array([0, 9])}, "masked array"),
        ({"segment_ids": np.array([0, 0, 0, 2, 1, 3, 3, 3, 3])}, "must be sorted"),
        ({"spans": np.array([[0, 10]])}, "spans must have"),
        ({"mask": np.ones(8, bool)}, "mask must have shape"),
        ({"mask": np.full(9, 2)}, "mask must be 0 or 1"),
        ({"lengths": np.array(10)}, "lengths must be in"),
    ],
)
def test_values_are_looked_at_each_time(kwargs, message):
    x = np.ones((9, 4))
    name = next(iter(kwargs))
    good = {"offsets": [0, 9], "segment_ids": [0] * 9, "spans": [[0, 9]], "mask": [1] * 9, "lengths": 9}[name]
    for _ in range(2):
        ap.pool_tokens(x, "mean", **{name: np.array(good)})
        ap.attention_pool(x, np.ones(4), **{name: np.array(good)})
    for call in (lambda: ap.pool_tokens(x, "mean", **kwargs), lambda: ap.attention_pool(x, np.ones(4), **kwargs)):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_what_is_equal_as_a_key_is_told_apart():
    x = np.ones((3, 4))
    ap.pool_tokens(x, "lp", norm_type=1)
    with pytest.raises(TypeError, match="norm_type must be a number"):
        ap.pool_tokens(x, "lp", norm_type=True)
    ap.pool_tokens(x, "mean", exclude_prefix=1)
    with pytest.raises(TypeError, match="exclude_prefix"):
        ap.pool_tokens(x, "mean", exclude_prefix=True)
    ap.attention_pool(x, np.ones(4), scale=1)
    with pytest.raises(TypeError, match="scale must be a number"):
        ap.attention_pool(x, np.ones(4), scale=True)
    with pytest.raises(TypeError, match="query must be floating-point"):
        ap.attention_pool(x, np.ones(4, int), scale=1)


def test_a_list_of_prefixes_may_change():
    x, prefix = np.arange(24.0).reshape(2, 6, 2), [1, 1]
    assert np.array_equal(ap.pool_tokens(x, "first", exclude_prefix=prefix), x[:, 1])
    prefix[:] = [4, 5]
    assert np.array_equal(ap.pool_tokens(x, "first", exclude_prefix=prefix), [x[0, 4], x[1, 5]])


def test_another_place_in_memory():
    """A view that begins between elements has to be copied, one of another step is another kind of call."""
    x = np.random.default_rng(0).standard_normal((6, 4))
    wanted = ap.pool_tokens(x, "sum")
    between = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    assert not between.flags.aligned
    between[...] = x
    swapped = x.astype(x.dtype.newbyteorder())
    apart = np.repeat(x, 2, axis=0)[::2]
    columns = np.asfortranarray(x)
    for _ in range(2):
        for view in (x, between, swapped, apart, columns, x[::-1][::-1]):
            assert tolerance.same_bits(ap.pool_tokens(view, "sum"), wanted)


def test_a_backend_that_is_asked_for_runs(monkeypatch):
    x = np.ones((6, 4))
    for _ in range(2):
        ap.pool_tokens(x, "sum")
    monkeypatch.setattr("anypool.backends.tokens_native.run", None)
    with ap.backends.use("reference"):
        assert np.array_equal(ap.pool_tokens(x, "sum"), [6.0] * 4)


def test_there_are_not_ever_more():
    for n in range(1, 1200):
        ap.pool_tokens(np.ones((n, 1)), "sum")
    assert len(tokens.recipes) <= 1024
    tokens.recipes.clear()
    for _ in range(2):  # large batches are not kept
        assert ap.pool_tokens(np.ones((4097, 2, 1)), "sum").shape == (4097, 1)
    assert not tokens.recipes


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # vmap, which PyTorch has to import
def test_tensors(monkeypatch):
    torch = pytest.importorskip("torch")
    from anypool import token_tensors

    seen = []
    whole = token_tensors.reduction.call_of
    monkeypatch.setattr(token_tensors.reduction, "call_of", lambda *a, **k: (seen.append(1), whole(*a, **k))[1])
    x, offsets = torch.randn(40, 8), torch.tensor([0, 7, 7, 40])
    wanted = ap.pool_tokens(x.numpy(), ["mean", "max"], offsets=offsets.numpy())
    for _ in range(3):
        assert torch.equal(
            ap.pool_tokens(x, ["mean", "max"], offsets=offsets).nan_to_num(), torch.from_numpy(wanted).nan_to_num()
        )
    assert len(seen) == 1
    with pytest.raises(ValueError, match="must not fall"):
        ap.pool_tokens(x, ["mean", "max"], offsets=torch.tensor([0, 9, 8, 40]))
    leaf = x.clone().requires_grad_()
    ap.pool_tokens(leaf, ["mean", "max"], offsets=offsets).nansum().backward()
    assert leaf.grad is not None
    assert leaf.grad.count_nonzero() > 0
    batched = torch.func.vmap(lambda t: ap.pool_tokens(t, "sum"))(torch.stack([x, x]))
    assert torch.allclose(batched[0], x.sum(0), atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        for _ in range(2):
            y = ap.pool_tokens(dual, "sum")
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(y).tangent, torch.full((8,), 40.0))
    for half in (torch.float16, torch.bfloat16):
        first, second = (ap.pool_tokens(x.to(half), "mean", offsets=offsets[[0, 3]]) for _ in range(2))
        assert first.dtype == half
        assert torch.equal(first, second)
        asked = [ap.attention_pool(x.to(half), torch.ones(8), offsets=offsets[[0, 3]]) for _ in range(2)]
        assert asked[0].dtype == half
        assert torch.equal(*asked)
