"""The images in the body of an HTTP request, read into memory: nothing is written to the disk."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

MULTIPART, JSON = "multipart/form-data", "application/json"
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    body_bytes, images: of one request. pixels: of an image. queue: requests that are answered or wait at the
    same time. seconds: until a request is answered.
    """

    body_bytes: int = 32 * 2**20
    images: int = 64
    pixels: int = 50_000_000
    queue: int = 64
    seconds: float = 30.0


class RequestError(Exception):
    """Why a request is not answered: an HTTP status and one sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


@dataclass(frozen=True)
class SentImage:
    """An image of a request: a name to show, and the bytes of the file."""

    name: str
    content: bytes


async def read_images(request: Request, limits: Limits) -> list[SentImage]:
    """The images of a multipart form or of JSON, in order. Raises RequestError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (MULTIPART, JSON):
        raise RequestError(415, f"the body is neither {MULTIPART} nor {JSON}; send one of them")
    body = await _body(request, limits.body_bytes)
    images = await _from_form(request, body, limits) if kind == MULTIPART else _from_json(body)
    if not images:
        raise RequestError(400, "the body holds no image; send at least one")
    if len(images) > limits.images:
        raise RequestError(413, f"the body holds {len(images)} images; send at most {limits.images}")
    return images


async def _body(request: Request, most: int) -> bytes:
    too_large = RequestError(413, f"the body is too large; send at most {most:,} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise RequestError(400, "the connection was closed before the body ended") from None
    return bytes(body)


class _InMemoryParser(MultiPartParser):
    """Keeps every part in memory; the body is there already, and its size was checked."""

    spool_max_size = 2**62


async def _from_form(request: Request, body: bytes, limits: Limits) -> list[SentImage]:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    parser = _InMemoryParser(
        request.headers,
        whole(),  # type: ignore[arg-type]
        max_files=limits.images,
        max_fields=limits.images,
        max_part_size=limits.body_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, f"the form cannot be read: {error.message}") from None
    except (ValueError, KeyError, LookupError):  # of the parser, for a broken header
        raise RequestError(400, "the form cannot be read: it is broken") from None
    images = []
    for _, part in form.multi_items():
        if not isinstance(part, UploadFile):
            raise RequestError(400, "a part of the form is no file; send images as files")
        images.append(SentImage(_name(part.filename), await part.read()))
        await part.close()
    return images


def _from_json(body: bytes) -> list[SentImage]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise RequestError(400, 'the JSON has no list "images"; send {"images": [{"data": "<base64>"}]}')
    return [_from_entry(entry, i) for i, entry in enumerate(images)]


def _from_entry(entry: Any, i: int) -> SentImage:
    entry = {"data": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        raise RequestError(400, f'image {i} has no "data" in base64; send {{"data": "<base64>"}}')
    try:
        content = base64.b64decode(entry["data"], validate=True)
    except (binascii.Error, ValueError):  # also for text beyond ASCII
        raise RequestError(400, f"the data of image {i} is not base64") from None
    return SentImage(_name(entry.get("name")), content)


def _name(name: object) -> str:
    return name[:_LONGEST_NAME] if isinstance(name, str) and name else "image"
