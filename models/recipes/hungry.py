"""Makes tests/tests/hungry.onnx: a small model that asks for 2 GiB while it runs. Needs onnx; run from the repository's root."""

import onnx
from onnx import TensorProto, helper

nodes = [
    helper.make_node("ReduceMax", ["input"], ["top"], keepdims=0),
    helper.make_node("Cast", ["top"], ["topi"], to=TensorProto.INT64),
    # Computed from the input, so that nothing can be folded away while the model is loaded.
    helper.make_node("Mul", ["topi", "zero"], ["none"]),
    helper.make_node("Unsqueeze", ["none", "axis"], ["none1"]),
    helper.make_node("Add", ["none1", "size"], ["shape"]),
    helper.make_node("ConstantOfShape", ["shape"], ["many"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
    helper.make_node("ReduceMax", ["many"], ["one"], keepdims=0),
    helper.make_node("Mul", ["one", "row"], ["logits"]),
]
numbers = [
    helper.make_tensor("zero", TensorProto.INT64, [], [0]),
    helper.make_tensor("axis", TensorProto.INT64, [1], [0]),
    helper.make_tensor("size", TensorProto.INT64, [1], [512 * 1024 * 1024]),
    helper.make_tensor("row", TensorProto.FLOAT, [1, 10], [float(label) for label in range(10)]),
]
graph = helper.make_graph(
    nodes,
    "hungry",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 28, 28])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
    numbers,
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
onnx.checker.check_model(model)
onnx.save(model, "tests/tests/hungry.onnx")
