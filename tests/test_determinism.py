"""Bit for bit the same: on any instruction set, with any number of threads, in any layout, batch or chunk, as tensors.

Instruction set and threads are chosen once per process, so each combination runs battery.py in a fresh one.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anypool as ap
from anypool import _native
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


# Work that threads share; rows of "small" stay on one.
SHARED = ("large", "tokens", "named", "masked", "windows", "compat")


@functools.cache
def run(isa: str, threads: int, *parts: str) -> dict:
    env = os.environ | {"ANYPOOL_ISA": isa, "ANYPOOL_NUM_THREADS": str(threads)}
    env.pop("ANYPOOL_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "battery.py", *parts], cwd=HERE, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["info"]["isa"] == isa
    assert found["info"]["threads"] == threads
    return found


def assert_same(a: dict, b: dict, what: str) -> None:
    for part in a.keys() & b.keys() - {"info"}:
        assert a[part].keys() == b[part].keys()
        different = [name for name in a[part] if a[part][name] != b[part][name]]
        assert not different, f"{what}: {len(different)} of {len(a[part])} differ, e.g. {different[:5]}"


def assert_pairs(table: dict) -> None:
    different = [name for name, (one, other) in table.items() if one != other]
    assert not different, f"{len(different)} of {len(table)} pairs differ, e.g. {different[:5]}"


def test_there_are_levels():
    assert native.info()["isa"] in native.info()["isa_built"]
    assert levels()


@pytest.mark.parametrize("isa", levels())
def test_levels_agree_on_every_lane(isa):
    """Special values in every lane of rows of every length."""
    assert_same(run(isa, 1, "small"), run(levels()[0], 1, "small"), f"{isa} and {levels()[0]}")


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("isa", levels())
def test_threads_and_levels_agree(isa, threads):
    wanted = run(levels()[0], 1, *SHARED)
    assert_same(run(isa, threads, *SHARED), wanted, f"{isa} with {threads} threads and {levels()[0]} with one")


@pytest.mark.parametrize("isa", levels())
def test_layouts_agree(isa):
    shared = run(isa, 2, *SHARED)
    for results in (run(isa, 1, "small")["small"], shared["large"], shared["masked"]):
        first = [name for name in results if name.endswith("channels_first")]
        different = [n for n in first if results[n] != results[n.replace("channels_first", "channels_last")]]
        assert first
        assert not different, f"{len(different)} of {len(first)} differ, e.g. {different[:5]}"


@pytest.mark.parametrize("threads", [1, 7])
def test_batches_and_chunks_do_not_matter(threads):
    assert_pairs(run(levels()[-1], threads, "alone")["alone"])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", levels())
def test_tensors_are_arrays(isa, threads):
    """In PyTorch's pool of threads, too."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    found = run(isa, threads, "tensors")
    assert found["info"]["thread_pool"] == "pytorch"
    assert_pairs(found["tensors"])
    assert_same(found, run(levels()[0], 1, "tensors"), f"{isa} with {threads} threads and {levels()[0]} with one")


def test_a_cpu_without_kernels(monkeypatch):
    """Everything runs on the other backend and says why; what asks for kernels is refused."""
    monkeypatch.setattr(_native, "isa", lambda: "")
    monkeypatch.delenv("ANYPOOL_ISA", raising=False)  # a level that was asked for is no error of this test
    why = "no kernels for this CPU or ANYPOOL_ISA; built: " + ", ".join(_native.isa_built())
    x = np.random.default_rng(0).standard_normal((2, 7, 43))
    query = np.arange(43.0)
    explained = ap.explain(ap.max_pool1d, x, 5, 3)
    assert (explained.backend, explained.notes) == ("reference", (f"native: {why}",))
    windows = np.lib.stride_tricks.sliding_window_view(x, 5, axis=-1)[..., ::3, :]
    assert np.array_equal(ap.max_pool1d(x, 5, 3), windows.max(-1))
    np.testing.assert_allclose(ap.pool_tokens(x, "mean"), x.mean(1), rtol=1e-14)
    scores = np.exp(x @ query * 0.01)
    wanted = (scores[..., None] * x).sum(1) / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(ap.attention_pool(x, query, scale=0.01), wanted, rtol=1e-12)
    with ap.backends.use("native"):
        for call in (
            lambda: ap.max_pool1d(x, 5, 3),
            lambda: ap.pool_tokens(x, "mean"),
            lambda: ap.attention_pool(x, query),
        ):
            with pytest.raises(NotImplementedError, match=f"the native backend cannot run this: {why}"):
                call()
    level = _native.isa_built()[0]
    monkeypatch.setenv("ANYPOOL_ISA", level)
    with pytest.raises(ValueError, match=f"ANYPOOL_ISA is '{level}', which this CPU cannot run"):
        native.check_environment()


def test_a_numpy_that_lies_otherwise_is_refused(monkeypatch):
    """Kernels take an array's address from where NumPy has always kept it."""
    monkeypatch.setattr(_native, "data_pointer", lambda array: 0)
    with pytest.raises(ImportError, match="this NumPy lays out its arrays as no NumPy did that anypool knows"):
        native.check_environment()


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
