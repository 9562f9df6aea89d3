"""Token pooling in torch operations, as on devices without kernels of ours: the kernels' results to rounding, and
gradients of both orders. Tensors of the CPU are made to take that way here; with a GPU the last test needs no force.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import anypool as ap  # noqa: E402
import token_cases  # noqa: E402
import token_oracle  # noqa: E402
from anypool import token_tensors  # noqa: E402

LENGTHS = (7, 1, 0, 16, 33, 5)
DTYPES = {"float32": 2e-5, "float64": 1e-12}


def tensors_of(laid, device: str = "cpu"):
    x = [torch.from_numpy(a.copy()).to(device) for a in laid.x] if isinstance(laid.x, list) else None
    x = torch.from_numpy(laid.x).to(device) if x is None else x
    plain = (int, str)
    return x, {
        k: v if isinstance(v, plain) else torch.as_tensor(np.asarray(v), device=device) for k, v in laid.kwargs.items()
    }


def pulled(x, name, kwargs, device: str = "cpu", function=ap.pool_tokens):
    """The result and the gradients of x, and of weights or query if there are any."""
    leaves = list(x) if isinstance(x, list) else [x]
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    more = {k: v.detach().clone().requires_grad_() for k, v in kwargs.items() if k in ("weights", "values")}
    args = [name]
    if isinstance(name, torch.Tensor):
        args = [name.detach().clone().requires_grad_()]
    y = function(leaves if isinstance(x, list) else leaves[0], *args, **kwargs | more)
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=device).view(y.shape)
    wanted = [*leaves, *more.values(), *(a for a in args if isinstance(a, torch.Tensor))]
    return [y, *torch.autograd.grad(y, wanted, g)]


def close(found, wanted, tolerance):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=tolerance, atol=tolerance, equal_nan=True)


def force(monkeypatch):
    monkeypatch.setattr(token_tensors.plain, "elsewhere", lambda x: True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*token_oracle.NAMES, ["mean", "max", "std"]])
def test_every_layout(monkeypatch, name, dtype):
    rows = token_cases.rows_of(LENGTHS, 9, dtype, seed=2)
    for laid in token_cases.layouts(rows):
        x, kwargs = tensors_of(laid)
        wanted = pulled(x, name, kwargs)
        with monkeypatch.context() as patch:
            force(patch)
            found = pulled(x, name, kwargs)
        close(found, wanted, DTYPES[dtype])


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("lp", {"norm_type": 1.0}),
        ("lp", {"norm_type": float("inf")}),
        ("gem", {"norm_type": 2.5, "eps": 0.1}),
        ("logsumexp", {"r": -0.5}),
        ("mean", {"weights": torch.linspace(0.1, 2, 30).view(3, 10)}),
        ("sum", {"weights": torch.linspace(0.1, 2, 30).view(3, 10)}),
        ("std", {"weights": torch.linspace(0.1, 2, 30).view(3, 10)}),
        ("weightedmean", {"exclude_prefix": 2}),
        ("first", {"exclude_prefix": torch.tensor([1, 0, 3])}),
        ("max", {"empty": 5.0}),
    ],
)
def test_parameters(monkeypatch, name, more):
    x = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[1] = False
    wanted = pulled(x, name, {"mask": mask} | more)
    force(monkeypatch)
    close(pulled(x, name, {"mask": mask} | more), wanted, 2e-5)


def test_ties_nans_infinities_and_what_is_masked(monkeypatch):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, 2, 2], [nan, 1, nan], [-inf, -inf, 3], [inf, 0, inf]]).T[None].contiguous()  # (1, 3, 4)
    hidden = torch.cat([x, torch.full((1, 2, 4), nan)], 1)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    for name in ("max", "min", "mean", "sum", "logsumexp", "first", "last"):
        with monkeypatch.context() as patch:
            wanted = pulled(x, name, {})
            force(patch)
            found = pulled(hidden, name, {"mask": mask})
        assert not found[1][:, 3:].any()
        if name in ("max", "min"):
            assert torch.equal(found[1][:, :3], wanted[1])  # one winner, the first of equals, the last of NaNs
        close([found[0]], [wanted[0]], 1e-6)


@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("apart", [False, True])
def test_attention(monkeypatch, heads, apart):
    rows = token_cases.rows_of(LENGTHS, 6, "float64", seed=3)
    query = torch.randn(*([heads] if heads else []), 6, dtype=torch.float64)
    for laid in token_cases.layouts(rows):
        x, kwargs = tensors_of(laid)
        if apart and isinstance(x, list):
            continue
        more = {"values": x[..., :2] + 1} if apart else {}
        wanted = pulled(x, query, kwargs | more, function=ap.attention_pool)
        with monkeypatch.context() as patch:
            force(patch)
            found = pulled(x, query, kwargs | more, function=ap.attention_pool)
        close(found, wanted, 1e-10)


@pytest.mark.parametrize("device", ["cpu", "another"])
def test_gradients_of_gradients(monkeypatch, device):
    if device == "another":
        force(monkeypatch)
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1]])
    for name in ("mean", "max", "std", "gem", "logsumexp", "lp"):
        assert torch.autograd.gradgradcheck(lambda t, n=name: ap.pool_tokens(t, n, mask=mask), x)
    weights = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w: ap.pool_tokens(x.detach(), "mean", weights=w, mask=mask), weights)
    assert torch.autograd.gradgradcheck(lambda t, w: ap.pool_tokens(t, "std", weights=w, mask=mask), (x, weights))
    query = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t, q: ap.attention_pool(t, q, mask=mask), (x, query))
    assert torch.autograd.gradgradcheck(lambda q: ap.attention_pool(x.detach(), q, mask=mask), query)


def test_inputs_made_from_each_other():
    """With create_graph the gradient of what was made from another input was counted twice."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2, 5, 3), (3, 3)))
    calls = (
        lambda t, m: ap.pool_tokens(t, "mean", weights=(t @ m).sigmoid().mean(-1)),
        lambda t, m: ap.attention_pool(t, m, values=2 * t),
        lambda t, m: ap.attention_pool(t, m, values=t),
        lambda t, m: ap.attention_pool(t, t.mean((0, 1)) * m[0]),
    )
    for call in calls:
        found = []
        for again in (False, True):
            inputs = [x.clone().requires_grad_(), w.clone().requires_grad_()]
            found.append(torch.autograd.grad((call(*inputs) ** 2).sum(), inputs, create_graph=again))
        for once, twice in zip(*found, strict=True):
            torch.testing.assert_close(once, twice)
        assert torch.autograd.gradgradcheck(call, (x.clone().requires_grad_(), w.clone().requires_grad_()))


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, float("inf")])
def test_zeros_and_nans_of_powers(monkeypatch, p):
    """As the kernels: no gradient where all is 0, that of the sign elsewhere, NaN for NaN."""
    x = torch.tensor([[0.0, 0, 0], [1, -2, 3], [float("nan"), 1, -1]], dtype=torch.float64)[..., None]
    wanted = pulled(x, "lp", {"norm_type": p})
    with monkeypatch.context() as patch:
        force(patch)
        close(pulled(x, "lp", {"norm_type": p}), wanted, 1e-12)
    leaf = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64, requires_grad=True)
    if p == 2:
        (grad,) = torch.autograd.grad(ap.pool_tokens(leaf, "lp").sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(grad[0, 0, 0], leaf)
        assert second[0, 0, 0] == 0.5


@pytest.mark.parametrize("name", ["max", "first", "mean", "std", "logsumexp"])
def test_gradients_where_no_row_has_a_token(monkeypatch, name):
    x = torch.randn(2, 3, 4).requires_grad_()
    for elsewhere in (False, True):
        if elsewhere:
            force(monkeypatch)
        y = ap.pool_tokens(x, name, lengths=torch.tensor([0, 0]), empty=0.0)
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert not grad.any()


def test_autocast_leaves_scores_alone(monkeypatch):
    x, query = torch.randn(4, 50, 64, generator=torch.Generator().manual_seed(0)), torch.randn(64)
    wanted = ap.attention_pool(x, query)
    force(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ap.attention_pool(x, query), wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's forward mode uses what PyTorch deprecated
@pytest.mark.parametrize("name", ["mean", "max", "std", "logsumexp"])
def test_transforms_and_tangents(name):
    """A tangent was lost without a word, and so was the gradient of what vmap had mapped."""
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tangent = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 0, 1, 0]])

    def whole(t):
        return ap.pool_tokens(t, name, mask=mask)

    leaf = x.clone().requires_grad_()
    y = whole(leaf)
    (wanted,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda t: whole(t).sum())(x), wanted)
    _, along = torch.func.jvp(whole, (x,), (tangent,))
    torch.testing.assert_close(along.sum(), (wanted * tangent).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = whole(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, along)
    mapped = torch.func.vmap(lambda t: ap.pool_tokens(t, name, mask=mask[0]))(leaf)
    torch.testing.assert_close(mapped, y)
    torch.testing.assert_close(torch.autograd.grad(mapped.sum(), leaf)[0], wanted)
    query = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    of_query = torch.func.grad(lambda q: ap.attention_pool(x, q, mask=mask).sum())(query)
    asked = query.clone().requires_grad_()
    torch.testing.assert_close(of_query, torch.autograd.grad(ap.attention_pool(x, asked, mask=mask).sum(), asked)[0])
    of_each = torch.func.vmap(lambda t, q: ap.attention_pool(t, q, mask=mask[0]), (0, None))(x, query)
    torch.testing.assert_close(of_each, ap.attention_pool(x, query, mask=mask))
    assert torch.func.hessian(lambda t: whole(t).sum())(x).shape == (2, 5, 3, 2, 5, 3)
    with pytest.raises(NotImplementedError, match="mask must not be batched by vmap"):
        torch.func.vmap(lambda t, m: ap.pool_tokens(t, name, mask=m))(x, mask)
    with pytest.raises(NotImplementedError, match="segment_ids must not be batched by vmap"):
        torch.func.vmap(lambda t, i: ap.pool_tokens(t, name, segment_ids=i))(x, torch.zeros(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("name", ["mean", "max", "std"])
def test_a_mask_that_a_transform_follows(name):
    """What is worked out from the tokens inside of a transform is known there, however deep."""
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def by_itself(t):
        return ap.pool_tokens(t, name, mask=(t[..., 0] > -0.5).to(t.dtype), empty=0.0).square().sum()

    leaf = x.clone().requires_grad_()
    mask = x[..., 0] > -0.5
    assert 0 < mask.sum() < mask.numel()
    (wanted,) = torch.autograd.grad(ap.pool_tokens(leaf, name, mask=mask, empty=0.0).square().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(by_itself)(x), wanted)
    twice = torch.func.grad(lambda t: (torch.func.grad(by_itself)(t) * x).sum())(x)
    (first,) = torch.autograd.grad(by_itself(leaf), leaf, create_graph=True)
    torch.testing.assert_close(twice, torch.autograd.grad((first * x).sum(), leaf)[0])


def test_halves_shapes_and_errors(monkeypatch):
    x = torch.randn(4, 50, 17, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    wanted = ap.pool_tokens(x, "mean", lengths=torch.tensor([50, 3, 0, 7]))
    force(monkeypatch)
    found = ap.pool_tokens(x, "mean", lengths=torch.tensor([50, 3, 0, 7]))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, equal_nan=True)
    assert ap.pool_tokens(x[:0], "max").shape == (0, 17)
    assert ap.pool_tokens(x[:, :0], "max", empty=1).eq(1).all()
    assert ap.pool_tokens(x[None], "sum").shape == (1, 4, 17)
    said = ap.explain(ap.pool_tokens, x, "mean")
    assert (said.backend, said.tokens, said.notes) == ("torch", 200, ("a tensor on cpu",))
    with pytest.raises(ValueError, match="mask must have shape"):
        ap.pool_tokens(x, "mean", mask=torch.ones(4))
    with pytest.raises(TypeError, match="x must be float16"):
        ap.pool_tokens(torch.ones(2, 3, dtype=torch.int32), "mean")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", [*token_oracle.NAMES, ["mean", "max", "std"]])
def test_gpu(name):
    rows = token_cases.rows_of(LENGTHS, 9, "float32", seed=2)
    query = torch.randn(2, 9)
    for laid in token_cases.layouts(rows):
        x, kwargs = tensors_of(laid)
        there, arguments = tensors_of(laid, "cuda")
        close(pulled(there, name, arguments, "cuda"), pulled(x, name, kwargs), 2e-5)
        if not isinstance(x, list):
            wanted = pulled(x, query, kwargs, function=ap.attention_pool)
            close(pulled(there, query.cuda(), arguments, "cuda", ap.attention_pool), wanted, 2e-5)
