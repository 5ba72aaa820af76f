"""The command `serve`: a model for programs that speak OpenAI's interface."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from llama2np.classifier import Classifier
from llama2np.cli import engine
from llama2np.cli.flags import Parser, flag_value, guarded, joined, number
from llama2np.cli.generate import add_batch_flags
from llama2np.cli.model import add_model, load_model
from llama2np.encoder import Encoder
from llama2np.formats import loading
from llama2np.llama import Llama
from llama2np.model.networks import is_encoder

if TYPE_CHECKING:  # at run time they are imported when it is known that they are there
    from starlette.applications import Starlette

    from llama2np.serve.service import Service

_KEY = "LLAMA2NP_API_KEY"


def main(argv: Sequence[str], prog: str) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    return guarded(prog, lambda: _serve(_parse(argv, prog)))


def _serve(options: argparse.Namespace) -> None:
    uvicorn, (service, app) = _uvicorn(), _made(options)
    listener = _listener(options.host, options.port)
    try:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{service.name}: http://{shown}:{port}, OpenAI's interface at /v1", file=sys.stderr)
        # asyncio warns about each client that has gone away.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=options.grace,
        )
        uvicorn.Server(config).run(sockets=[listener])
    except SystemExit as end:
        if end.code != 128 + signal.SIGTERM:
            raise  # for a server SIGTERM is the usual end: its answers are sent
    finally:
        listener.close()
        service.close()


def _made(options: argparse.Namespace) -> tuple[Service, Starlette]:
    """The service that the flags describe, and its application."""
    from llama2np.serve import guard
    from llama2np.serve.app import make_app
    from llama2np.serve.service import Service

    key = options.api_key or os.environ.get(_KEY) or None
    local = _is_local(options.host)
    if not local and key is None:
        raise ValueError(
            f"--host {options.host} lets other machines in: set an API key with --api-key, or in "
            f"the environment variable {_KEY}"
        )
    service = Service(
        _model(options),
        options.name or Path(options.model).name,
        max_sequences=options.max_sequences,
        max_positions=options.max_positions,
        max_waiting=options.max_waiting,
        max_body=options.max_body,
        api_key=key,
        begin=lambda: engine.set_threads(options),
        hosts=(*guard.LOCAL, options.host) if local else (),
    )
    return service, make_app(service)


def _model(options: argparse.Namespace) -> Llama | Encoder | Classifier:
    config = loading.load(options.model).config
    if not is_encoder(config) and not config.n_labels:
        return load_model(options)
    engine.set_up(options, lambda note: print(note, file=sys.stderr, flush=True))
    kind = Encoder if is_encoder(config) else Classifier
    return kind.load(options.model, options.tokenizer, options.engine, options.activations)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError that names the address."""
    listener: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        way = ": --port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
        raise OSError(error.errno, f"{error.strerror}{way}", f"{host} port {port}") from None


def _uvicorn() -> ModuleType:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(
            f"the server needs starlette and uvicorn ({error}): "
            f"{sys.executable} -m pip install 'llama2np[serve]'"
        ) from None
    return uvicorn


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Serve a model to OpenAI's clients, to many of them at the same time: "
        "/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/classify, /v1/models, "
        "/health, /metrics.",
        allow_abbrev=False,
    )
    add_model(parser)
    add = parser.add_argument
    add(
        "--host",
        type=flag_value,
        metavar="ADDRESS",
        help="where to listen (default 127.0.0.1: this machine only); others need an API key",
    )
    add(
        "--port",
        type=number(int, 0, 65535),
        default=8080,
        metavar="N",
        help="the port (default 8080; 0: any free one)",
    )
    add(
        "--api-key",
        type=flag_value,
        metavar="KEY",
        help=f"what clients must send; also the environment variable {_KEY}",
    )
    add(
        "--name",
        type=flag_value,
        metavar="NAME",
        help="what clients call the model (default: the name of its file or folder)",
    )
    add_batch_flags(parser)
    add(
        "--max-waiting",
        type=number(int, 0, None),
        default=64,
        metavar="N",
        help="texts that may wait for their turn; more are refused with status 429 (default 64)",
    )
    add(
        "--max-body",
        type=number(int, 1, None),
        default=2**22,
        metavar="BYTES",
        help="the largest request; a larger one is refused with status 413 (default 4 MiB)",
    )
    add(
        "--grace",
        type=number(int, 0, None),
        default=30,
        metavar="SECONDS",
        help="at the end, wait so long for answers that are being sent (default 30)",
    )
    options = parser.parse_args(list(joined(argv, parser)))
    options.host = options.host or "127.0.0.1"
    return options
