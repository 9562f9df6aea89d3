"""Existing PyTorch models on our kernels, in one line, and back again.

`accelerate` swaps the pooling modules of one model. `install` also routes the calls of ``torch.nn.functional``, for
models that pool in their ``forward``. Neither touches parameters, buffers, hooks or names.

Examples
--------
>>> import torch, anypool
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2))
>>> report = anypool.torch.accelerate(model)
>>> print(report)
1 pooling module runs on anypool:
  1  MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
>>> report.restore()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from threading import RLock
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_unary

import anypool
from anypool import tensors  # noqa: F401  keeps PyTorch's own functions in mind before any is routed
from anypool.nn import COUNTERPARTS

_OURS = set(COUNTERPARTS.values())
_NO_FASTER = ("MaxUnpool", "FractionalMaxPool")  # PyTorch's operator runs there, if indices differ


@dataclass
class Report:
    """What `accelerate` did: ``print`` it; ``restore()`` undoes it. As a context manager it does so at the end."""

    replaced: dict[str, nn.Module] = field(default_factory=dict)
    kept: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)  # the reason beside it
    before: dict[str, type[nn.Module]] = field(default_factory=dict, repr=False)

    def restore(self) -> None:
        """Give every module its own class back. Twice does no harm."""
        for name, module in self.replaced.items():
            if type(module) in _OURS:
                module.__class__ = self.before[name]
        self.replaced = {}

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __str__(self) -> str:
        n = len(self.replaced)
        lines = [f"{n} pooling module{' runs' if n == 1 else 's run'} on anypool{':' if n else '.'}"]
        width = max((len(name or "(model)") for name in (*self.replaced, *self.kept)), default=0)
        lines += [f"  {name or '(model)':{width}}  {module}" for name, module in self.replaced.items()]
        if self.kept:
            lines.append(f"{len(self.kept)} left as {'it is' if len(self.kept) == 1 else 'they are'}:")
            lines += [
                f"  {name or '(model)':{width}}  {type(module).__name__}: {why}"
                for name, (module, why) in self.kept.items()
            ]
        if not self.replaced and not self.kept:
            lines.append("A model that calls torch.nn.functional in its forward needs anypool.torch.install().")
        return "\n".join(lines)


def _why_not(module: nn.Module) -> str | None:
    """Return why a pooling module keeps its class, or None; modules that do not pool are not asked."""
    kind = type(module)
    if kind.__name__.startswith(_NO_FASTER) and kind in COUNTERPARTS:
        return "anypool has nothing faster for it"
    if kind in _OURS:
        return "runs on anypool already"
    if kind not in COUNTERPARTS:
        return f"a subclass of torch.nn.{next(c for c in kind.__mro__ if c in COUNTERPARTS).__name__}"
    if "forward" in vars(module):
        return "its forward was replaced"
    return None


def _pools(module: nn.Module) -> bool:
    return isinstance(module, tuple(COUNTERPARTS))


def accelerate(model: nn.Module) -> Report:
    """Swap the pooling modules of a model for ours, in place.

    The modules stay the same objects, with their hooks, names, attributes and mode: only their class changes, from
    ``torch.nn.MaxPool2d`` to ``anypool.nn.MaxPool2d``, a subclass of it. Subclasses are left alone, and so is a module
    whose ``forward`` somebody has replaced. ``state_dict`` does not change.

    Parameters
    ----------
    model : torch.nn.Module
        Any module; a single pooling module too.

    Returns
    -------
    Report
        ``replaced``, ``kept`` (with the reasons), and ``restore()``.

    Raises
    ------
    TypeError
        If model is not a module.

    Examples
    --------
    >>> import torch, anypool
    >>> model = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.ReLU())
    >>> with anypool.torch.accelerate(model):
    ...     type(model[0]).__module__
    'anypool.nn'
    >>> type(model[0]).__module__
    'torch.nn.modules.pooling'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__module__}.{type(model).__name__}")
    report = Report()
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if getattr(module, "original_name", "") in {c.__name__ for c in COUNTERPARTS}:
                report.kept[name] = (module, "compiled by TorchScript")
            continue
        if not _pools(module):
            continue
        if (why := _why_not(module)) is not None:
            report.kept[name] = (module, why)
            continue
        report.before[name] = type(module)
        report.replaced[name] = module
        module.__class__ = COUNTERPARTS[type(module)]
    return report


# ---- torch.nn.functional ---------------------------------------------------------------------------------------------


def _knows_functions(kind: Any) -> bool:
    """Whether a class has a `__torch_function__` of its own, which may know PyTorch's functions and not ours."""
    asked: Any = kind.__torch_function__
    inherited: Any = torch.Tensor.__torch_function__
    off = asked is torch._C._disabled_torch_function_impl
    return not off and getattr(asked, "__func__", asked) is not inherited.__func__


def _routed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    ours = getattr(anypool, name)
    written_in_python = isinstance(original, FunctionType)  # and looks its own name up, which is ours now
    indices = {"max_pool": 6, "adaptive_max_pool": 2}.get(name[:-2], 0)  # where the argument return_indices stands

    def pool(*args: Any, **kwargs: Any) -> Any:
        if "input" in kwargs and not args:
            args = (kwargs.pop("input"),)
        asks = bool(args) and has_torch_function_unary(args[0])
        if args and isinstance(args[0], torch.Tensor) and not asks:
            return ours(*args, **kwargs)
        with_indices = indices and (kwargs.get("return_indices", False) or (len(args) > indices and args[indices]))
        if asks and written_in_python and not with_indices and _knows_functions(type(args[0])):
            return handle_torch_function(original, args[:1], *args, **kwargs)
        return original(*args, **kwargs)

    pool.__name__ = pool.__qualname__ = name
    pool.__module__ = __name__
    pool.__doc__ = f"`torch.nn.functional.{name}`, routed to `anypool.{name}` by `anypool.torch.install`."
    return pool


FUNCTIONS = tuple(
    f"{family}{rank}d"
    for family in ("max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool")
    for rank in (1, 2, 3)
)
_installed: dict[str, tuple[Any, Any]] = {}  # name -> (PyTorch's function, what stands there instead)
_wanted: set[int] = set()  # the installations that have not ended
_numbers = count()
_lock = RLock()


class Installation:
    """What `install` returns: as a context manager it ends when the block does, others go on."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        self.__enter__()

    def __enter__(self) -> Installation:
        with _lock:
            _wanted.add(self._number)
            for name in FUNCTIONS if not _installed else ():
                original = getattr(functional, name)
                _installed[name] = (original, _routed(name, original))
                setattr(functional, name, _installed[name][1])
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            _wanted.discard(self._number)
            if not _wanted:
                uninstall()

    def __repr__(self) -> str:
        return f"<anypool.torch.install: {'on' if _installed else 'off'}, {len(FUNCTIONS)} functions>"


def install() -> Installation:
    """Route the pooling functions of ``torch.nn.functional`` to ours, everywhere in this process.

    The modules of ``torch.nn`` call them, so they are routed as well. A name that was imported before, as by ``from
    torch.nn.functional import max_pool2d``, still means PyTorch's function. Twice does no harm.

    Returns
    -------
    Installation
        A context manager: ``with anypool.torch.install(): …`` ends as it began, also inside another one or beside it.

    Examples
    --------
    >>> import torch, anypool
    >>> with anypool.torch.install():
    ...     torch.nn.functional.max_pool1d(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 2)
    tensor([[4., 3.]])
    """
    return Installation()


def uninstall() -> None:
    """Give ``torch.nn.functional`` its own functions back. Without `install`, and twice, it does nothing."""
    with _lock:
        for name, (original, ours) in _installed.items():
            if getattr(functional, name) is ours:  # else somebody else has put theirs there since
                setattr(functional, name, original)
        _installed.clear()
        _wanted.clear()


__all__ = ["Installation", "Report", "accelerate", "install", "uninstall"]
