"""Arguments: every bad one is refused by name and value, and no call writes to its inputs."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest

import anypool as ap
import cases
import tolerance

X1 = np.ones((2, 3, 9), np.float32)
X2 = np.ones((2, 3, 9, 8), np.float32)
X3 = np.ones((2, 3, 9, 8, 7), np.float32)
PLACES = np.zeros((2, 3, 4, 4), np.int64)
HUGE = 2**62

# (call, exception, what the message must contain: the argument, then the value)
BAD = [
    # sizes are positive integers, one or one per axis
    (lambda: ap.max_pool2d(X2, 0), ValueError, ("kernel_size", "0")),
    (lambda: ap.max_pool2d(X2, (2, -1)), ValueError, ("kernel_size", "-1")),
    (lambda: ap.max_pool2d(X2, 2.0), TypeError, ("kernel_size", "2.0")),
    (lambda: ap.max_pool2d(X2, (2, 2.5)), TypeError, ("kernel_size", "2.5")),
    (lambda: ap.max_pool2d(X2, True), TypeError, ("kernel_size", "True")),
    (lambda: ap.max_pool2d(X2, np.float32(2)), TypeError, ("kernel_size", "2.0")),
    (lambda: ap.max_pool2d(X2, np.True_), TypeError, ("kernel_size", "True")),
    (lambda: ap.max_pool2d(X2, "3"), TypeError, ("kernel_size", "3")),
    (lambda: ap.max_pool2d(X2, None), TypeError, ("kernel_size", "None")),
    (lambda: ap.max_pool2d(X2, (2, 2, 2)), ValueError, ("kernel_size", "2, 2, 2")),
    (lambda: ap.avg_pool3d(X3, (2, 2)), ValueError, ("kernel_size", "2, 2")),
    (lambda: ap.lp_pool1d(X1, 2, 0), ValueError, ("kernel_size", "0")),
    (lambda: ap.max_pool2d(X2, 2, 0), ValueError, ("stride", "0")),
    (lambda: ap.max_pool2d(X2, 2, (1, -2)), ValueError, ("stride", "-2")),
    (lambda: ap.max_pool2d(X2, 2, 1.5), TypeError, ("stride", "1.5")),
    (lambda: ap.max_pool2d(X2, 2, False), TypeError, ("stride", "False")),
    (lambda: ap.avg_pool2d(X2, 2, (1, 2, 3)), ValueError, ("stride", "1, 2, 3")),
    (lambda: ap.max_pool2d(X2, 2, 2, 0, 0), ValueError, ("dilation", "0")),
    (lambda: ap.max_pool2d(X2, 2, 2, 0, (1, -1)), ValueError, ("dilation", "-1")),
    (lambda: ap.avg_pool1d(X1, 2, dilation=2.0), TypeError, ("dilation", "2.0")),
    (lambda: ap.pool(X2, "max", 2, dilation=True), TypeError, ("dilation", "True")),
    # padding
    (lambda: ap.max_pool2d(X2, 2, padding=(0, -3)), ValueError, ("padding", "-3")),
    (lambda: ap.avg_pool2d(X2, 2, padding=-1), ValueError, ("padding", "-1")),
    (lambda: ap.max_pool2d(X2, 2, padding=((0, 1), (0, -2))), ValueError, ("padding", "-2")),
    (lambda: ap.max_pool2d(X2, 2, padding=1.0), TypeError, ("padding", "1.0")),
    (lambda: ap.max_pool2d(X2, 2, padding=True), TypeError, ("padding", "True")),
    (lambda: ap.max_pool2d(X2, 2, padding="reflect"), ValueError, ("padding", "reflect")),
    (lambda: ap.max_pool2d(X2, 2, padding=(1, 1, 1)), ValueError, ("padding", "1, 1, 1")),
    (lambda: ap.max_pool2d(X2, 2, padding=((0, 1, 2), (0, 1, 2))), ValueError, ("padding", "0, 1, 2")),
    (lambda: ap.max_pool2d(X2, 2, padding=((0, 1),)), ValueError, ("padding", "0, 1")),
    # windows that do not fit, or see nothing
    (lambda: ap.max_pool2d(X2, 10), ValueError, ("kernel_size", "10")),
    (lambda: ap.max_pool2d(X2, 3, dilation=5), ValueError, ("kernel_size", "3")),
    (lambda: ap.max_pool2d(X2, 2, padding=2), ValueError, ("padding", "2")),
    (lambda: ap.avg_pool1d(X1, 3, padding=((0, 30),)), ValueError, ("padding", "30")),
    (lambda: ap.max_pool1d(X1[..., :2], 2, 1, 1, 3), ValueError, ("padding", "1")),
    # reductions and their options
    (lambda: ap.pool(X2, "medain", 2), ValueError, ("reduction", "medain")),
    (lambda: ap.pool(X2, 3, 2), (TypeError, ValueError), ("reduction", "3")),
    (lambda: ap.avg_pool2d(X2, 2, divisor_override=0), ValueError, ("divisor_override", "0")),
    (lambda: ap.avg_pool2d(X2, 2, divisor_override=True), TypeError, ("divisor_override", "True")),
    (lambda: ap.avg_pool2d(X2, 2, divisor_override="2"), TypeError, ("divisor_override", "2")),
    (lambda: ap.lp_pool2d(X2, 0, 2), ValueError, ("norm_type", "0")),
    (lambda: ap.lp_pool2d(X2, -1, 2), ValueError, ("norm_type", "-1")),
    (lambda: ap.lp_pool2d(X2, float("nan"), 2), ValueError, ("norm_type", "nan")),
    (lambda: ap.pool(X2, "lp", 2, norm_type="2"), TypeError, ("norm_type", "2")),
    (lambda: ap.pool(X2, "logsumexp", 2, r=0), ValueError, ("r", "0")),
    (lambda: ap.pool(X2, "logsumexp", 2, r=float("nan")), ValueError, ("r", "nan")),
    (lambda: ap.pool(X2, "mean", 2, return_indices=True), (ValueError, TypeError), ("return_indices", "mean")),
    # axes and layout
    (lambda: ap.pool(X2, "max", 2, axes=(4,)), ValueError, ("axes", "4")),
    (lambda: ap.pool(X2, "max", 2, axes=(-5,)), ValueError, ("axes", "-5")),
    (lambda: ap.pool(X2, "max", 2, axes=(1, 1)), ValueError, ("axes", "1, 1")),
    (lambda: ap.pool(X2, "max", 2, axes=(1, -3)), ValueError, ("axes", "1, -3")),
    (lambda: ap.pool(X2, "max", 2, axes=(1.0,)), TypeError, ("axes", "1.0")),
    (lambda: ap.pool(X2, "max", (2, 2), axes=(1,)), ValueError, ("kernel_size", "2, 2")),
    (lambda: ap.pool(X2, "max", (2,) * 5), ValueError, ("kernel_size", "2, 2, 2, 2, 2")),
    (lambda: ap.max_pool2d(X2, 2, data_format="NCHW"), ValueError, ("data_format", "NCHW")),
    (lambda: ap.global_avg_pool(X2, data_format=1), (ValueError, TypeError), ("data_format", "1")),
    # the array
    (lambda: ap.max_pool2d(X1[0], 2), ValueError, ("x", "(3, 9)")),
    (lambda: ap.max_pool2d(X3, 2), ValueError, ("x", "(2, 3, 9, 8, 7)")),
    (lambda: ap.adaptive_avg_pool1d(X2, 2), ValueError, ("x", "(2, 3, 9, 8)")),
    (lambda: ap.max_pool1d(X1.astype(complex), 2), TypeError, ("x", "complex128")),
    (lambda: ap.max_pool1d(X1.astype(object), 2), TypeError, ("x", "object")),
    (lambda: ap.max_pool1d(X1.astype("U"), 2), TypeError, ("x", "<U")),
    (lambda: ap.max_pool1d(X1.astype("M8[s]"), 2), TypeError, ("x", "datetime64")),
    (lambda: ap.max_pool1d(None, 2), TypeError, ("x", "None")),
    # dtype= and out=
    (lambda: ap.avg_pool1d(X1, 2, dtype="complex64"), (TypeError, ValueError), ("dtype", "complex64")),
    (lambda: ap.avg_pool1d(X1, 2, dtype="no such"), (TypeError, ValueError), ("dtype", "no such")),
    (lambda: ap.max_pool1d(X1, 2, out=np.empty((2, 3, 5), np.float32)), ValueError, ("out", "(2, 3, 5)")),
    (lambda: ap.max_pool1d(X1, 2, out=np.empty((2, 3, 4))), (TypeError, ValueError), ("out", "float64")),
    (lambda: ap.max_pool1d(X1, 2, out=[0.0]), TypeError, ("out", "list")),
    (lambda: ap.max_pool1d(X1, 2, out=np.broadcast_to(np.float32(0), (2, 3, 4))), ValueError, ("out", "writeable")),
    # adaptive, unpool, fractional
    (lambda: ap.adaptive_avg_pool2d(X2, -1), ValueError, ("output_size", "-1")),
    (lambda: ap.adaptive_avg_pool2d(X2, 2.0), TypeError, ("output_size", "2.0")),
    (lambda: ap.adaptive_max_pool2d(X2, (1, True)), TypeError, ("output_size", "True")),
    (lambda: ap.adaptive_max_pool2d(X2, (1, 2, 3)), ValueError, ("output_size", "1, 2, 3")),
    (lambda: ap.adaptive_avg_pool1d(np.ones((1, 1, 0)), 2), ValueError, ("x", "(1, 1, 0)")),
    (lambda: ap.max_unpool2d(X2[..., :4, :4], PLACES[:, :2], 2), ValueError, ("indices", "(2, 2, 4, 4)")),
    (lambda: ap.max_unpool2d(X2[..., :4, :4], PLACES.astype(float), 2), TypeError, ("indices", "float64")),
    (lambda: ap.max_unpool2d(X2[..., :4, :4], PLACES + 64, 2), ValueError, ("indices", "64")),
    (lambda: ap.max_unpool2d(X2[..., :4, :4], PLACES - 1, 2), ValueError, ("indices", "-1")),
    (
        lambda: ap.max_unpool2d(X2[..., :4, :4], PLACES, 2, output_size=(8, 8, 8)),
        ValueError,
        ("output_size", "8, 8, 8"),
    ),
    (lambda: ap.max_unpool2d(X2[..., :4, :4], PLACES, 2, output_size=(80, 8)), ValueError, ("output_size", "80")),
    (lambda: ap.fractional_max_pool2d(X2, 2), ValueError, ("output_size", "output_ratio")),
    (lambda: ap.fractional_max_pool2d(X2, 2, 3, 0.5), ValueError, ("output_size", "output_ratio")),
    (lambda: ap.fractional_max_pool2d(X2, 2, output_ratio=1.5), ValueError, ("output_ratio", "1.5")),
    (lambda: ap.fractional_max_pool2d(X2, 2, output_size=9), ValueError, ("output_size", "9")),
    (
        lambda: ap.fractional_max_pool2d(X2, 2, 3, _random_samples=np.ones((2, 3))),
        ValueError,
        ("_random_samples", "(2, 3)"),
    ),
    (
        lambda: ap.fractional_max_pool2d(X2, 2, 3, _random_samples=np.linspace(0, 1.5, 12).reshape(2, 3, 2)),
        ValueError,
        ("_random_samples must be in [0, 1], got 0.0 … 1.5", "x: (2, 3, 9, 8)"),
    ),
    (
        lambda: ap.fractional_max_pool2d(X2, 2, 3, _random_samples=np.full((2, 3, 2), np.nan)),
        ValueError,
        ("_random_samples must be in [0, 1], got nan … nan", "x: (2, 3, 9, 8)"),
    ),
    (
        lambda: ap.vjp(ap.max_unpool1d, np.ones((1, 2, 2), int), np.zeros((1, 2, 2), int), 2),
        TypeError,
        ("vjp needs floating-point x, got int64", "x: (1, 2, 2)"),
    ),
    (
        lambda: ap.backends.use("numpy").__enter__(),
        ValueError,
        ("backend must be one of native, reference, got 'numpy'", ""),
    ),
    # 64 bits are checked, not wrapped
    (lambda: ap.max_pool1d(X1, HUGE, padding=HUGE), ValueError, ("", "")),
    (lambda: ap.max_pool1d(X1, 2**70), ValueError, ("kernel_size", str(2**70))),
    (lambda: ap.max_pool1d(X1, 2, 1, 0, HUGE), ValueError, ("", "")),
    (lambda: ap.adaptive_avg_pool3d(X3, 2**40), ValueError, ("output_size", str(2**40))),
    # of several arguments the one that is too large is named
    (lambda: ap.max_pool1d(X1, 2, stride=2**40), ValueError, ("stride", str(2**40))),
    (lambda: ap.max_pool2d(X2, 2, (1, 2**40)), ValueError, ("stride[1]", str(2**40))),
    (lambda: ap.max_pool1d(X1, 2, padding=2**39), ValueError, ("padding", str(2**39))),
    (lambda: ap.max_pool2d(X2, 2, padding=((0, 0), (2**40, 1))), ValueError, ("padding[1]", str(2**40))),
    (lambda: ap.max_pool1d(X1, 2, dilation=2**40), ValueError, ("dilation", str(2**40))),
    (lambda: ap.max_pool1d(X1, 2, padding="same", dilation=2**40), ValueError, ("dilation", str(2**40))),
    (lambda: ap.max_pool1d(X1, 2**40), ValueError, ("kernel_size", str(2**40))),
    (lambda: ap.max_pool1d(X1, 2**40, padding="causal"), ValueError, ("kernel_size", str(2**40))),
    (lambda: ap.max_pool1d(X1, 2**30, dilation=2**20), ValueError, ("kernel_size", str(2**30))),
    # words are no arrays
    (lambda: ap.max_pool2d(X2, 2, nan=np.array([2, 2])), ValueError, ("nan", "array([2, 2])")),
    (lambda: ap.max_pool2d(X2, 2, nan=None), ValueError, ("nan", "None")),
    # vjp, explain
    (lambda: ap.vjp(ap.max_pool2d, X2, 2)[1](X2), ValueError, ("grad_y", "(2, 3, 9, 8)")),
    (lambda: ap.vjp(np.sum, X2), (TypeError, ValueError), ("fn", "sum")),
    (lambda: ap.vjp(ap.max_pool2d, X2, 0), ValueError, ("kernel_size", "0")),
    (lambda: ap.explain(ap.max_pool2d, X2, 0), ValueError, ("kernel_size", "0")),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_argument(number):
    call, exception, (argument, value) = BAD[number]
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    assert not argument or re.search(rf"\b{re.escape(argument)}(?!\w)", message), message
    assert value in message, message


# (function, arguments that fit, one that it does not take)
SIGNATURES = [
    (ap.max_pool1d, (X1, 2), "weights"),
    (ap.avg_pool2d, (X2, 2), "return_indices"),
    (ap.lp_pool3d, (X3, 2, 2), "weights"),
    (ap.adaptive_max_pool2d, (X2, 2), "stride"),
    (ap.global_avg_pool, (X2,), "stride"),
    (ap.pool, (X2, "max", 2), "output_size"),
    (ap.max_unpool2d, (X2[..., :4, :4], PLACES + np.arange(16).reshape(4, 4), 2), "mask"),
    (ap.fractional_max_pool2d, (X2, 2, 3), "mask"),
    (ap.pool_tokens, (X1, "mean"), "kernel_size"),
]


@pytest.mark.parametrize(("function", "args", "other"), SIGNATURES, ids=[f.__name__ for f, *_ in SIGNATURES])
def test_misfits_are_refused_by_the_public_name(function, args, other):
    """Also where a gradient or an explanation is asked for, and whatever is wrong with the arguments' number."""
    ways = (function, functools.partial(ap.vjp, function), functools.partial(ap.explain, function))
    for way in ways:
        way(*args)
        with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument '{other}'"):
            way(*args, **{other: 1})
        with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) (too many positional|takes .* positional)"):
            way(*args, *[1] * 20)
    if len(args) > 1:
        with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) missing"):
            function(args[0])


def test_a_generator_is_shown_in_one_line():
    with pytest.raises(
        TypeError, match=r"^generator must be a numpy.random.Generator for 'stochastic', got array"
    ) as e:
        ap.pool(X1, "stochastic", 2, axes=2, generator=np.ones((20, 20)))
    assert "\n" not in str(e.value)


def test_explaining_unpooling():
    y, places = ap.max_pool2d(X2, 2, return_indices=True)
    explained = ap.explain(ap.max_unpool2d, y, places, 2, output_size=(9, 8))
    assert (explained.reduction, explained.backend, explained.dtype) == ("max_unpool", "numpy", "float32")
    assert (explained.input_shape, explained.output_shape, explained.axes) == ((2, 3, 4, 4), (2, 3, 9, 8), (2, 3))
    assert explained.bytes_moved == 96 * (4 + 8) + 432 * 4
    assert explained.output_shape == ap.max_unpool2d(y, places, 2, output_size=(9, 8)).shape
    assert "axis 2: 9 -> 4, kernel 2, stride 2" in str(explained)
    assert explained.to_dict()["output_shape"] == [2, 3, 9, 8]
    with pytest.raises(ValueError, match=r"indices must be in \[0, 64\)"):
        ap.explain(ap.max_unpool2d, y, places + 64, 2)


@pytest.mark.parametrize("images", [0, 2])
def test_explaining_fractional_pooling(images, backend):
    """Nothing is drawn from the caller's generator."""
    rng = np.random.default_rng(3)
    before = rng.bit_generator.state
    explained = ap.explain(ap.fractional_max_pool2d, X2[:images], 2, 3, return_indices=True, rng=rng)
    assert rng.bit_generator.state == before
    assert (explained.reduction, explained.backend) == ("max", backend)
    assert explained.output_shape == (images, 3, 3, 3)
    assert explained.bytes_moved == images * 3 * (72 * 4 + 9 * 12)
    assert "axis 2: 9 -> 3, up to 2 taps" in str(explained)
    with pytest.raises(ValueError, match=r"output_size\[0\] \+ kernel_size\[0\] - 1 must be <= 9"):
        ap.explain(ap.fractional_max_pool2d, X2, 2, 9)


def test_explaining_these_for_tensors():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X2)
    y, places = ap.max_pool2d(x, 2, return_indices=True)
    explained = ap.explain(ap.max_unpool2d, y, places, 2)
    assert (explained.backend, explained.kernel) == ("pytorch", "torch.nn.functional.max_unpool2d")
    assert explained.output_shape == (2, 3, 8, 8)
    assert ap.explain(ap.max_unpool2d, y.int(), places, 2).backend == "torch"
    with pytest.raises(ValueError, match=r"indices must be in \[0, 64\)"):
        ap.explain(ap.max_unpool2d, y, places + 64, 2)
    with pytest.raises(TypeError, match="indices must be a tensor of int64, got ndarray"):
        ap.explain(ap.max_unpool2d, y, places.numpy(), 2)
    explained = ap.explain(ap.max_unpool2d, y.to("meta"), places.to("meta"), 2)
    assert (explained.backend, explained.isa) == ("torch", "meta")
    assert explained.output_shape == ap.max_unpool2d(y.to("meta"), places.to("meta"), 2).shape == (2, 3, 8, 8)
    state = torch.get_rng_state()
    explained = ap.explain(ap.fractional_max_pool2d, x, 2, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert (explained.backend, explained.kernel) == ("pytorch", "torch.nn.functional.fractional_max_pool2d")
    assert explained.output_shape == (2, 3, 3, 3)


def test_the_message_of_the_design():
    x = np.zeros((8, 64, 56, 56), np.int8)
    with pytest.raises(ValueError, match=re.escape("padding[1] must be >= 0, got -3 (x: (8, 64, 56, 56))")):
        ap.max_pool2d(x, 2, padding=(0, -3))


def test_integers_of_any_kind_are_sizes():
    expected = ap.max_pool2d(X2, (2, 3), (1, 2))
    for kind in (np.int32, np.int64, np.uint8):
        assert np.array_equal(ap.max_pool2d(X2, (kind(2), kind(3)), [1, kind(2)]), expected)


CALLS = {
    "max": lambda x: ap.max_pool2d(x, 3, 2, 1, return_indices=True),
    "avg": lambda x: ap.avg_pool2d(x, 3, 2, 1),
    "lp": lambda x: ap.lp_pool2d(x, 3, 2),
    "logsumexp": lambda x: ap.pool(x, "logsumexp", (2, 2)),
    "adaptive max": lambda x: ap.adaptive_max_pool2d(x, 3, True),
    "adaptive avg": lambda x: ap.adaptive_avg_pool2d(x, 3),
    "global max": lambda x: ap.global_max_pool(x, return_indices=True),
    "global avg": lambda x: ap.global_avg_pool(x),
    "fractional": lambda x: ap.fractional_max_pool2d(x, 2, 3, rng=np.random.default_rng(0)),
    "unpool": lambda x: ap.max_unpool2d(x, np.arange(72).reshape(9, 8) * np.ones((2, 3, 1, 1), np.int64), 2),
    "copy": lambda x: ap.max_pool2d(x, 1),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("array", [a for a in cases.MEMORY if "broadcast" not in a.name], ids=lambda a: a.name)
def test_inputs_are_never_written(name, array, backend):
    """Not even when they could be, and results never share memory with them."""
    x = array.build((2, 3, 9, 8), np.dtype(np.float64))
    before = x.copy()
    # native declares that it leaves unaligned elements to the reference
    with ap.backends.use(None if array.name == "misaligned" else backend):
        result = CALLS[name](x)
    assert tolerance.same_bits(x, before)
    for y in result if isinstance(result, tuple) else (result,):
        assert not np.shares_memory(x, y)
        assert y.flags.writeable


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_pullback_leaves_its_inputs_alone(reduction, backend):
    """Nothing is written, and the pullback may be used twice."""
    x = cases.ties((2, 3, 9, 8), np.dtype(np.float64))
    y, pullback = ap.vjp(ap.pool, x, reduction, (2, 3), stride=1)
    grad = cases.plain(y.shape, np.dtype(np.float64))
    grad.flags.writeable = False
    first = pullback(grad)
    x_before, y_before = x.copy(), y.copy()
    assert tolerance.same_bits(pullback(grad), first)
    assert tolerance.same_bits(x, x_before)
    assert tolerance.same_bits(y, y_before)
    assert not np.shares_memory(first, x)
    assert not np.shares_memory(first, grad)


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_pullback_writes_into_out(reduction, backend):
    x = cases.ties((2, 3, 9, 8), np.dtype(np.float32))
    y, pullback = ap.vjp(ap.pool, x, reduction, (2, 3), stride=1)
    grad = cases.plain(y.shape, np.dtype(np.float32))
    wanted = pullback(grad)
    room = np.full((2, 3, 9, 16), np.nan, np.float32)
    out = room[..., ::2]
    assert pullback(grad, out=out) is out
    assert tolerance.same_bits(out, wanted)
    assert np.isnan(room[..., 1::2]).all()
    with pytest.raises(ValueError, match=r"out must have shape \(2, 3, 9, 8\)"):
        pullback(grad, out=room)
    with pytest.raises(TypeError, match="out must be a NumPy array, got list"):
        pullback(grad, out=[0.0])
    if reduction in ("lp", "logsumexp"):  # their gradient reads x again
        with pytest.raises(ValueError, match="out must not overlap x"):
            pullback(grad, out=x)


def test_out_overlapping_the_input(backend):
    """Either refused or right; never a wrong answer."""
    x = cases.plain((1, 1, 40), np.dtype(np.float32))
    expected = ap.max_pool1d(x, 3, 1, 1)
    try:
        got = ap.max_pool1d(x, 3, 1, 1, out=x)
    except ValueError:
        return
    assert tolerance.same_bits(got, expected)


def test_byte_swapped_input(backend):
    """Either refused or right."""
    x = cases.plain((1, 1, 40), np.dtype(np.float32))
    try:
        got = ap.max_pool1d(x.astype(">f4"), 3)
    except (TypeError, NotImplementedError):
        return
    assert np.array_equal(got, ap.max_pool1d(x, 3))


HOSTILE = (
    0,
    1,
    2,
    3,
    7,
    -1,
    -(2**63),
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    1.5,
    float("nan"),
    True,
    None,
    "2",
    "same",
    "",
    (),
    (1,),
    (2, 3),
    (2, -1),
    (1, 2, 3),
    ((1, 2), (0, 0)),
    ((1,), (2,)),
    [2, 2],
    {2: 2},
    b"2",
    1j,
    object,
    np.int8(2),
    np.array(2),
    np.array([2, 2]),
    (2**62, 2**62),
    ("same", "valid"),
    (None, 2),
)


@pytest.fixture
def little_memory():
    """An array of a hostile size is a MemoryError, not the end of the machine."""
    resource = pytest.importorskip("resource", reason="this system has no resource limits")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.usefixtures("little_memory")
def test_fuzz(seed, backend):
    """Whatever the arguments: a result or one of three exceptions; never a crash, never a hang."""
    pick = cases.rng(seed)

    def hostile():
        values = HOSTILE if pick.random() < 0.7 else (1, 2, 3)  # some good ones, so that many calls get to the kernels
        return values[pick.integers(len(values))]

    x = (X1, X2, X3, X2[..., :0], X2[:0], X2[0])[seed % 6]
    names = (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "ceil_mode",
        "divisor_override",
        "axes",
        "norm_type",
        "r",
        "dtype",
    )
    reached = 0
    for turn in range(300):
        kwargs = {"kernel_size": 2} | {str(n): hostile() for n in pick.choice(names, 1 + turn % 3, replace=False)}
        reduction = cases.REDUCTIONS[turn % len(cases.REDUCTIONS)]
        try:
            y = ap.pool(x, reduction, kwargs.pop("kernel_size"), **kwargs)
        except (ValueError, TypeError, NotImplementedError):
            continue
        assert isinstance(y, np.ndarray)
        reached += 1
    assert reached > 5 or 0 in x.shape  # windows over an axis without elements are errors
