"""A short run of the fuzzer of tests/fuzz, always the same calls. `make fuzz` makes other ones, for minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import anypool as ap

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import frameworks
import fuzzer

import calls


def test_nothing_is_found(monkeypatch):
    monkeypatch.setenv("ANYPOOL_NUM_THREADS", "3")
    findings = fuzzer.fuzz(20250, count=1200)
    assert not findings, findings[0]


def test_every_function_is_called_in_every_way():
    made = [calls.make(20250, n) for n in range(1200)]
    assert {c.function for c in made} == set(calls.FUNCTIONS)
    valid = {str(c.args[1]) for c in made if c.function == "pool" and not c.hostile}
    assert valid == set(calls.REDUCTIONS) == set(ap.reductions.REDUCTIONS)
    modules = {n.partition(".")[0] for n in calls.FUNCTIONS if "." in n}
    assert modules == {"onnx", "tf", "flax"} | ({"nn"} if frameworks.TORCH else set())
    assert {c.way for c in made} == {"plain", "vjp", "explain", "state"} | ({"autograd"} if frameworks.TORCH else set())
    assert not frameworks.TORCH or sum(c.tensors and not c.hostile for c in made) > 100
    assert sum(c.hostile for c in made) > 300
    assert sum("out" in c.kwargs and not c.hostile for c in made) > 20
    assert [str(c) for c in made] == [str(calls.make(20250, n)) for n in range(1200)]


FAULTS = {
    "a wrong element": (lambda y, x: np.concatenate([y[..., :-1], y[..., -1:] + 1], -1), "differ, first at"),
    "a wrong dtype": (lambda y, x: y.astype(np.float16), "native gives float16"),
    "an input written": (lambda y, x: (x.fill(5), y)[1], "an argument was written into"),
    "another exception": (lambda y, x: {}[0], "0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name, monkeypatch):
    """The fuzzer itself: each kind of mistake, made on purpose, is what it finds."""
    fault, message = FAULTS[name]

    def made(call):
        y = ap.max_pool1d(*call.args, **call.kwargs)
        return fault(y, call.args[0]) if ap.backends.asked_for() == "native" else y

    monkeypatch.setattr(fuzzer, "made", made)
    call = calls.Call(0, "max_pool1d", [np.arange(24, dtype=np.float32).reshape(2, 3, 4), 2], {}, "plain", False, True)
    with pytest.raises(KeyError if name == "another exception" else fuzzer.Wrong, match=message):
        fuzzer.check(call)


@pytest.mark.parametrize(
    ("code", "message"), [("import os; os.abort()", "the process died"), ("while True: pass", "no end")]
)
def test_a_crash_and_a_hang_are_found(code, message, monkeypatch, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(f"import pathlib, sys; pathlib.Path(sys.argv[5]).write_text('3')\n{code}\n")
    monkeypatch.setattr(fuzzer, "__file__", str(script))
    monkeypatch.setattr(fuzzer, "PATIENCE", 1.0)
    findings, _ = fuzzer.batch(1, 0, 10)
    assert len(findings) == 1
    assert message in findings[0]
    assert str(calls.make(1, 3)) in findings[0]
