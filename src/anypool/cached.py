"""Properties that are computed once, without a lock.

Python 3.10 and 3.11 hold one lock of a class while any of its ``functools.cached_property`` is computed. Threads then
wait for each other, and a child that is forked meanwhile waits for ever: nobody there lets go of the lock. Python 3.12
has none, and may compute a value twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property
else:

    class cached_property:
        """The result of a method, kept in the instance under the method's name, where it is found from then on."""

        def __init__(self, compute: Callable[[Any], Any]) -> None:
            self.compute, self.__doc__ = compute, compute.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = instance.__dict__[self.name] = self.compute(instance)
            return value


__all__ = ["cached_property"]
