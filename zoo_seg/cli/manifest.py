"""`zoo-seg manifest`: for those who maintain one"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo_seg.checkpoints.pin import Pinned, file_tensors_sha256, measure, write
from zoo_seg.cli.text import megabytes
from zoo_seg.decode import suggest
from zoo_seg.errors import CheckpointError, DownloadError, OptionError, UnknownNameError
from zoo_seg.hub.files import hash_file
from zoo_seg.hub.links import Answer, ask_all
from zoo_seg.manifest import File, Manifest, Weights, get_architecture, get_weights, published_manifest, read_manifest
from zoo_seg.text import table
from zoo_seg.zoo import stub

_CLAIM = {
    True: "hold",
    False: "DO NOT HOLD: the file is not the one that its name promises, or the name is wrong",
}


def run(arguments: argparse.Namespace) -> int:
    """Pin, check, digest or stub; exit code 1 when something is not as it should be."""
    if arguments.action == "stub":
        print(stub(), end="")
        return 0
    if arguments.action == "digest":
        return _digest([Path(name) for name in arguments.files], arguments.model)
    path = Path(arguments.manifest) if arguments.manifest else published_manifest()
    base = Manifest()
    if path.resolve() != published_manifest().resolve():
        base = read_manifest(published_manifest())
    manifest = read_manifest(path, base)
    manifest.check()
    known = manifest.weights
    own = {name: record for name, record in known.items() if name not in base.weights}
    records = _chosen(own, arguments.ids, path)
    return _pin(records, path, base) if arguments.action == "pin" else _check(records, arguments)


def _chosen(known: dict[str, Weights], names: Sequence[str], path: Path) -> list[Weights]:
    for name in names:
        if name not in known:
            raise UnknownNameError(f"{path} has no weights {name!r}; {suggest(name, known)}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())


# --- pin ----------------------------------------------------------------------------------------


def _pin(records: list[Weights], path: Path, base: Manifest) -> int:
    failed = written = 0
    for record in records:
        for file in record.files:
            try:
                pinned = measure(record, file)
            except (DownloadError, CheckpointError) as error:
                failed += 1
                print(f"zoo-seg: {record.id}: {error}", file=sys.stderr)
                continue
            written += write(path, record.id, pinned, base)
            _print_pinned(record, pinned)
    print(f"\n{path}: {written} values written" if written else f"\n{path}: nothing to write")
    return 1 if failed else 0


def _print_pinned(record: Weights, pinned: Pinned) -> None:
    print(f"{record.id}  {pinned.source}")
    known = {name: "new" if name in pinned.new else "as recorded" for name in ("size", "sha256", "tensors_sha256")}
    print(f"  size     {pinned.size} ({known['size']})")
    print(f"  sha256   {pinned.sha256} ({known['sha256']})")
    print(f"  tensors  {pinned.tensors_sha256} ({known['tensors_sha256']})")
    if pinned.claim_holds is not None:
        print(f"  the publisher's digits {pinned.file.sha256_prefix_claimed} {_CLAIM[pinned.claim_holds]}")


# --- check --------------------------------------------------------------------------------------


def _check(records: list[Weights], arguments: argparse.Namespace) -> int:
    if not 0 < arguments.timeout <= 600:
        raise OptionError(f"--timeout is {arguments.timeout}; expected seconds, up to 600")
    links = [(record, file, url) for record in records for file in record.files for url in (file.url, *file.mirrors)]
    answers = ask_all((url for _, _, url in links), timeout=arguments.timeout)
    reached = {record.id for record, file, url in links if _fits(answers[url], file)}
    lost = [record.id for record in records if record.id not in reached]
    if arguments.json:
        rows: list[dict[str, Any]] = [
            {"id": record.id, **asdict(answers[url]), "fits": _fits(answers[url], file)} for record, file, url in links
        ]
        print(json.dumps({"links": rows, "without_link": lost}, indent=2))
        return 1 if lost else 0
    shown = [[record.id, _status(answers[url], file), _size(answers[url]), url] for record, file, url in links]
    print(table(["weights", "answer", "size", "link"], shown, right=(2,)))
    answered = sum(_fits(answers[url], file) for _, file, url in links)
    print(f"\n{answered} of {len(links)} links answer, for {len(reached)} of {len(records)} weights")
    if lost:
        print(f"zoo-seg: no link answers for {', '.join(lost)}", file=sys.stderr)
    return 1 if lost else 0


def _fits(answer: Answer, file: File) -> bool:
    """Whether the link answers, and with a file of the recorded size if it tells one."""
    return answer.ok and (None in (file.size, answer.size) or file.size == answer.size)


def _status(answer: Answer, file: File) -> str:
    return answer.status if not answer.ok or _fits(answer, file) else f"{answer.status}, not {file.size} bytes"


def _size(answer: Answer) -> str:
    return "-" if answer.size is None else megabytes(answer.size)


# --- digest -------------------------------------------------------------------------------------


def _digest(paths: list[Path], model: str | None) -> int:
    """The digests of files; of several, whether they hold the same tensors."""
    architecture = None
    if model is not None:
        architecture = get_weights(model).architecture if "." in model else get_architecture(model)[1]
    found = {path: file_tensors_sha256(path, architecture) for path in paths}
    for path, digest in found.items():
        print(f"{path}\n  sha256   {hash_file(path)}\n  tensors  {digest}")
    if len(found) == 1:
        return 0
    same = len(set(found.values())) == 1
    print("\nthe same tensors" if same else "\nDIFFERENT tensors")
    return 0 if same else 1
