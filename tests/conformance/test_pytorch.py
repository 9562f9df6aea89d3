"""PyTorch on random windows; the full grid of its arguments is in tests/test_against_pytorch.py."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import anypool as ap
from grid import agrees, draw, exact, reals, rounded, ties

F = torch.nn.functional
COUNT = 200
by_rank = pytest.mark.parametrize("rank", [1, 2, 3])


def theirs(function, x, *args, **kwargs):
    result = function(torch.from_numpy(x), *args, **kwargs)
    return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()


def symmetric(case):
    """Half the kernel at most, on both sides: PyTorch takes no more."""
    return tuple(min(low, k // 2) for (low, _), k in zip(case.pads, case.kernel, strict=True))


def fits(case):
    spans = (
        n + 2 * p - d * (k - 1)
        for n, p, d, k in zip(case.sizes, symmetric(case), case.dilation, case.kernel, strict=True)
    )
    # avg_pool3d wants the input itself to be as large as the kernel.
    return min(spans) >= 1 and all(n >= k for n, k in zip(case.sizes, case.kernel, strict=True))


@by_rank
def test_max_pool(rank):
    compared = 0
    for i, case in enumerate(filter(fits, draw(rank, 1, COUNT))):
        x = ties((2, 3, *case.sizes), "float32", i)
        arguments = (case.kernel, case.stride, symmetric(case), case.dilation, case.ceil, True)
        padded = type(case)(case.sizes, case.kernel, case.stride, tuple((p, p) for p in symmetric(case)), case.dilation,
                            case.ceil)  # fmt: skip
        compared += agrees(
            padded,
            partial(
                theirs, getattr(F, f"max_pool{rank}d"), x, *arguments[:4], ceil_mode=case.ceil, return_indices=True
            ),
            partial(getattr(ap, f"max_pool{rank}d"), x, *arguments),
        )
    assert compared > COUNT // 4


@pytest.mark.parametrize("include", [True, False])
@by_rank
def test_avg_pool(rank, include):
    compared = 0
    for i, case in enumerate(filter(fits, draw(rank, 2, COUNT, dilated=False))):
        x = reals((2, 3, *case.sizes), seed=i)
        arguments = (case.kernel, case.stride, symmetric(case), case.ceil, include)
        expected = theirs(getattr(F, f"avg_pool{rank}d"), x, *arguments)
        rounded(getattr(ap, f"avg_pool{rank}d")(x, *arguments), expected, case, x=x, taps=case.taps)
        compared += 1
    assert compared > COUNT // 4


@by_rank
def test_adaptive_pools(rank):
    for i, case in enumerate(draw(rank, 3, COUNT)):
        x, outputs = reals((2, 3, *case.sizes), seed=i), case.kernel
        maxima, means = (f"adaptive_{kind}_pool{rank}d" for kind in ("max", "avg"))
        got = getattr(ap, maxima)(x, outputs, return_indices=True)
        exact(got, theirs(getattr(F, maxima), x, outputs, return_indices=True), case)
        rounded(getattr(ap, means)(x, outputs), theirs(getattr(F, means), x, outputs), case, x=x,
                taps=int(np.prod(case.sizes)))  # fmt: skip
