"""Masks in the native kernels: each way through `src/native/masked.cpp`, to the bit what the reference backend makes.

A unit is some small planes, or a block of rows where planes are large; `KERNELS` has shapes of both, which end in the
middle of a unit, and the windows of test_kernels run with masks, too.
"""

from __future__ import annotations

import numpy as np
import pytest

import anypool as ap
import cases
import test_kernels
import tolerance
from anypool.backends import native

# name: (shape, channels last?, arguments of pool, way)
KERNELS = {
    "blocks": ((2, 3, 151, 301), False, {"kernel_size": (3, 3), "stride": 2, "padding": 1}, "blocks"),
    "blocks, ceil": ((1, 3, 150, 301), False, {"kernel_size": (2, 2), "ceil_mode": True}, "blocks"),
    "blocks of rows in two tiles": ((1, 1, 60, 9000), False, {"kernel_size": (3, 2), "stride": (1, 2)}, "blocks"),
    "blocks, depths": ((1, 2, 9, 60, 90), False, {"kernel_size": 3, "stride": 2, "padding": 1}, "blocks"),
    "blocks, channels last": ((2, 40, 41, 40), True, {"kernel_size": (3, 3), "stride": 1, "padding": 1}, "blocks"),
    "blocks, wide windows": ((1, 2, 200, 190), False, {"kernel_size": (31, 17), "stride": 1}, "blocks"),
    "one long row": ((2, 1, 70001), False, {"kernel_size": (5,), "stride": 3, "padding": 2}, "planes"),
    "one large window": ((2, 2, 200, 203), False, {"kernel_size": (200, 203)}, "planes"),
    "planes": ((3, 23, 20, 21), False, {"kernel_size": (3, 3), "stride": 2, "padding": 1}, "planes"),
    "tiny planes": ((40, 23, 5, 4), False, {"kernel_size": (3, 3), "stride": 2, "padding": 1}, "planes"),
    "small volumes": ((3, 7, 5, 6, 7), False, {"kernel_size": (3, 2, 3), "stride": 1, "padding": 1}, "planes"),
}


@pytest.fixture
def ways(monkeypatch):
    """What ran: recipes of `native` that looked at a mask."""
    if not native.info()["isa"]:
        pytest.skip("no kernels for this CPU")
    found = []
    compiled = native._compile

    def compile_and_tell(*args, masking=(), **kwargs):
        recipe = compiled(*args, masking=masking, **kwargs)
        if masking:
            found.append(recipe.way)
        return recipe

    monkeypatch.setattr(native, "_compile", compile_and_tell)
    return found


def data(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    rng = np.random.default_rng(3)
    if dtype.kind in "biu":
        return rng.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
    x = rng.standard_normal(shape)
    flat = x.reshape(-1)
    flat[:: flat.size // 97 + 1] = np.nan
    flat[1 :: flat.size // 89 + 1] = -np.inf
    return x.astype(dtype)


def masks(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    full = rng.random(shape) < 0.6
    full[0, 0] = False  # whole planes in which nothing counts
    return {
        "full": full,
        "channels alike": full[:, -1:],
        "one for all": rng.random((1, 1, *shape[2:])) < 0.9,
        "stepped": np.repeat(full, 2, axis=-1)[..., ::2],
    }


def check(name: str, x: np.ndarray, mask: np.ndarray | None, last: bool, reduction: str, **kwargs) -> None:
    given, axes = test_kernels.laid_out(x, last)
    if mask is not None:
        kwargs["mask"] = np.moveaxis(mask, 1, -1) if last else mask
    y, wanted = test_kernels.both(given, reduction, **axes, **kwargs)
    assert y.dtype == wanted.dtype
    assert tolerance.same_bits(y, wanted), name
    out = np.zeros_like(wanted)
    with ap.backends.use("native"):
        ap.pool(given, reduction, out=out[..., ::-1], **axes, **kwargs)
    assert tolerance.same_bits(out[..., ::-1], wanted), f"{name}, into a strided array"


@pytest.mark.parametrize("reduction", ["max", "min", "sum", "mean"])
@pytest.mark.parametrize("name", KERNELS)
def test_units(name, reduction, ways):
    shape, last, kwargs, way = KERNELS[name]
    x = data(shape, np.dtype(np.float32))
    for which, mask in masks(shape).items():
        check(which, x, mask, last, reduction, **kwargs)
    check("without NaN", x, None, last, reduction, nan="omit", **kwargs)
    check("both", x, masks(shape)["full"], last, reduction, nan="omit", empty=7, **kwargs)
    assert ways
    assert all(w.startswith(f"masked {way}") for w in ways)


@pytest.mark.parametrize("name", test_kernels.WINDOWS)
def test_kernels_behind_a_mask(name, ways):
    shape, last, kwargs, _ = test_kernels.WINDOWS[name]
    x = data(shape, np.dtype(np.float32))
    for reduction in ("max", "mean"):
        for which, mask in masks(shape).items():
            check(which, x, mask, last, reduction, **kwargs)
    assert ways


@pytest.mark.parametrize("name", ["blocks", "planes", "blocks, depths"])
@pytest.mark.parametrize("options", [{"count_include_pad": False}, {"divisor_override": 7}, {}], ids=str)
def test_what_a_mean_divides_by(name, options, ways):
    shape, last, kwargs, _ = KERNELS[name]
    for dtype in test_kernels.FLOATS:
        check(dtype, data(shape, cases.dtype_of(dtype)), masks(shape)["full"], last, "mean", **kwargs, **options)
    assert ways


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "float64", *test_kernels.HALVES])
@pytest.mark.parametrize("reduction", ["max", "min", "sum"])
@pytest.mark.parametrize("name", ["blocks", "planes"])
def test_dtypes(name, reduction, dtype, ways):
    shape, last, kwargs, _ = KERNELS[name]
    check(dtype, data(shape, cases.dtype_of(dtype)), masks(shape)["full"], last, reduction, empty=1, **kwargs)
    assert ways


@pytest.mark.parametrize("reduction", ["lp", "logsumexp"])
def test_what_is_lifted(reduction, ways):
    shape, _, kwargs, _ = KERNELS["blocks"]
    x = np.abs(data(shape, np.dtype(np.float64)))
    y, wanted = (r for r in test_kernels.both(x, reduction, axes=(2, 3), mask=masks(shape)["full"], **kwargs))
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    assert ways


def test_adaptive_windows(ways):
    x = data((2, 3, 230, 203), np.dtype(np.float32))
    mask = masks(x.shape)["full"]
    for size in ((7, 5), (1, 1), (230, 10)):
        results = []
        for backend in ("native", "reference"):
            with ap.backends.use(backend):
                results.append([f(x, size, mask=mask) for f in (ap.adaptive_max_pool2d, ap.adaptive_avg_pool2d)])
        for y, wanted in zip(*results, strict=True):
            assert tolerance.same_bits(y, wanted)
    assert ways


@pytest.mark.parametrize("size", [8, 40])
def test_bytes_other_than_0_and_1_are_true(size, ways):
    x = np.arange(float(size * size)).reshape(1, 1, size, size)
    mask = np.full(x.shape, 200, np.uint8).view(bool)
    assert ap.avg_pool2d(x, 2, mask=mask).tolist() == ap.avg_pool2d(x, 2).tolist()
    assert ways


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 2, 0)])
def test_counts_of_rows_of_every_length(kernel, stride, padding, dtype, ways):
    """Bytes of a row are added up in vectors, the last of which overlaps; what lies beside the row counts nothing."""
    for width in range(16, 150):
        x = data((1, 2, 7, width), np.dtype(dtype))
        mask = np.random.default_rng(width).random(x.shape) < 0.4
        kwargs = {"kernel_size": (kernel, kernel), "stride": stride, "padding": padding, "mask": mask}
        for options in ({}, {"count_include_pad": False, "empty": 7}, {"divisor_override": 3}):
            y, wanted = test_kernels.both(x, "mean", axes=(2, 3), **kwargs, **options)
            assert tolerance.same_bits(y, wanted), (width, options)
    assert ways
    assert dtype == "float64" or all("masks beside" in way for way in ways)  # two lanes of SSE2 have no kernel


@pytest.mark.parametrize("bins", [(1, 1), (3, 1), (1, 4)], ids=str)
def test_counts_of_whole_planes(bins, ways):
    """Bytes of planes that windows tile are added up row by row, in up to sixteen vectors and a part of one."""
    for width in (*range(4, 72, 4), 100, 131, 128, 200, 256, 260):
        for rows in (3, 6, 57):
            x = data((5, 7, rows, width), np.dtype(np.float32))
            mask = np.random.default_rng(width).random(x.shape) < 0.4
            mask[2] = False
            for reduction in ("mean", "max"):
                function = ap.adaptive_avg_pool2d if reduction == "mean" else ap.adaptive_max_pool2d
                results = []
                for backend in ("native", "reference"):
                    with ap.backends.use(backend):
                        results.append(function(x, bins, mask=mask, empty=7))
                assert tolerance.same_bits(*results), (reduction, rows, width)
    assert any(way == "masked planes, planes at once, masks beside" for way in ways)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["max", "min", "mean", "sum"])
def test_masks_beside_whole_planes(reduction, dtype, ways):
    """NaNs that count and others, planes two by two, rows behind the end of which lies the next one or nothing."""
    for shape, kernel in (
        ((3, 23, 7, 7), (7, 7)), ((1, 40, 7, 3), (7, 3)), ((2, 9, 20, 33), (20, 33)), ((2, 5, 56, 56), (8, 8)),
        ((2, 3, 57, 256), (57, 256)), ((1, 4, 12, 130), (4, 130)), ((5, 1, 1, 90), (1, 90)), ((1, 2, 9, 17), (9, 17)),
    ):  # fmt: skip
        x = data(shape, np.dtype(dtype))
        for mask in masks(shape).values():
            for empty in ({}, {"empty": 7}):
                check("", x, mask, False, reduction, kernel_size=kernel, stride=kernel, **empty)
    beside = sum(way.endswith("planes at once, masks beside") for way in ways)
    assert beside  # shorter vectors have no kernel for each of these rows
    assert beside >= len(ways) / 2 or native.info()["isa"] != "x86_64_v4"  # one mask in four is copied


def test_rows_beyond_a_cache_go_another_way(ways, monkeypatch):
    """And ask for no more memory than that way takes."""
    asked = []
    monkeypatch.setattr(native, "require", lambda n_bytes, *_: asked.append(n_bytes))
    x = np.random.default_rng(0).standard_normal((1, 1, 1_100_000)).astype(np.float32)
    mask = np.random.default_rng(1).random(x.shape) < 0.5
    y, wanted = test_kernels.both(x, "mean", kernel_size=(3,), axes=(2,), mask=mask)
    assert tolerance.same_bits(y, wanted)
    assert ways
    assert asked
    assert max(asked) < 1 << 20


def test_explain_names_what_looks_at_the_mask():
    x, mask = np.zeros((2, 3, 40, 40), np.float32), np.ones((40, 40), bool)

    def said(reduction="mean", **kwargs):
        return ap.explain(ap.pool, x, reduction, (3, 3), stride=2, **kwargs)

    if said().backend == "native":
        assert "masks beside" in said(mask=mask).kernel
        assert "masked" in said(nan="omit").kernel
        assert "left out by the kernel" in said(mask=mask).notes[-1]
    for pieces in ({"mask": mask, "return_valid": True}, {"mask": mask, "weights": mask.astype(np.float32)}):
        assert "masked" not in said(**pieces).kernel
        assert "pieces" in said(**pieces).notes[-1]
    with ap.backends.use("reference"):
        assert "pieces" in said(mask=mask).notes[-1]
    with pytest.raises(ValueError, match="must broadcast"):
        said(mask=np.ones(7, bool))
