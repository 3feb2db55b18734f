"""Trains the Fashion-MNIST pair: a large network, and a small one that learns from it (distillation).

    python fashion.py DATA_DIR OUT_DIR [--epochs 20] [--images 50000]

DATA_DIR holds the four IDX files (Debian: package dataset-fashion-mnist). The last 10,000 training images are
held out: nothing is trained on them, so that calibration can use them. The test images are only read to print
the accuracy. Same seed, same machine, same result; another machine gives slightly other weights.
"""

import argparse
import gzip
import pathlib

import numpy
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

from compress import quantise

TRAINED = 50_000
MEAN, STD = 0.2860, 0.3530
# Hinton et al. 2015: soft targets at a raised temperature, mixed with the true labels.
SOFTENING, SOFT_SHARE = 4.0, 0.7


def read(folder, name):
    images = gzip.open(folder / f"{name}-images-idx3-ubyte.gz").read()
    labels = gzip.open(folder / f"{name}-labels-idx1-ubyte.gz").read()
    pixels = numpy.frombuffer(images, numpy.uint8, offset=16).reshape(-1, 1, 28, 28)
    values = ((pixels / 255 - MEAN) / STD).astype(numpy.float32)
    return torch.from_numpy(values), torch.from_numpy(numpy.frombuffer(labels, numpy.uint8, offset=8).astype("int64"))


def convolution(inputs, outputs, size=3, stride=1):
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(*convolution(channels, channels), *convolution(channels, channels)[:2])

    def forward(self, values):
        return functional.relu(values + self.body(values))


def small():
    return nn.Sequential(
        *convolution(1, 12, stride=2), *convolution(12, 24, stride=2), *convolution(24, 48),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


def large():
    return nn.Sequential(
        *convolution(1, 32, size=5, stride=2), Residual(32),
        *convolution(32, 64, stride=2), Residual(64),
        *convolution(64, 128, stride=2), Residual(128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def augmented(images):
    """Mirrored at random and moved by up to two pixels."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    across, down = torch.randint(-2, 3, (2,)).tolist()
    return torch.roll(images, (down, across), (2, 3))


def train(model, images, labels, epochs, teacher=None):
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    batches = -(-len(images) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(images)).split(256):
            seen, wanted = augmented(images[batch]), labels[batch]
            logits = model(seen)
            loss = functional.cross_entropy(logits, wanted)
            if teacher is not None:
                with torch.no_grad():
                    soft = functional.softmax(teacher(seen) / SOFTENING, 1)
                distance = functional.kl_div(functional.log_softmax(logits / SOFTENING, 1), soft, reduction="batchmean")
                loss = SOFT_SHARE * SOFTENING**2 * distance + (1 - SOFT_SHARE) * loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / batches:.4f}", flush=True)
    return model.eval()


def export(model, path):
    torch.onnx.export(
        model, torch.zeros(1, 1, 28, 28), str(path), input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}}, opset_version=13, dynamo=False,
    )  # fmt: skip


def accuracy(path, images, labels):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    logits = onnxruntime.InferenceSession(str(path), options).run(None, {"input": images.numpy()})[0]
    return float((logits.argmax(1) == labels.numpy()).mean())


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=pathlib.Path)
    arguments.add_argument("out", type=pathlib.Path)
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--images", type=int, default=TRAINED, help="fewer for a quick try")
    arguments = arguments.parse_args()
    torch.manual_seed(7)
    images, labels = read(arguments.data, "train")
    used = min(arguments.images, TRAINED)
    images, labels = images[:used], labels[:used]
    test = read(arguments.data, "t10k")
    paths = {name: arguments.out / f"fashion-{name}" for name in ("large", "small")}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)

    print("large")
    teacher = train(large(), images, labels, arguments.epochs)
    export(teacher, paths["large"] / "fp32.onnx")
    print("small, from the large one")
    export(train(small(), images, labels, arguments.epochs, teacher), paths["small"] / "fp32.onnx")
    samples = images[torch.randperm(len(images))[:500]].numpy()
    quantise(paths["small"] / "fp32.onnx", paths["small"] / "int8.onnx", samples)
    for path in sorted(arguments.out.glob("fashion-*/*.onnx")):
        print(f"{path}: {path.stat().st_size} bytes, test accuracy {accuracy(path, *test):.4f}")


if __name__ == "__main__":
    main()
