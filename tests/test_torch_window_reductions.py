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


@pytest.mark.parametrize("mask", [None, torch.ones(8, dtype=torch.bool)])
def test_a_compiler_breaks_its_graph_at_draws_and_is_right(mask):
    """A generator of NumPy's is nothing that a graph could hold."""
    torch.compiler.reset()

    def pooled(t):
        return ap.pool(t * 2, "stochastic", **CALL, generator=np.random.default_rng(0), mask=mask) * 2

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
    draws = {"axes": 1, "generator": np.random.default_rng(0)}
    with torch._subclasses.FakeTensorMode(), pytest.raises(NotImplementedError, match="x must be memory of the CPU"):
        ap.pool(torch.empty(4, 4), "stochastic", 2, **draws)
    with pytest.raises(NotImplementedError, match="'stochastic' pooling of tensors runs on the CPU"):
        ap.pool(x.to("meta"), "stochastic", 2, **draws)


@pytest.mark.parametrize("shape", [(0, 3, 9, 8), (2, 0, 9, 8)])
@pytest.mark.parametrize("reduction", ["median", "mode"])
def test_empty_batch(reduction, shape):
    x = torch.zeros(shape, dtype=torch.int64 if reduction == "mode" else torch.float32)
    assert ap.pool(x, reduction, **CALL).shape == (*shape[:2], 5, 4)


LEFT_OUT = {
    "mask": {"mask": True},
    "nan": {"nan": "omit"},
    "all": {"mask": True, "nan": "omit", "empty": 2.5, "return_valid": True},
    "padding": {"empty": -1.5, "padding": 3},
}


def selected(left_out, nonnegative=False):
    """An array with NaNs, a mask that leaves some windows nothing, and the arguments."""
    x = cases.plain((2, 3, 9, 8), np.dtype(np.float64))
    x = np.abs(x) if nonnegative else x
    x[cases.rng(8).random(x.shape) < 0.2] = np.nan
    mask = cases.rng(9).random((3, 9, 8)) < 0.5
    mask[:, 3:7, 2:6] = False
    return x, CALL | left_out | ({"mask": mask} if "mask" in left_out else {})


def as_tensors(given):
    return given | ({"mask": torch.from_numpy(given["mask"])} if "mask" in given else {})


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("reduction", [*cases.OF_WINDOWS, "stochastic"])
def test_what_does_not_count_forward_and_backward(reduction, left_out, name):
    if name not in cases.FLOATS:
        pytest.skip("needs ml_dtypes")
    draws = reduction == "stochastic"
    x, given = selected(LEFT_OUT[left_out], draws)
    given |= GIVEN.get(reduction, {}) | ({"return_indices": True} if draws else {})
    x = torch.from_numpy(x).to(getattr(torch, name))

    def generator():
        return {"generator": np.random.default_rng(3)} if draws else {}

    wanted, pullback = ap.vjp(ap.pool, array_of(x), reduction, **given, **generator())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    g = np.round(cases.rng(2).standard_normal(wanted[0].shape) * 8).astype(wanted[0].dtype)
    slope = pullback(g)
    for recorded in (True, False):
        leaf = x.clone().requires_grad_(recorded)
        got = ap.pool(leaf, reduction, **as_tensors(given), **generator())
        got = got if isinstance(got, tuple) else (got,)
        for a, b in zip(wanted, got, strict=True):
            assert tolerance.same_bits(array_of(b), a)
        if recorded:
            got[0].backward(torch.from_numpy(g.astype(np.float64)).to(x.dtype))
            assert leaf.grad.dtype is x.dtype
            np.testing.assert_array_equal(leaf.grad.double().numpy(), slope.astype(np.float64))


@pytest.mark.parametrize("reduction", cases.OF_WINDOWS)
def test_masked_gradcheck_and_transforms(reduction):
    _, given = selected(LEFT_OUT["mask"])
    mask = torch.from_numpy(given["mask"])
    x, given = data(torch.float64), GIVEN.get(reduction, {}) | {"empty": 0}
    if reduction == "var":
        given["correction"] = 0  # or windows of a single input have no variance

    def pooled(t, m=mask, axes=(2, 3)):
        return ap.pool(t, reduction, 2, stride=1, axes=axes, mask=m, **given)

    small = x[:1, :1, :5, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: pooled(t, mask[:1, :5, :6]), small)
    leaf = x.clone().requires_grad_()
    y = pooled(leaf)
    y.square().sum().backward()
    assert torch.equal(torch.func.grad(lambda t: pooled(t).square().sum())(x), leaf.grad)
    assert torch.equal(torch.func.vmap(lambda t: pooled(t, axes=(1, 2)))(x), y)
    both = torch.func.vmap(lambda t, m: pooled(t, m, (1, 2)))
    assert torch.equal(both(x, mask.expand(x.shape)), y)
    (once,) = torch.autograd.grad(pooled(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"'{reduction}' pooling has first gradients only"):
        torch.autograd.grad(once.sum(), leaf)


@pytest.mark.parametrize("reduction", ["median", "stochastic"])
def test_masks_break_a_compiler_s_graph_and_are_right(reduction):
    torch.compiler.reset()
    x, given = selected(LEFT_OUT["all"], True)
    given = as_tensors(given)

    def pooled(t):
        generator = {"generator": np.random.default_rng(0)} if reduction == "stochastic" else {}
        return ap.pool(t * 2, reduction, **given, **generator)[0] * 2

    x = torch.from_numpy(x)
    assert torch.equal(torch.compile(pooled, backend="eager")(x), pooled(x))


@pytest.mark.parametrize("left_out", [{}, {"nan": "omit"}])
def test_an_export_of_draws_is_refused(left_out):
    """It holds a graph of operators, which take no generator of NumPy's."""

    class Pool(torch.nn.Module):
        def forward(self, x):
            return ap.pool(x, "stochastic", 2, axes=(2, 3), generator=np.random.default_rng(0), **left_out)

    with pytest.raises(NotImplementedError, match="x must be memory of the CPU for reductions of whole windows"):
        torch.export.export(Pool(), (data(),), strict=False)


@pytest.mark.parametrize("left_out", [{}, {"nan": "omit"}])
@pytest.mark.parametrize("indexed", [False, True])
def test_stochastic_of_bfloat16(indexed, left_out):
    """NumPy has no such dtype; what is drawn is what float32 draws of the same values."""
    x = data().abs().bfloat16()
    kwargs = CALL | left_out | {"return_indices": True}
    wanted, places = ap.pool(x.float().numpy(), "stochastic", generator=np.random.default_rng(3), **kwargs)
    leaf = x.clone().requires_grad_()
    got = ap.pool(leaf, "stochastic", generator=np.random.default_rng(3), **kwargs | {"return_indices": indexed})
    y = got[0] if indexed else got
    assert y.dtype is torch.bfloat16
    assert np.array_equal(y.detach().float().numpy(), wanted)
    assert not indexed or np.array_equal(got[1].numpy(), places)
    y.sum().backward()
    counts = np.stack([np.bincount(p.ravel(), minlength=72) for p in places.reshape(6, -1)])
    assert np.array_equal(leaf.grad.float().numpy().reshape(6, -1), counts)


def test_windows_without_input_need_a_value_of_an_integer_result():
    x = torch.ones(2, 4, dtype=torch.int64)
    masks = torch.tensor([[True, True, False, False], [True, True, True, False]])
    mode = torch.func.vmap(lambda m: ap.pool(x, "mode", (1, 2), mask=m, empty=7))
    assert mode(masks).tolist() == [[[1, 7]] * 2, [[1, 1]] * 2]
    with pytest.raises(ValueError, match="mask must leave every window some input, or empty= give a value"):
        torch.func.vmap(lambda m: ap.pool(x, "mode", (1, 2), mask=m))(masks)
