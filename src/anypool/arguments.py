"""Arguments of any kind: whether they are numbers, flags, dtypes or arrays, and how an error message shows them.

Sizes, which belong to windows, are checked in `anypool.windows`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def shown(value: Any) -> str:
    """Return a caller's value for an error message: in one line, and no longer than a line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an int of too many digits, a list that holds one, an object of the caller's
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:80]}… of type {type(value).__name__}"


def is_sequence(value: Any) -> bool:
    """Return whether a value has an element for each axis; text and bytes have none."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def refuse_misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit a public function's signature, by its public name; for after a TypeError."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{function.__name__}() {error}") from None


def number_argument(name: str, value: Any, where: str) -> float:
    """Check a real number: bool is none, nor what a float cannot hold."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {shown(value)} of type {type(value).__name__} ({where})")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be below 1.8e308, got {shown(value)} ({where})") from None


def flag_argument(name: str, value: Any, where: str) -> bool:
    """Check a bool; 0 and 1 are none."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {shown(value)} of type {type(value).__name__} ({where})")
    return bool(value)


def dtype_argument(wanted: Any, where: str) -> np.dtype[Any]:
    """Return the native dtype that is asked for."""
    try:
        found: np.dtype[Any] = np.dtype(wanted).newbyteorder("=")
    except Exception as error:  # NumPy parses many notations, and raises what each of them does
        raise TypeError(f"dtype must be a NumPy dtype, got {shown(wanted)} ({where})") from error
    return found


def array_argument(name: str, value: Any, where: str) -> npt.NDArray[Any]:
    """Return an array as a plain one: not one whose mask would be ignored, nor, beside an array x, a tensor."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: its mask would be ignored; give {name}.filled(value)")
    if hasattr(type(value), "__torch_function__"):
        raise TypeError(f"{name} must be an array as x is, got a tensor: give {name}.numpy() ({where})")
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # lists of different lengths, or nested too deep
        raise type(error)(f"{name} must be an array, got {shown(value)} ({where})") from None


def gradient_argument(value: Any, shape: tuple[int, ...], where: str) -> npt.NDArray[Any]:
    """Return the gradient of a result as an array of the result's shape."""
    g = array_argument("grad_y", value, where)
    if g.shape != shape:
        raise ValueError(f"grad_y must have the result's shape {shape}, got {g.shape} ({where})")
    if g.dtype.kind not in "biuf" and g.dtype.name != "bfloat16":
        raise TypeError(f"grad_y must be real numbers, got dtype {g.dtype} ({where})")
    return g
