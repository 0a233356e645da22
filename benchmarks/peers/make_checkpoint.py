"""A full-size checkpoint of a peer's own network with generated values; in the peers' environment.

python make_checkpoint.py mmseg|ssseg pspnet_resnet50_os8|fcn_resnet50_os8|semanticfpn_resnet50 CLASSES OUT.pth
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reference_checkpoint import checkpoint, entries_of, filled_state_dict, save  # noqa: E402

FAMILIES = {
    "mmseg": {"pspnet": "pspnet", "fcn": "fcn", "semanticfpn": "fpn"},
    "ssseg": {"pspnet": "PSPNet", "fcn": "FCN", "semanticfpn": "SemanticFPN"},
}


def main() -> None:
    source, model, classes, out = sys.argv[1:]
    family = FAMILIES[source][model.split("_")[0]]
    if source == "mmseg":
        from mmseg_peer import build

        network = build(family, int(classes))
    else:
        from ssseg_peer import build as build_ssseg

        network = build_ssseg(family, int(classes), outstride=32 if family == "SemanticFPN" else 8)
    save(checkpoint(filled_state_dict(entries_of(network.state_dict())), source), out)


if __name__ == "__main__":
    main()
