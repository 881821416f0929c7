"""ncnn: a .param file with its .bin beside it, for Android, iOS and small boards in C++."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DependencyError
from ...inference.backends import Backend
from ...models.blocks import in_four_dimensions
from ..export_format import ExportFormat, ExportJob, quiet, register, write_facts
from ..sample_code import python_sample

_CPP = """// Classifies an image with {param}: ./sample IMAGE
// g++ {file} -o sample -lncnn -fopenmp    (ncnn built with -DNCNN_SIMPLEOCV=ON)
#include <algorithm>
#include <cstdio>
#include <ncnn/net.h>
#include <ncnn/simpleocv.h>

int main(int argc, char** argv)
{{
    ncnn::Net net;
    if (argc < 2) return std::fprintf(stderr, "usage: %s IMAGE\\n", argv[0]), 1;
    if (net.load_param("{param}") || net.load_model("{bin}")) return 1; // ncnn says why
    cv::Mat image = cv::imread(argv[1], 1);
    if (image.empty()) return std::fprintf(stderr, "%s cannot be read as an image\\n", argv[1]), 1;
    // Covers {across} x {down} pixels, then the centre. Shrink photos before: this does not smooth as Pillow.
    double scale = std::max({across}.0 / image.cols, {down}.0 / image.rows);
    int width = std::max({across}, int(image.cols * scale));
    int height = std::max({down}, int(image.rows * scale));
    ncnn::Mat resized, view, whole = ncnn::Mat::from_pixels(
        image.data, ncnn::Mat::PIXEL_BGR2RGB, image.cols, image.rows);
    ncnn::resize_bicubic(whole, resized, width, height);
    int left = (width - {width}) / 2, top = (height - {height}) / 2;
    ncnn::copy_cut_border(resized, view, top, height - top - {height}, left, width - left - {width});
    const float divisor[3] = {{1 / 255.f, 1 / 255.f, 1 / 255.f}};
    view.substract_mean_normalize(0, divisor);
    ncnn::Extractor run = net.create_extractor();
    run.input("in0", view);
    ncnn::Mat probabilities;
    run.extract("out0", probabilities);
    const char* classes[] = {{{classes}}};
    for (int k = 0; k < probabilities.w; k++) std::printf("%s %.3f\\n", classes[k], probabilities[k]);
}}
"""
_IN_FLOAT = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")


class NcnnBackend:
    """An ncnn network on the CPU, image by image, computing in float."""

    name = "ncnn"

    def __init__(self, file: Path):
        import ncnn

        self.new_mat, self.net = ncnn.Mat, ncnn.Net()
        self.net.opt.num_threads = torch.get_num_threads()
        for option in _IN_FLOAT:
            setattr(self.net.opt, option, False)
        if self.net.load_param(str(file)) or self.net.load_model(str(file.with_suffix(".bin"))):
            raise DependencyError(f"ncnn cannot read {file.name}")
        self.outputs = sorted(self.net.output_names())

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        rows = [self._one(view.numpy()) for view in views.contiguous()]
        outputs = [torch.from_numpy(np.stack(values)) for values in zip(*rows, strict=True)]
        return tuple(out[:, 0] if out.shape[1] == 1 else out for out in outputs)  # a number is a row of one

    def _one(self, view: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        extractor = self.net.create_extractor()
        extractor.input("in0", self.new_mat(view).clone())
        return [np.array(extractor.extract(name)[1]) for name in self.outputs]


@register
class Ncnn(ExportFormat):
    name = "ncnn"
    about = "ncnn on phones and small boards, in C++"
    suffix = ".param"
    extra = "ncnn"
    packages = ("pnnx", "ncnn")
    precisions = ("fp32", "fp16")
    batches = "one"

    def write(self, job: ExportJob, file: Path) -> None:
        import pnnx

        graph, (H, W) = in_four_dimensions(self.graph(job)).cpu().eval(), job.classifier.image_size
        with tempfile.TemporaryDirectory() as folder:
            with quiet(), torch.no_grad():
                torch.jit.trace(graph, torch.zeros(1, 3, H, W)).save(f"{folder}/graph.pt")
            # The program itself: the package's function would also import Python code that it writes.
            command = [pnnx.EXEC_PATH, "graph.pt", f"inputshape=[1,3,{H},{W}]f32"]
            half = int(job.precision == "fp16")
            done = subprocess.run([*command, f"fp16={half}"], cwd=folder, capture_output=True)
            written = [Path(folder) / f"graph.ncnn{suffix}" for suffix in (".param", ".bin")]
            if done.returncode or not all(part.is_file() for part in written):
                raise DependencyError("this model cannot be converted for ncnn; choose another --to")
            for part in written:
                file.with_suffix(part.suffix).write_bytes(part.read_bytes())
        write_facts(job, graph, file)

    def open(self, file: Path) -> Backend:
        return NcnnBackend(file)

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        stem, (height, width), (down, across) = Path(name).stem, job.classifier.image_size, job.resize
        cpp = _CPP.format(
            param=name,
            bin=f"{stem}.bin",
            file=f"{stem}_sample.cpp",
            height=height,
            width=width,
            down=down,
            across=across,
            classes=", ".join(json.dumps(c, ensure_ascii=False) for c in job.classifier.classes),
        )
        python = python_sample(
            name,
            job,
            packages="ncnn",
            imports="import ncnn",
            opening=f"""
net = ncnn.Net()
net.load_param(str(here / "{name}"))
net.load_model(str(here / "{stem}.bin"))
about = json.loads((here / "{name}.json").read_text(encoding="utf-8"))


def run(view):
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(view[0]).clone())
    return np.array(extractor.extract("out0")[1])
""",
            running="run(given)",
        )
        return python | {f"{stem}_sample.cpp": cpp}
