"""Kernel objects share nothing: no weak symbol, and one exported table each.

A weak symbol (an inline function, a template, anything of the STL) that two instruction-set levels
define is merged by the linker, and the older CPU may be given the newer one's code.

The objects are the files named `*kernels*.o` in the CMake build folder: `ANYPOOL_BUILD_DIR`, else
the newest one under `build/` in the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from anypool.backends import native

REPOSITORY = Path(__file__).parent.parent


def build_folder() -> Path:
    if named := os.environ.get("ANYPOOL_BUILD_DIR"):
        return Path(named)
    found = (p for p in (REPOSITORY / "build").rglob("CMakeCache.txt") if "instrumented" not in p.parts)
    trees = sorted(found, key=lambda p: p.stat().st_mtime)
    return trees[-1].parent if trees else REPOSITORY / "build"


BUILD = build_folder()
OBJECTS = sorted([*BUILD.rglob("*kernels*.o"), *BUILD.rglob("*kernels*.obj")])


def symbols(path: Path) -> list[tuple[str, str]]:
    """(type letter, demangled name) of every defined symbol."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    text = subprocess.run([nm, "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    rows = (line.split(maxsplit=2) for line in text.splitlines() if line.strip())
    return [(row[1], row[2]) for row in rows if len(row) == 3]


def test_there_is_an_object_for_each_level():
    assert OBJECTS, f"no *kernels*.o under {BUILD}; set ANYPOOL_BUILD_DIR to the CMake build folder"
    assert len(OBJECTS) >= len(native.info()["isa_built"])


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_no_weak_symbol(path):
    weak = [name for kind, name in symbols(path) if kind in "WwVvuU"]
    assert not weak, f"{path.name} defines weak symbols: {weak[:10]}"


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_one_table_is_exported(path):
    exported = [name for kind, name in symbols(path) if kind.isupper() and kind not in "WVU"]
    assert len(exported) == 1, exported


def test_exported_names_differ():
    names = [name for path in OBJECTS for kind, name in symbols(path) if kind.isupper() and kind not in "WVU"]
    assert len(names) == len(set(names)), names
