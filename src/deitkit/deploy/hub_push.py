"""`deitkit push`: a run's student in a repository of the Hugging Face hub, and its web page as a Space.

    model.safetensors, config.json   for timm and deitkit; transformers opens them as a timm model
    calibration.json, class_means.safetensors   for deitkit
    model.onnx, model_sample.py      of a hybrid, which timm and transformers cannot open: for ONNX Runtime
    README.md                        the model card

Nothing is uploaded unless the user asks for it and has logged in.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .. import log
from ..classifier import ModelChoice, StudentClassifier, load_folder, load_student, model_folder
from ..errors import DependencyError, SettingError, WeightsError
from ..io import create_folder, read_json, refuse_occupied, write_json, write_text
from ..models import DeiT, joint_logits
from ..run_folder import CALIBRATION, CLASS_MEANS, CONFIG, read_student
from ..weights import export
from ..weights.conversion import temperature_of_logits
from ..weights.hub import hub_access
from .exporter import export_run
from .hub_card import CardFacts, card_markdown
from .model_card import ModelCard, read_card

README, GRAPH = "README.md", "model.onnx"
_AGREES = 1e-4  # of logits


@dataclass(frozen=True)
class Pushed:
    """What was, or would be, uploaded: the files of the model's repository and of the Space, and where to."""

    files: list[Path]
    space_files: list[Path]
    url: str | None = None
    space_url: str | None = None


def read_hub_card(
    run: str | Path, facts: CardFacts, repo: str = "", model: ModelChoice = "recommended"
) -> str:
    """The model card of a model of `run`, as README.md of the repository `repo`."""
    folder = model_folder(Path(run), model)
    classifier = load_folder(folder, "cpu", backend="pytorch")
    card = read_card(folder, classifier)
    return card_markdown(card, classifier.classes, facts, repo or f"OWNER/{card.name}")


def push_run(
    run: str | Path,
    repo: str,
    facts: CardFacts,
    *,
    model: ModelChoice = "recommended",
    out: str | Path | None = None,
    dry_run: bool = False,
    space: bool = False,
    private: bool = False,
    runtime: str | None = None,
) -> Pushed:
    """Writes a student of `run` as a repository of the hub, and uploads it to `repo`, OWNER/NAME.

    out: a new folder that keeps the files, in model/ and space/. dry_run: uploads nothing. space: also the
    web page, as a static Space of the same name; runtime: see `web_runtime.web_runtime`. private: if the
    repository is new. Raises a DeitkitError for anything the caller can fix.
    """
    _check(repo, facts)
    if out is not None:
        refuse_occupied(Path(out))
    if not dry_run:
        _refuse_without_login()
    with _folder(out) as folder:
        with log.activity("writing the files"):
            files = write_model(run, folder / "model", facts, repo, model)
        space_files = write_space(run, folder / "space", facts, repo, model, runtime) if space else []
        pushed = Pushed(files, space_files)
        if dry_run:
            return pushed
        with log.activity("uploading"):
            url = _upload(folder / "model", repo, "model", private)
            space_url = _upload(folder / "space", repo, "space", private) if space else None
        return Pushed(files, space_files, url, space_url)


def write_model(
    run: str | Path, folder: Path, facts: CardFacts, repo: str, model: ModelChoice = "recommended"
) -> list[Path]:
    """Writes the files of the model's repository into the new folder `folder`; returns their paths.

    The heads are divided by the temperature of the mean of their logits, so that a softmax of timm's and
    transformers' outputs is calibrated; `head_temperature` in config.json lets deitkit undo that. Those of a
    hybrid, which deitkit alone opens, stay as they are.
    """
    source, classifier = _student(run, model)
    student, info = read_student(source)
    to, temperature = "deitkit", 1.0
    if student.stem is None:
        to = "timm"
        temperature = temperature_of_logits(classifier.calibration, distilled=student.distilled)
        student.scale_heads(1 / temperature)
    files = export(student, folder, to, info.preprocessing, info.classes, info.task)
    described = {
        "task": info.task,
        "classes": list(info.classes),
        "preprocessing": asdict(info.preprocessing),
        "student": {"name": info.student.name} | student.describe(),
        "head_temperature": temperature,
    }
    write_json(folder / CONFIG, read_json(folder / CONFIG) | described)
    for name in (CALIBRATION, CLASS_MEANS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
            files.append(folder / name)
    if student.stem is not None:
        log.info(f"timm and transformers have no hybrid students and cannot open it; deitkit and {GRAPH} can")
        files += export_run(source, "onnx", folder / GRAPH, model="student").files
    card = read_card(source, classifier)
    write_text(folder / README, card_markdown(card, classifier.classes, facts, repo))
    _check_answers(folder, classifier, student.eval())
    return [*files, folder / README]


def write_space(
    run: str | Path,
    folder: Path,
    facts: CardFacts,
    repo: str,
    model: ModelChoice = "recommended",
    runtime: str | None = None,
) -> list[Path]:
    """Writes the web page and the README.md of a static Space into the new folder `folder`."""
    source, classifier = _student(run, model)
    export_run(source, "web", folder, model="student", runtime=runtime)
    write_text(folder / README, _space_readme(read_card(source, classifier), facts, repo))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _space_readme(card: ModelCard, facts: CardFacts, repo: str) -> str:
    from huggingface_hub import SpaceCardData

    data = SpaceCardData(
        title=card.name, sdk="static", app_file="index.html", license=facts.license, models=[repo]
    )
    return f"---\n{data.to_yaml()}\n---\n\nThe model {repo} in the browser: images do not leave it.\n"


def _student(run: str | Path, model: ModelChoice) -> tuple[Path, StudentClassifier]:
    """The folder of a student, or baseline, of the run, and its classifier."""
    folder = model_folder(Path(run), model)
    classifier = load_folder(folder, "cpu", backend="pytorch")
    if not isinstance(classifier, StudentClassifier):
        raise SettingError(
            f"{folder} is a fitted teacher, and only students are uploaded; add --model student, or publish "
            "what deitkit export --to web or --to onnx writes"
        )
    return folder, classifier


@torch.inference_mode()
def _check_answers(folder: Path, classifier: StudentClassifier, student: DeiT) -> None:
    """Opens the folder with deitkit, and with timm what it can open; raises DependencyError if they answer
    otherwise."""
    views = torch.rand(2, 3, *student.image_size, generator=torch.Generator().manual_seed(0))
    again = load_student(folder, "cpu", "pytorch")
    differences = {"deitkit": (again.backend(views)[0] - classifier.backend(views)[0]).abs().max()}
    if student.stem is None:
        import timm

        opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = (views - classifier.mean) / classifier.std
        differences["timm"] = (opened(images) - joint_logits(student(images))).abs().max()
    for name, difference in differences.items():
        if not float(difference) < _AGREES:
            raise DependencyError(
                f"{name} answers otherwise from {folder} (by {float(difference):.2g}); "
                f"another version of {name} may help"
            )


def _check(repo: str, facts: CardFacts) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise SettingError("the repository is no name of the hub; give OWNER/NAME, such as me/flowers")
    if facts.license is None or facts.data_license is None:
        raise SettingError(
            "what is published needs a licence: give --license for the weights, such as apache-2.0, and "
            "--data-license for the images"
        )


def _refuse_without_login() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise SettingError("nobody is logged in to the hub; run hf auth login, or add --dry-run")


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """`out`, created, or a temporary folder."""
    if out is not None:
        create_folder(Path(out))
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def _upload(folder: Path, repo: str, kind: str, private: bool) -> str:
    """Uploads a folder, in one commit; returns the repository's address."""
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_access() as online:
        if not online:
            raise WeightsError("the hub cannot be reached; check the network, or add --dry-run")
        try:
            sdk = "static" if kind == "space" else None
            url = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
            api.upload_folder(
                folder_path=folder, repo_id=repo, repo_type=kind, commit_message="Upload with deitkit"
            )
        except Exception as error:  # the client has errors of many types
            said = str(error).strip().splitlines()
            raise WeightsError(
                f"the hub did not take {repo} ({said[-1] if said else type(error).__name__}); "
                "check the name and the token's rights"
            ) from None
    return str(url)
