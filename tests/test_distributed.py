"""What a single process, and a process without its peers, does with `distributed`."""

from __future__ import annotations

import pytest
import torch

from deitkit import distributed
from deitkit.data.loader import ViewBatch
from deitkit.models import BatchRows
from deitkit.models.deit import create_model

TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501", "LOCAL_RANK": "1"}


@pytest.fixture
def ranks(monkeypatch):
    """Says which of how many processes this is."""

    def be(rank: int, size: int) -> None:
        for name, value in (TORCHRUN | {"RANK": str(rank), "WORLD_SIZE": str(size)}).items():
            monkeypatch.setenv(name, value)

    return be


def test_one_process_needs_no_other():
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, None)
    assert distributed.is_main() and distributed.speaks_first() and not distributed.restarted()
    assert distributed.from_main(lambda: 3) == 3
    assert distributed.gather("a") == ["a"]
    assert distributed.any_of(True, False) == [True, False]
    with distributed.main_first(), distributed.each_host_first():
        distributed.barrier()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("total", "unit"), [(0, 2), (1, 2), (9, 2), (10, 3), (64, 1), (64, 64)])
def test_shares_are_whole_units_in_order(ranks, size, total, unit):
    shares = []
    for rank in range(size):
        ranks(rank, size)
        shares.append(distributed.share(total, unit))
    assert [row for rows in shares for row in rows] == list(range(total))
    assert all(rows.start % unit == 0 for rows in shares if rows)
    lengths = [len(rows) for rows in shares]
    assert max(lengths) - min(lengths) <= 2 * unit
    with distributed.alone():
        assert distributed.share(total, unit) == range(total)


@pytest.mark.parametrize(("rows", "sizes"), [(range(10), [4, 4, 2]), (range(2, 6), [2, 2, 0])])
def test_rows_fall_into_the_micro_batches_of_the_whole(rows, sizes):
    batch = ViewBatch(
        torch.zeros(len(rows), 1), torch.zeros(len(rows), 1), torch.arange(10).numpy(), 1.0, rows
    )
    assert batch.split_sizes(4) == sizes


def test_a_part_of_a_micro_batch_draws_what_the_whole_does():
    torch.manual_seed(1)
    dropping = {"drop_path_rate": 0.5, "patch_drop_rate": 0.5}
    model = create_model("nano", num_classes=3, image_size=16, patch_size=4, **dropping).train()
    images = torch.randn(6, 3, 16, 16)

    def drawn(own: torch.Tensor, rows: BatchRows | None) -> tuple[torch.Tensor, float]:
        torch.manual_seed(2)
        return model(own, rows=rows).class_logits, torch.rand(()).item()

    whole, after = drawn(images, None)
    for first, last in ((0, 2), (2, 6), (0, 6), (3, 3)):
        part, then = drawn(images[first:last], BatchRows(first, 6))
        torch.testing.assert_close(part, whole[first:last])
        assert then == after  # so that the next micro-batch gets the same


def test_a_gpu_for_each_process(ranks, monkeypatch):
    from deitkit.errors import DependencyError
    from deitkit.inference.device import resolve_device

    ranks(1, 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    assert chosen == [1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DependencyError, match="smaller --nproc-per-node"):
        resolve_device("cuda")
