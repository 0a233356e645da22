"""Every exception the library raises of its own accord.

Each one also is the standard exception a caller would expect, so `except ValueError` and
`except OSError` keep working. A message says what was found, what was expected and what to do.
"""

from __future__ import annotations


class ZooSegError(Exception):
    """Base of all: `except ZooSegError` catches whatever the library refuses to do."""


class ManifestError(ZooSegError, ValueError):
    """A manifest does not say what it must; the message names the place in the file."""


class UnknownNameError(ZooSegError, LookupError):
    """No model, weights, data set or source has this name."""


class OptionError(ZooSegError, ValueError):
    """An argument has a value that is not allowed, or two arguments contradict each other."""


class DownloadError(ZooSegError, OSError):
    """No source gave the file; the message lists each source and why it failed."""


class OfflineError(DownloadError, ConnectionError):
    """The file is not cached and the network is switched off."""


class HashMismatchError(DownloadError):
    """The bytes are not the ones that were published (or seen before)."""


class PushError(ZooSegError, OSError):
    """The Hugging Face Hub did not take the network; the message says what it needs."""


class CheckpointError(ZooSegError, RuntimeError):
    """A weight file cannot be opened safely, or does not fit the network."""


class ImageError(ZooSegError, ValueError):
    """An image cannot be read or has a shape that is not an image's."""


class DataError(ZooSegError, ValueError):
    """A data set cannot be used for training or measuring; the message names the file."""


class NumericalError(ZooSegError, ArithmeticError):
    """The network's logits are NaN or infinite, so that no class wins; the message names the number type."""


class OutOfMemoryError(ZooSegError, MemoryError):
    """The device has too little memory for this; the message says which option lowers it."""


class MissingExtraError(ZooSegError, ImportError):
    """An optional dependency is not installed; the message names the pip command."""


class TrainingError(ZooSegError, RuntimeError):
    """Training cannot go on; what was reached before is kept."""


class ExportError(ZooSegError, RuntimeError):
    """A network cannot be exported, or the exported file computes something else; no file is left."""


class ScaleError(ZooSegError, RuntimeError):
    """A cluster or a storage cannot be used; what is written already stays, and the same command goes on from there."""
