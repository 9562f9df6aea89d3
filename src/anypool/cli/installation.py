"""What this installation is made of: versions, instruction sets, threads, optional packages."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import anypool as ap

OPTIONAL = (
    "typer",
    "rich",
    "pillow",
    "matplotlib",
    "ml_dtypes",
    "torch",
    "onnxruntime",
    "jax",
    "scipy",
    "opencv-python",
)


def describe() -> dict[str, Any]:
    """Collect the facts without importing any optional package (PyTorch alone takes a second)."""
    found: dict[str, Any] = {
        "anypool": ap.__version__,
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    try:
        from anypool.backends import native

        found["native"] = dict(native.info())
    except ImportError as error:
        found["native"] = {"missing": str(error)}
    found["packages"] = {name: _version(name) for name in OPTIONAL}
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def readable(found: dict[str, Any]) -> str:
    """Two aligned columns for people."""
    native = found["native"]
    rows = [
        ("anypool", found["anypool"]),
        ("python", f"{found['python']}, {found['platform']}"),
        ("numpy", found["numpy"]),
    ]
    if "missing" in native:
        rows.append(("native core", f"not available: {native['missing']}"))
    else:
        built = ", ".join(native["isa_built"])
        rows.append(("instruction set", f"{native['isa']} chosen, of {built} built"))
        rows.append(("threads", str(native["threads"])))
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
