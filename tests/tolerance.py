"""One tolerance for the whole suite, in units in the last place.

max, min and integers compare exactly. A float result may differ from the float64 truth by

    ULPS[reduction] * ulp(largest magnitude that entered) * (how often it entered)

with the ulp of the dtype that accumulates: float32 for float16, bfloat16 and float32, float64 for
float64. For a mean this is 2 ulp at the window's largest magnitude. A dtype narrower than its
accumulator is rounded once, so half an ulp of the result is added and no more.
"""

from __future__ import annotations

import numpy as np

from oracle import Truth

ULPS = {"sum": 2, "mean": 2, "lp": 4, "logsumexp": 4, "median": 1, "quantile": 2, "std": 4, "var": 8, "softmax": 8}
GRADIENT_ULPS = {"max": 2, "min": 2, "sum": 2, "mean": 2, "lp": 16, "logsumexp": 16, "median": 2, "quantile": 2,
                 "std": 16, "var": 16, "softmax": 16}  # fmt: skip

# explicit mantissa bits and smallest normal exponent
FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}


def is_float(dtype) -> bool:
    return np.dtype(dtype).name in FORMATS


def ulp(magnitude, dtype) -> np.ndarray:
    """Spacing of `dtype` at a magnitude, in float64."""
    bits, smallest = FORMATS[np.dtype(dtype).name]
    _, exponent = np.frexp(np.abs(np.asarray(magnitude, np.float64)))
    return np.ldexp(1.0, np.maximum(exponent - 1, smallest) - bits)


def accumulator(dtype) -> str:
    return "float64" if np.dtype(dtype).name == "float64" else "float32"


def allowed_error(truth: Truth, dtype, ulps: float) -> np.ndarray:
    """Largest difference from the truth that a result of `dtype` may have."""
    wide = accumulator(dtype)
    error = ulps * ulp(truth.scale, wide) * truth.weight
    if np.dtype(dtype).name != wide:
        error = error + 0.5 * ulp(truth.values, dtype)
    return error


def check(got, truth: Truth, dtype, ulps: float | None, what) -> None:
    """Assert that `got` has the truth's shape, the dtype, and the values; ulps=None is exact."""
    assert isinstance(got, np.ndarray), f"{what}: got a {type(got).__name__}, not an array"
    assert got.dtype == dtype, f"{what}: dtype {got.dtype}, expected {np.dtype(dtype)}"
    assert got.shape == truth.values.shape, f"{what}: shape {got.shape}, not {truth.values.shape}"
    wrong = got != truth.values if not is_float(dtype) else differs(got.astype(np.float64), truth, dtype, ulps)
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {np.count_nonzero(wrong)} of {wrong.size} wrong, first at {at}: "
            f"got {got[at]!r}, expected {truth.values[at]!r}"
        )


def differs(got: np.ndarray, truth: Truth, dtype, ulps: float | None) -> np.ndarray:
    """Where a float result is wrong; infinities and NaN must be in the same places."""
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.asarray(truth.values).astype(dtype).astype(np.float64)
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        if ulps is None:
            return ~same
        error = np.abs(got - np.asarray(truth.values, np.float64))
        near = np.isfinite(got) & np.isfinite(expected) & (error <= allowed_error(truth, dtype, ulps))
    return ~(same | near)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit; any NaN equals any NaN, but -0.0 is not 0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return np.array_equal(canonical_bits(a), canonical_bits(b))


def canonical_bits(a: np.ndarray) -> np.ndarray:
    """The bits of an array as unsigned integers, all NaN made one (its payload is not a value)."""
    a = np.ascontiguousarray(a)
    if is_float(a.dtype):
        a = np.where(np.isnan(a), np.array(np.nan, a.dtype), a)
    return a.view(f"u{a.dtype.itemsize}")
