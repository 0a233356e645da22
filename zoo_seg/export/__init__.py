"""A network as a file for other runtimes: ONNX, OpenVINO and torch.export.

Called, the package is its function: `zoo_seg.export(model, "net.onnx")` works whichever of its modules was imported
first.
"""

from __future__ import annotations

import sys
from types import ModuleType

from zoo_seg.export.write import export

__all__ = ["export"]


class _CallablePackage(ModuleType):
    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _CallablePackage
