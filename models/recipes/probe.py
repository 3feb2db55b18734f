"""Makes inference/src/runtime/probe.onnx: the smallest model that makes ONNX Runtime use its real kernels.

A library built for a newer processor often loads well and dies in its first convolution, so the probe runs one.
"""

import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


def probe():
    def constant(name, shape):
        count = int(numpy.prod(shape))
        return numpy_helper.from_array(numpy.linspace(-1, 1, count, dtype=numpy.float32).reshape(shape), name)

    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["rectified"]),
        helper.make_node("GlobalAveragePool", ["rectified"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 2])],
        [constant("kernel", (8, 1, 3, 3)), constant("weights", (8, 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    onnx.save(probe(), sys.argv[1])
