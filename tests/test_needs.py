"""Defects that users report of other libraries and that were open when they were read: none of them is here.

Each test says in its first line what the user met, and where. The threads were read in 2026; what they say of other
libraries may have changed since.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

import anypool as ap
import cases
from anypool import backends
from anypool.compat import onnx

INTEGERS = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


# ---- edges of windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k", "s", "pad"), [(5, 2, 2, 0), (5, 2, 2, 1), (7, 3, 2, 1), (6, 4, 3, 2), (3, 2, 3, 0)])
def test_no_average_of_an_overhang_is_nan_or_zero(n, k, s, pad, backend):
    """ceil_mode gives rows of NaN, or of zeros (onnx#4958, onnxruntime#16351)."""
    y = ap.avg_pool1d(np.ones((1, 1, n)), k, s, pad, ceil_mode=True, count_include_pad=False)
    assert (y == 1).all()
    included = ap.avg_pool1d(np.ones((1, 1, n)), k, s, pad, ceil_mode=True)
    for o, value in enumerate(included[0, 0]):
        start, stop = o * s - pad, min(o * s - pad + k, n + pad)  # the overhang never counts, padding does
        assert value == pytest.approx((min(stop, n) - max(start, 0)) / (stop - start))


@pytest.mark.parametrize(
    ("n", "k", "s", "pad", "outputs"),
    [
        (3, 2, 3, 0, 1),  # Paddle, MXNet and Caffe give 2
        (5, 2, 4, 1, 2),  # without the rule for the last window 3
        (5, 2, 2, 0, 3), (5, 2, 2, 1, 3), (4, 2, 2, 1, 3), (10, 3, 3, 0, 4),
    ],
)  # fmt: skip
def test_size_of_the_result_with_ceil_mode(n, k, s, pad, outputs, backend):
    """One row more than the documented formula, a surprise (pytorch#88144, PaddlePaddle#51542)."""
    y = ap.max_pool1d(np.arange(1.0, n + 1).reshape(1, 1, n), k, s, pad, ceil_mode=True)
    assert y.shape == (1, 1, outputs)
    assert np.isfinite(y).all()  # pytorch#94775: a row of -inf
    assert (outputs - 1) * s < n + pad  # the last window starts in the input or its left padding


@pytest.mark.parametrize(("n", "k", "s", "d"), [(5, 2, 2, 1), (7, 3, 2, 1), (8, 3, 4, 1), (10, 3, 3, 2), (6, 4, 3, 1)])
def test_size_of_the_result_with_auto_pad(n, k, s, d, backend):
    """With auto_pad the size depends on ceil_mode, against the specification (onnxruntime#10083)."""
    x = np.arange(1.0, n + 1).reshape(1, 1, n)
    sizes = {"VALID": -(-(n - ((k - 1) * d + 1) + 1) // s), "SAME_UPPER": -(-n // s), "SAME_LOWER": -(-n // s)}
    for auto_pad, size in sizes.items():
        window = {"kernel_shape": [k], "strides": [s], "dilations": [d], "auto_pad": auto_pad}
        for function in (onnx.max_pool, onnx.average_pool):
            with_ceil, without = (function(x, **window, ceil_mode=c) for c in (1, 0))
            assert with_ceil.shape == (1, 1, size)
            assert with_ceil.tolist() == without.tolist()


def test_numbers_of_the_reports(backend):
    """The numbers that reports give as right (pytorch#183528, tvm PR#18641, onnxruntime#24681)."""
    x = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    y = ap.avg_pool2d(x, 3, 2, 1, ceil_mode=True)
    assert y.shape == (1, 1, 2, 2)
    assert ap.max_pool1d(np.arange(17.0)[None], 2, 2, ((0, 1),)).shape == (1, 9)
    assert ap.adaptive_avg_pool1d(np.arange(20_000_003.0)[None], 1000)[0, [0, -1]].tolist() == [10000.0, 19990002.0]


def test_padding_counts_or_not_as_asked(backend):
    """An average with SAME padding counts the padding, and there is no other way (flax#2401, flax#2448)."""
    x = np.ones((1, 1, 4))
    assert ap.avg_pool1d(x, 3, 1, "same").ravel().tolist() == pytest.approx([2 / 3, 1, 1, 2 / 3])
    assert ap.avg_pool1d(x, 3, 1, "same", count_include_pad=False).ravel().tolist() == [1, 1, 1, 1]


def test_padding_at_the_end_counts_too(backend):
    """The padding at the end is not counted (onnxruntime#24681); with unequal padding none is (burn#5450)."""
    x = np.ones((1, 1, 4))
    assert ap.avg_pool1d(x, 3, 1, ((0, 2),)).ravel().tolist() == pytest.approx([1, 1, 2 / 3, 1 / 3])
    assert ap.avg_pool1d(x, 3, 1, ((2, 0),)).ravel().tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert (ap.avg_pool1d(x, 3, 1, ((1, 2),), count_include_pad=False) == 1).all()


@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_large_inputs_follow_the_rule_of_small_ones(reduction):
    """Dilation is dropped where the input is large enough for a faster path (openxla/xla#48714).

    Theirs is the dilation of the input, which we do not have, on an axis with a window of 1; this is the window's.
    """
    wide = np.random.default_rng(1).integers(-99, 99, (1, 1, 64, 128)).astype(np.float32)
    y = ap.pool(wide, reduction, (2, 1), stride=(2, 1), dilation=(1, 2))
    pairs = wide.reshape(1, 1, 32, 2, 128)
    assert np.array_equal(y, pairs.max(3) if reduction == "max" else pairs.sum(3))
    x = np.random.default_rng(0).integers(-99, 99, (1, 2, 400, 500)).astype(np.float32)
    y = ap.pool(x, reduction, (3, 3), stride=2, dilation=3)
    for i, j in ((0, 0), (90, 120), (196, 246)):
        small = x[..., 2 * i : 2 * i + 7, 2 * j : 2 * j + 7]
        assert np.array_equal(ap.pool(small, reduction, (3, 3), stride=2, dilation=3), y[..., i : i + 1, j : j + 1])


@pytest.mark.parametrize(("n", "outputs"), [(7, 3), (10, 7), (5, 8), (13, 4), (1, 3)])
def test_bins_that_do_not_divide(n, outputs, backend):
    """Bins that end at the floor: errors up to 1.0, unseen by tests of sizes that divide (FlagGems#4915)."""
    x = np.arange(n, dtype=np.float64)
    bins = [x[i * n // outputs : -(-(i + 1) * n // outputs)] for i in range(outputs)]
    assert ap.adaptive_avg_pool1d(x[None], outputs)[0].tolist() == pytest.approx([b.mean() for b in bins])
    largest, places = ap.adaptive_max_pool1d(x[None], outputs, True)
    assert largest[0].tolist() == places[0].tolist() == [b.max() for b in bins]


@pytest.mark.parametrize(("n", "outputs"), [(7, 3), (10, 7), (5, 8), (13, 4), (1, 3)])
def test_bins_are_told(n, outputs):
    """`explain` says which inputs each output sees, where windows are bins or drawn."""
    windows = ap.explain(ap.adaptive_avg_pool1d, np.ones((2, n)), outputs).windows
    assert [windows.axes[0].taps(o) for o in range(outputs)] == [
        range(i * n // outputs, -(-(i + 1) * n // outputs)) for i in range(outputs)
    ]
    samples = np.full((1, 1, 2), 0.5)
    drawn = ap.explain(ap.fractional_max_pool2d, np.ones((1, 9, 12)), 2, 4, _random_samples=samples).windows
    _, places = ap.fractional_max_pool2d(np.arange(108.0).reshape(1, 9, 12), 2, 4, None, True, samples)
    lasts = [[axis.taps(o)[-1] for o in range(4)] for axis in drawn.axes]
    assert places[0].tolist() == [[12 * row + column for column in lasts[1]] for row in lasts[0]]
    assert all(len(axis.taps(o)) == 2 for axis in drawn.axes for o in range(4))


# ---- arguments, and large arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": -1},  # pytorch#145077: floating point exception
        {"stride": 0},  # pytorch#41767, pytorch#149274 (CVE-2025-2953)
        {"kernel_size": []}, {"kernel_size": 0}, {"kernel_size": -2},  # pytorch#50967, pytorch#91556
        {"kernel_size": 2**31}, {"stride": 2**63}, {"padding": 2**62},  # pytorch#78126, tensorflow#61601
        {"padding": -1},  # pytorch#73186
        {"dilation": 2**31 - 1}, {"dilation": 0},  # pytorch#189664: memory beyond the input is read
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("tensors", [False, True])
def test_arguments_out_of_range_do_not_end_the_process(arguments, tensors):
    """The process dies of them (pytorch#145077, #91556, #91557, #73186, #78126; tensorflow#61601, #76722)."""
    x = np.ones((1, 2, 8, 8), np.float32)
    if tensors:
        x = pytest.importorskip("torch", reason="torch is not installed").from_numpy(x)
    for function in (ap.max_pool2d, ap.avg_pool2d):
        with pytest.raises(ValueError, match=next(iter(arguments)) + "|kernel_size"):
            function(x, **{"kernel_size": 2, **arguments})


@pytest.mark.parametrize("index", [-1, 16, 2**40, -(2**63)])
@pytest.mark.parametrize("tensors", [False, True])
def test_unpooling_writes_only_where_there_is_memory(index, tensors):
    """max_unpool writes to, or reads from, memory that is not its own (pytorch#152913, pytorch PR#1465)."""
    x, places = np.ones((1, 1, 2, 2), np.float32), np.array([[[[0, 1], [2, index]]]])
    if tensors:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        x, places = torch.from_numpy(x), torch.from_numpy(places)
    with pytest.raises(ValueError, match=r"indices must be in \[0, 16\)"):
        ap.max_unpool2d(x, places, 2)


def test_positions_beyond_32_bits():
    """Positions are counted in 32 bits: a wrong answer or a crash (pytorch#52822, #68418, #165297)."""
    x = np.zeros((1, 1, 2**31 + 8), np.int8)  # memory that nobody writes is not there
    x[..., -3] = 1
    y, places = ap.max_pool1d(x, 8, stride=2**20, return_indices=True)
    assert y.shape == (1, 1, 2049)
    assert (y[0, 0, -1], places[0, 0, -1], places[0, 0, -2]) == (1, 2**31 + 5, 2**31 - 2**20)


# ---- determinism -----------------------------------------------------------------------------------------------------

DETERMINISTIC = """
import sys, hashlib, torch, anypool as ap
torch.set_num_threads(int(sys.argv[1]))
torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
digest = hashlib.sha256()
for rank in (2, 3):
    x = torch.randn(3, 64, *(23, 31, 17)[:rank], requires_grad=True)
    for pool in (
        getattr(ap, f"adaptive_avg_pool{rank}d"), getattr(ap, f"adaptive_max_pool{rank}d"),
        lambda x, _: getattr(ap, f"max_pool{rank}d")(x, 3, 2, 1),
        lambda x, _: getattr(ap, f"avg_pool{rank}d")(x, 3, 2, 1),
    ):
        y = pool(x, 5)
        (gradient,) = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).reshape(y.shape))
        digest.update(gradient.numpy().tobytes())
ids = torch.arange(999) // 7
tokens = torch.randn(999, 65, requires_grad=True)
y = ap.pool_tokens(tokens, ["mean", "max"], segment_ids=ids)
(gradient,) = torch.autograd.grad(y, tokens, torch.ones_like(y))
digest.update(gradient.numpy().tobytes())
print(digest.hexdigest())
"""


def test_gradients_are_the_same_in_every_run():
    """No deterministic gradient of adaptive, 3-D and segment poolings: an error, or other bits in each run.

    pytorch#50198, #111466, #108341, #131972, #110698, #107011, #85425; pytorch_geometric#2788.
    """
    pytest.importorskip("torch", reason="torch is not installed")
    found = set()
    for threads in ("1", "2", "2"):
        done = subprocess.run(
            [sys.executable, "-c", DETERMINISTIC, threads], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("tensors", [False, True])
def test_integers_are_pooled(dtype, tensors, rank):
    """Maxima of bytes and bools are missing, of integers only with indices; averages by device (pytorch#33086,
    #107412, #136110, #139115).
    """
    shape = (1, 2, *(4, 6, 2)[:rank])
    x = (np.arange(np.prod(shape)).reshape(shape) * 7 % 13).astype(dtype)
    given = pytest.importorskip("torch", reason="torch is not installed").from_numpy(x) if tensors else x
    taps = [x[(..., *(slice(t >> a & 1, None, 2) for a in range(rank)))] for t in range(2**rank)]
    windows = np.stack(taps, -1)
    max_pool, avg_pool = (getattr(ap, f"{kind}_pool{rank}d") for kind in ("max", "avg"))
    for y in (max_pool(given, 2), max_pool(given, 2, return_indices=True)[0]):
        assert np.asarray(y).dtype == dtype
        assert np.array_equal(y, windows.max(-1))
    assert np.array_equal(ap.pool(given, "min", (2,) * rank), windows.min(-1))
    mean = windows.astype(np.float64).mean(-1)
    assert np.array_equal(avg_pool(given, 2), mean if dtype == "bool" else np.rint(mean))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_averages_of_halves_over_large_windows(dtype, backend):
    """An average over 255 × 255 halves is 0.0315 instead of 0.5 (MIOpen#2109); sums overflow (ncnn PR#2698)."""
    x = np.full((1, 1, 255, 255), 0.5, cases.dtype_of(dtype))
    assert float(ap.avg_pool2d(x, 255).item()) == 0.5
    x = np.full((1, 1, 300), 300, cases.dtype_of(dtype))
    assert float(ap.avg_pool1d(x, 300).item()) == 300
    assert ap.pool(x, "sum", (300,), dtype=np.float32).item() == 90000


# ---- padding ---------------------------------------------------------------------------------------------------------


def test_padding_beyond_half_the_kernel(backend):
    """Padding must be at most half the kernel, and is the same on both sides (pytorch#103423, #71362)."""
    x = np.arange(1.0, 5).reshape(1, 1, 4)
    assert ap.max_pool1d(x, 3, 1, 2).ravel().tolist() == [1, 2, 3, 4, 4, 4]
    assert ap.max_pool1d(x, 3, 1, ((2, 0),)).ravel().tolist() == [1, 2, 3, 4]
    assert ap.max_pool1d(x, 3, 1, "causal").ravel().tolist() == [1, 2, 3, 4]
    assert ap.max_pool1d(-x, 3, 1, 2).max() == -1  # and padding is never seen, whatever its values would be


def test_kernels_larger_than_the_input(backend):
    """A kernel beyond the input, "same" at all (mxnet#10487), other padding on each side (mxnet#13569,
    tt-forge-onnx#2757).
    """
    square = np.arange(9.0).reshape(1, 1, 3, 3)
    assert ap.max_pool2d(square, 2, 2, ((0, 1), (1, 0)))[0, 0].tolist() == [[3, 5], [6, 8]]
    x = np.arange(1.0, 4).reshape(1, 1, 3)
    assert ap.max_pool1d(x, 7, 1, 3).ravel().tolist() == [3, 3, 3]
    assert ap.pool(x, "sum", (7,), padding="same", stride=1).ravel().tolist() == [6, 6, 6]
    assert ap.max_pool1d(x, 2, 1, "same").ravel().tolist() == [2, 3, 3]
    assert ap.max_pool1d(x, 2, 1, "same_lower").ravel().tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"every window some input, or empty= give a value: window 0 has none"):
        ap.max_pool1d(x, 2, 1, 2)


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_nan_is_a_nan_in_every_place(dtype, channels_last, backend):
    """Equal channels give [nan, nan, 3] together and [3, 3, 3] apart (tensorflow#125965); NaN is ignored
    (pytorch#7645, Theano#3060).
    """
    for channels in (1, 3, 17):
        for place in range(4):
            window = np.array([1, 2, 3, 0], dtype)
            window[place] = np.nan
            x = np.broadcast_to(window[:, None], (4, channels))
            x = np.ascontiguousarray(x if channels_last else x.T)[None]
            form = "channels_last" if channels_last else "channels_first"
            for function in (ap.max_pool1d, ap.avg_pool1d):
                y = function(x, 4, data_format=form)
                assert y.size == channels
                assert np.isnan(y).all()


@pytest.mark.parametrize("tensors", [False, True])
def test_windows_of_nan_and_of_infinities_have_valid_indices(tensors):
    """A window of NaN or -inf has the index -1, which a later write takes for an address (pytorch PR#1465, #40131)."""
    for value in (np.nan, -np.inf):
        x = np.full((1, 1, 4, 4), value, np.float32)
        given = pytest.importorskip("torch", reason="torch is not installed").from_numpy(x) if tensors else x
        y, places = ap.max_pool2d(given, 2, return_indices=True)
        assert np.array_equal(y, x[..., :2, :2], equal_nan=True)
        assert np.array_equal(places, [[[[5, 7], [13, 15]]]] if np.isnan(value) else [[[[0, 2], [8, 10]]]])
        assert np.array_equal(ap.max_unpool2d(y, places, 2)[0, 0].ravel()[np.ravel(places)], y.ravel(), equal_nan=True)


# ---- layouts ---------------------------------------------------------------------------------------------------------


def layouts(shape):
    """The same numbers in many memories."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    yield x
    yield np.asfortranarray(x)
    yield np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    yield np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    yield np.repeat(x, 2, 2)[:, :, ::2]
    yield np.ascontiguousarray(x.swapaxes(0, 2)).swapaxes(0, 2)


@pytest.mark.parametrize("function", [ap.adaptive_max_pool2d, ap.adaptive_avg_pool2d])
def test_permuted_inputs(function, backend):
    """Of a permuted tensor every element of the batch has the same result (pytorch#107842)."""
    results = [function(x, 3) for x in layouts((3, 4, 7, 8))]
    assert not np.array_equal(results[0][0], results[0][1])
    assert all(np.array_equal(y, results[0]) for y in results)


def test_permuted_tensors():
    """The same of tensors (pytorch#107842)."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.from_numpy(next(layouts((3, 4, 7, 8))))
    for pool in (ap.adaptive_max_pool2d, ap.adaptive_avg_pool2d):
        wanted = pool(x, 3)
        for order in ((0, 2, 3, 1), (2, 3, 0, 1), (3, 1, 2, 0)):
            back = [order.index(a) for a in range(4)]
            assert torch.equal(pool(x.permute(order).contiguous().permute(back), 3), wanted)


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")  # of Inductor's own
def test_compiled_gradients_of_channels_last_volumes():
    """Compiled by Inductor, they are wrong for channels_last_3d, and nothing says so (pytorch#197888)."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if shutil.which("g++") is None:
        pytest.skip("Inductor compiles for the CPU with g++")
    x = torch.randn(2, 3, 7, 6, 5)
    gradients = []
    for form in (torch.contiguous_format, torch.channels_last_3d):
        given = x.clone(memory_format=form).requires_grad_()
        for pool in (ap.adaptive_max_pool3d, torch.compile(ap.adaptive_max_pool3d, backend="inductor")):
            y = pool(given, (3, 2, 4))
            gradients += torch.autograd.grad(y, given, torch.arange(1.0, y.numel() + 1).reshape(y.shape))
    assert all(torch.equal(g, gradients[0]) for g in gradients)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_both_orders_of_axes_on_the_cpu(rank, backend):
    """Default MaxPoolingOp only supports NHWC on device type CPU (tensorflow#2660, #15364, #46658)."""
    x = np.random.default_rng(0).standard_normal((2, 3, *(6, 5, 7)[:rank])).astype(np.float32)
    first = getattr(ap, f"max_pool{rank}d")(x, 2)
    last = getattr(ap, f"max_pool{rank}d")(np.moveaxis(x, 1, -1), 2, data_format="channels_last")
    assert np.array_equal(np.moveaxis(last, -1, 1), first)


# ---- nothing to pool -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(17, 0, 50), (0, 3, 8), (0, 3, 8, 8), (2, 0, 8, 8), (2, 0, 4, 8, 6), (0, 2, 4, 4, 4)]
)
def test_empty_batches_with_and_without_gradients(shape):
    """Without a gradient an empty batch is taken, with one it is refused (pytorch#76587); no second one (#64306)."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rank = len(shape) - 2
    half = tuple(n // 2 for n in shape[2:])
    for name, arguments in (
        ("max_pool", (2,)), ("avg_pool", (2,)), ("adaptive_max_pool", (half,)), ("adaptive_avg_pool", (half,)),
        ("lp_pool", (2, 2)),
    ):  # fmt: skip
        function = getattr(ap, f"{name}{rank}d")
        with torch.no_grad():
            assert function(torch.zeros(shape), *arguments).shape == (*shape[:2], *half)
        x = torch.zeros(shape, requires_grad=True, dtype=torch.float64)
        y = function(x, *arguments)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert first.shape == second.shape == shape


@pytest.mark.parametrize("function", [ap.global_avg_pool, ap.global_max_pool])
def test_global_pooling_of_nothing_is_no_infinity(function, backend):
    """Global pooling of a size 0 gives infinities or NaN (tf-keras#632, tf-keras PR#906)."""
    with pytest.raises(ValueError, match=r"x\.shape along pooled axis 0 must be >= 1, or empty= give a value, got 0"):
        function(np.zeros((2, 3, 0, 4)))
    assert function(np.zeros((0, 3, 5, 4))).shape == (0, 3, 1, 1)
    assert function(np.zeros((0, 3, 5)), mask=np.zeros((0, 1, 5), bool)).shape == (0, 3, 1)  # a shard with its mask
    assert ap.pool_tokens(np.zeros((0, 5, 3)), "mean", mask=np.zeros((0, 5), bool)).shape == (0, 3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min", "first", "last", "std", "logsumexp"])
def test_rows_without_a_token_are_what_was_asked_for(reduction):
    """A row that is masked altogether is NaN, or poisons the loss, by library (keras#18152, keras PR#18159)."""
    x = np.arange(1.0, 13).reshape(2, 3, 2)
    mask = [[0, 0, 0], [1, 1, 0]]
    assert np.isnan(ap.pool_tokens(x, reduction, mask=mask)[0]).all()
    y, pullback = ap.vjp(ap.pool_tokens, x, reduction, mask=mask, empty=0.0)
    assert y[0].tolist() == [0, 0]
    gradient = pullback(np.ones_like(y))
    assert (gradient[0] == 0).all()
    assert np.isfinite(gradient).all()


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensors", [False, True])
def test_one_of_equal_values_takes_the_gradient(tensors):
    """Every one of equal maxima takes the whole gradient (Theano#5404)."""
    x = np.zeros((1, 1, 4, 4), np.float32)
    if tensors:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        leaf = torch.from_numpy(x).requires_grad_()
        ap.max_pool2d(leaf, 3, 1).sum().backward()
        gradient = leaf.grad.numpy()
    else:
        y, pullback = ap.vjp(ap.max_pool2d, x, 3, 1)
        gradient = pullback(np.ones_like(y))
    wanted = np.zeros((4, 4))
    wanted[:2, :2] = 1  # the first in row-major order of each window
    assert np.array_equal(gradient[0, 0], wanted)


def test_equal_indices_of_an_unpooling_have_one_rule():
    """Duplicate indices give one of the values, by thread, and the gradient to all (pytorch#80827, #80204)."""
    x, places = np.arange(1.0, 9).reshape(1, 2, 4), np.array([[[1, 1, 1, 0], [7, 7, 0, 7]]])
    y, pullback = ap.vjp(ap.max_unpool1d, x, places, 2)
    assert y.tolist() == [[[4, 3, 0, 0, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 8]]]  # the later one stays
    assert pullback(np.arange(16.0).reshape(1, 2, 8)).tolist() == [[[0, 0, 1, 0], [0, 0, 8, 15]]]


def test_equal_indices_of_tensors_have_the_same_rule():
    """Of tensors, too: by any number of threads, in deterministic mode, compiled, and twice differentiable."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    places = torch.tensor([[1, 1, 2, 3]])
    x = torch.tensor([[5.0, 6.0, 7.0, -0.0]], dtype=torch.float64, requires_grad=True)
    wanted = [[0, 6, 7, 0, 0, 0, 0, 0]]
    assert ap.max_unpool1d(x, places, 2).tolist() == wanted
    assert torch.autograd.gradcheck(lambda t: ap.max_unpool1d(t, places, 2), x)
    assert torch.autograd.gradgradcheck(lambda t: ap.max_unpool1d(t, places, 2), x)
    compiled = torch.compile(ap.max_unpool1d, backend="aot_eager", fullgraph=True)
    assert compiled(x, places, 2).tolist() == wanted
    many, threads = torch.arange(1.0, 2**17)[None], torch.get_num_threads()
    try:
        torch.use_deterministic_algorithms(True)
        assert ap.max_unpool1d(x, places, 2).tolist() == wanted
        torch.use_deterministic_algorithms(False)
        for torch_threads in (1, 2, 3):
            torch.set_num_threads(torch_threads)
            assert ap.max_unpool1d(many, torch.zeros_like(many, dtype=torch.int64), 1)[0, 0] == 2**17 - 1
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def test_backends_agree_on_all_of_it():
    """What a defect of one path was in other libraries is a rule of both here."""
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 11)).astype(np.float32)
    x[0, 0, 3] = np.nan
    x[0, 1] = -np.inf
    for arguments in ({"padding": 2, "stride": 2}, {"padding": ((0, 1), (2, 0)), "dilation": 2}, {"padding": "same"}):
        for reduction in ("max", "min", "sum", "mean"):
            both = []
            for name in ("reference", "native"):
                with backends.use(name):
                    both.append(ap.pool(x, reduction, (3, 3), ceil_mode=True, **arguments))
            np.testing.assert_array_equal(*both)


# ---- what counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [ap.max_pool1d, ap.avg_pool1d])
def test_windows_without_a_valid_input_are_what_was_asked_for(function, backend):
    """A window that is masked altogether is NaN, -inf or 0, by library (keras#18152, onnx#1922)."""
    x, mask = np.arange(1.0, 7).reshape(1, 1, 6), np.array([[[1, 1, 0, 0, 0, 1]]], bool)
    assert np.isnan(function(x, 2, mask=mask)[0, 0, 1])
    assert function(x, 2, mask=mask, empty=0.0)[0, 0, 1] == 0
    y, pullback = ap.vjp(function, x, 2, mask=mask, empty=0.0)
    gradient = pullback(np.ones_like(y))
    assert np.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    with pytest.raises(ValueError, match="empty"):
        function(x.astype(np.int32), 2, mask=mask)
    assert function(x.astype(np.int32), 2, mask=mask, empty=-1)[0, 0, 1] == -1


def test_what_is_masked_never_leaks(backend):
    """NaN times 0 is NaN: masks that multiply let padding through (pytorch#7645, xarray-spatial PR#1628)."""
    x, mask = np.array([[[1.0, np.nan, np.inf, 4.0]]]), np.array([[[True, False, False, True]]])
    for reduction in ("max", "min", "sum", "mean", "lp"):
        y = ap.pool(x, reduction, (2,), mask=mask)
        assert y.ravel().tolist() == [1, 4]


@pytest.mark.parametrize("reduction", ["max", "min", "sum", "mean"])
def test_nan_is_left_out_if_asked_for(reduction, backend):
    """There is no nanmax of windows (pytorch#7645)."""
    x = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan])
    y, valid = ap.pool(x, reduction, 2, nan="omit", return_valid=True)
    assert y[:2].tolist() == {"max": [1, 5], "min": [1, 3], "sum": [1, 8], "mean": [1, 4]}[reduction]
    assert np.isnan(y[2])
    assert valid.tolist() == [1, 2, 0]
    assert ap.pool(x, reduction, 2, nan="omit", empty=-9.0)[2] == -9


def test_windows_wholly_in_the_padding(backend):
    """Padding beyond the kernel makes -inf (pytorch#3298) or rows of NaN (onnx#4958): not here."""
    x = np.ones((1, 1, 3))
    with pytest.raises(ValueError, match=r"padding\[0\] must leave every window some input"):
        ap.max_pool1d(x, 2, 1, 3)
    assert ap.max_pool1d(x, 2, 1, 3, empty=0.0).ravel().tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert ap.global_max_pool(np.ones((2, 3, 0)), empty=0.0).tolist() == [[[0.0]] * 3] * 2  # tf-keras#632


def test_masked_elements_never_count(backend):
    """block_reduce and average poolings divide by the whole window (georasters#72, scikit-image#4940)."""
    x, mask = np.array([[[2.0, 4.0, 6.0, 8.0]]]), np.array([[[True, False, True, True]]])
    assert ap.avg_pool1d(x, 2, mask=mask).ravel().tolist() == [2, 7]
    assert ap.avg_pool1d(x, 2, padding=1, stride=2, mask=mask).ravel().tolist() == [
        1,
        6,
        4,
    ]  # padding counts, masked does not
    _, valid = ap.avg_pool1d(x, 2, mask=mask, return_valid=True)
    assert valid.ravel().tolist() == [1, 2]


def test_weights_of_windows(backend):
    """What divides a weighted mean is the sum of the weights in the window, not their number."""
    x, w = np.array([[[1.0, 3.0, 5.0, 9.0]]]), np.array([[[1.0, 3.0, 1.0, 1.0]]])
    assert ap.avg_pool1d(x, 2, weights=w).ravel().tolist() == [2.5, 7.0]
    with pytest.raises(ValueError, match="weights"):
        ap.pool(x, "max", (2,), weights=w)
