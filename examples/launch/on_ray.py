"""A verb of deitkit on a Ray cluster, one process per worker, instead of torchrun.

    pip install "ray[train]"                      # on every node, beside deitkit
    python on_ray.py WORKERS label photos/ --epochs 60 --out soft-labels
    python on_ray.py --gpu WORKERS train photos/ --out runs/photos

--out and the images have to be on storage that all nodes see, at absolute paths.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(config: dict[str, list[str]]) -> None:
    """What each worker runs, in the process group that Ray has formed."""
    from deitkit.cli import main

    try:
        main(config["arguments"])
    except SystemExit as end:
        if end.code:
            raise RuntimeError("the command has failed; its sentence is above") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    parser.add_argument(
        "--storage", default=Path("ray-results"), type=Path, help="where Ray keeps its own files"
    )
    parser.add_argument("workers", type=int)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="a verb of deitkit and its arguments")
    options = parser.parse_args()
    TorchTrainer(
        work,
        train_loop_config={"arguments": options.arguments},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        # A lost worker: all start again, and the job goes on from its last checkpoint.
        run_config=RunConfig(
            storage_path=str(options.storage.resolve()), failure_config=FailureConfig(max_failures=3)
        ),
    ).fit()


if __name__ == "__main__":
    main()
