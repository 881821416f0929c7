"""`deitkit serve`: models of finished runs behind HTTP."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from .. import log
from ..classifier import ModelChoice, model_folder
from ..config import BackendName
from ..errors import DeitkitError, DependencyError, SettingError
from .server_metrics import Metrics, counts_layout

if TYPE_CHECKING:
    from .served_model import ServedModel

_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def require_serve() -> None:
    """Raises DependencyError if a package that the server needs is missing."""
    for module, package in _NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise DependencyError(
                f"{package} is not installed, and a server needs it; "
                'install it with: pip install "deitkit[serve]"'
            )


@dataclass(frozen=True)
class ServeOptions:
    """What a server process is started with; see `serve`. hosts: names under which it may be addressed."""

    runs: tuple[Path, ...]
    model: ModelChoice
    device: str
    backend: BackendName
    queue: int
    token: str | None
    hosts: frozenset[str] | None
    threads: int | None = None  # of PyTorch; None leaves them as they are

    def open(self) -> list[ServedModel]:
        """A model of each run. Raises a DeitkitError for anything the caller can fix."""
        from .request_images import Limits
        from .served_model import open_model

        folders = [model_folder(run, self.model) for run in self.runs]
        pixels = Limits().pixels
        models = [open_model(f, device=self.device, backend=self.backend, max_pixels=pixels) for f in folders]
        names = [m.name for m in models]
        if len(set(names)) < len(names):
            raise SettingError(
                f"two runs are called {max(names, key=names.count)}; serve folders of different names"
            )
        return models


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
    workers: int = 1,
) -> None:
    """Serves a model of each run until a signal stops it; then what was accepted is answered first.

    SIGHUP loads the runs again. port: 0 takes a free one. token: what requests have to bring. queue: requests
    that may wait, in each process. workers: processes, which share the cores. Raises a DeitkitError for
    anything the caller can fix.
    """
    require_serve()
    hosts = frozenset({"127.0.0.1", "::1", "localhost", host.lower()}) if _is_loopback(host) else None
    if hosts is None and token is None:
        log.warning(f"everyone who reaches {host} can use the server; --token asks for a token")
    options = ServeOptions(tuple(runs), model, device, backend, queue, token, hosts)
    with _listening(host, port) as listener:
        if workers > 1:
            threads = max(1, (os.cpu_count() or 1) // workers)
            _serve_in_processes(replace(options, threads=threads), listener, workers)
        else:
            _run(options, listener, lambda names: _say_serving(names, listener))


def _say_serving(names: Sequence[str], listener: socket.socket) -> None:
    log.info(f"serving {', '.join(names)} at {_address(listener)}; Ctrl+C stops")


def _run(
    options: ServeOptions,
    listener: socket.socket,
    opened: Callable[[list[str]], None],
    metrics: Metrics | None = None,
) -> None:
    """Serves in this process. opened: called with the names of the models before the first request.
    metrics: of several processes."""
    import torch
    import uvicorn

    from .request_images import Limits
    from .server import Server, create_app

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with log.activity("loading the models"):
        models = options.open()
    limits = Limits(queue=options.queue)
    server = Server(
        models,
        limits=limits,
        token=options.token,
        hosts=options.hosts,
        reopen=options.open,
        metrics=metrics,
    )
    config = uvicorn.Config(
        create_app(server),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
    )
    opened([m.name for m in models])
    uvicorn_server = uvicorn.Server(config)
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


def _worker(
    options: ServeOptions, listener: socket.socket, parent: Connection, memory: Any, process: int
) -> None:
    """A process of several: tells `parent` its models' names, or why it cannot serve.

    memory, process: see `Metrics`.
    """
    threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()
    try:
        _run(options, listener, parent.send, Metrics(len(options.runs), memory, process))
    except DeitkitError as error:
        parent.send(str(error))


def _stop_with_parent() -> None:
    """Stops this worker once the process that started it is gone, such as after SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _serve_in_processes(options: ServeOptions, listener: socket.socket, count: int) -> None:
    """Starts `count` processes on one socket, replaces those that end, and passes SIGHUP on to them.

    They count in shared memory, so that each can tell the metrics of all. Raises SettingError with a
    process's reason if it cannot serve.
    """
    context = multiprocessing.get_context("spawn")
    memory = context.RawArray("b", count * counts_layout(len(options.runs)).itemsize)
    workers: dict[int, BaseProcess] = {}  # by their place in the shared memory
    stopping: list[int] = []

    def start(place: int) -> list[str]:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_worker, args=(options, listener, theirs, memory, place))
        worker.start()
        theirs.close()
        workers[place] = worker
        try:
            said: list[str] | str = ours.recv()
        except EOFError:
            said = f"a worker ended with status {worker.exitcode}"
        if isinstance(said, str):
            raise SettingError(said)
        return said

    def pass_on(number: int, _: object) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            # Not passed on: from a terminal they have it, and a second SIGINT would cut answers off.
            stopping.append(number)
            return
        for worker in workers.values():
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    numbers = [n for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {n: signal.signal(getattr(signal, n), pass_on) for n in numbers}
    try:
        for place in range(count):
            names = start(place)
        _say_serving(names, listener)
        while not stopping:
            multiprocessing.connection.wait([worker.sentinel for worker in workers.values()], timeout=1)
            ended = {place: worker for place, worker in workers.items() if not worker.is_alive()}
            for place, worker in ended.items() if not stopping else ():
                log.warning(f"a worker ended with status {worker.exitcode}; another takes its place")
                start(place)
    finally:
        for worker in workers.values():
            worker.terminate()  # it answers what was accepted
        for worker in workers.values():
            worker.join()
        for n, handler in before.items():
            signal.signal(getattr(signal, n), handler)


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
