"""One PyTorch model before and after `anypool.torch`: what each pooling takes, the whole model, what autograd saves."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import anypool as ap
from anypool.cli.files import InputError
from anypool.nn import COUNTERPARTS

ROUNDS = 5  # at least so many, and as many as fit into the time
BEFORE, AFTER = "before", "after"


@dataclass
class Layer:
    """One pooling of a model: its name, the shape it is given, and its seconds in both states."""

    name: str
    kind: str
    shape: tuple[int, ...]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Comparison:
    """One model, measured in both states in turn."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    memory_format: str
    threads: int
    seconds: dict[str, float]
    layers: list[Layer]
    saved_bytes: dict[str, int]
    difference: float  # the largest of the outputs, as a part of the largest output

    def pooling(self, state: str) -> float:
        """Seconds in all poolings together."""
        return sum(layer.seconds[state] for layer in self.layers)

    def share(self, state: str) -> float:
        """The poolings' part of the whole model's time."""
        return self.pooling(state) / self.seconds[state]

    @property
    def speed_up(self) -> float:
        """How many times as fast the whole model is after."""
        return self.seconds[BEFORE] / self.seconds[AFTER]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain numbers, strings, lists."""
        layers = [{"name": v.name, "kind": v.kind, "shape": list(v.shape), "seconds": v.seconds} for v in self.layers]
        found = {k: v for k, v in vars(self).items() if k != "layers"}
        return found | {"shape": list(self.shape), "layers": layers, "speed_up": self.speed_up}

    def __str__(self) -> str:
        head = (
            f"{self.name}, {'×'.join(map(str, self.shape))} {self.dtype} {self.memory_format}, {self.threads} threads"
        )
        rows: list[tuple[str, ...]] = [("pooling", "input", "before", "after", "")]
        rows += [
            (f"{v.name} ({v.kind})", "×".join(map(str, v.shape)), _ms(v.seconds[BEFORE]), _ms(v.seconds[AFTER]),
             _times(v.seconds[BEFORE] / v.seconds[AFTER]))
            for v in self.layers
        ]  # fmt: skip
        if self.layers:
            both = [self.pooling(s) for s in (BEFORE, AFTER)]
            rows.append(("all poolings", "", *map(_ms, both), _times(both[0] / both[1])))
        rows.append(("whole model", "", *(_ms(self.seconds[s]) for s in (BEFORE, AFTER)), _times(self.speed_up)))
        rows.append(("  of it pooling", "", *(f"{100 * self.share(s):.1f} %" for s in (BEFORE, AFTER)), ""))
        saved = [f"{self.saved_bytes[s] / 1e6:.1f} MB" for s in (BEFORE, AFTER)]
        rows.append(("saved for backward", "", *saved, ""))
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        lines = [
            f"  {r[0]:<{widths[0]}}  {r[1]:<{widths[1]}}  {r[2]:>{widths[2]}}  {r[3]:>{widths[3]}}  {r[4]}".rstrip()
            for r in rows
        ]
        return "\n".join(
            [head, *lines, f"  largest difference of the outputs: {self.difference:.1e} of the largest output"]
        )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{1e3 * seconds:.0f} ms"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def load(source: str, *, trust: bool = False) -> Any:
    """Return the model that ``module:callable`` makes, or that a file of ``torch.save`` holds, in evaluation mode.

    A whole model in a file is a pickle, and loading a pickle runs code that it names: so ``trust`` is asked for.
    """
    if Path(source).is_file():
        if not trust:
            raise InputError(
                f"MODEL {source} is a file: loading it runs code that it names; if you trust it, add --trust"
            )
        try:
            model = torch.load(source, weights_only=False)
        except Exception as error:
            raise InputError(f"{source}: not a model of torch.save: {error}") from None
    else:
        module, _, name = source.partition(":")
        if not name:
            raise InputError(f"MODEL must be a file of torch.save, or module:callable, got {source}")
        if (here := os.getcwd()) not in sys.path:  # as python -m does
            sys.path.insert(0, here)
        try:
            model = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"MODEL {source}: {error}") from None
        model = model if isinstance(model, torch.nn.Module) else model()
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"MODEL must be a torch.nn.Module, got {type(model).__name__} from {source}")
    return model.eval()


@contextmanager
def state(model: Any, name: str) -> Iterator[None]:
    """Be before, or after."""
    with ExitStack() as stack:
        if name == AFTER:
            stack.enter_context(ap.torch.accelerate(model))
            stack.enter_context(ap.torch.install())
        yield


class Clock:
    """Notes every pooling of a run: those that are modules, and calls of functions outside of such modules."""

    def __init__(self, model: Any) -> None:
        self.model, self._inside = model, 0
        self.seen: list[tuple[str, str, tuple[int, ...], float]] = []  # name, kind, shape of the input, seconds
        self._pooling: Any = tuple(COUNTERPARTS)

    def __enter__(self) -> Clock:
        self._handles, self._functions = [], {}
        for name, module in self.model.named_modules():
            if isinstance(module, self._pooling):
                self._handles.append(module.register_forward_pre_hook(self._begin))
                self._handles.append(module.register_forward_hook(self._end(name)))
        for name in ap.torch.FUNCTIONS:
            self._functions[name] = function = getattr(functional, name)
            setattr(functional, name, self._timed(name, function))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for name, function in self._functions.items():
            setattr(functional, name, function)

    def _begin(self, *_: Any) -> None:
        self._inside += 1
        self._start = time.perf_counter()

    def _end(self, name: str) -> Callable[..., None]:
        def note(module: Any, args: Any, _: Any) -> None:
            took = time.perf_counter() - self._start
            self._inside -= 1
            self.seen.append((name, type(module).__name__, tuple(args[0].shape), took))

        return note

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside += 1
            start = time.perf_counter()
            try:
                y = function(*args, **kwargs)
                took = time.perf_counter() - start
            finally:
                self._inside -= 1
            x = args[0] if args else kwargs["input"]
            number = sum(kind == name for _, kind, _, _ in self.seen) + 1
            self.seen.append((f"call {number}", name, tuple(x.shape), took))
            return y

        return call


def compare(name: str, model: Any, x: Any, seconds: float = 4.0) -> Comparison:
    """Measure a model in both states, in turn, for about so many seconds.

    Times are the shortest of several: whatever else a machine does only ever adds to them.
    """
    total: dict[str, list[float]] = {BEFORE: [], AFTER: []}
    pooled: dict[str, list[list[float]]] = {BEFORE: [], AFTER: []}
    outputs: dict[str, Any] = {}
    layers: list[Layer] = []
    with torch.inference_mode():
        for at in (BEFORE, AFTER):
            with state(model, at):
                outputs[at] = _tensor(model(x))
        end = time.perf_counter() + seconds
        order = [BEFORE, AFTER]
        while len(total[AFTER]) < ROUNDS or time.perf_counter() < end:
            for at in order:
                with state(model, at):
                    with Clock(model) as clock:
                        model(x)
                    start = time.perf_counter()
                    model(x)
                    total[at].append(time.perf_counter() - start)
                layers = layers or [Layer(n, kind, shape) for n, kind, shape, _ in clock.seen]
                pooled[at].append([took for *_, took in clock.seen])
            order.reverse()
    for at in (BEFORE, AFTER):
        for layer, times in zip(layers, zip(*pooled[at], strict=True), strict=True):
            layer.seconds[at] = min(times)
    largest = outputs[BEFORE].abs().max().item() or 1.0
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return Comparison(
        name, tuple(x.shape), str(x.dtype).removeprefix("torch."), "channels_last" if last else "channels_first",
        torch.get_num_threads(), {s: min(t) for s, t in total.items()}, layers,
        {s: _saved(model, x, s) for s in (BEFORE, AFTER)},
        (outputs[BEFORE] - outputs[AFTER]).abs().max().item() / largest,
    )  # fmt: skip


def _tensor(y: Any) -> Any:
    """Return the first tensor of what a model returns."""
    if isinstance(y, dict):
        y = next(iter(y.values()))
    return _tensor(y[0]) if isinstance(y, (tuple, list)) else y.double()


def _saved(model: Any, x: Any, at: str) -> int:
    """Return the bytes that autograd keeps for a backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(t: Any) -> Any:
        place = t.untyped_storage()
        if place.data_ptr() not in own:
            kept[place.data_ptr()] = place.nbytes()
        return t

    with state(model, at), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return sum(kept.values())


def picture(found: Comparison, target: Any, form: str) -> None:
    """Draw every pooling's time before and after, and the whole model's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 1.8 + 0.32 * max(4, len(found.layers))), width_ratios=(3, 1), layout="constrained"
    )
    places = range(len(found.layers))
    for offset, at, colour in ((-0.2, BEFORE, "#b9b9b9"), (0.2, AFTER, "#1f77b4")):
        label = "PyTorch" if at == BEFORE else "anypool"
        values = [1e3 * v.seconds[at] for v in found.layers]
        left.barh([p + offset for p in places], values, 0.4, color=colour, label=label)
        whole, pooled = 1e3 * found.seconds[at], 1e3 * found.pooling(at)
        right.bar(label, whole - pooled, color="#e5e5e5")
        right.bar(label, pooled, bottom=whole - pooled, color=colour)
        right.annotate(f"{whole:.3g} ms\n{100 * found.share(at):.1f} % pooling", (label, whole), ha="center",
                       xytext=(0, 3), textcoords="offset points", fontsize=9)  # fmt: skip
    left.set_yticks(list(places), [f"{v.name}  {v.kind}  {'×'.join(map(str, v.shape[1:]))}" for v in found.layers])
    left.invert_yaxis()
    left.set(title="each pooling", xlabel="ms")
    left.legend(frameon=False)
    right.set(title=f"whole model, {found.speed_up:.2f}×", ylabel="ms")
    right.margins(y=0.2)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{found.name}, {'×'.join(map(str, found.shape))} {found.dtype} {found.memory_format}")
    figure.savefig(target, dpi=120, format=form)
    pyplot.close(figure)
