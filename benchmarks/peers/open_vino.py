"""OpenVINO, by models of one operation."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.measure import threads
from benchmarks.ours import Array, Subject
from benchmarks.peers.prepared import Prepared, Results, pointed_at, windows
from benchmarks.rows import CHANNELS_FIRST, CHANNELS_LAST, Row


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
