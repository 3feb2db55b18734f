"""Compares the scores tritonclient gets from an agent with those ONNX Runtime gives directly.

usage: tritonclient_scores.py ADDRESS MODEL MODEL.onnx
"""
import sys

import numpy
import onnxruntime
import tritonclient.http

address, name, path = sys.argv[1:]
options = onnxruntime.SessionOptions()
# As the agent does: 8-bit sums that do not saturate, so that INT8 scores are the same on every x86 processor.
options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
[wanted_input], [wanted_output] = session.get_inputs(), session.get_outputs()
shape = [size if isinstance(size, int) else 1 for size in wanted_input.shape]

client = tritonclient.http.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
metadata = client.get_model_metadata(name)
assert metadata["inputs"][0]["name"] == wanted_input.name, metadata
assert metadata["inputs"][0]["datatype"] == "FP32", metadata

random = numpy.random.default_rng(7)
for binary in (False, True):
    for _ in range(20):
        sample = random.standard_normal(shape, dtype=numpy.float32)
        tensor = tritonclient.http.InferInput(wanted_input.name, shape, "FP32")
        tensor.set_data_from_numpy(sample, binary_data=binary)
        output = tritonclient.http.InferRequestedOutput(wanted_output.name, binary_data=binary)
        result = client.infer(name, [tensor], outputs=[output]).as_numpy(wanted_output.name)
        [direct] = session.run([wanted_output.name], {wanted_input.name: sample})
        # One library, one model, one sample: only the decimal form of JSON may differ.
        numpy.testing.assert_allclose(result.reshape(direct.shape), direct, rtol=1e-5, atol=1e-5)
print("same scores")
