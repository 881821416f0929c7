"""The HTTP API of `deitkit serve`: what it answers, what it refuses, and how it stops."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deitkit
from deitkit.classifier import load
from deitkit.cli import main
from deitkit.inference.unfamiliarity import unit
from deitkit.run_folder import write_calibration
from deitkit.run_schema import CalibrationInfo

from ..teachers.models import fitted_folder

pytest.importorskip("fastapi", reason='needs pip install "deitkit[serve]"')
pytest.importorskip("python_multipart", reason='needs pip install "deitkit[serve]"')
pytest.importorskip("uvicorn", reason='needs pip install "deitkit[serve]"')
from starlette.testclient import TestClient

from deitkit.deploy.batching import Batcher
from deitkit.deploy.request_images import Limits
from deitkit.deploy.served_model import open_model
from deitkit.deploy.server import Server, create_app
from deitkit.deploy.serving import _signals_to

IS_JSON = {"content-type": "application/json"}


def encoded(side: int = 24, seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side + 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def client_of(run, **options) -> TestClient:
    limits = options.pop("limits", Limits(body_bytes=200_000, images=8, pixels=100_000, queue=4))
    model = open_model(run, device="cpu", backend="pytorch", max_pixels=limits.pixels)
    server = Server([model], limits=limits, **options)
    client = TestClient(create_app(server), raise_server_exceptions=False)
    client.server = server
    return client


@pytest.fixture
def client(random_run):
    with client_of(random_run) as client:
        yield client


def test_a_form_and_json_are_answered_like_predict(random_run, client):
    images = [encoded(seed=1), encoded(side=40, seed=2, kind="JPEG")]
    expected = load(random_run, device="cpu", backend="pytorch").predict(images)
    form = client.post("/predict", files=[("image", (f"{i}.png", image)) for i, image in enumerate(images)])
    body = {"images": [{"data": base64.b64encode(image).decode(), "name": "a"} for image in images]}
    for answer in (form, client.post("/predict", json=body)):
        assert answer.status_code == 200, answer.text
        for found, prediction in zip(answer.json()["predictions"], expected, strict=True):
            assert found["label"] == prediction.label and found["labels"] == list(prediction.labels)
            assert found["probability"] == pytest.approx(prediction.probability, abs=1e-5)
            assert found["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
            assert sum(found["class_probabilities"].values()) == pytest.approx(1)
            assert found["attention"] is None
    assert [p["name"] for p in form.json()["predictions"]] == ["0.png", "1.png"]


@pytest.mark.parametrize("limit", [0.0, 2.0])
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_calibrated_models_say_what_is_unfamiliar(random_run, tmp_path, which, limit):
    folder = random_run if which == "student" else fitted_folder(tmp_path)
    classifier = load(folder, device="cpu", backend="pytorch")
    features = 32 if which == "student" else classifier.teacher(torch.zeros(1, 3, 32, 32)).embedding.shape[1]
    calibration = CalibrationInfo(images=60, temperature=2.0, familiar_up_to=limit)
    write_calibration(folder, calibration, unit(torch.rand(2, features)))
    image = encoded(seed=1)
    [expected] = load(folder, device="cpu", backend="pytorch").predict([image])
    with client_of(folder) as client:
        [found] = client.post("/predict", files={"image": ("a.png", image)}).json()["predictions"]
        assert client.get("/model.json").json()["familiar_up_to"] == limit
    assert found["unfamiliarity"] == pytest.approx(expected.unfamiliarity, abs=1e-4)
    assert found["familiar"] is (limit > 0)
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)


def test_a_hybrid_is_served_with_its_attention(hybrid_run):
    image = encoded(seed=1)
    [expected] = load(hybrid_run, device="cpu", backend="pytorch").predict([image])
    with client_of(hybrid_run) as client:
        answer = client.post("/predict?attention=true", files={"image": image}).json()["predictions"][0]
        [found] = client.post("/explain", files={"image": image}).json()["explanations"]
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert np.array(answer["attention"]).shape == (2, 2, 2) and np.array(found["map"]).shape == (2, 2)


def test_attention_comes_when_asked(client):
    answer = client.post("/predict?attention=true", files={"image": encoded()}).json()
    attention = np.array(answer["predictions"][0]["attention"])
    assert attention.shape == (2, 2, 3) and (attention >= 0).all() and (attention.sum((1, 2)) <= 1).all()


def test_an_explanation_is_that_of_explain(random_run, client):
    image = encoded(seed=1)
    [expected] = deitkit.explain(random_run, image, label="dog", model="student", device="cpu")
    answer = client.post("/explain?label=dog", files={"image": ("a.png", image)})
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["explanations"]
    assert (found["name"], found["label"], found["method"]) == ("a.png", "dog", "gradient-rollout")
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
    np.testing.assert_allclose(found["map"], expected.map(), atol=1e-5)
    [rolled] = client.post("/explain?method=rollout", files={"image": image}).json()["explanations"]
    assert rolled["label"] == rolled["predicted"]
    np.testing.assert_allclose(rolled["tokens"]["class token"], expected.maps["rollout"][0], atol=1e-5)
    assert client.get("/model.json").json()["explains"] == ["gradient-rollout", "rollout", "attention"]
    assert 'deitkit_requests_total{status="200"} 2' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("/explain?label=cow", 422, "no class 'cow'"),
        ("/explain?method=guess", 422, "no method 'guess'"),
        ("/explain?model=other", 404, "no model"),
    ],
)
def test_what_cannot_be_explained_is_told(client, address, status, sentence):
    answer = client.post(address, files={"image": encoded()})
    assert answer.status_code == status and sentence in answer.json()["error"]


def test_explanations_have_the_limits_of_predictions(random_run, client):
    assert client.post("/explain", content=b"x").status_code == 415
    assert client.post("/explain", json={"images": ["eA=="] * 9}).status_code == 413
    assert client.post("/explain", files={"image": ("a.png", b"no image")}).status_code == 422
    with client_of(random_run, limits=Limits(queue=0)) as full:
        assert full.post("/explain", files={"image": encoded()}).status_code == 503


def test_a_teacher_that_cannot_be_explained_still_answers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with client_of(fitted_folder(tmp_path)) as client:
        assert client.post("/predict", files={"image": encoded()}).status_code == 200
        answer = client.post("/explain", files={"image": encoded()})
        assert answer.status_code == 422 and "captum is not installed" in answer.json()["error"]
        assert client.get("/model.json").json()["explains"] == []


def test_the_page_and_its_facts(client):
    page = client.get("/")
    assert page.status_code == 200 and "Content-Security-Policy" in page.text
    assert page.headers["x-frame-options"] == "DENY"
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
    facts = client.get("/model.json").json()
    assert facts["home"] == "server" and facts["classes"] == ["cat", "dog"] and facts["models"] == ["run"]


def test_health_readiness_and_metrics(client):
    assert client.get("/health").status_code == 200 and client.get("/ready").status_code == 200
    client.post("/predict", files={"image": encoded()})
    client.post("/predict", content=b"x")
    text = client.get("/metrics").text
    assert (
        'deitkit_requests_total{status="200"} 1' in text and 'deitkit_requests_total{status="415"} 1' in text
    )
    assert 'deitkit_images_total{model="run"} 1' in text and "deitkit_request_seconds_count 1" in text


def test_openapi_describes_both_bodies(client):
    described = client.get("/openapi.json").json()["paths"]
    assert set(described["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
    }
    assert {"/predict", "/explain", "/health", "/ready", "/metrics", "/model.json"} == set(described)
    assert client.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("status", "sentence", "request_"),
    [
        (415, "neither multipart", {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (400, "not JSON", {"content": b"{", "headers": IS_JSON}),
        (400, "not JSON", {"content": b"[" * 100_000, "headers": IS_JSON}),
        (400, 'no list "images"', {"json": {"image": "x"}}),
        (400, "no image", {"json": {"images": []}}),
        (400, "not base64", {"json": {"images": ["é"]}}),
        (400, "no file", {"data": {"image": "text"}, "files": {"other": b"x"}}),
        (413, "at most 8", {"json": {"images": ["eA=="] * 9}}),
        (413, "at most 200,000 bytes", {"content": b" " * 200_001, "headers": IS_JSON}),
        (422, "photo.png: not an image", {"files": {"image": ("photo.png", b"no image")}}),
        (422, "too large", {"files": {"image": encoded(side=400, kind="JPEG")}}),
        (400, "cannot be read", {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}}),
    ],
)  # fmt: skip
def test_mistakes_are_answered_by_a_sentence(client, status, sentence, request_):
    answer = client.post("/predict", **request_)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


def test_other_mistakes(client):
    assert client.post("/predict?model=other", files={"image": encoded()}).status_code == 404
    assert client.post("/predict?attention=maybe", files={"image": encoded()}).status_code == 422
    assert client.get("/predict").status_code == 405 and client.get("/nothing").json() == {
        "error": "Not Found"
    }
    assert client.get("/model.json/").status_code == 404
    name = {"images": [{"data": base64.b64encode(encoded()).decode(), "name": "\ud800"}]}
    sent = client.post("/predict", content=json.dumps(name), headers=IS_JSON)
    assert sent.json()["predictions"][0]["name"] == "\ud800"


def test_a_token_and_a_host_are_asked_for(random_run):
    with client_of(random_run, token="geheim", hosts=frozenset({"localhost"})) as client:
        there = {"host": "localhost:8000"}
        for path in ("/model.json", "/metrics"):
            assert client.get(path, headers=there).status_code == 401
            assert client.get(path, headers=there | {"authorization": "Bearer geheim"}).status_code == 200
        assert client.post("/predict", files={"image": encoded()}, headers=there).status_code == 401
        elsewhere = {"host": "attacker.example", "authorization": "Bearer geheim"}
        assert client.get("/model.json", headers=elsewhere).status_code == 421
        assert client.get("/health").status_code == 200


def test_no_page_elsewhere_may_read_the_answers(client):
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    assert client.options("/predict", headers=headers).status_code == 405
    assert "access-control-allow-origin" not in client.get("/model.json", headers=headers).headers


def test_a_full_queue_is_answered_503(random_run):
    with client_of(random_run, limits=Limits(queue=0)) as client:
        answer = client.post("/predict", files={"image": encoded()})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_what_takes_too_long_is_answered_503(random_run, monkeypatch):
    async def never(*arguments):
        await asyncio.sleep(60)

    with client_of(random_run, limits=Limits(seconds=0.05)) as client:
        monkeypatch.setattr("deitkit.deploy.server.read_images", never)
        answer = client.post("/predict", files={"image": encoded()})
        assert answer.status_code == 503 and "within 0.05 s" in answer.json()["error"]
        assert client.server.in_progress == 0


def test_nothing_touches_the_disk(random_run, monkeypatch):
    """A form's files of more than a megabyte usually spill into temporary files."""
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *a, **k: pytest.fail("a temporary file was made"))
    noise = encoded(side=900)
    assert len(noise) > 2 * 2**20
    with client_of(random_run, limits=Limits()) as client:
        assert client.post("/predict", files={"image": noise}).status_code == 200


def broken_body(rng: random.Random) -> tuple[bytes, str]:
    """A request that is almost right: a form or JSON with bytes changed, cut, repeated or mislabelled."""
    image = encoded(seed=rng.randrange(4), kind=rng.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]))
    if rng.random() < 0.5:
        boundary = "b" * rng.randrange(1, 70)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        body = head.encode() + image + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
    else:
        entry = rng.choice([{"data": base64.b64encode(image).decode()}, {"data": 1}, None, "x", {"name": []}])
        body, kind = json.dumps({"images": [entry]}).encode(), "application/json"
    damaged = bytearray(body)
    for _ in range(rng.randrange(6)):
        place = rng.randrange(len(damaged))
        change = rng.randrange(3)
        if change == 0:
            damaged[place] = rng.randrange(256)
        elif change == 1:
            del damaged[place : place + rng.randrange(1, 200)]
        else:
            damaged[place:place] = bytes(damaged[: rng.randrange(200)])
        damaged = damaged or bytearray(b"x")
    kinds = [kind] * 8 + [
        "multipart/form-data",
        "application/json; charset=x",
        "multipart/form-data; boundary=",
    ]
    return bytes(damaged), rng.choice(kinds)


def test_malformed_bodies_end_in_a_status(client):
    rng = random.Random(0)
    seen = set()
    for i in range(int(os.environ.get("DEITKIT_BODIES", "1000"))):
        body, kind = broken_body(rng)
        answer = client.post("/predict", content=body, headers={"content-type": kind})
        assert answer.status_code in (200, 400, 413, 415, 422), (i, kind, answer.text)
        assert answer.status_code == 200 or answer.json()["error"]
        seen.add(answer.status_code)
    assert {200, 400, 422} <= seen and client.server.in_progress == 0


def test_a_batch_holds_what_waits_and_an_error_reaches_its_requests():
    sizes, go = [], threading.Event()

    class Backend:
        name = "counting"

        def __call__(self, views):
            go.wait(10)
            sizes.append(len(views))
            if len(sizes) == 3:
                raise RuntimeError("broken")
            return (views.mean((2, 3)),)

    batcher = Batcher(Backend(), torch.device("cpu"), max_batch=4)
    view = np.full((3, 8, 8), 255, np.uint8)
    first = batcher.submit(view)
    while not first.running():
        time.sleep(0.01)
    others = [batcher.submit(view) for _ in range(6)]
    others[0].cancel()
    go.set()
    assert first.result(10)[0].tolist() == [1, 1, 1]
    assert [f.result(10)[0].tolist() for f in others[1:4]] == [[1, 1, 1]] * 3
    with pytest.raises(RuntimeError, match="broken"):
        others[5].result(10)
    last = batcher.submit(view)
    batcher.close()
    assert last.done() and sizes == [1, 3, 2, 1]


def test_a_server_answers_what_it_accepted_before_it_stops(random_run):
    command = [sys.executable, "-m", "deitkit", "serve", str(random_run), "--port=0", "--device=cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "serving" in line)
        address = line.split(" at ")[1].split(";")[0]
        body = json.dumps({"images": [base64.b64encode(encoded()).decode()] * 40}).encode()
        answers = []

        def ask():
            request = urllib.request.Request(f"{address}/predict", body, IS_JSON)
            with urllib.request.urlopen(request, timeout=60) as answer:
                answers.append(len(json.load(answer)["predictions"]))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        metrics = f"{address}/metrics"
        while "in_progress 6" not in (text := urllib.request.urlopen(metrics, timeout=60).read().decode()):
            assert "_requests_total" in text
            if len(answers) == len(threads):
                break  # all were answered already
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert answers == [40] * 6
        process.wait(60)
    finally:
        process.kill()


def test_signals_reach_the_server_and_are_not_raised_again():
    """Uvicorn raises them again at the end; the second of two ends in a traceback then."""
    seen, numbers = [], (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with _signals_to(lambda number, frame: seen.append(number)):
        for number in numbers:
            signal.getsignal(number)(number, None)  # a real one would end a test's process that takes it late
    assert seen == list(numbers)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--host", "256.0.0.1"], "cannot listen"), (["--model", "teacher"], "teacher")],
)
def test_mistakes_of_the_command_end_in_one_sentence(random_run, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["serve", str(random_run), "--port=0", "--device=cpu", *arguments])
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err


def test_two_runs_of_one_name_are_refused(random_run, capsys):
    with pytest.raises(SystemExit):
        main(["serve", str(random_run), str(random_run), "--port=0", "--device=cpu"])
    assert "two runs are called run" in capsys.readouterr().err


def renamed(run: Path, classes: list[str]) -> None:
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"classes": classes}))


async def until_in_use(model) -> None:
    while not model.in_use:
        await asyncio.sleep(0.001)


def test_a_reload_takes_the_new_model_and_answers_what_was_asked(random_run):
    limits = Limits(queue=4)

    def reopen():
        return [open_model(random_run, device="cpu", backend="pytorch", max_pixels=limits.pixels)]

    server = Server(reopen(), limits=limits, reopen=reopen)
    with TestClient(create_app(server)) as client:
        old = server.models["run"]
        asked = threading.Thread(target=lambda: answers.append(client.post("/predict", files=[image] * 60)))
        answers, image = [], ("image", ("a.png", encoded()))
        asked.start()
        client.portal.call(until_in_use, old)
        renamed(random_run, ["lion", "wolf"])
        client.portal.call(server.reload)
        asked.join(60)
        assert set(answers[0].json()["predictions"][0]["probabilities"]) == {"cat", "dog"}
        assert client.get("/model.json").json()["classes"] == ["lion", "wolf"]
        assert client.post("/predict", files=[image]).json()["predictions"][0]["label"] in ("lion", "wolf")
        assert not old.batcher._thread.is_alive()


def test_a_reload_that_fails_leaves_the_models_as_they_were(random_run, caplog):
    def reopen():
        return [open_model(random_run, device="cpu", backend="pytorch", max_pixels=100_000)]

    server = Server(reopen(), limits=Limits(queue=4), reopen=reopen)
    with TestClient(create_app(server)) as client:
        (random_run / "config.json").unlink()
        client.portal.call(server.reload)
        assert client.post("/predict", files={"image": encoded()}).status_code == 200


@contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`deitkit serve` in a process of its own, and its address."""
    command = [sys.executable, "-m", "deitkit", "serve", str(run), "--port=0", "--device=cpu"]
    process = subprocess.Popen([*command, "--backend=pytorch", *options], stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "serving" in line)
        yield process, line.split(" at ")[1].split(";")[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="SIGHUP is POSIX's")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_answer_reload_on_sighup_and_stop(random_run, workers):
    with served(random_run, f"--workers={workers}") as (process, address):

        def classes() -> list[str]:
            with urllib.request.urlopen(f"{address}/model.json", timeout=60) as answer:
                return json.load(answer)["classes"]

        assert classes() == ["cat", "dog"]
        renamed(random_run, ["lion", "wolf"])
        process.send_signal(signal.SIGHUP)
        ends = time.monotonic() + 60
        while any(classes() != ["lion", "wolf"] for _ in range(8)):  # connections go to either worker
            assert time.monotonic() < ends
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a worker")
def test_metrics_are_of_all_workers_and_outlive_one(random_run):
    """Asked of either worker, before and after one of them was replaced."""
    body = json.dumps({"images": [base64.b64encode(encoded()).decode()] * 3}).encode()
    with served(random_run, "--workers=2") as (process, address):

        def lines() -> set[str]:
            with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
                return set(answer.read().decode().splitlines())

        def ask(times: int) -> None:
            for _ in range(times):
                request = urllib.request.Request(f"{address}/predict", body, IS_JSON)
                urllib.request.urlopen(request, timeout=60).read()

        def expected(requests: int) -> set[str]:
            return {
                f'deitkit_requests_total{{status="200"}} {requests}',
                "deitkit_requests_in_progress 0",
                f'deitkit_images_total{{model="run"}} {3 * requests}',
                f"deitkit_request_seconds_count {requests}",
            }

        ask(8)
        for _ in range(6):  # connections go to either worker
            assert expected(8) <= lines()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            return
        workers = [pid for pid in map(int, children.read_text().split()) if _is_worker(pid)]
        os.kill(workers[0], signal.SIGKILL)
        next(line for line in process.stderr if "another takes its place" in line)
        ask(4)
        assert all(expected(12) <= lines() for _ in range(4))
        process.kill()  # its workers go, too
        ends = time.monotonic() + 60
        while True:
            assert time.monotonic() < ends
            try:
                lines()
            except OSError:
                break


def _is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_worker_that_cannot_load_ends_the_server_with_its_sentence(random_run, capsys):
    (random_run / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SystemExit) as exit_:
        main(["serve", str(random_run), "--port=0", "--device=cpu", "--workers=2"])
    assert exit_.value.code == 2 and "model.safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_its_openapi_holds_for_thousands_of_generated_requests(random_run, tmp_path):
    """No 5xx, and no status or content type that the description does not have."""
    pytest.importorskip("schemathesis", reason="needs pip install schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with served(random_run) as (_, address):
        # Of generated base64 most is no image, which no schema can say: 4xx answers are allowed.
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
        found = subprocess.run(
            [*command, f"--checks={checks}", "--max-examples=1000", "--generation-deterministic"],
            cwd=tmp_path,  # it keeps what failed
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stdout
        assert int(re.search(r"(\d+) generated", found.stdout)[1]) > 1000
        assert urllib.request.urlopen(f"{address}/health", timeout=60).status == 200


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_in_a_minute_of_load(random_run):
    """After ten seconds of warming up: allocators keep what they once had."""
    body = json.dumps({"images": [base64.b64encode(encoded(side=200)).decode()] * 4}).encode()
    with served(random_run) as (process, address):

        def load(seconds: float) -> int:
            ends, answered = time.monotonic() + seconds, 0
            while time.monotonic() < ends:
                request = urllib.request.Request(f"{address}/predict", body, IS_JSON)
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answered += len(json.load(answer)["predictions"])
            return answered

        def resident_mb() -> float:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

        load(10)
        before = resident_mb()
        answered = load(50)
        grown = resident_mb() - before
    assert answered > 100 and grown < 20, f"{grown:.0f} MB more after {answered} images"
