"""A run as a folder of static files, and the runtime beside them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import torch

from deitkit.classifier import load
from deitkit.cli import main
from deitkit.data.cache import default_cache_dir
from deitkit.deploy import web_runtime as runtimes
from deitkit.deploy.exporter import export_run
from deitkit.errors import DeitkitError
from deitkit.evaluation.attention import layers, patch_maps
from deitkit.inference.attention_graph import with_attention

FILES = {runtimes.SCRIPT: b"export default {};", runtimes.WASM: b"\0asm" + bytes(1000)}


@pytest.fixture
def small_runtime(tmp_path, monkeypatch) -> Path:
    """A stand-in for ONNX Runtime Web."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(runtimes, "_SHA256", sums)
    folder = tmp_path / "npm" / "package" / "dist"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return tmp_path / "npm"


def test_attention_is_that_of_the_last_block(random_run):
    classifier = load(random_run, device="cpu", backend="pytorch")
    views = torch.rand(2, 3, 16, 24)
    graph = with_attention(classifier.graph)
    assert graph.output_names == ("probabilities", "class_logits", "distill_logits", "attention")
    with torch.no_grad():
        *outputs, attention = graph(views)
        for found, expected in zip(outputs, classifier.graph(views), strict=True):
            torch.testing.assert_close(found, expected)
        *_, block, _ = layers(classifier.model, classifier.graph.normalise(views))
    torch.testing.assert_close(attention, patch_maps(block.attention.mean(1), (2, 3)))


def test_merged_tokens_have_no_map(random_run):
    graph = load(random_run, device="cpu", backend="pytorch", merge=1).graph
    assert with_attention(graph) is graph


def test_a_site_holds_all_that_the_page_loads(random_run, tmp_path, small_runtime):
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    site = tmp_path / "site"
    exported = export_run(random_run, "web", site, runtime=str(small_runtime))
    assert exported.files == [site]
    names = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    for page in (file for file in site.glob("*.*") if file.suffix != ".onnx"):
        assert "https://" not in page.read_text()
    kept = re.search(r"const FILES = (\[.*?\]);", (site / "offline.js").read_text(), re.DOTALL)
    others = {
        "index.html",
        "sample.html",
        "offline.js",
        "server_model.js",
        "runtime/LICENSE",
    }  # "./" is the page
    assert set(re.findall(r'"(.*?)"', kept[1])) == names - others | {"./"}
    assert {"index.html", "app.js", "style.css", "worker.js", "model.json", "model.onnx"} <= names
    assert gzip.decompress((site / "runtime" / f"{runtimes.WASM}.gz").read_bytes()) == FILES[runtimes.WASM]
    assert "MIT License" in (site / "runtime" / "LICENSE").read_text()
    facts = json.loads((site / "model.json").read_text())
    assert facts["classes"] == ["cat", "dog"] and facts["attention"] and facts["home"] == "browser"
    assert str(tmp_path) not in (site / "model.json").read_text()  # it may be published
    session = ort.InferenceSession(site / "model.onnx")
    assert [o.name for o in session.get_outputs()][-1] == "attention"


def test_the_card_tells_what_the_run_knows(random_run, tmp_path, small_runtime):
    pytest.importorskip("onnxscript")
    student = {"name": "nano", "top1": 91.25, "interval": [88.0, 93.5], "params": 5000, "images_per_s": 100.0}
    results = {
        "student": student,
        "train": {"epochs": 1, "seconds": 1.0, "images_per_s": 1.0},
        "val": {"images": 40},
        "weights": "raw",
        "date": "2026-11-28",
    }
    (random_run / "results.json").write_text(json.dumps(results))
    export_run(random_run, "web", tmp_path / "site", runtime=str(small_runtime))
    card = json.loads((tmp_path / "site" / "model.json").read_text())["card"]
    assert card["accuracy"] == {"metric": "top-1", "value": 91.25, "interval": [88.0, 93.5], "images": 40}
    assert (card["name"], card["model"], card["data"], card["date"]) == (
        "run",
        "student",
        "images",
        "2026-11-28",
    )
    assert "knows 2 classes and nothing else" in card["limits"][0]


def test_a_class_name_that_is_no_utf8_is_written(tmp_path, image_folder, small_runtime):
    pytest.importorskip("onnxscript")
    from ..conftest import write_random_run

    run = write_random_run(tmp_path / "run", image_folder, ("cat", "caf\udce9"))
    export_run(run, "web", tmp_path / "site", runtime=str(small_runtime))
    assert json.loads((tmp_path / "site" / "model.json").read_bytes())["classes"][1] == "caf\udce9"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "add --runtime npm to fetch it once"),
        (["--runtime", "."], "holds no ort"),
        (["--runtime", "npm", "--precision=int8"], "web has no int8"),
        (["--to", "onnx", "--out", "a.onnx", "--runtime", "npm"], "--runtime is for --to web"),
        (["--out", "OCCUPIED"], "not empty"),
    ],
)
def test_mistakes_end_in_one_sentence(random_run, tmp_path, arguments, sentence, capsys):
    pytest.importorskip("onnxscript")
    arguments = [str(random_run) if a == "OCCUPIED" else a for a in arguments]
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(random_run), "--to", "web", "--out", str(tmp_path / "site"), *arguments])
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_a_runtime_of_another_version_is_refused(small_runtime):
    (small_runtime / "package" / "dist" / runtimes.WASM).write_bytes(b"other")
    with pytest.raises(DeitkitError, match="its checksum differs"):
        runtimes.web_runtime(str(small_runtime))


def test_the_runtime_is_fetched_once(small_runtime, monkeypatch):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as package:
        package.add(small_runtime / "package", "package")
    asked = []

    def answer(address, timeout):
        asked.append(address)
        return io.BytesIO(archive.getvalue())

    monkeypatch.setattr("urllib.request.urlopen", answer)
    assert runtimes.web_runtime("npm") == FILES
    assert runtimes.web_runtime() == FILES and runtimes.web_runtime("npm") == FILES
    assert asked == [f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{runtimes.VERSION}.tgz"]
    assert len(list(default_cache_dir().glob("onnxruntime-web-*/*"))) == 2


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_what_is_fetched_and_broken_is_not_kept(content, small_runtime, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda address, timeout: io.BytesIO(content))
    with pytest.raises(DeitkitError, match="not the package that it should be"):
        runtimes.web_runtime("npm")
    assert not list(default_cache_dir().glob("onnxruntime-web-*/*"))


def test_without_a_network_it_says_what_to_do(small_runtime, monkeypatch):
    def offline(address, timeout):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DeitkitError, match="--runtime DIR"):
        runtimes.web_runtime("npm")
