"""Several processes that do one job, as torchrun starts them.

    torchrun --nproc-per-node=4 -m deitkit train DATA --out RUN

Every process runs the same code. Its rank says which share of the work is its own; rank 0, the main process,
alone prints, draws bars and writes files. Without torchrun there is one process, and nothing here does
anything. The process group is formed when it is first needed: Gloo between CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from .errors import ProcessLost, on_one_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

# How long the others wait for the main process, which may decode a large folder. A process that ends is
# noticed at once: its connections close, and torchrun ends the others.
_PATIENCE = timedelta(days=2)
_TO_MEET = timedelta(minutes=15)
_BUCKET = 1 << 25  # elements that are sent at once, so that a copy of all gradients is never held
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them

_alone = False


def world_size() -> int:
    """The number of processes that do this job."""
    if _alone or any(name not in os.environ for name in _NEEDED):
        return 1
    return int(os.environ["WORLD_SIZE"])


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int | None:
    """Which of the processes on this machine this one is; None without a launcher that says it."""
    named = all(name in os.environ for name in (*_NEEDED, "LOCAL_RANK"))
    return int(os.environ["LOCAL_RANK"]) if named else None


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def restarted() -> bool:
    """Whether torchrun has started this process again after another one failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def alone() -> Iterator[None]:
    """Work within is this process's own: it is not shared, and the others need not do the same."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def share(total: int, unit: int = 1) -> range:
    """This process's rows of `total`: consecutive, whole units (the last of all may be shorter)."""
    units, size, mine = -(-total // unit), world_size(), rank()
    return range(min(units * mine // size * unit, total), min(units * (mine + 1) // size * unit, total))


# What the processes tell each other


def barrier() -> None:
    """Waits until every process is here."""
    any_of(False)


@contextmanager
def main_first() -> Iterator[None]:
    """The main process does what is within; then the others, which find what it has left.

    Nothing within may wait for other processes.
    """
    with _first(rank() == 0):
        yield


@contextmanager
def each_host_first() -> Iterator[None]:
    """As `main_first`, with one process of every machine going first: for what a machine's disk keeps."""
    with _first((local_rank() or 0) == 0):
        yield


@contextmanager
def _first(now: bool) -> Iterator[None]:
    if not now:
        barrier()
    yield
    if now:
        barrier()


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns in the main process, the only one that calls it."""
    if world_size() == 1:
        return make()
    import torch.distributed as dist

    sent = [make() if is_main() else None]
    with _joined():
        dist.broadcast_object_list(sent, src=0)
    return sent[0]  # type: ignore[return-value]


def gather(value: T) -> list[T]:
    """In the main process the values of all processes, by rank; in the others nothing."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[T | None] | None = [None] * world_size() if is_main() else None
    with _joined():
        dist.gather_object(value, found, dst=0)
    return found or []  # type: ignore[return-value]


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process: a decision that all of them share."""
    return [value > 0 for value in largest(*map(float, flags))]


def largest(*values: float) -> list[float]:
    """For each value the largest of all processes'."""
    if world_size() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    found = torch.tensor(values, dtype=torch.float64)
    with _joined():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return list(found.tolist())


def sum_up(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sum over all processes; all of them get the same bits."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    _in_buckets(tensors, lambda flat: dist.all_reduce(flat))


def copy_from_main(tensors: Mapping[str, Tensor]) -> None:
    """Replaces each tensor by that of the main process."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    _in_buckets([tensors[name] for name in sorted(tensors)], lambda flat: dist.broadcast(flat, src=0))


def _in_buckets(tensors: Sequence[Tensor], send: Callable[[Tensor], object]) -> None:
    """Sends tensors joined, since a message costs more than its bytes."""
    import torch

    buckets: dict[object, list[list[Tensor]]] = {}
    for tensor in tensors:
        of_kind = buckets.setdefault((tensor.dtype, tensor.device), [[]])
        if of_kind[-1] and sum(t.numel() for t in of_kind[-1]) + tensor.numel() > _BUCKET:
            of_kind.append([])
        of_kind[-1].append(tensor)
    with torch.no_grad(), _joined():
        for bucket in (bucket for of_kind in buckets.values() for bucket in of_kind):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            send(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def speaks_first() -> bool:
    """Whether this process is the first that ends with a message; the others then keep theirs."""
    if world_size() == 1:
        return True
    try:
        return int(_store().add("ended", 1)) == 1
    except (RuntimeError, ProcessLost):  # with the process that held the store
        return is_main()


# The process group


@contextmanager
def _joined() -> Iterator[None]:
    """Forms the process group if it is not; turns a lost connection into ProcessLost."""
    try:
        _form_group()
        yield
    except RuntimeError as error:  # torch's errors of communication are plain ones
        raise ProcessLost(f"another process of this job has ended ({on_one_line(error)})") from error


@functools.cache
def _form_group() -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = PrefixStore("group", _store())
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=_PATIENCE)
    atexit.register(_leave_group)


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@functools.cache
def _store() -> Store:
    """The part of the key-value store of the job that is this attempt's.

    torchrun keeps one store over its restarts, with the addresses of processes that are gone. So the main
    process names the attempt, and confirms to each other process that it knows of its new self.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store: Store = next(rendezvous("env://", timeout=_TO_MEET))[0]
        me, end = secrets.token_hex(8), time.monotonic() + _TO_MEET.total_seconds()
        attempt = _name_attempt(store, me, end) if rank() == 0 else _hear_attempt(store, me, end)
    except RuntimeError as error:
        raise ProcessLost(f"the processes do not find each other ({on_one_line(error)})") from error
    return PrefixStore(attempt, store)


def _name_attempt(store: Store, me: str, end: float) -> str:
    """Publishes who takes part, again while processes appear, until all of them have seen it."""
    others, told = range(1, world_size()), ""
    while not all(store.check([f"{me}/{other}"]) for other in others):
        known = [store.get(f"here/{n}").decode() if store.check([f"here/{n}"]) else "" for n in others]
        now = " ".join([me, *known])
        if now != told:
            store.set("attempt", told := now)
        _pause(end)
    return me


def _hear_attempt(store: Store, me: str, end: float) -> str:
    """Waits until the main process has published this very process."""
    store.set(f"here/{rank()}", me)
    while True:
        told = store.get("attempt").decode().split(" ") if store.check(["attempt"]) else []
        if len(told) == world_size() and told[rank()] == me:
            store.set(f"{told[0]}/{rank()}", "")
            return told[0]
        _pause(end)


def _pause(end: float) -> None:
    if time.monotonic() > end:
        raise ProcessLost("the processes of this job do not find each other")
    time.sleep(0.02)
