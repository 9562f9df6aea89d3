"""The peers: what runs a row in another library, or None where it cannot.

All get as many threads as we do, data in the row's own order in memory, and whatever they prepare (compile, choose
layouts, allocate what they can) before the clock starts. Each result is compared with ours before anything is timed.
A peer's module imports its package only when it is asked to prepare something.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.ours import Subject
from benchmarks.peers.jax_jit import jax_jit
from benchmarks.peers.onnx_runtime import onnx_runtime
from benchmarks.peers.open_cv import opencv
from benchmarks.peers.open_vino import open_vino
from benchmarks.peers.prepared import Prepared
from benchmarks.peers.pytorch import pytorch, torch_compile


@dataclass(frozen=True)
class Peer:
    """Another library. One that writes `into` memory of the caller's is compared with ours that does, too."""

    packages: tuple[str, ...]
    prepare: Callable[[Subject], Prepared | None]
    into: bool = False

    def version(self) -> str | None:
        """Return the version of its package, or None if something is not installed."""
        versions = [version(p) for p in self.packages]
        return None if None in versions else versions[0]


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


PEERS = {
    "PyTorch": Peer(("torch",), pytorch),
    "torch.compile": Peer(("torch",), torch_compile),
    "ONNX Runtime": Peer(("onnxruntime", "onnx"), onnx_runtime, into=True),
    "OpenVINO": Peer(("openvino",), open_vino, into=True),
    "JAX": Peer(("jax",), jax_jit),
    "OpenCV": Peer(("opencv-python-headless",), opencv, into=True),
}
