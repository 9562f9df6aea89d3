"""Masks, weights, omitted NaNs and empty windows, against the oracle and as laws."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anypool as ap
import cases
import oracle
import strategies
import tolerance
from anypool import limits, selection
from anypool.backends import gathered
from truths import oracle_options

SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # they hold for all examples

OPTIONS = {
    "mean": ({}, {"count_include_pad": False}, {"divisor_override": 300}),
    "lp": ({"norm_type": 1}, {"norm_type": 2}, {"norm_type": 3}, {"norm_type": np.inf}),
    "logsumexp": ({}, {"r": -2.0}),
}


@pytest.fixture(params=["whole", "pieces"])
def cut(request, monkeypatch):
    """With so small a bound every axis that can be cut is cut."""
    if request.param == "pieces":
        monkeypatch.setattr(selection, "PIECE", 64)


@st.composite
def masks(draw, shape: tuple[int, ...]) -> np.ndarray:
    """A mask that is broadcast on some axes; few, half or nearly all inputs count."""
    some = tuple(1 if draw(st.booleans()) else n for n in shape)
    kept = some[draw(st.integers(0, len(shape) - 1)) :] if draw(st.booleans()) else some
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return generator.random(kept) < draw(st.sampled_from((0.1, 0.5, 0.95, 1.0)))


def truth_options(reduction: str, turn: int) -> dict:
    table = OPTIONS.get(reduction, ({},))
    return table[turn % len(table)]


def expected(x, axes, windows, reduction: str, options: dict, **selected):
    geometry = oracle.sliding_axes([x.shape[a] for a in axes], **windows)
    given = oracle_options(options)
    if given.get("r", 1) < 0:  # the oracle's log of a sum looks for the largest number first
        given["r"], x, selected["empty"] = -given["r"], -x, -selected["empty"]
        truth = oracle.pool(x, axes, geometry, reduction, **given, **selected)
        truth.values = -truth.values
        return truth
    return oracle.pool(x, axes, geometry, reduction, **given, **selected)


def ulps(reduction: str):
    return None if reduction in ("max", "min") else tolerance.ULPS[reduction]


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@settings(SETTINGS, max_examples=40)
@given(data=st.data())
def test_masked(reduction, data, backend, cut):
    x, axes, windows = data.draw(strategies.pooling(longest=12))
    mask, turn = data.draw(masks(x.shape)), data.draw(st.integers(0, 9))
    options = truth_options(reduction, turn)
    if not tolerance.is_float(x.dtype) and reduction == "logsumexp":
        x = (x % 5).astype(np.float64)
    if x.dtype.itemsize == 8 and x.dtype.kind in "iu":
        x = x >> 16  # sums of 64-bit integers wrap around, those of the oracle's means do not
    empty = data.draw(st.sampled_from((0, 1)))
    truth = expected(x, axes, windows, reduction, options, mask=mask, empty=empty)
    arguments = {"axes": axes, "mask": mask, "empty": empty, **windows, **options}
    y, valid = ap.pool(x, reduction, return_valid=True, **arguments)
    tolerance.check(y, truth, y.dtype, ulps(reduction) if tolerance.is_float(y.dtype) else None, "masked")
    geometry = oracle.sliding_axes([x.shape[a] for a in axes], **windows)
    counts = oracle.pool(np.broadcast_to(mask, x.shape).astype(np.int64), axes, geometry, "sum").values
    assert valid.dtype == np.int64
    np.testing.assert_array_equal(valid, counts)
    if truth.indices is not None:
        _, indices = ap.pool(x, reduction, return_indices=True, **arguments)
        np.testing.assert_array_equal(indices, truth.indices)


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@settings(SETTINGS, max_examples=25)
@given(data=st.data())
def test_gradient_of_masked(reduction, data, backend, cut):
    x, axes, windows = data.draw(strategies.pooling(cases.FLOATS, special=False, longest=9))
    mask, options = data.draw(masks(x.shape)), truth_options(reduction, data.draw(st.integers(0, 9)))
    if reduction in ("lp", "logsumexp"):  # an error of y, which is rounded first, shows in |x / y| and exp(x - y)
        options = options if reduction == "lp" else {}
        x = np.clip(x, x.dtype.type(-2), x.dtype.type(2))
    x = np.where(np.broadcast_to(mask, x.shape), x, x.dtype.type(np.nan))  # what is masked is never looked at
    clean = np.where(np.isnan(x), x.dtype.type(0), x)
    y, pullback = ap.vjp(ap.pool, x, reduction, axes=axes, mask=mask, **windows, **options)
    grad = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    geometry = oracle.sliding_axes([x.shape[a] for a in axes], **windows)
    truth = oracle.pullback(clean, grad, axes, geometry, reduction, mask=mask, **oracle_options(options))
    tolerance.check(pullback(grad), truth, x.dtype, tolerance.GRADIENT_ULPS[reduction], "gradient")


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@settings(SETTINGS, max_examples=40)
@given(data=st.data())
def test_weighted(reduction, data, backend, cut):
    x, axes, windows = data.draw(strategies.pooling(special=False, longest=9))
    shape = data.draw(masks(x.shape)).shape
    weights = np.random.default_rng(2).integers(1, 9, shape) / 8
    mask = data.draw(st.none() | masks(x.shape))
    wide = x if tolerance.is_float(x.dtype) else x.astype(np.float64)
    truth = expected(wide, axes, windows, reduction, {}, mask=mask, weights=weights, empty=np.nan)
    y = ap.pool(x, reduction, axes=axes, mask=mask, weights=weights, **windows)
    tolerance.check(y, truth, wide.dtype, 4, "weighted")
    if not tolerance.is_float(x.dtype):
        return
    y, pullback = ap.vjp(ap.pool, x, reduction, axes=axes, mask=mask, weights=weights, **windows)
    grad = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    geometry = oracle.sliding_axes([x.shape[a] for a in axes], **windows)
    truth = oracle.pullback(x, grad, axes, geometry, reduction, mask=mask, weights=weights)
    tolerance.check(pullback(grad), truth, x.dtype, 6, "gradient")


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@settings(SETTINGS, max_examples=40)
@given(data=st.data())
def test_a_mask_of_true_changes_no_bit(reduction, data, backend, cut):
    x, axes, windows = data.draw(strategies.pooling(longest=30))
    options = truth_options(reduction, data.draw(st.integers(0, 9)))
    shape = data.draw(masks(x.shape)).shape
    plain = ap.pool(x, reduction, axes=axes, **windows, **options)
    masked = ap.pool(x, reduction, axes=axes, mask=np.ones(shape, bool), **windows, **options)
    assert tolerance.same_bits(plain, masked)


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@settings(SETTINGS, max_examples=40)
@given(data=st.data())
def test_omitting_nan_is_masking_it(reduction, data, backend, cut):
    x, axes, windows = data.draw(strategies.pooling(cases.FLOATS))
    mask = data.draw(st.none() | masks(x.shape))
    numbers = ~np.isnan(x) if mask is None else mask & ~np.isnan(x)
    omitted, n = ap.pool(x, reduction, axes=axes, mask=mask, nan="omit", return_valid=True, **windows)
    masked, m = ap.pool(x, reduction, axes=axes, mask=numbers, return_valid=True, **windows)
    assert tolerance.same_bits(omitted, masked)
    np.testing.assert_array_equal(n, m)
    assert ((n == 0) <= np.isnan(omitted)).all()


FUNCTIONS = [
    (ap.max_pool1d, 1, (2,), {}),
    (ap.max_pool3d, 3, (2,), {"padding": 1}),
    (ap.avg_pool2d, 2, (3, 2), {"padding": 1, "count_include_pad": False}),
    (ap.lp_pool2d, 2, (3, 2), {}),
    (ap.adaptive_avg_pool2d, 2, (3,), {}),
    (ap.adaptive_max_pool1d, 1, (3,), {}),
    (ap.global_avg_pool, 2, (), {"keepdims": False}),
    (ap.global_max_pool, 3, (), {}),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("function", "rank", "args", "kwargs"), FUNCTIONS, ids=lambda f: getattr(f, "__name__", ""))
def test_every_function_takes_masks(function, rank, args, kwargs, last, backend, cut):
    """What is masked may be anything: the result and its gradient are those of the same call with NaN omitted."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, 7, 6, 8)[: rank + 2]).astype(np.float32)
    mask = rng.random(x.shape) < 0.7
    if last:
        x, mask, kwargs = np.moveaxis(x, 1, -1), np.moveaxis(mask, 1, -1), kwargs | {"data_format": "channels_last"}
    kwargs = kwargs | {"empty": 0}
    y, pullback = ap.vjp(function, np.where(mask, x, np.inf), *args, mask=mask, **kwargs)
    z, other = ap.vjp(function, np.where(mask, x, np.nan), *args, nan="omit", **kwargs)
    assert tolerance.same_bits(y, z)
    assert np.isfinite(y).all()
    assert tolerance.same_bits(pullback(np.ones_like(y)), other(np.ones_like(z)))
    assert (pullback(np.ones_like(y))[~mask] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32", "bool"])
def test_the_lowest_value_wins_where_it_counts(dtype, backend, cut):
    """A masked input is no tie, even where all that count are as small as a number can be."""
    lowest = np.array(-np.inf if dtype == "float32" else 0 if dtype == "bool" else np.iinfo(dtype).min, dtype)
    mask = np.array([[False, True, True, False, False, False]])
    y, at, n = ap.pool(np.full((1, 6), lowest), "max", 2, axes=1, mask=mask, empty=1, return_indices=True,
                       return_valid=True)  # fmt: skip
    assert y.tolist() == [[lowest, lowest, 1]]
    assert at.tolist() == [[1, 2, -1]]
    assert n.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(("dtype", "result"), [("uint8", "int32"), ("int8", "float32"), ("float64", "float32")])
def test_the_lowest_value_of_a_dtype_in_another(dtype, result, backend):
    """Ties are found before the result is rounded or widened."""
    lowest = -1e300 if dtype == "float64" else np.iinfo(dtype).min
    x = np.array([[lowest, lowest, lowest, lowest * 0.5]]).astype(dtype)
    mask = np.array([[False, True, True, True]])
    y, at = ap.pool(x, "max", 2, axes=1, mask=mask, dtype=result, return_indices=True)
    wanted = oracle.pool(x, (1,), oracle.sliding_axes((4,), 2), "max", mask=mask)
    np.testing.assert_array_equal(at, wanted.indices)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, wanted.values.astype(result))


def test_windows_without_input(backend):
    x = np.array([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"padding\[0\] must leave every window some input, or empty= give a value"):
        ap.max_pool1d(x, 2, padding=2)
    assert ap.max_pool1d(x, 2, padding=2, empty=-1).tolist() == [[-1, 2, -1]]
    y, n = ap.avg_pool1d(x, 2, padding=2, empty=0, return_valid=True)
    assert (y.tolist(), n.tolist()) == ([[0, 1.5, 0]], [[0, 2, 0]])
    y, pullback = ap.vjp(ap.avg_pool1d, x, 2, padding=2, empty=0)
    assert pullback(np.ones_like(y)).tolist() == [[0.5, 0.5]]
    assert ap.global_avg_pool(np.ones((2, 3, 0, 4)), empty=7, keepdims=False).tolist() == [[7] * 3] * 2
    assert ap.adaptive_max_pool1d(np.ones((1, 2, 0)), 2, empty=0).tolist() == [[[0, 0], [0, 0]]]
    assert ap.global_max_pool(np.ones((0, 3, 4)), empty=7).shape == (0, 3, 1)


def test_an_integer_result_needs_a_value_for_nothing(backend, cut):
    x, mask = np.arange(8).reshape(1, 8), np.arange(8) < 4
    out = np.full((1, 4), -7)
    with pytest.raises(ValueError, match=r"mask must leave every window some input, or empty= give a value of int64"):
        ap.pool(x, "max", 2, axes=1, mask=mask, out=out)
    assert (out == -7).all()  # nothing was written
    assert ap.pool(x, "max", 2, axes=1, mask=mask, empty=-1, out=out).tolist() == [[1, 3, -1, -1]]
    assert np.isnan(ap.pool(x, "mean", 2, axes=1, mask=mask, dtype=np.float32)).tolist() == [[False, False, True, True]]


def test_weights_of_zero_are_factors_and_masks_are_not(backend):
    x = np.array([[1.0, np.nan]])
    assert np.isnan(ap.pool(x, "mean", 2, axes=1, weights=[1, 0]))
    assert ap.pool(x, "mean", 2, axes=1, mask=[True, False]) == 1
    assert np.isnan(ap.pool(x, "mean", 2, axes=1, weights=[0, 0], mask=[True, False]))  # 0 / 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": np.ones(3, bool)}, ValueError, r"mask must broadcast to the shape of x, got shape \(3,\)"),
        ({"mask": np.ones((1, 1, 1, 4), bool)}, ValueError, r"mask must broadcast to the shape of x"),
        ({"mask": np.ma.ones(4, bool)}, TypeError, r"mask must not be a masked array"),
        ({"mask": np.ones(4)}, TypeError, r"mask must be bool, got dtype float64 \(x: \(1, 2, 4\)\)"),
        ({"weights": np.ones(4, complex)}, TypeError, r"weights must be real numbers, got dtype complex128"),
        (
            {"weights": np.ones(4), "divisor_override": 2},
            ValueError,
            r"weights and divisor_override exclude each other",
        ),
        ({"nan": "drop"}, ValueError, r'nan must be "propagate" or "omit", got \'drop\''),
        ({"nan": None}, ValueError, r'nan must be "propagate" or "omit", got None'),
        ({"empty": "0"}, TypeError, r"empty must be a number, got '0' of type str"),
        ({"empty": [0]}, TypeError, r"empty must be a number, got \[0\] of type list"),
        ({"return_valid": 1}, TypeError, r"return_valid must be a bool, got 1 of type int"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ap.avg_pool1d(np.ones((1, 2, 4)), 2, **arguments)


def test_weights_need_a_sum():
    with pytest.raises(ValueError, match=r"weights need a sum or mean, got reduction 'max'"):
        ap.pool(np.ones(4), "max", 2, weights=np.ones(4))


@pytest.mark.parametrize("empty", [0.5, 300, -1, np.nan, np.inf, np.float16(np.nan), np.float16(300), np.int8(-1)])
def test_a_value_for_nothing_that_the_dtype_has_not(empty):
    with pytest.raises(ValueError, match=r"empty must be a value of uint8, got"):
        ap.max_pool1d(np.ones((1, 2, 4), np.uint8), 2, empty=empty, mask=np.ones(4, bool))


def test_out_must_not_overlap_what_is_read():
    memory = np.ones((1, 2, 8))
    with pytest.raises(ValueError, match="out must not overlap weights"):
        ap.avg_pool1d(np.ones((1, 2, 8)), 2, weights=memory, out=memory[..., :4])


def test_no_copy_of_the_array_is_made():
    import tracemalloc

    x, mask = np.ones((1, 1, 4096, 2048), np.float32), np.ones((1, 1, 4096, 2048), bool)
    ap.max_pool2d(x, 2, mask=mask)
    tracemalloc.start()
    ap.max_pool2d(x, 2, mask=mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes // 4 + 8 * selection.PIECE  # the result, and a few pieces


# ---- what an audit found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("byte", [1, 2, 128, 255])
def test_bytes_of_bools(byte, backend):
    """A view of bytes as bools may hold others than 0 and 1: sums of them counted 256 times too much, or 0."""
    x = np.arange(24.0).reshape(1, 1, 4, 6)
    plain = np.arange(24).reshape(x.shape) % 5 > 1
    mask = (plain * np.uint8(byte)).view(bool)
    for reduction in ("mean", "max", "sum"):
        for a in (x, x.astype(np.int64)):
            results = [ap.pool(a, reduction, (2, 2), mask=m, return_valid=True, empty=0) for m in (mask, plain)]
            np.testing.assert_array_equal(results[0], results[1])
    gradients = []
    for m in (mask, plain):
        y, pullback = ap.vjp(ap.pool, x, "mean", (2, 2), mask=m)
        gradients.append(pullback(np.ones_like(y)))
    np.testing.assert_array_equal(*gradients)
    for reduction in ("sum", "mean"):
        np.testing.assert_array_equal(ap.pool(mask, reduction, (2, 2)), ap.pool(plain, reduction, (2, 2)))
    indices = [ap.pool(m, "max", (2, 2), return_indices=True)[1] for m in (mask, plain)]
    np.testing.assert_array_equal(*indices)


def test_nothing_of_the_size_of_a_result_is_kept():
    """The padding of every window was, for each shape there had been."""
    mask = np.ones((1, 1, 700, 730), bool)
    x = np.zeros(mask.shape, np.float32)
    ap.max_pool2d(x, 3, 1, 1, mask=mask, return_valid=True)
    tracemalloc.start()
    try:
        for width in range(700, 720):
            ap.avg_pool2d(x[..., :width], 3, 1, 1, mask=mask[..., :width], return_valid=True)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_peak_of_masked_means(dtype):
    """Pieces of bytes were as long as what they are added up in was wide."""
    x, mask = np.ones((1, 1, 2048, 2048), dtype), np.ones((1, 1, 2048, 2048), bool)
    tracemalloc.start()
    try:
        ap.avg_pool2d(x, 3, 1, 1, mask=mask, return_valid=dtype == "float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


UNUSED = {"ignore": 255, "q": 0.5, "r": 2.0, "norm_type": "x", "correction": 1, "generator": np.random.default_rng(0)}


@pytest.mark.parametrize("name", UNUSED)
@pytest.mark.parametrize("more", [{}, {"nan": "omit", "mask": True}], ids=["plain", "selected"])
def test_what_a_reduction_does_not_use_is_refused(name, more):
    with pytest.raises(ValueError, match=f"^{name} is not for reduction 'max', got"):
        ap.pool(np.ones(4), "max", 2, **{name: UNUSED[name]}, **more)


def in_pieces(x, out):
    """Calls that write their result in several steps."""
    mask = np.ones(x.shape, bool)
    yield lambda: ap.max_pool1d(x, 2, nan="omit", return_indices=True, out=out)
    yield lambda: ap.avg_pool1d(x, 2, mask=mask, return_valid=True, out=out)
    yield lambda: ap.pool(x, "median", 2, axes=2, out=out)
    yield lambda: ap.pool(x, "var", 2, axes=2, mask=mask, out=out)


@pytest.mark.parametrize("which", range(4))
def test_an_interrupt_leaves_out_as_it_was(which, monkeypatch):
    """Ctrl-C between two pieces."""
    x = np.random.default_rng(0).standard_normal((64, 4, 512)).astype(np.float32)
    out = np.full((64, 4, 256), 7, np.float32)
    monkeypatch.setattr(selection, "PIECE", 1 << 14)
    monkeypatch.setattr(gathered, "PIECE", 1 << 10)
    steps = itertools.count()

    def interrupted(function):
        def step(*args, **kwargs):
            if next(steps) == 5:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return step

    monkeypatch.setattr(selection.Selected, "_forward", interrupted(selection.Selected._forward))
    monkeypatch.setattr(gathered, "_gather", interrupted(gathered._gather))
    with pytest.raises(KeyboardInterrupt):
        list(in_pieces(x, out))[which]()
    assert (out == 7).all()


def test_floating_point_errors_are_not_ours():
    """With NumPy told to raise, casts in the middle of a result did."""
    x = np.full((8, 1, 16), 1e-30, np.float32)
    with np.errstate(all="raise"):
        y, _ = ap.max_pool1d(x, 2, nan="omit", dtype=np.float16, return_indices=True)
        assert (y == 0).all()
        y, pullback = ap.vjp(ap.avg_pool1d, x, 2, weights=np.full(16, 1e-30, np.float32))
        assert pullback(np.full(y.shape, 1e300)).shape == x.shape


def test_tables_of_taps_are_compared_with_what_is_free(monkeypatch):
    """A window of 2 ** 28 taps over four elements takes gigabytes."""
    monkeypatch.setattr(limits, "available", lambda: 1 << 20)
    monkeypatch.setattr(limits, "LARGE", 1 << 16)
    with pytest.raises(MemoryError, match="a window's inputs, ordered and weighed, needs"):
        ap.pool(np.ones(4), "median", 2**24, padding=2**23)
    y, pullback = ap.vjp(ap.pool, np.ones(4), "max", 2**24, padding=2**23)
    with pytest.raises(MemoryError, match="a table of the window's taps needs"):
        pullback(np.ones_like(y))


def test_windows_in_the_padding_beside_others(backend):
    """The largest magnitude of no element was -inf, where all others had a winner."""
    y = ap.pool(np.array([1.0, 2.0]), "lp", 1, padding=1, norm_type=np.inf, nan="omit", empty=0.0)
    assert y.tolist() == [0, 1, 2, 0]


def test_arguments_that_leave_nothing_out():
    """An ``empty`` that no window needs changes neither results nor gradients."""
    x = cases.rng(5).standard_normal((2, 3, 8))
    for function, args in ((ap.avg_pool1d, (3, 2, 1)), (ap.max_pool1d, (2,))):
        y, pullback = ap.vjp(function, x, *args, empty=-1.0)
        wanted, pull = ap.vjp(function, x, *args)
        g = cases.rng(6).standard_normal(y.shape)
        assert tolerance.same_bits(y, wanted)
        assert tolerance.same_bits(pullback(g), pull(g))


@pytest.mark.parametrize(("shape", "grad"), [((0, 3, 4), (0, 3, 2)), ((2, 3, 0), (2, 3, 2))])
@pytest.mark.parametrize("reduction", ["sum", "mean", "lp"])
def test_gradients_of_nothing(reduction, shape, grad, backend):
    x = np.ones(shape)
    padding = 2 if shape[2] == 0 else 0
    y, pullback = ap.vjp(ap.pool, x, reduction, 2, axes=2, padding=padding, mask=np.ones(shape[2], bool), empty=3.0)
    assert y.shape == grad
    assert (y == 3).all()
    assert pullback(np.ones(grad)).shape == shape
    y, pullback = ap.vjp(ap.adaptive_avg_pool1d, np.ones((2, 3, 4)), 0, mask=np.ones(4, bool))
    assert y.shape == (2, 3, 0)
    found = pullback(y)
    assert found.shape == (2, 3, 4)
    assert not found.any()


def test_no_gradient_of_a_tensor_either():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for x, mask in ((np.ones(4), np.ones(4, bool)), (torch.ones(4), torch.ones(4, dtype=torch.bool))):
        with pytest.raises(TypeError, match=r"^vjp needs a reduction with a gradient, got 'any'"):
            ap.vjp(ap.pool, x, "any", 2, mask=mask)
