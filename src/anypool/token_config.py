"""`TokenPooling`: how a model's token vectors are pooled, as its configuration says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anypool.arguments import flag_argument, shown
from anypool.token_reductions import names_of
from anypool.tokens import pool_tokens
from anypool.windows import size_argument

# The names that others use, and ours. None: not a pooling to one vector, and why.
MODES: dict[str, dict[str, str | None]] = {
    "sentence-transformers": {
        "cls": "first",
        "max": "max",
        "mean": "mean",
        "mean_sqrt_len_tokens": "mean_sqrt_len",
        "weightedmean": "weightedmean",
        "lasttoken": "last",
    },
    "text-embeddings-inference": {"cls": "first", "mean": "mean", "last-token": "last", "splade": None},
    "fastembed": {"CLS": "first", "MEAN": "mean", "LAST_TOKEN": "last", "DISABLED": None},
    "vllm": {"CLS": "first", "LAST": "last", "MEAN": "mean", "ALL": None, "STEP": None},
}
# sentence-transformers' older schema: a flag for each mode, in the order in which results stand side by side.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_DIMENSIONS = ("embedding_dimension", "word_embedding_dimension")


@dataclass(frozen=True)
class TokenPooling:
    """A pooling of tokens that can be called, written down and compared.

    Attributes
    ----------
    reduction : tuple of str
        Names of `pool_tokens`; the results of several stand side by side.
    include_prompt : bool
        If False, a call leaves out the ``prompt_length`` first tokens of each row.
    dimension : int, optional
        Features of a token; a call checks it.
    source : str
        Where the choice comes from, in words.

    Examples
    --------
    >>> import anypool as ap
    >>> pooling = ap.TokenPooling.from_sentence_transformers({"pooling_mode_cls_token": True})
    >>> print(pooling)
    first (pooling_mode_cls_token in the configuration given)
    >>> pooling([[[1.0, 2.0], [3.0, 4.0]]], mask=[[0, 1]])
    array([[3., 4.]])
    """

    reduction: tuple[str, ...]
    include_prompt: bool = True
    dimension: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        given: Any = self.reduction
        object.__setattr__(self, "reduction", names_of(given))
        flag_argument("include_prompt", self.include_prompt, "TokenPooling")
        if self.dimension is not None:
            size_argument("dimension", self.dimension, "TokenPooling", at_least=1)

    def __call__(self, x: Any, *, prompt_length: Any = None, **layout: Any) -> Any:
        """Pool x; ``layout`` is as in `pool_tokens`, ``prompt_length`` counts where the prompt is left out."""
        first = x[0] if isinstance(x, list) and x else x
        shape = getattr(first, "shape", ())
        found = shape[-1] if shape else None
        if self.dimension is not None and found is not None and found != self.dimension:
            raise ValueError(f"x must have {self.dimension} features as the configuration says, got {found}")
        if prompt_length is not None and not self.include_prompt:
            layout["exclude_prefix"] = prompt_length
        return pool_tokens(x, self.reduction[0] if len(self.reduction) == 1 else list(self.reduction), **layout)

    def __str__(self) -> str:
        text = " + ".join(self.reduction) + ("" if self.include_prompt else ", without the prompt")
        return f"{text} ({self.source})" if self.source else text

    @classmethod
    def from_mode(cls, mode: str | Sequence[str], system: str) -> TokenPooling:
        """Return the pooling that another system names: "cls" of text-embeddings-inference, "LAST" of vllm.

        Parameters
        ----------
        mode : str or sequence of str
        system : "sentence-transformers", "text-embeddings-inference", "fastembed" or "vllm"

        Examples
        --------
        >>> import anypool as ap
        >>> ap.TokenPooling.from_mode("LAST", "vllm").reduction
        ('last',)
        """
        if not isinstance(system, str) or system not in MODES:
            raise ValueError(f"system must be one of {', '.join(MODES)}, got {shown(system)}")
        known = MODES[system]
        names: list[Any] = list(mode) if isinstance(mode, (list, tuple)) else [mode]
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise ValueError(f"mode must be one of {', '.join(known)} of {system}, got {shown(name)}")
            if known[name] is None:
                raise ValueError(f"mode {name!r} of {system} does not pool the tokens of a row into one vector")
        if not names:
            raise ValueError(f"mode must name at least one mode of {system}, got {shown(mode)}")
        return cls(tuple(str(known[n]) for n in names), source=f"{' + '.join(names)} of {system}")

    @classmethod
    def from_sentence_transformers(cls, config: str | os.PathLike[str] | Mapping[str, Any]) -> TokenPooling:
        """Read a model's ``1_Pooling/config.json``: the older flags or the newer ``pooling_mode``.

        Parameters
        ----------
        config : path or mapping
            A model's folder, whose ``modules.json`` says where the pooling lies (without one: in ``1_Pooling``), its
            pooling folder, the file, or its content.

        Raises
        ------
        ValueError
            If a key or mode is not known, if no mode is chosen, or if both schemas are there and disagree.
        FileNotFoundError
            If there is no such file.
        """
        where = "the configuration given"
        if not isinstance(config, (Mapping, str, os.PathLike)):
            raise TypeError(f"config must be a path or a mapping, got {shown(config)} of type {type(config).__name__}")
        if not isinstance(config, Mapping):
            path = _config_file(Path(config))
            where = str(path)
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested beyond all measure
                raise ValueError(f"{where} must be JSON: {error}") from None
            if not isinstance(config, dict):
                raise ValueError(f"{where} must hold an object, got {type(config).__name__}")
        unknown = set(config) - set(_FLAGS) - set(_DIMENSIONS) - {"pooling_mode", "include_prompt"}
        if unknown:
            raise ValueError(f"{where} has keys that are not known: {', '.join(sorted(map(str, unknown)))[:200]}")
        flags = [key for key in _FLAGS if _flag(config, key, False, where)]
        from_flags = tuple(_FLAGS[key] for key in flags)
        given = config.get("pooling_mode")
        names = [given] if given is None or isinstance(given, str) else given
        if not isinstance(names, (list, tuple)) or not all(v is None or isinstance(v, str) for v in names):
            raise ValueError(f"{where}: pooling_mode must be a mode or a list of modes, got {shown(given)}")
        modes = (given,) if isinstance(given, str) else from_flags if given is None else tuple(given)
        if given is not None and flags and set(modes) != set(from_flags):
            raise ValueError(f"{where} says pooling_mode {shown(given)} and {', '.join(flags)}, which disagree")
        if not modes:
            raise ValueError(f"{where} chooses no mode: neither pooling_mode nor one of {', '.join(_FLAGS)} is set")
        found = cls.from_mode(modes, "sentence-transformers")
        said = f"pooling_mode {given!r}" if given is not None else ", ".join(flags)
        return cls(found.reduction, _flag(config, "include_prompt", True, where), _dimension(config, where),
                   f"{said} in {where}")  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return sentence-transformers' newer schema; modes that it does not have raise a ValueError."""
        theirs = {ours: name for name, ours in MODES["sentence-transformers"].items()}
        for name in self.reduction:
            if name not in theirs:
                raise ValueError(f"sentence-transformers has no mode for {name!r}")
        modes = [theirs[name] for name in self.reduction]
        found: dict[str, Any] = {} if self.dimension is None else {"embedding_dimension": self.dimension}
        return found | {"pooling_mode": modes[0] if len(modes) == 1 else modes, "include_prompt": self.include_prompt}


def _config_file(path: Path) -> Path:
    if path.is_dir():
        if (modules := path / "modules.json").is_file():
            return path / _pooling_folder(modules) / "config.json"
        for place in (path / "1_Pooling" / "config.json", path / "config.json"):
            if place.is_file() and (place.parent.name.endswith("Pooling") or place.parent == path):
                return place
        raise FileNotFoundError(f"no 1_Pooling/config.json in {path}")
    return path


def _pooling_folder(modules: Path) -> str:
    """Return the folder of a model's one pooling module, as its list of modules says."""
    try:
        listed = json.loads(modules.read_text(encoding="utf-8"))
        found = [str(m["path"]) for m in listed if str(m["type"]).rpartition(".")[2] == "Pooling"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ValueError(f"{modules} must be a JSON list of modules with a path and a type: {shown(error)}") from None
    if len(found) != 1:
        raise ValueError(f"{modules} must list one Pooling module, got {len(found)}")
    return found[0]


def _flag(config: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {key} must be true or false, got {shown(value)}")
    return value


def _dimension(config: Mapping[str, Any], where: str) -> int | None:
    found = [config[key] for key in _DIMENSIONS if key in config]
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value != found[0]:
            raise ValueError(f"{where}: {' and '.join(_DIMENSIONS)} must be one positive integer, got {shown(value)}")
    return found[0] if found else None
