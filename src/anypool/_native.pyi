from collections.abc import Sequence


class TokenRecipe:
    def __init__(self, shape: Sequence[int], parts: tuple[int, object, object], empty: float, terms: Sequence[tuple[int, float, float, int]], results: Sequence[tuple[int, int, int]]) -> None: ...

    def run(self, x: object, y: object, runs: tuple[int, object, object, object, object], weights: object | None = None, skipped: object | None = None) -> None:
        """
        Run on ndarrays, or the addresses of elements, that lie as those the recipe was made for.
        """

def token_attention(shape: Sequence[int], parts: tuple[int, object, object], value_parts: tuple[int, object, object], runs: tuple[int, object, object, object, object], arrays: Sequence[int], empty: float) -> None: ...

def token_gradient(shape: Sequence[int], runs: Sequence[int], arrays: Sequence[int], around_cache: bool, terms: Sequence[tuple[int, float, float, int, int, int, int, int, int]], attention: Sequence[int]) -> None: ...

def token_dots(shape: Sequence[int], parts: tuple[int, object, object], runs: tuple[int, object, object, object, object], arrays: Sequence[int]) -> None: ...

class Recipe:
    def __init__(self, choices: Sequence[int], divisor_value: float, p: float, axes: Sequence[Sequence[int]], forward_axes: Sequence[Sequence[int]], outer: Sequence[int], inner: int, strides: Sequence[Sequence[int]], backward: bool, masking: Sequence[int] = []) -> None: ...

    def run(self, x: object, y: object, code: object | None = None, aux: object | None = None, post: object | None = None, empty: int = 0) -> None:
        """
        Run on ndarrays, or the addresses of elements, of the shapes and strides the recipe was made for.
        """

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

class Tensors:
    def __init__(self, type: object, capsule: object | None, silent: tuple[object, ...], plain: object, records: object, forward_mode: dict[str, object]) -> None: ...

class WindowCalls:
    def __init__(self, tensors: Tensors, asked_for: object) -> None: ...

    def run(self, function: object, args: object, kwargs: object) -> object:
        """Return the pooled tensor of a call that is known, or NotImplemented."""

    def add(self, function: object, args: object, kwargs: object, recipe: object, shape: object, strides: object, mask: int) -> None: ...

    def clear(self) -> None: ...

class TokenCalls:
    def __init__(self, tensors: Tensors, asked_for: object, large: int) -> None: ...

    def run(self, x: object | None, layouts: object, what: object) -> object:
        """Return the pooled tensor of a call that is known, or NotImplemented."""

    def add(self, x: object, layouts: object, what: object, recipe: object, padded_left: bool, segments: int, prefix: int) -> None: ...

    def clear(self) -> None: ...

def leave_out(x: object, mask: object, y: object, valid: object | None, axes: Sequence[Sequence[int]], bytes: int, none: int, largest: int) -> None:
    """
    Write x into y, and none where mask is False; an axis is (elements, steps of x, of mask, of y).
    """

def data_pointer(arg: object, /) -> int: ...

def isa() -> str:
    """
    The instruction-set level that runs; empty if the one asked for cannot.
    """

def isa_built() -> list[str]: ...

def thread_count() -> int: ...

def thread_pool() -> str: ...
