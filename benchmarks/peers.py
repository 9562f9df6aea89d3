"""The peers: for a benchmark row, a function that runs it in another library, or None where it cannot."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import Run

Prepared = tuple[Run, Callable[[], np.ndarray]]  # what is timed, and the result to check


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch(function: str, x: np.ndarray, kwargs: dict[str, Any], channels_last: bool) -> Prepared | None:
    import torch
    import torch.nn.functional as F

    if x.dtype.kind != "f" or function == "pool":
        return None
    tensor = torch.from_numpy(x)
    if channels_last:
        if x.ndim not in (4, 5):
            return None
        tensor = tensor.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if function.startswith("global_"):
        rank = x.ndim - 2
        run = getattr(F, f"adaptive_{function.split('_')[1]}_pool{rank}d")
        kwargs = {"output_size": 1}
    else:
        run = getattr(F, function)

    def once() -> Any:
        with torch.inference_mode():
            return run(tensor, **kwargs)

    return once, lambda: once().numpy()


def pytorch(function: str, x: np.ndarray, kwargs: dict[str, Any]) -> Prepared | None:
    """PyTorch eager, channels-first."""
    return _torch(function, x, kwargs, False)


def pytorch_channels_last(function: str, x: np.ndarray, kwargs: dict[str, Any]) -> Prepared | None:
    """PyTorch eager, channels-last memory format."""
    return _torch(function, x, kwargs, True)


# name -> (package that must be installed, how to prepare)
PEERS: dict[str, tuple[str, Callable[[str, np.ndarray, dict[str, Any]], Prepared | None]]] = {
    "PyTorch": ("torch", pytorch),
    "PyTorch channels_last": ("torch", pytorch_channels_last),
}
