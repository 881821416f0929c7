"""The HTTP API of `deitkit serve`, and the page over it.

Whatever a request holds, it is answered by a status and JSON; a mistake of the client's by 4xx and one
sentence under `error`, too much work by 503 with Retry-After. Nothing from a request touches the disk.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from .. import log
from ..data.decode import UnreadableImage
from ..errors import DeitkitError
from .request_images import JSON, MULTIPART, Limits, RequestError, read_images
from .served_model import ServedModel
from .server_metrics import CONTENT_TYPE, Metrics
from .web import page_files

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_BODY = {
    "required": True,
    "content": {
        MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                    }
                },
            }
        },
        JSON: {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["data"],
                            "properties": {
                                "data": {
                                    "type": "string",
                                    "format": "byte",
                                    "description": "a file in base64",
                                },
                                "name": {"type": "string"},
                            },
                        },
                    }
                },
            }
        },
    },
}
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}
_STATUSES = {
    400: "The body cannot be read, or holds no image.",
    401: "The token is missing or wrong.",
    404: "There is no such model.",
    413: "The body is too large, or holds too many images.",
    415: "The body is neither a form nor JSON.",
    421: "The server answers under another host name.",
    422: "An image cannot be read.",
    503: "Too many requests wait, or this one took too long; try again after Retry-After seconds.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": {JSON: {"schema": _ERROR}}}
    for status, meaning in _STATUSES.items()
}
_REFUSED: dict[int | str, dict[str, Any]] = {status: _RESPONSES[status] for status in (401, 421)}


class _Json(JSONResponse):
    """JSON in ASCII: names of classes and of files may hold what UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Server:
    """Answers requests with models, by name; the first is the default.

    reopen: loads the models again, for SIGHUP. token: what requests have to bring in
    `Authorization: Bearer`; None asks for none. hosts: names under which the server may be addressed; None
    allows all. A page elsewhere could otherwise reach a server on this machine under a name of its own.
    metrics: by default of this process alone.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        limits: Limits,
        token: str | None = None,
        hosts: frozenset[str] | None = None,
        reopen: Callable[[], Sequence[ServedModel]] | None = None,
        metrics: Metrics | None = None,
    ):
        self.metrics = metrics or Metrics(len(models))
        self.models = self._counted(models)
        self.reopen, self.reloading = reopen, asyncio.Lock()
        self.limits, self.token, self.hosts = limits, token, hosts
        self.decoders = ThreadPoolExecutor(os.cpu_count(), "decode")
        self.in_progress, self.ready = 0, False

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Warms the models up; at the end answers what was accepted."""
        for model in self.models.values():
            await asyncio.to_thread(model.warm_up)
        self._reload_on_signal()
        self.ready = True
        yield
        self.ready = False
        for model in self.models.values():
            await asyncio.to_thread(model.close)
        self.decoders.shutdown()

    def _reload_on_signal(self) -> None:
        on_main_thread = threading.current_thread() is threading.main_thread()
        if self.reopen is None or not hasattr(signal, "SIGHUP") or not on_main_thread:
            return
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps no reference

        def start() -> None:
            task = loop.create_task(self.reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop.add_signal_handler(signal.SIGHUP, start)

    async def reload(self) -> None:
        """Loads the models again and replaces them at once; requests that run are answered by the old ones.

        If a run cannot be loaded, the models stay as they were, with a warning.
        """
        assert self.reopen is not None
        async with self.reloading:
            try:
                models = await asyncio.to_thread(self.reopen)
            except DeitkitError as error:
                log.warning(f"the models stay as they were: {error}")
                return
            for model in models:
                await asyncio.to_thread(model.warm_up)
            old, self.models = self.models, self._counted(models)
            log.info(f"loaded again: {', '.join(self.models)}")
            for model in old.values():
                while model.in_use:
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(model.close)

    def _counted(self, models: Sequence[ServedModel]) -> dict[str, ServedModel]:
        """The models by name; their batches are counted from now on."""
        for i, model in enumerate(models):
            model.batcher.on_batch = partial(self.metrics.ran, i)
        return {model.name: model for model in models}

    def check_access(self, request: Request) -> None:
        """Raises RequestError for a request without the token, or to a host that this is not."""
        name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if self.hosts is not None and name.strip("[]").lower() not in self.hosts:
            raise RequestError(421, "this server answers under another host name")
        given = request.headers.get("authorization", "").encode("utf-8", "replace")
        if self.token is not None and not secrets.compare_digest(given, f"Bearer {self.token}".encode()):
            raise RequestError(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, or the default. Raises RequestError."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise RequestError(404, f"there is no model {name!r}; choose one of {', '.join(self.models)}")
        return self.models[name]

    async def predict(self, request: Request, name: str | None, *, attention: bool) -> dict[str, Any]:
        """Answers a request to /predict. Raises RequestError."""
        model = self.model(name)
        async with self._admitted(model):
            images = await read_images(request, self.limits)
            rows = await model.predict(images, self.decoders)
        answers = [
            model.answer(i.name, row, attention=attention) for i, row in zip(images, rows, strict=True)
        ]
        return {"model": model.name, "predictions": answers}

    async def explain(
        self, request: Request, name: str | None, *, label: str | None, method: str | None
    ) -> dict[str, Any]:
        """Answers a request to /explain. Raises RequestError."""
        model = self.model(name)
        if not model.methods:
            raise RequestError(422, f"{model.name} cannot be explained: {model.why_unexplained}")
        if label is not None and label not in model.classifier.classes:
            raise RequestError(422, f"the model knows no class {label!r}")
        if method is not None and method not in model.methods:
            raise RequestError(422, f"there is no method {method!r}; choose {', '.join(model.methods)}")
        async with self._admitted(model):
            images = await read_images(request, self.limits)
            answers = await model.explain(images, self.decoders, label=label, method=method)
        return {"model": model.name, "explanations": answers}

    @asynccontextmanager
    async def _admitted(self, model: ServedModel) -> AsyncIterator[None]:
        """Counts a request that is worked on, and limits its time. Raises RequestError."""
        if self.in_progress >= self.limits.queue:
            raise RequestError(503, "too many requests wait; try again soon", {"Retry-After": "1"})
        self.in_progress += 1
        self.metrics.in_progress(self.in_progress)
        model.in_use += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise RequestError(
                503, f"no answer within {self.limits.seconds:g} s; try again", {"Retry-After": "5"}
            ) from None
        except UnreadableImage as error:
            raise RequestError(422, f"{error.path}: {error.reason}") from None
        finally:
            self.in_progress -= 1
            self.metrics.in_progress(self.in_progress)
            model.in_use -= 1


def create_app(server: Server) -> FastAPI:
    """The application over `server`: its API, described at /openapi.json, and the page."""
    app = FastAPI(
        title="deitkit",
        version="1",  # of the API
        lifespan=server.lifespan,
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=_Json,
    )
    _add_errors(app)
    _add_api(app, server)
    _add_page(app)

    @app.middleware("http")
    async def count(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await call(request)
        response.headers.update({k: v for k, v in _HEADERS.items() if k not in response.headers})
        if request.url.path in ("/predict", "/explain"):
            server.metrics.answered(response.status_code, time.perf_counter() - started)
        return response

    return app


def _add_api(app: FastAPI, server: Server) -> None:
    protected = [Depends(server.check_access)]

    @app.post(
        "/predict",
        dependencies=protected,
        openapi_extra={"requestBody": _BODY},
        responses=_RESPONSES,
        summary="Classify one image or many",
    )
    async def predict(request: Request, model: str | None = None, attention: bool = False) -> Response:
        """A prediction for each image, in order. `attention` adds the attention of a student's tokens."""
        return _Json(await server.predict(request, model, attention=attention))

    @app.post(
        "/explain",
        dependencies=protected,
        openapi_extra={"requestBody": _BODY},
        responses=_RESPONSES,
        summary="Show where the evidence for a class is",
    )
    async def explain(
        request: Request, model: str | None = None, label: str | None = None, method: str | None = None
    ) -> Response:
        """For each image, in order, weights over a grid that covers what the model sees of it.

        `label` is the class to explain, by default the predicted one; `method` one of `explains` in
        /model.json, by default the first.
        """
        return _Json(await server.explain(request, model, label=label, method=method))

    @app.get(
        "/model.json",
        dependencies=protected,
        responses=_REFUSED | {404: _RESPONSES[404]},
        summary="Classes, preprocessing and card of a model",
    )
    async def facts(model: str | None = None) -> Response:
        return _Json(server.model(model).facts() | {"models": list(server.models)})

    @app.get("/health", summary="Whether the process lives")
    async def health() -> Response:
        return _Json({"status": "ok"})

    @app.get(
        "/ready",
        summary="Whether requests are answered",
        responses={503: {"description": "Not yet, or no more."}},
    )
    async def ready() -> Response:
        return _Json({"ready": server.ready}, 200 if server.ready else 503)

    @app.get(
        "/metrics",
        dependencies=protected,
        response_class=PlainTextResponse,
        responses=_REFUSED,
        summary="Counts in Prometheus' text format",
    )
    async def metrics() -> Response:
        return Response(server.metrics.render(list(server.models)), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    for name, content in page_files().items():
        kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
        for path in ("/", "/index.html") if name == "index.html" else (f"/{name}",):
            app.add_api_route(path, _static(content, kind), include_in_schema=False)


def _static(content: bytes, kind: str | None) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return file


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _error(error.status, error.sentence, error.headers)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"{first['loc'][-1]} in the address: {first['msg']}")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.warning(f"a request failed ({type(error).__name__}: {error})")
        return _error(500, "the server failed; its log says why")


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return _Json({"error": sentence}, status, dict(headers or {}))
