"""Remakes the golden samples of the digits and speaker bundles, and what Python's numpy and ONNX Runtime say of them.

    python sound_and_series.py ../

No recording and no row of a data set goes in: the samples are made up, from seeds. The front ends are written here a
second time and from their description, so that a mistake of the agent's own shows. Writes the samples into the bundles'
`golden/`, the probabilities of every class into `golden-sound-and-series.json`, and prints the manifests' lines.
"""

import argparse
import io
import json
import pathlib
import wave

import numpy
import onnxruntime

RATE = 8000
# One seed a sample, chosen so that the small model is sure of all but the doubtful ones.
SOUNDS = {"sure": 25, "short": 16, "doubtful": 144, "long": 119}
SERIES = {"sure": 47, "short": 30, "doubtful": 120}

# Of the training set, by channel.
MEAN = [0.86911, -0.5545, 0.24611, -0.26729, 0.21898, -0.21054, -0.17407, -0.05171, -0.20493, -0.18119, -0.02359, 0.08621]
STD = [0.48762, 0.39118, 0.3009, 0.30591, 0.2691, 0.1683, 0.16122, 0.18834, 0.18772, 0.11692, 0.09764, 0.12755]


def voice(seed, seconds):
    """A buzz through three resonances that glide from one place to another, and a hiss before or after it: a syllable."""
    chance = numpy.random.default_rng(seed)
    count = int(seconds * RATE)
    at = numpy.arange(count) / count
    pitch = chance.uniform(90, 200) * (1 + chance.uniform(-0.2, 0.2) * at)
    phase = 2 * numpy.pi * numpy.cumsum(pitch) / RATE
    low, high = [250, 800, 2200], [850, 2300, 3200]
    begin, end = chance.uniform(low, high), chance.uniform(low, high)
    sound = numpy.zeros(count)
    for harmonic in range(1, 40):
        hertz = harmonic * pitch
        gain = numpy.zeros(count)
        for formant in range(3):
            centre = begin[formant] + (end[formant] - begin[formant]) * at
            gain += 1 / (1 + ((hertz - centre) / (60 + 30 * formant)) ** 2) / (1 + formant)
        sound += numpy.where(hertz < 3800, gain * numpy.sin(harmonic * phase), 0)
    loud = numpy.sin(numpy.pi * at) ** chance.uniform(0.3, 1.5)
    hiss = chance.normal(size=count) * numpy.exp(-(((at - chance.choice([0.05, 0.95])) / 0.1) ** 2))
    sound = sound * loud / numpy.abs(sound).max() + chance.uniform(0, 0.3) * hiss + 0.002 * chance.normal(size=count)
    return numpy.round(sound / numpy.abs(sound).max() * chance.uniform(0.1, 0.9) * 32767).astype("<i2")


def logmel(samples):
    """As the manifest says it; the middle second, 49 frames of 256 every 160, 40 bands from 60 to 3800 Hz."""
    sound = samples.astype(numpy.float64) / 32768
    if len(sound) > RATE:
        start = (len(sound) - RATE) // 2
        sound = sound[start : start + RATE]
    left = (RATE - len(sound)) // 2
    sound = numpy.pad(sound, (left, RATE - len(sound) - left))
    window = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(256) / 256)
    frames = numpy.stack([sound[at * 160 : at * 160 + 256] * window for at in range(49)])
    power = numpy.abs(numpy.fft.rfft(frames)) ** 2
    corners = numpy.linspace(*(2595 * numpy.log10(1 + hertz / 700) for hertz in (60, 3800.0)), 42)
    corners = 700 * (10 ** (corners / 2595) - 1)
    bins = numpy.arange(129) * RATE / 256
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    filters = numpy.clip(numpy.minimum(rising, falling), 0, None)
    return ((numpy.log(filters @ power.T + 1e-6) + 7) / 4).astype(numpy.float32)[None, None]


def rows(seed, count):
    """Twelve numbers that wander around somebody's own middle."""
    chance = numpy.random.default_rng(seed)
    middle = chance.normal(scale=0.9, size=12)
    drift = chance.normal(scale=0.8, size=12) * numpy.linspace(-1, 1, count)[:, None]
    steps = middle + drift + chance.normal(scale=0.3, size=(count, 12))
    return numpy.round(steps * STD + MEAN, 6)


def series(table):
    """As the manifest says it; zeros follow what is shorter than 29 rows."""
    normal = (table - MEAN) / STD
    return numpy.pad(normal, ((0, 29 - len(normal)), (0, 0))).T.astype(numpy.float32)[None]


def softmax(logits):
    shares = numpy.exp(logits - logits.max())
    return shares / shares.sum()


def wav(samples):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def csv(table):
    lines = [",".join(f"c{at + 1}" for at in range(12))]
    lines += [",".join(f"{value:.6f}" for value in row) for row in table]
    return ("\n".join(lines) + "\n").encode()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", type=pathlib.Path)
    models = arguments.parse_args().models
    seconds = {"sure": 0.7, "short": 0.4, "doubtful": 0.7, "long": 1.3}
    counts = {"sure": 29, "short": 15, "doubtful": 20}
    samples = []
    for name, seed in SOUNDS.items():
        sound = voice(seed, seconds[name])
        samples.append(("digits", f"{name}.wav", wav(sound), logmel(sound)))
    for name, seed in SERIES.items():
        table = rows(seed, counts[name])
        samples.append(("speaker", f"{name}.csv", csv(table), series(table)))
    found = []
    for task, file, content, tensor in samples:
        scores = {}
        for size in ("small", "large"):
            folder = models / f"{task}-{size}"
            session = onnxruntime.InferenceSession(folder / "fp32.onnx")
            probabilities = softmax(session.run(None, {session.get_inputs()[0].name: tensor})[0][0].astype(numpy.float64))
            labels = (folder / "labels.txt").read_text().split()
            best = int(probabilities.argmax())
            (folder / "golden").mkdir(exist_ok=True)
            (folder / "golden" / file).write_bytes(content)
            print(f'{folder.name}\n[[golden]]\nfile = "golden/{file}"\nlabel = "{labels[best]}"')
            print(f"scores = {{ fp32 = {probabilities[best]:.4f} }}\n")
            scores[size] = [round(float(share), 5) for share in probabilities]
        found.append({"task": task, "file": f"golden/{file}", **scores})
    lines = ",\n".join(json.dumps(one) for one in found)
    (models / "golden-sound-and-series.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
