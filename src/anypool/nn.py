"""PyTorch modules: every pooling of ``torch.nn`` on our kernels, and those that ``torch.nn`` lacks.

``MaxPool1d`` to ``FractionalMaxPool3d`` have the constructor, attributes, repr and state of the modules of that name in
``torch.nn``, of which they are subclasses. The others take any number of pooled axes: those behind ``(N, C)``.

Examples
--------
>>> import torch, anypool
>>> anypool.nn.MaxPool2d(3, stride=2, padding=1)(torch.zeros(1, 8, 12, 12)).shape
torch.Size([1, 8, 6, 6])
>>> anypool.nn.MinPool(2)(torch.arange(8.0).reshape(1, 1, 8))
tensor([[[0., 2., 4., 6.]]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import anypool
from anypool import tensors  # noqa: F401  so that the first tensor does not wait for it
from anypool.arguments import flag_argument, number_argument, shown
from anypool.nn_tokens import AttentionPool, AttentiveStatsPool, TokenPooling

# ---- those of torch.nn -----------------------------------------------------------------------------------------------


def _max(self: Any, input: Any) -> Any:
    return self._pool(
        input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
    )


def _avg(self: Any, input: Any) -> Any:
    return self._pool(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


def _avg_divided(self: Any, input: Any) -> Any:
    return self._pool(
        input,
        self.kernel_size,
        self.stride,
        self.padding,
        self.ceil_mode,
        self.count_include_pad,
        self.divisor_override,
    )


def _lp(self: Any, input: Any) -> Any:
    return self._pool(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


def _adaptive_max(self: Any, input: Any) -> Any:
    return self._pool(input, self.output_size, self.return_indices)


def _adaptive_avg(self: Any, input: Any) -> Any:
    return self._pool(input, self.output_size)


def _unpool(self: Any, input: Any, indices: Any, output_size: Sequence[int] | None = None) -> Any:
    return self._pool(input, indices, self.kernel_size, self.stride, self.padding, output_size)


def _fractional(self: Any, input: Any) -> Any:
    return self._pool(
        input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices, self._random_samples
    )


# Family: the function, and forward for each rank.
_FAMILIES: dict[str, tuple[str, dict[int, Callable[..., Any]]]] = {
    "MaxPool": ("max_pool", {1: _max, 2: _max, 3: _max}),
    "AvgPool": ("avg_pool", {1: _avg, 2: _avg_divided, 3: _avg_divided}),
    "LPPool": ("lp_pool", {1: _lp, 2: _lp, 3: _lp}),
    "AdaptiveMaxPool": ("adaptive_max_pool", {1: _adaptive_max, 2: _adaptive_max, 3: _adaptive_max}),
    "AdaptiveAvgPool": ("adaptive_avg_pool", {1: _adaptive_avg, 2: _adaptive_avg, 3: _adaptive_avg}),
    "MaxUnpool": ("max_unpool", {1: _unpool, 2: _unpool, 3: _unpool}),
    "FractionalMaxPool": ("fractional_max_pool", {2: _fractional, 3: _fractional}),
}


def _counterpart(family: str, function: str, rank: int, forward: Callable[..., Any]) -> type[nn.Module]:
    name = f"{family}{rank}d"
    theirs = getattr(nn, name)
    body = {
        "forward": forward,
        "_pool": staticmethod(getattr(anypool, f"{function}{rank}d")),
        "__module__": __name__,
        "__doc__": f"`torch.nn.{name}`, pooled by `anypool.{function}{rank}d`. Same arguments, repr and state.",
    }
    return type(name, (theirs,), body)


COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {}  # of torch.nn -> ours
for _family, (_function, _forwards) in _FAMILIES.items():
    for _rank, _forward in _forwards.items():
        _class = _counterpart(_family, _function, _rank, _forward)
        COUNTERPARTS[getattr(nn, _class.__name__)] = globals()[_class.__name__] = _class


_MOST_BLURRED = 1024  # the binomial coefficients of more taps are no float64


# ---- those that torch.nn lacks ---------------------------------------------------------------------------------------


def _spatial(x: Any, module: nn.Module) -> tuple[int, ...]:
    """Return the pooled axes: those behind (N, C)."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{type(module).__name__} takes a tensor, got {shown(x)} of type {type(x).__name__}")
    if x.ndim < 3:
        raise ValueError(
            f"{type(module).__name__} takes (N, C, …) with an axis to pool, got x of shape {tuple(x.shape)}"
        )
    return tuple(range(2, x.ndim))


class _Shown(nn.Module):
    """A module whose repr shows its arguments."""

    arguments: tuple[str, ...] = ()

    def extra_repr(self) -> str:
        """Return the arguments."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.arguments)


class _Windowed(_Shown):
    """One reduction of `anypool.pool` over all axes behind (N, C)."""

    reduction = ""
    arguments: tuple[str, ...] = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def _pooled(self, x: Any, **more: Any) -> Any:
        axes = _spatial(x, self)
        return anypool.pool(x, self.reduction, self.kernel_size, axes=axes, stride=self.stride, padding=self.padding,
                            dilation=self.dilation, ceil_mode=self.ceil_mode, **more)  # fmt: skip


class MinPool(_Windowed):
    """Smallest value of every window.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As in ``torch.nn.MaxPool2d``; an int is meant for every axis behind (N, C).
    return_indices : bool
        Also return where the winners are.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.MinPool(2)(torch.tensor([[[3.0, 1.0, 2.0, 5.0]]]))
    tensor([[[1., 2.]]])
    """

    reduction = "min"
    arguments = (*_Windowed.arguments, "return_indices")

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                 ceil_mode: bool = False, return_indices: bool = False) -> None:  # fmt: skip
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = return_indices

    def forward(self, x: Any) -> Any:
        """Pool."""
        return self._pooled(x, return_indices=self.return_indices)


class LogSumExpPool(_Windowed):
    """Smooth maximum of every window, ``log(sum of exp(r x)) / r``.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As in ``torch.nn.MaxPool2d``; an int is meant for every axis behind (N, C).
    r : float
        Sharpness: the larger, the closer to the maximum.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.LogSumExpPool(2, r=100.0)(torch.tensor([[[3.0, 1.0, 2.0, 5.0]]]))
    tensor([[[3., 5.]]])
    """

    reduction = "logsumexp"
    arguments = (*_Windowed.arguments, "r")

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                 ceil_mode: bool = False, r: float = 1.0) -> None:  # fmt: skip
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.r = r

    def forward(self, x: Any) -> Any:
        """Pool."""
        return self._pooled(x, r=self.r)


class GlobalAvgPool(_Shown):
    """Mean over all positions of each channel.

    Parameters
    ----------
    keepdims : bool
        Keep the pooled axes, with size 1.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.GlobalAvgPool(keepdims=False)(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[1.5000, 5.5000]])
    """

    arguments = ("keepdims",)

    def __init__(self, keepdims: bool = True) -> None:
        super().__init__()
        self.keepdims = keepdims

    def forward(self, x: Any) -> Any:
        """Pool."""
        return anypool.global_avg_pool(x, keepdims=self.keepdims)


class GlobalMaxPool(_Shown):
    """Largest value over all positions of each channel.

    Parameters
    ----------
    keepdims : bool
        Keep the pooled axes, with size 1.
    return_indices : bool
        Also return each winner's flat position.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.GlobalMaxPool(keepdims=False)(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[3., 7.]])
    """

    arguments = ("keepdims", "return_indices")

    def __init__(self, keepdims: bool = True, return_indices: bool = False) -> None:
        super().__init__()
        self.keepdims, self.return_indices = keepdims, return_indices

    def forward(self, x: Any) -> Any:
        """Pool."""
        return anypool.global_max_pool(x, return_indices=self.return_indices, keepdims=self.keepdims)


class GeM(nn.Module):
    """Generalised mean over all positions of each channel, ``(mean of max(x, eps)^p)^(1/p)``, with a learnable p.

    ``p = 1`` is the mean; as p grows, the result tends to the maximum. Powers are taken of ``x / max(x)``, in float32
    for halves: no p overflows, and every gradient is a number.

    Parameters
    ----------
    p : float
        The exponent to begin with.
    eps : float
        Smaller values count as this; their gradient is 0.
    learnable : bool
        Whether p is a parameter (of shape ``(1,)``) or a buffer.
    keepdims : bool
        Keep the pooled axes, with size 1.

    Notes
    -----
    Radenović, Tolias, Chum: "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.GeM(p=2.0, keepdims=False)(torch.tensor([[[1.0, 7.0]]])).item()
    5.0
    """

    p: torch.Tensor

    def __init__(self, p: float = 3.0, eps: float = 1e-6, learnable: bool = True, keepdims: bool = True) -> None:
        super().__init__()
        for name, number in (("p", p), ("eps", eps)):
            if not 0 < number_argument(name, number, "GeM") < 3e38:
                raise ValueError(f"{name} must be > 0 and a number of float32, got {shown(number)} (GeM)")
        value = torch.full((1,), float(p))
        if flag_argument("learnable", learnable, "GeM"):
            self.p = nn.Parameter(value)
        else:
            self.register_buffer("p", value)
        self.eps, self.keepdims = eps, keepdims

    def extra_repr(self) -> str:
        """Return the arguments."""
        learnable = isinstance(self.p, nn.Parameter)
        return f"p={self.p.item():g}, eps={self.eps:g}, learnable={learnable}, keepdims={self.keepdims}"

    def forward(self, x: Any) -> Any:
        """Pool."""
        _spatial(x, self)
        wide = x.float() if x.element_size() < 4 else x
        wide = wide.clamp(min=self.eps)
        largest = anypool.global_max_pool(wide.detach())  # y is homogeneous in x: a constant factor changes no gradient
        p = self.p.to(wide.dtype)
        y = largest * anypool.global_avg_pool((wide / largest) ** p) ** (1 / p)
        y = y.to(x.dtype)
        return y if self.keepdims else y.flatten(1)


class _AvgMax(_Shown):
    arguments = ("output_size",)

    def __init__(self, output_size: Any = 1) -> None:
        super().__init__()
        self.output_size = output_size

    def _both(self, x: Any) -> tuple[Any, Any]:
        rank = len(_spatial(x, self))
        if rank > 3:
            raise ValueError(f"{type(self).__name__} pools 1 to 3 axes, got x of shape {tuple(x.shape)}")
        return tuple(getattr(anypool, f"adaptive_{kind}_pool{rank}d")(x, self.output_size) for kind in ("avg", "max"))  # type: ignore[return-value]


class AvgMaxPool(_AvgMax):
    """Half the sum of adaptive average and adaptive max pooling, timm's ``"avgmax"``.

    Parameters
    ----------
    output_size : int, None, or sequence of them
        As in ``torch.nn.AdaptiveAvgPool2d``.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.AvgMaxPool()(torch.tensor([[[1.0, 7.0]]]))
    tensor([[[5.5000]]])
    """

    def forward(self, x: Any) -> Any:
        """Pool."""
        avg, largest = self._both(x)
        return 0.5 * (avg + largest)


class CatAvgMaxPool(_AvgMax):
    """Adaptive average and adaptive max pooling, one behind the other along the channels, timm's ``"catavgmax"``.

    Parameters
    ----------
    output_size : int, None, or sequence of them
        As in ``torch.nn.AdaptiveAvgPool2d``.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.CatAvgMaxPool()(torch.tensor([[[1.0, 7.0]]]))
    tensor([[[4.],
             [7.]]])
    """

    def forward(self, x: Any) -> Any:
        """Pool."""
        return torch.cat(self._both(x), 1)


class BlurPool(_Shown):
    """A binomial low-pass filter before every ``stride``-th element is kept: shrinks without aliasing.

    Parameters
    ----------
    kernel_size : int
        Taps of the filter on each axis behind (N, C): the binomial coefficients, divided by their sum.
    stride : int
        Which elements are kept.
    padding_mode : "reflect", "replicate" or "constant"
        What lies around the input, ``(kernel_size - 1) // 2`` elements before and the others behind.

    Notes
    -----
    Zhang: "Making Convolutional Networks Shift-Invariant Again", 2019. The filter is applied by PyTorch's convolution.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.BlurPool()(torch.tensor([[[0.0, 4.0, 0.0, 4.0]]]))
    tensor([[[2., 2.]]])
    """

    arguments = ("kernel_size", "stride", "padding_mode")

    def __init__(self, kernel_size: int = 3, stride: int = 2, padding_mode: str = "reflect") -> None:
        super().__init__()
        for name, value in (("kernel_size", kernel_size), ("stride", stride)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an int >= 1, got {shown(value)}")
        if kernel_size > _MOST_BLURRED:
            raise ValueError(f"kernel_size must be <= {_MOST_BLURRED}, got {kernel_size}")
        if padding_mode not in ("reflect", "replicate", "constant"):
            raise ValueError(f'padding_mode must be "reflect", "replicate" or "constant", got {padding_mode!r}')
        self.kernel_size, self.stride, self.padding_mode = kernel_size, stride, padding_mode
        taps = torch.ones(1, dtype=torch.float64)
        for _ in range(kernel_size - 1):
            taps = functional.pad(taps, (0, 1)) + functional.pad(taps, (1, 0))
        self.register_buffer("taps", (taps / taps.sum()).float(), persistent=False)

    def forward(self, x: Any) -> Any:
        """Pool."""
        axes = _spatial(x, self)
        rank, channels = len(axes), x.shape[1]
        if rank > 3:
            raise ValueError(f"BlurPool pools 1 to 3 axes, got x of shape {tuple(x.shape)}")
        before = (self.kernel_size - 1) // 2
        after = self.kernel_size - 1 - before
        taps = self.taps.to(x.dtype)  # type: ignore[operator]
        weight = taps
        for _ in range(rank - 1):
            weight = weight.unsqueeze(-1) * taps
        x = functional.pad(x, (before, after) * rank, mode=self.padding_mode)
        convolve = getattr(functional, f"conv{rank}d")
        return convolve(x, weight.expand(channels, 1, *weight.shape), stride=self.stride, groups=channels)


class MaxBlurPool(_Shown):
    """Max pooling without aliasing: windows one apart, then a `BlurPool` that keeps every ``stride``-th.

    Parameters
    ----------
    kernel_size : int
        Taps of the max window on each axis behind (N, C).
    stride : int
        Of the result.
    blur_size : int
        Taps of the filter.
    padding_mode : str
        As in `BlurPool`.

    Examples
    --------
    >>> import torch, anypool
    >>> anypool.nn.MaxBlurPool()(torch.tensor([[[0.0, 4.0, 0.0, 4.0, 0.0]]]))
    tensor([[[4., 4.]]])
    """

    arguments = ("kernel_size", "stride")

    def __init__(
        self, kernel_size: int = 2, stride: int = 2, blur_size: int = 3, padding_mode: str = "reflect"
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.blur = BlurPool(blur_size, stride, padding_mode)

    def forward(self, x: Any) -> Any:
        """Pool."""
        return self.blur(anypool.pool(x, "max", self.kernel_size, axes=_spatial(x, self), stride=1))


__all__ = [
    *(c.__name__ for c in COUNTERPARTS.values()),
    "AttentionPool",
    "AttentiveStatsPool",
    "AvgMaxPool",
    "BlurPool",
    "CatAvgMaxPool",
    "GeM",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "LogSumExpPool",
    "MaxBlurPool",
    "MinPool",
    "TokenPooling",
]
