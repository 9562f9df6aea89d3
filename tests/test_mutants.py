"""The mutation list still fits the sources. (mutants/run.py runs it.)"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "mutants"))

from mutations import MUTATIONS

SOURCES = Path(__file__).parent.parent / "src"


def test_there_are_enough():
    assert len(MUTATIONS) >= 25
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_it_applies(mutation):
    assert (SOURCES / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1
    assert mutation.old != mutation.new
    assert mutation.tests
