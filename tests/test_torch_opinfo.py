"""PyTorch's own samples for its pooling operators, through our functions: results, gradients of both orders, errors.

The samples come from the table that PyTorch tests its operators with. max and unpooling compare exactly, averages
with the tolerance that PyTorch has for the dtype. Where we accept more, or round otherwise, on purpose, the list
stands in docs/semantics.md and here.
"""

from __future__ import annotations

import warnings

import pytest

import anypool as ap

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("expecttest", reason="expecttest is not installed, which PyTorch's table of samples imports")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

# Not a function of torch.nn.functional, but the backward kernel of one.
NOT_OURS = {"max_pool2d_with_indices_backward"}
POOLINGS = [o for o in op_db if "pool" in o.name and o.name not in NOT_OURS]
IDS = [(o.name.removeprefix("nn.functional.") + "-" + o.variant_test_name).strip("-") for o in POOLINGS]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXACT = ("max_pool", "max_unpool")
operators = pytest.mark.parametrize("info", POOLINGS, ids=IDS)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """Samples warn of what they are about to try; one thread, as the work is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(before)


def ours(info):
    return getattr(ap, info.name.removeprefix("nn.functional."))


def results(y):
    return y if isinstance(y, tuple) else (y,)


def same(info, got, expected, what) -> None:
    assert got.dtype == expected.dtype, what
    if any(name in info.name for name in EXACT):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{what}: {m}")
    else:
        torch.testing.assert_close(got, expected, equal_nan=True, msg=lambda m: f"{what}: {m}")


def rounded_once(got, truth, what) -> None:
    """A half is the result of float64, but for one rounding: PyTorch adds up in the half itself, in places."""
    half = torch.finfo(got.dtype)
    torch.testing.assert_close(got.double(), truth, rtol=half.eps, atol=half.tiny, msg=lambda m: f"{what}: {m}")


def drawn(function, sample, x=None):
    """Call with the same draws for both: fractional windows are at random places. PyTorch's table seeds with 42."""
    torch.manual_seed(42)
    return results(function(sample.input if x is None else x, *sample.args, **sample.kwargs))


@operators
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_samples(info, dtype):
    """Values, indices, dtypes, shapes, strides and both orders of gradients."""
    if dtype not in info.supported_dtypes("cpu"):
        pytest.skip(f"PyTorch has no {info.name} in {dtype}")
    half = dtype in (torch.bfloat16, torch.float16)
    exact = any(name in info.name for name in EXACT)
    compared = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        what = f"{info.name}({tuple(sample.input.shape)}, {sample.args}, {sample.kwargs})"
        expected, got = drawn(info.op, sample), drawn(ours(info), sample)
        x = sample.input
        if half and "fractional" not in info.name:  # whose windows depend on the dtype that places are drawn in
            x = sample.input.detach().double().requires_grad_()
        truth = drawn(info.op, sample, x) if half else expected
        assert len(got) == len(expected), what
        with torch.no_grad():
            again = drawn(ours(info), sample)
        for a, b, c, t in zip(got, expected, again, truth, strict=True):
            assert torch.equal(a, c) or a.isnan().any(), what
            if half and not exact:
                assert a.dtype == b.dtype, what
                rounded_once(a, t, what)
            else:
                same(info, a, b, what)
            assert a.is_contiguous() == b.is_contiguous(), what
        if expected[0].requires_grad:
            second = not half and info.supports_gradgrad
            mine, theirs = (gradients(y[0], at, second=second) for y, at in ((got, sample.input), (truth, x)))
            if "max_unpool" in info.name and (kept := last_of_equals(sample.args[0], info)) is not None:
                mine, theirs = mine[:1], (theirs[0] * kept,)  # ours goes to the value that is kept, PyTorch's to all
            for order, (a, b) in enumerate(zip(mine, theirs, strict=True), 1):
                where = f"{what}: gradient {order}"
                if half:
                    rounded_once(a, b.double(), where)
                else:
                    torch.testing.assert_close(a, b, msg=lambda m, w=where: f"{w}: {m}")
        compared += 1
    assert compared


def last_of_equals(places, info):
    """Which values of an unpooling are kept; None if all places differ."""
    flat = places.flatten(-int(info.name[-2]))
    later = (flat.unsqueeze(-1) == flat.unsqueeze(-2)).triu(1).any(-1)
    return (~later).view(places.shape) if later.any() else None


def gradients(y, x, *, second: bool):
    """The gradient of x and, through it, that of the gradient of y."""
    generator = torch.Generator().manual_seed(3)
    g = torch.rand(y.shape, generator=generator).bfloat16().to(y.dtype).requires_grad_()  # the same in every dtype
    (first,) = torch.autograd.grad(y, x, g, create_graph=second)
    if not second:
        return (first,)
    weights = torch.rand(first.shape, generator=generator).to(first.dtype)
    return first.detach(), torch.autograd.grad((first * weights).sum(), g)[0]


@operators
def test_integers(info):
    """Max alike. PyTorch cuts averages off, ours round half to even: they differ by one at most."""
    dtypes = [d for d in info.supported_dtypes("cpu") if not d.is_floating_point]
    if not dtypes:
        pytest.skip(f"PyTorch has no {info.name} of integers")
    for dtype in dtypes:
        for sample in info.sample_inputs("cpu", dtype, requires_grad=False):
            numbers = [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, int)]
            if min(numbers, default=0) < 0:
                with pytest.raises(ValueError, match="divisor_override must be > 0 for an integer result"):
                    drawn(ours(info), sample)
                continue
            expected, got = drawn(info.op, sample), drawn(ours(info), sample)
            for a, b in zip(got, expected, strict=True):
                assert a.shape == b.shape
                assert a.dtype == b.dtype
                if "max" in info.name:
                    assert torch.equal(a, b)
                else:
                    assert (a - b).abs().max() <= 1 if a.numel() else True


def accepted(sample) -> bool:
    """What PyTorch refuses and we take (docs/semantics.md): padding of any size, empty axes that are not pooled."""
    if sample.input.ndim > 1 and sample.input.shape[0] == 0:
        return True
    padding, kernel = sample.kwargs.get("padding", 0), sample.kwargs.get("kernel_size")
    smallest = min(kernel) if isinstance(kernel, tuple) else kernel
    return smallest is not None and isinstance(padding, int) and 2 * padding > smallest


@operators
def test_errors(info):
    """What PyTorch refuses we refuse, with an error that names the argument, except what we take on purpose."""
    if info.error_inputs_func is None:
        pytest.skip(f"PyTorch's table has no wrong arguments for {info.name}")
    taken = 0
    for error in info.error_inputs("cpu"):
        sample = error.sample_input
        what = f"{info.name}({tuple(sample.input.shape)}, {sample.args}, {sample.kwargs})"
        try:
            ours(info)(sample.input, *sample.args, **sample.kwargs)
        except (ValueError, TypeError, NotImplementedError):
            continue
        except RuntimeError:
            assert "unpool" in info.name, what  # PyTorch's own operator, and words
            continue
        assert accepted(sample), f"{what} was accepted; PyTorch: {error.error_regex}"
        taken += 1
    if taken:
        assert info.name.endswith(("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"))
