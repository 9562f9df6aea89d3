"""Every function, rank, layout, dtype and backend against the nested loops of oracle.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import anypool as ap
import cases
import oracle
import tolerance
import truths

pytestmark = pytest.mark.usefixtures("backend")

RANKS = (1, 2, 3)
by_rank = pytest.mark.parametrize("rank", RANKS)
by_layout = pytest.mark.parametrize("layout", cases.LAYOUTS)
by_reduction = pytest.mark.parametrize("reduction", cases.REDUCTIONS)


# What the native backend says it leaves to the reference. Chosen explicitly it refuses these.
LIMITS = ("not aligned", "more than 3 pooled axes")


def pool(x, reduction, *args, **kwargs):
    """`ap.pool` on the chosen backend, or by automatic choice where it declares that it cannot."""
    try:
        return ap.pool(x, reduction, *args, **kwargs)
    except NotImplementedError as refusal:
        if not any(limit in str(refusal) for limit in LIMITS):
            raise
        with ap.backends.use(None):
            return ap.pool(x, reduction, *args, **kwargs)


def built(array, shape, dtype: str, layout: str) -> np.ndarray:
    return cases.to_layout(array.build(shape, cases.dtype_of(dtype)), layout)


def check_pool(array, shape, dtype, windows, reduction, given, layout, *, indices=False) -> bool:
    """Compare one `pool` call; False where the geometry is an error (and was refused)."""
    rank = len(shape) - 2
    what = f"pool({array.name} {shape} {dtype} {layout}, {reduction}, windows {windows.name!r}, {given})"
    x = built(array, shape, dtype, layout)
    axes = cases.pooled_axes(rank, layout)
    kwargs = windows.kwargs(rank) | given
    truth = truths.sliding(array, shape, dtype, windows, reduction, given, layout)
    if truth is None:
        with pytest.raises(ValueError, match=r"kernel_size|padding"):
            ap.pool(x, reduction, axes=axes, **kwargs)
        return False
    got = pool(x, reduction, axes=axes, return_indices=indices, **kwargs)
    if indices:
        got, places = got
        tolerance.check(places, oracle.Truth(truth.indices, *[None] * 2), np.int64, None, what + " indices")
    exact = reduction in ("max", "min")
    dtype = oracle.result_dtype(reduction, x.dtype)
    tolerance.check(got, truth, dtype, None if exact else tolerance.ULPS[reduction], what)
    return True


@by_layout
@by_rank
@by_reduction
def test_zoo(reduction, rank, layout):
    """Every array of the zoo, with windows, shapes and float dtypes in turn."""
    done = 0
    for turn, array in enumerate(cases.ZOO):
        if reduction not in array.reductions:
            continue
        dtypes = [d for d in ("float32", "float16", "bfloat16", "float64", "int16") if d in array.dtypes]
        dtypes = [d for d in dtypes if d in cases.DTYPES] or array.dtypes[:1]
        for more, (shape, windows) in enumerate(itertools.product(cases.SHAPES[rank], cases.CORE_WINDOWS)):
            dtype = dtypes[(turn + more) % len(dtypes)] if more % 2 else dtypes[0]
            given = truths.options(reduction, more)
            done += check_pool(array, shape, dtype, windows, reduction, given, layout)
    assert done > 250


@by_layout
@by_rank
@by_reduction
def test_windows(reduction, rank, layout):
    """Every set of window arguments, on ordinary and on tied data."""
    done = 0
    for turn, (windows, shape) in enumerate(itertools.product(cases.WINDOWS, cases.SHAPES[rank])):
        array = truths.ARRAYS["ties" if turn % 2 else "plain"]
        for given in truths.OPTIONS.get(reduction, ({},)):
            done += check_pool(array, shape, "float32", windows, reduction, given, layout)
    assert done > 60


@by_layout
@by_rank
@by_reduction
def test_dtypes(reduction, rank, layout):
    """Every dtype, on ordinary data, ties and extremes."""
    for dtype, name in itertools.product(cases.DTYPES, ("plain", "ties", "extremes", "extremes 64", "lowest")):
        array = truths.ARRAYS[name]
        if dtype not in array.dtypes or reduction not in array.reductions:
            continue
        for turn, windows in enumerate(cases.CORE_WINDOWS):
            shape = cases.SHAPES[rank][turn % 4]
            for given in (truths.options(reduction), truths.options(reduction, 1 + turn)):
                check_pool(array, shape, dtype, windows, reduction, given, layout)


@by_layout
@by_rank
@pytest.mark.parametrize("reduction", ["max", "min"])
def test_indices(reduction, rank, layout):
    """Indices of winners: ties, NaN, infinities, extremes, every dtype, every memory order."""
    done = 0
    for turn, array in enumerate(cases.ZOO):
        for more, windows in enumerate(cases.WINDOWS):
            dtype = array.dtypes[(turn + more) % len(array.dtypes)]
            shape = cases.SHAPES[rank][(turn + more) % len(cases.SHAPES[rank])]
            done += check_pool(array, shape, dtype, windows, reduction, {}, layout, indices=True)
    assert done > 300


def named(family: str, rank: int):
    return getattr(ap, f"{family}{rank}d")


@by_layout
@by_rank
def test_named_functions(rank, layout):
    """The field's names are thin: same windows, their own argument order."""
    for windows, shape in itertools.product(cases.WINDOWS, cases.SHAPES[rank][:3]):
        w, array = windows.kwargs(rank), truths.ARRAYS["ties"]
        x = built(array, shape, "float32", layout)
        positional = (w["kernel_size"], w["stride"])
        calls = {
            "max": (named("max_pool", rank), (*positional, w["padding"], w["dilation"], w["ceil_mode"]), {}, {}),
            "mean": (
                named("avg_pool", rank),
                (*positional, w["padding"], w["ceil_mode"], False, None),
                {"dilation": w["dilation"]},
                {"count_include_pad": False},
            ),
            "lp": (
                named("lp_pool", rank),
                (3, *positional, w["ceil_mode"]),
                {"padding": w["padding"], "dilation": w["dilation"]},
                {"norm_type": 3, "signed": True},
            ),
        }
        for reduction, (function, args, kwargs, given) in calls.items():
            truth = truths.sliding(array, shape, "float32", windows, reduction, given, layout)
            what = f"{function.__name__}({shape} {layout}, {args}, {kwargs})"
            if truth is None:
                with pytest.raises(ValueError, match=r"kernel_size|padding"):
                    function(x, *args, data_format=layout, **kwargs)
                continue
            got = function(x, *args, data_format=layout, **kwargs)
            ulps = None if reduction == "max" else tolerance.ULPS[reduction]
            tolerance.check(got, truth, np.float32, ulps, what)


@by_layout
@by_rank
def test_adaptive(rank, layout):
    for shape, dtype in itertools.product(cases.SHAPES[rank], ("float32", "float16", "uint8")):
        sizes = shape[2:]
        x = cases.ties(shape, cases.dtype_of(dtype))
        for out in (1, 3, (2, 5, 4)[:rank], tuple(sizes), tuple(n + 2 for n in sizes)):
            goal = (out,) * rank if isinstance(out, int) else out
            windows = [oracle.adaptive(n, o) for n, o in zip(sizes, goal, strict=True)]
            moved, axes = cases.to_layout(x, layout), range(2, 2 + rank)
            best = truths.in_layout(oracle.pool(x, axes, windows, "max"), layout)
            mean = truths.in_layout(oracle.pool(x, axes, windows, "mean"), layout)
            what = f"adaptive {shape} {dtype} {layout} -> {out}"
            y, places = named("adaptive_max_pool", rank)(moved, out, True, data_format=layout)
            tolerance.check(y, best, x.dtype, None, what)
            assert np.array_equal(places, best.indices), what
            got = named("adaptive_avg_pool", rank)(moved, out, data_format=layout)
            tolerance.check(got, mean, x.dtype, tolerance.ULPS["mean"], what)


@by_rank
def test_adaptive_keeps_a_size_given_as_none(rank):
    x = cases.plain((2, 3, *(9, 8, 7)[:rank]), np.dtype(np.float32))
    goal = (None, 2, 3)[:rank]
    y = named("adaptive_max_pool", rank)(x, goal)
    assert y.shape == (2, 3, *(9, 2, 3)[:rank])


@by_layout
@by_rank
@pytest.mark.parametrize("keepdims", [True, False])
def test_global(rank, layout, keepdims):
    for shape, name, dtype in itertools.product(
        (*cases.SHAPES[rank], (2, 3, *(41, 23, 7)[:rank])), ("ties", "nan", "plain"), ("float32", "bfloat16", "int32")
    ):
        array = truths.ARRAYS[name]
        if dtype not in array.dtypes or dtype not in cases.DTYPES:
            continue
        x = array.build(shape, cases.dtype_of(dtype))
        axes, windows = range(2, 2 + rank), [oracle.whole(n) for n in shape[2:]]
        best = truths.in_layout(oracle.pool(x, axes, windows, "max"), layout)
        mean = truths.in_layout(oracle.pool(x, axes, windows, "mean"), layout)
        if not keepdims:
            gone = cases.pooled_axes(rank, layout)
            for truth in (best, mean):
                for part, value in vars(truth).items():
                    setattr(truth, part, None if value is None else np.squeeze(value, gone))
        moved, what = cases.to_layout(x, layout), f"global {name} {shape} {dtype} {layout}"
        y, places = ap.global_max_pool(moved, return_indices=True, keepdims=keepdims, data_format=layout)
        tolerance.check(y, best, x.dtype, None, what)
        assert np.array_equal(places, best.indices), what
        got = ap.global_avg_pool(moved, keepdims=keepdims, data_format=layout)
        tolerance.check(got, mean, x.dtype, tolerance.ULPS["mean"], what)


@by_reduction
def test_any_axes_of_any_rank(reduction):
    """`pool` over one axis, distant axes, the batch axis, negative names, four axes at once."""
    whole = cases.ties((3, 4, 5, 6, 4), np.dtype(np.float32))
    for x, axes in (
        (whole[0, 0, 0, :, 0], (0,)),
        (whole[0, 0], (0,)),
        (whole[0, 0], (-1,)),
        (whole[0], (0, 3)),
        (whole, (0, 2)),
        (whole, (1, 3)),
        (whole, (-4, -2, -1)),
        (whole, (0, 1, 2, 4)),
        (whole[0, 0, 0], (0, 1)),
    ):
        for w in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": ((1, 0),) * len(axes)}):
            sizes = [x.shape[a] for a in axes]
            truth = oracle.pool(x, axes, oracle.sliding_axes(sizes, **w), reduction)
            got = pool(x, reduction, w["kernel_size"], axes=axes, **{k: w[k] for k in w if k != "kernel_size"})
            exact = reduction in ("max", "min")
            what = f"pool({x.shape}, {reduction}, axes={axes}, {w})"
            tolerance.check(got, truth, x.dtype, None if exact else tolerance.ULPS[reduction], what)


def test_axes_by_default():
    """A tuple kernel pools the last axes (before the channels); a number pools every axis."""
    x = cases.plain((4, 5, 6), np.dtype(np.float64))
    assert ap.pool(x, "max", (2, 3)).shape == (4, 2, 2)
    assert ap.pool(x, "max", (2, 2), data_format="channels_last").shape == (2, 2, 6)
    assert ap.pool(x, "max", 2).shape == (2, 2, 3)
    assert np.array_equal(ap.pool(x, "avg", 2), ap.pool(x, "mean", 2))


@by_layout
@by_rank
def test_unbatched(rank, layout):
    x = cases.plain((2, 3, *(9, 8, 7)[:rank]), np.dtype(np.float32))
    moved = cases.to_layout(x, layout)
    for family, args in (
        ("max_pool", (3, 2, 1)),
        ("avg_pool", (2,)),
        ("lp_pool", (2, 3)),
        ("adaptive_max_pool", (2,)),
        ("adaptive_avg_pool", (3,)),
    ):
        function = named(family, rank)
        whole = function(moved, *args, data_format=layout)
        for i in range(2):
            assert tolerance.same_bits(function(moved[i], *args, data_format=layout), whole[i]), family


@by_layout
@by_rank
@by_reduction
def test_empty_batch(reduction, rank, layout):
    """No batch or no channels: right shape, right dtype, gradients of the right shape."""
    for shape in cases.EMPTY_SHAPES[rank]:
        x = cases.to_layout(np.zeros(shape, np.float32), layout)
        y, pullback = ap.vjp(ap.pool, x, reduction, 3, stride=2, axes=cases.pooled_axes(rank, layout))
        assert y.shape == cases.to_layout(np.zeros(shape[:2] + (4,) * rank), layout).shape
        assert y.dtype == np.float32
        assert pullback(y).shape == x.shape


@pytest.mark.parametrize(
    ("reduction", "dtype", "asked"),
    [
        ("mean", "uint8", "float32"),
        ("mean", "int64", "float64"),
        ("mean", "bool", "float32"),
        ("sum", "float16", "float32"),
        ("mean", "bfloat16", "float32"),
        ("lp", "int8", "float32"),
        ("logsumexp", "uint16", "float32"),
        ("max", "int16", "float32"),
        ("mean", "float32", "float64"),
        ("lp", "float16", "float32"),
        ("mean", "float16", "float32"),
    ],
)
def test_dtype_asked_for(reduction, dtype, asked):
    if dtype not in cases.DTYPES:
        pytest.skip("needs ml_dtypes")
    x = cases.plain((2, 3, 9), cases.dtype_of(dtype))
    windows = oracle.sliding_axes((9,), 3, 2, 1)
    truth = oracle.pool(x, (2,), windows, reduction, dtype=asked)
    # what the sum was made in decides the error, whatever it is stored in
    truth.scale = truth.scale * (2.0**29 if (dtype, asked) == ("float32", "float64") else 1)
    got = ap.pool(x, reduction, (3,), stride=2, padding=1, dtype=asked)
    tolerance.check(got, truth, np.dtype(asked), tolerance.ULPS.get(reduction), f"{reduction} {dtype} as {asked}")


@by_layout
@by_rank
@by_reduction
def test_gradients(reduction, rank, layout):
    """`vjp` against scattering every window's part."""
    names = ["plain", "ties", "transposed", "negative", "broadcast row"]
    names += ["nan", "infinities", "all -inf", "all nan"] if reduction in ("max", "min") else []
    done = 0
    for turn, (name, windows, shape) in enumerate(itertools.product(names, cases.WINDOWS, cases.SHAPES[rank])):
        if turn % 3 and name != "ties":
            continue
        dtype = cases.FLOATS[(turn // 3) % len(cases.FLOATS)]
        given = truths.options(reduction, turn)
        w, array = windows.kwargs(rank), truths.ARRAYS[name]
        found = truths.gradient(array, shape, dtype, windows, reduction, given, layout, turn)
        if found is None:
            continue
        grad, truth = found
        moved = built(array, shape, dtype, layout)
        y, pullback = ap.vjp(ap.pool, moved, reduction, axes=cases.pooled_axes(rank, layout), **w, **given)
        assert tolerance.same_bits(y, ap.pool(moved, reduction, axes=cases.pooled_axes(rank, layout), **w, **given))
        got = pullback(grad)
        what = f"vjp({reduction}, {name} {shape} {dtype} {layout}, windows {windows.name!r}, {given})"
        tolerance.check(got, truth, moved.dtype, tolerance.GRADIENT_ULPS[reduction], what)
        done += 1
    assert done > 60


@by_rank
def test_gradients_of_other_windows(rank):
    """Adaptive and global windows, and the pooling that returns indices."""
    x = cases.ties((2, 3, *(7, 5, 6)[:rank]), np.dtype(np.float64))
    axes, goal = tuple(range(2, 2 + rank)), (3, 4, 8)[:rank]
    adaptive = [oracle.adaptive(n, o) for n, o in zip(x.shape[2:], goal, strict=True)]
    whole = [oracle.whole(n) for n in x.shape[2:]]
    for function, args, kwargs, windows, reduction in (
        (named("adaptive_max_pool", rank), (goal,), {}, adaptive, "max"),
        (named("adaptive_max_pool", rank), (goal, True), {}, adaptive, "max"),
        (named("adaptive_avg_pool", rank), (goal,), {}, adaptive, "mean"),
        (ap.global_max_pool, (), {}, whole, "max"),
        (ap.global_max_pool, (), {"keepdims": False, "return_indices": True}, whole, "max"),
        (ap.global_avg_pool, (), {}, whole, "mean"),
        (ap.global_avg_pool, (), {"keepdims": False}, whole, "mean"),
    ):
        y, pullback = ap.vjp(function, x, *args, **kwargs)
        values = y[0] if isinstance(y, tuple) else y
        grad = cases.rng(9).standard_normal(values.shape)
        full = grad.reshape(x.shape[:2] + tuple(len(w) for w in windows))
        truth = oracle.pullback(x, full, axes, windows, reduction)
        what = f"vjp({function.__name__}, {args}, {kwargs})"
        tolerance.check(pullback(grad), truth, x.dtype, tolerance.GRADIENT_ULPS[reduction], what)


@by_rank
def test_gradient_of_lp_pool_keeps_signs(rank):
    x = cases.ties((2, 2, *(7, 5, 6)[:rank]), np.dtype(np.float64))
    windows = oracle.sliding_axes(x.shape[2:], 2, 1)
    for p in (1, 2, 3):
        y, pullback = ap.vjp(named("lp_pool", rank), x, p, 2, 1)
        grad = cases.rng(p).standard_normal(y.shape)
        truth = oracle.pullback(x, grad, range(2, 2 + rank), windows, "lp", norm_type=p, signed=True)
        tolerance.check(pullback(grad), truth, x.dtype, tolerance.GRADIENT_ULPS["lp"], f"lp_pool{rank}d p={p}")


@by_rank
def test_unpool(rank):
    x = cases.plain((2, 3, *(8, 6, 10)[:rank]), np.dtype(np.float32))
    y, places = named("max_pool", rank)(x, 2, return_indices=True)
    for size in (None, x.shape[2:], x.shape):
        got = named("max_unpool", rank)(y, places, 2, output_size=size)
        sizes = x.shape[2:] if size else tuple(2 * n for n in y.shape[2:])
        if sizes == x.shape[2:]:
            assert np.array_equal(got, oracle.unpool(y, places, rank, sizes)), size
        assert got.shape == x.shape[:2] + sizes
    restored = named("max_pool", rank)(named("max_unpool", rank)(y, places, 2, output_size=x.shape[2:]), 2)
    assert np.array_equal(np.maximum(y, 0), restored)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_error_does_not_grow_with_length(dtype):
    """The mean of a million positive numbers is as exact as that of a few."""
    if dtype not in cases.DTYPES:
        pytest.skip("needs ml_dtypes")
    x = cases.rng(5).random((1, 2, 1 << 20), np.float32).astype(cases.dtype_of(dtype))
    wide = x.astype(np.float64)
    mean = np.array([[[math.fsum(row) / row.size] for row in wide[0]]])
    truth = oracle.Truth(mean, wide.max(-1, keepdims=True), np.ones_like(mean))
    tolerance.check(ap.global_avg_pool(x), truth, x.dtype, tolerance.ULPS["mean"], "global_avg_pool of 2^20")
