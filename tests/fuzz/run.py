"""Coverage-guided fuzzing with atheris (`pip install atheris`):

    python tests/fuzz/run.py checkpoint -max_total_time=600

Targets are those of `targets.py`, further options libFuzzer's. What it finds is written as `crash-...`; a copy of it in
`corpus/<target>/` is tried by the tests from then on.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
warnings.simplefilter("ignore")

import torch  # noqa: E402, F401  (not instrumented: it is large, and only its readers matter)
from PIL import Image  # noqa: E402

Image.MAX_IMAGE_PIXELS = 1 << 20  # large images take long, and find nothing

with atheris.instrument_imports(include=["zoo_seg", "zipfile", "pickle", "json", "email"]):
    from targets import TARGETS

from seeds import seeds  # noqa: E402

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="seeds-") as folder:
        for index, content in enumerate(seeds(name)):
            (Path(folder) / str(index)).write_bytes(content)
        kept = HERE / "corpus" / name
        kept.mkdir(parents=True, exist_ok=True)
        atheris.Setup(
            [sys.argv[0], *options, "-max_len=20000", "-timeout=20", "-rss_limit_mb=3000", folder, str(kept)],
            TARGETS[name],
        )
        atheris.Fuzz()
