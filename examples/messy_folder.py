"""A folder with the faults that folders have, made of photographs of solar cells; and what was planted in it.

    python examples/messy_folder.py MESSY        # writes MESSY/photos, MESSY/new and MESSY/planted.csv

MESSY/photos holds 400 functional and 60 defective cells of ELPV (see elpv.py), and on top of these

    20 cells that were saved a second time: as they are, as JPEG, or smaller
    20 cells in the wrong folder
     9 photographs that show no cell: three that come with matplotlib and scikit-learn, and cuts of them
     1 file that was cut off

MESSY/new holds 40 cells and 6 foreign photographs that are in no other folder, to predict. Images of ELPV are
under CC BY-NC-SA 4.0. docs/tutorial-messy-folder.md shows what deitkit finds.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import tempfile
from pathlib import Path

from elpv import ORIGIN, write_folder
from PIL import Image

COUNTS = {"functional": 400, "defective": 60}
NEW = {"functional": 30, "defective": 10}
COPIES, WRONG = 20, 20
SEED = 0


def foreign_photographs() -> list[Image.Image]:
    """Photographs that come with matplotlib and scikit-learn: whole ones, then four cuts of each."""
    import matplotlib.cbook
    from sklearn.datasets import load_sample_images

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        whole = [Image.open(file).convert("RGB")]
    whole += [Image.fromarray(pixels) for pixels in load_sample_images().images]
    cuts = []
    for x in (0.0, 0.5):
        for y in (0.0, 0.5):
            for image in whole:
                w, h = image.size
                cuts.append(image.crop((int(x * w), int(y * h), int((x + 0.5) * w), int((y + 0.5) * h))))
    return whole + cuts


def save_again(path: Path, kind: str, to: Path) -> None:
    """A copy of the image, byte by byte, as JPEG, or at half its size."""
    if kind == "copy":
        shutil.copyfile(path, to)
    elif kind == "jpeg":
        Image.open(path).save(to, quality=70)
    else:
        image = Image.open(path)
        image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(to)


def write_messy(cells: Path, folder: Path) -> None:
    """Writes photos/, new/ and planted.csv. cells: a folder of ELPV, as `elpv.write_folder` writes it."""
    rng, planted = random.Random(SEED), []  # noqa: S311 - no secret
    photos, new = folder / "photos", folder / "new"
    new.mkdir(parents=True)
    for label, count in COUNTS.items():
        (photos / label).mkdir(parents=True)
        chosen = rng.sample(sorted((cells / label).glob("*.png")), count + NEW[label])
        for path in chosen[:count]:
            shutil.copyfile(path, photos / label / path.name)
        for path in chosen[count:]:
            shutil.copyfile(path, new / f"{label}-{path.name}")

    files = rng.sample(sorted(photos.glob("*/*.png")), COPIES + WRONG)
    for k, path in enumerate(files[:COPIES]):
        kind = ("copy", "jpeg", "small")[k % 3]
        to = path.with_name(f"again{k:02}.{'jpg' if kind == 'jpeg' else 'png'}")
        save_again(path, kind, to)
        planted.append((to, f"duplicate ({kind})", path.name))
    for path in files[COPIES:]:
        [other] = set(COUNTS) - {path.parent.name}
        to = photos / other / path.name
        path.rename(to)
        planted.append((to, "wrong label", path.parent.name))

    foreign = foreign_photographs()
    for k, image in enumerate(foreign):
        to = photos / "functional" / f"photo{k}.jpg" if k < 9 else new / f"photo{k}.jpg"
        image.save(to, quality=90)
        if k < 9:
            planted.append((to, "foreign", ""))
    broken = photos / "functional" / "broken.png"
    broken.write_bytes(next(iter(sorted(photos.glob("functional/cell*.png")))).read_bytes()[:2000])
    planted.append((broken, "broken", ""))

    with open(folder / "planted.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "fault", "of"))
        writer.writerows((path.relative_to(photos).as_posix(), *rest) for path, *rest in planted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists already; choose another folder")
    print(ORIGIN)
    with tempfile.TemporaryDirectory() as cells:
        write_messy(write_folder(Path(cells)), options.folder)
    print(f"written: {options.folder / 'photos'}, {options.folder / 'new'}, {options.folder / 'planted.csv'}")


if __name__ == "__main__":
    main()
