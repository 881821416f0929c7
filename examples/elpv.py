"""The demo: a distilled student for ELPV, photographs of solar cells, beside its teacher and baseline.

ELPV (Deitsch et al., Solar Energy 2019; Buerhop-Lutz et al., 2018) comes as the package `elpv-dataset`
under CC BY-NC-SA 4.0. A cell counts as defective where its defect probability is at least 0.5.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

ORIGIN = (
    "ELPV: 2,624 electroluminescence photographs of solar cells, 300 x 300, CC BY-NC-SA 4.0, "
    "https://github.com/zae-bayern/elpv-dataset"
)


def write_folder(folder: Path) -> Path:
    """Writes ELPV as folder/{functional,defective}/*.png, once."""
    from elpv_dataset.utils import load_dataset

    if not (folder / "complete").exists():
        images, probabilities, _ = load_dataset()
        for i, (pixels, probability) in enumerate(zip(images, probabilities, strict=True)):
            label = "defective" if probability >= 0.5 else "functional"
            (folder / "images" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "images" / label / f"cell{i + 1:04d}.png")
        (folder / "complete").write_text(ORIGIN + "\n")
    return folder / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/elpv-data"), help="where to put the images")
    parser.add_argument("--out", type=Path, default=Path("runs/elpv"), help="where to put the run")
    parser.add_argument("--budget", default="7m", help="time for the whole job")
    parser.add_argument("--only-data", action="store_true", help="write the images and stop")
    options = parser.parse_args()
    print(ORIGIN)
    data = write_folder(options.data)
    if options.only_data:
        return
    # After the line above: a stranger reads the data's terms before torch has loaded.
    from deitkit.cli import main as deitkit

    arguments = ["train", str(data), "--out", str(options.out), "--budget", options.budget, "--baseline"]
    arguments += ["--recipe", "small-data"]  # a plain DeiT, as in the paper
    deitkit(arguments + (["--resume"] if (options.out / "settings.json").exists() else []))


if __name__ == "__main__":
    main()
