"""A student as a graph that also says where its tokens look."""

from __future__ import annotations

from torch import Tensor

from ..models.blocks import Block
from ..models.deit import DeiT
from .joint_classifier import ClassifierGraph, JointClassifier


class AttentionGraph(ClassifierGraph):
    """A `JointClassifier` with one more output, `attention` (B, P, gh, gw).

    The attention of each of the P prefix tokens, the class token first, to the grid of gh x gw patches: in
    the last block, mean over heads. joint: of a DeiT that merges no tokens.
    """

    def __init__(self, joint: JointClassifier):
        super().__init__()
        self.joint = joint
        self.output_names = (*joint.output_names, "attention")

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        model = self.joint.network
        assert isinstance(model, DeiT)
        *body, last = model.blocks
        assert isinstance(last, Block)
        x = model.embed(self.joint.normalise(views))
        for block in body:
            x = block(x)
        P = model.num_prefix_tokens
        attention = last.attn.probabilities(last.norm1(x), P).mean(1)  # (B, P, P + N)
        maps = attention[:, :, P:].reshape(-1, P, *model.grid_size)
        return (*self.joint.outputs(model.classify(last(x, P))), maps)


def with_attention(graph: ClassifierGraph) -> ClassifierGraph:
    """The graph with the output `attention`, if it is a student's whose patch tokens stay apart."""
    if isinstance(graph, JointClassifier) and isinstance(graph.network, DeiT):
        return AttentionGraph(graph)
    return graph
