"""Random windows and data for every framework, and what may differ: nothing, or the rounding of a sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

EPSILON = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Case:
    """Windows on each axis, and the sizes of the axes."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]  # below the kernel: ONNX Runtime and TensorFlow take no more
    dilation: tuple[int, ...]
    ceil: bool

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    def some_window_is_empty(self, outputs: tuple[int, ...]) -> bool:
        """Count by hand: is there no window at all, or one whose taps all lie in the padding?"""
        for n, k, s, (low, _), d, m in zip(
            self.sizes, self.kernel, self.stride, self.pads, self.dilation, outputs, strict=True
        ):
            if m < 1 or any(not any(0 <= o * s - low + t * d < n for t in range(k)) for o in range(m)):
                return True
        return False


def draw(rank: int, seed: int, count: int, *, dilated: bool = True, ceil: bool = True) -> Iterator[Case]:
    """Draw cases of windows that fit their padded input; sizes are odd, even and not divisible."""
    rng = np.random.default_rng([2026, rank, seed])
    top = {1: 24, 2: 13, 3: 8}[rank]
    while count:
        sizes, kernel, stride, dilation = (
            tuple(int(v) for v in rng.integers(low, high, rank))
            for low, high in ((1, top), (1, 6), (1, 5), (1, 4 if dilated else 2))
        )
        pads = tuple((int(rng.integers(0, k)), int(rng.integers(0, k))) for k in kernel)
        spans = (n + sum(p) - d * (k - 1) for n, p, d, k in zip(sizes, pads, dilation, kernel, strict=True))
        if min(spans) >= 1:
            count -= 1
            yield Case(sizes, kernel, stride, pads, dilation, ceil and bool(rng.integers(2)))


def ties(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Few distinct numbers, so that most windows have several maxima; all of them negative where that is possible."""
    values = np.random.default_rng([seed, *shape]).integers(0, 5, shape)
    return (values if dtype.startswith("u") else values - 9).astype(dtype)


def reals(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def exact(got: Any, expected: Any, what: Any) -> None:
    """Assert equal shapes, dtypes and values, of an array or of several."""
    if isinstance(expected, tuple):
        assert len(got) == len(expected), what
        for a, b in zip(got, expected, strict=True):
            exact(a, b, what)
        return
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), what
    np.testing.assert_array_equal(got, expected, err_msg=str(what))


def rounded(got: Any, expected: Any, what: Any, *, x: np.ndarray, taps: int, norm: bool = False) -> None:
    """Assert equal shapes and dtypes, and values that differ by rounding alone.

    Each of the `taps - 1` additions of a sum in some order rounds by half a unit of a partial sum, at most `taps` times
    the largest magnitude; the mean divides that by `taps` again. A norm has this error relative to itself, and its
    powers and its root another few units.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), what
    wide = expected.astype(np.float64)
    unit = EPSILON[got.dtype.name] * (taps + 8)
    scale = np.abs(wide) if norm else np.abs(x).max(initial=0).astype(np.float64)
    error = np.abs(got - wide)
    assert (error <= unit * scale).all(), f"{what}: off by {error.max()}"


def agrees(case: Case, theirs: Callable[[], Any], ours: Callable[[], Any], check: Callable[..., None] = exact,
           first: int = 2) -> bool:  # fmt: skip
    """Compare one case; return whether there was anything to compare. The pooled axes of a result begin at `first`.

    Where windows have no input, frameworks give numbers of their own, and anypool refuses: exactly there.
    """
    expected = theirs()
    shape = (expected[0] if isinstance(expected, tuple) else expected).shape
    if case.some_window_is_empty(tuple(shape[first : first + case.rank])):
        try:
            ours()
        except ValueError:
            return False
        raise AssertionError(f"{case}: a window has no input, and anypool gave a result")
    check(ours(), expected, case)
    return True
