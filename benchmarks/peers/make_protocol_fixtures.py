"""Numbers of the original projects' own inference, for the tests: `protocol_<source>_<family>_<case>.npz`.

    python benchmarks/peers/make_protocol_fixtures.py --out tests/fixtures

Needs the environment of this folder's README. The weights are those of `reference_checkpoint.py`. Each file holds

    meta      JSON: source, family, num_classes, seed, how it was run, the sizes, the versions
    keys      JSON: [name, shape, dtype] of every entry of the checkpoint, in the source's own names
    image   (h, w, 3) uint8 RGB, resized to meta.test_scale. Without it (ssseg) the input is
              `image_tensor(*meta.input_size, meta.image_seed)`
    logits    (C, ...) float32: the averaged logits [:, ::s, ::s] at the output size, s = meta.subsample
              (mmseg with several scales or flip: the averaged probabilities; meta.kind says which)
    mask      (h, w) uint8: the class map at the output size

Scores of filled weights are too far apart for probabilities to tell anything: mmseg's classifier (meta.scaled_entries)
is multiplied by meta.classifier_scale, a power of two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmseg_peer
import reference_checkpoint as reference
import ssseg_peer
from mmseg.models.utils import resize

SUBSAMPLE = 9  # odd: it meets every phase of the strides 4 and 8
GRID = {"mode": "slide", "crop": [64, 64], "stride": [48, 40]}
SCALES = {"scales": [0.5, 0.75, 1.25], "flip": True}
WHOLE = {"mode": "whole", "crop": None, "stride": None, "scales": [1.0], "flip": False}

SSSEG = {
    "pspnet_resnet50_os8": ("PSPNet", 8, 6),
    "semanticfpn_resnet50": ("SemanticFPN", 32, 11),
}
# case: (input size, output size, options)
SSSEG_CASES: dict[str, tuple[tuple[int, int], tuple[int, int], dict[str, Any]]] = {
    "whole": ((97, 141), (111, 160), {}),
    "slide": ((97, 141), (111, 160), GRID),
    "small": ((49, 57), (70, 81), GRID),
    "msflip": ((97, 141), (111, 160), SCALES),
    "slide_msflip": ((97, 141), (111, 160), {**GRID, **SCALES}),
}
# case: (image size, test scale, whether the ratio is kept); of the last family only
SSSEG_RESIZED: dict[str, tuple[tuple[int, int], list[int], bool]] = {
    "square": ((111, 160), [97, 97], True),
    "stretched": ((160, 111), [97, 97], False),
    "stretched_frame": ((160, 111), [141, 97], False),
}

MMSEG = {
    "fpn_r50": ("fpn", 19, 4, 2.0**-4),
    "pspnet_r50_d8": ("pspnet", 21, 7, 2.0**-2),
}
TEST_SCALE = [161, 97]
# case: (image size, options)
MMSEG_CASES: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "whole": ((73, 118), {}),
    "portrait": ((118, 73), {}),
    "slide": ((73, 118), GRID),
    "msflip": ((73, 118), SCALES),
    "slide_msflip": ((73, 118), {**GRID, **SCALES}),
}
# case: (image size, test scale, options); of the first family only
MMSEG_RESIZED: dict[str, tuple[tuple[int, int], list[int], dict[str, Any]]] = {
    "square": ((73, 118), [97, 97], {}),
    "square_enlarged": ((73, 52), [112, 112], {}),
    "square_same": ((96, 96), [96, 96], {}),
    "square_slide": ((118, 95), [105, 105], GRID),
    "square_msflip": ((73, 118), [97, 97], SCALES),
}


def write(
    path: Path,
    logits: np.ndarray,
    meta: Mapping[str, Any],
    entries: Sequence[reference.Entry],
    **arrays: np.ndarray,
) -> None:
    """One fixture. The margin tells how near to a tie the class map comes."""
    best = np.partition(logits, -2, axis=0)[-2:]
    margin = (best[1] - best[0]) / logits.std()
    meta = {
        **meta,
        "subsample": SUBSAMPLE,
        "full_shape": list(logits.shape),
        "std": float(logits.std(dtype=np.float64)),
        "mean": float(logits.mean(dtype=np.float64)),
        "smallest_margin_in_std": float(margin.min()),
        "pixels_with_margin_below_1e-4_std": int((margin < 1e-4).sum()),
        "classes_in_mask": len(np.unique(logits.argmax(axis=0))),
    }
    np.savez_compressed(
        path,
        meta=json.dumps(meta),
        keys=json.dumps(entries, separators=(",", ":")),
        logits=np.ascontiguousarray(logits[:, ::SUBSAMPLE, ::SUBSAMPLE], dtype=np.float32),
        mask=logits.argmax(axis=0).astype(np.uint8),
        **arrays,
    )
    shown = ("kind", "std", "smallest_margin_in_std", "pixels_with_margin_below_1e-4_std", "classes_in_mask")
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", {key: meta[key] for key in shown}, flush=True)


def make_ssseg(out: Path, folder: Path) -> None:
    for family, (type_, outstride, seed) in SSSEG.items():
        entries = reference.entries_of(ssseg_peer.build(type_, 21, 50, outstride).state_dict())
        path = folder / f"{family}.pth"
        reference.save(reference.checkpoint(reference.filled_state_dict(entries, seed), "ssseg"), path)
        model = ssseg_peer.load(path, outstride)
        for number, (case, (input_size, output_size, changes)) in enumerate(SSSEG_CASES.items()):
            options = {**WHOLE, **changes}
            x = torch.from_numpy(reference.image_tensor(*input_size, seed=number))
            logits = ssseg_peer.predict(model, x, output_size, **options)[0].numpy()
            meta = {
                "source": "ssseg",
                "family": family,
                "case": case,
                "num_classes": 21,
                "seed": seed,
                "image_seed": number,
                "input_size": input_size,
                "output_size": output_size,
                **options,
                "kind": "logits",
                "versions": ssseg_peer.VERSIONS,
            }
            write(out / f"protocol_ssseg_{family}_{case}.npz", logits, meta, entries)
    for number, (case, (size, test_scale, keep_ratio)) in enumerate(SSSEG_RESIZED.items(), len(SSSEG_CASES)):
        image = reference.image(*size, seed=number)
        x = ssseg_peer.prepare(np.ascontiguousarray(image[:, :, ::-1]), test_scale, keep_ratio)
        meta = {
            "source": "ssseg",
            "family": family,
            "case": case,
            "num_classes": 21,
            "seed": seed,
            "input_size": list(x.shape[2:]),
            "output_size": size,
            "test_scale": test_scale,
            "keep_ratio": keep_ratio,
            **WHOLE,
            "kind": "logits",
            "versions": ssseg_peer.VERSIONS,
        }
        logits = ssseg_peer.predict(model, x, size, **WHOLE)[0].numpy()
        write(out / f"protocol_ssseg_{family}_{case}.npz", logits, meta, entries, image=image)


def order_of_0x(
    model: torch.nn.Module, image: np.ndarray, scales: Sequence[float], flip: bool, test_scale: Sequence[int]
) -> np.ndarray:
    """The published numbers' order: logits to the image's size, softmax, only then un-flip. 1.x un-flips first."""
    total, count = 0.0, 0
    resizes = [{"scale": (int(test_scale[0] * r), int(test_scale[1] * r))} for r in scales]
    batch = mmseg_peer._augmented(image, resizes, flip)
    for inputs, samples in zip(batch["inputs"], batch["data_samples"], strict=True):
        data = model.data_preprocessor({"inputs": inputs, "data_samples": samples}, False)
        metas = [sample.metainfo for sample in data["data_samples"]]
        with torch.no_grad():
            logits = model.inference(data["inputs"], metas)
        logits = resize(logits, size=image.shape[:2], mode="bilinear", align_corners=False, warning=False)
        probabilities = logits.softmax(dim=1)
        total = total + (probabilities.flip(dims=(3,)) if samples[0].flip else probabilities)
        count += 1
    return (total / count)[0].numpy()


def make_mmseg(out: Path, folder: Path) -> None:
    for family, (name, num_classes, seed, factor) in MMSEG.items():
        entries = reference.entries_of(mmseg_peer.build(name, num_classes).state_dict())
        path = folder / f"{family}.pth"
        state_dict = reference.filled_state_dict(entries, seed)
        scaled = ["decode_head.conv_seg.weight", "decode_head.conv_seg.bias"]
        reference.scale_entries(state_dict, scaled, factor)
        reference.save(reference.checkpoint(state_dict, "mmseg"), path, "legacy")
        cases = {case: (size, TEST_SCALE, changes) for case, (size, changes) in MMSEG_CASES.items()}
        if family == next(iter(MMSEG)):
            cases |= MMSEG_RESIZED
        for number, (case, (size, test_scale, changes)) in enumerate(cases.items()):
            options = {**WHOLE, **changes}
            run = {key: options.pop(key) for key in ("scales", "flip")}
            model = mmseg_peer.load(path, test_scale=test_scale, **options)
            image = reference.image(*size, seed=number)
            bgr = np.ascontiguousarray(image[:, :, ::-1])
            result = mmseg_peer.predict(model, bgr, test_scale=test_scale, scale_rule="0.x", **run)
            assert np.array_equal(result["mask"], result["logits"].argmax(axis=0))
            meta = {
                "source": "mmseg",
                "family": family,
                "case": case,
                "num_classes": num_classes,
                "seed": seed,
                "classifier_scale": factor,
                "scaled_entries": scaled,
                "output_size": size,
                "test_scale": test_scale,
                **options,
                **run,
                "kind": "logits",
                "versions": mmseg_peer.VERSIONS,
            }
            if "sizes" in result:
                older = order_of_0x(model, bgr, test_scale=test_scale, **run)
                meta.update(
                    kind="probabilities",
                    scale_rule="0.x: scale r resizes the image into (int(W0 * r), int(H0 * r)), W0, H0 = test_scale",
                    input_sizes=result["sizes"],
                    largest_logit=result["largest_logit"],
                    largest_difference_to_order_of_0x=float(np.abs(older - result["logits"]).max()),
                )
                print({key: meta[key] for key in ("input_sizes", "largest_difference_to_order_of_0x", "largest_logit")})
            else:
                height, width = size
                ratio = min(max(test_scale) / max(size), min(test_scale) / min(size))
                meta["input_size"] = [int(height * ratio + 0.5), int(width * ratio + 0.5)]
            write(out / f"protocol_mmseg_{family}_{case}.npz", result["logits"], meta, entries, image=image)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the protocol fixtures.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make_ssseg(arguments.out, Path(folder))
        make_mmseg(arguments.out, Path(folder))
    total = sum(path.stat().st_size for path in arguments.out.glob("protocol_*.npz"))
    print(f"{total / 1e3:.0f} kB in all")


if __name__ == "__main__":
    main()
