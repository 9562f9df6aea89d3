"""Masks, weights, omitted NaNs and empty windows of tensors: what arrays give, and gradients that autograd confirms."""

from __future__ import annotations

import numpy as np
import pytest

import anypool as ap
import tolerance

torch = pytest.importorskip("torch")

CALLS = [
    (ap.max_pool2d, (3,), {"stride": 2, "padding": 1}),
    (ap.max_pool2d, (2,), {"padding": 2, "empty": 0}),
    (ap.avg_pool2d, (3,), {"padding": 1}),
    (ap.avg_pool2d, (2,), {"count_include_pad": False, "ceil_mode": True, "padding": 1}),
    (ap.avg_pool2d, (2,), {"divisor_override": 3}),
    (ap.lp_pool2d, (2, 2), {}),
    (ap.adaptive_avg_pool2d, (3,), {}),
    (ap.adaptive_max_pool2d, ((2, 3),), {}),
    (ap.global_avg_pool, (), {"keepdims": False}),
    (ap.global_max_pool, (), {}),
    (ap.pool, ("min", (2, 2)), {}),
    (ap.pool, ("sum", (2, 2)), {}),
    (ap.pool, ("logsumexp", (2, 2)), {"r": -1.5}),
    (ap.pool, ("lp", (2, 2)), {"norm_type": np.inf}),
]
MASKS = [(2, 3, 7, 9), (7, 9), (2, 1, 1, 9)]


def data(shape):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 7, 9)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, rng.random(shape) < 0.5


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS)
def test_tensors_are_pooled_as_arrays(function, args, kwargs, shape, recorded):
    x, mask = data(shape)
    wanted = ap_call = function(x, *args, mask=mask, nan="omit", return_valid=True, **kwargs)
    leaf = torch.from_numpy(x).requires_grad_(recorded)
    got = function(leaf, *args, mask=torch.from_numpy(mask), nan="omit", return_valid=True, **kwargs)
    assert got[0].requires_grad == recorded
    for a, b in zip(wanted, got, strict=True):
        assert tolerance.same_bits(a, b.detach().numpy())
    if not recorded:
        return
    _, pullback = ap.vjp(function, x, *args, mask=mask, nan="omit", **kwargs)
    grad = np.random.default_rng(5).standard_normal(ap_call[0].shape).astype(np.float32)
    got[0].backward(torch.from_numpy(grad))
    np.testing.assert_allclose(leaf.grad.numpy(), pullback(grad), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("recorded", [False, True])
def test_indices(recorded):
    x, mask = data((2, 3, 7, 9))
    x[:, :, :4] = -np.inf
    arguments = {"padding": 1, "mask": mask, "nan": "omit", "return_indices": True}
    y, indices = ap.max_pool2d(torch.from_numpy(x).requires_grad_(recorded), 3, **arguments)
    wanted = ap.max_pool2d(x, 3, **arguments)
    assert tolerance.same_bits(wanted[0], y.detach().numpy())
    np.testing.assert_array_equal(indices.numpy(), wanted[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "bool"])
def test_dtypes(dtype):
    x, mask = data((7, 9))
    t = torch.from_numpy(np.nan_to_num(x)).mul(10).to(getattr(torch, dtype))
    for function in (ap.max_pool2d, ap.avg_pool2d):
        y = function(t, 2, mask=mask, empty=0)
        plain = function(torch.where(torch.from_numpy(mask), t.double(), torch.nan), 2, nan="omit", empty=0)
        if dtype == "bool" and function is ap.max_pool2d:
            assert y.dtype == torch.bool
        elif dtype != "bool":
            assert y.dtype == t.dtype
            plain = plain.round() if dtype == "int32" else plain
        torch.testing.assert_close(y.double(), plain.double(), rtol=1e-2, atol=1e-2)


def test_gradients_of_weights_and_second_gradients():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = (torch.rand(4, 4, dtype=torch.float64, generator=generator) + 0.5).requires_grad_()
    mask = torch.rand(1, 2, 4, 4, generator=generator) < 0.8

    def mean(x, weights):
        return ap.avg_pool2d(x, 2, stride=1, weights=weights, mask=mask, empty=0)

    assert torch.autograd.gradcheck(mean, (x, weights))
    assert torch.autograd.gradgradcheck(mean, (x, weights))


def test_into_memory_of_the_caller_s():
    x, mask = data((7, 9))
    out = torch.empty(2, 3, 3, 4)
    assert ap.max_pool2d(torch.from_numpy(x), 2, mask=mask, out=out) is out
    assert tolerance.same_bits(out.numpy(), ap.max_pool2d(x, 2, mask=mask))
    with pytest.raises(ValueError, match="out needs plain tensors that record no gradient"):
        ap.max_pool2d(torch.from_numpy(x).requires_grad_(), 2, mask=mask, out=out)


def test_a_function_of_plain_numbers_is_looked_into_every_time():
    """What a call remembers for plain tensors must not answer one that leaves something out."""
    x = torch.tensor([[[1.0, torch.nan]]])
    for _ in range(2):
        assert ap.avg_pool1d(x, 2).isnan().all()
        assert ap.avg_pool1d(x, 2, nan="omit").item() == 1
        assert ap.avg_pool1d(x, 2, nan="omit", return_valid=True)[1].item() == 1


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_compiled():
    """The graph breaks there, and the result is the same."""
    x, mask = data((7, 9))
    tensors = torch.from_numpy(x), torch.from_numpy(mask)
    compiled = torch.compile(lambda x, mask: ap.max_pool2d(x, 2, mask=mask, nan="omit"), backend="eager")
    torch.testing.assert_close(
        compiled(*tensors), ap.max_pool2d(*tensors[:1], 2, mask=mask, nan="omit"), equal_nan=True
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"mask": torch.ones(5, dtype=torch.bool)},
            ValueError,
            r"mask must broadcast to the shape of x, got shape \(5,\)",
        ),
        ({"mask": torch.ones(4)}, TypeError, r"mask must be bool"),
        ({"mask": torch.ones(4, dtype=torch.bool, device="meta")}, ValueError, r"mask must be on the device of x, cpu"),
        ({"weights": torch.ones(4), "divisor_override": 2}, ValueError, r"weights and divisor_override exclude"),
        ({"empty": "0"}, TypeError, r"empty must be a number"),
        ({"nan": "drop"}, ValueError, r'nan must be "propagate" or "omit"'),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_arguments(arguments, error, message, recorded):
    with pytest.raises(error, match=message):
        ap.avg_pool1d(torch.ones(1, 2, 4, requires_grad=recorded), 2, **arguments)


FOLLOWED = [
    ("max_pool2d", (2,), {"mask": True, "empty": 0}),
    ("avg_pool2d", (2,), {"mask": True, "empty": 0}),
    ("avg_pool2d", (2,), {"weights": True}),
    ("max_pool2d", (3, 2, 1), {"nan": "omit"}),
    ("pool", ("lp", 2), {"axes": (2, 3), "mask": True, "empty": 0}),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's forward mode uses what PyTorch deprecated
@pytest.mark.parametrize(("name", "args", "kwargs"), FOLLOWED)
def test_transforms_and_tangents(name, args, kwargs):
    """A tangent was lost without a word."""
    generator = torch.Generator().manual_seed(0)
    x, tangent = (torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    mask, weights = torch.rand(2, 2, 6, 6, generator=generator) < 0.7, torch.rand(6, 6, dtype=torch.float64)
    given = kwargs | {k: v for k, v in (("mask", mask), ("weights", weights)) if k in kwargs}

    def pooled(t):
        return getattr(ap, name)(t, *args, **given)

    leaf = x.clone().requires_grad_()
    y = pooled(leaf)
    (wanted,) = torch.autograd.grad((y * y).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda t: (pooled(t) ** 2).sum())(x), wanted)
    _, along = torch.func.jvp(lambda t: (pooled(t) ** 2).sum(), (x,), (tangent,))
    torch.testing.assert_close(along, (wanted * tangent).sum())
    with torch.autograd.forward_ad.dual_level():
        primal, of_y = torch.autograd.forward_ad.unpack_dual(pooled(torch.autograd.forward_ad.make_dual(x, tangent)))
        torch.testing.assert_close((2 * primal * of_y).sum(), along)
    if "mask" in kwargs:  # and what is constant inside of a transform is an array as elsewhere
        inside = torch.func.grad(lambda t: (t * pooled(x)[..., :1, :1].sum()).sum())(torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(inside, pooled(x)[..., :1, :1].sum().expand(3))
        both = torch.func.vmap(lambda t, m: getattr(ap, name)(t[None], *args, **given | {"mask": m[None]})[0])(x, mask)
        torch.testing.assert_close(both, pooled(x))


def test_tangents_that_cannot_be_followed_are_refused():
    x = torch.randn(1, 1, 4, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="'median' with mask"):
            ap.pool(dual, "median", 2, axes=(2, 3), mask=torch.ones(4, 4, dtype=torch.bool))
