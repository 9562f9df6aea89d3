"""Algebra of token pooling: what is done with the tokens of an output?

A reduction is a declaration: what is kept of the tokens seen so far, how that becomes a result, and what each token
gets of the gradient. The names of these parts are those of ``src/native/token_plan.hpp``; the reference backend has the
same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anypool.arguments import dtype_argument, number_argument, shown
from anypool.reductions import is_float


@dataclass(frozen=True)
class TokenReduction:
    """One reduction of an output's tokens ``x_1 … x_n``."""

    name: str
    formula: str
    keep: str | None  # None: a token is taken as it is
    finish: str
    give: str  # what a token gets of the gradient
    by: str | None = None  # what that is divided by
    parameter: str | None = None
    weighted: str | None = None  # the reduction it is with weights=
    integers: str = "keep"  # as in `anypool.reductions.Reduction`


TOKEN_REDUCTIONS: dict[str, TokenReduction] = {
    r.name: r
    for r in (
        TokenReduction("mean", "Σ x / n", "sum", "over_count", "uniform", "count", weighted="mean, weighted",
                       integers="float"),
        TokenReduction("sum", "Σ x", "sum", "none", "uniform", weighted="sum, weighted", integers="sum"),
        TokenReduction("max", "max(x)", "max", "none", "select"),
        TokenReduction("min", "min(x)", "min", "none", "select"),
        TokenReduction("first", "x_1", None, "first", "first"),
        TokenReduction("last", "x_n", None, "last", "last"),
        TokenReduction("mean_sqrt_len", "Σ x / √n", "sum", "over_root_count", "uniform", "root_count",
                       integers="float"),
        TokenReduction("weightedmean", "Σ k x_k / Σ k", "positions", "over_weight", "positions", "positions",
                       integers="float"),
        TokenReduction("std", "√(Σ (x - mean)² / n)", "moments", "deviation", "deviation", weighted="std, weighted",
                       integers="float"),
        TokenReduction("lp", "(Σ |x|^p)^(1/p)", "power", "root", "power", parameter="norm_type", integers="float"),
        TokenReduction("gem", "(Σ max(x, eps)^p / n)^(1/p)", "clamped", "mean_root", "clamped", "count",
                       parameter="norm_type", integers="float"),
        TokenReduction("logsumexp", "log(Σ exp(r x)) / r", "exponentials", "log", "exponentials", parameter="r",
                       integers="float"),
    )
}  # fmt: skip

# Other forms of those above, not to be asked for by name.
_FORMS = {
    r.name: r
    for r in (
        TokenReduction("mean, weighted", "Σ w x / Σ w", "weighted", "over_weight", "weighted", "weight",
                       integers="float"),
        TokenReduction("sum, weighted", "Σ w x", "weighted", "none", "weighted", integers="float"),
        TokenReduction("std, weighted", "√(Σ w (x - mean)² / Σ w)", "weighted_moments", "deviation",
                       "weighted_deviation", integers="float"),
        TokenReduction("lp, p = inf", "max|x|", "largest", "none", "largest", integers="float"),
    )
}  # fmt: skip


def kept(reduction: TokenReduction) -> TokenReduction:
    """Return the reduction whose result is what this one keeps: a sum, a mean; of moments the mean they are about."""
    return replace(reduction, finish="none")


TOKEN_ALIASES = {"avg": "mean", "cls": "first"}
DEFAULT_NORM = {"lp": 2.0, "gem": 3.0}


@dataclass(frozen=True)
class Term:
    """One reduction of a call, with its numbers."""

    reduction: TokenReduction
    p: float = 1.0
    eps: float = 0.0


def names_of(reduction: Any) -> tuple[str, ...]:
    """Return the names a caller means: one, or several whose results are to stand side by side."""
    given = list(reduction) if isinstance(reduction, (list, tuple)) else [reduction]
    if not 1 <= len(given) <= 8:
        raise ValueError(f"reduction must be a name or a list of 1 to 8 names, got {shown(reduction)}")
    found = []
    for name in given:
        known = TOKEN_ALIASES.get(name, name) if isinstance(name, str) else None
        if known not in TOKEN_REDUCTIONS:
            able = ", ".join((*TOKEN_REDUCTIONS, *TOKEN_ALIASES))
            raise ValueError(f"reduction must be one of {able}, got {shown(name)}")
        found.append(known)
    return tuple(found)


def terms_of(reduction: Any, norm_type: Any, r: Any, eps: Any, *, weighted: bool, where: str) -> tuple[Term, ...]:
    """Resolve names and their parameters; refuse what would be ignored."""
    names = names_of(reduction)
    if norm_type is not None and not set(names) & set(DEFAULT_NORM):
        raise ValueError(f"norm_type is for lp and gem, got it with reduction {shown(reduction)} ({where})")
    terms = []
    for name in names:
        found = TOKEN_REDUCTIONS[name]
        if weighted:
            if found.weighted is None:
                able = ", ".join(t.name for t in TOKEN_REDUCTIONS.values() if t.weighted)
                raise ValueError(f"weights= is for {able}, got reduction {name!r} ({where})")
            found = _FORMS[found.weighted]
        if name == "logsumexp":
            terms.append(Term(found, _number("r", r, where, lambda v: math.isfinite(v) and v != 0, "finite and not 0")))
        elif name in DEFAULT_NORM:
            p = DEFAULT_NORM[name] if norm_type is None else _number("norm_type", norm_type, where, lambda v: v > 0,
                                                                    "> 0")  # fmt: skip
            if p == math.inf:
                if name == "gem":
                    raise ValueError(f'norm_type must be finite for gem, got inf: that is "max" ({where})')
                terms.append(Term(_FORMS["lp, p = inf"]))
                continue
            least = _number("eps", eps, where, lambda v: 0 < v < math.inf, "> 0") if name == "gem" else 0.0
            terms.append(Term(found, p, least))
        else:
            terms.append(Term(found))
    return tuple(terms)


def _number(name: str, value: Any, where: str, holds: Any, rule: str) -> float:
    number = number_argument(name, value, where)
    if not holds(number):
        raise ValueError(f"{name} must be {rule}, got {shown(value)} ({where})")
    return number


def result_dtype(terms: tuple[Term, ...], x: np.dtype[Any], wanted: Any, where: str) -> np.dtype[Any]:
    """Return the dtype of the result: that of float tokens; of integers what holds every reduction asked for."""
    x = x.newbyteorder("=")
    if is_float(x):
        found = x
    else:
        sums = np.dtype(np.uint64 if x.kind == "u" else np.int64)
        kinds = {"keep": x, "sum": sums, "float": np.dtype(np.float64)}
        found = np.result_type(*(kinds[t.reduction.integers] for t in terms))
    if wanted is None:
        return found
    asked = dtype_argument(wanted, where)
    if not is_float(asked):
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {asked} ({where})")
    return asked
