"""The class map of an image: python examples/predict.py [IMAGE] [--weights pspnet_resnet50_os8.ade20k] [--out DIR]

Without arguments the drawn street and the network that comes with the package: nothing is downloaded.
"""

import argparse
from pathlib import Path

import zoo_seg

parser = argparse.ArgumentParser()
parser.add_argument("image", nargs="?", type=Path, default=Path(__file__).with_name("street.jpg"))
parser.add_argument("--weights", default="semanticfpn_mobilenetv4_small.camvid", help="an id, as zoo-seg list shows it")
parser.add_argument("--out", type=Path, default=Path("out"))
arguments = parser.parse_args()

model_name, _, tag = arguments.weights.partition(".")
model = zoo_seg.create_model(model_name, tag)
result = model.predict(arguments.image)

for name, share in result.areas().items():
    print(f"{share:6.1%}  {name}")
mask = result.save(arguments.out / f"{arguments.image.stem}_mask.png")  # makes the folder
overlay = mask.with_name(f"{arguments.image.stem}_overlay.png")
result.overlay(legend=True).save(overlay)
print(f"{mask}, {overlay}")
