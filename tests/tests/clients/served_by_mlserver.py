"""Serves an ONNX file through MLServer, as somebody does who writes a runtime of their own.

usage: served_by_mlserver.py MODEL.onnx NAME INPUT OUTPUT PORT DIR
"""

import asyncio
import json
import os
import sys

import numpy as np
import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor


class Onnx(MLModel):
    async def load(self) -> bool:
        path, self._input, self._output = json.loads(os.environ["SERVED"])
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pixels = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (scores,) = self._session.run([self._output], {self._input: pixels})
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(self._output, scores)],
        )


async def main() -> None:
    path, name, given, taken, port, folder = sys.argv[1:]
    os.environ["SERVED"] = json.dumps([path, given, taken])
    os.chdir(folder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    port_of = lambda port: MetadataTensor(
        name=port.name, datatype="FP32", shape=[side if isinstance(side, int) else -1 for side in port.shape]
    )
    model = ModelSettings(
        name=name,
        implementation=Onnx,
        inputs=[port_of(port) for port in session.get_inputs()],
        outputs=[port_of(port) for port in session.get_outputs()],
    )
    settings = Settings(
        host=os.environ.get("SERVED_HOST", "127.0.0.1"),
        http_port=int(port),
        grpc_port=int(port) + 1,
        metrics_port=int(port) + 2,
        parallel_workers=0,
        debug=False,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
