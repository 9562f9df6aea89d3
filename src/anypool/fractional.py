"""Fractional max pooling: windows of one size at pseudo-random places, other ones for every channel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool import memory
from anypool.arguments import array_argument, flag_argument, is_sequence, shown
from anypool.backends import Pass, select
from anypool.operation import as_array, is_tensor, pullback_of, tensors
from anypool.reductions import REDUCTIONS, check_dtype, dtypes, is_float
from anypool.windows import placed, size_argument, sizes_argument

Array = npt.NDArray[Any]


def starts(n: int, out: int, kernel: int, sample: Any) -> list[int]:
    """Return where windows start: ``floor((i + u) a) - floor(u a)`` with ``a = (n - kernel) / (out - 1)``.

    The last one ends with the input. The arithmetic is that of the sample's dtype, as in PyTorch, so that equal samples
    give equal windows.
    """
    places = [0] * out
    if out > 1:
        real = sample.dtype.type
        step = real(n - kernel) / real(out - 1)
        places = [int((real(i) + sample) * step) - int(sample * step) for i in range(out)]
    places[-1] = n - kernel
    return places


def geometry(rank: int, x: Any, kernel_size: Any, output_size: Any,
             output_ratio: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """Check the arguments for an array or tensor; return kernel and number of outputs of every pooled axis."""
    where = f"x: {tuple(x.shape)}"
    if x.ndim not in (rank + 1, rank + 2):
        raise ValueError(
            f"fractional_max_pool{rank}d takes {rank + 1} or {rank + 2} dimensions, got {x.ndim} ({where})"
        )
    kernel = sizes_argument("kernel_size", kernel_size, rank, where, at_least=1)
    sizes = _sizes(rank, x, output_size, output_ratio, where)
    for i, (n, k, o) in enumerate(zip(x.shape[-rank:], kernel, sizes, strict=True)):
        size_argument(f"output_size[{i}]", o, where, at_least=1)
        if o + k - 1 > n:
            raise ValueError(f"output_size[{i}] + kernel_size[{i}] - 1 must be <= {n}, got {o} + {k} - 1 ({where})")
    return kernel, sizes


def _sizes(rank: int, x: Any, output_size: Any, output_ratio: Any, where: str) -> tuple[int, ...]:
    spatial = x.shape[-rank:]
    if (output_size is None) == (output_ratio is None):
        raise ValueError(
            f"exactly one of output_size and output_ratio must be given, "
            f"got {shown(output_size)} and {shown(output_ratio)} ({where})"
        )
    if output_ratio is None:
        return sizes_argument("output_size", output_size, rank, where, at_least=1)
    ratios = list(output_ratio) if is_sequence(output_ratio) else [output_ratio] * rank
    if len(ratios) != rank or not all(isinstance(r, (float, np.floating)) and 0 < r < 1 for r in ratios):
        raise ValueError(
            f"output_ratio must be {rank} numbers between 0 and 1 (exclusive), got {shown(output_ratio)} ({where})"
        )
    return tuple(int(n * r) for n, r in zip(spatial, ratios, strict=True))


def _samples(rank: int, x: Array, given: Any, rng: Any, where: str) -> Array:
    shape = (x.shape[0] if x.ndim == rank + 2 else 1, x.shape[-rank - 1], rank)
    if given is None:
        return _generator(rng, where).random(shape, np.float64 if x.dtype.itemsize == 8 else np.float32)
    samples = array_argument("_random_samples", given, where)
    if samples.shape != shape or samples.dtype.kind != "f":
        raise ValueError(
            f"_random_samples must be floats of shape {shape}, got {samples.dtype} of shape {samples.shape} ({where})"
        )
    if samples.size and not (samples.min() >= 0 and samples.max() <= 1):
        raise ValueError(f"_random_samples must be in [0, 1], got {samples.min()} … {samples.max()} ({where})")
    return np.array(samples)  # a copy: a pullback uses them again, and the caller may write into theirs


def _generator(rng: Any, where: str) -> np.random.Generator:
    """Return what draws: NumPy takes more for a seed, but not all of that safely."""
    if rng is None or isinstance(rng, (np.random.Generator, np.random.BitGenerator, np.random.SeedSequence)):
        return np.random.default_rng(rng)
    if is_sequence(rng):
        return np.random.default_rng([size_argument(f"rng[{i}]", v, where, at_least=0) for i, v in enumerate(rng)])
    return np.random.default_rng(size_argument("rng", rng, where, at_least=0))


class Planes:
    """The passes of one call: for each channel of each image, its own windows."""

    def __init__(
        self, rank: int, x: Any, kernel_size: Any, output_size: Any, output_ratio: Any, samples: Any, rng: Any
    ) -> None:
        self.x = x = as_array(x)
        self.where = where = f"x: {x.shape}"
        check_dtype(x.dtype, where)
        self.rank = rank
        self.kernel, self.sizes = geometry(rank, x, kernel_size, output_size, output_ratio)
        self.samples = _samples(rank, x, samples, rng, where)
        self.accumulator, self.result = dtypes(REDUCTIONS["max"], x.dtype, None, where)

    def outputs(self, dtype: Any) -> Array:
        return memory.empty((*self.x.shape[: -self.rank], *self.sizes), np.dtype(dtype))

    def passes(self, codes: str | None) -> Iterator[tuple[tuple[int, ...], Pass]]:
        """Yield (index of the plane, what to run on it)."""
        lead = self.x.shape[: -self.rank]
        # PyTorch draws for the innermost axis first in 2-D, for the outermost first in 3-D.
        order = range(self.rank) if self.rank == 3 else reversed(range(self.rank))
        columns = list(order)
        for plane in itertools.product(*map(range, lead)):
            sample = self.samples[plane if len(lead) == 2 else (0, *plane)]
            spots = [
                starts(n, o, k, sample[c])
                for n, o, k, c in zip(self.x.shape[-self.rank :], self.sizes, self.kernel, columns, strict=True)
            ]
            windows = placed(self.x.shape[-self.rank :], spots, self.kernel)
            yield (
                plane,
                Pass(
                    windows,
                    tuple(range(self.rank)),
                    "max",
                    "none",
                    "none",
                    1.0,
                    self.accumulator,
                    self.result,
                    codes=codes,
                ),
            )

    def run(self, codes: str | None, code_array: Array | None) -> Array:
        y = self.outputs(self.result)
        for plane, job in self.passes(codes):
            x = self.x[plane]
            select(job, x)[0].run(job, x, y[plane], None if code_array is None else code_array[plane])
        return y


def _make(rank: int) -> Callable[..., Any]:
    def fractional_max_pool(x: Any, kernel_size: Any, output_size: Any = None, output_ratio: Any = None,
                            return_indices: bool = False, _random_samples: Any = None, *,
                            rng: Any = None) -> Any:  # fmt: skip
        if is_tensor(x):
            return tensors().fractional(
                rank, x, kernel_size, output_size, output_ratio, return_indices, _random_samples, rng
            )
        planes = Planes(rank, x, kernel_size, output_size, output_ratio, _random_samples, rng)
        if not flag_argument("return_indices", return_indices, planes.where):
            return planes.run(None, None)
        indices = planes.outputs(np.int64)
        return planes.run("index", indices), indices

    def differentiate(x: Any, kernel_size: Any, output_size: Any = None, output_ratio: Any = None,
                      return_indices: bool = False, _random_samples: Any = None, *,
                      rng: Any = None) -> tuple[Any, Callable[[Any], Array]]:  # fmt: skip
        if is_tensor(x):
            pulled: tuple[Any, Callable[[Any], Any]] = tensors().pulled(
                fractional_max_pool, x, kernel_size, output_size, output_ratio, return_indices, _random_samples, rng=rng
            )
            return pulled
        planes = Planes(rank, x, kernel_size, output_size, output_ratio, _random_samples, rng)
        if not is_float(planes.x.dtype):
            raise TypeError(f"vjp needs floating-point x, got {planes.x.dtype} (x: {planes.x.shape})")
        taps = math.prod(planes.kernel)
        codes = planes.outputs(np.uint8 if taps <= 255 else np.uint16 if taps <= 65535 else np.int32)
        y = planes.run("offset", codes)
        indexed = flag_argument("return_indices", return_indices, planes.where)
        result = (y, _indices(planes)) if indexed else y

        def gradient(g: Array, grad_x: Array) -> None:
            for plane, job in planes.passes("offset"):
                select(job, g[plane])[0].select_backward(job, g[plane], codes[plane], grad_x[plane])

        return result, pullback_of(planes.x, y, gradient)

    fractional_max_pool.__name__ = fractional_max_pool.__qualname__ = f"fractional_max_pool{rank}d"
    fractional_max_pool.__module__ = "anypool"
    fractional_max_pool.__doc__ = _DOC.format(rank=rank, spatial=", ".join("DHW"[3 - rank :]), example=_EXAMPLES[rank])
    fractional_max_pool.differentiate = differentiate  # type: ignore[attr-defined]
    return fractional_max_pool


def _indices(planes: Planes) -> Array:
    indices = planes.outputs(np.int64)
    planes.run("index", indices)
    return indices


_DOC = """Largest value of windows at pseudo-random places that shrink each axis by any ratio.

    Parameters
    ----------
    x : array_like of shape ``(N, C, {spatial})``, N optional
    kernel_size : int or sequence of {rank} ints
    output_size : int or sequence of {rank} ints, optional
        Outputs on each axis, at most ``n - kernel_size + 1``.
    output_ratio : float or sequence of {rank} floats, optional
        Instead of output_size: the outputs as a part of the inputs, between 0 and 1.
    return_indices : bool
        Also return each winner's flat position in the pooled axes.
    _random_samples : array of shape ``(N, C, {rank})``, optional
        The draws, one in [0, 1) for each axis of each channel, in PyTorch's order; its dtype is that of the arithmetic.
    rng : numpy.random.Generator or seed, optional
        Where draws come from if they are not given.

    Returns
    -------
    ndarray, or a pair of it and an int64 array with return_indices

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type.

    Notes
    -----
    Semantics of ``torch.nn.functional.fractional_max_pool{rank}d`` (Graham, "Fractional Max-Pooling", 2014).

    Examples
    --------
    {example}
    """
_EXAMPLES = {
    2: """>>> import numpy as np, anypool as ap
    >>> x = np.arange(25.0).reshape(1, 1, 5, 5)
    >>> ap.fractional_max_pool2d(x, 2, output_size=3, _random_samples=[[[0.5, 0.5]]])
    array([[[[ 6.,  8.,  9.],
             [16., 18., 19.],
             [21., 23., 24.]]]])""",
    3: """>>> import numpy as np, anypool as ap
    >>> x = np.arange(27.0).reshape(1, 1, 3, 3, 3)
    >>> ap.fractional_max_pool3d(x, 2, output_size=2, rng=0).ravel().tolist()
    [13.0, 14.0, 16.0, 17.0, 22.0, 23.0, 25.0, 26.0]""",
}

fractional_max_pool2d, fractional_max_pool3d = (_make(r) for r in (2, 3))
