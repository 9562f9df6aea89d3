"""Fuzz every public function: random calls, native against the reference, in processes that may die.

    python tests/fuzz/fuzzer.py --seconds 120             another seed each time; it is printed
    python tests/fuzz/fuzzer.py --seed 7 --seconds 120    the same calls again
    python tests/fuzz/fuzzer.py --seed 7 --only 4711      one call, in this process, with its traceback

Every call must give what the reference gives, or raise what the reference raises; the only exceptions are ValueError,
TypeError, NotImplementedError and MemoryError. It must end within seconds, leave its inputs alone, and leave `out=`
either full or as it was, and never touch what is around it. Exit status 1 if one does not.

Calls of tensors give what arrays give, where both give something: PyTorch has arguments and dtypes of its own.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import frameworks  # noqa: E402
import numpy as np  # noqa: E402
import torch_arguments  # noqa: E402

import anypool as ap  # noqa: E402
import calls  # noqa: E402
import tolerance  # noqa: E402

ALLOWED = (ValueError, TypeError, NotImplementedError, MemoryError)
BATCH = 600  # calls in one process
PATIENCE = 60.0  # seconds without an end of a call
MEMORY = 8 << 30
POISON = 77  # around and in `out=`; every dtype but bool has it


class Wrong(Exception):
    """What a call did that it must not do."""


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """All arrays of a result or of arguments."""
    if isinstance(value, np.ndarray):
        yield value
    elif type(value) in (list, tuple):
        for v in value[:50]:
            if v is not value:
                yield from arrays_in(v)


def small(a: np.ndarray) -> bool:
    return a.size <= 1 << 20 and a.dtype.kind in "biufV" and a.dtype.names is None


def room_for(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An `out` full of poison among more poison, every second element of a larger array."""
    around = np.full((*wanted.shape[:-1], 2 * wanted.shape[-1] + 3) if wanted.ndim else (), POISON).astype(wanted.dtype)
    return around, around[..., 1 : 1 + 2 * wanted.shape[-1] : 2] if wanted.ndim else around


def made(call: calls.Call) -> Any:
    """Make the call; return its results."""
    kwargs = {k: np.random.default_rng(int(v)) if type(v) is calls.Seed else v for k, v in call.kwargs.items()}
    if call.tensors:
        args = [torch_arguments.with_tensors(v) for v in call.args]
        kwargs = {k: torch_arguments.with_tensors(v) for k, v in kwargs.items()}
        return torch_arguments.with_arrays(made_of(call, args, kwargs))
    return made_of(call, call.args, kwargs)


def made_of(call: calls.Call, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Make the call with these arguments."""
    if call.function in frameworks.MODULES:
        fn: Any = functools.partial(frameworks.made_of_module, call.function)
        if call.way == "autograd":
            return torch_arguments.through_autograd(lambda *a, **k: fn(list(a), k), args, kwargs)
        return fn(args, kwargs)
    fn = frameworks.COMPAT.get(call.function) or getattr(ap, call.function)
    if call.way == "autograd":
        return torch_arguments.through_autograd(fn, args, kwargs)
    if call.way == "explain":
        e = ap.explain(fn, *args, **kwargs)
        str(e), e.to_dict()
        return e.output_shape
    if call.way == "vjp":
        y, pullback = ap.vjp(fn, *args, **kwargs)
        first = y[0] if isinstance(y, tuple) else y
        grad = torch_arguments.gradient_of(first.shape)
        gradients = pullback(torch_arguments.with_tensors(grad).to(first.dtype) if call.tensors
                             else grad.astype(first.dtype))  # fmt: skip
        return (y, *gradients) if isinstance(gradients, tuple) else (y, gradients)
    if call.way == "state":
        state = ap.PoolState(args[1], weighted=kwargs.get("weights") is not None)
        state.update(args[0], **{k: v for k, v in kwargs.items() if k in (*calls.KEYWORDS["PoolState"],)})
        state.merge(copy.deepcopy(state)) if state.rows and state.reduction in ("max", "min") else None
        return state.result()
    if call.function == "TokenPooling":
        return ap.TokenPooling(args[1] if isinstance(args[1], (list, tuple)) else (args[1],))(args[0], **kwargs)
    return fn(*args, **kwargs)


def outcome(backend: str, call: calls.Call) -> tuple[Any, Exception | None]:
    """Return what came of it."""
    with ap.backends.use(backend), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return made(call), None
        except ALLOWED as error:
            return None, error


def agree(a: Any, b: Any, call: calls.Call, scale: float) -> None:
    """Compare two results; `scale` is the largest number in sight."""
    if isinstance(a, (tuple, list)):
        if type(a) is not type(b) or len(a) != len(b):
            raise Wrong(f"native gives {calls.shown(a)}, the reference {calls.shown(b)}")
        for p, q in zip(a, b, strict=True):
            agree(p, q, call, scale)
    elif not isinstance(a, np.ndarray):
        if a != b:
            raise Wrong(f"native gives {a!r}, the reference {b!r}")
    elif call.tensors and (a.dtype, b.dtype) == (np.int64, np.uint64):
        agree(a, b.astype(np.int64), call, scale)  # a sum: PyTorch can do little with uint64
    elif a.dtype != b.dtype or a.shape != b.shape:
        raise Wrong(f"native gives {a.dtype} {a.shape}, the reference {b.dtype} {b.shape}")
    elif small(a) and not same(call, a, b, scale):
        at = np.argwhere(~((a == b) | ((a != a) & (b != b))))
        first = tuple(at[0]) if len(at) else ()
        raise Wrong(f"{len(at)} of {a.size} differ, first at {first}: native {a[first]!r}, the reference {b[first]!r}")


def same(call: calls.Call, a: np.ndarray, b: np.ndarray, scale: float) -> bool:
    if not exact(call, a):
        return near(*(finite(a, b) if of_infinite_query(call) else (a, b)), scale, unit(call, a))
    if call.tensors and call.function.startswith("fractional"):  # PyTorch's own operator: of equal zeros it has another
        return np.array_equal(a, b, equal_nan=True)
    return tolerance.same_bits(a, b)


UNITS = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-5, "float64": 1e-11}


def unit(call: calls.Call, a: np.ndarray) -> float:
    """Return what a few roundings make, of the result's dtype and of the one that was asked for.

    A gradient of lp is a power of a rounded ratio.
    """
    asked = call.kwargs.get("dtype")
    largest = max(UNITS.get(a.dtype.name, 1e-5), UNITS.get(asked, 0.0) if type(asked) is str else 0.0)
    p = call.kwargs.get("norm_type", 1)
    number = isinstance(p, (int, float, np.integer, np.floating)) and np.isfinite(p)
    return min(0.1, largest * (max(1.0, float(p)) if number else 1.0))


def of_infinite_query(call: calls.Call) -> bool:
    """Whether a gradient is that of scores times infinity: where they cancel, NaN or infinity as they were rounded."""
    if call.function != "attention_pool" or call.way not in ("vjp", "autograd") or len(call.args) < 2:
        return False
    query = call.args[1]
    return type(query) is np.ndarray and small(query) and not np.isfinite(np.asarray(query, np.float64)).all()


def finite(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the elements that are finite in both."""
    both = np.isfinite(a.astype(np.float64)) & np.isfinite(b.astype(np.float64))
    return a[both], b[both]


def exact(call: calls.Call, a: np.ndarray) -> bool:
    return a.dtype.kind in "biu" or (call.exact and not call.hostile and call.way != "vjp")


def largest(arrays: list[np.ndarray]) -> float:
    """The largest finite magnitude."""
    wide = [np.abs(np.asarray(a, np.float64)) for a in arrays if a.size and a.dtype.kind in "biufV"]
    return max((float(np.max(w, initial=0.0, where=np.isfinite(w))) for w in wide), default=0.0)


def near(a: np.ndarray, b: np.ndarray, scale: float, unit: float) -> bool:
    """Whether two floats differ by what a few roundings of their dtype and of intermediate float32 sums explain.

    Values and bits are the business of other tests: here a wrong element is looked for, not a wrong rounding.
    """
    p, q = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return bool(((p == q) | (np.isnan(p) & np.isnan(q)) | (np.abs(p - q) <= unit * (np.abs(q) + scale))).all())


def check(call: calls.Call) -> str:
    """Make a call both ways; return how it ended or raise what is wrong."""
    with_out = call.kwargs.get("out") is calls.OUT
    if with_out:
        del call.kwargs["out"]
    inputs = [a for a in arrays_in([*call.args, *call.kwargs.values()]) if small(a)]
    before = [a.copy() for a in inputs]
    backend = "native"
    got, error = outcome(backend, call)
    wanted, expected = outcome("reference", call)
    if isinstance(error, NotImplementedError) and "native backend cannot" in str(error):
        backend = "reference"  # what runs by default then
        got, error = outcome(backend, call)
    if call.tensors:
        wanted, expected = as_arrays(call, error, wanted, expected)
    elif type(error) is not type(expected) or (error and str(error) != str(expected)):
        raise Wrong(f"native ends with {error!r}, the reference with {expected!r}")
    for a, b in zip(inputs, before, strict=True):
        if a.tobytes() != b.tobytes():
            raise Wrong(f"an argument was written into: {calls.shown(a)}")
    if error is not None:
        if not str(error):
            raise Wrong(f"{type(error).__name__} without a message")
        return type(error).__name__
    if expected is None:
        agree(got, wanted, call, largest([*inputs, *arrays_in(wanted)]))
    if with_out:
        check_out(call, got, backend)
    return "result"


def as_arrays(call: calls.Call, error: Exception | None, wanted: Any, expected: Exception | None) -> Any:
    """Return what arrays give where tensors are to give it, or else what PyTorch's operations give.

    Neither may end where the other goes on, but for what is said not to be there; nor may a call of arrays that are
    what they should be.
    """
    if (error is None) is not (expected is None) and not absent(error, expected):
        raise Wrong(f"native ends with {error!r}, PyTorch's operations with {expected!r}")
    if call.function in frameworks.MODULES:
        return wanted, expected
    plain = copy.copy(call)
    plain.tensors, plain.way = False, "vjp" if call.way == "autograd" else call.way
    result, refused = outcome("reference", plain)
    result = torch_arguments.with_arrays(result)  # of a hostile tensor
    apart = call.function.startswith("fractional")  # PyTorch's own operator draws windows, and takes fewer sizes
    if not (call.hostile or apart or absent(error, refused)) and (error is None) is not (refused is None):
        raise Wrong(f"a call of tensors ends with {error!r}, of arrays with {refused!r}")
    if refused is not None:
        return wanted, expected
    if call.way == "autograd":  # only of x; arrays also have the query's
        result = result[: len(wanted)] if isinstance(wanted, tuple) else result
    return result, None


def absent(*errors: Exception | None) -> bool:
    return any(isinstance(e, NotImplementedError) for e in errors)


def check_out(call: calls.Call, wanted: Any, backend: str) -> None:
    """The same with `out=`: full and nothing else touched; with a mistake beside it, as it was."""
    first = wanted
    while isinstance(first, tuple):
        first = first[0]
    if first.ndim == 0 or first.dtype.kind == "b":
        return
    around, out = room_for(first)
    _, error = outcome(backend, with_arguments(call, out=out))
    rest = np.ones(around.shape, bool)
    rest[..., 1 : 1 + 2 * first.shape[-1] : 2] = False
    if not (around[rest] == around.dtype.type(POISON)).all():
        raise Wrong("something beside out was written")
    if error is None and not tolerance.same_bits(np.ascontiguousarray(out), np.ascontiguousarray(first)):
        raise Wrong("out= is filled with something else than what is returned without it")
    for name, value in (("data_format", "NCHW"), ("kernel_size", -1), ("output_size", -1), ("dtype", "complex64")):
        if name in calls.KEYWORDS[call.function]:
            around, out = room_for(first)
            _, error = outcome(backend, with_arguments(call, out=out, **{name: value}))
            if error is None or not (around == around.dtype.type(POISON)).all():
                raise Wrong(f"out was written although {name}={value!r} is refused ({error!r})")


def with_arguments(call: calls.Call, **kwargs: Any) -> calls.Call:
    changed = copy.copy(call)
    changed.kwargs = call.kwargs | kwargs
    return changed


# ---- processes


def work(seed: int, first: int, count: int, progress: Path) -> None:
    """Make calls; write what is wrong to stdout. `progress` holds the number of the call being made."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except ImportError:
        pass
    ended: dict[str, int] = {}
    for number in range(first, first + count):
        progress.write_text(str(number))
        call = calls.make(seed, number)
        try:
            end = check(call)
        except Exception as error:  # whatever it is, it is a finding
            end = "wrong"
            told = str(error) if isinstance(error, Wrong) else "".join(traceback.format_exception(error)[-6:])
            print(f"WRONG {call}\n    {told}", flush=True)
        ended[end] = ended.get(end, 0) + 1
    print("ENDED", *(f"{k}={v}" for k, v in sorted(ended.items())), flush=True)


def batch(seed: int, first: int, count: int) -> tuple[list[str], dict[str, int]]:
    """Run a batch in a process of its own; return findings and how the calls ended."""
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder, "number")
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            __file__,
            "--work",
            str(seed),
            str(first),
            str(count),
            progress,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        hung = not ended_in_time(process, progress)
        if hung:
            process.kill()
        out, err = process.communicate()
        findings = ["WRONG" + part for part in out.split("ENDED")[0].split("WRONG")[1:]]
        if hung or process.returncode != 0:
            number = int(progress.read_text() or first) if progress.exists() else first
            how = f"no end within {PATIENCE:.0f} s" if hung else f"the process died ({process.returncode})"
            findings.append(f"WRONG {calls.make(seed, number)}\n    {how}\n{err[-2000:]}")
    counts = dict(pair.split("=") for pair in out.partition("ENDED ")[2].split())
    return findings, {k: int(v) for k, v in counts.items()}


def ended_in_time(process: subprocess.Popen[str], progress: Path) -> bool:
    """Wait for the end, as long as calls go on ending. (What it prints is little: the pipe does not fill up.)"""
    seen, since = "", time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        now = progress.read_text() if progress.exists() else ""
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            return False
    return True


def fuzz(seed: int, *, seconds: float = float("inf"), count: int | None = None,
         say: Callable[[str], None] = print) -> list[str]:  # fmt: skip
    """Make calls for so long, or so many; return the findings."""
    start, done, findings, ended = time.monotonic(), 0, [], {}
    while time.monotonic() - start < seconds and (count is None or done < count) and len(findings) < 20:
        size = BATCH if count is None else min(BATCH, count - done)
        found, how = batch(seed, done, size)
        for text in found:
            say(f"{text}\n    again: python tests/fuzz/fuzzer.py --seed {seed} --only {text.split('#')[1].split()[0]}")
        findings += found
        done += size
        for k, v in how.items():
            ended[k] = ended.get(k, 0) + v
    say(f"seed {seed}: {done} calls in {time.monotonic() - start:.0f} s, {len(findings)} findings; they ended: {ended}")
    if not findings and ended.get("result", 0) < 0.3 * done:
        findings.append(f"too few calls give a result: {ended}")
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every public function.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        seed, first, count, progress = arguments.work
        work(int(seed), int(first), int(count), Path(progress))
        return 0
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    if arguments.only is not None:
        call = calls.make(seed, arguments.only)
        print(call)
        print(check(call))
        return 0
    print(f"seed {seed} (again: make fuzz SEED={seed})", flush=True)
    return 1 if fuzz(seed, seconds=arguments.seconds) else 0


if __name__ == "__main__":
    os.environ.setdefault("ANYPOOL_NUM_THREADS", "3")
    sys.exit(main())
