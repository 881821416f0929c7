"""The page in a real browser: a Chromium, driven by Playwright. Skipped where either is missing."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import os
import re
import shutil
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitkit.classifier import load
from deitkit.deploy.exporter import export_run
from deitkit.deploy.web_runtime import web_runtime
from deitkit.errors import DependencyError

from ..conftest import write_images, write_random_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
pytest.importorskip("onnxscript", reason='needs pip install "deitkit[onnx]"')
CHROMIUM = next((p for name in ("chromium", "google-chrome") if (p := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium or google-chrome"),
]
CLASSES = ("cat", "<img src=x onerror=alert(1)>dog")
AXE = "https://registry.npmjs.org/axe-core/-/axe-core-4.14.1.tgz"
TIMEOUT_MS = 120_000  # of a busy machine
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write_random_run(folder / "run", write_images(folder / "images"), CLASSES)


@pytest.fixture(scope="module")
def site(run) -> Iterator[str]:
    """The address of the exported page."""
    try:
        web_runtime("npm")  # in the user's cache
    except DependencyError as error:
        pytest.skip(str(error))
    export_run(run, "web", run.parent / "site")
    handler = functools.partial(_QuietHandler, directory=str(run.parent / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None: ...


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments.append("--no-sandbox")
        started = driver.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=TIMEOUT_MS)
        yield started
        started.close()


@pytest.fixture
def page(browser, site) -> Iterator:
    """The loaded page; no error on it, and no request to another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(TIMEOUT_MS)
    errors, requests = [], []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    context.on("request", lambda request: requests.append(request.url))
    opened.goto(site)
    opened.wait_for_selector("body[data-ready]")
    yield opened
    context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith((site, "blob:", "data:"))] == []


def photo(seed: int, size: tuple[int, int] = (150, 150), kind: str = "JPEG", **options) -> bytes:
    """A smooth image, as photos are."""
    rough = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


def upload(page, *files: bytes) -> None:
    sent = [{"name": f"{i}.jpg", "mimeType": "image/jpeg", "buffer": f} for i, f in enumerate(files)]
    page.set_input_files("#files", sent)
    page.wait_for_selector("#table tr.first")


def classify(page, files: list[bytes]) -> list[dict]:
    """The answers of the model behind the page, unrounded."""
    return page.evaluate(
        """async (files) => {
          const { openLocalModel } = await import("./local_model.js");
          const model = await openLocalModel(await (await fetch("model.json")).json());
          const answers = [];
          for (const file of files) {
            const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0));
            const isJpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
            const bitmap = await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none" });
            answers.push(await model.classify(bitmap, { isJpeg }));
          }
          return answers;
        }""",
        [base64.b64encode(file).decode() for file in files],
    )


def difference(run, page, files: list[bytes]) -> float:
    """The largest difference of a probability from PyTorch's."""
    expected = load(run, device="cpu", backend="pytorch").predict(files)
    found = [answer["probabilities"] for answer in classify(page, files)]
    wanted = [[prediction.probabilities[name] for name in CLASSES] for prediction in expected]
    return float(np.abs(np.array(found) - np.array(wanted)).max())


def test_answers_are_those_of_pytorch(run, page):
    sizes = [(150, 150), (97, 151), (40, 30), (16, 12), (24, 16), (200, 20), (33, 300)]
    files = [photo(i, sizes[i % len(sizes)], kind) for i, kind in enumerate(["PNG", "JPEG"] * 25)]
    assert difference(run, page, files) < 1e-3


def test_the_sample_beside_the_page_says_what_predict_says(run, site, page):
    file = photo(6)
    page.goto(f"{site}sample.html")
    page.wait_for_selector("input:not([disabled])")
    page.set_input_files("input", [{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": file}])
    page.wait_for_selector("output:not(:empty)")
    [expected] = load(run, device="cpu", backend="pytorch").predict([file])
    assert page.inner_text("output") == f"{expected.label} {expected.probability:.3f}"


def test_large_and_turned_photos_are_close(run, page):
    """A JPEG that Pillow decodes at a reduced scale, and one that lies on its side."""
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [photo(1, (1600, 1200), quality=92), photo(2, (801, 603)), photo(3, (160, 120), exif=turned)]
    assert difference(run, page, files) < 1e-2


def test_an_image_is_chosen_and_explained(run, page):
    file = photo(5)
    upload(page, file)
    [expected] = load(run, device="cpu", backend="pytorch").predict([file])
    assert page.inner_text("#label") == expected.label  # markup in a name stays text
    assert page.inner_text("#table tr.first .joint") == f"{100 * expected.probability:.1f} %"
    assert page.locator("#table img, #label img, #facts img").count() == 0
    assert page.locator("#table thead th").all_inner_texts()[1:] == [
        "both heads",
        "class head",
        "distillation head",
    ]
    plain = page.evaluate("document.getElementById('picture').toDataURL()")
    page.check("input[name=look][value='1']")
    assert page.evaluate("document.getElementById('picture').toDataURL()") != plain
    page.fill("#strength", "0")
    assert page.evaluate("document.getElementById('picture').toDataURL()") == plain


def test_earlier_images_are_shown_again(page):
    upload(page, photo(1), photo(2), photo(3))
    page.locator("#recent li").nth(2).wait_for()
    page.locator("#recent button").last.click()
    assert page.inner_text("#label") == page.locator("#recent button").last.inner_text().strip()


def hand_over(page, way: str) -> None:
    """Pastes or drops an image."""
    page.evaluate(
        """([file, way]) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0));
          data.items.add(new File([bytes], "a.png", { type: "image/png" }));
          const event = way === "paste"
            ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
            : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
          document.body.dispatchEvent(event);
        }""",
        [base64.b64encode(photo(4, kind="PNG")).decode(), way],
    )


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_an_image_is_pasted_and_dropped(page, way):
    hand_over(page, way)
    page.wait_for_selector("#table tr.first")


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_an_image_that_comes_while_the_model_loads_is_answered(browser, site, way):
    context = browser.new_context()
    page, held = context.new_page(), []
    page.set_default_timeout(TIMEOUT_MS)
    page.route("**/*.onnx", lambda route: held.append(route))
    page.goto(site)
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('Loading')")
    hand_over(page, way)
    assert page.locator("#table tr.first").count() == 0
    while not held:
        page.wait_for_timeout(50)
    held[0].continue_()
    page.wait_for_selector("#table tr.first")
    context.close()


def test_the_camera_runs_and_stops(page):
    page.click("#camera")
    playwright.expect(page.locator("#rate")).to_have_text(re.compile("^[0-9.]+ frames/s"), timeout=TIMEOUT_MS)
    page.wait_for_selector("#table tr.first")
    assert page.get_attribute("#camera", "aria-pressed") == "true"
    page.click("#camera")
    assert page.is_hidden("#rate") and page.inner_text("#camera") == "Start camera"


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("a.png", "image/png", "a.png: this browser cannot read it as an image"),
        ("a.pdf", "application/pdf", "That is no image"),
    ],
)
def test_what_is_no_image_is_told_and_the_last_answer_taken_off(page, name, kind, sentence):
    upload(page, photo(1))
    page.set_input_files("#files", [{"name": name, "mimeType": kind, "buffer": b"no image"}])
    page.wait_for_selector("#problem:not([hidden])")
    assert sentence in page.inner_text("#problem")
    assert page.inner_text("#answer").strip() == page.inner_text("#table").strip() == ""
    assert page.is_hidden("#picture") and page.is_hidden("#looks") and page.is_visible("#empty")
    upload(page, photo(1))
    page.wait_for_selector("#problem", state="hidden")
    assert page.is_visible("#picture") and page.inner_text("#label")


def test_the_keyboard_is_enough(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo(1)})
    page.wait_for_selector("#table tr.first")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("input[name=look][value='0']")
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#recent') !== null")


def test_a_phone_shows_it_without_scrolling_sideways(page):
    page.set_viewport_size(PHONE)
    upload(page, photo(1))
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    stage, answer = page.locator("#stage").bounding_box(), page.locator("#answer").bounding_box()
    looks = page.locator("#looks").bounding_box()
    assert stage["y"] < answer["y"] < looks["y"]


def test_no_other_host_can_be_reached(browser, site):
    page = browser.new_page()
    page.goto(site)
    page.wait_for_selector("body[data-ready]", timeout=TIMEOUT_MS)
    reach = "fetch('https://example.org/').then(() => 'reached', (error) => error.name)"
    assert page.evaluate(reach) == "TypeError"
    page.close()


def test_the_page_opens_again_without_a_network(run, site, browser):
    handler = functools.partial(_QuietHandler, directory=str(run.parent / "site"))
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("body[data-ready]")
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        server.shutdown()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    upload(page, photo(1))
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, site, scheme):
    try:
        with urllib.request.urlopen(AXE, timeout=60) as answer:
            archive = io.BytesIO(answer.read())
    except OSError as error:
        pytest.skip(f"axe-core cannot be fetched: {error}")
    with tarfile.open(fileobj=archive, mode="r:gz") as package:
        axe = package.extractfile("package/axe.min.js").read().decode()
    context = browser.new_context(bypass_csp=True, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(site)
    page.wait_for_selector("body[data-ready]")
    page.evaluate(axe)
    for step in ("empty", "answered"):
        if step == "answered":
            upload(page, photo(1))
        found = page.evaluate("axe.run()")["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == [], step
    context.close()


def test_the_same_page_over_a_server(run, browser):
    pytest.importorskip("fastapi", reason='needs pip install "deitkit[serve]"')
    uvicorn = pytest.importorskip("uvicorn", reason='needs pip install "deitkit[serve]"')
    from deitkit.deploy.request_images import Limits
    from deitkit.deploy.served_model import open_model
    from deitkit.deploy.server import Server, create_app
    from deitkit.deploy.serving import _listening

    model = open_model(run, device="cpu", backend="pytorch", max_pixels=10**7)
    app = create_app(Server([model], limits=Limits(), token="geheim"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with _listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        page.goto(address)
        page.wait_for_selector("#problem:not([hidden])")
        assert "token" in page.inner_text("#problem")
        page.goto("about:blank")
        page.goto(f"{address}#token=geheim")
        page.wait_for_selector("body[data-ready]")
        file = photo(7)
        upload(page, file)
        [expected] = load(run, device="cpu", backend="pytorch").predict([file])
        assert page.inner_text("#label") == expected.label
        assert page.inner_text("#table tr.first .joint") == f"{100 * expected.probability:.1f} %"
        assert page.is_visible("#looks")
        plain = page.evaluate("document.getElementById('picture').toDataURL()")
        page.check("input[name=look][value=evidence]")
        note = re.compile(f"evidence for {re.escape(expected.label)} is, by gradient-weighted")
        playwright.expect(page.locator("#look-note")).to_have_text(note, timeout=TIMEOUT_MS)
        assert page.evaluate("document.getElementById('picture').toDataURL()") != plain
        page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": b"no image"}])
        page.wait_for_selector("#problem:not([hidden])")
        assert page.inner_text("#problem").startswith("a.png: not an image")
        assert page.is_visible("#empty") and not page.inner_text("#label")
        assert_heic_is_answered_without_a_picture(run, page)
        page.close()
        server.should_exit = True
        thread.join(60)


def assert_heic_is_answered_without_a_picture(run, page) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason='needs pip install "deitkit[heif]"')
    content = io.BytesIO()
    pillow_heif.from_pillow(Image.open(io.BytesIO(photo(8)))).save(content, quality=90)
    heic = {"name": "a.heic", "mimeType": "image/heic", "buffer": content.getvalue()}
    page.set_input_files("#files", [heic])
    page.wait_for_selector("#unseen:not([hidden])")
    [expected] = load(run, device="cpu", backend="pytorch").predict([content.getvalue()])
    assert page.inner_text("#label") == expected.label
    assert page.is_hidden("#picture") and page.is_hidden("#problem") and page.is_hidden("#looks")
    page.locator("#recent button").last.click()  # an image that can be shown
    assert page.is_visible("#picture") and page.is_hidden("#unseen")
