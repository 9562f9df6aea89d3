"""TensorFlow, and Keras on it. What is left out is pinned by `test_where_tensorflow_departs`."""

from __future__ import annotations

import os
import warnings
from functools import partial

import numpy as np
import pytest

import anypool as ap
from anypool.compat import tf as compat
from grid import agrees, draw, exact, reals, rounded, ties

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Without oneDNN it has no NCHW on a CPU, its 3-D pools shift windows where a stride beyond the kernel meets SAME, and
# its gradient of 2-D averages differs for windows that hang over both ends of an axis (4 inputs, kernel 5, stride 3).
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations of its own
    import keras
    import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

COUNT = 150
by_rank = pytest.mark.parametrize("rank", [1, 2, 3])
by_padding = pytest.mark.parametrize("padding", ["SAME", "VALID"])


def theirs(function, x, *args, **kwargs):
    result = function(tf.constant(x), *args, **kwargs)  # of an array it may change the dtype
    return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()


def cases(rank: int, seed: int, padding: str, *, dilated: bool = False):
    """Draw without ceil_mode, which TensorFlow lacks.

    Without any window, max_pool ends the process in one dimension.
    """
    for case in draw(rank, seed, COUNT, dilated=dilated, ceil=False):
        reach = [d * (k - 1) + 1 for k, d in zip(case.kernel, case.dilation, strict=True)]
        if padding == "SAME" or all(n >= r for n, r in zip(case.sizes, reach, strict=True)):
            yield case


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64"])
@by_padding
@by_rank
def test_max_pool(rank, padding, dtype):
    if rank == 3 and dtype != "float32":  # it has no other kernels on a CPU
        with pytest.raises(tf.errors.OpError):
            tf.nn.max_pool(tf.zeros((1, 2, 2, 2, 1), dtype), 2, 2, "VALID")
        return
    for i, case in enumerate(cases(rank, 1, padding)):
        x = ties((2, *case.sizes, 3), dtype, i)
        arguments = (x, case.kernel, case.stride, padding)
        exact(compat.max_pool(*arguments), theirs(tf.nn.max_pool, *arguments), case)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@by_padding
@by_rank
def test_avg_pool(rank, padding, dtype):
    if rank == 3 and dtype != "float32":
        with pytest.raises(tf.errors.OpError):
            tf.nn.avg_pool(tf.zeros((1, 2, 2, 2, 1), dtype), 2, 2, "VALID")
        return
    for i, case in enumerate(cases(rank, 2, padding)):
        x = reals((2, *case.sizes, 3), dtype, i)
        arguments = (x, case.kernel, case.stride, padding)
        expected = theirs(tf.nn.avg_pool, *arguments)
        rounded(compat.avg_pool(*arguments), expected, case, x=x, taps=case.taps)


@pytest.mark.parametrize("data_format", ["NCW", "NCHW", "NCDHW"])
@by_padding
def test_channels_first(data_format, padding):
    rank = len(data_format) - 2
    for i, case in enumerate(cases(rank, 3, padding)):
        x = reals((2, 3, *case.sizes), seed=i)
        arguments = (x, case.kernel, case.stride, padding, data_format)
        exact(compat.max_pool(*arguments), theirs(tf.nn.max_pool, *arguments), case)
        rounded(compat.avg_pool(*arguments), theirs(tf.nn.avg_pool, *arguments), case, x=x, taps=case.taps)


@pytest.mark.parametrize("rank", [1, 2])  # TensorFlow has no explicit padding in three dimensions
def test_explicit_padding(rank):
    compared = 0
    for i, case in enumerate(draw(rank, 4, COUNT, dilated=False, ceil=False)):
        x = reals((2, *case.sizes, 3), seed=i) - 9
        arguments = (x, case.kernel, case.stride, [[0, 0], *(list(p) for p in case.pads), [0, 0]])
        compared += agrees(
            case, partial(theirs, tf.nn.max_pool, *arguments), partial(compat.max_pool, *arguments), first=1
        )
    assert compared > COUNT // 2


@by_rank
def test_pool_with_dilations(rank):
    for i, case in enumerate(cases(rank, 5, "VALID", dilated=True)):
        x = reals((2, *case.sizes, 3), seed=i) - 9
        arguments = {"window_shape": case.kernel, "dilations": case.dilation}
        maxima, means = ({**arguments, "pooling_type": kind} for kind in ("MAX", "AVG"))
        exact(compat.pool(x, **maxima), theirs(tf.nn.pool, x, **maxima), case)
        rounded(compat.pool(x, **means), theirs(tf.nn.pool, x, **means), case, x=x, taps=case.taps)


@by_padding
@by_rank
def test_pool_with_strides(rank, padding):
    for i, case in enumerate(cases(rank, 6, padding)):
        x = reals((2, *case.sizes, 3), seed=i)
        stride = tuple(min(s, k) for s, k in zip(case.stride, case.kernel, strict=True))  # it takes no more
        arguments = (x, case.kernel, "MAX", stride, padding)
        exact(compat.pool(*arguments), theirs(tf.nn.pool, *arguments), case)


@pytest.mark.parametrize("include", [False, True])
@by_padding
def test_max_pool_with_argmax(padding, include):
    """Its documentation warns of wrong positions where padding takes part; on a CPU they are right."""
    for i, case in enumerate(cases(2, 7, padding)):
        x = ties((2, *case.sizes, 3), "float32", i)
        arguments = {
            "ksize": case.kernel,
            "strides": case.stride,
            "padding": padding,
            "include_batch_in_index": include,
        }
        expected = tuple(theirs(tf.nn.max_pool_with_argmax, x, **arguments))
        exact(compat.max_pool_with_argmax(x, **arguments), expected, case)


@by_rank
def test_gradients(rank):
    for i, case in enumerate(cases(rank, 8, "SAME")):
        if i == 30:
            break
        x = np.random.default_rng(i).permutation(int(np.prod(case.sizes)) * 6).astype(np.float32)
        x = x.reshape(2, *case.sizes, 3)
        for ours, function in ((compat.max_pool, tf.nn.max_pool), (compat.avg_pool, tf.nn.avg_pool)):
            arguments = (case.kernel, case.stride, "SAME")
            with tf.GradientTape() as tape:
                tape.watch(tensor := tf.constant(x))
                y = function(tensor, *arguments, data_format=(None, None, "NDHWC")[rank - 1])  # 3-D gradients need it
            g = reals(tuple(y.shape), seed=i)
            expected = tape.gradient(y, tensor, output_gradients=tf.constant(g)).numpy()
            _, pullback = ap.vjp(ours, x, *arguments)
            rounded(pullback(g), expected, case, x=g * case.taps, taps=case.taps)


def test_where_tensorflow_departs():
    x = np.array([np.nan, 1, 2, np.nan, 3, 3], np.float32).reshape(1, 6, 1, 1)
    arguments = ([2, 1], [2, 1], "VALID")
    assert tf.nn.max_pool(x, *arguments).numpy().ravel().tolist() == [1, 2, 3]  # tensorflow#2501, #125965
    np.testing.assert_array_equal(compat.max_pool(x, *arguments).ravel(), [np.nan, np.nan, 3])
    y, argmax = tf.nn.max_pool_with_argmax(x, *arguments)
    np.testing.assert_array_equal(y.numpy().ravel(), [np.nan, 2, 3])
    assert argmax.numpy().ravel().tolist() == [0, 2, 4]
    infinite = np.full((1, 2, 2, 1), -np.inf, np.float32)
    assert tf.nn.max_pool(infinite, 2, 2, "VALID").numpy().item() == np.finfo(np.float32).min
    assert compat.max_pool(infinite, 2, 2, "VALID").item() == -np.inf
    with pytest.raises(TypeError):
        tf.nn.avg_pool(x, 2, 2, [[0, 0], [1, 1], [0, 0], [0, 0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="smaller than the window size"):
        tf.nn.max_pool(x, 2, 2, [[0, 0], [2, 0], [0, 0], [0, 0]])
    with pytest.raises(ValueError, match="not supported in conjunction"):
        tf.nn.pool(x, [2, 1], "MAX", strides=[2, 1], dilations=[2, 1])
    with pytest.raises(ValueError, match="inconsistency"):
        tf.nn.pool(x, [2, 1], "MAX", strides=[3, 1])
    assert tf.nn.max_pool(x, [7, 1], 1, "VALID").shape == (1, 0, 1, 1)  # no window at all


# ------------------------------------------------------------------------------------------- Keras


@by_padding
@by_rank
def test_keras_pools_as_tensorflow_does(rank, padding):
    largest, mean = (getattr(keras.layers, f"{kind}Pooling{rank}D") for kind in ("Max", "Average"))
    for i, case in enumerate(cases(rank, 9, padding)):
        if i == 30:
            break
        x = reals((2, *case.sizes, 3), seed=i)
        arguments = (case.kernel, case.stride, padding.lower())
        ours = (x, case.kernel, case.stride, padding)
        exact(compat.max_pool(*ours), largest(*arguments)(x).numpy(), case)
        rounded(compat.avg_pool(*ours), mean(*arguments)(x).numpy(), case, x=x, taps=case.taps)


@pytest.mark.parametrize("sizes", [((7,), (3,)), ((5, 9), (2, 4)), ((4, 5, 6), (3, 2, 5))])
def test_keras_adaptive_bins_are_pytorch_s(sizes):
    (n, m), rank = sizes, len(sizes[0])
    x = reals((2, *n, 3))
    for kind, ours, check in (
        ("Max", ap.adaptive_max_pool1d, exact),
        ("Average", ap.adaptive_avg_pool1d, partial(rounded, x=x, taps=100)),
    ):
        layer = getattr(keras.layers, f"Adaptive{kind}Pooling{rank}D")
        ours = getattr(ap, ours.__name__.replace("1d", f"{rank}d"))
        check(ours(x, m, data_format="channels_last"), layer(m)(x).numpy(), sizes)
