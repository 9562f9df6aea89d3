"""Tensors through every function: PyTorch's results, memory formats, dtypes and gradients, without a copy."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import anypool as ap

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional
from anypool.tensors.spec import channels_last  # noqa: E402

RANKS = (1, 2, 3)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
by_rank = pytest.mark.parametrize("rank", RANKS)
by_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
# family, arguments for every rank, and whether PyTorch's result is exact
CALLS = [
    ("max_pool", (3, 2, 1), True),
    ("max_pool", (2, 1, 0, 3), True),
    ("avg_pool", (3, 2, 1), False),
    ("avg_pool", (2, None, 0, True, False), False),
    ("adaptive_max_pool", (4,), True),
    ("adaptive_avg_pool", (3,), False),
    ("adaptive_avg_pool", (1,), False),
]


def named(module, family, rank):
    return getattr(module, f"{family}{rank}d")


def data(rank, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, *(13, 10, 9)[:rank], generator=generator, dtype=torch.float64).to(dtype)


def close(got, expected):
    """Of halves PyTorch's own sums may be off by more than one rounding, so they compare loosely."""
    torch.testing.assert_close(got, expected)


def lying(x):
    """The same values in other memory: every kind of strides that PyTorch has."""
    yield "contiguous", x
    if x.ndim in (4, 5):
        form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        yield "channels last", x.to(memory_format=form)
    yield "reversed axes", x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    wide[..., ::2] = x
    yield "every second", wide[..., ::2]
    shifted = torch.full((x.numel() + 3,), float("nan"), dtype=x.dtype)
    shifted[3:] = x.reshape(-1)
    yield "behind an offset", shifted[3:].view(x.shape)


@by_rank
@by_float
def test_like_pytorch(rank, dtype):
    """Values, gradients, dtypes and memory formats, however the input lies."""
    x = data(rank, dtype)
    for (family, args, exact), (name, lies) in itertools.product(CALLS, lying(x)):
        if not (family == "avg_pool" and rank == 3 and dtype in HALVES):  # PyTorch has no such kernel
            mine, theirs = (lies.detach().requires_grad_() for _ in range(2))
            got, expected = named(ap, family, rank)(mine, *args), named(F, family, rank)(theirs, *args)
            what = f"{family}{rank}d {args} {name}"
            assert got.dtype == expected.dtype, what
            assert got.shape == expected.shape, what
            form = torch.channels_last if rank == 2 else torch.channels_last_3d
            if family != "max_pool" and rank == 3:  # PyTorch keeps the memory format of some of them
                assert got.is_contiguous(memory_format=form if name == "channels last" else torch.contiguous_format), (
                    what
                )
            else:
                assert got.is_contiguous() == expected.is_contiguous(), what
                assert rank == 1 or got.is_contiguous(memory_format=form) == expected.is_contiguous(memory_format=form)
            if dtype in HALVES and not exact:  # PyTorch adds some of them up in the half itself
                expected = named(F, family, rank)(theirs.double(), *args).to(dtype)
            torch.testing.assert_close(got, expected, **({"rtol": 0, "atol": 0} if exact else {}))
            g = torch.linspace(-1, 1, got.numel()).to(dtype).view(got.shape)
            got.backward(g)
            expected.backward(g)
            torch.testing.assert_close(mine.grad, theirs.grad)
            with torch.inference_mode():
                assert torch.equal(named(ap, family, rank)(lies, *args), got), what


@by_rank
def test_indices_like_pytorch(rank):
    x = torch.randint(0, 4, (2, 3, *(9, 8, 7)[:rank])).float()
    for family, args in (("max_pool", (3, 2, 1)), ("adaptive_max_pool", (4,)), ("max_pool", (2, 2, 0, 2))):
        for _, lies in lying(x):
            for grad in (False, True):
                got = named(ap, family, rank)(lies.detach().requires_grad_(grad), *args, return_indices=True)
                expected = named(F, family, rank)(lies, *args, return_indices=True)
                for a, b in zip(got, expected, strict=True):
                    assert torch.equal(a, b)
                    assert a.dtype == b.dtype
                assert got[0].requires_grad is grad


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float16", "bfloat16"]
)
@pytest.mark.parametrize("reduction", ["max", "min", "sum", "mean", "lp", "logsumexp"])
def test_like_numpy(dtype, reduction):
    """The same bits as for an array, and the same dtype; bfloat16 needs no ml_dtypes."""
    x = torch.randint(-5 if "u" not in dtype else 0, 6, (2, 3, 9, 8)).to(getattr(torch, dtype))
    for kwargs in ({"kernel_size": (3, 3), "padding": 1}, {"kernel_size": 2, "axes": (1, 3)}):
        got = ap.pool(x, reduction, **kwargs)
        if dtype == "bfloat16":
            close(got.float(), ap.pool(x.float(), reduction, **kwargs).bfloat16().float())
            continue
        expected = ap.pool(x.numpy(), reduction, **kwargs)
        if reduction == "sum" and dtype == "uint8":
            assert (got.dtype, expected.dtype) == (torch.int64, np.uint64)  # PyTorch can do little with uint64
            expected = expected.astype(np.int64)
        assert got.numpy().dtype == expected.dtype
        assert np.array_equal(got.numpy(), expected)


def test_every_function_takes_tensors():
    """Tensors in, tensors out; names that take arrays take tensors."""
    x = data(2)
    y, indices = ap.max_pool2d(x, 2, return_indices=True)
    results = {
        "pool": ap.pool(x, "max", 2, axes=-1),
        "global_avg_pool": ap.global_avg_pool(x),
        "global_max_pool": ap.global_max_pool(x, keepdims=False),
        "lp_pool2d": ap.lp_pool2d(x, 2, 3),
        "max_unpool2d": ap.max_unpool2d(y, indices, 2, output_size=x.shape),
        "fractional_max_pool2d": ap.fractional_max_pool2d(x, 2, output_ratio=0.5),
        "channels_last": ap.max_pool2d(x, 2, data_format="channels_last"),
        "padding": ap.avg_pool2d(x, 3, padding="same"),
    }
    assert all(type(r) is torch.Tensor for r in results.values())
    assert torch.equal(results["global_max_pool"], x.amax((2, 3)))
    close(results["global_avg_pool"], x.mean((2, 3), keepdim=True))
    assert torch.equal(
        results["channels_last"], torch.from_numpy(ap.max_pool2d(x.numpy(), 2, data_format="channels_last"))
    )
    assert torch.equal(results["max_unpool2d"], F.max_unpool2d(y, indices, 2, output_size=x.shape))


@pytest.mark.parametrize("rank", [2, 3])
def test_fractional_draws_as_pytorch(rank):
    x = data(rank)
    for kwargs in ({"output_size": 4}, {"output_ratio": 0.5}, {"output_size": 4, "return_indices": True}):
        torch.manual_seed(5)
        got = named(ap, "fractional_max_pool", rank)(x, 2, **kwargs)
        torch.manual_seed(5)
        theirs = {k: (v,) * rank if k == "output_ratio" else v for k, v in kwargs.items()}
        expected = named(F, "fractional_max_pool", rank)(x, 2, **theirs)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)
    generator = torch.Generator().manual_seed(9)
    first = named(ap, "fractional_max_pool", rank)(x, 2, output_size=4, rng=generator)
    again = named(ap, "fractional_max_pool", rank)(x, 2, output_size=4, rng=generator.manual_seed(9))
    assert torch.equal(first, again)


def test_no_copy_of_the_input():
    """A broadcast input of 64 GiB is read where it lies: one plane."""
    x = torch.ones(1, 1, 64, 64).expand(1 << 14, 256, 64, 64)
    assert ap.max_pool2d(x[:2], 64).shape == (2, 256, 1, 1)
    assert ap.global_avg_pool(x[:64]).sum() == 64 * 256
    assert ap.explain(ap.max_pool2d, x, 64).backend == "native"


def test_first_calls_import_no_compiler():
    """The compiler, and SymPy, which it needs, take seconds: nobody waits for them who compiles nothing."""
    code = """
import sys, torch
known = set(sys.modules)
import anypool as ap, anypool.nn, anypool.torch
x = torch.ones(1, 3, 8, 8, requires_grad=True)
for y in (ap.max_pool2d(x, 2), ap.avg_pool2d(x, 3), ap.pool(x, "median", (2, 2)), ap.nn.MaxPool2d(2)(x),
          ap.pool_tokens(x[0], "mean")):
    y.sum().backward()
model = torch.nn.Sequential(torch.nn.MaxPool2d(2))
anypool.torch.accelerate(model)
model(x)
print(sorted({m for m in sys.modules if m in ("torch._dynamo", "sympy")} - known))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("ndim", [4, 5])
def test_memory_format_by_the_rule_of_pytorch(ndim):
    rng = np.random.default_rng(ndim)
    memory = torch.empty(10_000)
    last = torch.channels_last if ndim == 4 else torch.channels_last_3d
    found = 0
    for _ in range(2000):
        shape = rng.choice([0, 1, 1, 2, 3], ndim).tolist()
        steps = rng.choice([0, 1, 2, 3, 6, 9, 18], ndim).tolist()
        if rng.random() < 0.5:
            steps = list(torch.empty(shape).contiguous(memory_format=last).stride())
            steps[rng.integers(ndim)] += int(rng.integers(0, 2))
        x = memory.as_strided(shape, steps)
        expected = torch._prims_common.suggest_memory_format(x) is last
        assert channels_last(x) == expected, (shape, steps)
        found += expected
    assert found > 50


def test_misaligned_memory():
    """Bytes read as floats may begin anywhere."""
    raw = torch.frombuffer(bytearray(np.arange(65, dtype=np.float32).tobytes()), dtype=torch.uint8)
    x = torch.frombuffer(bytearray(b"\0" + raw.numpy().tobytes()), dtype=torch.float32, offset=1, count=64).view(
        1, 8, 8
    )
    assert x.data_ptr() % 4
    assert torch.equal(ap.max_pool2d(x, 2), F.max_pool2d(x.clone(), 2))
    y = x.detach().requires_grad_()
    ap.max_pool2d(y, 2, return_indices=True)[0].sum().backward()
    assert y.grad.sum() == 16


def test_views_that_are_not_their_memory():
    """A negative bit, or zeros without memory, are values too."""
    x = torch.randn(1, 2, 6, 6)
    negated = torch.complex(torch.zeros_like(x), x).conj().imag
    assert negated.is_neg()
    assert torch.equal(ap.max_pool2d(negated, 2), F.max_pool2d(-x, 2))
    assert not ap.max_pool2d(torch._efficientzerotensor((1, 2, 6, 6)), 2).any()


def test_subclasses_and_modes_are_asked():
    """A class with its own ``__torch_function__`` keeps its type; a mode sees the call."""

    class Named(torch.Tensor):
        pass

    assert type(ap.max_pool2d(torch.randn(1, 2, 6, 6).as_subclass(Named), 2)) is Named

    class Watch(torch.overrides.TorchFunctionMode):
        seen = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            Watch.seen += 1
            return function(*args, **(kwargs or {}))

    with Watch():
        ap.max_pool2d(torch.randn(1, 2, 6, 6), 2)
    assert Watch.seen
    with torch.device("cpu"):
        assert ap.max_pool2d(torch.randn(1, 2, 6, 6), 2).shape == (1, 2, 3, 3)


def test_classes_that_wrap_tensors():
    """One that knows PyTorch's operators gets those; what PyTorch has not gets ours."""
    from torch.testing._internal.two_tensor import TwoTensor

    a, b = data(2), data(2, seed=1)
    both = ap.max_pool2d(TwoTensor(a, b), 2)
    assert type(both) is TwoTensor
    assert torch.equal(both.b, F.max_pool2d(b, 2))
    assert torch.equal(ap.pool(TwoTensor(a, b), "min", (2, 2)).a, -F.max_pool2d(-a, 2))


def test_a_backend_that_is_asked_for():
    """What was planned without the choice does not serve with it."""
    from anypool import backends

    x = data(2)
    expected = ap.max_pool2d(x, 2)
    with backends.use("reference"):
        assert ap.explain(ap.max_pool2d, x, 2).backend == "torch"
        assert torch.equal(ap.max_pool2d(x, 2), expected)
        assert "reference" not in str(ap.explain(ap.max_pool2d, x, 2).notes)
    with backends.use("native"), pytest.raises(NotImplementedError, match="more than 3 pooled axes"):
        ap.pool(torch.zeros(2, 2, 2, 2), "max", 2)
    assert ap.explain(ap.max_pool2d, x, 2).backend == "native"


def test_out():
    x = data(2)
    expected, out = ap.max_pool2d(x, 2), torch.empty(2, 5, 6, 5)
    assert ap.max_pool2d(x, 2, out=out) is out
    assert torch.equal(out, expected)
    turned = torch.empty(5, 6, 5, 2).permute(3, 0, 1, 2)
    assert torch.equal(ap.max_pool2d(x, 2, out=turned), expected)
    line = torch.zeros(1, 1, 12)
    for bad, match in (
        (torch.empty(2, 5, 6, 6), "shape"),
        (out.double(), "dtype"),
        (torch.empty(2, 5, 6, 5, device="meta"), "on the CPU"),
        (torch.empty(1, 1, 6, 5).expand(2, 5, 6, 5), "overlap"),
    ):
        with pytest.raises(ValueError, match=match):
            ap.max_pool2d(x, 2, out=bad)
    with pytest.raises(ValueError, match="overlap x"):
        ap.max_pool1d(line, 2, out=line[..., 3:9])
    with pytest.raises(ValueError, match="gradient"):
        ap.max_pool2d(x.requires_grad_(), 2, out=out)
    with pytest.raises(TypeError, match="out must be a tensor"):
        ap.max_pool2d(x.detach(), 2, out=out.numpy())


def test_out_beside_indices():
    x = data(2)
    out = torch.full((2, 5, 6, 5), torch.nan)
    y, indices = ap.max_pool2d(x, 2, return_indices=True, out=out)
    wanted = F.max_pool2d(x, 2, return_indices=True)
    assert y is out
    assert torch.equal(out, wanted[0])
    assert torch.equal(indices, wanted[1])


def test_dtype():
    x = data(2, torch.float16)
    assert ap.avg_pool2d(x, 2, dtype=torch.float32).dtype == torch.float32
    assert ap.avg_pool2d(x, 2, dtype=np.float64).dtype == torch.float64
    assert ap.avg_pool2d(x, 2, dtype=torch.bfloat16).dtype == torch.bfloat16
    leaf = x.clone().requires_grad_()
    ap.avg_pool2d(leaf, 2, dtype=torch.float32).sum().backward()
    assert leaf.grad.dtype == torch.float16
    assert leaf.grad[0, 0, 0, 0] == 0.25
    leaf.grad = None
    ap.max_pool2d(leaf, 2, dtype=torch.float32).sum().backward()
    assert leaf.grad.sum(dtype=torch.float64) == 2 * 5 * 6 * 5


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: ap.max_pool2d(x, 0), ValueError, r"kernel_size must be >= 1, got 0 \(x: \(2, 5, 13, 10\)\)"),
        (lambda x: ap.max_pool2d(x, True), TypeError, "kernel_size must be an int, got True"),
        (lambda x: (ap.max_pool2d(x, 1), ap.max_pool2d(x, 1.0)), TypeError, "kernel_size must be an int, got 1.0"),
        (lambda x: ap.max_pool2d(x[0, 0], 2), ValueError, "takes 3 or 4 dimensions, got 2"),
        (lambda x: ap.max_pool2d(x.cfloat(), 2), TypeError, "got torch.complex64"),
        (lambda x: ap.max_pool2d(x, 2, dtype="text"), TypeError, "dtype must be"),
        (lambda x: ap.avg_pool2d(x, 2, divisor_override=0), ValueError, "divisor_override must not be 0"),
        (lambda x: ap.pool(x, "medain", 2), ValueError, "reduction must be one of"),
        (lambda x: ap.vjp(ap.max_pool2d, x.int(), 2), TypeError, "vjp needs floating-point"),
        (lambda x: ap.vjp(ap.max_pool2d, x, 2)[1](x), ValueError, "grad_y must be a tensor of the result's shape"),
        (lambda x: ap.pool(x.to_sparse(), "max", (2, 2)), NotImplementedError, "which our kernels do not read"),
        (
            lambda x: ap.avg_pool1d(x[0].to_sparse(), 2, divisor_override=3),
            NotImplementedError,
            r"x is a torch.sparse_coo tensor, which our kernels do not read; PyTorch's avg_pool1d takes no divisor",
        ),
        (
            lambda x: ap.global_max_pool(x[..., None, None].to_sparse()),
            NotImplementedError,
            "which our kernels do not read; PyTorch pools no 4 axes at once",
        ),
        (
            lambda x: ap.max_pool2d(x, 2, out=torch.empty(2, 5, 6, 5, requires_grad=True)),
            ValueError,
            r"out must not require a gradient \(x: \(2, 5, 13, 10\)\)",
        ),
        (
            lambda x: ap.max_pool2d(x.to("meta"), 2, out=torch.empty(2, 5, 6, 5)),
            ValueError,
            r"out needs plain tensors of the CPU \(x: \(2, 5, 13, 10\) on meta\)",
        ),
        (
            lambda x: ap.fractional_max_pool2d(x, 2, output_size=2, _random_samples=torch.ones(2, 5, 2).double()),
            TypeError,
            "_random_samples must have the dtype of x, torch.float32, got torch.float64",
        ),
        (
            lambda x: ap.fractional_max_pool2d(x, 2, output_size=2, _random_samples=torch.ones(2, 5)),
            ValueError,
            r"_random_samples must be a tensor of shape \(2, 5, 2\), got \(2, 5\)",
        ),
        (
            lambda x: ap.vjp(ap.avg_pool2d, x, 2)[1](torch.ones(2, 5, 6, 5).cfloat()),
            TypeError,
            r"grad_y must be real numbers, got torch.complex64 \(x: \(2, 5, 13, 10\)\)",
        ),
        (
            lambda x: ap.vjp(ap.avg_pool2d, x, 2)[1](torch.ones(2, 5, 6, 5), out=x.double()),
            ValueError,
            "out must be of dtype torch.float32 and require no gradient, got torch.float64",
        ),
        (
            lambda x: ap.vjp(ap.avg_pool2d, x, 2)[1](torch.ones(2, 5, 6, 5), out=x.requires_grad_()),
            ValueError,
            r"out must be of dtype torch.float32 and require no gradient, got torch.float32, requires_grad=True \(x: ",
        ),
        (
            lambda x: ap.vjp(ap.avg_pool2d, x, 2)[1](torch.ones(2, 5, 6, 5), out=x[0]),
            ValueError,
            r"out must be a tensor of the shape of x, \(2, 5, 13, 10\) on cpu, got \(5, 13, 10\) on cpu",
        ),
        (
            lambda x: ap.max_unpool2d(x, torch.zeros(x.shape, dtype=torch.int64, device="meta"), 2),
            ValueError,
            r"indices must have the shape of x and be on cpu, got \(2, 5, 13, 10\) on meta \(x: ",
        ),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call(data(2))


@pytest.mark.parametrize("norm_type", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_terms_of_lp_pool_that_cancel_have_gradient_zero(norm_type, dtype, backend):
    x = torch.tensor([[[-3.0, 3, 2, 5, 0, 0]]], dtype=dtype, requires_grad=True)
    expected = x.detach().clone().requires_grad_()
    F.lp_pool1d(expected, norm_type, 2).sum().backward()
    ap.lp_pool1d(x, norm_type, 2).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad, atol=1e-2 if dtype == torch.float16 else 1e-6, rtol=0)
    assert x.grad[0, 0, [0, 1, 4, 5]].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("norm_type", [1, 2, 3, 2.5])
def test_nan_that_no_window_sees_has_gradient_zero(norm_type, backend):
    x = torch.tensor([[[[1.0, 2, np.nan], [3, 4, np.nan], [np.nan] * 3]]], requires_grad=True)
    ap.lp_pool2d(x, norm_type, 2).sum().backward()
    assert (x.grad[..., :2, :2] > 0).all()
    assert (x.grad[..., 2] == 0).all()
    assert (x.grad[..., 2, :] == 0).all()


@pytest.mark.parametrize("norm_type", [2, 3, 2.5, 101])
@pytest.mark.parametrize("reduction", ["lp", "lp_pool"])
def test_powers_that_overflow_have_gradient_zero(reduction, norm_type, backend):
    x = torch.tensor([[[np.inf, 2, -np.inf, 1, 1e30, 1, 0.5, 0.4]]], requires_grad=True)
    if reduction == "lp":
        ap.pool(x, "lp", 2, axes=2, norm_type=norm_type).sum().backward()
    else:
        ap.lp_pool1d(x, norm_type, 2).sum().backward()
    assert (x.grad[0, 0, :6] == 0).all()
    assert (x.grad[0, 0, 6:] > 0).all()


def test_vjp_and_explain():
    x = data(2)
    y, pullback = ap.vjp(ap.max_pool2d, x, 2)
    assert not y.requires_grad
    expected = ap.vjp(ap.max_pool2d, x.numpy(), 2)[1](np.ones(y.shape, np.float32))
    assert np.array_equal(pullback(torch.ones_like(y)).numpy(), expected)
    y, pullback = ap.vjp(ap.max_unpool2d, *ap.max_pool2d(x, 2, return_indices=True), 2)
    assert pullback(torch.ones_like(y)).sum() == 2 * 5 * 6 * 5
    e = ap.explain(ap.max_pool2d, x, 3, 2, 1)
    assert (e.backend, e.output_shape, e.dtype) == ("native", (2, 5, 7, 5), "float32")
    assert ap.explain(ap.max_pool2d, x.numpy(), 3, 2, 1).kernel == e.kernel
    assert ap.explain(ap.lp_pool2d, x, float("inf"), 2).backend == "native"
    assert ap.explain(ap.max_pool2d, x.to("meta"), 2).backend == "operator"
    assert "torch.ops.anypool.pool" in str(ap.explain(ap.max_pool2d, x.to("meta"), 2))
    assert ap.explain(ap.max_pool2d, x, 2, empty=0.0).kernel == ap.explain(ap.max_pool2d, x, 2).kernel
    e = ap.explain(ap.max_pool2d, x, 2, 1, 2, empty=0.0)
    assert (e.backend, e.output_shape) == ("reference", (2, 5, 16, 13))
    assert e.notes[0] == "native: kernels expect an input in every window"
    e = ap.explain(ap.pool, torch.zeros(2, 2, 2, 2), "max", 2)
    assert e.backend == "torch"
    assert "more than 3 pooled axes" in e.notes[0]


def test_what_no_kernel_serves_runs_in_torch():
    """Four pooled axes, and a backend that was asked for: the same results, the same gradients."""
    x = torch.randint(-3, 4, (3, 4, 4, 4, 4)).double().requires_grad_()
    for reduction in ("max", "min", "sum", "mean", "lp", "logsumexp"):
        y = ap.pool(x, reduction, (2, 2, 2, 2))
        expected = ap.pool(x.detach().numpy(), reduction, (2, 2, 2, 2))
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12)
        g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        grad = ap.vjp(ap.pool, x.detach().numpy(), reduction, (2, 2, 2, 2))[1](g.numpy())
        np.testing.assert_allclose(torch.autograd.grad(y, x, g)[0].numpy(), grad, rtol=1e-11, atol=1e-12)
    got = ap.pool(x.detach(), "max", (2, 2, 2, 2), return_indices=True)[1]
    assert np.array_equal(got.numpy(), ap.pool(x.detach().numpy(), "max", (2, 2, 2, 2), return_indices=True)[1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("reduction", ["max", "min", "sum", "mean", "lp", "logsumexp"])
def test_torch_backend_agrees(reduction, dtype):
    """The pass in torch operations against the kernels, NaNs and ties included."""
    from anypool.backends import torch as reference
    from anypool.operation import resolve

    x = torch.randint(0, 3, (2, 3, 9, 8)).to(getattr(torch, dtype))
    if x.is_floating_point():
        x[0, 0, ::3, ::2] = float("nan")
        x[1, 1, :4, :4] = -float("inf")
    for kwargs in ({"stride": 2, "padding": 1}, {"dilation": 2, "ceil_mode": True}, {"stride": 1}):
        call = ap.pool.call(x.numpy(), reduction, (3, 2), **kwargs, return_indices=reduction in ("max", "min"))
        y, winners = reference.run(resolve(call.x, call.what).job, x)
        expected = ap.operation.run(call)
        if winners is not None:
            expected, places = expected
            assert np.array_equal(winners.numpy(), places)
        assert str(y.dtype) == f"torch.{expected.dtype}"
        tolerance = 0 if reduction in ("max", "min") else 2e-3 if dtype == "float16" else 2e-6
        np.testing.assert_allclose(y.numpy(), expected, rtol=tolerance, atol=tolerance)


@by_float
def test_empty_batches(dtype):
    for shape in ((0, 3, 6, 6), (2, 0, 6, 6)):
        x = torch.zeros(shape, dtype=dtype, requires_grad=True)
        for y in (ap.max_pool2d(x, 2), ap.avg_pool2d(x, 2), ap.lp_pool2d(x, 2, 2), ap.adaptive_max_pool2d(x, 3)):
            assert y.shape == (*shape[:2], 3, 3)
            (grad,) = torch.autograd.grad(y.sum(), x)
            assert grad.shape == shape


@by_float
@pytest.mark.parametrize("where", ["cpu", "recorded", "meta"])
def test_no_output_at_all(where, dtype):
    """Adaptive windows may be none."""
    x = torch.ones(2, 3, 8, dtype=dtype, device="meta" if where == "meta" else "cpu", requires_grad=where == "recorded")
    y, indices = ap.adaptive_max_pool1d(x, 0, return_indices=True)
    assert (y.shape, y.dtype, y.device) == ((2, 3, 0), dtype, x.device)
    assert (indices.shape, indices.dtype) == ((2, 3, 0), torch.int64)
    if where == "recorded":
        assert not torch.autograd.grad(y.sum(), x)[0].any()


def test_a_gradient_that_is_recorded_inside_of_a_transform():
    """What is constant for the transform may record a gradient of its own."""
    x = data(2).requires_grad_()
    for function in (ap.max_pool2d, ap.avg_pool2d):
        scale = function(x, 2).sum()
        (wanted,) = torch.autograd.grad(scale, x)
        found = torch.func.grad(lambda t, f=function: (t * f(x, 2).sum()).sum())(torch.ones(3))
        close(found, scale.detach().expand(3))
        close(torch.autograd.grad(found[0], x)[0], wanted)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("size", [0, (0, 2, 0)])
def test_gradients_of_no_output(backend, size):
    x = torch.ones(1, 3, 4, 4, 9, requires_grad=True)
    with ap.backends.use(backend):
        ap.adaptive_avg_pool3d(x, size).sum().backward()
    assert x.grad.shape == x.shape
    assert not x.grad.any()


@by_float
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_halves_without_data(rank, dtype):
    """PyTorch has no answer to whether autocast is on for "meta"."""
    x = torch.empty((1, 2) + (6,) * rank, dtype=dtype, device="meta")
    for name in ("max", "avg"):
        y = getattr(ap, f"{name}_pool{rank}d")(x, 2)
        assert (y.shape, y.dtype, y.device) == ((1, 2) + (3,) * rank, dtype, x.device)


# ---- autocast, threads, processes ------------------------------------------------------------------------------------


@by_rank
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_like_pytorch(rank, dtype):
    """PyTorch computes 3-D poolings of halves in float32 under autocast, and only those."""
    x = data(rank, dtype)
    for family, args in (("max_pool", (2,)), ("avg_pool", (2,)), ("lp_pool", (2, 2)), ("adaptive_avg_pool", (2,)),
                         ("adaptive_max_pool", (2,))):  # fmt: skip
        for grad in (False, True):
            leaf = x.clone().requires_grad_(grad)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got, expected = named(ap, family, rank)(leaf, *args), named(F, family, rank)(leaf, *args)
                explained = ap.explain(named(ap, family, rank), leaf, *args)
            assert got.dtype == expected.dtype, family
            assert explained.result_dtype == str(got.dtype).removeprefix("torch."), family
            if family == "lp_pool" and rank == 3:  # PyTorch takes the powers in bfloat16 even so
                expected = named(F, family, rank)(x.float(), *args)
            close(got, expected)
            if grad:
                got.sum().backward()
                assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_of_what_is_not_computed(dtype):
    """A fake tensor is told the same dtypes, and `explain` the kernel of float32."""
    from torch._subclasses import FakeTensorMode

    x = data(3, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name, args in (("max_pool3d", (2,)), ("avg_pool3d", (2,)), ("lp_pool3d", (2, 2))):
            with FakeTensorMode() as mode:
                fake = getattr(ap, name)(mode.from_tensor(x), *args)
            real = getattr(ap, name)(x, *args)
            assert (fake.dtype, fake.shape) == (real.dtype, real.shape) == (torch.float32, (2, 5, 6, 5, 4))
            kernel = ap.explain(getattr(ap, name), x, *args).kernel
            assert kernel == ap.explain(getattr(ap, name), x.float(), *args).kernel
    assert ap.max_pool3d(x, 2).dtype is dtype


@pytest.mark.parametrize("wanted", [1, 2])
def test_threads_of_pytorch(wanted):
    """`torch.set_num_threads` is obeyed: the pool is PyTorch's."""
    from anypool.backends.native import info

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(wanted)
        assert info()["threads"] == wanted
        assert info()["thread_pool"] == "pytorch"
        assert ap.explain(ap.max_pool2d, torch.empty(8, 64, 112, 112), 2).threads == wanted
    finally:
        torch.set_num_threads(before)


def test_same_bits_with_any_threads():
    x = torch.randn(4, 32, 61, 67)
    before = torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        leaf = x.clone().requires_grad_()
        y = ap.avg_pool2d(ap.max_pool2d(leaf, 3, 2, 1), 3, 2)
        (grad,) = torch.autograd.grad(y, leaf, torch.linspace(-1, 1, y.numel()).view(y.shape))
        found.append((y, grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(one, found[0], strict=True))


def test_many_python_threads():
    """Calls at once from many threads, with gradients, in PyTorch's pool."""
    x = torch.randn(2, 16, 64, 64)
    expected = F.max_pool2d(x, 3, 2, 1)
    wrong = []

    def work():
        for _ in range(20):
            leaf = x.clone().requires_grad_()
            y = ap.max_pool2d(leaf, 3, 2, 1)
            y.sum().backward()
            if not torch.equal(y, expected) or leaf.grad.sum() != y.numel():
                wrong.append(threading.get_ident())

    workers = [threading.Thread(target=work) for _ in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


LOADER = """
import torch, anypool as ap
x = torch.randn(4, 16, 64, 64)
expected = ap.max_pool2d(x, 3, 2, 1)      # the parent's threads are at work before it forks

class Pooled(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return ap.max_pool2d(x, 3, 2, 1)

for batch in torch.utils.data.DataLoader(Pooled(), batch_size=2, num_workers=2, multiprocessing_context="fork"):
    assert all(torch.equal(b, expected) for b in batch)
assert torch.equal(ap.max_pool2d(x, 3, 2, 1), expected)
print("done")
"""


def test_fork_of_a_data_loader():
    """Workers are forked after the pool has run, and pool as well."""
    result = subprocess.run([sys.executable, "-c", LOADER], capture_output=True, text=True, timeout=120)
    assert result.stdout == "done\n", result.stderr


def test_one_openmp_runtime():
    """No library besides PyTorch's own brings one."""
    code = (
        "import torch, anypool as ap; ap.max_pool2d(torch.randn(8, 64, 64, 64), 2)\n"
        "names = {line.split()[-1].rsplit('/', 1)[-1] for line in open('/proc/self/maps')}\n"
        "print(sum('gomp' in n or 'iomp' in n or 'libomp' in n for n in names))"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc/self/maps is Linux's")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "1", result.stdout + result.stderr


def test_import_does_not_import_torch():
    code = "import sys, anypool, numpy; anypool.max_pool1d(numpy.ones((1, 4)), 2); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "False\n", result.stderr


# ---- what is saved ---------------------------------------------------------------------------------------------------


def saved(function):
    """Bytes of all memory that autograd keeps alive for the backward pass."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function()
    return sum(kept.values()), y


@by_rank
@by_float
def test_saved_bytes(rank, dtype):
    """For max one byte for each output, for averages nothing; PyTorch keeps the input and int64 indices."""
    x = data(rank, dtype).requires_grad_()
    for family, args, kind in (
        ("max_pool", (3, 2, 1), "max"),
        ("adaptive_max_pool", (4,), "max"),
        ("avg_pool", (3, 2, 1), "avg"),
        ("adaptive_avg_pool", (3,), "avg"),
    ):
        mine, y = saved(lambda f=family, a=args: named(ap, f, rank)(x, *a))
        assert mine == (y.numel() if kind == "max" else 0), family
        if family == "avg_pool" and rank == 3 and dtype in HALVES:
            continue  # PyTorch has no such kernel
        theirs, _ = saved(lambda f=family, a=args: named(F, f, rank)(x, *a))
        assert theirs >= x.numel() * x.element_size() + (8 * y.numel() if kind == "max" else 0), family


def test_saved_codes_grow_with_the_window():
    x = torch.randn(1, 2, 300, 300, requires_grad=True)
    for kernel, size in ((15, 1), (16, 2), (255, 2), (256, 4)):
        n, y = saved(lambda k=kernel: ap.max_pool2d(x, k, 40))
        assert n == size * y.numel()


def test_the_input_may_go():
    """The graph of a max or mean does not keep its input alive."""
    for pool in (ap.max_pool2d, ap.avg_pool2d):
        leaf = torch.randn(1, 2, 8, 8, requires_grad=True)
        x = leaf * 2
        alive = weakref.ref(x.untyped_storage())
        y = pool(x, 2)
        del x
        assert alive() is None
        y.sum().backward()
        assert leaf.grad is not None


def test_backward_is_deterministic():
    """The same bits again and again, also where PyTorch is told to allow nothing else."""
    torch.use_deterministic_algorithms(True)
    try:
        x = torch.randn(4, 16, 40, 40, requires_grad=True)
        found = []
        for _, pool in itertools.product(range(3), (lambda t: ap.max_pool2d(t, 5, 1, 2),)):
            y = pool(x)
            found.append(torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).view(y.shape))[0])
        assert all(torch.equal(f, found[0]) for f in found)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_logsumexp_in_halves_are_those_of_arrays(dtype):
    """Both start from the exact result; where it was float32 for one, an element in ten thousand was an ulp off."""
    x = torch.randn(3, 17, 91, 103, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaf = x.clone().requires_grad_()
    y = ap.pool(leaf, "logsumexp", (3, 3))
    grad = torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype)
    (got,) = torch.autograd.grad(y, leaf, grad)
    if dtype == torch.bfloat16:
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is from ml_dtypes")
        array, upstream = (t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) for t in (x, grad))
    else:
        array, upstream = x.numpy(), grad.numpy()
    wanted = ap.vjp(ap.pool, array, "logsumexp", (3, 3))[1](upstream)
    assert np.array_equal(got.view(torch.int16).numpy(), wanted.view(np.int16))
