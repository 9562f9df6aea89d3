"""Lines and branches that the tests reach, in one table: python cover.py BUILD OUT [PYTEST_ARGS ...].

BUILD holds the package as `make coverage` builds it (`site`, to import it from, and `objects`), OUT gets the pages.
Exit status 1 if a test fails, or less than 95 % of the lines or of the branches of either language are reached. C++ is
that of one instruction-set level, all instances of a template together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LEAST = 95.0  # per cent of lines, and of branches

# What measures memory, reads the objects of the other build, or limits the size of files: those of the counters, too.
LEFT_OUT = ("--ignore=tests/test_symbols.py", "-k",
            "not peak and not cannot_grow and not does_not_fit")  # fmt: skip

SETTINGS = """
[run]
branch = true
source = anypool
parallel = true
patch = subprocess
sigterm = true
disable_warnings = module-not-imported,no-data-collected
data_file = {data}
[paths]
source =
    src/anypool
    */site/anypool
[report]
exclude_also =
    if TYPE_CHECKING:
    raise NotImplementedError$
    \\.\\.\\.$
"""


def python(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, env=env, check=False, text=True)


def run_tests(build: Path, settings: Path, arguments: list[str]) -> int:
    """Run the suite on the measured package; return pytest's exit status."""
    for old in [*build.rglob("*.gcda"), *settings.parent.glob("data*")]:
        old.unlink()
    site = (build / "site").resolve()
    env = os.environ | {"PYTHONPATH": str(site), "ANYPOOL_BUILD_DIR": str(build / "objects")}
    where = subprocess.run([sys.executable, "-c", "import anypool; print(anypool.__file__)"], env=env, text=True,
                           capture_output=True, check=True).stdout  # fmt: skip
    if not where.startswith(str(site)):
        raise SystemExit(f"Python imports {where.strip()}, not the package in {site}")
    command = ["-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return python(*command, *LEFT_OUT, *arguments, env=env).returncode


def of_python(settings: Path, out: Path) -> dict[str, list[int]]:
    """Return (lines, reached, branches, reached) of each file."""
    python("-m", "coverage", "combine", "-q", f"--rcfile={settings}", settings.parent)
    python("-m", "coverage", "html", "-q", f"--rcfile={settings}", "-d", out / "python")
    python("-m", "coverage", "json", "-q", f"--rcfile={settings}", "-o", out / "python.json")
    files = json.loads((out / "python.json").read_text())["files"]
    names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
    return {path: [f["summary"][n] for n in names] for path, f in files.items()}


def of_native(build: Path, out: Path) -> dict[str, list[int]]:
    """Return (lines, reached, branches, reached) of each file; what only an exception takes is no branch.

    A line of a template is there once, however many instances it has: it is reached if it is in any of them.
    """
    (out / "native").mkdir(parents=True, exist_ok=True)
    python("-m", "gcovr", "--root", REPOSITORY, "--filter", "src/native/", build / "objects",
           "--exclude-throw-branches", "--exclude-unreachable-branches", "--gcov-ignore-parse-errors=all",
           "--merge-mode-functions=merge-use-line-min", "--json", out / "native.json",
           "--html-details", out / "native" / "index.html")  # fmt: skip
    found = {}
    for file in json.loads((out / "native.json").read_text())["files"]:
        lines: dict[int, int] = {}
        branches: dict[tuple[int, int], int] = {}
        for line in file["lines"]:
            at = line["line_number"]
            lines[at] = max(lines.get(at, 0), line["count"])
            for i, branch in enumerate(line["branches"]):
                branches[at, i] = max(branches.get((at, i), 0), branch["count"])
        counts = [len(lines), sum(map(bool, lines.values())), len(branches), sum(map(bool, branches.values()))]
        found[file["file"]] = counts
        missed = [str(n) for n, count in sorted(lines.items()) if not count]
        if missed:
            (out / "native" / f"{Path(file['file']).name}.missed.txt").write_text("\n".join(missed) + "\n")
    return found


def row(name: str, counts: list[int]) -> str:
    lines, reached, branches, taken = counts
    share = [f"{100 * a / b:6.1f} %" if b else "       -" for a, b in ((reached, lines), (taken, branches))]
    return f"{name:42} {lines:6} {share[0]} {branches:8} {share[1]}"


def report(tables: dict[str, dict[str, list[int]]]) -> list[str]:
    """Print one table; return what misses the threshold."""
    print(f"\n{'':42}  lines  reached branches  reached")
    missed = []
    for language, files in tables.items():
        for path, counts in sorted(files.items()):
            print(row(path, counts))
        total = [sum(column) for column in zip(*files.values(), strict=True)]
        print(row(f"{language}, all files", total), "\n")
        for what, at in (("lines", 0), ("branches", 2)):
            if 100 * total[at + 1] < LEAST * total[at]:
                below = [path for path, counts in sorted(files.items()) if 100 * counts[at + 1] < LEAST * counts[at]]
                missed.append(
                    f"{language} has less than {LEAST:.0f} % of its {what} reached; files below: {', '.join(below)}"
                )
    return missed


def main() -> int:
    build, out, *arguments = sys.argv[1:]
    build, out = Path(build).resolve(), Path(out).resolve()
    (build / "data").mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    settings = build / "data" / "settings.ini"
    settings.write_text(SETTINGS.format(data=build / "data" / "data"))
    status = run_tests(build, settings, arguments)
    missed = report({"Python": of_python(settings, out), "C++": of_native(build, out)})
    print(*missed, f"The pages: {out}/python/index.html, {out}/native/index.html", sep="\n")
    if status:
        print(f"the tests failed (pytest: {status}): the figures are of what ran")
    return 1 if missed or status else 0


if __name__ == "__main__":
    sys.exit(main())
