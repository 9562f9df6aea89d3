"""Fixtures shared by all tests, and where the modules beside them are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # oracle, cases, tolerance, strategies

try:
    from hypothesis import settings
except ModuleNotFoundError:
    pass
else:
    settings.register_profile("anypool", deadline=None, derandomize=True, print_blob=True)
    settings.load_profile("anypool")


@pytest.fixture(params=["reference", "native"])
def backend(request):
    """Run the test with one backend chosen explicitly: an explicit choice never falls back."""
    import anypool

    with anypool.backends.use(request.param):
        yield request.param
