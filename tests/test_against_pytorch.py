"""PyTorch as a second, independent oracle, over the whole grid of arguments it accepts.

Kernel 1-5, stride 1-4, padding <= k/2, dilation 1-3, ceil_mode, count_include_pad, divisor; ranks
1-3; odd sizes. In two dimensions every combination of two axes is run; in three a fixed random
sample besides all equal axes. max values and indices are exactly PyTorch's; averages are within
2 ulp (at the window's largest magnitude) of PyTorch's float64 result.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import anypool as ap
import cases
import oracle
import tolerance

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

RANKS = (1, 2, 3)
by_rank = pytest.mark.parametrize("rank", RANKS)

# (kernel, stride, padding, dilation) of one axis
MAX_AXES = [
    (k, s, p, d) for k, s, d in itertools.product(range(1, 6), range(1, 5), range(1, 4)) for p in range(k // 2 + 1)
]
AVG_AXES = [(k, s, p) for k, s, p, d in MAX_AXES if d == 1]
SIZES = {
    1: ((1,), (2,), (3,), (5,), (7,), (11,), (13,), (16,), (37,)),
    2: ((11, 13), (7, 9), (5, 1)),
    3: ((13, 9, 11), (5, 7, 3), (1, 6, 5)),
}


def named(module, family: str, rank: int):
    return getattr(module, f"{family}{rank}d")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small calls: threads would cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def per_axis(table, sizes, seed: int, sample: int):
    """Arguments per axis: all axes equal; every pair on the first 2-D size; a sample in 3-D."""
    rank = len(sizes)
    yield from ((row,) * rank for row in table)
    if sizes == SIZES[2][0]:
        yield from itertools.product(table, table)
    elif rank == 3:
        picks = cases.rng(seed).integers(0, len(table), (sample, rank))
        yield from (tuple(table[i] for i in pick) for pick in picks)


def data(rank: int, sizes, seed: int = 0) -> np.ndarray:
    """Few distinct values, so that ties are everywhere, and a NaN and infinities."""
    x = cases.rng(seed, *sizes).integers(-4, 5, (1, 2, *sizes)).astype(np.float32)
    if seed % 2:
        flat = x.reshape(-1)
        flat[seed % flat.size :: 11] = np.nan
        flat[seed % 7 % flat.size :: 13] = -np.inf
    return x


def accepted(function, *args, **kwargs):
    """PyTorch's result, or None where it refuses the arguments."""
    try:
        return function(*args, **kwargs)
    except RuntimeError:
        return None


def seen_nothing(sizes, kernel, stride, padding, dilation, ceil) -> bool:
    return oracle.has_empty_window(oracle.sliding_axes(sizes, kernel, stride, padding, dilation, ceil))


@by_rank
@pytest.mark.parametrize("ceil", [False, True])
def test_max_grid(rank, ceil):
    """Values and indices, equal."""
    theirs, ours = named(F, "max_pool", rank), named(ap, "max_pool", rank)
    compared = 0
    for sizes, seed in itertools.product(SIZES[rank], (0, 3)):
        x = data(rank, sizes, seed)
        t = torch.from_numpy(x)
        for row in per_axis(MAX_AXES, sizes, 1, 3000):
            args = (*map(tuple, zip(*row, strict=True)), ceil)
            expected = accepted(theirs, t, *args, return_indices=True)
            if expected is None:
                continue
            what = f"max_pool{rank}d({x.shape} seed {seed}, {args})"
            if seen_nothing(sizes, *args):
                with pytest.raises(ValueError, match="padding"):
                    ours(x, *args)
                continue
            y, places = ours(x, *args, return_indices=True)
            assert np.array_equal(y, expected[0].numpy(), equal_nan=True), what
            assert np.array_equal(places, expected[1].numpy()), what + " indices"
            alone = ours(x, *args)
            assert alone.dtype == np.float32
            assert np.array_equal(alone, y, equal_nan=True), what + " alone"
            compared += 1
    assert compared > {1: 1000, 2: 20_000, 3: 2000}[rank]


@by_rank
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_avg_grid(rank, ceil, include):
    """Within 2 ulp of PyTorch's float64 result, ulp at the window's largest magnitude."""
    theirs, ours, largest = named(F, "avg_pool", rank), named(ap, "avg_pool", rank), named(F, "max_pool", rank)
    compared = 0
    for sizes in SIZES[rank]:
        x = cases.plain((1, 2, *sizes), np.dtype(np.float32))
        wide = torch.from_numpy(x).double()
        for row, divisor in itertools.product(per_axis(AVG_AXES, sizes, 2, 1500), (None, 1, 7, -2)):
            if divisor is not None and (rank == 1 or include):
                continue  # PyTorch has no 1-D divisor; the divisor makes include_pad meaningless
            geometry = tuple(map(tuple, zip(*row, strict=True)))
            extra = () if rank == 1 else (divisor,)
            expected = accepted(theirs, wide, *geometry, ceil, include, *extra)
            if expected is None:
                continue
            what = f"avg_pool{rank}d({x.shape}, {geometry}, {ceil}, {include}, {divisor})"
            got = ours(x, *geometry, ceil, include, divisor)
            scale = largest(wide.abs(), *geometry, 1, ceil).numpy()
            taps = np.prod(geometry[0]) / abs(divisor) if divisor else 1.0
            truth = oracle.Truth(expected.numpy(), scale, np.full(scale.shape, max(taps, 1.0)))
            tolerance.check(got, truth, np.float32, 2, what)
            compared += 1
    assert compared > {1: 200, 2: 1500, 3: 1000}[rank]


@by_rank
@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64", "float64", "float16", "bfloat16"])
def test_max_dtypes(rank, dtype):
    x = cases.ties((2, 3, *(9, 8, 7)[-rank:]), np.dtype(np.float32))
    x = np.abs(x) if dtype == "uint8" else x
    t = torch.from_numpy(x).to(getattr(torch, dtype))
    for k, s, p, d, ceil in itertools.product((2, 3), (1, 2), (0, 1), (1, 2), (False, True)):
        y, places = named(F, "max_pool", rank)(t, k, s, p, d, ceil, return_indices=True)
        got, found = named(ap, "max_pool", rank)(x.astype(cases.dtype_of(dtype)), k, s, p, d, ceil, return_indices=True)
        assert np.array_equal(got.astype(np.float64), y.double().numpy())
        assert np.array_equal(found, places.numpy())


@by_rank
@pytest.mark.parametrize("channels_last", [False, True])
def test_adaptive_grid(rank, channels_last):
    layout = cases.LAYOUTS[channels_last]
    sizes = ((n,) for n in range(1, 18)) if rank == 1 else [(7, 10), (5, 3)] if rank == 2 else [(7, 4, 5)]
    for size in sizes:
        x = cases.ties((2, 3, *size), np.dtype(np.float32))
        t, moved = torch.from_numpy(x), cases.to_layout(x, layout)
        for goal in itertools.product(*(range(1, n + 3) for n in size)):
            y, places = named(F, "adaptive_max_pool", rank)(t, goal, return_indices=True)
            got, found = named(ap, "adaptive_max_pool", rank)(moved, goal, True, data_format=layout)
            assert np.array_equal(got, cases.to_layout(y.numpy(), layout)), (size, goal)
            assert np.array_equal(found, cases.to_layout(places.numpy(), layout)), (size, goal)
            mean = named(F, "adaptive_avg_pool", rank)(t.double(), goal).numpy()
            largest = named(F, "adaptive_max_pool", rank)(t.abs(), goal).numpy()
            truth = oracle.Truth(mean, largest, np.ones_like(mean))
            got = np.moveaxis(
                named(ap, "adaptive_avg_pool", rank)(moved, goal, data_format=layout), -1 if channels_last else 1, 1
            )
            tolerance.check(got, truth, np.float32, 2, f"adaptive_avg_pool{rank}d {size} -> {goal}")


@by_rank
@pytest.mark.parametrize("p", [1, 2, 3, 4, 1.5])
def test_lp_grid(rank, p):
    """Where PyTorch's formula is a number and no window is clipped."""
    signs = cases.rng(7).choice((-1, 1), (2, 2, *(9, 8, 7)[:rank])) if p in (1, 2) else 1
    x = (cases.rng(6).random((2, 2, *(9, 8, 7)[:rank])) + 0.5) * signs
    t = torch.from_numpy(x)
    for k, s in itertools.product(range(1, 6), (None, 1, 2, 3, 4)):
        expected = named(F, "lp_pool", rank)(t, p, k, s).numpy()
        got = named(ap, "lp_pool", rank)(x, p, k, s)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12, err_msg=f"{p, k, s}")
        single = named(ap, "lp_pool", rank)(x.astype(np.float32), p, k, s)
        np.testing.assert_allclose(single, expected, rtol=4e-6, atol=4e-6, err_msg=f"{p, k, s}")


@by_rank
def test_unpool_grid(rank):
    x = cases.plain((2, 3, *(9, 8, 7)[:rank]), np.dtype(np.float32))
    t = torch.from_numpy(x)
    for k, s, p in itertools.product((1, 2, 3), (None, 1, 2, 3), (0, 1)):
        if p > k // 2:
            continue
        y, places = named(F, "max_pool", rank)(t, k, s, p, return_indices=True)
        for size in (None, x.shape[2:], x.shape):
            expected = accepted(named(F, "max_unpool", rank), y, places, k, s, p, size)
            if expected is None:
                continue  # a default size too small for the indices
            got = named(ap, "max_unpool", rank)(y.numpy(), places.numpy(), k, s, p, size)
            assert np.array_equal(got, expected.numpy()), (k, s, p, size)


@pytest.mark.parametrize("rank", [2, 3])
def test_fractional_grid(rank):
    x = cases.ties((2, 3, *(11, 13, 9)[:rank]), np.dtype(np.float32))
    t = torch.from_numpy(x)
    function, ours = named(F, "fractional_max_pool", rank), named(ap, "fractional_max_pool", rank)
    for k, turn in itertools.product((1, 2, 3), range(12)):
        samples = cases.rng(turn).random((2, 3, rank)).astype(np.float32)
        for size in (
            {"output_size": 5},
            {"output_size": (4, 7, 6)[:rank]},
            {"output_ratio": (0.5,) * rank},
            {"output_ratio": (0.7, 0.4, 0.6)[:rank]},
        ):
            y, places = function(t, k, **size, _random_samples=torch.from_numpy(samples), return_indices=True)
            got, found = ours(x, k, **size, _random_samples=samples, return_indices=True)
            assert np.array_equal(got, y.numpy()), (k, size, turn)
            assert np.array_equal(found, places.numpy()), (k, size, turn)
            assert np.array_equal(ours(x, k, **size, _random_samples=samples), got)


@pytest.mark.parametrize("rank", [2, 3])
def test_fractional_draws(rank):
    """Without samples: the same seed gives the same windows, and they fill the input."""
    x = cases.plain((2, 3, *(11, 13, 9)[:rank]), np.dtype(np.float32))
    ours = named(ap, "fractional_max_pool", rank)
    first, second = (ours(x, 2, output_size=5, rng=np.random.default_rng(1)) for _ in range(2))
    assert first.shape == (2, 3) + (5,) * rank
    assert np.array_equal(first, second)
    assert not np.array_equal(first, ours(x, 2, output_size=5, rng=np.random.default_rng(2)))


def gradient(function, x: np.ndarray, *args, **kwargs):
    """PyTorch's values, upstream gradient and input gradient."""
    t = torch.from_numpy(x).requires_grad_()
    y = function(t, *args, **kwargs)
    grad = torch.from_numpy(cases.rng(8).standard_normal(y.shape).astype(x.dtype))
    y.backward(grad)
    return y.detach().numpy(), grad.numpy(), t.grad.numpy()


def check_gradient(expected, function, x, *args, **kwargs):
    y, grad, slope = expected
    ours, pullback = ap.vjp(function, x, *args, **kwargs)
    what = f"vjp({function.__name__}, {x.shape}, {args}, {kwargs})"
    np.testing.assert_allclose(ours, y, rtol=1e-12, atol=1e-12, err_msg=what)
    np.testing.assert_allclose(pullback(grad), slope, rtol=1e-11, atol=1e-11, err_msg=what)


@by_rank
def test_gradients_of_sliding_windows(rank):
    """Autograd in float64 against `vjp`, over the grid with equal axes."""
    sizes = (11, 9, 8)[:rank]
    x = cases.rng(9).permutation(2 * int(np.prod(sizes))).reshape(1, 2, *sizes) / 64.0
    tied = cases.ties((1, 2, *sizes), np.dtype(np.float64))
    for (k, s, p, d), ceil in itertools.product(MAX_AXES, (False, True)):
        for a in (x, tied):
            args = (k, s, p, d, ceil)
            if seen_nothing(sizes, *args) or accepted(named(F, "max_pool", rank), torch.from_numpy(a), *args) is None:
                continue
            check_gradient(gradient(named(F, "max_pool", rank), a, *args), named(ap, "max_pool", rank), a, *args)
        if d > 1:
            continue
        for include in (False, True):
            args = (k, s, p, ceil, include)
            check_gradient(gradient(named(F, "avg_pool", rank), x, *args), named(ap, "avg_pool", rank), x, *args)


@by_rank
def test_gradients_of_the_others(rank):
    sizes = (7, 6, 5)[:rank]
    x = cases.rng(10).permutation(6 * int(np.prod(sizes))).reshape(2, 3, *sizes) / 64.0 + 0.1
    for goal in (1, 2, 3, 5, 8):
        for family in ("adaptive_max_pool", "adaptive_avg_pool"):
            check_gradient(gradient(named(F, family, rank), x, goal), named(ap, family, rank), x, goal)
    for p, k, s in itertools.product((1, 2, 3), (2, 3), (None, 1, 2)):
        check_gradient(gradient(named(F, "lp_pool", rank), x, p, k, s), named(ap, "lp_pool", rank), x, p, k, s)
    y, places = (a.numpy() for a in named(F, "max_pool", rank)(torch.from_numpy(x), 2, return_indices=True))
    expected = gradient(lambda t: named(F, "max_unpool", rank)(t, torch.from_numpy(places), 2, output_size=sizes), y)
    check_gradient(expected, named(ap, "max_unpool", rank), y, places, 2, output_size=sizes)
    if rank > 1:
        samples = cases.rng(11).random((2, 3, rank))
        expected = gradient(named(F, "fractional_max_pool", rank), x, 2, 3, _random_samples=torch.from_numpy(samples))
        check_gradient(expected, named(ap, "fractional_max_pool", rank), x, 2, 3, _random_samples=samples)
