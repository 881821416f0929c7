"""A run written for other runtimes says what PyTorch says, and says what it takes."""

from __future__ import annotations

import json

import pytest
import torch

from deitkit.classifier import load
from deitkit.cli import main
from deitkit.deploy.exporter import export_run
from deitkit.errors import DeitkitError, RunFolderError


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
    assert export_run(random_run, "onnx", out, merge=merge).files == [out]
    assert [p.name for p in out.parent.iterdir()] == ["student.onnx"]
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
    assert [f.suffix for f in export_run(random_run, "openvino", out, merge=merge).files] == [".bin", ".xml"]
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
    exported = export_run(random_run, to, tmp_path / name, int8=True)
    assert exported.images == 6  # a quarter of 24
    assert 0 <= exported.int8 <= 100 and 0 <= exported.fp32 <= 100
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
        (["--to", "onnx", "--out", "a.onnx", "--data", "."], "--data calibrates int8"),
    ],
)
def test_mistakes_end_in_one_sentence(random_run, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(random_run), *arguments])
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err


def test_a_missing_openvino_is_told_before_the_calibration(random_run, tmp_path, monkeypatch):
    monkeypatch.setattr("deitkit.inference.backends.installed", lambda backend: backend != "openvino")
    monkeypatch.setattr("deitkit.deploy.exporter.to_onnx", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(DeitkitError, match="openvino is not installed"):
        export_run(random_run, "openvino", tmp_path / "a.xml", int8=True)


def test_int8_without_images_says_what_to_do(random_run, tmp_path, image_folder):
    image_folder.rename(tmp_path / "moved")
    with pytest.raises(DeitkitError, match=r"no longer in .*--data"):
        export_run(random_run, "onnx", tmp_path / "a.onnx", int8=True)


def test_openvino_that_cannot_write_says_so(random_run, tmp_path, monkeypatch):
    """On a full disk OpenVINO only says "iostream error"."""
    openvino = pytest.importorskip("openvino")

    def full(*arguments, **options):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(RunFolderError, match=r"cannot be written to .* free some space there"):
        export_run(random_run, "openvino", tmp_path / "o" / "a.xml")
    assert not list((tmp_path / "o").iterdir())
