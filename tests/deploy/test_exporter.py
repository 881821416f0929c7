"""A run written for other runtimes says what PyTorch says, and says what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from deitkit.classifier import load
from deitkit.cli import main
from deitkit.deploy.export_formats import FORMATS
from deitkit.deploy.exporter import export_run
from deitkit.deploy.reopened import open_again
from deitkit.errors import DeitkitError, DependencyError, RunFolderError


def views(B: int) -> torch.Tensor:
    return torch.rand(B, 3, 16, 24, generator=torch.Generator().manual_seed(B))


def assert_like_pytorch(backend, run, merge: int, tolerance: float = 1e-5) -> None:
    graph = load(run, device="cpu", backend="pytorch", merge=merge).graph
    for B in (1, 3, 5):
        with torch.no_grad():
            expected = graph(views(B))
        for a, b in zip(backend(views(B)), expected, strict=True):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("merge", [0, 1])
def test_onnx_with_any_batch_and_its_names(random_run, tmp_path, merge):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    out = tmp_path / "new" / "student.onnx"
    exported = export_run(random_run, "onnx", out, merge=merge)
    assert exported.files == [out, out.with_name("student_sample.py")]
    assert sorted(out.parent.iterdir()) == exported.files and exported.size == out.stat().st_size
    found = exported.reopening
    assert found.of_run and found.images == found.same_answers == 6  # a quarter of 24
    assert found.largest_difference < 1e-5 and found.images_per_s > 0 and found.ms_per_image > 0
    session = ort.InferenceSession(out)
    assert [i.name for i in session.get_inputs()] == ["views"]
    assert [o.name for o in session.get_outputs()] == ["probabilities", "class_logits", "distill_logits"]
    assert_like_pytorch(
        lambda x: map(torch.from_numpy, session.run(None, {"views": x.numpy()})), random_run, merge
    )
    said = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
    assert said["classes"] == ["cat", "dog"]
    assert said["preprocessing"]["crop"] == 0.9
    size, resize = said["preprocessing"]["image_size"], said["preprocessing"]["resize"]
    assert resize == [int(side / 0.9) for side in size]  # what predict covers before it cuts the centre out
    assert said["preprocessing"]["mean"] == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize("merge", [0, 1])
def test_openvino_with_any_batch_and_its_names(random_run, tmp_path, merge):
    openvino = pytest.importorskip("openvino")
    out = tmp_path / "student.xml"
    names = [f.name for f in export_run(random_run, "openvino", out, merge=merge).files]
    assert names == ["student.bin", "student.xml", "student_sample.py"]
    model = openvino.Core().read_model(out)
    assert json.loads(model.get_rt_info(["deitkit", "classes"]).astype(str)) == ["cat", "dog"]
    assert [o.get_any_name() for o in model.outputs] == ["probabilities", "class_logits", "distill_logits"]
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_like_pytorch(
        lambda x: [torch.from_numpy(compiled(x.numpy())[i].copy()) for i in range(3)], random_run, merge
    )


@pytest.mark.slow
@pytest.mark.parametrize(("to", "name"), [("onnx", "small.onnx"), ("openvino", "small.xml")])
def test_int8_is_calibrated_and_measured_on_the_runs_images(random_run, tmp_path, to, name):
    pytest.importorskip("onnxscript")
    exported = export_run(random_run, to, tmp_path / name, precision="int8")
    cost = exported.int8
    assert exported.reopening.images == cost.difference.images == 6  # a quarter of 24
    assert cost.difference.value == pytest.approx(cost.int8 - cost.fp32)
    assert cost.difference.low <= cost.difference.value <= cost.difference.high
    if to == "onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(tmp_path / name)
        weights = [
            t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
        ]
        assert len(weights) >= 8  # four matrices a block
        assert "classes" in {entry.key for entry in model.metadata_props}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "onnx", "--out", "a.xml"], "ends in .onnx"),
        (["--to", "tflite", "--out", "a.tflite"], "cannot export to 'tflite'"),
        (["--to", "timm", "--out", "a.timm"], "deitkit convert writes weights for it"),
        (["--to", "onnx", "--out", "a.onnx", "--data", "."], "--data calibrates int8"),
        (["--to", "onnx", "--out", "a.onnx", "--precision", "fp8"], "no precision 'fp8'"),
        (["--to", "onnx", "--out", "a.onnx", "--batch", "0"], "a number of images from 1"),
        (["--to", "onnx", "--out", "a.onnx", "--input", "bytes"], "float or uint8"),
        (["--to", "onnx", "--out", "a.onnx", "--input", "uint8", "--batch", "2"], "leave out --batch"),
        (["--to", "onnx", "--out", "a.onnx", "--runtime", "npm"], "--runtime is for --to web"),
        (["--to", "torch-export", "--out", "a.pt2", "--precision", "int8"], "has no int8 here"),
    ],
)
def test_mistakes_end_in_one_sentence(random_run, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(random_run), *arguments])
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err


def test_a_missing_openvino_is_told_before_the_calibration(random_run, tmp_path, monkeypatch):
    monkeypatch.setattr("deitkit.inference.backends.installed", lambda backend: backend != "openvino")
    monkeypatch.setattr(
        "deitkit.deploy.export_formats.onnx.to_onnx", lambda *_: pytest.fail("work was begun")
    )
    with pytest.raises(DeitkitError, match="openvino is not installed"):
        export_run(random_run, "openvino", tmp_path / "a.xml", precision="int8")


def test_int8_without_images_says_what_to_do(random_run, tmp_path, image_folder):
    image_folder.rename(tmp_path / "moved")
    with pytest.raises(DeitkitError, match=r"no longer in .*--data"):
        export_run(random_run, "onnx", tmp_path / "a.onnx", precision="int8")


def test_openvino_that_cannot_write_says_so(random_run, tmp_path, monkeypatch):
    """On a full disk OpenVINO only says "iostream error"."""
    openvino = pytest.importorskip("openvino")

    def full(*arguments, **options):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(RunFolderError, match=r"cannot be written to .* free some space there"):
        export_run(random_run, "openvino", tmp_path / "o" / "a.xml")
    assert not list((tmp_path / "o").iterdir())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_each_format_is_told_if_its_package_is_missing(name, random_run, tmp_path, monkeypatch):
    form = FORMATS[name]
    if form.extra is None:
        pytest.skip(f"{name} needs PyTorch alone")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(DependencyError, match=rf'is not installed.*deitkit\[{form.extra}\]"') as error:
        export_run(random_run, name, tmp_path / f"a{form.suffix}")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("a*"))


def test_formats_import_nothing_before_they_are_asked_for():
    packages = {package for form in FORMATS.values() for package in form.packages}
    script = f"import sys, deitkit.deploy.exporter; print({packages} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(packages) >= 5 and said.stdout.strip() == "set()"


def test_a_file_that_answers_otherwise_does_not_stay(random_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    right = open_again

    def wrong(files, inputs, folder):
        found = right(files, inputs, folder)
        return {k: replace(v, outputs=tuple(t + 0.01 for t in v.outputs)) for k, v in found.items()}

    monkeypatch.setattr("deitkit.deploy.exporter.open_again", wrong)
    with pytest.raises(DependencyError, match=r"was not written: its outputs differ from PyTorch's by 0\.01"):
        export_run(random_run, "onnx", tmp_path / "o" / "a.onnx")
    assert not list((tmp_path / "o").iterdir())


def test_a_file_that_does_not_open_does_not_stay(random_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(
        FORMATS["onnx"], "write", lambda job, file: file.write_bytes(b"no graph"), raising=True
    )
    with pytest.raises(DependencyError, match="does not run when it is opened again"):
        export_run(random_run, "onnx", tmp_path / "o" / "a.onnx")
    assert not list((tmp_path / "o").iterdir())


def test_without_images_it_is_compared_on_noise(random_run, tmp_path, image_folder):
    image_folder.rename(tmp_path / "moved")
    exported = export_run(random_run, "torch-export", tmp_path / "a.pt2")
    assert not exported.reopening.of_run and exported.reopening.same_answers == exported.reopening.images == 8


def test_half_precision_halves_the_file_and_answers_the_same(random_run, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    exported = export_run(random_run, "onnx", tmp_path / "half.onnx", precision="fp16")
    assert 0 < exported.reopening.largest_difference < 1e-3  # of rounded weights
    weights = onnx.load(tmp_path / "half.onnx").graph.initializer
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights)


def test_a_fixed_batch_takes_no_other(random_run, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_run(random_run, "onnx", tmp_path / "two.onnx", batch=2)
    session = ort.InferenceSession(tmp_path / "two.onnx")
    assert session.get_inputs()[0].shape == [2, 3, 16, 24]
    assert session.run(None, {"views": views(2).numpy()})[0].shape == (2, 2)


def test_an_image_of_any_size_is_resized_inside_the_graph(random_run, tmp_path, image_folder):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = export_run(random_run, "onnx", tmp_path / "raw.onnx", raw=True)
    assert exported.reopening.same_answers == exported.reopening.images == 6
    session = ort.InferenceSession(tmp_path / "raw.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    found = session.run(["probabilities"], {"image": pixels})[0][0]
    [expected] = load(random_run, device="cpu", backend="pytorch").predict(pixels)
    assert dict(zip(("cat", "dog"), found.tolist(), strict=True)) == pytest.approx(
        expected.probabilities, abs=0.01
    )
    # The sample runs as it is, and names the same class.
    image = image_folder / "cat" / "1.png"
    sample = [sys.executable, tmp_path / "raw_sample.py", image]
    said = subprocess.run(sample, capture_output=True, text=True, check=True).stdout.splitlines()
    [predicted] = load(random_run, device="cpu", backend="pytorch").predict(image)
    assert said[0] == f"{image}: {predicted.label} {predicted.probability:.3f}"


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.runs_here and name != "web"])
def test_the_sample_beside_each_export_says_what_predict_says(name, random_run, tmp_path, image_folder):
    """Formats whose packages are not installed are skipped; each is an extra."""
    form = FORMATS[name]
    for package in (*form.packages, *(("onnxscript", "openvino") if form.extra in ("onnx", "cpu") else ())):
        pytest.importorskip(package, reason=f'needs pip install "deitkit[{form.extra}]"')
    exported = export_run(random_run, name, tmp_path / f"a{form.suffix}")
    assert exported.reopening.same_answers == exported.reopening.images == 6
    images = sorted((image_folder / "dog").iterdir())[:3]
    said = subprocess.run(
        [sys.executable, tmp_path / "a_sample.py", *images], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    predictions = load(random_run, device="cpu", backend="pytorch").predict(images)
    assert said[::2] == [f"{p.source}: {p.label} {p.probability:.3f}" for p in predictions]


@pytest.mark.parametrize("raw", [False, True])
def test_a_sample_says_how_it_is_used_and_what_it_cannot_read(random_run, tmp_path, raw):
    export_run(random_run, "torch-export", tmp_path / "a.pt2", raw=raw)
    (tmp_path / "no.png").write_bytes(b"no image")

    def said(*arguments) -> str:
        sample = [sys.executable, tmp_path / "a_sample.py", *arguments]
        done = subprocess.run(sample, capture_output=True, text=True)
        assert done.returncode == 1 and not done.stdout
        return done.stderr

    assert said().startswith("Classifies images with a.pt2: python a_sample.py IMAGE...")
    for path in (tmp_path / "no.png", tmp_path / "missing.png"):
        assert said(path).startswith(f"{path} cannot be read as an image: ") and said(path).count("\n") == 1


def test_core_ml_is_described_as_it_should_be(random_run, tmp_path):
    coremltools = pytest.importorskip("coremltools", reason='needs pip install "deitkit[coreml]"')
    exported = export_run(random_run, "coreml", tmp_path / "a.mlpackage")
    assert exported.reopening is None  # its runtime is Apple's
    described = coremltools.utils.load_spec(str(tmp_path / "a.mlpackage")).description
    assert json.loads(described.metadata.userDefined["classes"]) == ["cat", "dog"]
    assert [o.name for o in described.output] == ["probabilities", "class_logits", "distill_logits"]
    assert "func classify" in (tmp_path / "a_sample.swift").read_text()


@pytest.mark.parametrize(("to", "name", "raw"), [("onnx", "a.onnx", True), ("torch-export", "a.pt2", False)])
def test_a_hybrid_is_exported_with_a_sample_that_says_what_predict_says(
    hybrid_run, tmp_path, image_folder, to, name, raw
):
    if to == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    exported = export_run(hybrid_run, to, tmp_path / name, raw=raw)
    assert exported.reopening.same_answers == exported.reopening.images == 6
    image = image_folder / "dog" / "2.png"
    sample = [sys.executable, tmp_path / "a_sample.py", image]
    said = subprocess.run(sample, capture_output=True, text=True, check=True).stdout.splitlines()
    [predicted] = load(hybrid_run, device="cpu", backend="pytorch").predict(image)
    assert said[0] == f"{image}: {predicted.label} {predicted.probability:.3f}"
