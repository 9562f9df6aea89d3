"""What the documentation shows is what happens: code blocks and doctests run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import anypool as ap

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
OPTIONAL = {"torch", "ml_dtypes", "PIL", "matplotlib", "typer", "click", "rich"}

MODULES = [
    "anypool",
    *(m.name for m in pkgutil.walk_packages(ap.__path__, "anypool.") if not m.name.endswith("__main__")),
]


def run_block(source: str, where: str, names: dict) -> None:
    """Run a session (`>>>`) as a doctest and anything else as a script, in one namespace."""
    for name in re.findall(r"\w+", " ".join(re.findall(r"^(?:>>> )?import (.*)", source, re.MULTILINE))):
        if name in OPTIONAL and importlib.util.find_spec(name) is None:  # a doctest would only call it a failure
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if ">>>" not in source:
        exec(compile(source, where, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(source, names, where, where, 0)
    complaints: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=complaints.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, "".join(complaints)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_code_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__docs__"}
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        where = f"{page.name}:{text[: match.start()].count(chr(10)) + 2}"
        try:
            run_block(match[1], where, names)
        except ModuleNotFoundError as missing:
            if missing.name not in OPTIONAL:
                raise
            pytest.skip(f"{where} needs {missing.name}")


SEMANTICS = (REPOSITORY / "docs" / "semantics.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^###? (.+)\n((?:(?!^##).*\n)*)", SEMANTICS, re.MULTILINE))


@pytest.mark.parametrize("title", [t for t in SECTIONS if t != "What comes later"])
def test_the_tests_that_a_section_names_exist(title):
    """Each rule has a test, and says which: ``Tests: `file.py::test`, `::another of the same file`; …``."""
    lines = "".join(re.findall(r"^Tests?: (?:.+\n)+", SECTIONS[title], re.MULTILINE))
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`", lines)
    assert named, f"{title}: no test is named"
    file = ""
    for path, test in named:
        file = path or file
        place = REPOSITORY / "tests" / file
        assert place.is_file(), f"{title}: {file} does not exist"
        assert not test or f"def {test}(" in place.read_text(encoding="utf-8"), f"{title}: {file} has no {test}"


def test_the_readme_shows_code():
    assert BLOCK.search((REPOSITORY / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_module_doctests(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {missing.name}")
    result = doctest.testmod(module, optionflags=OPTIONS, extraglobs={"ap": ap, "np": np})
    assert result.failed == 0


def public_callables() -> list[str]:
    return [name for name in ap.__all__ if callable(getattr(ap, name))]


@pytest.mark.parametrize("name", public_callables())
def test_every_public_name_has_an_example(name):
    assert ">>>" in (inspect.getdoc(getattr(ap, name)) or ""), f"anypool.{name} has no runnable example"
