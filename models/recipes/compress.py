"""Makes smaller models of one. `cargo xtask compress` runs this and measures what comes of it.

    python compress.py JOB.json
    python compress.py quantise FP32.onnx INT8.onnx TENSORS.npy     (one sample per row, shape as the model's input)

The job names the model, folders with tensors as the device makes them (`hedge-agent bundle tensors`), and which
candidates are wanted. Each that is made, or cannot be, is a line of JSON on standard output; progress goes to standard
error.
"""

import copy
import json
import pathlib
import sys
import tempfile

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

# More pictures do not change the ranges.
RANGED_MAX = 500
RETRAINED_RATE, STUDENT_RATE = 6e-3, 1e-2


class Impossible(Exception):
    """A candidate that this model cannot have, and why."""


class Samples(CalibrationDataReader):
    def __init__(self, name, inputs):
        self.name, self.inputs = name, iter(inputs[:RANGED_MAX])

    def get_next(self):
        sample = next(self.inputs, None)
        return None if sample is None else {self.name: sample[None]}


def quantise(fp32, int8, inputs):
    """Static INT8 as all models here use it: QDQ, one scale per channel for weights, MinMax ranges for activations.

    Run it with the session option session.x64quantprecision=1 (Hedge always does): x86 processors without VNNI
    otherwise overflow and give other answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared))
        quantize_static(
            str(prepared),
            str(int8),
            Samples(onnx.load(fp32, load_external_data=False).graph.input[0].name, inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def quantise_dynamically(fp32, int8):
    """Weights are INT8 in the file; ranges of activations are found anew for each sample."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared))
        # Weights without a sign: ConvInteger knows no others on a processor.
        quantize_dynamic(str(prepared), str(int8), per_channel=True, weight_type=QuantType.QUInt8)


def halve(fp32, fp16):
    """Numbers of 16 bits in the file; inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(fp32), keep_io_types=True), fp16)


def resized(model, shape):
    """The same network on a smaller picture, if its graph allows that."""
    model = copy.deepcopy(model)
    for at, size in enumerate(shape[1:], 1):
        model.graph.input[0].type.tensor_type.shape.dim[at].dim_value = size
    del model.graph.value_info[:]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
        session.run(None, {model.graph.input[0].name: numpy.zeros(shape, numpy.float32)})
    except Exception as error:
        raise Impossible(f"its graph takes pictures of one size only ({first_line(error)})") from error
    return model


def folded(model):
    """The same model without steps that only work out shapes: with fewer kinds of steps, more models can be retrained."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "folded.onnx")
        options = quiet()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = path
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(path)
    # Domains that no step is of would look like custom operators.
    kept = [entry for entry in model.opset_import if entry.domain in {node.domain for node in model.graph.node}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def quiet():
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def student(base, shape, width, seed=7):
    """A plain network for pictures: convolutions of stride 2 down to 7 pixels or less, twice as many channels each."""
    from math import ceil

    generator = numpy.random.default_rng(seed)
    (batch, channels, height, across), nodes, weights = shape, [], []
    name = base.graph.input[0].name

    def numbers(label, values):
        weights.append(numpy_helper.from_array(values.astype(numpy.float32), label))
        return label

    def convolution(name, at, channels, wider, stride):
        spread = numpy.sqrt(2 / (channels * 9))
        kernel = numbers(f"w{at}", generator.normal(0, spread, (wider, channels, 3, 3)))
        bias = numbers(f"b{at}", numpy.zeros(wider))
        options = {"kernel_shape": [3, 3], "strides": [stride, stride], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [name, kernel, bias], [f"c{at}"], **options))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        return f"r{at}"

    at = 0
    while max(height, across) > 7 and at < 6:
        name, channels, at = convolution(name, at, channels, width, 2), width, at + 1
        height, across, width = ceil(height / 2), ceil(across / 2), min(width * 2, 128)
    name = convolution(name, at, channels, width, 1)
    labels = base.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    last = numbers("last", generator.normal(0, numpy.sqrt(1 / width), (labels, width)))
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", last, numbers("bias", numpy.zeros(labels))], [base.graph.output[0].name], transB=1),
    ]
    sides = ["n", *shape[1:]]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info(base.graph.input[0].name, TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(base.graph.output[0].name, TensorProto.FLOAT, ["n", labels])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def tensors(folder):
    """Inputs and classes; without the samples that could not be read."""
    folder = pathlib.Path(folder)
    inputs, classes = numpy.load(folder / "inputs.npy"), numpy.load(folder / "classes.npy")
    return inputs, classes


def lesson(job, folder):
    if folder is None:
        raise Impossible("it needs samples to learn from: name them with --train")
    inputs, classes = tensors(folder)
    usable = classes > UNREADABLE
    teacher = None
    if job["has_teacher"]:
        # It has seen the pictures in their full size, whatever is learned from.
        place = pathlib.Path(job["train"]["folder"])
        teacher = numpy.load(place / "scores.npy")
        usable &= numpy.load(place / "classes.npy") > UNREADABLE
    if teacher is None and not (classes >= 0).any():
        raise Impossible("there is nothing to learn from: the samples have no labels, and there is no --cloud as teacher")
    return inputs[usable], classes[usable], None if teacher is None else teacher[usable]


# What `hedge-agent bundle tensors` writes for a sample that it could not read; -1 is one without a label.
UNREADABLE = -2


def first_line(error):
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def say(text):
    print(text, file=sys.stderr, flush=True)


def main():
    if sys.argv[1:2] == ["quantise"]:
        quantise(sys.argv[2], sys.argv[3], numpy.load(sys.argv[4]))
        return
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    out = pathlib.Path(job["out"])
    base = onnx.load(job["model"])
    opset = next((entry.version for entry in base.opset_import if entry.domain in ("", "ai.onnx")), 0)
    small = job["sizes"]
    full, ranged = job["train"], job["calibration"]

    def done(name, path, **more):
        print(json.dumps({"name": name, "file": str(path), **more}), flush=True)

    def candidate(name, make, **more):
        """One that fails says why, and the others go on."""
        path = out / f"{name}.onnx"
        say(f"{name} …")
        try:
            note = make(path)
            done(name, path, note=note, **more)
            return path
        except Exception as error:
            why = first_line(error)
            say(f"{name}: cannot be made: {why}")
            print(json.dumps({"name": name, "why": why}), flush=True)
            return None

    def both(name, make, calibration, **more):
        """Retrained, and quantised after that."""
        path = candidate(name, make, **more)
        if path:
            inputs, classes = tensors(calibration)
            usable = inputs[classes > UNREADABLE]
            candidate(f"{name}-int8", lambda int8: quantise(path, int8, usable), **more)

    def retrained(model, folder, epochs, rate, kind, name):
        from graph import train

        return train(model, lesson(job, folder), kind, epochs, rate, lambda text: say(f"{name}: {text}"))

    def pruned(path):
        from prune import prune

        model = folded(base)
        lost, all_ = prune(model, job["prune"])
        retrained(model, full["folder"], job["epochs"], RETRAINED_RATE, job["kind"], "pruned")
        onnx.save(model, path)
        return f"{lost} of {all_} convolutions lost channels"

    def same(path):
        onnx.save(retrained(folded(base), full["folder"], job["epochs"], RETRAINED_RATE, job["kind"], "retrained"), path)

    def smaller(size):
        def make(path):
            model = folded(resized(base, size["shape"]))
            retrained(model, size["train"], job["epochs"], RETRAINED_RATE, job["kind"], size["name"])
            onnx.save(model, path)

        return make

    def learner(path):
        if len(full["shape"]) != 4:
            raise Impossible("the student that comes with this command looks at pictures")
        if job["layout"] != "nchw":
            raise Impossible("the student that comes with this command takes pictures as NCHW")
        model = student(base, full["shape"], job["student_width"])
        retrained(model, full["folder"], 2 * job["epochs"], STUDENT_RATE, "logits", "student")
        onnx.save(model, path)

    wanted = set(job["wanted"])
    if opset < 13:
        base = onnx.version_converter.convert_version(base, 13)
        job["model"] = str(out / "base.onnx")
        onnx.save(base, job["model"])
    done("base", pathlib.Path(job["model"]))
    if "dynamic" in wanted:
        candidate("int8-dynamic", lambda path: quantise_dynamically(job["model"], path))
    if "static" in wanted:
        inputs, classes = tensors(ranged["folder"])
        candidate("int8-static", lambda path: quantise(job["model"], path, inputs[classes > UNREADABLE]))
    if "fp16" in wanted:
        candidate("fp16", lambda path: halve(job["model"], path))
    if "retrained" in wanted:
        both("retrained", same, ranged["folder"])
    if "pruned" in wanted:
        both("pruned", pruned, ranged["folder"])
    if "smaller" in wanted:
        for size in small:
            both(size["name"], smaller(size), size["calibration"], size=size["size"])
    if "student" in wanted:
        both("student", learner, ranged["folder"], output_kind="logits")


if __name__ == "__main__":
    main()
