"""Serves an ONNX file through Triton, with PyTriton.

usage: served_by_pytriton.py MODEL.onnx NAME INPUT OUTPUT PORT DIR
"""

import os
import sys
import tempfile

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

path, name, given, taken, port, folder = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def sides(port):
    return tuple(side if isinstance(side, int) else -1 for side in port.shape[1:])


@batch
def infer(**inputs):
    (scores,) = session.run([taken], {given: inputs[given]})
    return {taken: scores}


config = TritonConfig(
    http_address=os.environ.get("SERVED_HOST", "127.0.0.1"),
    http_port=int(port),
    allow_grpc=False,
    allow_metrics=False,
)
with Triton(config=config, workspace=os.path.join(tempfile.mkdtemp(dir=folder), "triton")) as triton:
    triton.bind(
        model_name=name,
        infer_func=infer,
        inputs=[Tensor(name=given, dtype=np.float32, shape=sides(session.get_inputs()[0]))],
        outputs=[Tensor(name=taken, dtype=np.float32, shape=sides(session.get_outputs()[0]))],
        config=ModelConfig(max_batch_size=16),
    )
    triton.serve()
