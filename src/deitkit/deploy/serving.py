"""`deitkit serve`: models of finished runs behind HTTP."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from .. import log
from ..classifier import ModelChoice, model_folder
from ..config import BackendName
from ..errors import DependencyError, SettingError

_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def require_serve() -> None:
    """Raises DependencyError if a package that the server needs is missing."""
    for module, package in _NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise DependencyError(
                f"{package} is not installed, and a server needs it; "
                'install it with: pip install "deitkit[serve]"'
            )


def serve(
    runs: Sequence[Path],
    *,
    model: ModelChoice = "recommended",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    device: str = "auto",
    backend: BackendName = "auto",
    queue: int = 64,
) -> None:
    """Serves a model of each run until a signal stops it; then what was accepted is answered first.

    port: 0 takes a free one. token: what requests have to bring. queue: requests that may wait. Raises a
    DeitkitError for anything the caller can fix.
    """
    require_serve()
    import uvicorn

    from .request_images import Limits
    from .served_model import open_model
    from .server import Server, create_app

    limits = Limits(queue=queue)
    with log.activity("loading the models"):
        folders = [model_folder(run, model) for run in runs]
        models = [open_model(f, device=device, backend=backend, max_pixels=limits.pixels) for f in folders]
    names = [m.name for m in models]
    if len(set(names)) < len(names):
        raise SettingError(
            f"two runs are called {max(names, key=names.count)}; serve folders of different names"
        )
    hosts = frozenset({"127.0.0.1", "::1", "localhost", host.lower()}) if _is_loopback(host) else None
    if hosts is None and token is None:
        log.warning(f"everyone who reaches {host} can use the server; --token asks for a token")
    server = Server(models, limits=limits, token=token, hosts=hosts)
    options = uvicorn.Config(
        create_app(server),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
    )
    with _listening(host, port) as listener:
        log.info(f"serving {', '.join(names)} at {_address(listener)}; Ctrl+C stops")
        uvicorn_server = uvicorn.Server(options)
        # A second Ctrl+C stops at once. Uvicorn and starlette then report what they left with tracebacks:
        # the one by raising the signals again, the other by logging its cancelled wait.
        uvicorn_server.capture_signals = lambda: _signals_to(uvicorn_server.handle_exit)  # type: ignore[method-assign]
        logging.getLogger("uvicorn.error").addFilter(lambda r: "CancelledError" not in r.getMessage())
        uvicorn_server.run(sockets=[listener])


@contextlib.contextmanager
def _signals_to(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise SettingError(
            f"cannot listen at {host}, port {port} ({error}); choose another --host or --port"
        ) from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
