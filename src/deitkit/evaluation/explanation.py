"""What a prediction rests on: maps over the image, by attention, its gradients, or grad-CAM.

    attention           of the last block, mean over heads
    rollout             attention through all blocks (arXiv 2005.00928); the same for every class
    gradient-rollout    attention weighted by the gradients of a class (arXiv 2103.15679)
    grad-cam            of a convolutional network's last feature map (arXiv 1610.02391), by captum

The first three are a student's, the last is a fitted teacher's. `benchmarks/explain.py` judges them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..classifier import Classifier, StudentClassifier, TeacherClassifier
from ..errors import DependencyError, SettingError, WeightsError, did_you_mean
from ..models import joint_logits
from .attention import attended, gradient_rollout, patch_maps, rollout

GRAD_CAM = "grad-cam"
_BATCH = 16  # images whose attention is in memory at once

# Attention of each block and the explained logit's gradients by it, (B, h, T, T) each, to weights (B, T, T)
# of input tokens (columns) for output tokens (rows).
METHODS: Mapping[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "gradient-rollout": gradient_rollout,
    "rollout": lambda attentions, gradients: rollout(attentions),
    "attention": lambda attentions, gradients: attentions[-1].mean(1),
}


@dataclass(frozen=True)
class Explanation:
    """Where the evidence for one class is in one image.

    source: the image's name. label, probability: the explained class. predicted: the most likely one.
    maps: by method, (P, gh, gw) of weights, not negative, over a grid that covers the view: for each token of
    `tokens`; one without a name for a teacher. attention: (blocks, heads, P, gh, gw) from each token to the
    patches; None for a teacher.
    """

    source: str
    label: str
    probability: float
    predicted: str
    tokens: tuple[str, ...]
    maps: dict[str, NDArray[np.float32]]
    attention: NDArray[np.float32] | None = field(default=None, repr=False)

    def map(self, method: str | None = None) -> NDArray[np.float32]:
        """The mean over tokens, (gh, gw), by `method`; by default the first of `maps`."""
        mean: NDArray[np.float32] = self.maps[next(iter(self.maps)) if method is None else method].mean(0)
        return mean


def methods_of(classifier: Classifier) -> tuple[str, ...]:
    """The methods that explain this classifier, the best first.

    Raises DependencyError for a teacher if captum is not installed, WeightsError for one that is no
    convolutional network in PyTorch.
    """
    if isinstance(classifier, TeacherClassifier):
        _grad_cam_layers(classifier)
        return (GRAD_CAM,)
    return tuple(METHODS)


def explain_views(
    classifier: Classifier,
    names: Sequence[str],
    views: Sequence[NDArray[np.uint8]],
    labels: Sequence[str | None],
) -> list[Explanation]:
    """Explains a class for each view (3, H, W): that of `labels`, or the predicted one for None.

    names: `Explanation.source` of each. Raises SettingError for a class that the model does not know, and as
    `methods_of`.
    """
    known = classifier.classes
    for label in labels:
        if label is not None and label not in known:
            raise SettingError(f"the model knows no class {label!r}{did_you_mean(label, known)}")
    found: list[Explanation] = []
    for first in range(0, len(views), _BATCH):
        chosen = slice(first, first + _BATCH)
        pixels = torch.from_numpy(np.stack(views[chosen]))
        probabilities = classifier.backend(pixels.to(classifier.device).float() / 255.0)[0].cpu()
        predicted = probabilities.argmax(1)
        wanted = [None if label is None else known.index(label) for label in labels[chosen]]
        targets = torch.tensor([p if w is None else w for p, w in zip(predicted, wanted, strict=True)])
        maps, attention = maps_of(classifier, pixels, targets)
        for i, name in enumerate(names[chosen]):
            found.append(
                Explanation(
                    source=name,
                    label=known[int(targets[i])],
                    probability=float(probabilities[i, targets[i]]),
                    predicted=known[int(predicted[i])],
                    tokens=tokens_of(classifier),
                    maps={method: of_batch[i].numpy() for method, of_batch in maps.items()},
                    attention=None if attention is None else attention[i].numpy(),
                )
            )
    return found


def tokens_of(classifier: Classifier) -> tuple[str, ...]:
    """The tokens that a map is for; one without a name for a teacher."""
    if not isinstance(classifier, StudentClassifier):
        return ("",)
    return ("class token", "distillation token")[: classifier.model.num_prefix_tokens]


def maps_of(
    classifier: Classifier, pixels: Tensor, targets: Tensor
) -> tuple[dict[str, Tensor], Tensor | None]:
    """By method, maps (B, P, gh, gw) of the classes `targets` (B,) in views (B, 3, H, W), uint8.

    And a student's attention (B, blocks, heads, P, gh, gw). All are on the CPU. Raises as `methods_of`.
    """
    if isinstance(classifier, TeacherClassifier):
        return {GRAD_CAM: _grad_cam(classifier, pixels, targets)}, None
    assert isinstance(classifier, StudentClassifier)
    model = classifier.model
    images = classifier.normalise(pixels).requires_grad_()  # for a model whose weights are frozen
    with torch.enable_grad():
        output, attentions = attended(model, images)
        score = joint_logits(output).gather(1, targets.to(images.device)[:, None]).sum()
        gradients = torch.autograd.grad(score, attentions)
    weights = [attention.detach() for attention in attentions]
    maps = {
        name: patch_maps(method(weights, gradients), model.grid_size).cpu()
        for name, method in METHODS.items()
    }
    P = model.num_prefix_tokens
    heads = torch.stack([a[:, :, :P, P:].unflatten(-1, model.grid_size) for a in weights], 1)
    return maps, heads.cpu()


def _grad_cam(classifier: TeacherClassifier, pixels: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM of each member of a teacher, (B, 1, H, W), at their weights and each up to 1."""
    from captum.attr import LayerGradCam

    views = (pixels.to(classifier.device).float() / 255.0).requires_grad_()
    targets = targets.to(classifier.device)
    total = torch.zeros(len(pixels), 1, *pixels.shape[-2:])
    for (member, layer), of in zip(
        _grad_cam_layers(classifier), classifier.teacher.card.members, strict=True
    ):
        cam = LayerGradCam(lambda x, member=member: member(x)[0], layer)
        try:
            with torch.enable_grad():
                found = cam.attribute(views, target=targets, relu_attributions=True).detach().cpu()
        except (RuntimeError, AssertionError) as error:  # a layer without gradients, or of another shape
            raise WeightsError(
                f"grad-CAM fails on the teacher {of.name} ({str(error).splitlines()[0]}); choose the student"
            ) from None
        found = found / found.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
        grown = F.interpolate(found, tuple(pixels.shape[-2:]), mode="bilinear", align_corners=False)
        total += of.weight * grown
    return total


def _grad_cam_layers(classifier: TeacherClassifier) -> list[tuple[nn.Module, nn.Module]]:
    """Each member as a network, and the layer that gives its last feature map."""
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        raise DependencyError(
            "captum is not installed, and grad-CAM needs it; install it with: "
            'pip install "deitkit[explain]"; or add --model student'
        ) from None
    found = []
    for member, of in zip(classifier.as_graph().members, classifier.teacher.members, strict=True):
        layer = _last_map(member, classifier.image_size)
        if layer is None:
            raise WeightsError(
                f"the teacher {of.card.name} is no convolutional network, and grad-CAM needs one; "
                "choose the student"
            )
        found.append((member, layer))
    return found


def _last_map(network: nn.Module, view_size: tuple[int, int]) -> nn.Module | None:
    """The last layer whose output is a feature map (B, C, h, w) of more than one place.

    None for a network without convolutions in its second half, such as a ViT.
    """
    ran: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        shape = output.shape if isinstance(output, Tensor) else ()
        ran.append((module, len(shape) == 4 and shape[-2] * shape[-1] > 1))

    leaves = [module for module in network.modules() if next(module.children(), None) is None]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with torch.no_grad():
            device = next((p.device for p in network.parameters()), torch.device("cpu"))
            network(torch.zeros(1, 3, *view_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    second_half = ran[len(ran) // 2 :]
    if not any(isinstance(module, nn.Conv2d) for module, _ in second_half):
        return None
    return next((module for module, is_map in reversed(second_half) if is_map), None)
