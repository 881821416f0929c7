"""The model card as the Hugging Face hub shows it: metadata in YAML, then Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from .model_card import Accuracy, Kind, ModelCard

_METRICS = {
    "top-1": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "macro-F1": "f1",
    "mAP": "mean_average_precision",
}
_TAGS: dict[Kind, tuple[str, ...]] = {
    "deit": ("timm", "transformers", "deitkit", "deit"),
    "hybrid": ("onnx", "deitkit", "deit"),
    "teacher": ("deitkit",),
}
_UNMEASURED_WATTS = 20, 100  # of a laptop and of a desk computer, for a range where none was given


_OPEN_WITH_DEITKIT = """\
```python
import deitkit

deitkit.load("hf:{repo}").predict("photo.jpg")
```"""
_USE: dict[Kind, str] = {
    "deit": f"""\
{_OPEN_WITH_DEITKIT}

```python
import timm

model = timm.create_model("hf-hub:{{repo}}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{{repo}}")
model = AutoModelForImageClassification.from_pretrained("{{repo}}")
```

timm and transformers average the logits of both heads, deitkit their probabilities; on a few images the
answers differ. deitkit also says what is unfamiliar.""",
    "hybrid": f"""\
{_OPEN_WITH_DEITKIT}

Without deitkit, ONNX Runtime opens `model.onnx` to the same answers, as `python model_sample.py photo.jpg`
does. timm and transformers have no hybrids and cannot open it.""",
    "teacher": """\
```python
import deitkit

deitkit.load("RUN").predict("photo.jpg")  # RUN: the folder of the run
```

`deitkit export RUN --to onnx --out model.onnx` writes a file for other programs.""",
}


@dataclass(frozen=True)
class CardFacts:
    """What a run does not know and its owner does; None where that was not said.

    license, data_license: identifiers of the hub, such as "apache-2.0" and "cc-by-4.0". dataset: the hub's
    name of the data. watts: mean power of the machine while it trained. grams_per_kwh: CO2 of its
    electricity.
    """

    license: str | None = None
    data_license: str | None = None
    dataset: str | None = None
    watts: float | None = None
    grams_per_kwh: float | None = None


def card_markdown(card: ModelCard, classes: tuple[str, ...], facts: CardFacts, repo: str) -> str:
    """The content of README.md in the repository `repo`."""
    return f"---\n{_metadata(card, facts)}\n---\n\n{_text(card, classes, facts, repo)}"


def _metadata(card: ModelCard, facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    known = [score for score in (card.accuracy, *card.others) if score is not None]
    grams = _grams(card, facts)
    data = ModelCardData(
        library_name="timm" if card.kind == "deit" else "deitkit",
        license=facts.license,
        pipeline_tag="image-classification",
        datasets=None if facts.dataset is None else [facts.dataset],
        tags=["image-classification", *_TAGS[card.kind]],
        model_name=card.name,
        metrics=list(dict.fromkeys(_metric(score) for score in known)) or None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="imagefolder",
                dataset_name=facts.dataset or card.data or "images",
                dataset_split="test" if "test split" in score.metric else "validation",
                metric_type=_metric(score),
                metric_name=score.metric,
                metric_value=round(score.value, 2),
            )
            for score in known
        ]
        or None,
    )
    if grams is not None:
        source = "training time times the power that was given"
        data["co2_eq_emissions"] = {"emissions": round(grams, 1), "source": source}
    text: str = data.to_yaml()
    return text


def _metric(score: Accuracy) -> str:
    return _METRICS.get(score.metric.partition(" on ")[0], "accuracy")


def _text(card: ModelCard, classes: tuple[str, ...], facts: CardFacts, repo: str) -> str:
    params = f", {card.params / 1e6:.1f} million parameters" if card.params else ""
    taught = f", distilled from {card.teacher}" if card.teacher else ""
    parts = [
        f"# {_plain(card.name)}",
        f"An image classifier of {len(classes)} classes: {card.architecture}{taught}{params}, for "
        f"images of {card.input}. Trained with deitkit.",
        f"Classes: {', '.join(map(_plain, classes[:50]))}{', ...' if len(classes) > 50 else ''}.",
        f"## Use\n\n{_USE[card.kind].format(repo=repo)}",
        "## Accuracy\n\n" + _accuracy(card),
        "## Data\n\n" + _data(card, facts),
        "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in card.limits),
        "## Cost\n\n" + _cost(card, facts),
        "## Licences\n\n" + _licences(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(card: ModelCard) -> str:
    known = [score for score in (card.accuracy, *card.others) if score is not None]
    if not known:
        return "Not measured."
    rows = [
        f"| {score.metric} | {score.value:.1f} % | {_interval(score)} | {score.images:,} |" for score in known
    ]
    head = "| | | 95 % interval | images |\n|---|---|---|---|\n"
    return (
        head
        + "\n".join(rows)
        + "\n\nOn images that were not trained on; validation images also chose the weights."
    )


def _interval(score: Accuracy) -> str:
    return "" if score.interval is None else "{:.1f} to {:.1f}".format(*score.interval)


def _data(card: ModelCard, facts: CardFacts) -> str:
    if card.train_images is None:
        return "Not known."
    name = facts.dataset or _plain(card.data or "a folder of images")
    split = f", split: {_plain(card.split)}" if card.split else ""
    return f"{name}: {card.train_images:,} training images{split}."


def _cost(card: ModelCard, facts: CardFacts) -> str:
    if card.seconds is None:
        return "Not known."
    hours = card.seconds / 3600
    machine = _plain(card.machine) or "an unknown machine"
    teacher = ", the teacher included" if card.teacher else ""
    told = f"Training took {_duration(card.seconds)} on {machine}{teacher}."
    if facts.watts is not None:
        told += f" Energy, estimated: {_energy(hours * facts.watts)} ({facts.watts:g} W for that time)."
    else:
        at = ", ".join(f"{_energy(hours * watts)} at {watts} W" for watts in _UNMEASURED_WATTS)
        told += f" Energy was not measured; it would be {at}."
    grams = _grams(card, facts)
    if grams is not None:
        told += f" CO2, estimated: {grams:.1f} g, at {facts.grams_per_kwh:g} g per kWh."
    return told


def _grams(card: ModelCard, facts: CardFacts) -> float | None:
    """CO2 of the training; None if power or intensity is not known."""
    if card.seconds is None or facts.watts is None or facts.grams_per_kwh is None:
        return None
    return card.seconds / 3.6e6 * facts.watts * facts.grams_per_kwh


def _energy(watt_hours: float) -> str:
    return f"{watt_hours:.2g} Wh" if watt_hours < 100 else f"{watt_hours / 1000:.2g} kWh"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _licences(facts: CardFacts) -> str:
    weights = facts.license or "not stated by its author"
    data = facts.data_license or "not stated by its author"
    return f"Weights: {weights}. Data: {data}. deitkit: Apache-2.0."


def _plain(name: str) -> str:
    """A name in Markdown: on one line, without markup."""
    text = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
    for mark in "\\`*_[]<>#|$":
        text = text.replace(mark, f"\\{mark}")
    return text
