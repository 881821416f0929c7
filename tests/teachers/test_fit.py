"""From a spec to a teacher of the data's classes, saved, read back, and the same in training as alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from deitkit.config import TeacherConfig
from deitkit.errors import DeitkitError
from deitkit.teachers.finetune import last_half
from deitkit.teachers.fit import FitData, fit_teacher, pretrained_head_teacher
from deitkit.teachers.saved import read_teacher, save_teacher
from deitkit.teachers.teacher import mean_of_probabilities

from .models import onnx_file, timm_file

CPU = torch.device("cpu")
COLOURS = ("blue", "red", "green")  # in another order than the callable's own
CALL = "python:tests.teachers.models:mean_colour"


def views(seed: int = 0, count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with one channel lighter, and which of COLOURS that is."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.6 * torch.rand(count, 3, 24, 24, generator=g)
    for image, label in zip(images, labels, strict=True):
        image[(2, 0, 1)[label]] += 0.4
    return images, labels


def fit_data(classes=COLOURS) -> FitData:
    images, labels = views()
    targets = torch.nn.functional.one_hot(labels, 3).float()
    return FitData(
        lambda v: iter(views(v)[0].split(16)),
        labels,
        classes,
        lambda epoch: iter(zip(images.split(10), targets.split(10), strict=True)),
        0,
    )


def config(spec: str, **more) -> TeacherConfig:
    return TeacherConfig(spec=spec, **{"backend": "pytorch", "probe_views": 2, "image_size": 32} | more)


def fit(spec: str, names=COLOURS, **more):
    return fit_teacher(config(spec, **more), fit_data(names), student_size=(24, 24), device=CPU)


def top1(teacher) -> float:
    images, labels = views(9)
    return 100 * (teacher(images).logits.argmax(1) == labels).float().mean().item()


def test_the_pretrained_head_in_the_order_of_the_data():
    teacher = fit(CALL, fit="head")
    assert top1(teacher) == 100 and teacher.card.how == "its pretrained head"
    assert teacher.card.members[0].columns == (2, 0, 1)


def test_a_subset_of_the_pretrained_head(tmp_path):
    text = timm_file(tmp_path)
    ids = ("n01440764", "n02102040", "n02979186")
    teacher = fit(text, ids, fit="head")
    assert teacher.card.how == "its pretrained head, 3 of its 1000 outputs"
    whole = pretrained_head_teacher(config(text), None, student_size=(24, 24), device=CPU)
    images = views()[0]
    torch.testing.assert_close(teacher(images).logits, whole(images).logits[:, [0, 217, 482]])


def test_auto_chooses_the_better_head(tmp_path):
    """A random head with the right names loses against a probe; a right one is not beaten."""
    ids = ("n01440764", "n02102040", "n02979186")
    probed = fit(timm_file(tmp_path), ids)
    assert "linear probe over 2 views" in probed.card.how and "its pretrained head" in probed.card.how
    assert top1(probed) > 80
    pretrained = fit(CALL)
    assert pretrained.card.how.startswith("its pretrained head: 100.0 % on a held-out fifth, a linear probe")


def test_many_images_are_not_probed_where_the_head_knows_them(monkeypatch):
    monkeypatch.setattr("deitkit.teachers.fit._MOST_TO_COMPARE", 10)
    monkeypatch.setattr("deitkit.teachers.fit.fit_probe", lambda *_: pytest.fail("probed"))
    assert fit(CALL).card.how == "its pretrained head"


def test_a_map_from_a_file(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"blue": 2, "red": 0, "green": 1}))
    text = "python:tests.teachers.models:unnamed"  # six outputs without names
    assert top1(fit(text)) == 100  # a probe on them
    teacher = fit(text, classes=str(tmp_path / "map.json"))
    assert teacher.card.members[0].columns == (2, 0, 1) and top1(teacher) == 100


def test_a_head_that_does_not_know_the_classes_is_refused_where_asked_for(tmp_path):
    with pytest.raises(DeitkitError, match="pretrained head of the teacher test_efficientnet does not know"):
        fit(timm_file(tmp_path), fit="head")
    with pytest.raises(DeitkitError, match="does not know the classes blue, red, green"):
        pretrained_head_teacher(config(timm_file(tmp_path)), COLOURS, student_size=None, device=CPU)
    with pytest.raises(DeitkitError, match="give one of the two"):
        fit(CALL, fit="probe", classes="imagenet")


def test_a_callable_cannot_be_fine_tuned():
    with pytest.raises(DeitkitError, match=r"cannot be fine-tuned; use teacher\.fit probe"):
        fit(CALL, fit="finetune")


def test_a_probe_answers_as_the_backbone_alone(tmp_path):
    """The same logits as timm's model on views resized and normalised by hand, and the saved head."""
    text = timm_file(tmp_path)
    teacher = fit(text, fit="probe")
    save_teacher(tmp_path / "t", teacher)
    reference = timm.create_model("test_efficientnet").eval()
    reference.load_state_dict(load_file(text.partition("@")[2]))
    images = views(5)[0]
    resized = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(reference.default_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    head = load_file(tmp_path / "t" / "teacher.safetensors")
    with torch.no_grad():
        pooled = reference.forward_head(reference.forward_features((resized - mean) / std), pre_logits=True)
        expected = pooled @ head["0.head.weight"].T + head["0.head.bias"]
    torch.testing.assert_close(teacher(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_settings_change_mean_and_deviation(tmp_path):
    changed = fit(timm_file(tmp_path), fit="probe", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    view = changed.card.members[0].preprocessing
    assert (view.mean, view.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("how", ["probe", "finetune", "finetune-last"])
def test_a_saved_teacher_is_read_back_exactly(tmp_path, how):
    teacher = fit(timm_file(tmp_path), fit=how)
    save_teacher(tmp_path / "t", teacher)
    again = read_teacher(tmp_path / "t", device=CPU)
    assert again.card == teacher.card
    images = views(5)[0]
    a, b = teacher(images), again(images)
    assert torch.equal(a.logits, b.logits) and all(map(torch.equal, a.feature_maps, b.feature_maps))
    assert teacher.card.members[0].finetuned == (how != "probe")
    if how == "finetune":
        assert top1(teacher) > 80


def test_only_the_last_half_is_fine_tuned(tmp_path):
    spec = timm_file(tmp_path)
    published = load_file(spec.split("@")[1])
    save_teacher(tmp_path / "t", fit(spec, fit="finetune-last"))
    trained = load_file(tmp_path / "t" / "teacher.safetensors")
    ours = {k.removeprefix("0.body.model."): v for k, v in trained.items()}
    moved = [not torch.equal(v, ours[k]) for k, v in published.items() if k in ours]
    assert any(moved) and not all(moved)


def test_the_last_half_holds_half_of_the_weights_and_ends_at_the_output():
    backbone = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(5)))
    assert [id(p) for p in last_half(backbone)] == [id(layer.weight) for layer in backbone[3:]]
    everything = [*backbone[:2].parameters()]
    assert len(last_half(backbone[:2])) == 1 and last_half(backbone[:2])[0] is everything[1]
    assert last_half(torch.nn.Identity()) == []


def test_a_fitted_teacher_serves_a_part_of_its_classes_in_any_order(tmp_path):
    save_teacher(tmp_path / "t", fit(timm_file(tmp_path), fit="probe"))
    loaded = read_teacher(tmp_path / "t", device=CPU)
    images = views(5)[0]
    part = loaded.for_classes(("green", "blue"))
    torch.testing.assert_close(part(images).logits, loaded(images).logits[:, [2, 0]])
    with pytest.raises(DeitkitError, match="does not know the class 'black'; it knows blue, red, green"):
        loaded.for_classes(("black", "blue"))
    taken = fit(str(tmp_path / "t"), ("green", "red", "blue"))
    torch.testing.assert_close(taken(images).logits, loaded(images).logits[:, [2, 1, 0]])


def test_a_teacher_of_several_labels_names_no_class(tmp_path):
    several = replace(fit_data(), labels=torch.nn.functional.one_hot(fit_data().labels, 3).float())
    fitted = fit_teacher(config(CALL, fit="probe"), several, student_size=(24, 24), device=CPU)
    save_teacher(tmp_path / "t", fitted)
    for classes in (None, COLOURS):
        with pytest.raises(DeitkitError, match="fitted to several labels per image, and one class"):
            pretrained_head_teacher(
                config(str(tmp_path / "t"), code=CALL), classes, student_size=None, device=CPU
            )


def test_a_damaged_teacher_is_refused(tmp_path):
    save_teacher(tmp_path / "t", fit(CALL, fit="head"))
    (tmp_path / "t" / "teacher.json").write_text('{"members": [{}]}')
    with pytest.raises(
        DeitkitError, match=r"teacher in .* cannot be read: teacher\.json: classes is missing; fit it again"
    ):
        read_teacher(tmp_path / "t", device=CPU)


def test_an_ensembles_probabilities_are_the_weighted_mean(tmp_path):
    first, second = timm_file(tmp_path), timm_file(tmp_path, "test_vit", seed=1)
    alone = [fit(text, fit="probe") for text in (first, second)]
    together = fit(f"{first}*3,{second}", fit="probe")
    images = views(5)[0]
    a, b = (teacher(images).logits.softmax(1) for teacher in alone)
    answer = together(images)
    torch.testing.assert_close(answer.logits.softmax(1), 0.75 * a + 0.25 * b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.logits.exp().sum(1), torch.ones(len(images)))
    assert together.card.name == "0.75 test_efficientnet + 0.25 test_vit"
    assert together.card.map_channels == alone[0].card.map_channels
    save_teacher(tmp_path / "t", together)
    again = fit(f"{tmp_path / 't'}*2,{CALL}")  # a fitted ensemble is one member, with its own shares
    assert [m.weight for m in again.card.members] == [1.5, 0.5, 1.0]


def test_an_ensemble_mixes_sources(tmp_path):
    path = onnx_file(tmp_path / "a.onnx", shape=("B", 3, 32, 32))
    teacher = fit(f"onnx:{path},{CALL}")
    assert top1(teacher) == 100 and teacher.card.map_channels == ()
    assert teacher.backend == "onnxruntime + python"


def test_a_single_member_keeps_its_logits():
    logits = torch.randn(4, 3)
    assert mean_of_probabilities([logits], [2.0]) is logits


def test_the_saved_backend_is_taken_again(tmp_path):
    """A resumed run must not measure again and get another one."""
    pytest.importorskip("openvino")
    teacher = fit(timm_file(tmp_path), fit="probe", backend="openvino")
    save_teacher(tmp_path / "t", teacher)
    again = read_teacher(tmp_path / "t", device=CPU)
    assert again.backend == "openvino"
    forced = read_teacher(tmp_path / "t", device=CPU, backend="pytorch")
    assert forced.backend == "pytorch"
    images = views(5)[0]
    torch.testing.assert_close(again(images).logits, forced(images).logits, rtol=1e-3, atol=1e-3)
