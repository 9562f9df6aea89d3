"""Test the tests: each deliberate mistake of mutations.py must turn its tests red.

    python tests/mutants/run.py            every mutant (native ones rebuild the extension)
    python tests/mutants/run.py --python   only those that need no build
    python tests/mutants/run.py NAME ...   only these

Nothing in the repository is changed: the package is copied to a temporary folder, mutated there,
and imported from there by a Python that ignores the installed one. Exit status 1 if a mutant
survives or does not apply.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from mutations import MUTATIONS, Mutation  # noqa: E402

SOURCES = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "src")
IGNORED = shutil.ignore_patterns("__pycache__", ".pytest_cache", ".hypothesis")


def extensions() -> list[Path]:
    """Compiled modules of the installed package, relative to the package, by where they are."""
    code = (
        "import sys, anypool.backends.native; print(*(m.__file__ for n, m in sorted(sys.modules.items())"
        " if n.startswith('anypool') and getattr(m, '__file__', None)), sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return [Path(line) for line in found.splitlines() if line.endswith(suffixes)]


def copy_package(site: Path) -> None:
    """The package's Python files and its compiled modules, as one folder to import from."""
    shutil.copytree(REPOSITORY / "src" / "anypool", site / "anypool", ignore=IGNORED)
    for module in extensions():
        inside = module.parts[len(module.parts) - module.parts[::-1].index("anypool") :]
        shutil.copy(module, site.joinpath("anypool", *inside))


def copy_sources(tree: Path) -> None:
    tree.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / name)


def build_package(tree: Path, site: Path) -> None:
    """Build and install the package of a source tree into a folder; the next time only what has changed since.

    One instruction-set level, the one that runs here: a mistake is the same at all of them.
    """
    code = "from anypool.backends import native; print(native.info()['isa'])"
    level = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    settings = [f"build-dir={tree.parent / 'objects'}", f"cmake.define.ANYPOOL_LEVELS={level}"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*command, *(part for s in settings for part in ("-C", s)), tree], check=True)


def run_tests(site: Path, tests: tuple[str, ...], expected: tuple[int, ...] = (0, 1)) -> int:
    """Exit status of pytest on a copy of the tests, importing the package from `site`.

    What pytest said is printed when the status is not one of those expected.

    `-S` keeps the interpreter from reading .pth files, through which an editable install would
    put itself first.
    """
    work = site.parent / "tests_at_work"
    if not work.exists():
        shutil.copytree(REPOSITORY / "tests", work / "tests", ignore=IGNORED)
        shutil.copy(REPOSITORY / "pyproject.toml", work)
    paths = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in expected:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n")
    return done.returncode


def apply(mutation: Mutation, root: Path) -> None:
    """Write the mistake into the copy at `root` (which holds what the repository's src/ holds)."""
    path = root / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.name}: its text occurs {text.count(mutation.old)} times in {mutation.file}, not once"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def is_killed(mutation: Mutation, folder: Path, tree: Path) -> bool:
    """Tell whether the tests notice; `tree` is where native mutants are built, one after the other."""
    site = folder / "site"
    if mutation.native:
        if not tree.exists():
            copy_sources(tree)
        apply(mutation, tree / "src")
        build_package(tree, site)
        shutil.copy(REPOSITORY / "src" / mutation.file, tree / "src" / mutation.file)
    else:
        copy_package(site)
        apply(mutation, site)
    status = run_tests(site, mutation.tests)
    if status not in (0, 1):
        raise SystemExit(f"{mutation.name}: pytest ended with {status}: not a failure of a test")
    return status == 1


def check_unmutated(chosen: list[Mutation]) -> None:
    """A red suite kills every mutant; it must be green first."""
    tests = tuple(dict.fromkeys(t for m in chosen for t in m.tests))
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        copy_package(site)
        if run_tests(site, tests, expected=(0,)) != 0:
            raise SystemExit("the tests fail without any mutation")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that the tests notice deliberate mistakes.")
    parser.add_argument("names", nargs="*", choices=[[], *(m.name for m in MUTATIONS)], metavar="NAME")
    parser.add_argument("--python", action="store_true", help="leave out mutants that need a build")
    arguments = parser.parse_args()
    chosen = [
        m
        for m in MUTATIONS
        if (not arguments.names or m.name in arguments.names) and not (arguments.python and m.native)
    ]
    check_unmutated(chosen)
    survivors = []
    with tempfile.TemporaryDirectory() as built:
        for mutation in chosen:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                killed = is_killed(mutation, Path(folder), Path(built, "tree"))
            survivors += [] if killed else [mutation.name]
            took = f"{time.perf_counter() - start:6.1f} s"
            print(f"{'killed  ' if killed else 'SURVIVED'} {took}  {mutation.name}", flush=True)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed"
        + ("" if not survivors else f"; alive: {survivors}")
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
