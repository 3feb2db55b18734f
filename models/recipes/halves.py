"""Makes tests/tests/device_half.onnx and cloud_half.onnx: a small model of colours that also gives what it makes of a
picture on its way, and a model that answers from that. Needs onnx; run from the repository's root."""

import onnx
from onnx import TensorProto, helper


def save(name, inputs, outputs, nodes, numbers):
    ports = [[helper.make_tensor_value_info(port, TensorProto.FLOAT, shape) for port, shape in some] for some in (inputs, outputs)]
    graph = helper.make_graph(nodes, name, *ports, numbers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    onnx.save(model, f"tests/tests/{name}.onnx")


def sharpness(value):
    return helper.make_tensor("sharpness", TensorProto.FLOAT, [1], [value])


# The mean of each colour. The small model is never sure of what it sees in it.
save(
    "device_half",
    [("picture", [1, 3, 8, 8])],
    [("probabilities", [1, 3]), ("means", [1, 3])],
    [
        helper.make_node("ReduceMean", ["picture"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["means", "sharpness"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ],
    [sharpness(0.5)],
)
save(
    "cloud_half",
    [("means", [1, 3])],
    [("probabilities", [1, 3])],
    [
        helper.make_node("Mul", ["means", "sharpness"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ],
    [sharpness(20.0)],
)
