"""Every image of a folder, and a table of areas: python examples/batch_folder.py [FOLDER] [--out DIR]

Images are read while the network works, and only a few are held, however many there are. Without arguments the
images beside this file. `zoo-seg predict FOLDER` does it on the command line, and goes on after an interruption.
"""

import argparse
import csv
from pathlib import Path

import zoo_seg

parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
parser.add_argument("--out", type=Path, default=Path("out/batch"))
parser.add_argument("--batch-size", type=int, default=1, help="images of one size together; pays on a GPU")
arguments = parser.parse_args()

images = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
model = zoo_seg.semanticfpn_mobilenetv4_small(pretrained="camvid")
arguments.out.mkdir(parents=True, exist_ok=True)
broken = 0
with (arguments.out / "areas.csv").open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["image", *model.classes])
    results = model.stream(images, batch_size=arguments.batch_size, on_error="yield")
    for path, result in zip(images, results, strict=True):
        name = path.relative_to(arguments.folder)
        if isinstance(result, zoo_seg.ZooSegError):  # a broken image does not stop the others
            broken += 1
            print(result)
            continue
        areas = result.areas()
        table.writerow([name.as_posix(), *(f"{areas.get(label, 0):.4f}" for label in model.classes)])
        result.save(arguments.out / name.with_suffix(".png"))
print(f"{len(images) - broken} of {len(images)} images, their areas in {file.name}")
