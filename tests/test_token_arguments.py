"""What is wrong is said before anything is computed: the argument, the rule, the value, the shape."""

from __future__ import annotations

import numpy as np
import pytest

import anypool as ap

X = np.ones((2, 5, 4), np.float32)
ROWS = np.ones((7, 4), np.float32)

BAD = [
    # offsets
    (ROWS, {"offsets": [0, 5, 3, 7]}, ValueError, r"offsets must not fall, got 5 before 3 at 1 \(x: \(7, 4\)\)"),
    (ROWS, {"offsets": [0, 9]}, ValueError, "offsets must end with the number of rows, 7, got 9"),
    (ROWS, {"offsets": [0, 3]}, ValueError, "offsets must end with the number of rows, 7, got 3"),
    (ROWS, {"offsets": [1, 7]}, ValueError, "offsets must begin with 0, got 1"),
    (ROWS, {"offsets": []}, ValueError, "offsets must be one-dimensional and begin with 0"),
    (ROWS, {"offsets": [[0, 7]]}, ValueError, "offsets must be one-dimensional"),
    (ROWS, {"offsets": [0.0, 7.0]}, TypeError, "offsets must be integers, got dtype float64"),
    (ROWS, {"offsets": np.array([0, 2**63], np.uint64)}, ValueError, r"offsets must be below 2\*\*63"),
    (X, {"offsets": [0, 5]}, ValueError, "offsets is for packed rows: x must have 2 dimensions, got 3"),
    # spans
    (ROWS, {"spans": [(0, 8)]}, ValueError, r"spans must have 0 <= start <= stop <= 7, got \(0, 8\) at 0"),
    (ROWS, {"spans": [(0, 7), (-1, 2)]}, ValueError, r"got \(-1, 2\) at 1"),
    (ROWS, {"spans": [(4, 3)]}, ValueError, r"got \(4, 3\) at 0"),
    (ROWS, {"spans": [0, 3]}, ValueError, r"spans must have shape \(S, 2\), got \(2,\)"),
    (X, {"spans": [(0, 3)]}, ValueError, r"spans must have shape \(2, S, 2\), got \(1, 2\)"),
    (X, {"spans": np.zeros((2, 3, 2))}, TypeError, "spans must be integers"),
    (ROWS, {"spans": [(0, 3)], "exclude_prefix": 1}, ValueError, "exclude_prefix does not go with spans"),
    # mask
    (X, {"mask": np.ones((2, 4))}, ValueError, r"mask must have shape \(2, 5\), one for each token, got \(2, 4\)"),
    (X, {"mask": np.ones((2, 5, 1))}, ValueError, "mask must have shape"),
    (X, {"mask": np.full((2, 5), 0.5)}, ValueError, r"mask must be 0 or 1 \(what weighs tokens is weights=\), got 0.5"),
    (X, {"mask": np.full((2, 5), np.nan)}, ValueError, "mask must be 0 or 1"),
    (X, {"mask": np.full((2, 5), "a")}, TypeError, "mask must be bool or numbers"),
    (X, {"mask": np.ones((2, 5)), "lengths": [1, 2]}, ValueError, "only one of .* got mask and lengths"),
    # lengths
    (X, {"lengths": [6, 1]}, ValueError, r"lengths must be in \[0, 5\], got 6"),
    (X, {"lengths": [-1, 1]}, ValueError, r"lengths must be in \[0, 5\], got -1"),
    (X, {"lengths": [1, 1, 1]}, ValueError, r"lengths must have shape \(2,\), one for each sequence, got \(3,\)"),
    (X, {"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers"),
    (X, {"lengths": [True, False]}, TypeError, "lengths must be integers, got dtype bool"),
    (X, {"lengths": [1, 2], "side": "top"}, ValueError, 'side must be "right" or "left"'),
    (X, {"mask": np.ones((2, 5)), "side": "left"}, ValueError, "side goes with lengths"),
    # ids
    (ROWS, {"segment_ids": [0, 0, 2, 1, 1, 1, 1]}, ValueError, "segment_ids must be sorted, got 2 before 1 at 2"),
    (ROWS, {"segment_ids": [-1, 0, 0, 1, 1, 1, 1]}, ValueError, "segment_ids must be >= 0, got -1"),
    (ROWS, {"segment_ids": [0, 1]}, ValueError, r"segment_ids must have shape \(7,\)"),
    (ROWS, {"segment_ids": [0] * 6 + [2**50]}, ValueError, r"segment_ids must be below 2\*\*40"),
    (ROWS, {"segment_ids": [3] * 7, "num_segments": 3}, ValueError, "num_segments must be above every segment id, 3"),
    (ROWS, {"num_segments": 3}, ValueError, "num_segments goes with segment_ids"),
    # prefix, weights, empty
    (X, {"exclude_prefix": -1}, ValueError, "exclude_prefix must be >= 0, got -1"),
    (X, {"exclude_prefix": 1.5}, TypeError, "exclude_prefix must be an int, got 1.5"),
    (X, {"exclude_prefix": [1]}, ValueError, r"exclude_prefix must be one int or have shape \(2,\)"),
    (
        X,
        {"weights": np.ones((2, 4))},
        ValueError,
        r"weights must have shape \(2, 5\), one for each token, got \(2, 4\)",
    ),
    (X, {"weights": np.full((2, 5), "a")}, TypeError, "weights must be numbers"),
    (X, {"empty": "zero"}, TypeError, "empty must be a number"),
    (X, {"dtype": "int8"}, TypeError, "dtype must be float16, bfloat16, float32 or float64, got int8"),
    # x
    (np.float32(1), {}, ValueError, "x must have at least 2 dimensions, tokens and features, got 0"),
    (np.ones(4), {}, ValueError, "x must have at least 2 dimensions, tokens and features, got 1"),
    (np.ones((2, 5, 0)), {}, ValueError, "x must have at least one feature in its last dimension, got 0"),
    (np.ones((2, 5, 4), complex), {}, TypeError, "x must be bool, integer, float16, bfloat16, float32 or float64"),
    ([np.ones((2, 4)), np.ones((3, 5))], {}, ValueError, r"x must be a list of arrays \(tokens, 4\)"),
    ([np.ones((2, 4)), np.ones((3, 4), np.float32)], {}, ValueError, "of dtype float64, got .* float32 at 1"),
    (
        [np.ones((2, 4))],
        {"mask": np.ones((1, 2))},
        ValueError,
        "mask is for one array; of a list of arrays every token",
    ),
    ("text", {}, TypeError, "x must be a NumPy array"),
]


@pytest.mark.parametrize(("x", "kwargs", "error", "message"), BAD, ids=[f"{i} {list(b[1])}" for i, b in enumerate(BAD)])
def test_bad_arguments(x, kwargs, error, message):
    with pytest.raises(error, match=message):
        ap.pool_tokens(x, "mean", **kwargs)


@pytest.mark.parametrize(
    ("reduction", "kwargs", "error", "message"),
    [
        ("median", {}, ValueError, "reduction must be one of mean, sum, max, .* got 'median'"),
        ([], {}, ValueError, "reduction must be a name or a list of 1 to 8 names"),
        (["mean"] * 9, {}, ValueError, "1 to 8 names"),
        (None, {}, ValueError, "reduction must be one of"),
        ("mean", {"norm_type": 3}, ValueError, "norm_type is for lp and gem"),
        ("lp", {"norm_type": 0}, ValueError, "norm_type must be > 0, got 0"),
        ("lp", {"norm_type": "2"}, TypeError, "norm_type must be a number"),
        ("gem", {"norm_type": np.inf}, ValueError, "norm_type must be finite for gem"),
        ("gem", {"eps": 0}, ValueError, "eps must be > 0"),
        ("logsumexp", {"r": 0}, ValueError, "r must be finite and not 0"),
        ("max", {"weights": np.ones((2, 5))}, ValueError, "weights= is for mean, sum, std, got reduction 'max'"),
    ],
)
def test_bad_reductions(reduction, kwargs, error, message):
    with pytest.raises(error, match=message):
        ap.pool_tokens(X, reduction, **kwargs)


def test_bad_gradients():
    y, pullback = ap.vjp(ap.pool_tokens, X, "mean")
    with pytest.raises(ValueError, match=r"grad_y must have the result's shape \(2, 4\), got \(4,\)"):
        pullback(np.ones(4))
    with pytest.raises(ValueError, match="out must be a writeable, contiguous float32 array of shape"):
        pullback(y, out=np.ones((2, 5, 4)))
    out = np.full_like(X, np.nan)
    assert pullback(y, out=out) is out
    np.testing.assert_allclose(out, 0.2)
    with pytest.raises(TypeError, match="vjp needs floating-point x, got int64"):
        ap.vjp(ap.pool_tokens, np.ones((2, 3), int), "sum")


def test_the_caller_keeps_his_arrays():
    rng = np.random.default_rng(0)
    x, mask = rng.random((3, 9, 4)), rng.random((3, 9)) < 0.5
    before, mask_before = x.copy(), mask.copy()
    for array in (x, mask):
        array.flags.writeable = False
    y, pullback = ap.vjp(ap.pool_tokens, x, ["mean", "max", "std"], mask=mask)
    pullback(np.ones_like(y))
    assert np.array_equal(x, before)
    assert np.array_equal(mask, mask_before)


def test_fuzzed_arguments_never_crash():
    """Arguments of random shapes, types and values give a result or one of three errors."""
    rng = np.random.default_rng(1)
    names = ["mean", "max", "std", ["sum", "last"], "nonsense", None, "lp"]
    values = [
        lambda: rng.integers(-3, 12, rng.integers(0, 4, rng.integers(0, 4))),
        lambda: rng.random(rng.integers(0, 6, rng.integers(0, 3))),
        lambda: np.sort(rng.integers(0, 8, rng.integers(1, 5))),
        lambda: rng.integers(0, 2, (2, 5)),
        lambda: None,
        lambda: "left",
        lambda: int(rng.integers(-2, 9)),
        lambda: np.nan,
        lambda: [0, 7],
    ]
    arguments = ["mask", "lengths", "offsets", "segment_ids", "spans", "weights", "exclude_prefix", "empty", "side",
                 "num_segments", "norm_type", "r", "dtype"]  # fmt: skip
    results, messages = 0, []
    for _ in range(4000):
        x = [X, ROWS, np.ones((0, 3)), np.ones((2, 0, 3)), [ROWS, ROWS[:2]], np.ones(3)][rng.integers(6)]
        chosen = {
            arguments[i]: values[rng.integers(len(values))]()
            for i in rng.integers(0, len(arguments), rng.integers(0, 3))
        }
        try:
            ap.pool_tokens(x, names[rng.integers(len(names))], **chosen)
            results += 1
        except (ValueError, TypeError, NotImplementedError) as refused:
            messages.append(str(refused))
    assert results > 200
    assert all(messages)


@pytest.mark.parametrize("of_tensors", [False, True])
def test_empty_lists(of_tensors):
    """A list of nothing has no dtype of its own: no lengths, no ids, no spans."""
    make = np.ones
    if of_tensors:
        make = pytest.importorskip("torch").ones
    for shape, layout, wanted in (
        ((6, 3), {"spans": []}, (0, 3)),
        ((0, 5, 3), {"lengths": []}, (0, 3)),
        ((0, 3), {"segment_ids": []}, (0, 3)),
        ((0, 3), {"segment_ids": (), "num_segments": 2}, (2, 3)),
    ):
        assert tuple(ap.pool_tokens(make(shape), "max", **layout).shape) == wanted
