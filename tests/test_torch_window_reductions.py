"""Reductions of whole windows, and any and all, on tensors: the bits of arrays, gradients, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import anypool as ap
import cases
import tolerance

torch = pytest.importorskip("torch", reason="torch is not installed")

GIVEN = {"quantile": {"q": 0.3}, "var": {"correction": 1}, "softmax": {"r": 2.0}}
CALL = {"kernel_size": 3, "stride": 2, "padding": 1, "axes": (2, 3)}


def array_of(x):
    """The same values as an array."""
    x = x.detach()
    return x.float().numpy().astype(cases.dtype_of("bfloat16")) if x.dtype is torch.bfloat16 else x.numpy()


def data(dtype=torch.float32):
    return torch.from_numpy(cases.plain((2, 3, 9, 8), np.dtype(np.float64))).to(dtype)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("reduction", cases.OF_WINDOWS)
def test_the_bits_of_arrays(reduction, name):
    """Forward and backward, in every memory format."""
    if name not in cases.FLOATS:
        pytest.skip("needs ml_dtypes")
    x, given = data(getattr(torch, name)), GIVEN.get(reduction, {}) | CALL
    wanted, pullback = ap.vjp(ap.pool, array_of(x), reduction, **given)
    g = cases.rng(2).standard_normal(wanted.shape).astype(wanted.dtype)
    slope = pullback(g)
    for lying in (x, x.to(memory_format=torch.channels_last), x.flip(3).flip(3), x.permute(3, 2, 1, 0).contiguous()):
        leaf = (lying.permute(3, 2, 1, 0) if lying.shape != x.shape else lying).detach().requires_grad_()
        y = ap.pool(leaf, reduction, **given)
        assert tolerance.same_bits(array_of(y), wanted)
        assert y.is_contiguous(memory_format=torch.channels_last) == leaf.is_contiguous(
            memory_format=torch.channels_last
        )
        y.backward(torch.from_numpy(g.astype(np.float64)).to(y.dtype))
        assert leaf.grad.dtype is x.dtype
        assert tolerance.same_bits(array_of(leaf.grad), slope)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("reduction", ["any", "all", "mode"])
def test_reductions_without_a_gradient(reduction, dtype):
    if reduction == "mode" and dtype in cases.FLOATS:
        with pytest.raises(TypeError, match="x must be bool or integer for 'mode'"):
            ap.pool(data(getattr(torch, dtype)), reduction, 2)
        return
    x = torch.from_numpy(cases.ties((2, 3, 9, 8), np.dtype(np.float32))).abs().to(getattr(torch, dtype))
    y = ap.pool(x, reduction, **CALL)
    wanted = ap.pool(x.to(torch.int32).numpy(), reduction, **CALL)
    assert y.dtype is (x.dtype if reduction == "mode" else torch.bool)
    if dtype != "bool" or reduction != "mode":
        assert np.array_equal(y.to(torch.float64).numpy(), wanted.astype(float))
    assert not y.requires_grad
    with pytest.raises(TypeError, match="vjp needs a reduction with a gradient"):
        ap.vjp(ap.pool, x, reduction, 2)


def test_any_of_nan_and_of_fractions():
    x = torch.tensor([[0.25, 0.0], [0.0, float("nan")], [0.0, -0.0]], requires_grad=True)
    assert ap.pool(x, "any", (1, 2)).tolist() == [[True], [True], [False]]
    assert ap.pool(x, "all", (1, 2), dtype=torch.float32).tolist() == [[0.0], [0.0], [0.0]]
    assert ap.explain(ap.pool, x, "any", (1, 2)).backend == "native"


def test_stochastic():
    x = data().abs()
    kwargs = CALL | {"return_indices": True}
    wanted, places = ap.pool(x.numpy(), "stochastic", generator=np.random.default_rng(3), **kwargs)
    leaf = x.clone().requires_grad_()
    y, indices = ap.pool(leaf, "stochastic", generator=np.random.default_rng(3), **kwargs)
    assert np.array_equal(y.detach().numpy(), wanted)
    assert np.array_equal(indices.numpy(), places)
    y.sum().backward()
    _, pullback = ap.vjp(ap.pool, x.numpy(), "stochastic", generator=np.random.default_rng(3), **CALL)
    assert np.array_equal(leaf.grad.numpy(), pullback(np.ones_like(wanted)))
    assert ap.pool(x.to(torch.uint8), "stochastic", 2, generator=np.random.default_rng(0)).dtype is torch.uint8
    with pytest.raises(TypeError, match="generator must be"):
        ap.pool(x, "stochastic", 2)
    with pytest.raises(ValueError, match="x must be >= 0 for stochastic pooling"):
        ap.pool(-x, "stochastic", 2, generator=np.random.default_rng(0))


@pytest.mark.parametrize("reduction", cases.OF_WINDOWS)
def test_gradcheck_and_transforms(reduction):
    x, given = data(torch.float64)[:1, :1, :5, :6].clone(), GIVEN.get(reduction, {})

    def pooled(t, axes=(2, 3)):
        return ap.pool(t, reduction, 2, stride=1, axes=axes, **given)

    assert torch.autograd.gradcheck(pooled, x.requires_grad_())
    x = data(torch.float64)
    leaf = x.clone().requires_grad_()
    pooled(leaf).square().sum().backward()
    assert torch.equal(torch.func.grad(lambda t: pooled(t).square().sum())(x), leaf.grad)
    assert torch.equal(torch.func.vmap(lambda t: pooled(t, (1, 2)))(x), pooled(x))
    per_sample = torch.func.vmap(torch.func.grad(lambda t: pooled(t, (1, 2)).square().sum()))(x)
    assert torch.equal(per_sample, leaf.grad)
    (once,) = torch.autograd.grad(pooled(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"'{reduction}' pooling has first gradients only"):
        torch.autograd.grad(once.sum(), leaf)


@pytest.mark.parametrize("reduction", [*cases.OF_WINDOWS, "stochastic", "any"])
def test_a_compiler_breaks_its_graph_and_is_right(reduction):
    torch.compiler.reset()

    def pooled(t):
        generator = np.random.default_rng(0) if reduction == "stochastic" else None
        return ap.pool(t * 2, reduction, **CALL, **GIVEN.get(reduction, {}), generator=generator) * 2

    x = data().abs()
    assert torch.equal(torch.compile(pooled, backend="eager")(x), pooled(x))


def test_out_and_refusals():
    x = data()
    y = ap.pool(x, "median", **CALL)
    out = torch.full((*y.shape, 2), float("nan"))[..., 0]
    assert ap.pool(x, "median", **CALL, out=out) is out
    assert torch.equal(out, y)
    assert torch.equal(ap.pool(x, "median", **CALL, dtype=torch.float64).float(), y)
    for bad, exception, text in (
        (lambda: ap.pool(x, "median", 2, out=torch.empty(2)), ValueError, "out must be a tensor of shape"),
        (lambda: ap.pool(x, "median", 1, out=x), ValueError, "out must not overlap x"),
        (
            lambda: ap.pool(x.to("meta"), "median", 2),
            NotImplementedError,
            "'median' pooling of tensors runs on the CPU",
        ),
        (lambda: ap.pool(x, "median", 2.0), TypeError, "kernel_size must be an int"),
    ):
        with pytest.raises(exception, match=text):
            bad()
    with pytest.raises(ValueError, match="out must not be given where a gradient is recorded"):
        ap.pool(x.clone().requires_grad_(), "median", **CALL, out=torch.empty_like(y))
    with ap.backends.use("native"), pytest.raises(NotImplementedError, match="every input of a window at once"):
        ap.pool(x, "median", 2)
    found = ap.explain(ap.pool, x, "std", **CALL)
    assert (found.backend, found.kernel) == ("reference", "gathered windows")
    with torch._subclasses.FakeTensorMode(), pytest.raises(NotImplementedError, match="x must be memory of the CPU"):
        ap.pool(torch.empty(4, 4), "median", 2)


@pytest.mark.parametrize("shape", [(0, 3, 9, 8), (2, 0, 9, 8)])
@pytest.mark.parametrize("reduction", ["median", "mode"])
def test_empty_batch(reduction, shape):
    x = torch.zeros(shape, dtype=torch.int64 if reduction == "mode" else torch.float32)
    assert ap.pool(x, reduction, **CALL).shape == (*shape[:2], 5, 4)
