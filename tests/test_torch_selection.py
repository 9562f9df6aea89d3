"""Masks, weights, omitted NaNs and empty windows of tensors: what arrays give, and gradients that autograd confirms."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import anypool as ap
import cases
import tolerance

torch = pytest.importorskip("torch")

INF, NAN = np.inf, np.nan
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


def test_gradients_of_weights_do_not_look_at_what_is_masked():
    x, weights = torch.tensor([[1.0, NAN], [INF, 4.0]]), torch.tensor([2.0, 3.0], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    ap.pool(x, "sum", 2, axes=1, weights=weights, mask=mask).sum().backward()
    assert weights.grad.tolist() == [1, 4]


def over_masks(call):
    """The results for two masks, one a time and as `vmap` runs them, which sees no memory."""
    masks = torch.tensor([[True, False, True, True], [False, True, False, False]])
    one_by_one = [call(mask) for mask in masks]
    return torch.func.vmap(call)(masks), [torch.stack(parts) for parts in zip(*one_by_one, strict=True)]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("max", 2), {}),
        (("min", 2), {"return_indices": True}),
        (("sum", 2), {}),
        (("mean", 2), {"dtype": torch.float64}),
        (("mode", 2), {"ignore": 3}),
        (("mode", 2), {"ignore": (3, 0, 300)}),
    ],
)
def test_integers_with_a_mask_that_is_batched(args, kwargs):
    x = torch.tensor([[[3, 7, -2, 5], [1, 0, 3, 3]]])
    got, wanted = over_masks(lambda mask: ap.pool(x, *args, axes=2, mask=mask, empty=-9, return_valid=True, **kwargs))
    for a, b in zip(got, wanted, strict=True):
        assert tolerance.same_bits(a.numpy(), b.numpy())


def test_integer_means_with_a_mask_that_is_batched_are_refused():
    x = torch.tensor([[[3, 7, -2, 5]]])
    masks = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="integer means with mask, nan or empty need plain tensors"):
        torch.func.vmap(lambda mask: ap.avg_pool1d(x, 2, mask=mask))(masks)


def test_padding_that_would_be_too_much_memory():
    """A window every hundred elements, in two million of padding: no copy of those is made, also for the gradient."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    kwargs = {"stride": 100, "padding": 10**6, "empty": -1.0}
    y = ap.pool(x, "sum", 2, **kwargs)
    wanted, pullback = ap.vjp(ap.pool, x.detach().numpy(), "sum", 2, **kwargs)
    assert tolerance.same_bits(y.detach().numpy(), wanted)
    assert y[10_000] == 3
    assert (y == -1).sum() == len(y) - 1
    g = torch.linspace(1, 2, len(y))
    y.backward(g)
    np.testing.assert_array_equal(x.grad.numpy(), pullback(g.numpy()))
    assert x.grad.tolist() == [g[10_000], g[10_000], 0, 0]


@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_a_global_winner_that_is_no_better_than_what_is_left_out(reduction, keepdims):
    """It is the first input that counts: the value, the place and the gradient."""
    worst = -INF if reduction == "max" else INF
    x = torch.full((2, 3, 4, 5), worst, requires_grad=True)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = True
    if reduction == "max":
        y, places = ap.global_max_pool(x, mask=mask, keepdims=keepdims, return_indices=True)
    else:
        y, places = ap.pool(x, "min", (4, 5), mask=mask, return_indices=True)
    assert y.shape == places.shape == ((2, 3) if reduction == "max" and not keepdims else (2, 3, 1, 1))
    assert (y == worst).all()
    assert (places == 7).all()
    y.sum().backward()
    assert x.grad[:, :, 1, 2].eq(1).all()
    assert x.grad.sum() == 6


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_windows_without_a_gap_need_no_empty_value(name):
    """Of `any` and `all` there is no value for an empty window, so it is looked whether there is one."""
    x = torch.tensor([[[0.0, 2.0, 0.0, 0.0]]]).to(getattr(torch, name))
    mask = torch.tensor([True, False, True, True])
    assert ap.pool(x, "any", 2, axes=2, mask=mask).tolist() == [[[False, False]]]
    assert ap.pool(x, "any", 2, axes=2, mask=~mask, empty=True).tolist() == [[[True, True]]]
    y, valid = ap.pool(x, "any", 2, axes=2, return_valid=True)
    assert (y.tolist(), valid.tolist()) == ([[[True, False]]], [[[2, 2]]])


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


def test_sums_of_bytes_have_the_dtype_that_they_have_without_a_mask():
    x = torch.full((1, 2, 4), 200, dtype=torch.uint8)
    for mask in (None, torch.ones(4, dtype=torch.bool)):
        y = ap.pool(x, "sum", 2, axes=2, mask=mask, empty=0)
        assert (y.dtype, y.tolist()) == (torch.int64, [[[400, 400]] * 2])


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


def test_complex_tensors_have_no_mask():
    with pytest.raises(TypeError, match=r"x must be real numbers, got dtype torch.complex64 \(x: \(1, 2, 4\)\)"):
        ap.max_pool1d(torch.ones(1, 2, 4).cfloat(), 2, mask=torch.ones(4, dtype=torch.bool))


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


SAME_GRADIENTS = {
    "only -inf counts": ([-INF, -INF, -INF, 1.0], ("max", 2), {"mask": [False, True, True, True]}),
    "only inf counts": ([INF, INF, NAN, INF], ("min", 2), {"mask": [False, True, True, True], "nan": "omit"}),
    "only -inf is no NaN": ([NAN, -INF, -INF, NAN], ("max", 2), {"nan": "omit"}),
    "only -inf counts, and padding": ([-INF, -INF], ("max", 2), {"mask": [False, True], "padding": 2, "empty": 0.0}),
    "only zero counts": ([0.0, 0.0], ("lp", 2), {"mask": [False, True], "norm_type": INF}),
    "no window sees inf, lp": ([INF, 1.0], ("lp", 1), {"stride": 2, "padding": 1, "empty": 0.0}),
    "no window sees NaN, lp": ([NAN, 1.0], ("lp", 1), {"stride": 2, "padding": 1, "empty": 0.0}),
    "inf beside padding, lp": ([INF, 2.0, NAN], ("lp", 2), {"stride": 1, "padding": 2, "empty": 0.0, "norm_type": 3}),
    "inf beside padding, logsumexp": ([INF], ("logsumexp", 1), {"mask": [True], "padding": 1, "empty": 0.0}),
    "-inf beside padding, logsumexp": ([-INF, 1.0], ("logsumexp", 2), {"padding": 2, "empty": 0.0, "r": -1.0}),
    "weights of zero": ([1.0, 2.0], ("mean", 2), {"weights": [0, 0]}),
    "weights that add up to zero": ([1.0, 2.0, 3.0, 4.0], ("mean", 2), {"weights": [1.0, -1.0, 2.0, 1.0]}),
    "weights in a wider dtype": (np.float32([1.0, 2.0]), ("mean", 2), {"weights": [1, 1 + 1e-9], "dtype": "float64"}),
}


@pytest.mark.parametrize("given", SAME_GRADIENTS.values(), ids=SAME_GRADIENTS.keys())
def test_gradients_are_those_of_arrays(given):
    x, args, kwargs = given
    x = np.asarray(x)
    wanted, pullback = ap.vjp(ap.pool, x, *args, **kwargs)
    leaf = torch.tensor(x, requires_grad=True)
    y = ap.pool(leaf, *args, **kwargs)
    assert tolerance.same_bits(y.detach().numpy(), wanted)
    g = cases.rng(3).standard_normal(wanted.shape)
    y.backward(torch.from_numpy(g).to(y.dtype))
    np.testing.assert_array_equal(leaf.grad.numpy(), pullback(g))  # a zero may have another sign


@pytest.mark.parametrize("axes", [(1, 2), (3, 2), (0, 3)])
@pytest.mark.parametrize("reduction", ["max", "min"])
def test_gradients_where_only_infinities_count(reduction, axes):
    """In every order of the pooled axes; also the second gradients know the first input that counts."""
    generator = cases.rng(7)
    x = generator.choice([-INF, INF, 0.0], (3, 4, 5, 6))
    mask = generator.random(x.shape) < 0.4
    kwargs = {"axes": axes, "stride": 1, "padding": 1, "mask": mask}
    wanted, pullback = ap.vjp(ap.pool, x, reduction, 2, **kwargs)
    leaf = torch.tensor(x, requires_grad=True)
    y = ap.pool(leaf, reduction, 2, **kwargs | {"mask": torch.from_numpy(mask)})
    g = np.round(generator.standard_normal(wanted.shape) * 8)  # whole numbers add up exactly
    y.backward(torch.from_numpy(g))
    np.testing.assert_array_equal(leaf.grad.numpy(), pullback(g))
    both = torch.func.vmap(lambda t, m: ap.pool(t[None], reduction, 2, **kwargs | {"mask": m[None]})[0])
    if 0 not in axes:
        np.testing.assert_array_equal(both(leaf, torch.from_numpy(mask)).detach().numpy(), wanted)


@pytest.mark.parametrize("recorded", [False, True])
def test_values_that_rounding_makes_equal_are_not(recorded):
    x, mask = np.array([[-1e300, -1e299], [-INF, -1e300]]), np.array([[True, True], [False, True]])
    kwargs = {"mask": mask, "return_indices": True, "dtype": "float16"}
    wanted = ap.pool(x, "max", 2, axes=1, **kwargs)
    leaf = torch.from_numpy(x).requires_grad_(recorded)
    y, indices = ap.pool(leaf, "max", 2, axes=1, **kwargs | {"mask": torch.from_numpy(mask), "dtype": torch.float16})
    assert wanted[1].tolist() == indices.tolist() == [[1], [1]]
    assert tolerance.same_bits(y.detach().numpy(), wanted[0])
    if recorded:
        y.sum().backward()
        assert leaf.grad.tolist() == [[0, 1], [0, 1]]


BAD = {
    "None in a list": [None],
    "a set": {1, 2},
    "an object": object(),
    "Ellipsis": ...,
    "a dtype": torch.float32,
    "a module": math,
    "text": "a",
    "ragged": [1, [2]],
    "complex": torch.ones(4, dtype=torch.complex64),
    "float8": torch.ones(4, dtype=torch.float8_e4m3fn),
    "sparse": torch.ones(4, dtype=torch.bool).to_sparse(),
    "recorded numbers": [torch.ones((), requires_grad=True)] * 4,
    "another length": torch.ones(5, dtype=torch.uint8),
}


def message(error, *args, **kwargs):
    with pytest.raises(error) as caught:
        ap.pool(*args, **kwargs)
    assert type(caught.value) in (TypeError, ValueError)
    return str(caught.value)


@pytest.mark.parametrize("reduction", ["mean", "median"])
@pytest.mark.parametrize("name", ["mask", "weights", "empty"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused_in_the_same_words(value, name, reduction):
    """PyTorch raised a RuntimeError of its own for tensors that record a gradient, and for bfloat16."""
    x, call = torch.ones(1, 2, 4), (reduction, 2)
    words = message((TypeError, ValueError), x, *call, axes=2, **{name: value})
    assert name in words
    for other in (x.clone().requires_grad_(), x.bfloat16()):
        assert message((TypeError, ValueError), other, *call, axes=2, **{name: value}) == words
    if not isinstance(value, torch.Tensor) and "recorded" not in words and "requires_grad" not in words:
        assert message((TypeError, ValueError), x.numpy(), *call, axes=2, **{name: value}) == words


@pytest.mark.parametrize("weights", [torch.ones(4, dtype=torch.complex64), torch.ones(4, dtype=torch.bool)])
def test_weights_are_real_numbers(weights):
    kind = str(weights.dtype).removeprefix("torch.")
    for x in (torch.ones(4), torch.ones(4, requires_grad=True), torch.ones(4, dtype=torch.bfloat16)):
        with pytest.raises(TypeError, match=f"weights must be real numbers, got dtype {kind} "):
            ap.pool(x, "sum", 2, weights=weights)


@pytest.mark.parametrize("weights", [
    np.ones(4, np.longdouble), np.ones(4, ">f4"), np.arange(4.0)[::-1], np.arange(4, dtype=np.uint16), [1, 2, 3, 4],
    torch.arange(4).to(torch.uint16), torch.arange(4).bfloat16(),
])  # fmt: skip
def test_weights_of_every_kind(weights):
    x = np.arange(4.0)
    array = weights.double().numpy() if isinstance(weights, torch.Tensor) else weights
    got = ap.pool(torch.from_numpy(x).requires_grad_(), "sum", 2, weights=weights)
    assert tolerance.same_bits(got.detach().numpy(), ap.pool(x, "sum", 2, weights=array))


@pytest.mark.parametrize("empty", [1e300, -1e300, 3])
@pytest.mark.parametrize("reduction", ["mean", "max", "median"])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_an_empty_value_is_rounded(name, reduction, empty):
    wanted = empty if empty == 3 else math.copysign(INF, empty)
    for recorded in (False, True):
        x = torch.ones(4, dtype=getattr(torch, name), requires_grad=recorded)
        y = ap.pool(x, reduction, 2, mask=[False, False, True, False], empty=empty)
        assert y.dtype is x.dtype
        assert y.tolist() == [wanted, 1]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["bfloat16", "float32"])
@pytest.mark.parametrize("reduction", ["any", "all"])
def test_any_and_all(reduction, name, recorded):
    x, mask = data((7, 9))
    x = np.nan_to_num(np.round(x), nan=NAN)
    kwargs = {"axes": (2, 3), "padding": 1, "nan": "omit", "empty": True, "return_valid": True}
    wanted = ap.pool(x, reduction, 2, mask=mask, **kwargs)
    t = torch.from_numpy(x).to(getattr(torch, name)).requires_grad_(recorded)
    got = ap.pool(t, reduction, 2, mask=torch.from_numpy(mask), **kwargs)
    for a, b in zip(wanted, got, strict=True):
        assert tolerance.same_bits(a, b.numpy())
    with pytest.raises(ValueError, match="mask must leave every window some input, or empty= give a value"):
        ap.pool(t, reduction, 2, mask=torch.zeros(9, dtype=torch.bool))


@pytest.mark.parametrize("tensors", [False, True])
def test_explain_of_integers_with_weights_tells_of_floats(tensors):
    """What is not computed is checked and resolved as what is."""
    x, weights = np.arange(24).reshape(2, 1, 12), np.ones(12)
    if tensors:
        x, weights = torch.from_numpy(x), torch.from_numpy(weights)
    e = ap.explain(ap.adaptive_avg_pool1d, x, 4, weights=weights)
    assert (e.dtype, e.result_dtype) == ("int64", "float64")
    integer = torch.int64 if tensors else "int64"
    for look in (ap.adaptive_avg_pool1d, functools.partial(ap.explain, ap.adaptive_avg_pool1d)):
        with pytest.raises(TypeError, match="dtype must be a float or hold every float64 value, got int64"):
            look(x, 4, weights=weights, dtype=integer)
        with pytest.raises(ValueError, match=r"mask must broadcast to the shape of x, got shape \(3,\)"):
            look(x, 4, mask=weights[:3] > 0)


def test_explain_reads_nothing_of_integers_with_weights():
    with pytest.raises(ValueError, match="weights need a sum or mean, got reduction 'any'"):
        ap.explain(ap.pool, np.zeros((8, 1 << 20), np.int8), "any", 2, axes=1, weights=np.ones(1))
