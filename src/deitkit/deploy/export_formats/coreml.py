"""coreml: an .mlpackage for iOS and macOS. Its runtime is Apple's; here its description is checked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from ...errors import DependencyError
from ...inference.backends import Backend
from ...inference.exported_program import to_program
from ...inference.joint_classifier import ClassifierGraph
from ...models.blocks import in_four_dimensions
from ..export_format import ExportFormat, ExportJob, metadata, quiet, register

_SWIFT = """// Classifies a view with {name}: add the file to an Xcode project (iOS 16, macOS 13 or later).
import CoreML

/// `view`: {batch} x 3 x {height} x {width} floats in [0, 1], RGB: the image resized bicubically until it
/// covers {resize_height} x {resize_width} pixels, and its centre cut out.
func classify(_ view: MLMultiArray, modelAt url: URL) throws -> String {{
    let model = try MLModel(contentsOf: MLModel.compileModel(at: url))
    let input = try MLDictionaryFeatureProvider(dictionary: ["views": view])
    let output = try model.prediction(from: input)
    let probabilities = output.featureValue(for: "probabilities")!.multiArrayValue!
    let facts = model.modelDescription.metadata[.creatorDefinedKey] as! [String: String]
    let names = try JSONDecoder().decode([String].self, from: Data(facts["classes"]!.utf8))
    let best = names.indices.max {{ probabilities[$0].floatValue < probabilities[$1].floatValue }}!
    return "\\(names[best]) \\(probabilities[best])"
}}
"""


@register
class CoreML(ExportFormat):
    name = "coreml"
    about = "Core ML on iOS and macOS"
    suffix = ".mlpackage"
    is_folder = True
    extra = "coreml"
    packages = ("coremltools",)
    precisions = ("fp32", "fp16")
    runs_here = False

    def write(self, job: ExportJob, file: Path) -> None:
        with quiet():  # it says what it was not tested with, and lacks outside of macOS
            import coremltools

        graph, size = self.graph(job), job.classifier.image_size
        program = to_program(in_four_dimensions(graph), size, job.batch).run_decompositions({})
        precision = coremltools.precision
        with quiet():
            model = coremltools.convert(
                _without_aliases(program),
                outputs=[coremltools.TensorType(name=name) for name in graph.output_names],
                minimum_deployment_target=coremltools.target.iOS16,
                compute_precision=precision.FLOAT16 if job.precision == "fp16" else precision.FLOAT32,
                skip_model_load=True,
            )
        model.user_defined_metadata.update(metadata(job.classifier))
        model.short_description = "Image classifier of deitkit"
        model.save(str(file))
        _check_description(file, graph, size)

    def open(self, file: Path) -> Backend:
        raise DependencyError("Core ML runs on macOS and iOS only; open the file there")

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        (height, width), resize = job.classifier.image_size, job.resize
        text = _SWIFT.format(
            name=name,
            batch=job.batch,
            height=height,
            width=width,
            resize_height=resize[0],
            resize_width=resize[1],
        )
        return {f"{Path(name).stem}_sample.swift": text}


def _without_aliases(program: ExportedProgram) -> ExportedProgram:
    """The program without `alias`, which coremltools does not know: each is its own input."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    return program


def _check_description(file: Path, graph: ClassifierGraph, size: tuple[int, int]) -> None:
    """Reads the file again. Raises DependencyError unless it describes the graph's input and outputs."""
    import coremltools

    described = coremltools.utils.load_spec(str(file)).description
    [views] = described.input
    shape = tuple(views.type.multiArrayType.shape)
    names = tuple(output.name for output in described.output)
    if views.name != "views" or shape[1:] != (3, *size) or names != graph.output_names:
        raise DependencyError(f"{file.name} was not written: it describes {views.name} {shape} -> {names}")
