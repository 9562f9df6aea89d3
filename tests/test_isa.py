"""Results do not depend on the instruction set, the number of threads or the layout: bit for bit.

Both are chosen once per process, so each combination runs battery.py in a fresh one.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anypool.backends import native

HERE = Path(__file__).parent
THREADS = (1, 2, 3, 7)


def levels() -> list[str]:
    """Instruction sets that are built and that this CPU has: from the default, the best, down."""
    built = native.info()["isa_built"]
    return built[built.index(_best()) :]


@functools.cache
def _best() -> str:
    env = {k: v for k, v in os.environ.items() if k != "ANYPOOL_ISA"}
    code = "from anypool.backends import native; print(native.info()['isa'])"
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


@functools.cache
def run(isa: str, threads: int) -> dict:
    env = os.environ | {"ANYPOOL_ISA": isa, "ANYPOOL_NUM_THREADS": str(threads)}
    env.pop("ANYPOOL_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "battery.py"], cwd=HERE, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same(a: dict, b: dict, what: str) -> None:
    for part in ("small", "large", "tokens"):
        assert a[part].keys() == b[part].keys()
        different = [name for name in a[part] if a[part][name] != b[part][name]]
        assert not different, f"{what}: {len(different)} of {len(a[part])} differ, e.g. {different[:5]}"


def test_there_are_levels():
    assert native.info()["isa"] in native.info()["isa_built"]
    assert levels()


@pytest.mark.parametrize("isa", levels())
def test_the_level_asked_for_runs(isa):
    assert run(isa, 2)["info"]["isa"] == isa


@pytest.mark.parametrize("isa", levels())
def test_levels_agree(isa):
    assert_same(run(isa, 2), run(levels()[0], 2), f"{isa} and {levels()[0]}")


@pytest.mark.parametrize("threads", THREADS)
def test_thread_counts_agree(threads):
    got = run(levels()[0], threads)
    assert got["info"]["threads"] == threads
    assert_same(got, run(levels()[0], 2), f"{threads} and 2 threads")


@pytest.mark.parametrize("isa", levels())
def test_layouts_agree(isa):
    results = run(isa, 2)
    for part in ("small", "large"):
        table = results[part]
        first = [name for name in table if name.endswith("channels_first")]
        different = [n for n in first if table[n] != table[n.replace("channels_first", "channels_last")]]
        assert not different, f"{len(different)} of {len(first)} differ, e.g. {different[:5]}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANYPOOL_ISA", "sse9"),
        ("ANYPOOL_NUM_THREADS", "many"),
        ("ANYPOOL_NUM_THREADS", "-1"),
        ("ANYPOOL_BACKEND", "abacus"),
    ],
)
def test_a_wrong_variable_is_named(name, value):
    """One that cannot be honoured is an error, not a guess."""
    code = "import numpy as np, anypool as ap; ap.max_pool1d(np.ones((1, 1, 8)), 2)"
    env = os.environ | {name: value}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert name in done.stderr, done.stderr
    assert value in done.stderr, done.stderr
