import pytest
import torch
import torch.nn.functional as F

from deitkit.evaluation.familiarity import fit_familiarity, leave_one_out
from deitkit.inference.unfamiliarity import unfamiliarity, unfamiliarity_of, unit


def clusters(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 16) of three classes in three directions, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return 3 * torch.eye(16)[labels] + 0.5 * torch.randn(n, 16, generator=generator), labels


def test_agrees_with_leaving_each_image_out():
    features, labels = clusters(30)
    features = unit(features)
    sums = torch.stack([features[labels == k].sum(0) for k in range(3)])
    found = leave_one_out(features, labels, sums)
    for i in range(30):
        others = torch.arange(30) != i
        means = torch.stack([features[others & (labels == k)].mean(0) for k in range(3)])
        expected = 1 - F.cosine_similarity(features[i][None], means).max()
        assert found[i] == pytest.approx(expected.item(), abs=1e-6)


def test_keeps_95_percent_of_images_like_them_and_no_others():
    found = fit_familiarity(*clusters(300))
    assert found is not None
    own = unfamiliarity(clusters(3000, seed=1)[0], found.class_means)
    assert 0.92 < (own <= found.up_to).double().mean() < 0.98
    others = unfamiliarity(
        torch.randn(500, 16, generator=torch.Generator().manual_seed(2)), found.class_means
    )
    assert (others > found.up_to).double().mean() > 0.95


def test_few_images_tell_nothing():
    assert fit_familiarity(*clusters(18)) is None
    assert fit_familiarity(*clusters(19)) is not None


def test_a_class_without_an_image_and_one_with_a_single_image():
    features, labels = clusters(40)
    labels = labels * 2  # classes 1 and 3 have none
    labels[-1] = 9
    found = fit_familiarity(features, labels)
    assert found is not None and found.class_means.shape == (4, 16)
    torch.testing.assert_close(found.class_means.norm(dim=1), torch.ones(4))
    assert 0 <= found.up_to <= 2


def test_the_score_ignores_length_and_survives_zeros():
    means = unit(torch.eye(3))
    x = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    torch.testing.assert_close(unfamiliarity(x, means), torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_the_score_is_found_among_a_graphs_outputs():
    logits, scores = torch.zeros(2, 3), torch.zeros(2)
    assert unfamiliarity_of((logits, logits)) is None
    assert unfamiliarity_of((logits, logits, scores)) is scores


def test_int8_leaves_the_score_in_float():
    pytest.importorskip("onnxruntime")
    from deitkit.inference.int8 import quantise
    from deitkit.inference.joint_classifier import JointClassifier
    from deitkit.inference.onnx_graph import to_onnx
    from deitkit.models import create_model

    means = unit(torch.randn(3, 256, generator=torch.Generator().manual_seed(0)))
    student = create_model("nano", num_classes=3, image_size=16, patch_size=8)
    graph = JointClassifier(student, [0.5] * 3, [0.5] * 3, temperature=2.0, class_means=means).eval()
    model = quantise(to_onnx(graph, (16, 16), graph.output_names), [torch.rand(4, 3, 16, 16)])
    shapes = {tuple(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1}
    assert (3, 256) in shapes
    assert "unfamiliarity" in [output.name for output in model.graph.output]
