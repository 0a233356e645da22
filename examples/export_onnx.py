"""A network as an ONNX file, run without zoo_seg: python examples/export_onnx.py [--out FILE]

Needs pip install 'zoo_seg[onnx]'. The graph normalises and chooses the class itself: images in, class ids out.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import zoo_seg

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("out/street.onnx"))
arguments = parser.parse_args()

model = zoo_seg.semanticfpn_mobilenetv4_small(pretrained="camvid")
written = zoo_seg.export(model, arguments.out, preprocess=True, argmax=True)
print(f"{written.path}: {written.size / 1e6:.1f} MB; beside the network: {written.differences[0]}")

# From here on nothing of zoo_seg is needed.
image = np.asarray(Image.open(Path(__file__).with_name("street.jpg")).convert("RGB"))
session = onnxruntime.InferenceSession(written.path)
(class_map,) = session.run(None, {"image": image[None]})
print(f"onnxruntime: class map {class_map.shape}, {class_map.dtype}")

same = (class_map[0] == model.predict(image, resize=None).mask).mean()
print(f"{same:.2%} of the pixels are those of model.predict")
