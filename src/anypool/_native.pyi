from collections.abc import Sequence


class Recipe:
    def __init__(self, choices: Sequence[int], divisor_value: float, p: float, axes: Sequence[Sequence[int]], forward_axes: Sequence[Sequence[int]], outer: Sequence[int], inner: int, strides: Sequence[Sequence[int]], backward: bool) -> None: ...

    def run(self, x: object, y: object, code: object | None = None, aux: object | None = None, post: object | None = None) -> None:
        """Run on ndarrays of the shapes and strides the recipe was made for."""

    @property
    def threads(self) -> int: ...

    @property
    def way(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    @property
    def tasks(self) -> int: ...

    @property
    def scratch(self) -> int: ...

def data_pointer(arg: object, /) -> int: ...

def isa() -> str:
    """
    The instruction-set level that runs; empty if the one asked for cannot.
    """

def isa_built() -> list[str]: ...

def thread_count() -> int: ...

def thread_pool() -> str: ...
