"""Random calls of every public function, each from a seed and a number: the same two give the same call anywhere.

(Anywhere where PyTorch is installed, or where it is not: without it there are no tensors and no modules.)

A call is plausible (most succeed) or hostile (some of its arguments are replaced by what no one should pass). Of both
the same is wanted: the reference's result, or what the reference raises, one of four exceptions.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

import frameworks
import numpy as np
import torch_arguments

import anypool as ap
import cases

TOKEN_NAMES = (
    "mean",
    "sum",
    "max",
    "min",
    "first",
    "last",
    "mean_sqrt_len",
    "weightedmean",
    "std",
    "lp",
    "gem",
    "logsumexp",
)
DTYPES = (*cases.FLOATS, *cases.FLOATS, *cases.DTYPES)  # floats twice: gradients take no others
LABELS = (*cases.BOOL, *cases.INTEGERS)
PADDINGS = ("valid", "same", "same_lower", "causal")


class Child(list):
    """A list of another class."""


def cyclic() -> list:
    """A list that holds itself."""
    found: list = [1]
    found.append(found)
    return found


def hostile_values() -> list[Any]:
    """Everything that is none of the things asked for, or too much of it."""
    nan, inf = float("nan"), float("inf")
    ones = np.ones((2, 3))
    return [
        None, True, False, 0, 1, 2, 3, -1, -7, 2**15, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63),
        10**30, 0.0, -0.0, 0.5, 1.5, nan, inf, -inf, 1e300, 1e-320, 1j, "", "2", "max", "same", "float16", "native",
        "\x00", "é" * 99, b"2", (), (1,), (2, 3), (2, -1), (0, 0), (1, 2, 3), (1,) * 40, ((1, 2), (0, 0)), ((1,), ()),
        ((0, 2**62),) * 2, (nan, 1), [2, 2], [], [[1, 2], [3]], [None], ["a"], {2: 2}, {1, 2}, object, object(), int,
        range(3), slice(1), Ellipsis, NotImplemented, lambda: 2, Child([2, 2]), cyclic(), np.int8(2), np.int64(-1),
        np.uint64(2**64 - 1), np.float32(2), np.bool_(True), np.array(2), np.array([2, 2]), np.array([2.0]), np.ones(0),
        np.zeros((0, 2), np.int64), np.float16(nan), ones, ones > 0, ones.astype(object), ones.astype(complex),
        ones.astype("U3"), ones.astype("M8[s]"), ones.astype(">f4"), ones.astype(np.longdouble),
        np.zeros(3, [("a", "i4"), ("b", "f8")]), np.ma.masked_array(ones, ones > 0), ones.view(np.recarray),
        np.broadcast_to(np.float32(1), (2**10, 2**9)), np.ones((1,) * 32), np.array([2**62, 2**62]),
        np.array([0, -1, 5]), np.array([nan, inf]), np.dtype("float32"), np.dtype("M8[s]"), "V8", ap,
    ]  # fmt: skip


HOSTILE = hostile_values()
# Of modules: filters of such sizes and larger are built as long as there is time, such floats are none of PyTorch's.
SETTINGS = [v for v in HOSTILE if not (isinstance(v, np.ndarray) or v is NotImplemented)]
SETTINGS = [v for v in SETTINGS if not (isinstance(v, (int, float)) and 2**15 <= v < np.inf)]
HOSTILE_TENSORS = torch_arguments.hostile_tensors() if frameworks.TORCH else []
REDUCTIONS = (*cases.REDUCTIONS, *cases.OF_WINDOWS, *cases.WITHOUT_GRADIENT, "stochastic")
EXACT = ("max", "min", "any", "all", "mode", "median", "stochastic")  # nothing is rounded, or by one rule everywhere


@dataclass
class Call:
    """One call: ``function(*args, **kwargs)``, and what is done around it."""

    number: int
    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    way: str  # "plain", "vjp", "explain" or "state"; of tensors also "autograd"
    hostile: bool
    exact: bool  # nothing in it is rounded: bits are compared
    tensors: bool = False  # its arrays are tensors when it is made

    def __str__(self) -> str:
        parts = [shown(a) for a in self.args] + [f"{k}={shown(v)}" for k, v in self.kwargs.items()]
        inner = f"{self.function}({', '.join(parts)})"
        kind = ("hostile " if self.hostile else "") + ("tensors, " if self.tensors else "")
        return f"#{self.number} {kind}{self.way}: {inner}"


def shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"<{type(value).__name__} {value.dtype} {value.shape} strides {value.strides}>"
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return f"[{', '.join(shown(v) for v in value[:4])}{', …' if len(value) > 4 else ''}]"
    return reprlib.repr(value)


class Maker:
    """Makes the call of one number."""

    def __init__(self, seed: int, number: int) -> None:
        self.number = number
        self.rng = np.random.default_rng([seed, number])

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def number_in(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def one_of(self, values: Any) -> Any:
        return values[self.number_in(0, len(values) - 1)]

    def per_axis(self, rank: int, low: int, high: int) -> Any:
        if self.chance(0.5):
            return self.number_in(low, high)
        return tuple(self.number_in(low, high) for _ in range(rank))

    def array(self, shape: tuple[int, ...], dtype: str, *, whole: bool) -> np.ndarray:
        """Data in any order of memory; small whole numbers, or any with NaN and infinities among them."""
        kind = cases.dtype_of(dtype)
        memory = self.chance(0.3) and len(shape) >= 3 and 0 not in shape
        x = (self.one_of(WRITEABLE if whole else cases.MEMORY).build if memory else cases.plain)(shape, kind)
        if kind.kind not in "biu" and x.flags.writeable:
            values = self.rng.integers(-4, 5, shape).astype(np.float64)
            if not whole:
                values = self.rng.standard_normal(shape) * self.one_of((1.0, 1e-3, 50.0))
                if self.chance(0.3):
                    special = self.rng.choice([np.nan, np.inf, -np.inf, -0.0, 0.0], shape)
                    values = np.where(self.rng.random(shape) < 0.05, special, values)
            x[...] = values.astype(kind)
        return x

    def shape(self, rank: int) -> tuple[int, ...]:
        lead = (self.number_in(0 if self.chance(0.05) else 1, 3), self.one_of((1, 2, 3, 5, 16, 33)))
        longest = {1: 300, 2: 40, 3: 12}[rank] * (4 if self.chance(0.05) else 1)
        sizes = tuple(self.number_in(1, longest if self.chance(0.5) else 9) for _ in range(rank))
        return (lead if self.chance(0.8) else lead[1:]) + sizes

    def windows(self, rank: int) -> dict[str, Any]:
        kernel = self.per_axis(rank, 1, 7 if self.chance(0.2) else 3)
        found: dict[str, Any] = {"kernel_size": kernel}
        if self.chance(0.6):
            found["stride"] = self.per_axis(rank, 1, 4)
        if self.chance(0.5):
            low = self.per_axis(rank, 0, 1)
            pairs = tuple((self.number_in(0, 2), self.number_in(0, 2)) for _ in range(rank))
            found["padding"] = self.one_of((low, low, pairs, self.one_of(PADDINGS)))
        if self.chance(0.25):
            found["dilation"] = self.per_axis(rank, 1, 3)
        if self.chance(0.3):
            found["ceil_mode"] = True
        return found

    def selected(self, x: np.ndarray, *, weighs: bool) -> dict[str, Any]:
        """What counts: a mask that may be broadcast, NaNs left out, weights, values for empty windows."""
        shape = tuple(1 if self.chance(0.3) else n for n in x.shape)
        found: dict[str, Any] = {}
        if self.chance(0.7):
            found["mask"] = self.rng.random(shape) < self.one_of((0.05, 0.5, 0.95))
        if self.chance(0.3):
            found["nan"] = "omit"
        if self.chance(0.7):
            found["empty"] = self.number_in(0, 1)
        if self.chance(0.3):
            found["return_valid"] = True
        if weighs and self.chance(0.3):
            found["weights"] = self.rng.integers(1, 5, shape).astype(np.float64)
        return found

    # ---- the families of functions: (name, arguments, keywords, whether nothing is rounded)

    def windowed(self, name: str) -> tuple[list[Any], dict[str, Any], bool]:
        rank = int(name[-2]) if name[-1] == "d" else self.number_in(1, 3)
        whole = self.chance(0.5)
        shape = self.shape(rank)
        if name.startswith("global") and len(shape) < rank + 2:
            shape = (2, *shape)
        reduction = "max" if "max" in name else "lp" if "lp" in name else "mean"
        if name == "pool":
            reduction = self.one_of(REDUCTIONS)
        x = self.array(shape, self.one_of(LABELS if reduction == "mode" else DTYPES), whole=whole)
        if reduction == "stochastic":  # of negative inputs there are no shares
            x = np.abs(x) if x.dtype.kind != "b" else x
        kwargs: dict[str, Any] = {}
        if name.startswith("adaptive"):
            kwargs["output_size"] = self.per_axis(rank, 1, 7)
        elif not name.startswith("global"):
            kwargs |= self.windows(rank)
        args: list[Any] = [x]
        if name == "pool":
            args.append(reduction)
            kwargs |= self.settings(reduction, x)
            if self.chance(0.8):
                kwargs["axes"] = tuple(range(x.ndim - rank, x.ndim))
        if reduction == "lp":
            kwargs["norm_type"] = self.one_of((1, 2, 3, 2.5, float("inf")))
        if reduction == "mean" and not name.startswith(("adaptive", "global")):
            kwargs |= {"count_include_pad": False} if self.chance(0.3) else {}
            kwargs |= {"divisor_override": self.number_in(1, 9)} if self.chance(0.2) else {}
        if reduction in ("max", "min", "stochastic") and self.chance(0.3):
            kwargs["return_indices"] = True
        if self.chance(0.2):
            kwargs["data_format"] = "channels_last"
        if self.chance(0.1):
            kwargs["dtype"] = self.one_of(("float32", "float64", "float16", "int64"))
        if self.chance(0.3):
            kwargs |= self.selected(x, weighs=reduction in ("sum", "mean"))
        return args, kwargs, reduction in EXACT or (whole and reduction in ("sum", "mean"))

    def settings(self, reduction: str, x: np.ndarray) -> dict[str, Any]:
        """Return what only this reduction takes."""
        if reduction == "quantile":
            return {"q": self.one_of((0, 0.25, 0.5, 0.9, 1.0, float(self.rng.random())))}
        if reduction == "stochastic":
            return {"generator": Seed(self.number_in(0, 99))}
        if reduction in ("logsumexp", "softmax") and self.chance(0.5):
            return {"r": self.one_of((0.5, 2.0, -1.0))}
        if reduction in ("std", "var") and self.chance(0.5):
            return {"correction": self.one_of((0, 1, 0.5, 3))}
        if reduction == "mode" and self.chance(0.5) and x.size:
            values = [v.item() for v in self.rng.choice(x.reshape(-1), 2)]
            return {"ignore": self.one_of((values[0], values, tuple(values))), "empty": self.number_in(0, 1)}
        return {}

    def unpool(self, name: str) -> tuple[list[Any], dict[str, Any], bool]:
        rank = int(name[-2])
        x = self.array(self.shape(rank), self.one_of(DTYPES), whole=True)
        kernel = self.number_in(1, 3)
        positions = int(np.prod([n * kernel for n in x.shape[-rank:]]))
        indices = self.rng.integers(0, max(1, positions), x.shape)
        return [x, indices, kernel], {}, True

    def fractional(self, name: str, *, tensors: bool) -> tuple[list[Any], dict[str, Any], bool]:
        rank = int(name[-2])
        dtypes = ("float32", "float64") if tensors else DTYPES  # PyTorch's operator has no others, or draws otherwise
        x = self.array(self.shape(rank), self.one_of(dtypes), whole=False)
        size = (
            {"output_size": self.per_axis(rank, 1, 4)}
            if self.chance(0.6)
            else {"output_ratio": self.one_of((0.4, 0.9))}
        )
        indices = {"return_indices": True} if self.chance(0.4) else {}
        draws: dict[str, Any] = {"rng": self.number_in(0, 99)}
        if tensors or self.chance(0.5):
            images = x.shape[0] if x.ndim == rank + 2 else 1
            draws = {"_random_samples": self.rng.random((images, x.shape[-rank - 1], rank)).astype(x.dtype)}
        return [x, self.per_axis(rank, 1, 3)], size | indices | draws, True

    def tokens(self) -> tuple[Any, dict[str, Any], bool]:
        """Return tokens in one of the layouts, with what says which of them count."""
        whole, dim = self.chance(0.5), self.one_of((1, 2, 7, 16, 33, 130))
        dtype = self.one_of(cases.FLOATS)
        kind = self.one_of(("mask", "lengths", "offsets", "segment_ids", "spans", "list", "none"))
        if kind == "list":
            lengths = [self.number_in(0, 20) for _ in range(self.number_in(1, 4))]
            return [self.array((n, dim), dtype, whole=whole) for n in lengths], {}, whole
        length = self.number_in(0, 300 if self.chance(0.1) else 30)
        batch = kind in ("mask", "lengths", "none") or (kind == "spans" and self.chance(0.5))
        lead = (self.number_in(0 if self.chance(0.1) else 1, 4),) if batch else ()
        x = self.array((*lead, length, dim), dtype, whole=whole)
        if kind == "mask":
            return x, {"mask": self.rng.random((*lead, length)) < 0.7}, whole
        if kind == "lengths":
            return x, {"lengths": self.rng.integers(0, length + 1, lead), "side": self.one_of(("left", "right"))}, whole
        inner = np.sort(self.rng.integers(0, length + 1, 4))
        if kind == "offsets":
            return x, {"offsets": [0, *inner.tolist(), length]}, whole
        if kind == "segment_ids":
            return x, {"segment_ids": np.sort(self.rng.integers(0, 5, length)), "num_segments": 6}, whole
        if kind == "spans":
            spans = np.sort(self.rng.integers(0, length + 1, (*lead, self.number_in(0, 9), 2)), -1)
            return x, {"spans": spans}, whole
        return x, {}, whole

    def token_pooling(self) -> tuple[list[Any], dict[str, Any], bool]:
        x, kwargs, whole = self.tokens()
        several = self.chance(0.3)
        names = [self.one_of(TOKEN_NAMES) for _ in range(self.number_in(1, 3) if several else 1)]
        exact = all(n in ("max", "min", "first", "last") or (n == "sum" and whole) for n in names)
        if self.chance(0.2) and "spans" not in kwargs:
            kwargs["exclude_prefix"] = self.number_in(0, 4)
        if self.chance(0.2):
            kwargs["empty"] = self.one_of((0.0, -1.0, float("inf")))
        return [x, names if several else names[0]], kwargs, exact

    def attention(self) -> tuple[list[Any], dict[str, Any], bool]:
        x, kwargs, _ = self.tokens()
        first = x[0] if isinstance(x, list) else x
        heads = () if self.chance(0.5) else (self.number_in(1, 3),)
        return [x, self.array((*heads, first.shape[-1]), first.dtype.name, whole=False)], kwargs, False

    def arguments(self, name: str, *, tensors: bool) -> tuple[list[Any], dict[str, Any], bool]:
        if name in frameworks.COMPAT:
            return frameworks.compat(self, name)
        if name in frameworks.MODULES:
            return frameworks.module(self, name)
        if name.startswith("max_unpool"):
            return self.unpool(name)
        if name.startswith("fractional"):
            return self.fractional(name, tensors=tensors)
        if name == "attention_pool":
            return self.attention()
        if name in ("pool_tokens", "PoolState", "TokenPooling"):
            return self.token_pooling()
        return self.windowed(name)

    def poisoned(self, args: list[Any], kwargs: dict[str, Any], name: str, *, tensors: bool) -> None:
        """Replace one to three arguments, or add some."""
        names = sorted({*kwargs, *KEYWORDS[name]} - set(frameworks.OF_LAYERS))
        for _ in range(self.number_in(1, 3)):
            value = self.one_of(HOSTILE_TENSORS if tensors and self.chance(0.4) else HOSTILE)
            if name in frameworks.MODULES:  # which take a tensor, and settings that are none
                value = self.one_of(SETTINGS)
            elif self.chance(0.25) or not names:
                args[self.number_in(0, len(args) - 1)] = value
                continue
            kwargs[self.one_of(names)] = value

    def call(self) -> Call:
        name = TURNS[self.number % len(TURNS)]
        tensors = name in frameworks.MODULES or (frameworks.TORCH and name != "PoolState" and self.chance(0.25))
        args, kwargs, exact = self.arguments(name, tensors=tensors)
        if tensors and kwargs.get("weights") is not None:
            kwargs.pop("divisor_override", None)  # is refused beside weights, but `explain` of tensors does not say so
        way = self.way(name, args, kwargs, tensors=tensors)
        hostile = self.chance(0.4)
        if hostile:
            self.poisoned(args, kwargs, name, tensors=tensors)
        elif self.chance(0.2) and way in ("plain", "vjp") and name not in WITHOUT_OUT:
            kwargs["out"] = OUT
        return Call(self.number, name, args, kwargs, way, hostile, exact, tensors)

    def way(self, name: str, args: list[Any], kwargs: dict[str, Any], *, tensors: bool) -> str:
        """Choose what is done around the call."""
        if name == "PoolState":
            return "state"
        if name == "TokenPooling":
            return "plain"
        recorded = tensors and isinstance(args[0], np.ndarray) and args[0].dtype.name in cases.FLOATS
        if name in frameworks.MODULES:
            return "autograd" if recorded and self.chance(0.4) else "plain"
        way = self.one_of(("plain", "plain", "vjp", "explain"))
        if way == "vjp" and name == "pool" and args[1] in cases.WITHOUT_GRADIENT:
            return "plain"
        if way == "vjp" and recorded and (name in OF_TOKENS or self.chance(0.5)):
            return "autograd"
        if tensors and way == "explain" and "empty" in kwargs:  # it refuses windows without input, `empty` or not
            return "plain"
        return "plain" if way == "vjp" and tensors and not recorded else way


# Whose elements can be made whole numbers.
WRITEABLE = [m for m in cases.MEMORY if m.build((2, 2, 2, 2), np.dtype(np.float32)).flags.writeable]


class Out:
    """Stands for an array of the result's shape, which fuzzer.py makes when it knows that."""

    def __repr__(self) -> str:
        return "<an array that fits>"


class Seed(int):
    """Stands for a generator, which fuzzer.py makes anew whenever the call is made."""


OUT = Out()
PUBLIC = [name for name in ap.__all__ if name not in ("vjp", "explain")]  # these two are ways to make a call
FUNCTIONS = [*PUBLIC, *frameworks.COMPAT, *frameworks.MODULES]
OF_TOKENS = ("pool_tokens", "attention_pool")  # whose `vjp` takes arrays only
TURNS = [*FUNCTIONS, *["pool"] * 2 * len(REDUCTIONS)]  # it has many reductions
WITHOUT_OUT = [
    n for n in FUNCTIONS if n.startswith(("max_unpool", "fractional")) or "oken" in n or n == "attention_pool"
] + [*frameworks.COMPAT, *frameworks.MODULES]


def _keywords(name: str) -> list[str]:
    import inspect

    layouts = ["mask", "lengths", "side", "offsets", "segment_ids", "num_segments", "spans"]
    if name == "PoolState":
        return [*layouts, "weights", "rows", "start"]
    if name == "TokenPooling":
        return [*layouts, "exclude_prefix", "weights", "empty"]
    if name not in PUBLIC:
        return frameworks.keywords(name)
    parameters = inspect.signature(getattr(ap, name)).parameters
    return [n for n in parameters if n not in ("x", "reduction", "query", "indices")]


KEYWORDS = {name: _keywords(name) for name in FUNCTIONS}


def make(seed: int, number: int) -> Call:
    """Return the call of this number."""
    return Maker(seed, number).call()
