"""The students: DeiT, and the base class of every model that deitkit trains.

`base` has the interface and the output, `deit` the model and its variants, `blocks` its layers,
`token_merging` a faster evaluation of a trained model.
"""

from .base import (
    BatchRows,
    DeiTOutput,
    Student,
    joint_logits,
    joint_probabilities,
    probabilities_of,
    tempered,
)
from .deit import VARIANTS, DeiT, Variant, create_model

__all__ = [
    "VARIANTS",
    "BatchRows",
    "DeiT",
    "DeiTOutput",
    "Student",
    "Variant",
    "create_model",
    "joint_logits",
    "joint_probabilities",
    "probabilities_of",
    "tempered",
]
