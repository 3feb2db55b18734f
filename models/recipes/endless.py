"""A model that never answers: a loop of 2^62 additions. For the test of the watchdog.

python endless.py OUT.onnx
"""

import sys

from onnx import TensorProto, checker, helper, save

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

body = helper.make_graph(
    [
        helper.make_node("Identity", ["go_on"], ["goes_on"]),
        helper.make_node("Add", ["sum", "sum"], ["sum_after"]),
    ],
    "body",
    [
        helper.make_tensor_value_info("round", INT64, []),
        helper.make_tensor_value_info("go_on", BOOL, []),
        helper.make_tensor_value_info("sum", FLOAT, [1, 2]),
    ],
    [
        helper.make_tensor_value_info("goes_on", BOOL, []),
        helper.make_tensor_value_info("sum_after", FLOAT, [1, 2]),
    ],
)
graph = helper.make_graph(
    [
        helper.make_node("Loop", ["rounds", "true", "input"], ["scores"], body=body),
    ],
    "endless",
    [helper.make_tensor_value_info("input", FLOAT, [1, 2])],
    [helper.make_tensor_value_info("scores", FLOAT, [1, 2])],
    [
        helper.make_tensor("rounds", INT64, [], [2**62]),
        helper.make_tensor("true", BOOL, [], [True]),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
model.ir_version = 8
checker.check_model(model)
save(model, sys.argv[1])
