"""PyTorch modules that pool tokens: `TokenPooling`, `AttentionPool`, `AttentiveStatsPool`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anypool import token_config
from anypool.arguments import flag_argument
from anypool.attention import attention_pool
from anypool.tokens import pool_tokens
from anypool.windows import size_argument


class TokenPooling(nn.Module):
    """A drop-in for sentence-transformers' `Pooling`: the same features in, the same ``sentence_embedding`` out.

    Parameters
    ----------
    config : path, mapping, mode name, list of mode names or `anypool.TokenPooling`
        As in `anypool.TokenPooling.from_sentence_transformers`; a name is one of sentence-transformers' modes.
    include_prompt : bool, optional
        Overrides the configuration: if False, ``prompt_length`` tokens of each row are left out.
    empty : float
        The embedding of a row without a token.

    Notes
    -----
    ``forward`` takes ``token_embeddings`` ``(B, L, D)`` with ``attention_mask``, or flattened ``(1, T, D)`` with
    ``cu_seq_lens_q``; both give the same bits. It uses ``prompt_length``, ``cls_token_embeddings`` and
    ``token_weights_sum`` as sentence-transformers does.

    Examples
    --------
    >>> import torch
    >>> from anypool.nn import TokenPooling
    >>> x, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    >>> TokenPooling("mean")({"token_embeddings": x, "attention_mask": mask})["sentence_embedding"]
    tensor([[2.]])
    """

    def __init__(self, config: Any, *, include_prompt: bool | None = None, empty: float = math.nan) -> None:
        super().__init__()
        if isinstance(config, token_config.TokenPooling):
            self.pooling = config
        elif isinstance(config, (list, tuple)) or config in list(token_config.MODES["sentence-transformers"]):
            self.pooling = token_config.TokenPooling.from_mode(config, "sentence-transformers")
        elif isinstance(config, str) and not os.path.exists(config):
            modes = ", ".join(token_config.MODES["sentence-transformers"])
            raise FileNotFoundError(f"config must be a mode ({modes}) or a model's folder, got {config!r}")
        else:
            self.pooling = token_config.TokenPooling.from_sentence_transformers(config)
        prompt = self.pooling.include_prompt if include_prompt is None else include_prompt
        self.include_prompt = flag_argument("include_prompt", prompt, "TokenPooling")
        self.empty = empty

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding`` to the features."""
        x = features["token_embeddings"]
        layout: dict[str, Any] = {"empty": self.empty}
        if "cu_seq_lens_q" in features:
            x, layout["offsets"] = x.squeeze(0), features["cu_seq_lens_q"]
        elif "attention_mask" in features and not isinstance(features["attention_mask"], torch.Tensor):
            raise TypeError(f"attention_mask must be a tensor, got {type(features['attention_mask']).__name__}")
        elif "attention_mask" in features and features["attention_mask"].size(-1) == x.size(1):
            layout["mask"] = features["attention_mask"]
        if not self.include_prompt and "prompt_length" in features:
            given = features["prompt_length"]
            layout["exclude_prefix"] = int(given[0].item()) if isinstance(given, torch.Tensor) else int(given)
        names = list(self.pooling.reduction)
        if "cls_token_embeddings" not in features and "token_weights_sum" not in features:
            features["sentence_embedding"] = pool_tokens(x, names, **layout)
        else:
            features["sentence_embedding"] = torch.cat([self._one(n, x, features, layout) for n in names], -1)
        return features

    @staticmethod
    def _one(name: str, x: Any, features: dict[str, Any], layout: dict[str, Any]) -> torch.Tensor:
        if name == "first" and "cls_token_embeddings" in features:
            return features["cls_token_embeddings"]  # type: ignore[no-any-return]
        total = features.get("token_weights_sum")
        if total is None or name not in ("mean", "mean_sqrt_len", "weightedmean"):
            return pool_tokens(x, name, **layout)  # type: ignore[no-any-return]
        if name == "weightedmean":
            raise NotImplementedError("token_weights_sum with weightedmean: weights of two kinds for one token")
        by = total.clamp(min=1e-9).unsqueeze(-1)  # the embeddings have been multiplied by their weights before
        return pool_tokens(x, "sum", **layout) / (by if name == "mean" else by.sqrt())  # type: ignore[no-any-return]

    def get_embedding_dimension(self) -> int | None:
        """Return the features of an embedding, if the configuration says how many a token has."""
        return None if self.pooling.dimension is None else self.pooling.dimension * len(self.pooling.reduction)

    get_sentence_embedding_dimension = get_embedding_dimension

    def get_config_dict(self) -> dict[str, Any]:
        """Return sentence-transformers' newer schema."""
        return self.pooling.to_dict() | {"include_prompt": self.include_prompt}

    def save(self, output_path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        """Write ``config.json``, as sentence-transformers asks its modules to."""
        Path(output_path, "config.json").write_text(json.dumps(self.get_config_dict(), indent=2), encoding="utf-8")

    def extra_repr(self) -> str:
        """Return what is pooled, and who said so."""
        return str(self.pooling)


class AttentionPool(nn.Module):
    """Pooling by learned queries: ``y_h = Σ softmax(scale · q_h · k_t) v_t``; keys and values may be projected.

    Parameters
    ----------
    dim : int
        Features of a token.
    heads : int
        Queries; each gives a vector.
    project_keys, project_values : bool
        Whether keys and values are linear in the tokens, or the tokens themselves.
    value_dim : int, optional
        Features of a projected value; default dim.
    scale : float, optional
        Default ``1 / √dim``.
    flatten : bool
        Return ``(…, heads · value_dim)`` instead of ``(…, heads, value_dim)``.

    Examples
    --------
    >>> import torch
    >>> from anypool.nn import AttentionPool
    >>> AttentionPool(8, heads=2)(torch.zeros(3, 5, 8), lengths=[5, 2, 1]).shape
    torch.Size([3, 16])
    """

    def __init__(self, dim: int, heads: int = 1, *, project_keys: bool = False, project_values: bool = False,
                 value_dim: int | None = None, scale: float | None = None, flatten: bool = True) -> None:  # fmt: skip
        super().__init__()
        if value_dim is not None and not project_values:
            raise ValueError("value_dim needs project_values=True: otherwise values are the tokens themselves")
        at = "AttentionPool"
        for name, size in (("dim", dim), ("heads", heads), *((("value_dim", value_dim),) if value_dim else ())):
            size_argument(name, size, at, at_least=1)
        self.dim, self.heads, self.scale = dim, heads, scale
        self.flatten = flag_argument("flatten", flatten, at)
        self.query = nn.Parameter(torch.empty(heads, dim))
        self.key = nn.Linear(dim, dim, bias=False) if project_keys else None
        self.value = nn.Linear(dim, value_dim or dim) if project_values else None
        nn.init.normal_(self.query, std=dim**-0.5)

    def forward(self, x: torch.Tensor, **layout: Any) -> torch.Tensor:
        """Pool x; ``layout`` is as in `anypool.attention_pool`: mask, lengths, offsets, spans, …"""
        if isinstance(x, torch.Tensor) and x.dim() and x.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} features, got {tuple(x.shape)}")
        keys = x if self.key is None else self.key(x)
        values = self.value(x) if self.value is not None else x if self.key is not None else None
        y: torch.Tensor = attention_pool(keys, self.query.to(keys.dtype), values=values, scale=self.scale, **layout)
        return y.flatten(-2) if self.flatten else y

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"dim={self.dim}, heads={self.heads}"


class AttentiveStatsPool(nn.Module):
    """Weighted mean and standard deviation of the tokens, side by side; a small network gives the weights.

    ``e_t = v · tanh(W x_t + b)``, ``w = softmax(e)`` over a row's tokens, ``y = [Σ w x, √(Σ w (x - mean)²)]``: the
    attentive statistics pooling of speech frames (Okabe, Koshinaka and Shinoda, 2018).

    Parameters
    ----------
    dim : int
        Features of a token.
    bottleneck : int
        Units of the hidden layer.

    Examples
    --------
    >>> import torch
    >>> from anypool.nn import AttentiveStatsPool
    >>> AttentiveStatsPool(8)(torch.randn(3, 5, 8), lengths=[5, 2, 1]).shape
    torch.Size([3, 16])
    """

    def __init__(self, dim: int, bottleneck: int = 128) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("bottleneck", bottleneck)):
            size_argument(name, size, "AttentiveStatsPool", at_least=1)
        self.dim, self.bottleneck = dim, bottleneck
        self.score = nn.Sequential(nn.Linear(dim, bottleneck), nn.Tanh(), nn.Linear(bottleneck, 1, bias=False))

    def forward(self, x: torch.Tensor, **layout: Any) -> torch.Tensor:
        """Pool x; ``layout`` is as in `anypool.pool_tokens`: mask, lengths, offsets, … but not spans, which overlap."""
        if layout.get("spans") is not None:
            raise ValueError("AttentiveStatsPool takes no spans: a token would need a weight in each")
        e = self.score(x).squeeze(-1)
        # A softmax needs no sum: the weighted mean and std divide by it. The largest score of a row, which may be any
        # number as far as the result goes, keeps exp in its range; padding is never read.
        top = pool_tokens(e.detach().unsqueeze(-1), "max", **layout | {"empty": 0.0})
        weights = (e - _spread(top.squeeze(-1), e, layout)).clamp(max=0).exp()
        y: torch.Tensor = pool_tokens(x, ["mean", "std"], weights=weights, **layout)
        return y

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"dim={self.dim}, bottleneck={self.bottleneck}"


def _spread(top: torch.Tensor, e: torch.Tensor, layout: dict[str, Any]) -> torch.Tensor:
    """Return each row's number beside its tokens."""
    if (offsets := layout.get("offsets")) is not None:
        given = torch.as_tensor(offsets)
        return top.repeat_interleave(given.diff(), output_size=e.shape[0])
    if (ids := layout.get("segment_ids")) is not None:
        return top[torch.as_tensor(ids).long()]
    return top.unsqueeze(-1)
