"""SciPy's filters: windows of stride 1 that keep the size, an even one reaching one further back."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

import anypool as ap
from grid import EPSILON, draw, exact, reals, ties

COUNT = 200


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_extrema(rank, dtype):
    lowest, highest = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype[0] in "iu" else (-np.inf, np.inf)
    for i, case in enumerate(draw(rank, 1, COUNT, dilated=False, ceil=False)):
        x = ties(case.sizes, dtype, i)
        for reduction, function, fill in (
            ("max", ndimage.maximum_filter, lowest),
            ("min", ndimage.minimum_filter, highest),
        ):
            expected = function(x, size=case.kernel, mode="constant", cval=fill)
            exact(ap.pool(x, reduction, case.kernel, stride=1, padding="same_lower"), expected, case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_means(rank, dtype):
    """`uniform_filter` keeps a running sum in float64 for each axis and rounds to the dtype after each."""
    for i, case in enumerate(draw(rank, 2, COUNT, dilated=False, ceil=False)):
        x = reals(case.sizes, dtype, i)
        expected = ndimage.uniform_filter(x, size=case.kernel, mode="constant", cval=0)
        got = ap.pool(x, "mean", case.kernel, stride=1, padding="same_lower")
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        # Running sums: an error for each of the elements that came and went, and those of our own sum.
        unit = EPSILON[dtype] * (2 * max(case.sizes) + case.taps + 8)
        assert (np.abs(got - expected) <= unit * np.abs(x).max()).all(), case
