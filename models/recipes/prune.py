"""Takes whole channels out of an ONNX model: the ones with the smallest weights, where nothing else depends on them.

A channel goes only from a convolution whose output leads, through steps that keep channels apart, into one other
convolution or one matrix. Channels that are added to others (a residual's sum) stay, so the graph keeps its form.
"""

import numpy
from onnx import numpy_helper

from graph import Unsupported, attributes

APART = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "Dropout", "Identity", "MaxPool", "AveragePool"}
CHANNELS_MIN = 4


class Graph:
    def __init__(self, model):
        self.model = model
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.users = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.ends = {value.name for value in model.graph.output}

    def values(self, name):
        return numpy_helper.to_array(self.weights[name])

    def put(self, name, values):
        self.weights[name].CopyFrom(numpy_helper.from_array(numpy.ascontiguousarray(values), name))

    def own(self, *names):
        """These weights belong to one step alone."""
        return all(name in self.weights and len(self.users[name]) == 1 for name in names if name)

    def way(self, convolution):
        """The steps from a convolution to the one that mixes its channels; none if they are needed elsewhere."""
        steps, name = [], convolution.output[0]
        pooled = False
        while name not in self.ends and len(self.users.get(name, [])) == 1:
            node = self.users[name][0]
            group = attributes(node).get("group", 1) if node.op_type == "Conv" else 1
            steps.append(node)
            if node.op_type == "Conv" and group == 1:
                return steps if self.own(node.input[1]) else None
            if node.op_type == "Gemm":
                return steps if pooled and node.input[0] == name and self.own(node.input[1]) else None
            if node.op_type == "Conv" and self.own(*node.input[1:]) and self.values(node.input[1]).shape[:2] == (group, 1):
                pass
            elif node.op_type == "BatchNormalization" and self.own(*node.input[1:]):
                pass
            elif node.op_type == "GlobalAveragePool" or (node.op_type == "Flatten" and pooled):
                pooled = True
            elif node.op_type not in APART:
                return None
            name = node.output[0]
        return None


def prune(model, share):
    """Takes this share of the channels out; says how many of how many convolutions lost some."""
    graph = Graph(model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    lost = 0
    for node in convolutions:
        way = graph.way(node) if attributes(node).get("group", 1) == 1 and graph.own(*node.input[1:]) else None
        if not way:
            continue
        weights = graph.values(node.input[1])
        keep = max(round(len(weights) * (1 - share)), min(CHANNELS_MIN, len(weights)))
        if keep == len(weights):
            continue
        kept = numpy.sort(numpy.argsort(-numpy.abs(weights).sum((1, 2, 3)))[:keep])
        for name in node.input[1:]:
            graph.put(name, graph.values(name)[kept])
        for step in way[:-1]:
            if step.op_type in ("Conv", "BatchNormalization"):
                for name in step.input[1:]:
                    graph.put(name, graph.values(name)[kept])
            for attribute in step.attribute:
                if step.op_type == "Conv" and attribute.name == "group":
                    attribute.i = keep
        last = way[-1]
        after = graph.values(last.input[1])
        over_rows = last.op_type == "Gemm" and not attributes(last).get("transB")
        graph.put(last.input[1], after[kept] if over_rows else after[:, kept])
        lost += 1
    if not lost:
        raise Unsupported("none of its convolutions has channels that nothing else depends on")
    # What was known of the shapes between is no longer true.
    del model.graph.value_info[:]
    return lost, len(convolutions)
