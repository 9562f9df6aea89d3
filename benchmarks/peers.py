"""The peers: what runs a row in another library, or None where it cannot.

All get as many threads as we do, data in the row's own order in memory, and whatever they prepare (compile, choose
layouts, allocate what they can) before the clock starts. Each result is compared with ours before anything is timed.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measure import Run, threads
from benchmarks.ours import Array, Subject, channels_first, channels_last_again
from benchmarks.rows import CHANNELS_FIRST, CHANNELS_LAST, Row

Results = tuple[Array, ...]


@dataclass(frozen=True)
class Prepared:
    """What is timed, and what it gives, in the row's order; indices as the values they point to."""

    run: Run
    results: Callable[[], Results]


@dataclass(frozen=True)
class Peer:
    """Another library. One that writes `into` memory of the caller's is compared with ours that does, too."""

    packages: tuple[str, ...]
    prepare: Callable[[Subject], Prepared | None]
    into: bool = False

    def version(self) -> str | None:
        """Return the version of its package, or None if something is not installed."""
        versions = [version(p) for p in self.packages]
        return None if None in versions else versions[0]


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sliding(row: Row) -> tuple[int, ...] | None:
    """Return the kernel and stride of adaptive windows that are all alike, for peers that know only sliding ones."""
    if any(n % o for n, o in zip(row.spatial, row.output_size, strict=True)):
        return None
    return tuple(n // o for n, o in zip(row.spatial, row.output_size, strict=True))


def windows(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return kernel and stride on each pooled axis, or None if the windows do not slide."""
    if row.output_size:
        kernel = sliding(row)
        return kernel and (kernel, kernel)
    return (row.kernel,) * row.rank, (row.stride,) * row.rank


def pointed_at(x: Array, indices: Array) -> Array:
    """Return the values at flat positions in the pooled axes; equal values may win in any order."""
    n, c, *spatial = indices.shape
    return np.take_along_axis(x.reshape(n, c, -1), indices.reshape(n, c, -1), -1).reshape(n, c, *spatial)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


@functools.cache
def torch() -> Any:
    import torch

    torch.set_num_threads(threads())
    return torch


def _tensor(array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return torch().from_numpy(array.view(np.int16)).view(torch().bfloat16)
    return torch().from_numpy(array)


def _array(tensor: Any) -> Array:
    tensor = tensor.detach()
    if tensor.dtype == torch().bfloat16:
        import ml_dtypes

        return tensor.view(torch().int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def _torch_function(row: Row) -> Callable[[Any], Any] | None:
    F = torch().nn.functional
    if row.output_size:
        adaptive = getattr(F, f"adaptive_{row.reduction}_pool{row.rank}d")
        return lambda t: adaptive(t, row.output_size)
    if row.reduction == "logsumexp" or (row.reduction == "lp" and np.isinf(row.norm_type)):
        return None
    function = getattr(F, f"{row.reduction}_pool{row.rank}d")
    if row.reduction == "lp":
        return lambda t: function(t, row.norm_type, row.kernel, row.stride, row.ceil)
    if row.reduction == "avg":
        return lambda t: function(t, row.kernel, row.stride, row.padding, row.ceil)
    indices = row.mode == "indices"
    return lambda t: function(t, row.kernel, row.stride, row.padding, row.dilation, row.ceil, indices)


def _prepare_torch(made: Subject, compiled: bool) -> Prepared | None:
    row, function = made.row, _torch_function(made.row)
    if function is None or (made.x.dtype.kind in "iu" and row.reduction != "max"):
        return None
    if row.reduction == "max" and 2 * row.padding > row.kernel:
        return None  # "pad should be smaller than or equal to half of kernel size", whatever the dilation
    if made.x.dtype.kind in "iu" and (row.output_size or row.order == CHANNELS_LAST or compiled):
        return None  # refused by PyTorch 2.13, or (compiled, channels-first) the same kernel as eager
    if compiled:
        torch()._dynamo.reset()
        torch()._functorch.config.donated_buffer = False  # the gradient is asked for again and again
        function = torch().compile(function, dynamic=False)
    x = _tensor(channels_first(row, made.x))
    if row.mode == "backward":
        assert made.grad is not None
        x.requires_grad_(True)
        y, g = function(x), _tensor(channels_first(row, made.grad))

        def backward() -> Any:
            return torch().autograd.grad(y, x, g, retain_graph=True)[0]

        return Prepared(backward, lambda: (channels_last_again(row, _array(backward())),))
    if row.mode == "training":
        x.requires_grad_(True)
        return Prepared(lambda: function(x), lambda: (_array(function(x)),))

    def forward() -> Any:
        with torch().inference_mode():
            return function(x)

    def results() -> Results:
        y = forward()
        if row.mode == "indices":
            return _array(y[0]), pointed_at(made.x, _array(y[1]))
        return (channels_last_again(row, _array(y)),)

    return Prepared(forward, results)


def pytorch(made: Subject) -> Prepared | None:
    """PyTorch eager, in the memory format that the row has."""
    return _prepare_torch(made, compiled=False)


def torch_compile(made: Subject) -> Prepared | None:
    """``torch.compile``, for exactly these shapes."""
    return _prepare_torch(made, compiled=True)


# ---- ONNX Runtime ----------------------------------------------------------------------------------------------------


@functools.cache
def onnxruntime() -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def _onnx_node(row: Row) -> Any:
    from onnx import helper

    outputs = ["y", "i"] if row.mode == "indices" else ["y"]
    if row.is_global:
        return helper.make_node({"max": "GlobalMaxPool", "avg": "GlobalAveragePool"}[row.reduction], ["x"], outputs)
    sizes = windows(row)
    if sizes is None:
        return None
    arguments: dict[str, Any] = {"kernel_shape": sizes[0], "strides": sizes[1], "pads": [row.padding] * 2 * row.rank}
    if row.reduction == "max":
        arguments |= {"dilations": [row.dilation] * row.rank, "ceil_mode": int(row.ceil)}
        return helper.make_node("MaxPool", ["x"], outputs, **arguments)
    if row.reduction == "avg":
        return helper.make_node("AveragePool", ["x"], outputs, count_include_pad=1, **arguments)
    return helper.make_node("LpPool", ["x"], outputs, p=2, **arguments)


def onnx_runtime(made: Subject) -> Prepared | None:
    """ONNX Runtime, a model of one node, its input and outputs bound to memory once."""
    from onnx import helper

    row, x = made.row, made.x
    # What its CPU provider has kernels for. It knows channels-first only.
    known = {
        "max": ("float32", "float16", "float64", "uint8") if not row.is_global else ("float32", "float16"),
        "avg": ("float32", "float16"),
        "lp": ("float32",),
    }
    if (
        row.order != CHANNELS_FIRST
        or row.mode not in ("forward", "indices")
        or row.dtype not in known.get(row.reduction, ())
    ):
        return None
    if row.reduction == "lp" and row.norm_type != 2:
        return None
    node = _onnx_node(row)
    if node is None:
        return None
    info = {
        name: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)
        for name, dtype, shape in (
            ("x", x.dtype, x.shape), ("y", x.dtype, made.results[0].shape),
            ("i", np.dtype(np.int64), made.results[0].shape),
        )
    }  # fmt: skip
    graph = helper.make_graph([node], "pooling", [info["x"]], [info[name] for name in node.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    session = onnxruntime().InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    outputs = [np.empty_like(r) for r in made.results]
    binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    for name, y in zip(node.output, outputs, strict=True):
        binding.bind_output(name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)

    def run() -> None:
        session.run_with_iobinding(binding)

    def results() -> Results:
        run()
        if row.mode == "indices":  # its indices are flat in the whole array
            return outputs[0], x.reshape(-1)[outputs[1]]
        return (outputs[0],)

    return Prepared(run, results)


# ---- OpenVINO --------------------------------------------------------------------------------------------------------


@functools.cache
def openvino() -> Any:
    import openvino

    return openvino.Core()


def _openvino_node(row: Row, x: Any) -> Any:
    from openvino import opset14 as ops

    axes = list(range(2, 2 + row.rank))
    if row.is_global:
        reduce = {"max": ops.reduce_max, "avg": ops.reduce_mean}[row.reduction]
        return reduce(x, np.array(axes), True)
    if row.output_size and row.reduction == "avg":
        return ops.adaptive_avg_pool(x, np.array(row.output_size))
    sizes = windows(row)  # its CPU plugin refuses adaptive maxima
    if sizes is None:
        return None
    (kernel, stride), pads, dilation = sizes, [row.padding] * row.rank, [row.dilation] * row.rank
    rounding = "ceil_torch" if row.ceil else "floor"
    if row.reduction == "avg":
        return ops.avg_pool(x, stride, pads, pads, kernel, False, rounding, "explicit")
    return ops.max_pool(x, stride, dilation, pads, pads, kernel, rounding, "explicit", "i64", 2)


def open_vino(made: Subject) -> Prepared | None:
    """OpenVINO, a model of one operation, its input and outputs set to memory once."""
    import openvino as ov

    row = made.row
    # It computes float64 and int32 in float32, and a mean of bytes is not among its pooling kernels.
    types = {"float32": ov.Type.f32, "float16": ov.Type.f16, "bfloat16": ov.Type.bf16, "uint8": ov.Type.u8}
    if (
        row.order not in (CHANNELS_FIRST, CHANNELS_LAST)
        or row.mode not in ("forward", "indices")
        or row.reduction not in ("max", "avg")
        or row.dtype not in types
        or (row.dtype == "uint8" and row.reduction == "avg")
    ):
        return None
    x = ov.opset14.parameter(list(row.shape), types[row.dtype])
    node = _openvino_node(row, x)
    if node is None:
        return None
    model = ov.Model([ov.opset14.result(node.output(i)) for i in range(len(made.results))], [x], "pooling")
    if row.order == CHANNELS_LAST:
        order, spatial = "NC" + "DHW"[-row.rank :], "DHW"[-row.rank :]
        steps = ov.preprocess.PrePostProcessor(model)
        for port in (steps.input(), steps.output()):
            port.model().set_layout(ov.Layout(order))
            port.tensor().set_layout(ov.Layout(f"N{spatial}C"))
        model = steps.build()
    precision = {"float16": "f16", "bfloat16": "bf16"}.get(row.dtype, "f32")  # f32: not the bfloat16 it would choose
    hints = {"INFERENCE_NUM_THREADS": threads(), "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    request = openvino().compile_model(model, "CPU", hints).create_infer_request()
    outputs = [np.empty_like(r) for r in made.results]

    def shared(array: Array) -> Any:
        if array.dtype.name == "bfloat16":  # which its Python interface does not know
            return ov.Tensor(array.view(np.uint16), array.shape, ov.Type.bf16)
        return ov.Tensor(array, shared_memory=True)

    request.set_input_tensor(shared(made.x))
    for i, y in enumerate(outputs):
        request.set_output_tensor(i, shared(y))

    def results() -> Results:
        request.infer()
        if row.mode == "indices":
            return outputs[0], pointed_at(made.x, outputs[1])
        return (outputs[0],)

    return Prepared(request.infer, results)


# ---- JAX -------------------------------------------------------------------------------------------------------------


@functools.cache
def jax() -> Any:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return jax


def _jax_function(row: Row) -> Callable[[Any], Any] | None:
    sizes = windows(row)
    if sizes is None or row.reduction not in ("max", "avg") or (row.reduction == "avg" and row.ceil):
        return None
    lax, jnp = jax().lax, jax().numpy
    if row.is_global:
        axes = tuple(range(1, 1 + row.rank)) if row.order == CHANNELS_LAST else tuple(range(2, 2 + row.rank))
        return functools.partial({"max": jnp.max, "avg": jnp.mean}[row.reduction], axis=axes, keepdims=True)

    def everywhere(pooled: tuple[Any, ...], other: Any) -> tuple[Any, ...]:
        return (other, *pooled, other) if row.order == CHANNELS_LAST else (other, other, *pooled)

    # ceil: what hangs over the end is padding of a maximum
    over = [
        (m - 1) * s + row.dilation * (k - 1) + 1 - n - 2 * row.padding
        for n, m, k, s in zip(row.spatial, row.out_spatial(), *sizes, strict=True)
    ]
    arguments = {
        "window_dimensions": everywhere(sizes[0], 1),
        "window_strides": everywhere(sizes[1], 1),
        "padding": everywhere(tuple((row.padding, row.padding + max(0, o)) for o in over), (0, 0)),
        "window_dilation": everywhere((row.dilation,) * row.rank, 1),
    }

    def largest(a: Any) -> Any:
        lowest = -np.inf if jnp.issubdtype(a.dtype, jnp.floating) else jnp.iinfo(a.dtype).min
        return lax.reduce_window(a, np.array(lowest, a.dtype), lax.max, **arguments)

    def mean(a: Any) -> Any:
        total = lax.reduce_window(a, np.array(0, a.dtype), lax.add, **arguments)
        return total / np.array(np.prod(sizes[0]), a.dtype)

    return largest if row.reduction == "max" else mean


def jax_jit(made: Subject) -> Prepared | None:
    """JAX, ``lax.reduce_window`` compiled for exactly these shapes."""
    row = made.row
    # What its pooling keeps for the gradient is the input: there is no forward of training that differs.
    if row.order not in (CHANNELS_FIRST, CHANNELS_LAST) or row.mode not in ("forward", "backward"):
        return None
    if made.x.dtype.kind in "iu" and row.reduction == "avg":
        return None
    function = _jax_function(row)
    if function is None:
        return None
    arguments = [jax().device_put(made.x)]
    if row.mode == "backward":
        arguments.append(jax().device_put(made.grad))
        forward = function

        def function(a: Any, g: Any) -> Any:
            return jax().vjp(forward, a)[1](g)[0]

    compiled = jax().jit(function).lower(*arguments).compile()

    def run() -> Any:
        return compiled(*arguments).block_until_ready()

    return Prepared(run, lambda: (np.asarray(run()),))


# ---- OpenCV ----------------------------------------------------------------------------------------------------------


@functools.cache
def cv2() -> Any:
    import cv2

    cv2.setNumThreads(threads())
    return cv2


def opencv(made: Subject) -> Prepared | None:
    """OpenCV, for one picture with its channels last: INTER_AREA, blur, dilate."""
    row, x = made.row, made.x
    n, c = row.shape[:2]
    if row.rank != 2 or n != 1 or not (c == 1 or row.order == CHANNELS_LAST) or row.dtype not in ("uint8", "float32"):
        return None
    picture = x.reshape(*row.spatial, *([c] if c > 1 else []))
    target = np.empty_like(made.results[0])
    out = target.reshape(*row.out_spatial(), *([c] if c > 1 else []))
    constant = cv2().BORDER_CONSTANT
    if (row.reduction, row.kernel, row.stride, row.padding) == ("avg", 2, 2, 0):
        size = row.out_spatial()[::-1]
        run = functools.partial(cv2().resize, picture, size, out, interpolation=cv2().INTER_AREA)
    elif (row.reduction, row.kernel, row.stride, row.padding) == ("avg", 3, 1, 1):
        run = functools.partial(cv2().blur, picture, (3, 3), out, borderType=constant)
    elif (row.reduction, row.kernel, row.stride, row.padding) == ("max", 3, 1, 1):
        run = functools.partial(cv2().dilate, picture, np.ones((3, 3), np.uint8), out)  # its border loses to all
    else:
        return None

    def results() -> Results:
        run()
        return (target,)

    return Prepared(run, results)


PEERS = {
    "PyTorch": Peer(("torch",), pytorch),
    "torch.compile": Peer(("torch",), torch_compile),
    "ONNX Runtime": Peer(("onnxruntime", "onnx"), onnx_runtime, into=True),
    "OpenVINO": Peer(("openvino",), open_vino, into=True),
    "JAX": Peer(("jax",), jax_jit),
    "OpenCV": Peer(("opencv-python-headless",), opencv, into=True),
}
