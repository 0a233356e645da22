"""A network for data of one's own: python examples/finetune.py [--data DIR] [--out DIR] [--epochs N]

Needs pip install 'zoo_seg[train]'. Without --data it draws a small data set of discs and boxes, so that it ends soon;
with it, leave the crop size at its 512x512 and train for longer.
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

import zoo_seg


def draw_data(folder: Path, size: int = 96) -> None:
    """The layout of a data set: images/{train,val}, masks/{train,val} of class ids, and dataset.json."""
    random.seed(0)
    colours = ["olive", "crimson", "royalblue"]
    for split, count in (("train", 16), ("val", 4)):
        for number in range(count):
            pixels, mask = Image.new("RGB", (size, size), colours[0]), Image.new("L", (size, size))
            for class_id in (1, 2):
                x, y = random.randrange(size - 40), random.randrange(size - 40)
                for image, fill in ((pixels, colours[class_id]), (mask, class_id)):
                    draw = ImageDraw.Draw(image)
                    (draw.ellipse if class_id == 1 else draw.rectangle)((x, y, x + 40, y + 40), fill)
            for kind, image in (("images", pixels), ("masks", mask)):
                path = folder / kind / split / f"{number:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    description = {"classes": ["ground", "disc", "box"], "ignore_index": 255}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


if __name__ == "__main__":  # the processes that read images import this file
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/run"))
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    options: dict = {"epochs": arguments.epochs}
    if arguments.data is None:
        arguments.data = arguments.out.with_name(f"{arguments.out.name}_data")
        draw_data(arguments.data)
        options |= {"crop_size": (96, 96), "scale": (1.0, 1.5), "batch_size": 4}
    model = zoo_seg.finetune(
        arguments.data, weights="semanticfpn_mobilenetv4_small.camvid", out=arguments.out, workers=0, **options
    )
    print(f"mIoU {model.metrics[0].value:.1f} % on val")
    image = sorted((arguments.data / "images" / "val").iterdir())[0]
    print(zoo_seg.from_pretrained(arguments.out).predict(image))
