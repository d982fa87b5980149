"""A DNSMOS P.835 with few random channels, as an ONNX file that onnxruntime can evaluate too."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffreward.random import stream

CHANNELS, HIDDEN = 2, 3


def write_dnsmos(folder: Path) -> str:
    """Writes sig_bak_ovr.onnx, with the names of the published one; returns its path."""
    import onnx
    from onnx import helper, numpy_helper

    weights = {**_weights(), **_constants()}
    graph = helper.make_graph(
        _spectrogram(helper) + _convolutions(helper) + _dense(helper),
        "dnsmos",
        [helper.make_tensor_value_info("input_1", onnx.TensorProto.FLOAT, ["N", 144160])],
        [helper.make_tensor_value_info("ratings", onnx.TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    onnx.save(model, folder / "sig_bak_ovr.onnx")
    return str(folder / "sig_bak_ovr.onnx")


def _weights() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(7):
        name = f"conv2d_{i}" if i else "conv2d"
        shapes[f"{name}/kernel:0"] = (CHANNELS, CHANNELS if i else 1, 3, 3)
        shapes[f"{name}/bias:0"] = (CHANNELS,)
    sizes = (CHANNELS, HIDDEN, HIDDEN, 3)
    for i, name in enumerate(("dense", "dense_1", "dense_3")):
        stem = f"mos_estimator_logpow/{name}"
        shapes[f"{stem}/MatMul/ReadVariableOp/resource:0"] = sizes[i : i + 2]
        shapes[f"{stem}/BiasAdd/ReadVariableOp/resource:0"] = sizes[i + 1 : i + 2]
    found = {
        name: 0.3 * torch.randn(shape, generator=stream(i)).numpy()
        for i, (name, shape) in enumerate(shapes.items())
    }
    # With biases below zero a few random channels would pass nothing on.
    found |= {name: np.abs(value) for name, value in found.items() if value.ndim == 1}
    angles = 2 * np.pi / 320 * np.arange(161)[:, None] * np.arange(320)
    window = np.hanning(320)
    for part, wave in (("real", np.cos(angles)), ("imag", np.sin(angles))):
        found[f"time2freq/stft-{part}/kernel:0"] = (wave * window)[..., None].astype("f4")
    return found


def _constants() -> dict[str, np.ndarray]:
    return {
        "start": np.array([0]),
        "later": np.array([160]),
        "middle": np.array([144000]),
        "end": np.array([144160]),
        "axis": np.array([1]),
        "hops": np.array([-1, 900, 160]),
        "two": np.float32(2),
        "floor": np.float32(1e-12),
        "ten": np.log(np.float32(10)),
    }


def _spectrogram(helper: Any) -> list[Any]:
    """log10 of the power of frames of 320, 160 apart, (N, 1, 900, 161)."""
    nodes = [
        helper.make_node("Slice", ["input_1", "start", "middle", "axis"], ["left"]),
        helper.make_node("Slice", ["input_1", "later", "end", "axis"], ["right"]),
        helper.make_node("Reshape", ["left", "hops"], ["left hops"]),
        helper.make_node("Reshape", ["right", "hops"], ["right hops"]),
        helper.make_node("Concat", ["left hops", "right hops"], ["frames"], axis=2),
        helper.make_node("Transpose", ["frames"], ["turned"], perm=[0, 2, 1]),
    ]
    for part in ("real", "imag"):
        kernel = f"time2freq/stft-{part}/kernel:0"
        nodes.append(helper.make_node("Conv", ["turned", kernel], [part]))
    nodes += [helper.make_node("Mul", [part, part], [f"{part}2"]) for part in ("real", "imag")]
    nodes += [
        helper.make_node("Add", ["real2", "imag2"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["magnitude"]),
        helper.make_node("Pow", ["magnitude", "two"], ["power"]),
        helper.make_node("Max", ["floor", "power"], ["above"]),
        helper.make_node("Log", ["above"], ["nepers"]),
        helper.make_node("Div", ["nepers", "ten"], ["bels"]),
        helper.make_node("Transpose", ["bels"], ["in time"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["in time"], ["map"], axes=[1]),
    ]
    return nodes


def _convolutions(helper: Any) -> list[Any]:
    nodes, last = [], "map"
    for i in range(7):
        name = f"conv2d_{i}" if i else "conv2d"
        inputs = [last, f"{name}/kernel:0", f"{name}/bias:0"]
        nodes.append(helper.make_node("Conv", inputs, [f"sum {i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"sum {i}"], [f"map {i}"]))
        last = f"map {i}"
        if i in (3, 4, 5):
            sizes = {"kernel_shape": [2, 2], "strides": [2, 2]}
            nodes.append(helper.make_node("MaxPool", [last], [f"pool {i}"], **sizes))
            last = f"pool {i}"
    nodes.append(helper.make_node("ReduceMax", [last], ["pooled"], axes=[2, 3], keepdims=0))
    return nodes


def _dense(helper: Any) -> list[Any]:
    nodes, last = [], "pooled"
    for name, result in (("dense", "first"), ("dense_1", "second"), ("dense_3", "ratings")):
        stem = f"mos_estimator_logpow/{name}"
        matrix, bias = f"{stem}/MatMul/ReadVariableOp/resource:0", f"{stem}/BiasAdd"
        nodes.append(helper.make_node("MatMul", [last, matrix], [f"{name} product"]))
        inputs, total = [f"{name} product", f"{bias}/ReadVariableOp/resource:0"], f"{name} sum"
        last = result
        if result == "ratings":
            nodes.append(helper.make_node("Add", inputs, [result]))
        else:
            nodes.append(helper.make_node("Add", inputs, [total]))
            nodes.append(helper.make_node("Relu", [total], [result]))
    return nodes
