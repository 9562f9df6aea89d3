"""Token pooling in PyTorch operations, for tensors on devices without kernels of ours.

An output's tokens are gathered, and everything after that is done for all outputs at once; which tokens those are is
worked out on the host. Autograd is PyTorch's own, gradients of gradients too. What the reductions mean is to be read in
`anypool.backends.tokens_reference`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypool.attention import AttentionCall
from anypool.runs import Runs
from anypool.token_matrix import Matrix
from anypool.token_reductions import Term
from anypool.tokens import TokenCall


class _Segments:
    """The tokens of all outputs, one output after the other: ``of`` is the output of each."""

    def __init__(self, matrix: Matrix, runs: Runs, x: Tensor) -> None:
        starts = np.cumsum(runs.count) - runs.count
        within = np.arange(int(runs.count.sum()), dtype=np.int64) - np.repeat(starts, runs.count)
        rows = np.repeat(matrix.numbers(runs), runs.count) + within
        ordinal = np.repeat(runs.ordinal, runs.count) + within
        before = np.zeros(len(runs.tokens), np.int64) if runs.skipped is None else runs.skipped
        of = np.repeat(runs.output, runs.count)
        ends = np.cumsum(runs.tokens)

        def there(a: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(a, np.int64)).to(x.device)

        self.wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.outputs, self.any = len(runs.tokens), bool(len(rows))
        self.rows, self.of, self.ordinal = there(rows), there(of), there(ordinal)
        self.first, self.last = there(ends - runs.tokens), there(ends - 1)
        self.positions = there(ordinal + 1 + before[of]).to(self.wide)[:, None]
        tokens = there(runs.tokens)
        self.empty = (tokens == 0)[:, None]
        self.count = tokens.clamp(min=1).to(self.wide)[:, None]

    def tokens(self, x: Tensor) -> Tensor:
        """Rows of x in the order of the outputs; nothing else of x is read."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.rows).to(self.wide)

    def total(self, v: Tensor) -> Tensor:
        return v.new_zeros(self.outputs, *v.shape[1:]).index_add(0, self.of, v)

    def at(self, v: Tensor, places: Tensor) -> Tensor:
        """The token at a place for each output; of an empty one any."""
        if not self.any:
            return self.total(v)
        if places.ndim == 1:
            return v.index_select(0, places.clamp(0, len(v) - 1))
        return v.gather(0, places.clamp(0, len(v) - 1))

    def best(self, v: Tensor, keep: str, places: Tensor) -> Tensor:
        """The largest or smallest of ``places`` in each output, ``outputs`` of which have none."""
        start = torch.iinfo(places.dtype).min if keep == "amax" else torch.iinfo(places.dtype).max
        found = places.new_full((self.outputs, v.shape[1]), start)
        return found.scatter_reduce(0, self.of[:, None].expand_as(v), places, keep)

    def top(self, v: Tensor) -> Tensor:
        """The largest of each output, for what is subtracted from exponents. A NaN may be lost, sums will have it."""
        lowest = v.new_full((self.outputs, v.shape[1]), -torch.inf)
        known = torch.where(v.isnan(), -torch.inf, v).detach()
        return lowest.scatter_reduce(0, self.of[:, None].expand_as(v), known, "amax")

    def winner(self, v: Tensor, keep: str) -> Tensor:
        """The winner: the first of equals, the last of several NaNs. The gradient is its own alone."""
        lifted = -v if keep == "min" else v.abs() if keep == "largest" else v
        lifted, nan = lifted.detach(), v.isnan()
        place = torch.arange(len(v), device=v.device)[:, None].expand_as(v)
        equal = (lifted == self.top(lifted)[self.of]) & ~nan
        first = self.best(v, "amin", torch.where(equal, place, len(v)))
        last = self.best(v, "amax", torch.where(nan, place, -1))
        return self.at(v, torch.where(last >= 0, last, first))


def _magnitude(v: Tensor) -> Tensor:
    """|v|, whose gradient is the sign of v: 0 for 0, NaN for NaN."""
    of = v.detach()
    return v * torch.where(of.isnan(), of, of.sign())


def _power(v: Tensor, p: float, none: Tensor) -> Tensor:
    """|v|^p, whose gradient is 0 in outputs where there is nothing else than 0."""
    if p % 2 == 0:
        return v**p
    return torch.where(none, 0, torch.where(none, 1, _magnitude(v)) ** p)


def _root(s: Tensor, p: float) -> Tensor:
    """s^(1/p), whose gradient at 0 is 0."""
    none = s == 0
    return torch.where(none, s, torch.where(none, 1, s) ** (1 / p))


def _below(v: Tensor, top: Tensor) -> Tensor:
    """exp(v - top), 1 also for an infinity and itself."""
    return torch.exp(torch.where((v == top) & top.isinf(), 0, v - top))


def _of_term(s: _Segments, v: Tensor, weights: Tensor | None, term: Term) -> Tensor:
    keep, finish = term.reduction.keep, term.reduction.finish
    if finish in ("first", "last"):
        return s.at(v, s.first if finish == "first" else s.last)
    if keep in ("max", "min", "largest"):
        won = s.winner(v, str(keep))
        return _magnitude(won) if keep == "largest" else won
    if keep == "power":
        zeros = s.total((v != 0).to(v.dtype)) == 0
        return _root(s.total(_power(v, term.p, zeros[s.of])), term.p)
    if keep == "clamped":
        return _root(s.total(torch.where(v <= term.eps, term.eps, v) ** term.p) / s.count, term.p)
    if keep == "exponentials":
        scaled = v * term.p
        top = s.top(scaled)
        return (top + torch.log(s.total(_below(scaled, top[s.of])))) / term.p
    w = s.positions if keep == "positions" else weights
    weight = s.count if w is None else s.total(w)
    if finish == "deviation":
        lead = s.at(v, s.first)[s.of].detach()  # an outlier first takes no digits of the others
        weighed = v - lead if w is None else (v - lead) * w
        apart = v - lead - (s.total(weighed) / weight)[s.of]
        return _root(s.total(apart**2 if w is None else apart**2 * w) / weight, 2)
    found = s.total(v if w is None else v * w)
    if finish == "none":
        return found
    by = {"over_count": s.count, "over_root_count": s.count.sqrt(), "over_weight": weight}
    return found / by[finish]


def pool(x: Tensor, call: TokenCall, weights: Tensor | None) -> Tensor:
    """Return the results of a call of tensors of these shapes."""
    s = _Segments(call.matrix, call.runs, x)
    v = s.tokens(x)
    w = None if weights is None else weights.reshape(-1).index_select(0, s.rows).to(s.wide)[:, None]
    parts = [_of_term(s, v, w, term) for term in call.terms]
    y = torch.where(s.empty, call.empty, torch.cat(parts, 1)).to(x.dtype)
    return y.view(*call.runs.shape, y.shape[1])


def attend(x: Tensor, query: Tensor, values: Tensor | None, call: AttentionCall) -> Tensor:
    """Return the pooled values of a call of tensors of these shapes, a head after the other."""
    s = _Segments(call.matrix, call.runs, x)
    keys = s.tokens(x)
    v = keys if values is None else s.tokens(values)
    with torch.autocast(x.device.type, enabled=False):  # scores of halves would be halves
        scores = keys @ (query.to(s.wide) * call.scale).reshape(-1, x.shape[-1]).T
    e = _below(scores, s.top(scores)[s.of])
    share = e / torch.where(s.empty, 1, s.total(e))[s.of]
    heads = [torch.where(s.empty, call.empty, s.total(share[:, h : h + 1] * v)) for h in range(share.shape[1])]
    y = torch.stack(heads, 1).to(x.dtype)
    return y.view(*call.runs.shape, *y.shape[1 + call.single :])
