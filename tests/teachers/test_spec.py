"""What a teacher is called, and the sentence for every mistake in it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from deitkit.errors import DeitkitError
from deitkit.inference.backends import OnnxRuntimeBackend
from deitkit.preprocessing import InputSize
from deitkit.teachers import spec
from deitkit.teachers.sources import SOURCES
from deitkit.teachers.spec import MemberSpec, check_spec, open_member, parse, parse_member

from .models import onnx_file, timm_file


def test_one_and_several_with_weights():
    assert parse("timm:resnet18") == (MemberSpec("timm", "resnet18"),)
    assert parse("timm:a*2, hf:o/b,torchvision:c*0.5") == (
        MemberSpec("timm", "a", 2.0),
        MemberSpec("hf", "o/b"),
        MemberSpec("torchvision", "c", 0.5),
    )


def test_commas_in_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/lr=1,wd=2,x/run", "a,b/w.pth", "c,d/e.onnx"):
        (tmp_path / name).mkdir(parents=True)
    assert parse("run:a/lr=1,wd=2,x/run") == (MemberSpec("run", "a/lr=1,wd=2,x/run"),)
    assert parse("timm:resnet18@a,b/w.pth*2,onnx:c,d/e.onnx") == (
        MemberSpec("timm", "resnet18@a,b/w.pth", 2.0),
        MemberSpec("onnx", "c,d/e.onnx"),
    )
    with pytest.raises(DeitkitError, match="cannot read the teacher 'lite9'"):  # no path swallows it
        parse("timm:resnet18@a,b/w.pth,lite9*2")
    assert parse_member("run:x,lite0") == MemberSpec("run", "x,lite0")  # as a card has it
    fitted = tmp_path / "fitted"
    fitted.mkdir()
    (fitted / "teacher.json").write_text("{}")
    assert parse(f"run:a/b,{fitted}*3") == (MemberSpec("run", "a/b"), MemberSpec("fitted", str(fitted), 3.0))


def test_short_names_use_the_packages_weights_if_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(spec, "PACKAGED", {"lite0": ("tf_efficientnet_lite0", "no_such_package")})
    assert parse("auto") == parse("lite0") == (MemberSpec("timm", "tf_efficientnet_lite0.in1k"),)
    (tmp_path / "lite_for_test" / "models").mkdir(parents=True)
    (tmp_path / "lite_for_test" / "__init__.py").touch()
    weights = tmp_path / "lite_for_test" / "models" / "w.pth"
    weights.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(spec, "PACKAGED", {"lite1": ("tf_efficientnet_lite1", "lite_for_test")})
    assert parse("lite1*3") == (MemberSpec("timm", f"tf_efficientnet_lite1@{weights}", 3.0),)
    # What is written down holds where the package lies elsewhere; a file of the user's stays that file.
    assert parse_member("lite1").portable() == "lite1"
    own = parse_member(f"timm:tf_efficientnet_lite1@{tmp_path / 'own.pth'}")
    assert own.portable() == f"timm:tf_efficientnet_lite1@{tmp_path / 'own.pth'}"


def test_a_path_to_a_fitted_teacher_is_enough(tmp_path):
    (tmp_path / "teacher.json").write_text("{}")
    assert parse(str(tmp_path)) == parse(f"fitted:{tmp_path}") == (MemberSpec("fitted", str(tmp_path)),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oracle", "cannot read the teacher 'oracle'; give auto, lite0"),
        ("tim:resnet18", "cannot read the teacher 'tim:resnet18'.*did you mean 'timm'"),
        ("lite7", "did you mean 'lite"),
        ("timm:", "cannot read the teacher"),
        ("", "cannot read the teacher ''"),
        ("timm:resnet18,,timm:resnet34", "cannot read the teacher"),
        ("timm:resnet18*0", "weighs 0"),
        ("timm:resnet81", "timm has no model 'resnet81'; did you mean 'resnet"),
        ("timm:resnet18@gone.pth", "gone.pth do not exist"),
        ("torchvision:resnet81", "torchvision has no classifier 'resnet81'; did you mean 'resnet18'"),
        ("hf:nobody", "there is no folder nobody, and a name on the hub is OWNER/NAME"),
        ("onnx:gone.onnx", "there is no ONNX file gone.onnx"),
        ("run:gone", "gone holds no finished run"),
        ("python:tests.teachers.models", "names no function"),
        ("python:no_such_module_here:f", "no module 'no_such_module_here'"),
        ("python:tests.teachers.models:mean_color", "did you mean 'mean_colour'"),
        ("python:tests.teachers.models:no_function", "has no function 'no_function'"),
        ("fitted:gone", "gone holds no fitted teacher.*deitkit teacher fit"),
    ],
)
def test_every_mistake_has_a_sentence(text, words):
    with pytest.raises(DeitkitError, match=words):
        check_spec(text)


def test_an_empty_folder_is_no_teacher(tmp_path):
    with pytest.raises(DeitkitError, match="holds no fitted teacher"):
        check_spec(str(tmp_path))
    with pytest.raises(DeitkitError, match=r"no config\.json"):
        check_spec(f"hf:{tmp_path}")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeitkitError, match="pip install transformers"):
        check_spec("hf:owner/name")
    with pytest.raises(DeitkitError, match=r"pip install .deitkit\[onnx\]"):
        check_spec(f"onnx:{onnx_file(tmp_path / 'a.onnx')}")


def opened(text: str, configured: int | None = None):
    [member] = parse(text)
    return open_member(member, InputSize(configured, (32, 32)))


def test_damaged_and_foreign_weights_are_refused(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(DeitkitError, match=r"cut.pth cannot be read"):
        opened(f"timm:test_efficientnet@{tmp_path / 'cut.pth'}")
    other = timm_file(tmp_path, "test_vit").partition("@")[2]
    with pytest.raises(DeitkitError, match="does not hold weights of test_efficientnet"):
        opened(f"timm:test_efficientnet@{other}")
    with pytest.raises(DeitkitError, match="does not hold weights of resnet18"):
        opened(f"torchvision:resnet18@{other}")


def test_weights_of_a_hub_that_cannot_be_reached(monkeypatch):
    def unreachable(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(DeitkitError, match="weights of the teacher 'resnet18' could not be fetched"):
        opened("timm:resnet18")
    monkeypatch.setattr("torchvision.models.get_model", unreachable)
    with pytest.raises(DeitkitError, match="torchvision:resnet18@FILE"):
        opened("torchvision:resnet18")
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    with pytest.raises(DeitkitError, match=r"'owner/name' could not be opened by transformers"):
        opened("hf:owner/name")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": ("B", 32, 32, 3)}, "channels last; an ONNX teacher takes one input"),
        ({"shape": ("B", 3, 32)}, "an ONNX teacher takes one input of floats"),
        ({"shape": (1, 3, 32, 32)}, "exactly 1 images at a time"),
    ],
)
def test_an_onnx_file_with_a_wrong_input(tmp_path, changes, words):
    if len(changes["shape"]) == 3:
        import onnx
        from onnx import TensorProto, helper

        node = helper.make_node("Flatten", ["x"], ["y"])
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
        values[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, changes["shape"])
        values[1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 96])
        graph = helper.make_graph([node], "flat", values[:1], values[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
            tmp_path / "a.onnx",
        )
    else:
        onnx_file(tmp_path / "a.onnx", **changes)
    with pytest.raises(DeitkitError, match=words):
        opened(f"onnx:{tmp_path / 'a.onnx'}")


def test_an_onnx_file_of_one_size_or_damaged(tmp_path):
    path = onnx_file(tmp_path / "a.onnx")
    with pytest.raises(DeitkitError, match="takes 32 x 32 pixels only"):
        opened(f"onnx:{path}", 64)
    free = onnx_file(tmp_path / "free.onnx", shape=("Batch", 3, 32, 32))
    free.write_bytes(free.read_bytes().replace(b"Batch", b"\xc2atch"))  # a name that is no UTF-8
    with pytest.raises(DeitkitError, match="cannot be read"):
        opened(f"onnx:{free}")
    path.write_bytes(b"nothing")
    with pytest.raises(DeitkitError, match="cannot be read"):
        opened(f"onnx:{path}")


def test_an_onnx_file_that_fails_says_so_on_one_line(tmp_path, monkeypatch):
    def failing(self, views):
        raise RuntimeError("invalid dimensions:\n index: 3 Got: 224\n" + "and so on " * 100)

    monkeypatch.setattr(OnnxRuntimeBackend, "__call__", failing)
    with pytest.raises(DeitkitError, match=r"invalid dimensions: index: 3 Got: 224 and so on") as raised:
        opened(f"onnx:{onnx_file(tmp_path / 'a.onnx')}")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_callables_that_are_no_teachers():
    with pytest.raises(DeitkitError, match=r"returns \(2, 3, 32, 32\) for 2 views; return logits \(2, K\)"):
        opened("python:tests.teachers.models:wrong_shape")
    with pytest.raises(DeitkitError, match=r"fails on views \(2, 3, 32, 32\): ZeroDivisionError: on purpose"):
        opened("python:tests.teachers.models:failing")


def test_a_size_that_a_run_cannot_take(random_run):
    with pytest.raises(DeitkitError, match="takes 16x24 pixels only"):
        opened(f"run:{random_run}", 32)


def test_an_untrained_backbone_is_refused_and_an_untrained_head_left_out(tmp_path):
    text = timm_file(tmp_path)
    name, _, path = text.partition("@")
    from safetensors.torch import load_file

    state = load_file(path)
    headless = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    save_file(headless, tmp_path / "headless.safetensors")
    assert opened(text).head is not None
    assert opened(f"{name}@{tmp_path / 'headless.safetensors'}").head is None
    del headless["conv_stem.weight"]
    save_file(headless, tmp_path / "headless.safetensors")
    with pytest.raises(DeitkitError, match="does not hold weights"):
        opened(f"{name}@{tmp_path / 'headless.safetensors'}")


def test_a_head_of_any_size_is_used(tmp_path):
    model = opened(timm_file(tmp_path, num_classes=7))
    assert model.outputs is None and model.head is not None
    assert model.head(torch.zeros(1, model.head.in_features)).shape == (1, 7)


def test_naming_sources_loads_none_of_their_packages():
    heavy = "{'timm', 'torchvision', 'transformers', 'onnx', 'onnxruntime', 'openvino'}"
    code = f"import sys, deitkit.teachers.spec as s; s.syntaxes(); print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_source_says_what_it_is():
    for name, source in SOURCES.items():
        assert source.name == name and source.syntax.startswith(f"{name}:") and source.about
        assert source.syntax in spec.syntaxes()
    assert [name for name, source in SOURCES.items() if source.runs_code] == ["python"]
