"""torch.export's own file, run by torch.

torch runs what such a file says while it opens it: pickles, expressions, operators by name. `open_file` therefore
first looks for anything that `write` does not write.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from zoo_seg.errors import CheckpointError, ExportError
from zoo_seg.export.facts import Facts
from zoo_seg.export.formats import Opened
from zoo_seg.export.graph import brief, quiet


def write(program: ExportedProgram, path: Path, facts: Facts, opset: int | None = None) -> None:
    """One file; the metadata are its extra files."""
    content = io.BytesIO()  # torch's own writer does not tell a full disk from a mistake
    try:
        with quiet():
            torch.export.save(program, content, extra_files=facts.as_strings())
    except Exception as error:  # of many kinds, with long explanations
        raise ExportError(f"torch.export cannot write this network: {brief(error)}") from error
    path.write_bytes(content.getbuffer())


def open_file(path: Path, *, before_resize: bool) -> Opened:
    """In torch, on the CPU."""
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = _look_through(archive)
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no file of torch.export's, or damaged ({brief(error)})") from None
    except _Foreign as error:
        raise CheckpointError(f"{path} was not opened: {error}, which zoo-seg export does not write") from None
    try:
        with quiet():
            module: Any = torch.export.load(path).module()
    except Exception as error:  # of many kinds
        raise CheckpointError(
            f"{path} cannot be read by torch {torch.__version__}: {brief(error)}; export the network again with this "
            "version"
        ) from None
    if before_resize:
        _end_before_resize(path, module)

    @torch.inference_mode()
    def compute(x: Tensor) -> Tensor:
        y: Tensor = module(x)
        return y

    return Opened(path, metadata, compute)


def _end_before_resize(path: Path, module: Any) -> None:
    """Make what the last resize reads the graph's output."""
    output = module.graph.output_node()
    node = last = output.all_input_nodes[0]
    while "upsample" not in str(node.target):
        if not node.all_input_nodes:
            raise CheckpointError(f"{path} does not end in a resize; expected a file that zoo-seg export wrote")
        node = node.all_input_nodes[0]
    output.replace_input_with(last, node.all_input_nodes[0])
    module.graph.eliminate_dead_code()
    module.recompile()


# --- what may be in a file ----------------------------------------------------------------------


class _Foreign(Exception):
    """Something that `write` does not write."""


_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|extra/\w+"
    r"|data/(weights|constants)/(model_\w+_config\.json|(weight|tensor)_\d+)|data/sample_inputs/model\.pt)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|getitem|[gl][et]|eq|ne)"
)
"""Those of tensors, and arithmetic."""
_WORD = re.compile(r"[^\W\d]\w*")
_WORDS = re.compile(r"[A-Z][A-Za-z]+|[a-z]\d+|positive|integer|L|size|x|and|or|not|is_contiguous|ceil|floor|oo")
_LARGER = re.compile(r"(?<![\w.])torch\.sym_(max|min)(?=\()")
"""The only functions by name, and the only use of `torch`."""
_PUNCTUATION = re.compile(r"[\w\s'()\[\],.+\-*/%<>=!&|]*")


def _look_through(archive: zipfile.ZipFile) -> dict[str, str]:
    """The metadata of a file that holds nothing but what `write` writes."""
    metadata = {}
    for name in archive.namelist():
        if not _MEMBERS.fullmatch(name):
            raise _Foreign(f"it holds {name[:80]!r}")
        folder = name.split("/", 1)[1]
        if folder.startswith("extra/"):
            metadata[folder.removeprefix("extra/")] = archive.read(name).decode("utf-8")
        elif folder.endswith(".pt"):
            try:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except Exception:
                raise _Foreign("it holds a pickle of more than tensors") from None
        elif folder.endswith(".json"):
            for key, value in _items(json.loads(archive.read(name))):
                _check(key, value)
    return metadata


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested JSON with its value."""
    if isinstance(value, dict):
        yield from value.items()
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _items(part)


def _check(key: str, value: Any) -> None:
    if key == "use_pickle" and value:
        raise _Foreign("it holds a pickle")
    if key == "target" and not _OPERATORS.fullmatch(str(value)):
        raise _Foreign(f"its graph calls {str(value)[:80]!r}")
    texts = [value] if key == "expr_str" else value if key == "guards_code" and value else []
    for text in texts:
        foreign = [word for word in _WORD.findall(_LARGER.sub("", text)) if not _WORDS.fullmatch(word)]
        if foreign or not _PUNCTUATION.fullmatch(text):
            raise _Foreign(f"its sizes are computed by {text[:80]!r}")
