"""What is known of a published file, written into the manifest: its size, its sha256 and the digest of its tensors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zoo_seg.checkpoints.convert import convert
from zoo_seg.checkpoints.digest import tensors_sha256
from zoo_seg.checkpoints.opening import check_finite, open_checkpoint
from zoo_seg.decode import locate
from zoo_seg.errors import CheckpointError, DownloadError
from zoo_seg.hub import cache
from zoo_seg.hub.download import shown
from zoo_seg.hub.files import replacing
from zoo_seg.manifest import Architecture, File, Manifest, Weights, read_manifest

_FIELDS = ("size", "sha256", "tensors_sha256")


@dataclass(frozen=True)
class Pinned:
    """A file as it was found."""

    file: File
    source: str
    """The link it came from."""
    size: int
    """Bytes."""
    sha256: str
    tensors_sha256: str

    @property
    def claim_holds(self) -> bool | None:
        """Whether the sha256 begins with the digits in the publisher's file name; None where there are none."""
        claimed = self.file.sha256_prefix_claimed
        return self.sha256.startswith(claimed.lower()) if claimed else None

    @property
    def new(self) -> dict[str, int | str]:
        """What the manifest does not say yet."""
        return {name: getattr(self, name) for name in _FIELDS if getattr(self.file, name) is None}


def measure(weights: Weights, file: File, *, progress: bool = True) -> Pinned:
    """Download one file of a record, and look at it.

    Raises:
        DownloadError: it cannot be had from a published link, or is not what the record says.
        CheckpointError: it cannot be opened safely, or holds other tensors than the record says.
    """
    cached = cache.fetch(replace(weights, files=(file,)), progress=progress)
    record = cache.read_record(cached.path)
    source = file.url if file.packaged else record.url if record else None
    published = [shown(url) for url in (file.url, *file.mirrors)]
    if source not in published:
        raise DownloadError(
            f"{cached.path} came from {source or 'an unknown place'}, not from a published link; delete it, unset "
            "ZOO_SEG_MIRROR and run this again"
        )
    tensors, _ = open_checkpoint(cached.path)
    check_finite(cached.path, tensors)
    digest = tensors_sha256(convert(tensors, weights.architecture).tensors)
    if weights.tensors_sha256 not in (None, digest):
        raise CheckpointError(
            f"{cached.path} holds other tensors than {weights.id}: expected the digest {weights.tensors_sha256}, "
            f"got {digest}"
        )
    return Pinned(file, source, cached.path.stat().st_size, cached.sha256, digest)


def file_tensors_sha256(path: Path, architecture: Architecture | None) -> str:
    """The digest of the tensors in a weight file of any container, whoever named them.

    Args:
        architecture: of the network; None takes the tensors in the form they have in the file.

    Raises:
        CheckpointError: it cannot be opened safely, or holds another network.
    """
    tensors, _ = open_checkpoint(path)
    return tensors_sha256(convert(tensors, architecture).tensors if architecture else tensors)


def write(manifest: Path, id_: str, pinned: Pinned, base: Manifest) -> int:
    """Put what is new into the manifest file, which else stays as it is, byte for byte.

    Args:
        base: what the file may refer to.

    Returns:
        How many values were written.

    Raises:
        ManifestError: the file has been changed meanwhile, and broken.
        OSError: it cannot be written.
    """
    text = manifest.read_bytes().decode("utf-8")
    index = [file.url for file in read_manifest(manifest, base).weights[id_].files].index(pinned.file.url)
    edited = insert(text, ("weights", id_, "files", index), pinned.new)
    if edited != text:
        with replacing(manifest) as temporary:
            temporary.write_bytes(edited.encode("utf-8"))
            shutil.copymode(manifest, temporary)
            _ = read_manifest(temporary, base).weights[id_]  # an edit that breaks the file is none
    return len(pinned.new)


def insert(text: str, place: tuple[str | int, ...], values: Mapping[str, int | str]) -> str:
    """A JSON text with these values in the object at `place`: in the place of null, or after the key before them.

    What stands there must be null or missing; the object must have the key `url` or `path`.
    """
    for name, value in values.items():
        begin, end, depth = locate(text, (*place, name))
        if depth == len(place) + 1:
            text = text[:begin] + json.dumps(value) + text[end:]
            continue
        before = ("url", "path", "other_paths", "mirrors", *_FIELDS[: _FIELDS.index(name)])
        anchors = [(key, locate(text, (*place, key))) for key in before]
        key, (begin, end, _) = next(each for each in reversed(anchors) if each[1][2] == len(place) + 1)
        key_and_space = re.search(rf'(\s*)"{key}"(\s*:(\s*))$', text[:begin])
        assert key_and_space is not None
        space, colon, after = key_and_space.groups()
        text = f'{text[:end]},{space or after}"{name}"{colon}{json.dumps(value)}{text[end:]}'
    return text
