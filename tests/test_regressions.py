"""Defects that a review found, one test each, so that they stay away."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest

import anypool as ap
from anypool import backends, operation
from anypool.windows import Sliding, output_size


def gradient(x, *args, **kwargs):
    y, pullback = ap.vjp(ap.pool, x, *args, **kwargs)
    return pullback(np.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape))


@pytest.mark.parametrize("stride", [(2, 1), (3, 2), (1, 3)])
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 1, 9, 200)])
def test_inputs_that_no_window_saw_have_gradient_zero(shape, stride, backend):
    grad = gradient(np.ones(shape, np.float32), "sum", (1, 1), axes=(-2, -1), stride=stride)
    seen = np.zeros(shape, bool)
    seen[..., :: stride[0], :: stride[1]] = True
    assert (grad[~seen] == 0).all()
    assert not np.signbit(grad[~seen]).any()
    assert grad[seen].tolist() == list(range(1, int(seen.sum()) + 1))


def test_inputs_that_no_magnitude_was_sought_in_have_gradient_zero(backend):
    x = np.array([[-3.0, -2, -7, -5, -9, -4, -1, -8]])
    grad = gradient(x, "lp", 2, axes=1, stride=4, norm_type=np.inf)
    assert grad.tolist() == [[-1, 0, 0, 0, -2, 0, 0, 0]]
    assert not np.signbit(grad[grad == 0]).any()


def test_the_sign_of_nan_is_zero_in_gradients_of_the_largest_magnitude(backend):
    x = np.array([np.nan, 1, -3, 2])
    assert gradient(x, "lp", 2, norm_type=np.inf).tolist() == [0, 0, -2, 0]
    assert gradient(x, "lp", 2, norm_type=np.inf, mask=np.ones(4, bool)).tolist() == [0, 0, -2, 0]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("uint8", "uint16"), ("uint8", "uint32"), ("int8", "int16"), ("bool", "int8"), ("uint16", "uint32")],
)
def test_a_maximum_in_a_wider_integer(given, wanted, backend):
    x = (np.arange(150).reshape(3, 50) % 2).astype(given)
    y = ap.pool(x, "max", 2, axes=1, dtype=wanted)
    assert y.dtype == wanted
    assert (y == 1).all()


def test_a_result_asked_for_in_the_other_byte_order_is_native():
    x = np.linspace(0, 1, 50, dtype=np.float32)
    assert ap.pool(x, "max", 2, dtype=">f4").tolist() == ap.pool(x, "max", 2).tolist()


@pytest.mark.parametrize("reduction", ["lp", "logsumexp"])
def test_gradients_of_input_that_is_swapped_or_packed(reduction):
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    packed = np.zeros(x.shape, [("a", "u1"), ("b", "f4")])
    packed["b"] = x
    expected = gradient(x, reduction, 2, axes=1)
    np.testing.assert_allclose(gradient(x.astype(">f4"), reduction, 2, axes=1), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient(packed["b"], reduction, 2, axes=1), expected, rtol=1e-5)


def test_out_in_a_packed_record_is_refused():
    out = np.zeros((2, 4), [("a", "u1"), ("b", "f4")])
    with pytest.raises(ValueError, match="out must be aligned"):
        ap.pool(np.ones((2, 8), np.float32), "sum", 2, axes=1, out=out["b"])
    assert not out["a"].any()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": (3, 1), "dilation": (2**56, 1), "padding": (2**56, 0)},
        {"kernel_size": (2**56, 1), "padding": (2**55, 0)},
        {"kernel_size": (1, 2**62 - 64), "padding": (0, 2**62 - 66)},
    ],
)
def test_windows_beyond_all_measure_are_refused(kwargs, backend):
    with pytest.raises(ValueError, match=r"(kernel_size|dilation)\[\d\] .*2\*\*40"):
        ap.pool(np.ones((8, 8), np.float16), "max", stride=1, **kwargs)


def test_windows_of_more_taps_than_64_bits_count_are_refused(backend):
    """Whose codes wrapped around: found by the sanitizers."""
    x, windows = np.ones((4, 4), np.float32), {"stride": 1, "padding": (2**38, 2**38)}
    with pytest.raises(
        ValueError, match=r"kernel_size must give a window fewer than 2\*\*62 taps, got \(549755813888, 5"
    ):
        ap.pool(x, "max", (2**39, 2**39), return_indices=True, **windows)


def test_indices_and_means_of_windows_of_nearly_so_many_taps(backend):
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    wide = {"axes": (0, 1), "kernel_size": (2**22, 2**39), "stride": 1, "padding": ((2**22 - 1, 0), (2**39 - 1, 0))}
    at = ap.pool(x, "max", return_indices=True, **wide)[1]
    assert at.tolist() == np.arange(16).reshape(4, 4).tolist()
    assert ap.pool(x, "mean", **wide)[-1, -1] == np.float32(120 / 2**61)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "windows",
    [
        {"kernel_size": 3, "stride": 2**39},
        {"kernel_size": 3, "stride": 2**39, "dilation": 2**38, "padding": 2**38},
        {"kernel_size": 3, "stride": 2**39, "padding": 2**30, "empty": 0.0},  # the only window lies in the padding
        {"kernel_size": 3, "stride": 2**30, "dilation": 2**31, "padding": 2**31},
        {"kernel_size": 2**31 + 1, "stride": 2**29, "padding": 2**30},
        {"kernel_size": 3, "stride": 2**12, "dilation": 2**12, "padding": 2**12},
    ],
)
def test_gradients_of_windows_wider_than_memory(windows, rows, backend):
    """One for each output, at the winner: of all columns that windows reach, only those of the input need room."""
    x = np.random.default_rng(0).permutation(rows * 50).reshape(rows, 50).astype(np.float32)
    y = ap.pool(x, "max", axes=1, **windows)
    wanted = np.zeros_like(x)
    for row in range(rows):
        for o in range(y.shape[1]):
            first, step = o * windows["stride"] - windows.get("padding", 0), windows.get("dilation", 1)
            last = first + (windows["kernel_size"] - 1) * step
            seen = [j for j in range(50) if first <= j <= last and (j - first) % step == 0]
            if seen:
                wanted[row, max(seen, key=lambda j: x[row, j])] += row * y.shape[1] + o + 1
    np.testing.assert_array_equal(gradient(x, "max", axes=1, **windows), wanted)


def test_memory_follows_the_data_and_not_the_padding():
    resource = pytest.importorskip("resource", reason="this system does not tell its memory")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    y = ap.pool(np.ones((4, 200), np.float16), "max", 3, axes=1, stride=1, dilation=2**26, padding=2**26)
    assert (y == 1).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kilobytes


def test_a_window_of_a_thousand_million_taps_is_quick():
    x = np.arange(50.0)
    assert ap.pool(x, "sum", 2**30, stride=2**29, padding=2**30 - 1).tolist() == [0.0, 1225.0, 1225.0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sums_of_negative_zeros_stay_negative(dtype, backend):
    x = np.full((1, 1, 9, 60), -0.0, dtype)
    y = ap.pool(x, "sum", (3, 3), axes=(2, 3), stride=2, padding=1)
    assert np.signbit(y).all()


def test_logsumexp_of_an_infinity_beside_a_large_number(backend):
    assert ap.pool(np.array([0, np.inf, 3e4]), "logsumexp", 3).tolist() == [np.inf]


def test_gradients_in_halves_use_the_exact_result(backend):
    x = np.array([1000.2, 1000.9, 1001, 999], np.float16)
    y, pullback = ap.vjp(ap.pool, x, "logsumexp", 4)
    assert abs(float(pullback(np.ones_like(y)).sum(dtype=np.float64)) - 1) < 2e-3


def test_the_fastest_way_is_told():
    with backends.use("native"):
        explained = ap.explain(ap.max_pool2d, np.zeros((1, 1, 64, 64), np.float32), 3, 2, 1)
    assert "fused rows" in str(explained)


@pytest.mark.parametrize("width", [5, 20, 33])
@pytest.mark.parametrize(
    ("stride", "dilation", "padding"),
    [(1, 1, 1), (2, 1, 1), (2, (3, 1), 1), (1, 2, 1), ((1, 2), 1, 1), ((2, 1), 1, 0), ((2, 1), (2, 1), 1)],
)
def test_no_nan_is_lost_in_whatever_row_it_stands(width, stride, dilation, padding):
    # Fused maxima compare numbers only, and look for NaNs in the rows that are new to a window.
    met = 0
    for row in range(9):
        x = np.zeros((9, width), np.float32)
        x[row, 2] = np.nan
        arguments = {"stride": stride, "dilation": dilation, "padding": padding, "ceil_mode": True}
        got = ap.pool(x, "max", 3, **arguments)
        with backends.use("reference"):
            want = ap.pool(x, "max", 3, **arguments)
        np.testing.assert_array_equal(got, want)
        met += int(np.isnan(want).any())
    assert met > 2


@pytest.mark.parametrize("dilation", [1, 2])
def test_gradients_in_3d_keep_apart_the_rows_that_one_input_was_seen_by(dilation):
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 6, 20)).astype(np.float32)
    arguments = {"axes": (-3, -2, -1), "stride": 1, "dilation": dilation}
    got = gradient(x, "max", (2, 2, 3), **arguments)
    with backends.use("reference"):
        np.testing.assert_allclose(got, gradient(x, "max", (2, 2, 3), **arguments), rtol=1e-6)


@pytest.mark.parametrize("width", [61, 200])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_padding_before_a_picture_s_first_column_is_not_read(dtype, width, backend):
    x = np.full((1, 9, width, 3), 7, dtype)
    assert (ap.max_pool2d(x, 2, padding=1, data_format="channels_last") == 7).all()
    mean = ap.avg_pool2d(x, 2, padding=1, count_include_pad=False, data_format="channels_last")
    assert (mean == 7).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_std_of_one_token_that_is_no_number(value, dtype, backend):
    x = np.full((1, 67), value, dtype)
    assert np.isnan(ap.pool_tokens(x, "std")).all()
    assert np.isnan(ap.pool_tokens(np.zeros((1, 67)) + value, "std", weights=[2.0])).all()
    assert not ap.pool_tokens(np.full((1, 67), 1e30, np.float32), "std").any()


@pytest.mark.parametrize("heads", [(), (3,)])
def test_attention_over_no_spans_has_gradients(heads, backend):
    x, query = np.ones((7, 4), np.float32), np.ones((*heads, 4), np.float32)
    y, pullback = ap.vjp(ap.attention_pool, x, query, spans=np.zeros((0, 2), int))
    assert y.shape == (0, *heads, 4)
    of_x, of_query = pullback(y)
    assert of_x.shape == x.shape
    assert of_query.shape == query.shape
    assert not of_x.any()
    assert not of_query.any()


def test_infinite_scores_are_the_limit_and_say_nothing(backend):
    x = np.array([[1.0, 2.0], [np.inf, 0.0], [3.0, 1.0], [np.inf, 5.0]])
    values = np.array([[1.0], [2.0], [7.0], [4.0]])
    assert ap.attention_pool(x, np.array([1.0, 0.0]), values=values).tolist() == [3.0]
    assert ap.attention_pool(x[:3], np.array([-1.0, 0.0]), values=values[:3])[0] < 7  # a weight of 0, not a NaN
    assert np.isnan(ap.attention_pool(x, np.array([0.0, 1.0]), values=values)).all()  # inf · 0


def test_a_number_is_no_row_of_tokens():
    with pytest.raises(ValueError, match="dimensions"):
        ap.TokenPooling(("mean",), dimension=3)(np.float32(1))


def windows_by_hand(n, kernel, stride, dilation, pads, outputs):
    return [[j for t in range(kernel) if 0 <= (j := o * stride - pads[0] + t * dilation) < n] for o in range(outputs)]


def test_windows_without_input_are_found_and_others_transposed():
    """All small windows by hand: some with only padding behind the data used to give -inf."""
    for n, k, s, d, lo, hi in itertools.product((1, 2, 5), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 6), (0, 1, 4, 9), (0, 7)):
        for ceil in (False, True):
            m = output_size(n, k, s, d, (lo, hi), ceil)
            if m < 1:
                continue
            axis = Sliding(n, m, k, d, s, lo, hi)
            seen = windows_by_hand(n, k, s, d, (lo, hi), m)
            empty = axis.first_empty()
            assert (empty is None) == all(seen), axis
            assert empty is None or not seen[empty]
            transposed = axis.transpose()
            if all(seen):
                for j in range(n):
                    assert list(transposed.taps(j)) == [o for o in range(m) if j in seen[o]], axis


def test_a_window_in_the_padding_behind_the_data():
    with pytest.raises(
        ValueError, match=r"padding\[0\] must leave every window some input, or empty= give a value: window 3"
    ):
        ap.pool(np.ones(2), "max", 2, stride=1, dilation=3, padding=((0, 5),))


@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_gradients_of_far_dilations_take_no_longer(reduction):
    """Looking for the windows that saw an input went through as many outputs as taps are apart: 2**38."""
    far = 2**38 + 1
    y, pullback = ap.vjp(ap.pool, np.arange(8.0), reduction, 3, stride=2, dilation=far, padding=far)
    assert y.tolist() == [0, 2, 4, 6]
    assert pullback(np.arange(1.0, 5)).tolist() == [1, 0, 2, 0, 3, 0, 4, 0]


def test_a_thousand_million_windows_over_one_element_are_refused_at_once(monkeypatch):
    monkeypatch.setattr("anypool.limits.available", lambda: 1 << 30)
    with pytest.raises(MemoryError, match=r"needs 256\.0 GiB"):
        ap.pool(np.ones(1, np.uint8), "max", 2**38, stride=2, dilation=2, padding=2**39 - 2)


@pytest.mark.parametrize("offsets", [[0, 2**63 - 1, -2, 7], [0, -1, 7], [0, 8, 7]])
def test_offsets_whose_differences_leave_64_bits(offsets):
    """Differences wrapped around to lengths that looked right, and memory far away was read."""
    with pytest.raises(ValueError, match="offsets must not fall"):
        ap.pool_tokens(np.ones((7, 4)), "mean", offsets=offsets)


def test_values_that_a_dtype_cannot_hold_are_infinite_without_a_word(backend):
    assert ap.avg_pool1d(np.zeros((1, 0), np.float16), 1, empty=0, mask=np.zeros((1, 0), bool), padding=1).shape == (
        1,
        2,
    )
    y = ap.avg_pool1d(np.zeros((1, 2), np.float16), 2, mask=[False, False], empty=2**31)
    assert np.isposinf(y).all()
    x, query = np.full((1, 3, 2), 1.0), np.full(2, np.inf)
    assert np.isnan(ap.attention_pool(x, query, scale=0.0)).all()
    y, _ = ap.vjp(ap.attention_pool, np.ones((1, 3, 2), np.float16), np.ones(2, np.float16), lengths=[0], empty=2**63)
    assert np.isposinf(y).all()
    _, pullback = ap.vjp(ap.pool_tokens, np.full((1, 3, 2), 6e4, np.float16), ["max", "sum"])
    assert pullback(np.ones((1, 4), np.float16)).shape == (1, 3, 2)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_what_is_left_out_of_integers_may_be_infinite_in_the_result(backend, dtype):
    """The largest integer stood for what does not count, and warned on its way to a float16."""
    x = np.arange(36, dtype=dtype).reshape(1, 36)
    mask = np.arange(36) % 3 > 0
    y, valid = ap.pool(x, "min", 2, axes=1, dtype=np.float16, mask=mask, empty=-1, return_valid=True)
    np.testing.assert_array_equal(valid, mask.reshape(1, 18, 2).sum(2))
    np.testing.assert_array_equal(y[0], np.where(mask, x[0], np.inf).reshape(18, 2).min(1))


def test_complex_numbers_with_weights_are_refused():
    with pytest.raises(TypeError, match="x must be bool, integer"):
        ap.avg_pool1d(np.ones((1, 4), complex), 2, weights=np.ones(4))


def test_no_spans_of_several_sequences_have_gradients(backend):
    """The pullback did not know how wide a result of no rows is."""
    y, pullback = ap.vjp(
        ap.pool_tokens, np.ones((2, 5, 3), np.float32), ["mean", "std"], spans=np.zeros((2, 0, 2), int)
    )
    assert y.shape == (2, 0, 6)
    np.testing.assert_array_equal(pullback(y), np.zeros((2, 5, 3)))


def test_a_variance_below_zero_has_no_root(backend):
    """Weights below 0 made one, and native code took it for 0."""
    x = np.array([[[1.0, 3.0], [2.0, 1.0], [4.0, 3.0]]])
    y = ap.pool_tokens(x, "std", weights=[[1.0, 1.0, -0.5]])
    np.testing.assert_array_equal(np.isnan(y), [[True, False]])


def test_short_rows_of_windows_without_a_kernel(backend):
    """The engine took several planes to a kernel that was not there."""
    x = np.arange(54 * 8 * 7, dtype=np.float32).reshape(54, 8, 7)
    np.testing.assert_array_equal(ap.pool(x, "min", (2, 3), stride=1, axes=(1, 2)), x[:, :-1, :-2])


@pytest.mark.parametrize("dilation", [2, (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("stride", [1, (1, 2), 2])
def test_nans_between_the_rows_of_the_first_window(stride, dilation):
    """Several planes at once looked for NaNs in the rows of the first window, and not in those between them."""
    for row in range(20):
        x = np.zeros((1, 16, 20, 20), np.float32)
        x[..., row, 7] = np.nan
        results = []
        for name in ("native", "reference"):
            with ap.backends.use(name):
                results.append(ap.max_pool2d(x, 3, stride, dilation=dilation))
        np.testing.assert_array_equal(*results)


CHANGED = {  # name: (call, arrays that the caller writes into before the pullback runs)
    "mask": (lambda x, a: ap.vjp(ap.pool, x, "sum", 2, axes=1, mask=a), np.arange(24).reshape(4, 6) % 3 > 0),
    "weights": (lambda x, a: ap.vjp(ap.pool, x, "mean", 2, axes=1, weights=a), np.arange(1.0, 25).reshape(4, 6)),
    "offsets": (lambda x, a: ap.vjp(ap.pool_tokens, x, ["max", "sum"], offsets=a), np.array([0, 1, 4])),
    "lengths": (lambda x, a: ap.vjp(ap.pool_tokens, x[None], "std", lengths=a), np.array([3])),
    "spans": (lambda x, a: ap.vjp(ap.pool_tokens, x[None], "max", spans=a), np.array([[[0, 2], [1, 4]]])),
    "segments": (lambda x, a: ap.vjp(ap.pool_tokens, x, "mean", segment_ids=a), np.array([0, 0, 1, 1])),
    "token weights": (lambda x, a: ap.vjp(ap.pool_tokens, x[None], "mean", weights=a), np.array([[1.0, 2, 3, 4]])),
    "attention": (lambda x, a: ap.vjp(ap.attention_pool, x, x[:1], offsets=a), np.array([0, 2, 4])),
    "samples": (
        lambda x, a: ap.vjp(ap.fractional_max_pool2d, x[None], 2, output_size=2, _random_samples=a),
        np.array([[[0.2, 0.9]]]),
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_pullback_keeps_nothing_that_the_caller_may_change(name):
    """Offsets that had been changed ended the process: the kernels do not check them again."""
    call, given = CHANGED[name]
    x = np.random.default_rng(0).standard_normal((4, 6))
    gradients = []
    for changed in (False, True):
        mine = given.copy()
        y, pullback = call(x, mine)
        if changed:
            mine[...] = 0 if mine.dtype.kind in "bf" else 10**8
        found = pullback(np.ones_like(y))
        gradients.append(found if isinstance(found, tuple) else (found,))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_unpooled_records_a_gradient():
    """Zeros were made anew, which no gradient reaches."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for shape, size in (((0, 2, 4), 8), ((2, 2, 0), 1)):
        x = torch.zeros(shape, requires_grad=True)
        y = ap.max_unpool1d(x, torch.zeros(shape, dtype=torch.int64), 2, output_size=[size])
        assert y.shape == (*shape[:2], size)
        y.sum().backward()
        assert x.grad.shape == shape


def test_defaults_of_pool_are_known():
    """What a reduction does not use is refused unless it is the default: a second place knows these."""
    known = {n: p.default for n, p in inspect.signature(ap.pool).parameters.items() if n in operation._DEFAULTS}
    assert known == operation._DEFAULTS
