"""Memory and time of `predict_raster` on a generated GeoTIFF, which is small on disk.

python benchmarks/aerial.py [--size 20000 20000] [--model semanticfpn_mobilenetv4_small] [--folder DIR]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from tqdm import tqdm

import zoo_seg
from zoo_seg.images.reading import drawn_street


def scene(path: Path, height: int, width: int) -> None:
    """A GeoTIFF of the drawn street, again and again, on a grid of 20 cm."""
    street = drawn_street()
    assert street is not None
    tile = np.moveaxis(np.asarray(Image.open(street).convert("RGB").resize((1024, 1024))), 2, 0)
    row = np.tile(tile, (1, 1, -(-width // 1024)))[:, :, :width]
    with rasterio.open(
        *(path, "w", "GTiff", width, height, 3, "EPSG:25832", from_origin(5e5, 5.5e6, 0.2, 0.2), "uint8"),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="jpeg",
        photometric="ycbcr",
    ) as target:
        for top in range(0, height, 1024):
            rows = min(1024, height - top)
            target.write(row[:, :rows], window=((top, top + rows), (0, width)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(20000, 20000), metavar=("H", "W"))
    parser.add_argument("--model", default="semanticfpn_mobilenetv4_small")
    parser.add_argument("--weights", default="camvid")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--confidence", action="store_true", help="write it as well")
    parser.add_argument("--folder", type=Path, help="keeps the files")
    arguments = parser.parse_args()
    height, width = arguments.size
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        image = folder / f"scene_{height}x{width}.tif"
        if not image.exists():
            scene(image, height, width)
        model = zoo_seg.create_model(arguments.model, arguments.weights)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        started = time.monotonic()
        with tqdm(total=height, unit="row", mininterval=10) as bar:
            model.predict_raster(
                image,
                image.with_name(f"{image.stem}_mask.tif"),
                confidence=image.with_name(f"{image.stem}_confidence.tif") if arguments.confidence else None,
                crop=arguments.crop,
                stride=arguments.stride,
                progress=lambda done, _: bar.update(done - bar.n),
            )
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.glob("*.tif")))
        print(f"{height}x{width}: {seconds:.0f} s, {seconds / (height * width / 1e6):.2f} s a megapixel")
        print(f"peak memory {peak:.2f} GB ({before:.2f} GB before); {sizes}")


if __name__ == "__main__":
    main()
