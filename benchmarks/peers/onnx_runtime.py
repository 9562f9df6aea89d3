"""ONNX Runtime, by models of one node."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.measure import threads
from benchmarks.ours import Subject
from benchmarks.peers.prepared import Prepared, Results, windows
from benchmarks.rows import CHANNELS_FIRST, Row


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
