"""Nothing that a caller passes does harm: a result or one clear line, never a crash, a hang or a half-written out."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import anypool as ap
from anypool import cli, limits
from anypool.arguments import shown
from anypool.compat import flax, onnx, tf

ALLOWED = (ValueError, TypeError, NotImplementedError, MemoryError)
CYCLIC: list[Any] = []
CYCLIC.append(CYCLIC)

HOSTILE = [
    0, 1, 2, 3, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**5000, 1.5, float("nan"), float("inf"), True, None,
    "2", "same", "", "f4,f4", "(", b"2", bytearray(b"2"), memoryview(b"22"), 1j, (), [], (1,), (2, 3), (2, -1),
    (1, 2, 3), ((1, 2), (0, 0)), [[2]], ((1, 1), 1), {2: 2}, {1, 2}, object(), object, slice(2), range(2), Ellipsis,
    NotImplemented, len, CYCLIC, (2**62, 2**62), ("same", "valid"), (None, 2), [("a", "f4"), ("a", "f4")],
    np.int8(2), np.float32(2), np.bool_(True), np.datetime64("2020"), np.array(2), np.array(2.0), np.array([2, 2]),
    np.array([[1]]), np.array([], int), np.array(["a"]), np.array([None]), np.array([2**63], np.uint64),
    np.zeros((0, 0)), np.ones((3, 4, 5)), np.dtype("f4"), np.array([[2, 2]]).view(np.matrix), np.ma.masked,
    np.ma.array([2, 2], mask=[False, True]),
]  # fmt: skip

X = {
    1: np.ones((2, 3, 9), np.float32),
    2: np.ones((2, 3, 9, 8), np.float32),
    3: np.ones((2, 3, 5, 4, 6), np.float32),
}


def calls() -> dict[str, dict[str, Any]]:
    """Every public function with arguments that are good."""
    found: dict[str, dict[str, Any]] = {}
    for rank, x in X.items():
        found |= {
            f"max_pool{rank}d": {"x": x, "kernel_size": 2},
            f"avg_pool{rank}d": {"x": x, "kernel_size": 2},
            f"lp_pool{rank}d": {"x": x, "norm_type": 2, "kernel_size": 2},
            f"adaptive_avg_pool{rank}d": {"x": x, "output_size": 2},
            f"adaptive_max_pool{rank}d": {"x": x, "output_size": 2},
            f"max_unpool{rank}d": {"x": x, "indices": np.zeros(x.shape, np.int64), "kernel_size": 2},
        }
        if rank > 1:
            found[f"fractional_max_pool{rank}d"] = {"x": x, "kernel_size": 2, "output_size": 2}
    return found | {
        "pool": {"x": X[2], "reduction": "max", "kernel_size": 2},
        "pool mean": {"x": X[2], "reduction": "mean", "kernel_size": 2},
        "pool quantile": {"x": X[2], "reduction": "quantile", "kernel_size": 2, "q": 0.5},
        "pool std": {"x": X[2], "reduction": "std", "kernel_size": 2},
        "pool mode": {"x": X[2].astype(int), "reduction": "mode", "kernel_size": 2},
        "pool stochastic": {
            "x": X[2],
            "reduction": "stochastic",
            "kernel_size": 2,
            "generator": np.random.default_rng(0),
        },
        "global_avg_pool": {"x": X[2]},
        "global_max_pool": {"x": X[2]},
        "pool_tokens": {"x": X[1], "reduction": "mean"},
        "attention_pool": {"x": X[1], "query": np.ones(9, np.float32)},
    }


OPTIONS = {
    "sliding": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "common": ("data_format", "mask", "nan", "empty", "return_valid", "dtype", "out"),
    "tokens": ("mask", "lengths", "side", "offsets", "segment_ids", "num_segments", "spans", "exclude_prefix", "empty"),
}
NAMES = {
    "max_pool": (*OPTIONS["sliding"], "return_indices", *OPTIONS["common"]),
    "avg_pool": (*OPTIONS["sliding"], "count_include_pad", "divisor_override", "weights", *OPTIONS["common"]),
    "lp_pool": (*OPTIONS["sliding"], "norm_type", *OPTIONS["common"]),
    "adaptive_avg_pool": ("output_size", "weights", *OPTIONS["common"]),
    "adaptive_max_pool": ("output_size", "return_indices", *OPTIONS["common"]),
    "max_unpool": ("indices", "kernel_size", "stride", "padding", "output_size"),
    "fractional_max_pool": ("kernel_size", "output_size", "output_ratio", "return_indices", "_random_samples", "rng"),
    "pool": (
        "reduction", "axes", *OPTIONS["sliding"], "norm_type", "r", "q", "correction", "ignore", "generator",
        "count_include_pad", "divisor_override", "weights", "return_indices", *OPTIONS["common"],
    ),
    "global_avg_pool": ("keepdims", "weights", *OPTIONS["common"]),
    "global_max_pool": ("keepdims", "return_indices", *OPTIONS["common"]),
    "pool_tokens": ("reduction", *OPTIONS["tokens"], "weights", "norm_type", "r", "eps", "dtype"),
    "attention_pool": ("query", "values", "scale", *OPTIONS["tokens"], "dtype"),
}  # fmt: skip
CALLS = calls()


def function_of(name: str) -> Callable[..., Any]:
    return getattr(ap, name.split()[0])


def names_of(name: str) -> tuple[str, ...]:
    name = name.split()[0]
    return NAMES[name.rstrip("123d") if name[-1] == "d" else name]


def compat_calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every function of the frameworks' modules, with arguments that are good, and all it takes."""
    given: dict[Any, dict[str, Any]] = {
        onnx: {"x": X[2], "kernel_shape": [2, 2]},
        tf: {"input": X[2], "ksize": 2, "strides": 2, "padding": "SAME"},
        flax: {"inputs": X[2], "window_shape": (2, 2)},
    }
    others = {
        "onnx max_unpool": {"x": X[2], "indices": np.zeros(X[2].shape, np.int64), "kernel_shape": [2, 2]},
        "tf pool": {"input": X[2], "window_shape": [2, 2], "pooling_type": "AVG"},
    }
    found = {}
    for module, good in given.items():
        for function in module.__all__:
            name = f"{module.__name__.rpartition('.')[2]} {function}"
            arguments = {"x": X[2]} if "global" in name else others.get(name, good)
            found[name] = (getattr(module, function), arguments)
    return found


COMPAT = compat_calls()


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    """What is larger than this is refused as on a machine that has no more."""
    monkeypatch.setattr(limits, "available", lambda: 1 << 30)


def refused_or_done(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            call(*args, **kwargs)
        except ALLOWED as error:
            message = str(error)
            assert message
            assert "\n" not in message
            assert len(message) < 400, message


@pytest.mark.parametrize("name", CALLS)
def test_any_value_of_any_argument(name):
    for argument in ("x", *names_of(name)):
        for value in HOSTILE:
            refused_or_done(function_of(name), **{**CALLS[name], argument: value})


def test_every_argument_is_named():
    """Of all functions in `calls`."""
    for name in CALLS:
        parameters = set(inspect.signature(function_of(name)).parameters)
        assert parameters - {"x"} == set(names_of(name)), name
    assert {name.split()[0] for name in CALLS} == {n for n in ap.__all__ if n.islower()} - {"explain", "vjp"}


@pytest.mark.parametrize("name", COMPAT)
def test_any_value_of_any_argument_of_frameworks_functions(name):
    function, good = COMPAT[name]
    for argument in inspect.signature(function).parameters:
        for value in (*HOSTILE, "VALID", "AVG", "SAME_UPPER", [2, 2], [0, 0, 1, 1]):
            refused_or_done(function, **{**good, argument: value})


@pytest.mark.parametrize("name", [n for n in COMPAT if n != "onnx max_unpool"])
def test_any_gradient_of_frameworks_functions(name):
    function, good = COMPAT[name]
    y, pullback = ap.vjp(function, *good.values())
    for value in HOSTILE:
        refused_or_done(pullback, value)
        if value is not None:
            refused_or_done(pullback, np.ones_like(y), out=value)


@pytest.mark.parametrize("name", COMPAT)
def test_any_value_of_any_argument_of_frameworks_functions_of_tensors(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    function, good = COMPAT[name]
    good = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in good.items()}
    for argument in list(inspect.signature(function).parameters)[1:]:
        for value in (*HOSTILE, torch.tensor(2), torch.tensor([2, 2]), torch.zeros(3, device="meta")):
            refused_or_done(function, **{**good, argument: value})


@pytest.mark.parametrize("name", [n for n in CALLS if n != "pool mode"])
def test_any_gradient(name):
    arguments = dict(CALLS[name])
    y, pullback = ap.vjp(function_of(name), arguments.pop("x"), **arguments)
    for value in HOSTILE:
        refused_or_done(pullback, value)
        if value is not None and name != "attention_pool":
            refused_or_done(pullback, np.ones_like(y), out=value)


@pytest.mark.parametrize("name", [n for n in CALLS if not n.startswith("global")])
def test_any_value_of_any_argument_of_tensors(name):
    """PyTorch's own fractional pooling never returned from a kernel_size of -2**63."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    function = function_of(name)
    good = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in CALLS[name].items()}
    for argument in names_of(name):
        for value in (*HOSTILE, torch.tensor(2), torch.tensor([2, 2]), torch.float32, torch.zeros(3, device="meta")):
            refused_or_done(function, **{**good, argument: value})
    if name in ("pool_tokens", "attention_pool", "pool mode"):
        return
    y, pullback = ap.vjp(function, good.pop("x"), **good)
    for value in HOSTILE:
        refused_or_done(pullback, value)
        if value is not None:
            refused_or_done(pullback, torch.ones_like(y), out=value)


def test_a_tensor_whose_storage_was_given_back():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.ones(1, 1, 8)
    x.untyped_storage().resize_(0)
    for call in (
        lambda: ap.max_pool1d(x, 2),
        lambda: ap.max_pool1d(x, 2, return_indices=True),
        lambda: ap.pool_tokens(x, "mean"),
    ):
        with pytest.raises(ValueError, match="x must have memory, its storage has 0 bytes"):
            call()


@pytest.mark.parametrize("value", [-3.0, 0, True, "3"])
def test_norm_type_of_tensors_is_checked_too(value):
    """A negative one was taken for none given."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises((ValueError, TypeError), match="norm_type must be"):
        ap.pool_tokens(torch.ones(2, 3, 4), "lp", norm_type=value)


# ---- values ----------------------------------------------------------------------------------------------------------


def test_arrays_of_no_dimension_are_sizes_and_bytes_are_none():
    expected = ap.max_pool2d(X[2], 2)
    assert np.array_equal(ap.max_pool2d(X[2], np.array(2), padding=np.array(0)), expected)
    assert ap.adaptive_avg_pool2d(X[2], np.array(2)).shape == (2, 3, 2, 2)
    assert ap.pool(X[2], "max", 2, axes=np.array([2, 3])).shape == expected.shape
    for value in (b"2", bytearray(b"2"), np.array(2.0), np.array(True)):
        with pytest.raises(TypeError, match="kernel_size must be an int, got "):
            ap.max_pool2d(X[2], value)


def test_what_a_message_shows_of_a_value():
    assert shown((1, 2)) == "(1, 2)"
    assert shown(np.zeros((9, 9))).startswith("array([[0., 0., ")
    assert len(shown(list(range(10**5)))) < 120
    assert shown(10**5000) == "a value of type int"
    with pytest.raises(ValueError, match="kernel_size must be below 2"):
        ap.max_pool1d(X[1], 10**5000)


def test_masked_arrays_are_refused_wherever_their_mask_would_be_ignored():
    masked = np.ma.array(np.ones((2, 3), int), mask=[[True, False, False]] * 2)
    y, pullback = ap.vjp(ap.max_pool1d, X[1], 2)
    for name, call in {
        "x": lambda: ap.max_pool1d(masked, 2),
        "mask": lambda: ap.pool_tokens(X[1], "mean", mask=masked),
        "weights": lambda: ap.pool_tokens(X[1], "mean", weights=masked),
        "query": lambda: ap.attention_pool(X[1], np.ma.ones(9)),
        "indices": lambda: ap.max_unpool1d(np.ones((2, 3)), masked, 2),
        "grad_y": lambda: pullback(np.ma.ones(y.shape)),
    }.items():
        with pytest.raises(TypeError, match=f"{name} must not be a masked array"):
            call()
    with pytest.raises(TypeError, match="out must not be a masked array"):
        ap.max_pool1d(X[1], 2, out=np.ma.zeros((2, 3, 4), np.float32))


def test_gradients_are_real_numbers():
    y, pullback = ap.vjp(ap.avg_pool1d, X[1], 2)
    assert np.array_equal(pullback(np.ones(y.shape, int)), pullback(np.ones_like(y)))
    for dtype in (complex, object, "U1", "M8[s]"):
        with pytest.raises(TypeError, match="grad_y must be real numbers"):
            pullback(np.ones(y.shape).astype(dtype))
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match="grad_y must be an array as x is, got a tensor"):
        pullback(torch.ones(y.shape, requires_grad=True))


# ---- out -------------------------------------------------------------------------------------------------------------


def test_an_out_whose_elements_share_memory():
    memory = np.full(100, 7.0, np.float32)
    for shape, strides in (((1, 4), (16, 0)), ((3, 4), (4, 4)), ((3, 4), (12, 4)), ((2, 4), (16, 2))):
        out = np.lib.stride_tricks.as_strided(memory, shape, strides)
        x = np.ones((shape[0], 8), np.float32)
        with pytest.raises(ValueError, match=r"out must (not overlap itself|be aligned)"):
            ap.pool(x, "max", 2, axes=1, out=out)
        assert (memory == 7).all()
    for shape, strides in (((3, 4), (20, 4)), ((3, 4), (4, 12)), ((3, 4), (-16, 4)), ((1, 4), (0, 4))):
        out = np.lib.stride_tricks.as_strided(memory[50:], shape, strides)
        assert (ap.pool(np.ones((shape[0], 8), np.float32), "max", 2, axes=1, out=out) == 1).all()


@pytest.mark.parametrize("reduction", ["mean", "max", "lp", "std"])
def test_gradients_of_tokens_do_not_overlap_what_they_read(reduction):
    x = np.arange(1.0, 41).reshape(2, 5, 4)
    y, pullback = ap.vjp(ap.pool_tokens, x, reduction)
    before = x.copy()
    with pytest.raises(ValueError, match="out must not overlap x"):
        pullback(np.ones_like(y), out=x)
    room = np.zeros((2, 5, 4))
    with pytest.raises(ValueError, match="out must not overlap grad_y"):
        pullback(room.reshape(-1)[:8].reshape(y.shape), out=room)
    with pytest.raises(ValueError, match=r"out must be a writeable, contiguous float64 array .*, got float64 \(1,\)"):
        pullback(np.ones_like(y), out=np.zeros(1))
    assert np.array_equal(x, before)


def test_an_error_leaves_out_as_it_was():
    out = np.full((2, 3, 4), 7, np.float32)
    for bad in ({"kernel_size": 0}, {"kernel_size": 2, "padding": 9}, {"kernel_size": 2, "stride": 1}):
        with pytest.raises(ValueError, match="must"):
            ap.max_pool1d(X[1], out=out, **bad)
    assert (out == 7).all()


# ---- arrays that are unusual -----------------------------------------------------------------------------------------


def test_many_dimensions_and_none(backend):
    assert ap.pool(np.array([1.0, 3.0]), "max", 2).shape == (1,)
    with pytest.raises(ValueError, match=r"x must have an axis to pool, got 0 dimensions"):
        ap.pool(np.float64(1), "max", 2)
    if backend == "native":
        return  # which says that it has no more than 16 axes that are not pooled
    x = np.arange(6.0).reshape((1,) * 38 + (6,))
    assert ap.pool(x, "max", 2, axes=-1).ravel().tolist() == [1, 3, 5]
    assert ap.pool(x, "max", 2, axes=-1).ndim == 39


@pytest.mark.parametrize("kind", ["matrix", "memmap", "recarray"])
def test_subclasses_are_plain_arrays(kind, tmp_path):
    plain = np.arange(12.0).reshape(2, 6)
    if kind == "memmap":
        x = np.memmap(tmp_path / "x", plain.dtype, "w+", shape=plain.shape)
        x[...] = plain
    else:
        x = plain.view(np.matrix) if kind == "matrix" else plain.view(np.recarray)
    y = ap.max_pool1d(x, 2)
    assert type(y) is np.ndarray
    assert np.array_equal(y, ap.max_pool1d(plain, 2))
    assert type(ap.pool_tokens(x, "mean")) is np.ndarray


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (0, 0, 8)])
def test_axes_without_elements(shape, backend):
    x = np.zeros(shape)
    for call in (
        lambda: ap.max_pool1d(x, 2, return_indices=True)[0],
        lambda: ap.avg_pool1d(x, 2),
        lambda: ap.adaptive_max_pool1d(x, 4),
        lambda: ap.fractional_max_pool2d(x[..., None, :].repeat(8, 2), 2, 4)[..., 0, :],
        lambda: ap.max_unpool1d(x[..., :2], np.zeros((*shape[:2], 2), int), 2),
    ):
        assert call().shape == (*shape[:2], 4)
    y, pullback = ap.vjp(ap.max_pool1d, x, 2)
    assert pullback(y).shape == shape


def test_unpooling_takes_numbers_only():
    for dtype in (object, "U1", complex, "M8[s]"):
        with pytest.raises(TypeError, match="x must be bool, integer, float16"):
            ap.max_unpool1d(np.ones((1, 2)).astype(dtype), np.array([[0, 1]]), 2)


@pytest.mark.parametrize("seed", [np.array([[2, 2]]).view(np.matrix), CYCLIC, [[1]], -1, "a", 1.5])
def test_seeds(seed):
    """NumPy recurses without end into some of them."""
    with pytest.raises((ValueError, TypeError), match="rng"):
        ap.fractional_max_pool2d(X[2], 2, 3, rng=seed)


# ---- states and configurations ---------------------------------------------------------------------------------------


def test_a_state_that_was_tampered_with():
    x = np.arange(24.0).reshape(2, 3, 4)
    good = ap.PoolState(["mean", "max"]).update(x).__getstate__()
    assert np.array_equal(pickle.loads(pickle.dumps(ap.PoolState("max").update(x))).result(), x.max(1))

    def changed(**changes: Any) -> dict[str, Any]:
        return {**good, **changes}

    partials = good["partials"]
    for state in (
        {},
        None,
        changed(settings={"reduction": "no such"}),
        changed(settings={**good["settings"], "reduction": "mean"}),
        changed(settings={**good["settings"], "query": np.ones(4)}),
        changed(dtype=np.dtype("U3")),
        changed(count=np.array([-1, 3])),
        changed(count=np.array([3.0, 3.0])),
        changed(count=np.array([3])),
        changed(partials=partials[:1]),
        changed(partials=[partials[1], partials[0]]),
        changed(partials=[{**partials[0], "sum": partials[0]["sum"][:1]}, partials[1]]),
        changed(partials=[{**partials[0], "sum": partials[0]["sum"].astype(object)}, partials[1]]),
        changed(partials=7),
    ):
        with pytest.raises((ValueError, TypeError)):
            ap.PoolState.__new__(ap.PoolState).__setstate__(state)


def test_an_update_that_fails_changes_nothing():
    x = np.arange(24.0).reshape(2, 3, 4)
    state = ap.PoolState("max", return_indices=True).update(x)
    before, count = state.result(), state.count.copy()
    for arguments in (
        {"start": [-1, 0]}, {"start": np.array([2**63 - 1, 0])}, {"start": [1]}, {"rows": [0, -1]}, {"rows": [5]},
        {"rows": [0, 2**40]}, {"lengths": [4, 4]}, {"weights": np.ones((2, 3))},
    ):  # fmt: skip
        with pytest.raises((ValueError, MemoryError)):
            state.update(x, **arguments)
        with pytest.raises(ValueError, match="features of float64 as before"):
            state.update(x[..., :2], rows=[0, 9])
    assert state.rows == 2
    assert np.array_equal(state.count, count)
    assert all(np.array_equal(a, b) for a, b in zip(state.result(), before, strict=True))


def test_attention_over_values_of_another_width():
    x = np.ones((1, 2, 3))
    state = ap.PoolState("attention", query=np.ones(3)).update(x, values=np.ones((1, 2, 5)))
    with pytest.raises(ValueError, match="values must have 5 features as before, got 4"):
        state.update(x, values=np.ones((1, 2, 4)))
    assert state.result().tolist() == [[1.0] * 5]


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode": 3}, {"pooling_mode": [["mean"]]}, {"pooling_mode": {"mean": True}}, {"pooling_mode": []},
        {"pooling_mode": "mean", "embedding_dimension": [3]}, {"pooling_mode": "mean", "embedding_dimension": "3"},
        {"pooling_mode": "mean", "include_prompt": "yes"}, {3: True}, {"pooling_mode": "mean" * 1000},
    ],
)  # fmt: skip
def test_configurations_of_other_types(config):
    with pytest.raises(ValueError, match=r"must be|has keys|chooses no mode") as caught:
        ap.TokenPooling.from_sentence_transformers(config)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe{}", b"[]", b"null", b"3"])
def test_configuration_files_that_hold_something_else(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json must (be JSON|hold an object)"):
        ap.TokenPooling.from_sentence_transformers(tmp_path)


def test_poolings_made_by_hand_are_checked():
    for arguments in ({"dimension": 0}, {"dimension": "3"}, {"include_prompt": 1}):
        with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
            ap.TokenPooling(("mean",), **arguments)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("typer", reason="the command line needs the extra `cli`")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def broken(data: bytes, rng: np.random.Generator, turns: int):
    """The file cut off, and with some bytes changed."""
    for turn in range(turns):
        if turn % 3 == 0:
            yield data[: rng.integers(len(data))]
            continue
        changed = bytearray(data)
        reach = len(data) if turn % 3 == 1 else min(len(data), 300)
        for place in rng.integers(reach, size=1 + turn % 4):
            changed[place] = rng.integers(256)
        yield bytes(changed)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "parquet", "arrow", "png", "tif"])
def test_broken_files_are_one_line(suffix, folder, capsys):
    x = np.arange(60, dtype=np.float32).reshape(3, 5, 4)
    name = f"x.{suffix}"
    if suffix == "npy":
        np.save(name, x)
    elif suffix == "npz":
        np.savez_compressed(name, x=x)
    elif suffix == "safetensors":
        pytest.importorskip("safetensors.numpy", reason="safetensors is not installed").save_file({"x": x}, name)
    elif suffix in ("parquet", "arrow"):
        pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        from anypool.arrow import vectors

        table = pa.table({"id": [1, 2, 3], "tokens": vectors(list(x))})
        if suffix == "parquet":
            parquet.write_table(table, name)
        else:
            with pa.ipc.new_file(name, table.schema) as writer:
                writer.write_table(table)
    else:
        image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
        image.fromarray(x.reshape(15, 4).astype(np.uint8)).save(name)
    commands = [["tokens", name, "y.npy"]] if suffix not in ("png", "tif") else []
    if suffix in ("npy", "npz", "png", "tif"):
        commands.append(["pool", name, "y.npy", "--kernel", "1"])
    data = (folder / name).read_bytes()
    refused = 0
    for content in broken(data, np.random.default_rng(0), 36):
        (folder / name).write_bytes(content)
        for command in commands:
            status = cli.main(command)
            error = capsys.readouterr().err
            assert status in (0, 2), (status, error)
            assert status == 0 or error.startswith("anypool: "), error
            assert error.count("\n") == (status == 2) or "note:" in error, error
            refused += status == 2
    assert refused > 5
    assert {p.name for p in folder.iterdir()} <= {name, "y.npy"}


def test_files_that_are_something_else(folder, capsys):
    np.savez("zip.npz", x=np.ones((2, 3)))
    (folder / "zip.npz").rename("zip.npy")
    np.save("array.npy", np.ones((2, 3)))
    (folder / "array.npy").rename("array.npz")
    with open("pickle.npy", "wb") as file:
        np.save(file, np.array([{}]), allow_pickle=True)
    for name, words in (("zip.npy", "magic string"), ("array.npz", "not an .npz"), ("pickle.npy", "")):
        assert cli.main(["tokens", name, "y.npy"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_an_archive_that_unpacks_to_more_than_there_is(folder, capsys, monkeypatch):
    np.savez_compressed("x.npz", x=np.zeros((1 << 14, 1 << 10), np.float32))
    monkeypatch.setattr(limits, "LARGE", 1 << 20)
    monkeypatch.setattr(limits, "available", lambda: 1 << 24)
    for command in (["tokens", "x.npz", "y.npy"], ["pool", "x.npz", "y.npy"]):
        assert cli.main(command) == 2
        assert "memory" in capsys.readouterr().err


def test_a_column_whose_rows_begin_where_no_vectors_are():
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from anypool.arrow import pool_array

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float32)), 4)
    offsets = pa.py_buffer(np.array([0, 1 << 40, 2], np.int64))
    column = pa.Array.from_buffers(pa.large_list(vectors.type), 2, [None, offsets], children=[vectors])
    with pytest.raises(ValueError, match=r"[Oo]ffset"):
        pool_array(column, "mean")
