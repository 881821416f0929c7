"""ONNX Runtime Web, which runs a model in the browser: fetched once from npm, checked, kept in the cache.

Its version and its checksums stand here and nowhere else. To change the version, change `VERSION` and
`_SHA256`, and run tests/deploy/test_web_page.py, which opens the page in a browser.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

from .. import log
from ..data.cache import default_cache_dir
from ..errors import DependencyError
from ..io import create_folder, written_aside

VERSION = "1.30.0"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
_MOST_BYTES = 128 * 2**20
_TIMEOUT_S = 60.0
FETCH = "npm"  # instead of a folder
LICENSE = """\
ONNX Runtime Web, https://github.com/microsoft/onnxruntime

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def web_runtime(source: str | None = None) -> dict[str, bytes]:
    """The files of ONNX Runtime Web, by name, checksums verified.

    source: None for those in the cache; "npm" fetches them into it where they are missing; or a folder, such
    as an unpacked npm package. Raises DependencyError if a file is missing or is not of this version.
    """
    if source is not None and source != FETCH:
        return _read(Path(source))
    folder = default_cache_dir() / f"onnxruntime-web-{VERSION}"
    if all((folder / name).is_file() for name in _SHA256):
        return _read(folder)
    if source is None:
        raise DependencyError(
            f"a web page needs ONNX Runtime Web {VERSION}, which is not in the cache; add --runtime npm to "
            "fetch it once from registry.npmjs.org (33 MB), or --runtime DIR with the unpacked npm package"
        )
    files = _fetch()
    create_folder(folder)
    for name, content in files.items():
        with written_aside(folder / name) as side:
            side.write_bytes(content)
    return files


def _read(folder: Path) -> dict[str, bytes]:
    """The files in `folder`, or where the npm package in it has them."""
    for place in (folder, folder / "dist", folder / "package" / "dist"):
        if all((place / name).is_file() for name in _SHA256):
            return {name: _checked(name, (place / name).read_bytes(), str(place)) for name in _SHA256}
    raise DependencyError(
        f"{folder} holds no {SCRIPT} and {WASM}; give a folder with the npm package onnxruntime-web {VERSION}"
    )


def _fetch() -> dict[str, bytes]:
    with log.activity(f"fetching ONNX Runtime Web {VERSION} from registry.npmjs.org, 33 MB"):
        try:
            with urllib.request.urlopen(_ADDRESS, timeout=_TIMEOUT_S) as answer:
                archive = answer.read(_MOST_BYTES)
        except OSError as error:
            raise DependencyError(
                f"ONNX Runtime Web cannot be fetched from {_ADDRESS} ({error}); fetch it elsewhere and give "
                "--runtime DIR with the unpacked package"
            ) from None
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as package:
            return {name: _checked(name, _member(package, name), _ADDRESS) for name in _SHA256}
    except (tarfile.TarError, EOFError, KeyError, OSError) as error:
        raise DependencyError(
            f"{_ADDRESS} is not the package that it should be ({error}); try again"
        ) from None


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"package/dist/{name}")
    if file is None:
        raise KeyError(name)
    return file.read()


def _checked(name: str, content: bytes, where: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != _SHA256[name]:
        raise DependencyError(
            f"{name} from {where} is not that of onnxruntime-web {VERSION}: its checksum differs; "
            "give a folder with the npm package of this version"
        )
    return content
