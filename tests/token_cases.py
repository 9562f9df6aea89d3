"""Ragged data in every layout that `pool_tokens` takes, with rubbish wherever no token is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import cases

RUBBISH = (np.nan, np.inf, -np.inf, 1e30)


@dataclass(frozen=True)
class Laid:
    """The same rows in one layout: arguments of `pool_tokens`, and where each row's tokens are in x."""

    name: str
    x: Any
    kwargs: dict[str, Any]
    places: list[Any] = field(repr=False)  # index of x for the tokens of each row

    def back(self, grad: Any) -> list[np.ndarray]:
        """The gradient of each row's tokens."""
        return [np.asarray(grad[p[0]] if isinstance(self.x, list) else grad[p]) for p in self.places]

    def outside(self, grad: Any) -> np.ndarray:
        """The gradient of everything that is no token."""
        if isinstance(self.x, list):
            return np.zeros(0)
        rest = np.ones(grad.shape[:-1], bool)
        for p in self.places:
            rest[p] = False
        return grad[rest]


def rows_of(lengths, dim: int, dtype: str, seed: int = 0) -> list[np.ndarray]:
    """Random tokens, some of them special in the first feature."""
    rng = np.random.default_rng([seed, dim, *lengths])
    return [rng.standard_normal((n, dim)).astype(cases.dtype_of(dtype)) for n in lengths]


def rubbish(shape, dtype) -> np.ndarray:
    flat = np.resize(np.array(RUBBISH), int(np.prod(shape)))
    with np.errstate(over="ignore"):
        return flat.reshape(shape).astype(dtype)


def padded(rows, places, length: int) -> np.ndarray:
    """A batch whose row i has its tokens at places[i]."""
    x = rubbish((len(rows), length, rows[0].shape[1]), rows[0].dtype)
    for i, (row, at) in enumerate(zip(rows, places, strict=True)):
        x[i, at] = row
    return x


def mask_of(places, length: int) -> np.ndarray:
    mask = np.zeros((len(places), length), bool)
    for i, at in enumerate(places):
        mask[i, at] = True
    return mask


def layouts(rows: list[np.ndarray], seed: int = 0) -> list[Laid]:
    """Every layout of the same rows; empty rows where a layout can have them, which is everywhere."""
    rng = np.random.default_rng([7, seed])
    n = [len(r) for r in rows]
    room = max(n, default=0) + 3
    total = np.concatenate(rows)
    offsets = np.cumsum([0, *n])
    right = [np.arange(k) for k in n]
    left = [np.arange(room - k, room) for k in n]
    both = [np.arange(1 + i % 2, 1 + i % 2 + k) for i, k in enumerate(n)]
    holes = [np.sort(rng.permutation(2 * room)[:k]) for k in n]
    mixed = [(right, left, both)[i % 3][i] for i in range(len(n))]
    found = []
    for name, places, length in (
        ("padded right", right, room), ("padded left", left, room), ("padded both", both, room),
        ("holes", holes, 2 * room), ("mixed sides", mixed, room),
    ):  # fmt: skip
        mask = mask_of(places, length)
        kind = {"holes": np.int64, "mixed sides": np.float32}.get(name, bool)
        where = [(np.full(len(p), i), p) for i, p in enumerate(places)]
        found.append(Laid(name, padded(rows, places, length), {"mask": mask.astype(kind)}, where))
    where = [(np.full(len(p), i), p) for i, p in enumerate(right)]
    found.append(Laid("lengths", padded(rows, right, room), {"lengths": n}, where))
    where = [(np.full(len(p), i), p) for i, p in enumerate(left)]
    found.append(
        Laid("lengths, left", padded(rows, left, room), {"lengths": np.array(n, np.int32), "side": "left"}, where)
    )
    packed = [(np.arange(a, a + k),) for a, k in zip(offsets, n, strict=False)]
    found.append(Laid("packed", total, {"offsets": offsets}, packed))
    ids = np.repeat(np.arange(len(n)), n)
    found.append(Laid("segment ids", total, {"segment_ids": ids, "num_segments": len(n)}, packed))
    spread = rubbish((len(total) + 5 + 2 * len(rows), total.shape[1]), total.dtype)
    spans, at = [], 4
    for row in rows[::-1]:  # against the order of memory
        spread[at : at + len(row)] = row
        spans.insert(0, (at, at + len(row)))
        at += len(row) + 2
    found.append(Laid("spans", spread, {"spans": spans}, [(np.arange(a, b),) for a, b in spans]))
    shifted = padded(rows, both, room)
    batch = [[(1 + i % 2, 1 + i % 2 + k)] for i, k in enumerate(n)]
    where = [(np.full(len(p), i), p) for i, p in enumerate(both)]
    found.append(Laid("spans in a batch", shifted, {"spans": np.array(batch).reshape(-1, 1, 2)}, where))
    found.append(Laid("list", rows, {}, [(i,) for i in range(len(rows))]))
    strided = np.asfortranarray(padded(rows, right, room))
    found.append(
        Laid("transposed memory", strided, {"lengths": n}, [(np.full(k, i), np.arange(k)) for i, k in enumerate(n)])
    )
    found.append(Laid("every second", np.repeat(padded(rows, right, room), 2, axis=1)[:, ::2], {"lengths": n},
                      [(np.full(k, i), np.arange(k)) for i, k in enumerate(n)]))  # fmt: skip
    return found


def flat(laid: Laid, y: np.ndarray) -> np.ndarray:
    """A result as (rows, features), whatever axes the layout gives it."""
    return y.reshape(-1, y.shape[-1])
