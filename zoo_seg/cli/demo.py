"""`zoo-seg demo`"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import tempfile
import threading

from zoo_seg.cli.network import device_of, load_network
from zoo_seg.demo.networks import Networks
from zoo_seg.demo.page import launch, page
from zoo_seg.errors import OptionError
from zoo_seg.hub.download import shown
from zoo_seg.inference.predictor import choose_device


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    host, port = arguments.host, arguments.port
    _check_address(host, port)  # before anything is fetched or loaded
    choose_device(device_of(arguments))
    model = load_network(arguments)
    name = model.weights.id if model.weights else shown(arguments.weights)
    bound = f"[{host}]" if ":" in host else host  # as it stands in a link
    with tempfile.TemporaryDirectory(prefix="zoo_seg_") as uploads:  # nobody else reads them, and none stays
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)
        blocks = page(Networks({name: model}, device_of(arguments)))
        address = launch(blocks, host=bound, port=port, inbrowser=arguments.open, prevent_thread_lock=True, quiet=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads go then, too
        print(f"zoo_seg is at {address} (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            blocks.close(verbose=False)
    return 0


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at.

    Raises:
        OptionError: the host is none of this machine's.
        OSError: the port is taken, or reserved.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} is in use; type: zoo-seg demo --port {port + 1}") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise OSError(f"port {port} is reserved for the system; type: zoo-seg demo --port 7860") from None
        raise OptionError(
            f"--host {host}: cannot listen there ({error.strerror}); leave it out for this machine alone (127.0.0.1)"
        ) from None
