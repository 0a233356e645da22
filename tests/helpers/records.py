"""A record of weights of a test's own."""

from __future__ import annotations

from zoo_seg.manifest import PROTOCOLS, Architecture, File, Licence, Preprocess, Provenance, Recipe, Weights

ID = "fcn_resnet50_os8.toy_test"
LINK = "https://zoo.test/w.pth"


def record(*files: File) -> Weights:
    """A record with these files; without any, one file that nobody published a hash of."""
    return Weights(
        id=ID,
        model="fcn_resnet50_os8",
        tag="toy_test",
        dataset="toy",
        source="test",
        num_classes=2,
        classes=("a", "b"),
        palette=((0, 0, 0), (255, 0, 0)),
        architecture=Architecture("fcn", "resnet50c", 8),
        protocol="ssseg",
        rules=PROTOCOLS["ssseg"],
        files=files or (File(LINK),),
        metrics=(),
        recipe=Recipe("train", (64, 64), 8, 1, None, "sgd", 0.01, "poly"),
        preprocess=Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None),
        licence=Licence(None, None, None),
        provenance=Provenance("https://zoo.test", None, None, None),
        parameters=1,
    )
