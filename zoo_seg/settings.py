"""The environment variables the library obeys. Each is read when it is used, never at import."""

from __future__ import annotations

import os
from pathlib import Path

_TRUE = {"1", "true", "yes", "on"}


def home() -> Path:
    """The cache folder: `ZOO_SEG_HOME`, else `zoo_seg` in the user's cache folder."""
    configured = os.environ.get("ZOO_SEG_HOME")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zoo_seg"


def offline() -> bool:
    """True when `ZOO_SEG_OFFLINE` or `HF_HUB_OFFLINE` forbids every network request."""
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in ("ZOO_SEG_OFFLINE", "HF_HUB_OFFLINE"))


def mirror() -> str | None:
    """`ZOO_SEG_MIRROR`: a folder or an http(s) base under which files are looked up by name first."""
    return os.environ.get("ZOO_SEG_MIRROR") or None


def manifests() -> list[Path]:
    """`ZOO_SEG_MANIFEST`: further manifests, separated as in `PATH`."""
    return [Path(part).expanduser() for part in os.environ.get("ZOO_SEG_MANIFEST", "").split(os.pathsep) if part]


def max_pixels() -> str | None:
    """`ZOO_SEG_MAX_PIXELS`: the most pixels that an image file may announce; without it Pillow's limit holds."""
    return os.environ.get("ZOO_SEG_MAX_PIXELS") or None


def hub() -> str:
    """`HF_ENDPOINT`: the address of the Hugging Face Hub, or of a mirror of it (huggingface_hub's own setting)."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
