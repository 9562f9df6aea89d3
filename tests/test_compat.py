"""Other frameworks' rules without the frameworks: the numbers are facts of their specifications and documentation.

That the frameworks themselves give these results is what `make conformance` shows (tests/conformance).
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import anypool as ap
import cases
from anypool.compat import flax, onnx, tf

try:
    import torch
except ModuleNotFoundError:
    torch = None

FIVE = np.arange(1, 26, dtype=np.float32).reshape(1, 1, 5, 5)
FOUR = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)


def plain(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def column_major(x: np.ndarray) -> np.ndarray:
    """All of x in a row, planes one after the other, each of them column by column."""
    return np.concatenate([plane.ravel(order="F") for plane in x.reshape(-1, *x.shape[2:])])


# --------------------------------------------------------------------------- ONNX's own examples

INCLUDED = [  # sums over what a 5 × 5 window sees, over 25
    [2.52, 3.6, 4.8, 4.08, 3.24],
    [4.56, 6.4, 8.4, 7.04, 5.52],
    [7.2, 10, 13, 10.8, 8.4],
    [6.96, 9.6, 12.4, 10.24, 7.92],
    [6.12, 8.4, 10.8, 8.88, 6.84],
]
EXAMPLES = [
    (onnx.max_pool, FIVE, [5, 5], {"pads": [2] * 4},
     [[13, 14, 15, 15, 15], [18, 19, 20, 20, 20], *[[23, 24, 25, 25, 25]] * 3]),
    (onnx.max_pool, FIVE, [2, 2], {"strides": [2, 2]}, [[7, 9], [17, 19]]),
    (onnx.max_pool, FIVE, [3, 3], {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
     [[7, 9, 10], [17, 19, 20], [22, 24, 25]]),
    (onnx.max_pool, FOUR, [3, 3], {"strides": [2, 2], "ceil_mode": 1}, [[11, 12], [15, 16]]),
    (onnx.max_pool, FOUR, [2, 2], {"strides": [1, 1], "dilations": [2, 2]}, [[11, 12], [15, 16]]),
    (onnx.average_pool, FIVE, [5, 5], {"pads": [2] * 4},
     [[2.5 * i + j / 2 + 7 for j in range(5)] for i in range(5)]),
    (onnx.average_pool, FIVE, [5, 5], {"pads": [2] * 4, "count_include_pad": 1}, INCLUDED),
    (onnx.average_pool, FIVE, [2, 2], {"strides": [2, 2]}, [[4, 6], [14, 16]]),
    (onnx.average_pool, FIVE, [3, 3], {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
     [[4, 5.5, 7], [11.5, 13, 14.5], [19, 20.5, 22]]),
    (onnx.average_pool, FOUR, [3, 3], {"strides": [2, 2], "ceil_mode": 1}, [[6, 7.5], [12, 13.5]]),
    (onnx.average_pool, FOUR, [2, 2], {"dilations": [2, 2], "ceil_mode": 1}, [[6, 7], [10, 11]]),
    (onnx.lp_pool, FOUR, [2, 2], {"dilations": [2, 2]},
     np.sqrt([[1 + 9 + 81 + 121, 4 + 16 + 100 + 144], [25 + 49 + 169 + 225, 36 + 64 + 196 + 256]])),
]  # fmt: skip


@pytest.mark.parametrize(("function", "x", "kernel", "attributes", "expected"), EXAMPLES)
def test_examples_of_the_specification(function, x, kernel, attributes, expected, backend):
    y = function(x, kernel, **attributes)
    np.testing.assert_allclose(plain(y)[0, 0], expected, rtol=1e-6)
    assert y.dtype == np.float32


def test_a_last_window_that_starts_in_the_padding_is_dropped():
    """Opset 22: 2 + 2 inputs and windows of 3 every 3 make one window, not two; padding counts."""
    x = np.array([[0.8580, 0.0786], [0.2692, 0.1537]], np.float32).reshape(1, 1, 2, 2)
    arguments = {"strides": [3, 3], "pads": [1] * 4, "ceil_mode": 1}
    y = onnx.average_pool(x, [3, 3], count_include_pad=1, **arguments)
    assert y.shape == (1, 1, 1, 1)
    assert y.item() == pytest.approx(0.1511, abs=5e-5)
    assert onnx.max_pool(x, [3, 3], **arguments).ravel().tolist() == [np.float32(0.8580)]


def test_indices_of_the_specification():
    _, rows = onnx.max_pool(FIVE, [5, 5], pads=[2] * 4, return_indices=True)
    assert rows[0, 0].tolist() == [[12, 13, 14, 14, 14], [17, 18, 19, 19, 19], *[[22, 23, 24, 24, 24]] * 3]
    _, columns = onnx.max_pool(FIVE, [2, 2], strides=[2, 2], storage_order=1, return_indices=True)
    assert columns[0, 0].tolist() == [[6, 16], [8, 18]]
    assert columns.dtype == np.int64


@pytest.mark.parametrize("shape", cases.SHAPES[1] + cases.SHAPES[2] + cases.SHAPES[3])
def test_onnx_indices_count_through_the_whole_tensor(shape, backend):
    x = cases.rng(7, *shape).permutation(np.prod(shape)).reshape(shape)
    rank = len(shape) - 2
    arguments = {"kernel_shape": [3] * rank, "pads": [1] * 2 * rank, "return_indices": True}
    y, rows = onnx.max_pool(x, **arguments)
    again, columns = onnx.max_pool(x, storage_order=1, **arguments)
    assert np.array_equal(x.ravel()[rows], y)
    assert np.array_equal(column_major(x)[columns], y)
    assert np.array_equal(y, again)


# ------------------------------------------------------------------------------- ONNX, elsewhere


def test_auto_pad_takes_dilations_and_ceil_mode_as_the_formulas_do():
    """VALID: ceil((n - reach + 1) / s); SAME: ceil(n / s), padding for the dilated window."""
    x = np.arange(1.0, 6).reshape(1, 1, 5)
    assert onnx.max_pool(x[..., :4], [3], strides=[2], auto_pad="VALID", ceil_mode=1).tolist() == [[[3]]]
    assert onnx.max_pool(x, [2], dilations=[2], auto_pad="SAME_UPPER").tolist() == [[[2, 3, 4, 5, 4]]]
    assert onnx.max_pool(x, [2], strides=[2], auto_pad="SAME_LOWER", ceil_mode=1).tolist() == [[[1, 3, 5]]]
    assert onnx.average_pool(x, [2], auto_pad="SAME_LOWER", count_include_pad=1).tolist() == [
        [[0.5, 1.5, 2.5, 3.5, 4.5]]
    ]


def test_pads_are_all_beginnings_then_all_ends():
    x = np.ones((1, 1, 4, 4))
    assert onnx.average_pool(x, [1, 3], pads=[0, 2, 0, 0], count_include_pad=1)[0, 0, 0].tolist() == [
        1 / 3,
        2 / 3,
        1,
        1,
    ]
    assert onnx.max_pool(x, [3, 1], pads=[0, 0, 2, 0]).shape == (1, 1, 4, 4)


def test_lp_takes_magnitudes():
    x = np.array([[[-3.0, 4.0, -1.0]]])
    assert onnx.lp_pool(x, [2]).tolist() == [[[5.0, np.sqrt(17.0)]]]
    assert onnx.lp_pool(x, [2], p=1).tolist() == [[[7.0, 5.0]]]
    assert onnx.lp_pool(x, [2], strides=[2], p=1, ceil_mode=1).tolist() == [[[7.0, 1.0]]]
    assert onnx.global_lp_pool(x, p=1).tolist() == [[[8.0]]]


def test_global_pools():
    x = np.arange(24.0).reshape(1, 2, 3, 4)
    assert onnx.global_average_pool(x).tolist() == [[[[5.5]], [[17.5]]]]
    assert onnx.global_max_pool(x).tolist() == [[[[11.0]], [[23.0]]]]
    assert onnx.global_lp_pool(x).shape == (1, 2, 1, 1)


def test_unpooling_of_the_specification():
    x, indices = np.array([[[[1, 2], [3, 4]]]], np.float32), np.array([[[[5, 7], [13, 15]]]])
    y = onnx.max_unpool(x, indices, [2, 2], strides=[2, 2])
    assert y[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [0, 3, 0, 4]]
    assert y.dtype == np.float32


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 5, 7), (1, 2, 3, 5, 4)])
def test_unpooling_undoes_pooling(shape):
    x = cases.rng(8, *shape).random(shape) + 1
    rank = len(shape) - 2
    y, indices = onnx.max_pool(x, [2] * rank, strides=[2] * rank, return_indices=True)
    back = onnx.max_unpool(y, indices, [2] * rank, strides=[2] * rank, output_shape=shape)
    expected = np.zeros(x.size)
    expected[indices.ravel()] = y.ravel()
    assert np.array_equal(back, expected.reshape(shape))
    inferred = onnx.max_unpool(y[..., :1] * 0, indices[..., :1] * 0, [2] * rank, strides=[2] * rank)
    assert inferred.shape == (*shape[:2], *(n // 2 * 2 for n in shape[2:-1]), 2)


def test_unpooling_nothing():
    nothing = np.zeros((0, 3, 2))
    assert onnx.max_unpool(nothing, nothing.astype(int), [2], strides=[2]).shape == (0, 3, 4)


# --------------------------------------------------------------------------------------- TensorFlow


def test_tensorflow_documentation():
    x = np.array([[0, 0, 1, 7], [0, 2, 0, 0], [5, 2, 0, 0], [0, 0, 9, 8]], np.int32).reshape(1, 4, 4, 1)
    assert tf.max_pool(x, 2, 2, "SAME")[0, ..., 0].tolist() == [[2, 7], [5, 9]]
    assert tf.max_pool(x, 3, 2, "SAME")[0, ..., 0].tolist() == [[5, 7], [9, 9]]
    assert tf.max_pool(x, 3, 3, "SAME")[0, ..., 0].tolist() == [[2, 7], [5, 9]]
    assert tf.max_pool(x, 3, 3, "VALID")[0, ..., 0].tolist() == [[5]]
    assert tf.max_pool(x, 3, 3, "VALID").dtype == np.int32


def test_tensorflow_averages_never_count_padding():
    x = np.ones((1, 5, 5, 2))
    assert (tf.avg_pool(x, 3, 2, "SAME") == 1).all()
    assert (tf.avg_pool(x, 3, 2, [[0, 0], [1, 2], [2, 1], [0, 0]]) == 1).all()
    assert (tf.pool(x, [2, 2], "AVG", padding="SAME") == 1).all()


@pytest.mark.parametrize(
    ("data_format", "shape", "pooled"),
    [
        ("NWC", (2, 6, 3), (2, 3, 3)),
        ("NCW", (2, 6, 4), (2, 6, 2)),
        ("NHWC", (1, 4, 6, 5), (1, 2, 3, 5)),
        ("NCHW", (1, 5, 4, 6), (1, 5, 2, 3)),
        ("NDHWC", (1, 2, 4, 6, 3), (1, 1, 2, 3, 3)),
        ("NCDHW", (1, 3, 2, 4, 6), (1, 3, 1, 2, 3)),
    ],
)
def test_data_formats(data_format, shape, pooled, backend):
    x = cases.plain(shape, np.dtype(np.float32))
    y = tf.max_pool(x, 2, 2, "VALID", data_format)
    assert y.shape == pooled
    first = data_format[1] == "C"
    expected = ap.pool(x, "max", [2] * (len(shape) - 2), data_format="channels_first" if first else "channels_last")
    assert np.array_equal(y, expected)
    assert first or np.array_equal(tf.max_pool(x, 2, 2, "VALID"), y)


def test_sizes_come_as_one_or_for_each_spatial_axis_or_for_each_axis():
    x = cases.plain((2, 7, 9, 3), np.dtype(np.float32))
    expected = tf.avg_pool(x, (3, 2), (2, 1), "SAME")
    assert np.array_equal(tf.avg_pool(x, [1, 3, 2, 1], [1, 2, 1, 1], "SAME"), expected)
    assert np.array_equal(tf.avg_pool(x, [2], 2, "SAME"), tf.avg_pool(x, [2, 2], [2, 2], "SAME"))
    turned = tf.avg_pool(np.moveaxis(x, -1, 1), [1, 1, 3, 2], [1, 1, 2, 1], "SAME", "NCHW")
    assert np.array_equal(np.moveaxis(turned, 1, -1), expected)


@pytest.mark.parametrize("padding", ["SAME", "VALID", [[0, 0], [1, 0], [0, 1], [0, 0]]])
@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (1, 4, 3, 1), (3, 2, 2, 17)])
def test_argmax_points_at_the_maximum(shape, padding, backend):
    x = cases.rng(9, *shape).permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    y, argmax = tf.max_pool_with_argmax(x, 2, 2, padding, include_batch_in_index=True)
    assert np.array_equal(x.ravel()[argmax], y)
    _, of_image = tf.max_pool_with_argmax(x, 2, 2, padding)
    assert np.array_equal(of_image, argmax % np.prod(shape[1:]))
    assert argmax.dtype == np.int64


# --------------------------------------------------------------------------------------------- Flax


def test_flax_strides_are_one_and_padding_counts():
    x = np.array([2.0, 4.0, 6.0, 8.0]).reshape(4, 1)
    assert flax.max_pool(x, (2,)).ravel().tolist() == [4, 6, 8]
    assert flax.min_pool(x, (2,), strides=(2,)).ravel().tolist() == [2, 6]
    assert flax.avg_pool(x, (2,), padding="SAME").ravel().tolist() == [3, 5, 7, 4]
    assert flax.avg_pool(x, (2,), padding="SAME_LOWER").ravel().tolist() == [1, 3, 5, 7]
    assert flax.avg_pool(x, (2,), padding="same", count_include_pad=False).ravel().tolist() == [3, 5, 7, 8]
    assert flax.avg_pool(x, (2,), padding=((1, 0),)).ravel().tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_flax_takes_any_batch(batch, backend):
    x = cases.plain((*batch, 5, 7, 4), np.dtype(np.float32))
    y = flax.max_pool(x, (3, 2), strides=(2, 1), padding="SAME")
    assert y.shape == (*batch, 3, 7, 4)
    one = ap.max_pool2d(x.reshape(-1, 5, 7, 4), (3, 2), (2, 1), "same", data_format="channels_last")
    assert np.array_equal(y.reshape(one.shape), one)


def test_flax_averages_integers_to_float32():
    x = np.array([100, 100, 3], np.int8).reshape(3, 1)
    y = flax.avg_pool(x, (2,))
    assert (y.dtype, y.ravel().tolist()) == (np.float32, [100.0, 51.5])
    assert flax.max_pool(x, (2,)).dtype == np.int8


# ------------------------------------------------------------------------------------------- errors

SMALL, IMAGE = np.zeros((1, 2, 4, 4)), np.zeros((1, 4, 4, 2))
NOTHING, NONE = np.ones((1, 3, 0)), np.ones((0, 1, 2))
PLACES, TWO = SMALL.astype(int), np.array([2, 2])
BAD = [
    (lambda: onnx.max_pool(SMALL, 2), TypeError, r"kernel_shape must be a sequence of 2 ints, got 2 "),
    (
        lambda: onnx.max_pool(SMALL, [2]),
        ValueError,
        r"kernel_shape must have 2 elements, got \[2\] \(x: \(1, 2, 4, 4\)",
    ),
    (lambda: onnx.max_pool(SMALL, [2, 0]), ValueError, r"kernel_shape\[1\] must be >= 1, got 0"),
    (lambda: onnx.max_pool(SMALL, [2, 2.0]), TypeError, r"kernel_shape\[1\] must be an int, got 2.0"),
    (lambda: onnx.max_pool(SMALL, [2, 2], strides=[1, True]), TypeError, r"strides\[1\] must be an int"),
    (lambda: onnx.max_pool(SMALL, [2, 2], pads=[0, 0]), ValueError, r"pads must have 4 elements"),
    (lambda: onnx.max_pool(SMALL, [2, 2], pads=[0, 0, -1, 0]), ValueError, r"pads\[2\] must be >= 0, got -1"),
    (
        lambda: onnx.max_pool(SMALL, [2, 2], pads=[0, 0, 1, 0], auto_pad="VALID"),
        ValueError,
        r"pads must not be given with",
    ),
    (
        lambda: onnx.max_pool(SMALL, [2, 2], auto_pad="SAME"),
        ValueError,
        r"auto_pad must be one of 'NOTSET', 'SAME_UPPER'",
    ),
    (lambda: onnx.max_pool(SMALL, [2, 2], ceil_mode=2), ValueError, r"ceil_mode must be one of 0, 1, got 2"),
    (lambda: onnx.max_pool(SMALL, [2, 2], storage_order=2), ValueError, r"storage_order must be one of 0, 1"),
    (lambda: onnx.max_pool(SMALL, [2, 2], pads=[2] * 4), ValueError, r"must leave every window some input"),
    (lambda: onnx.max_pool(SMALL, [5, 5]), ValueError, r"must fit the input: a window spans 5 of 4"),
    (lambda: onnx.max_pool(SMALL[0, 0], [2]), ValueError, r"x must be \(N, C, D1, …\), got 2 dimensions"),
    (lambda: onnx.average_pool(SMALL, [2, 2], count_include_pad=None), ValueError, r"count_include_pad must be one of"),
    (lambda: onnx.lp_pool(SMALL, [2, 2], p=0), ValueError, r"^p must be > 0, got 0"),
    (lambda: onnx.max_unpool(SMALL, SMALL, [2, 2]), TypeError, r"indices must be integers"),
    (lambda: onnx.max_unpool(SMALL, SMALL[0].astype(int), [2, 2]), ValueError, r"indices must have the shape of x"),
    (lambda: onnx.max_unpool(SMALL, SMALL.astype(int) + 50, [2, 2]), ValueError, r"indices must be in \[0, 50\)"),
    (lambda: onnx.max_unpool(SMALL, SMALL.astype(int), [1, 1], pads=[2] * 4), ValueError, r"pads must leave an output"),
    (
        lambda: onnx.max_unpool(SMALL, SMALL.astype(int), [1, 1], output_shape=[1, 1, 4, 4]),
        ValueError,
        r"the result must",
    ),
    (lambda: tf.max_pool(IMAGE, 2, 2, "same"), ValueError, r"padding must be one of 'SAME', 'VALID', got 'same'"),
    (lambda: tf.max_pool(IMAGE, 2, 2, [[0, 0], [1, 1]]), ValueError, r"padding must have 4 \(low, high\) pairs"),
    (
        lambda: tf.max_pool(IMAGE, 2, 2, [[1, 0]] * 4),
        ValueError,
        r"padding must be \(0, 0\) for the batch and the channels",
    ),
    (
        lambda: tf.max_pool(IMAGE, 2, 2, [[0, 0], [1, 1], [-1, 0], [0, 0]]),
        ValueError,
        r"padding\[2\]\[0\] must be >= 0",
    ),
    (
        lambda: tf.max_pool(IMAGE, [2, 2, 2, 1], 2, "SAME"),
        ValueError,
        r"ksize must be 1 for the batch and the channels",
    ),
    (lambda: tf.max_pool(IMAGE, [2, 2, 2], 2, "SAME"), ValueError, r"ksize must be an int or have 1, 2 or 4 elements"),
    (
        lambda: tf.max_pool(IMAGE, 2, 0, "SAME"),
        ValueError,
        r"strides\[0\] must be >= 1, got 0 \(input: \(1, 4, 4, 2\)\)",
    ),
    (
        lambda: tf.max_pool(IMAGE, 2, 2, "SAME", "NWC"),
        ValueError,
        r"data_format must be one of 'NHWC', 'NCHW', got 'NWC'",
    ),
    (lambda: tf.max_pool(IMAGE[0, 0], 2, 2, "SAME"), ValueError, r"input must have 3, 4 or 5 dimensions, got 2"),
    (lambda: tf.pool(IMAGE, [2, 2], "SUM"), ValueError, r"pooling_type must be one of 'AVG', 'MAX', got 'SUM'"),
    (lambda: tf.max_pool_with_argmax(IMAGE[0], 2, 2, "SAME"), ValueError, r"input must have 4 dimensions, got 3"),
    (
        lambda: tf.max_pool_with_argmax(IMAGE, 2, 2, "SAME", "NCHW"),
        ValueError,
        r"data_format must be one of 'NHWC', got",
    ),
    (
        lambda: tf.max_pool_with_argmax(IMAGE, 2, 2, "SAME", "NHWC", 1),
        TypeError,
        r"include_batch_in_index must be a bool",
    ),
    (
        lambda: flax.max_pool(IMAGE, 2),
        ValueError,
        r"window_shape must have 1 to 3 elements, got 2 \(inputs: \(1, 4, 4, 2\)",
    ),
    (lambda: flax.max_pool(IMAGE, (2,) * 4), ValueError, r"window_shape must have 1 to 3 elements"),
    (lambda: flax.max_pool(IMAGE, (2, 2), strides=2), TypeError, r"strides must be a sequence of 2 ints"),
    (
        lambda: flax.max_pool(IMAGE, (2, 2), padding="CIRCULAR"),
        ValueError,
        r"padding must be one of 'VALID', 'SAME', 'SAME_L",
    ),
    (lambda: flax.max_pool(IMAGE, (2, 2), padding=((1, 1),)), ValueError, r"padding must have 2 \(low, high\) pairs"),
    (
        lambda: flax.max_pool(IMAGE, (2, 2), padding=((0, 0), (-1, 0))),
        ValueError,
        r"padding\[1\]\[0\] must be >= 0, got -1",
    ),
    (lambda: flax.max_pool(np.ma.array([1.0]), (1,)), TypeError, r"must not be a masked array"),
    # bytes and arrays without an axis are no lists of sizes; floats and arrays are no flags and no names
    (lambda: onnx.max_pool(SMALL, b"\2\2"), TypeError, r"^kernel_shape must be a sequence of 2 ints, got b'"),
    (lambda: onnx.max_pool(SMALL, [2, 2], pads=b"\0\0\0\0"), TypeError, r"^pads must be a sequence of 4 ints, got b'"),
    (lambda: tf.max_pool(IMAGE, b"\2\2", 1, "VALID"), TypeError, r"^ksize\[0\] must be an int, got b'"),
    (lambda: flax.max_pool(IMAGE, b"\2\2"), ValueError, r"^window_shape must have 1 to 3 elements, got b'"),
    (
        lambda: flax.max_pool(IMAGE, (2, 2), padding=b"\2\2"),
        ValueError,
        r"^padding must have 2 \(low, high\) pairs, got b",
    ),
    (
        lambda: flax.max_pool(IMAGE, (2, 2), padding=[b"\1\1"] * 2),
        TypeError,
        r"^padding\[0\] must be a sequence of 2 ints",
    ),
    (
        lambda: onnx.max_pool(SMALL, np.array(2)),
        TypeError,
        r"^kernel_shape must be a sequence of 2 ints, got array\(2\)",
    ),
    (lambda: onnx.max_pool(SMALL, [2, 2], strides=np.array(2)), TypeError, r"^strides must be a sequence of 2 ints"),
    (
        lambda: tf.max_pool(IMAGE, 2, 1, np.array(2)),
        ValueError,
        r"^padding must have 4 \(low, high\) pairs, got array\(2\)",
    ),
    (lambda: flax.max_pool(IMAGE, np.array(2)), ValueError, r"^window_shape must have 1 to 3 elements, got array\(2\)"),
    (
        lambda: flax.max_pool(IMAGE, (2, 2), padding=np.array(2)),
        ValueError,
        r"^padding must have 2 \(low, high\) pairs",
    ),
    (lambda: onnx.max_pool(SMALL, [2, 2], ceil_mode=1.0), ValueError, r"^ceil_mode must be one of 0, 1, got 1.0"),
    (
        lambda: onnx.max_pool(SMALL, [2, 2], storage_order=1.0),
        ValueError,
        r"^storage_order must be one of 0, 1, got 1.0",
    ),
    (lambda: onnx.average_pool(SMALL, [2, 2], count_include_pad=1.0), ValueError, r"^count_include_pad must be one of"),
    (lambda: onnx.max_pool(SMALL, [2, 2], ceil_mode=TWO), ValueError, r"^ceil_mode must be one of 0, 1, got array"),
    (
        lambda: onnx.max_pool(SMALL, [2, 2], storage_order=TWO),
        ValueError,
        r"^storage_order must be one of 0, 1, got array",
    ),
    (
        lambda: onnx.average_pool(SMALL, [2, 2], count_include_pad=TWO),
        ValueError,
        r"^count_include_pad must be one of 0",
    ),
    (
        lambda: onnx.max_pool(SMALL, [2, 2], auto_pad=TWO),
        ValueError,
        r"^auto_pad must be one of 'NOTSET', .* got array",
    ),
    (
        lambda: tf.max_pool(IMAGE, 2, 2, "SAME", TWO),
        ValueError,
        r"^data_format must be one of 'NHWC', 'NCHW', got array",
    ),
    (lambda: tf.pool(IMAGE, [2, 2], TWO), ValueError, r"^pooling_type must be one of 'AVG', 'MAX', got array"),
    # the framework's names, and no advice to give what its functions do not take
    (lambda: onnx.lp_pool(SMALL, [2, 2], p="2"), TypeError, r"^p must be a number, got '2'"),
    (lambda: onnx.global_lp_pool(SMALL, p=-1), ValueError, r"^p must be > 0, got -1"),
    (lambda: onnx.max_pool(SMALL, [5, 5]), ValueError, r"^kernel_shape must fit the input"),
    (
        lambda: onnx.max_pool(SMALL, [2, 2], pads=[2] * 4),
        ValueError,
        r"^pads must leave every window some input: window 0",
    ),
    (lambda: onnx.max_pool(SMALL, [2, 2], strides=[1, 2**40]), ValueError, r"^strides must be below 2\*\*40"),
    (
        lambda: onnx.max_pool(SMALL, [2, 2], dilations=[1, 2**40]),
        ValueError,
        r"^dilations must keep the span of a window",
    ),
    (lambda: tf.max_pool(IMAGE, 5, 2, "VALID"), ValueError, r"^ksize must fit .*\(input: \(1, 4, 4, 2\)\)$"),
    (lambda: tf.pool(IMAGE, [5, 5], "MAX"), ValueError, r"^window_shape must fit .*\(input: \(1, 4, 4, 2\)\)$"),
    (lambda: tf.max_pool_with_argmax(IMAGE, 5, 2, "VALID"), ValueError, r"^ksize must fit"),
    (
        lambda: tf.max_pool(IMAGE, 2, 2, [[0, 0], [2, 2], [2, 2], [0, 0]]),
        ValueError,
        r"^padding must leave every window some input: window 0 has none, got \(2, 2\)",
    ),
    (lambda: tf.max_pool(None, 2, 2, "SAME"), TypeError, r"^input must be a NumPy array"),
    (lambda: flax.max_pool(IMAGE, (5, 5)), ValueError, r"^window_shape must fit .*\(inputs: \(1, 4, 4, 2\)\)$"),
    (
        lambda: flax.max_pool(np.ones(4), (2,)),
        ValueError,
        r"^inputs must have 2 dimensions or more, .* got 1 \(inputs: ",
    ),
    (lambda: onnx.global_lp_pool(NOTHING), ValueError, r"^x.shape along pooled axis 0 must be >= 1, got 0 \(x: "),
    (lambda: onnx.global_max_pool(NOTHING), ValueError, r"^x.shape along pooled axis 0 must be >= 1, got 0 \(x: "),
    (lambda: onnx.global_average_pool(NOTHING), ValueError, r"^x.shape along pooled axis 0 must be >= 1, got 0 \(x: "),
    (lambda: onnx.global_max_pool(NOTHING[0]), ValueError, r"^x must be \(N, C, D1, …\), got 2 dimensions"),
    # gradients and explanations say the same
    (lambda: ap.vjp(onnx.lp_pool, SMALL, [2, 2], p=0), ValueError, r"^p must be > 0, got 0"),
    (lambda: ap.explain(onnx.max_pool, SMALL, [5, 5]), ValueError, r"^kernel_shape must fit the input"),
    (lambda: ap.vjp(onnx.max_unpool, SMALL, SMALL, [2, 2]), TypeError, r"^indices must be integers"),
    (
        lambda: ap.vjp(onnx.max_unpool, SMALL, PLACES + 50, [2, 2]),
        ValueError,
        r"\[0, 50\), got .*\(x: \(1, 2, 4, 4\)\)$",
    ),
    (
        lambda: ap.explain(onnx.max_unpool, SMALL, PLACES + 50, [2, 2]),
        ValueError,
        r"\[0, 50\), got .*\(x: \(1, 2, 4, 4\)",
    ),
    # signatures
    (lambda: onnx.max_pool(SMALL, [2, 2], weights=1), TypeError, r"^max_pool\(\) got an unexpected .* 'weights'"),
    (
        lambda: ap.vjp(onnx.max_unpool, SMALL, PLACES, [2, 2], mask=1),
        TypeError,
        r"^max_unpool\(\) got an unexp.* 'mask'",
    ),
    (lambda: ap.vjp(tf.pool, SMALL, [2, 2]), TypeError, r"^pool\(\) missing a required argument: 'pooling_type'"),
    # unpooling nothing checks as much as unpooling something; sizes are those of output_shape
    (lambda: onnx.max_unpool(NONE.astype("M8[s]"), NONE.astype("U1"), [2]), TypeError, r"^x must be bool, integer, "),
    (lambda: onnx.max_unpool(NONE, NONE.astype("U1"), [2]), TypeError, r"^indices must be integers, got dtype <U1"),
    (
        lambda: onnx.max_unpool(NONE, NONE, [2]),
        TypeError,
        r"^indices must be integers, got dtype float64 \(x: \(0, 1, 2\)",
    ),
    (
        lambda: onnx.max_unpool(SMALL, PLACES, [2, 2], output_shape=[1, 2, 2**40, 2**40]),
        ValueError,
        r"^output_shape must give fewer than 2\*\*59 elements, got \[1, 2, 1099511627776, 1099511627776\]",
    ),
    (
        lambda: onnx.max_unpool(SMALL, PLACES, [2**40] * 2),
        ValueError,
        r"^kernel_shape must give fewer than 2\*\*59 elements",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_argument(call, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert type(caught.value) is kind
    assert "empty=" not in str(caught.value)


@pytest.mark.parametrize("value", [np.ones((30, 30)), "a\nb", [["a\nb" * 99]]], ids=["array", "text", "list"])
def test_messages_have_one_line(value):
    calls = (
        lambda: onnx.max_pool(SMALL, value),
        lambda: onnx.max_pool(SMALL, [2, 2], auto_pad=value),
        lambda: onnx.max_pool(SMALL, [2, 2], ceil_mode=value),
        lambda: tf.max_pool(IMAGE, value, 2, "SAME"),
        lambda: tf.max_pool(IMAGE, 2, 2, value),
        lambda: tf.max_pool_with_argmax(IMAGE, 2, 2, "SAME", "NHWC", value),
        lambda: flax.max_pool(IMAGE, value),
        lambda: flax.max_pool(IMAGE, (2, 2), padding=value),
    )
    for call in calls:
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_arrays_without_an_axis_are_one_size_where_one_size_is_taken():
    assert np.array_equal(tf.max_pool(IMAGE, np.array(2), 1, "SAME"), tf.max_pool(IMAGE, 2, 1, "SAME"))


# ------------------------------------------------------------- what they share with other functions

ARRAYS = cases.plain((2, 4, 6, 6), np.dtype(np.float32))
CALLS = [
    (onnx.max_pool, ([3, 3],), {"pads": [1, 0, 0, 1], "strides": [2, 2]}),
    (onnx.max_pool, ([3, 3],), {"return_indices": True, "storage_order": 1}),
    (onnx.average_pool, ([3, 3],), {"auto_pad": "SAME_LOWER", "count_include_pad": 1}),
    (onnx.lp_pool, ([2, 2],), {"p": 3}),
    (onnx.global_average_pool, (), {}),
    (onnx.global_max_pool, (), {}),
    (onnx.global_lp_pool, (), {}),
    (tf.max_pool, (3, 2, "SAME"), {}),
    (tf.avg_pool, (3, 2, "SAME"), {"data_format": "NCHW"}),
    (tf.pool, ([2, 2], "AVG"), {"dilations": [2, 1]}),
    (tf.max_pool_with_argmax, (3, 2, "SAME"), {"include_batch_in_index": True}),
    (flax.max_pool, ((3, 3),), {"padding": "SAME"}),
    (flax.min_pool, ((3, 3),), {"strides": (2, 1)}),
    (flax.avg_pool, ((3,),), {"padding": ((2, 1),), "count_include_pad": False}),
]
by_call = pytest.mark.parametrize(("function", "args", "kwargs"), CALLS)


@by_call
def test_gradients_and_explanations(function, args, kwargs):
    y = function(ARRAYS, *args, **kwargs)
    pulled, pullback = ap.vjp(function, ARRAYS, *args, **kwargs)
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (y, pulled)), strict=True):
        assert np.array_equal(a, b)
    first = y[0] if isinstance(y, tuple) else y
    assert pullback(np.ones_like(first)).shape == ARRAYS.shape
    assert ap.explain(function, ARRAYS, *args, **kwargs).output_shape == first.shape


@pytest.mark.skipif(torch is None, reason="torch is not installed")
@by_call
def test_tensors_give_the_same(function, args, kwargs):
    expected = function(ARRAYS, *args, **kwargs)
    got = function(torch.from_numpy(ARRAYS), *args, **kwargs)
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (expected, got)), strict=True):
        assert isinstance(b, torch.Tensor)
        assert np.array_equal(a, b.numpy())


@pytest.mark.skipif(torch is None, reason="torch is not installed")
def test_tensors_unpool_and_have_gradients():
    x = torch.from_numpy(ARRAYS).requires_grad_()
    y, indices = onnx.max_pool(x, [2, 2], strides=[2, 2], return_indices=True)
    back = onnx.max_unpool(y, indices, [2, 2], strides=[2, 2])
    assert torch.equal(back != 0, torch.zeros(x.numel(), dtype=bool).index_fill(0, indices.ravel(), True).view(x.shape))
    back.sum().backward()
    assert torch.equal(x.grad, (back != 0).float())
    assert flax.avg_pool(torch.ones(3, 1, dtype=torch.int8), (2,)).dtype == torch.float32


@pytest.mark.parametrize("arguments", [{}, {"output_shape": (2, 3, 7, 8)}], ids=["inferred", "given"])
def test_unpooling_has_gradients_and_explanations(arguments):
    x = cases.rng(11).permutation(2 * 3 * 6 * 8).reshape(2, 3, 6, 8).astype(np.float64)
    pooled, places = onnx.max_pool(x, [2, 2], strides=[2, 2], return_indices=True)
    back = onnx.max_unpool(pooled, places, [2, 2], strides=[2, 2], **arguments)
    y, pullback = ap.vjp(onnx.max_unpool, pooled, places, [2, 2], strides=[2, 2], **arguments)
    assert np.array_equal(y, back)
    g = cases.rng(12).random(y.shape)
    expected = g.ravel()[places]
    assert np.array_equal(pullback(g), expected)
    out = np.full_like(pooled, np.nan)
    assert pullback(g, out=out) is out
    assert np.array_equal(out, expected)
    with pytest.raises(ValueError, match=r"grad_y must have the result's shape"):
        pullback(g[0])
    explained = ap.explain(onnx.max_unpool, pooled, places, [2, 2], strides=[2, 2], **arguments)
    assert (explained.input_shape, explained.output_shape, explained.backend) == (pooled.shape, y.shape, "numpy")
    if torch is not None:
        t, ti = torch.from_numpy(pooled), torch.from_numpy(places)
        ty, pullback = ap.vjp(onnx.max_unpool, t, ti, [2, 2], strides=[2, 2], **arguments)
        assert np.array_equal(ty.numpy(), y)
        assert np.array_equal(pullback(torch.from_numpy(g)).numpy(), expected)
        explained = ap.explain(onnx.max_unpool, t, ti, [2, 2], strides=[2, 2], **arguments)
        assert (explained.output_shape, explained.backend) == (y.shape, "pytorch")


def test_unpooling_nothing_has_a_gradient():
    y, pullback = ap.vjp(onnx.max_unpool, NONE, NONE.astype(int), [2])
    assert (y.shape, pullback(y).shape) == ((0, 1, 3), (0, 1, 2))
    assert onnx.max_unpool(NONE, NONE.astype(int), [2], output_shape=[1, 1, 4]).tolist() == [[[0, 0, 0, 0]]]


@pytest.mark.parametrize("dtype", cases.DTYPES)
@by_call
def test_any_dtype(function, args, kwargs, dtype):
    x = cases.plain((2, 4, 6, 6), cases.dtype_of(dtype))
    y = function(x, *args, **kwargs)
    y = y[0] if isinstance(y, tuple) else y
    if function in (onnx.max_pool, tf.max_pool, flax.max_pool, flax.min_pool, onnx.global_max_pool):
        assert y.dtype == x.dtype
    wide = function(x.astype(np.float64), *args, **kwargs)
    np.testing.assert_allclose(plain(y), plain(wide[0] if isinstance(wide, tuple) else wide), rtol=0.01, atol=0.51)


def test_importing_anypool_imports_none_of_it():
    code = "import sys, anypool; print([m for m in sys.modules if 'compat' in m and 'anypool' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
