"""OpenCV, for pictures."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.measure import threads
from benchmarks.ours import Subject
from benchmarks.peers.prepared import Prepared, Results
from benchmarks.rows import CHANNELS_LAST


@functools.cache
def cv2() -> Any:
    import cv2

    cv2.setNumThreads(threads())
    return cv2


def opencv(made: Subject) -> Prepared | None:
    """OpenCV, for one picture with its channels last: INTER_AREA, blur, dilate."""
    row, x = made.row, made.x
    n, c = row.shape[:2]
    picture_like = row.rank == 2 and n == 1 and (c == 1 or (c <= 4 and row.order == CHANNELS_LAST))
    if not picture_like or row.mode != "forward" or row.dtype not in ("uint8", "float32"):
        return None
    picture = x.reshape(*row.spatial, *([c] if c > 1 else []))
    target = np.empty_like(made.results[0])
    out = target.reshape(*row.out_spatial(), *([c] if c > 1 else []))
    constant = cv2().BORDER_CONSTANT
    if (row.reduction, row.kernel, row.stride, row.padding) == ("avg", 2, 2, 0):
        size = row.out_spatial()[::-1]
        run = functools.partial(cv2().resize, picture, size, out, interpolation=cv2().INTER_AREA)
    elif (row.reduction, row.kernel, row.stride, row.padding) == ("avg", 3, 1, 1):
        run = functools.partial(cv2().blur, picture, (3, 3), out, borderType=constant)
    elif (row.reduction, row.kernel, row.stride, row.padding) == ("max", 3, 1, 1):
        run = functools.partial(cv2().dilate, picture, np.ones((3, 3), np.uint8), out)  # its border loses to all
    else:
        return None

    def results() -> Results:
        run()
        return (target,)

    return Prepared(run, results)
