"""Run the tests of the native core under sanitizers: python run.py address|thread SITE OUT.

The address sanitizer comes with that of undefined behaviour. SITE holds the package as `make sanitize` builds it, OUT
gets what pytest says, a file for each run. Exit status 1 if a test fails, or a sanitizer reports anything at all, in
whatever process; also if it does not report the mistakes of planted.cpp, for then it watches nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SUPPRESSED = Path(__file__).with_name("python.supp")

# What is planted, and how the report of it begins.
PLANTED = {
    "address": {"out_of_bounds": "heap-buffer-overflow", "overflow": "signed integer overflow"},
    "thread": {"race": "data race"},
}
# Kernels of every level; then, at the best one, everything else that ends in native code.
KERNELS = ("tests/test_kernels.py", "tests/test_gradient_kernels.py", "tests/test_around_caches.py")
REST = (
    "tests/test_masked_kernels.py",
    "tests/test_bounds.py",
    "tests/test_regressions.py",
    "tests/test_arguments.py",
    "tests/test_threads.py",
    "tests/test_tokens.py",
    "tests/test_token_arguments.py",
    "tests/test_token_sizes.py",
    "tests/test_attention.py",
    "tests/test_state.py",
    # Not what measures or limits memory, of which a sanitizer takes terabytes; nor PyTorch, which is not instrumented;
    # nor a fork amid calls, for the allocator of GCC 12's sanitizer does not let go of its locks in the child.
    "-k",
    "not fuzz and not peak and not memory and not PyTorch and not fork_amid_calls",
)
AGAINST = ("tests/test_against_oracle.py", "tests/test_properties.py", "-k", "not reference")
# Of the battery only what compares within one process: all of it takes an hour here.
SHARED = ("tests/test_threads.py", "tests/test_token_sizes.py", "tests/test_determinism.py", "-k",
          "not peak and not PyTorch and not tensors and not agree and not layouts")  # fmt: skip


def runs(sanitizer: str, levels: list[str]) -> dict[str, tuple[dict[str, str], tuple[str, ...]]]:
    """Return the variables and the arguments of pytest of each run."""
    if sanitizer == "thread":
        return {f"shared {level}": ({"ANYPOOL_ISA": level, "ANYPOOL_NUM_THREADS": "7"}, SHARED) for level in levels[:1]}
    found = {f"kernels {level}": ({"ANYPOOL_ISA": level}, KERNELS) for level in levels}
    best = {"ANYPOOL_ISA": levels[0]}
    return found | {"rest": (best | {"ANYPOOL_NUM_THREADS": "3"}, REST), "against the oracle": (best, AGAINST)}


def runtime(site: Path) -> list[str]:
    """Return what must be loaded before Python: the sanitizer's runtime, and that of C++, whose throw it wraps."""
    said = subprocess.run(["ldd", site / "planted" / "planted.so"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"lib(?:asan|tsan|stdc\+\+)\.so\S* => (\S+)", said)
    if len(found) < 2:
        raise SystemExit(f"planted.so names no runtime of a sanitizer; make sanitize needs g++ on Linux:\n{said}")
    return sorted(found)  # asan and tsan before stdc++


def environment(sanitizer: str, site: Path, reports: Path, level: str = "") -> dict[str, str]:
    """Return the variables under which a Python that is not instrumented loads a package that is."""
    report = f"log_path={reports}"
    # Frames that are kept after a return lie at multiples of 32 bytes, but GCC 12 stores vectors as if it were 64.
    frames = f"detect_stack_use_after_return={int(level != 'x86_64_v4')}"
    return os.environ | {
        "LD_PRELOAD": " ".join(runtime(site)),
        "PYTHONPATH": str(site),
        "PYTHONMALLOC": "malloc",  # each object a block of its own
        # Python keeps what it has to its end; a request for more memory than there is must fail as it does elsewhere.
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:{frames}:{report}",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": f"exitcode=66:die_after_fork=0:suppressions={SUPPRESSED}:{report}",
        "ANYPOOL_BACKEND": "",
    }  # fmt: skip


def python(env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the randomised addresses leave a sanitizer the room it needs."""
    return subprocess.run(["setarch", "-R", sys.executable, *command], env=env, cwd=REPOSITORY, capture_output=True,
                          text=True, check=False)  # fmt: skip


def check_planted(sanitizer: str, site: Path, out: Path) -> list[str]:
    """Return what is wrong with the sanitizer itself."""
    wrong = []
    for name, wanted in PLANTED[sanitizer].items():
        reports = out / f"planted-{name}"
        code = f"import ctypes; ctypes.CDLL({str(site / 'planted' / 'planted.so')!r}).{name}(8)"
        done = python(environment(sanitizer, site, reports), "-c", code)
        said = done.stderr + "".join(path.read_text(errors="replace") for path in out.glob(f"{reports.name}.*"))
        if done.returncode == 0 or wanted not in said:
            wrong.append(f"planted {name}: no {wanted!r} in its report (exit status {done.returncode}): {said[:300]}")
        else:
            print(f"  planted {name}: reported, as it must be", flush=True)
    return wrong


def check_run(sanitizer: str, site: Path, out: Path, name: str, env: dict[str, str],
              tests: tuple[str, ...]) -> list[str]:  # fmt: skip
    """Run tests; return what failed."""
    start = time.perf_counter()
    stem = name.replace(" ", "-")
    done = python(
        environment(sanitizer, site, out / f"report-{stem}", env["ANYPOOL_ISA"]) | env,
        "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *tests,
    )  # fmt: skip
    (out / f"{stem}.txt").write_text(done.stdout + done.stderr)
    reports = sorted(out.glob(f"report-{stem}.*"))
    said = done.stdout.strip().splitlines()[-1:]
    print(f"  {name}: {' '.join(said)} ({time.perf_counter() - start:.0f} s)", flush=True)
    wrong = [f"{name}: {path.name}:\n{path.read_text(errors='replace')[:4000]}" for path in reports]
    if done.returncode != 0 or "runtime error:" in done.stderr:  # undefined behaviour is told here, and to no file
        wrong.append(f"{name}: pytest ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return wrong


def main() -> int:
    sanitizer, site, out = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    print(f"{sanitizer}:", flush=True)
    wrong = check_planted(sanitizer, site, out)
    said = python(
        environment(sanitizer, site, out / "levels"),
        "-c", "import anypool; from anypool.backends import native as n; i = n.info(); "
        "print(anypool.__file__, *i['isa_built'][i['isa_built'].index(i['isa']):])",
    )  # fmt: skip
    if said.returncode != 0 or not said.stdout.startswith(str(site)):
        raise SystemExit(f"the package in {site} is not what Python imports: {said.stdout}{said.stderr[-2000:]}")
    levels = said.stdout.split()[1:]
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        for found in pool.map(lambda r: check_run(sanitizer, site, out, r[0], *r[1]), runs(sanitizer, levels).items()):
            wrong += found
    print(*wrong, sep="\n")
    print(f"{sanitizer}: {'FAILED' if wrong else 'nothing to report'} ({', '.join(levels)})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
