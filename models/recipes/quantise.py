"""Static INT8 quantisation as all models here use it: QDQ, per channel, MinMax.

    python quantise.py FP32.onnx INT8.onnx TENSORS.npy     (one sample per row, shape as the model's input)

Run the result with the session option session.x64quantprecision=1 (Hedge always does): x86 processors without
VNNI otherwise overflow and give other answers.
"""

import pathlib
import sys
import tempfile

import numpy
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Samples(CalibrationDataReader):
    def __init__(self, tensors):
        self.tensors = iter(tensors)

    def get_next(self):
        tensor = next(self.tensors, None)
        return None if tensor is None else {"input": tensor}


def quantise(fp32, int8, tensors):
    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared))
        quantize_static(
            str(prepared),
            str(int8),
            Samples(tensors),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


if __name__ == "__main__":
    quantise(sys.argv[1], sys.argv[2], (row[None] for row in numpy.load(sys.argv[3])))
