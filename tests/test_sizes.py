"""Arrays beyond 2**31 elements and 4 GiB: lengths, strides and positions are 64-bit everywhere.

Huge arrays are views of one element or one row wherever that can show the mistake; what needs real memory is slow.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

import anypool as ap

pytestmark = pytest.mark.skipif(sys.maxsize < 2**32, reason="a system of 32 bits")
MORE = 2**31 + 12  # elements, rows or bytes than an int counts


def far(row: np.ndarray, n: int) -> np.ndarray:
    """Repeat a row n times, without memory for it."""
    return np.broadcast_to(row, (n, *row.shape))


@pytest.mark.parametrize("reduction", ["max", "min", "sum", "mean", "lp", "logsumexp"])
def test_windows_far_apart(reduction):
    """The distance between windows is beyond 2**31 elements; a handful of them is read."""
    x = far(np.arange(4, dtype=np.float32), MORE)
    y = ap.pool(x, reduction, 3, axes=0, stride=2**30)
    wanted = ap.pool(x[:3], reduction, 3, axes=0)
    assert y.shape == (3, 4)
    assert np.array_equal(y, np.repeat(wanted, 3, axis=0))


@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_taps_far_apart(reduction):
    x = far(np.arange(4, dtype=np.float32), MORE)
    y = ap.pool(x, reduction, (2, 2), dilation=(2**31, 1), stride=(5, 2))
    assert y.tolist() == ([[1.0, 3.0]] if reduction == "max" else [[2.0, 10.0]]) * 3


def test_indices_beyond_32_bits():
    """Of several NaNs the last one wins: the row that is repeated decides the column, the last window the row."""
    x = far(np.array([0, np.nan, 1, 2], np.float32), MORE // 4 + 8)
    y, places = ap.pool(x, "max", (2, 4), stride=(2**29, 4), return_indices=True)
    assert np.isnan(y).all()
    assert places.ravel().tolist() == [5, 4 * (2**29 + 1) + 1]
    assert places.max() > 2**31


def test_a_gradient_s_windows_far_apart(backend):
    """Of a gradient as large as x only the windows' ends can be tried: x is as small as that needs, strides are not."""
    room = np.zeros(1 << 20, np.float32)
    x = np.lib.stride_tricks.as_strided(room, (2, 5), (4 * (len(room) - 5), 4))
    y, pullback = ap.vjp(ap.pool, x, "max", 5, axes=1)
    assert pullback(np.ones_like(y)).tolist() == [[1, 0, 0, 0, 0]] * 2


def test_spans_beyond_32_bits():
    x = far(np.arange(8, dtype=np.float32), MORE)
    spans = [(0, 3), (2**31, 2**31 + 5), (MORE - 1, MORE), (2**31 + 1, 2**31 + 1)]
    y = ap.pool_tokens(x, ["mean", "max"], spans=spans)
    assert np.array_equal(y[:3], np.tile(np.arange(8, dtype=np.float32), (3, 2)))
    assert np.isnan(y[3]).all()
    one = ap.attention_pool(x, np.ones(8, np.float32), spans=spans[1:2])
    np.testing.assert_allclose(one[0], np.arange(8), rtol=1e-6)


def test_a_row_of_more_tokens_than_winners_count():
    """Kernels keep winners in 32 bits: they say so, and never wrap."""
    x = far(np.ones(1, np.float32), MORE)
    with ap.backends.use("native"), pytest.raises(NotImplementedError, match=r"2\*\*31 tokens"):
        ap.pool_tokens(x, "max")


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["max", "mean", "sum"])
def test_one_window_of_more_than_2_31_elements(reduction):
    x = np.broadcast_to(np.float32(1), (1, 1, 1 << 16, (1 << 15) + 8))
    y = ap.pool(x, reduction, x.shape[2:])
    assert y.ravel().tolist() == [float(x.size) if reduction == "sum" else 1.0]


@pytest.mark.slow
def test_an_array_of_more_than_4_gib():
    """4.3 GB of bytes, pooled 2 x 2; marks at both ends and on both sides of 2**31 and 2**32."""
    side = 65_568
    assert side * side > 2**32
    x = np.zeros((1, 1, side, side), np.uint8)
    flat = x.reshape(-1)
    places = [0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, flat.size - 1]
    flat[places] = [1, 2, 3, 4, 5, 6]
    y, found = ap.global_max_pool(x, return_indices=True)
    assert (int(y.item()), int(found.item())) == (6, flat.size - 1)
    y = ap.max_pool2d(x, 2)
    assert y.shape == (1, 1, side // 2, side // 2)
    wanted = {(p // side // 2, p % side // 2): flat[p] for p in places}
    rows, columns = np.nonzero(y[0, 0])
    assert {(int(r), int(c)): y[0, 0, r, c] for r, c in zip(rows, columns, strict=True)} == wanted


@pytest.mark.slow
def test_a_result_of_more_than_2_31_elements():
    x = np.broadcast_to(np.arange(251, dtype=np.uint8), (1, 1, (1 << 31) // 251 + 9, 251))
    y = ap.max_pool2d(x, 1)
    assert y.size > 2**31
    assert np.array_equal(y[0, 0, -1], x[0, 0, 0])
    assert int(y.sum(dtype=np.int64)) == x.shape[2] * int(np.arange(251).sum())
