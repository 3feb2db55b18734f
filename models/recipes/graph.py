"""Trains an ONNX model as it is: reads its graph, runs it with JAX, and writes the changed weights back.

Understands the steps that small picture classifiers are made of. Any other step is an `Unsupported`, and then the model
can still be quantised, but not retrained.
"""

import jax
import jax.numpy as jnp
import numpy
from jax import lax
from onnx import numpy_helper

# Hinton et al. 2015: soft targets at a raised temperature, mixed with the true labels.
SOFTENING, SOFT_SHARE = 4.0, 0.7
# Small ones: on a processor many small steps teach more in the same time than few large ones.
BATCH = 32


class Unsupported(Exception):
    """A step that cannot be trained here."""


def attributes(node):
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def padding(node, kernel, sides, strides):
    options = attributes(node)
    automatic = options.get("auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        pads = []
        for size, window, stride in zip(sides, kernel, strides):
            total = max((-(-size // stride) - 1) * stride + window - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if automatic == b"SAME_UPPER" else (large, small))
        return pads
    flat = options.get("pads", [0] * 2 * len(kernel))
    return list(zip(flat[: len(kernel)], flat[len(kernel) :]))


def convolution(node, values, weights, bias=None):
    options = attributes(node)
    kernel = weights.shape[2:]
    if len(kernel) != 2:
        raise Unsupported(f"{node.op_type} in {len(kernel)} dimensions")
    strides = options.get("strides", [1, 1])
    # Channels last is the order that the processor's kernels are fast in.
    out = lax.conv_general_dilated(
        values.transpose(0, 2, 3, 1),
        weights.transpose(2, 3, 1, 0),
        strides,
        padding(node, kernel, values.shape[2:], strides),
        rhs_dilation=options.get("dilations", [1, 1]),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=options.get("group", 1),
    )
    out = out if bias is None else out + bias
    return out.transpose(0, 3, 1, 2)


def pooling(node, values):
    options = attributes(node)
    kernel = options["kernel_shape"]
    strides = options.get("strides", [1] * len(kernel))
    if options.get("ceil_mode") or any(step != 1 for step in options.get("dilations", [1])):
        raise Unsupported(f"{node.op_type} with ceil_mode or dilations")
    pads = [(0, 0), (0, 0), *padding(node, kernel, values.shape[2:], strides)]
    window, steps = (1, 1, *kernel), (1, 1, *strides)
    if node.op_type == "MaxPool":
        return lax.reduce_window(values, -jnp.inf, lax.max, window, steps, pads)
    total = lax.reduce_window(values, 0.0, lax.add, window, steps, pads)
    counted = jnp.ones_like(values)
    if options.get("count_include_pad"):
        return total / numpy.prod(kernel)
    return total / lax.reduce_window(counted, 0.0, lax.add, window, steps, pads)


def gemm(node, left, right, bias=None):
    options = attributes(node)
    left = left.T if options.get("transA") else left
    right = right.T if options.get("transB") else right
    out = options.get("alpha", 1.0) * (left @ right)
    return out if bias is None else out + options.get("beta", 1.0) * bias


def normalisation(node, values, scale, bias, mean, variance):
    over = (1, -1) + (1,) * (values.ndim - 2)
    spread = jnp.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    return (values - mean.reshape(over)) / spread.reshape(over) * scale.reshape(over) + bias.reshape(over)


def flatten(node, values):
    axis = attributes(node).get("axis", 1)
    return values.reshape(values.shape[0], -1) if axis == 1 else values.reshape(int(numpy.prod(values.shape[:axis])), -1)


def reshape(values, shape):
    sizes = [int(size) for size in numpy.asarray(shape)]
    sizes = [values.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    # A file made for one sample at a time says 1 where it means the batch.
    return values.reshape(values.shape[0], *(sizes[1:] if -1 in sizes[1:] or len(sizes) == 1 else [*sizes[1:-1], -1]))


def mean(node, values, axes=None):
    options = attributes(node)
    over = options.get("axes") if axes is None else [int(axis) for axis in numpy.asarray(axes)]
    return values.mean(tuple(over), keepdims=bool(options.get("keepdims", 1)))


STEPS = {
    "Conv": convolution,
    "MaxPool": pooling,
    "AveragePool": pooling,
    "GlobalAveragePool": lambda node, values: values.mean((2, 3), keepdims=True),
    "Gemm": gemm,
    "MatMul": lambda node, left, right: left @ right,
    "BatchNormalization": normalisation,
    "Flatten": flatten,
    "Reshape": lambda node, values, shape: reshape(values, shape),
    "ReduceMean": mean,
    "Relu": lambda node, values: jax.nn.relu(values),
    "LeakyRelu": lambda node, values: jnp.where(values > 0, values, attributes(node).get("alpha", 0.01) * values),
    "Clip": lambda node, values, low=-jnp.inf, high=jnp.inf: jnp.clip(values, low, high),
    "Sigmoid": lambda node, values: jax.nn.sigmoid(values),
    "Tanh": lambda node, values: jnp.tanh(values),
    "HardSigmoid": lambda node, values: jnp.clip(
        attributes(node).get("alpha", 0.2) * values + attributes(node).get("beta", 0.5), 0, 1
    ),
    "HardSwish": lambda node, values: values * jnp.clip(values / 6 + 0.5, 0, 1),
    "Softmax": lambda node, values: jax.nn.softmax(values, attributes(node).get("axis", -1)),
    "LogSoftmax": lambda node, values: jax.nn.log_softmax(values, attributes(node).get("axis", -1)),
    "Add": lambda node, left, right: left + right,
    "Sub": lambda node, left, right: left - right,
    "Mul": lambda node, left, right: left * right,
    "Div": lambda node, left, right: left / right,
    "Concat": lambda node, *parts: jnp.concatenate(parts, attributes(node)["axis"]),
    "Transpose": lambda node, values: values.transpose(attributes(node)["perm"]),
    "Identity": lambda node, values: values,
    "Dropout": lambda node, values, *_: values,
    "Squeeze": lambda node, values, axes: jnp.squeeze(values, tuple(int(axis) for axis in numpy.asarray(axes))),
}


def check(model):
    """Names every step that cannot be trained here."""
    unknown = sorted({node.op_type for node in model.graph.node} - set(STEPS) - {"Constant"})
    if unknown:
        raise Unsupported(f"its steps {', '.join(unknown)} cannot be retrained here; quantising it does not need that")


def constants(model):
    """Numbers of the graph that are not learned, such as shapes, and those that are."""
    fixed, learned = {}, {}
    weights = {name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input[1:]}
    weights |= {
        name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[1:3]
    }
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        (learned if tensor.name in weights and values.dtype == numpy.float32 else fixed)[tensor.name] = values
    for node in model.graph.node:
        if node.op_type == "Constant":
            options = attributes(node)
            value = options.get("value")
            fixed[node.output[0]] = numpy_helper.to_array(value) if value is not None else numpy.asarray(
                next(iter(options.values()))
            )
    return fixed, learned


def outputs(model, fixed, learned, inputs):
    """What the model's first output is for a batch."""
    known = {**fixed, **learned, model.graph.input[0].name: inputs}
    for node in model.graph.node:
        if node.op_type != "Constant":
            given = [known[name] if name else None for name in node.input]
            while given and given[-1] is None:
                given.pop()
            known[node.output[0]] = STEPS[node.op_type](node, *given)
    return known[model.graph.output[0].name]


def logits(values, kind):
    return jnp.log(jnp.maximum(values, 1e-7)) if kind != "logits" else values


def moved(inputs, generator):
    """The same pictures, by up to a fourteenth of a side elsewhere: what a camera may well see."""
    most = max(inputs.shape[-1] // 14, 1)
    down, across = generator.integers(-most, most + 1, 2)
    return numpy.roll(inputs, (down, across), (-2, -1)) if inputs.ndim == 4 else inputs


def train(model, data, kind, epochs, rate, say, seed=7):
    """Teaches the model what the teacher says of these samples, and what people have said where they have.

    `data` has inputs, classes (-1 where nobody has said) and the teacher's probabilities, or none of them. Same seed,
    same machine, same result.
    """
    check(model)
    inputs, classes, teacher = data
    fixed, learned = constants(model)
    known = classes >= 0
    soft_share = 0.0 if teacher is None else SOFT_SHARE
    if teacher is None:
        inputs, classes, known = inputs[known], classes[known], known[known]
    learned = {name: jnp.asarray(values) for name, values in learned.items()}

    def loss(learned, seen, wanted, is_known, taught):
        said = logits(outputs(model, fixed, learned, seen), kind)
        hard = -jnp.take_along_axis(jax.nn.log_softmax(said), jnp.maximum(wanted, 0)[:, None], 1)[:, 0]
        total = (1 - soft_share) * (hard * is_known).mean()
        if taught is not None:
            soft = jax.nn.softmax(jnp.log(jnp.maximum(taught, 1e-7)) / SOFTENING)
            distance = (soft * (jnp.log(soft) - jax.nn.log_softmax(said / SOFTENING))).sum(1).mean()
            total += soft_share * SOFTENING**2 * distance
        return total

    @jax.jit
    def step(learned, mean, square, at, pace, *batch):
        """Adam, Kingma and Ba 2015."""
        value, slope = jax.value_and_grad(loss)(learned, *batch)
        size = jnp.sqrt(sum((part**2).sum() for part in jax.tree.leaves(slope)))
        slope = jax.tree.map(lambda part: part / jnp.maximum(size, 1.0), slope)
        mean = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, mean, slope)
        square = jax.tree.map(lambda old, new: 0.999 * old + 0.001 * new**2, square, slope)
        change = lambda m, s: pace * (m / (1 - 0.9**at)) / (jnp.sqrt(s / (1 - 0.999**at)) + 1e-8)
        return jax.tree.map(lambda old, m, s: old - change(m, s), learned, mean, square), mean, square, value

    generator = numpy.random.default_rng(seed)
    mean = jax.tree.map(jnp.zeros_like, learned)
    square = mean
    batches = max(len(inputs) // BATCH, 1)
    at, steps = 0, epochs * batches
    for epoch in range(epochs):
        total = 0.0
        order = generator.permutation(len(inputs))
        for batch in range(batches):
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            at += 1
            # Up in the first tenth, then down to nothing.
            share = at / steps
            pace = rate * min(share / 0.1, (1 - share) / 0.9 + 1e-3)
            learned, mean, square, value = step(
                learned, mean, square, float(at), pace,
                moved(inputs[chosen], generator), classes[chosen], known[chosen],
                None if teacher is None else teacher[chosen],
            )  # fmt: skip
            total += float(value)
        say(f"round {epoch + 1} of {epochs}, loss {total / batches:.4f}")
    for tensor in model.graph.initializer:
        if tensor.name in learned:
            tensor.CopyFrom(numpy_helper.from_array(numpy.asarray(learned[tensor.name]), tensor.name))
    return model
