"""`deitkit card` and `deitkit push`: the model card, and a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import log
from . import options as flags

_License = Annotated[
    str | None, typer.Option("--license", help="Licence of the weights, as the hub names it: apache-2.0.")
]
_DataLicense = Annotated[
    str | None, typer.Option("--data-license", help="Licence of the images, such as cc-by-4.0.")
]
_Dataset = Annotated[str | None, typer.Option("--dataset", help="The images' name on the hub, OWNER/NAME.")]
_Watts = Annotated[
    float | None, typer.Option("--watts", min=0.1, help="Mean power of the machine that trained.")
]
_Grams = Annotated[
    float | None, typer.Option("--co2-per-kwh", min=0, help="Grams of CO2 per kWh of its electricity.")
]


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    repo: Annotated[str, typer.Option(help="OWNER/NAME on the hub, for the examples of use.")] = "",
    model: flags.Model = "recommended",
    license_: _License = None,
    data_license: _DataLicense = None,
    dataset: _Dataset = None,
    watts: _Watts = None,
    co2_per_kwh: _Grams = None,
) -> None:
    """Print a run's model card, in the format of the Hugging Face hub."""
    with log.activity("loading the model"):
        from ..deploy.hub_card import CardFacts
        from ..deploy.hub_push import read_hub_card

        facts = CardFacts(license_, data_license, dataset, watts, co2_per_kwh)
        text = read_hub_card(run, facts, repo, model)
    print(text, end="")


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    model: flags.Model = "recommended",
    license_: _License = None,
    data_license: _DataLicense = None,
    dataset: _Dataset = None,
    watts: _Watts = None,
    co2_per_kwh: _Grams = None,
    space: Annotated[bool, typer.Option("--space", help="Also the web page, as a static Space.")] = False,
    private: Annotated[bool, typer.Option("--private", help="If the repository is new.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload nothing; list the files.")] = False,
    out: Annotated[Path | None, typer.Option(help="A new folder that keeps the files.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="For --space: npm, or a folder, as for export --to web.")
    ] = None,
) -> None:
    """Upload a run's student to the Hugging Face hub, for timm, transformers and deitkit.load."""
    with log.activity("starting"):
        from ..deploy.hub_card import CardFacts
        from ..deploy.hub_push import push_run

    found = push_run(
        run,
        repo,
        CardFacts(license_, data_license, dataset, watts, co2_per_kwh),
        model=model,
        out=out,
        dry_run=dry_run,
        space=space,
        private=private,
        runtime=runtime,
    )
    for of, files in (("", found.files), (" (Space)", found.space_files)):
        for file in files:
            print(f"{file if out is not None else file.name}{of}")
    if dry_run:
        print(f"nothing was uploaded; without --dry-run these become {repo}")
    for url in (found.url, found.space_url):
        if url is not None:
            print(url)
