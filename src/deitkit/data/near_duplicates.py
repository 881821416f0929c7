"""Images that show the same: exact copies by their bytes, near-duplicates by their edges.

A near-duplicate is the same photograph again: re-saved, resized, slightly cropped. Each image becomes a
perceptual hash of 16 x 16 grey cells, as differences of neighbours (Krawetz's dHash, not rounded to bits),
and so does its centre, which a slight crop of it resembles. What all images share, such as the outline of
parts on a conveyor belt, tells nothing about two of them: the hashes are decorrelated first. Two images are
near-duplicates if

- their hashes, or that of one and of the other's centre, correlate by more than 0.75, and
- both stand out: the next image that is not of the group is at least three times as far away.

The second condition is Lowe's ratio test (IJCV 2004). It keeps images apart that still look alike. What other
criteria gave: docs/check.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .. import log
from ..config import DataConfig
from .cache import Decoder, open_pixels
from .image_set import ImageSet
from .stored import read_bytes, size_of

MOST_IMAGES = 20_000  # with more, comparing each with each takes a minute, and only exact copies are found

_SIDE = 16  # cells of a hash, S
THUMBNAIL = Decoder((2 * _SIDE, 2 * _SIDE), "resize")
_CENTRE = 0.95  # of each side
_FARTHEST = 0.25  # 1 - correlation of two hashes
_FEWEST = 100  # images, with which it is known what they share
_STANDS_OUT = 3.0
_SAME = 0.01  # distances below are noise, and count as this much in the ratio
_NEIGHBOURS = 32  # of each image that are looked at: the largest group, and one more
_BLOCK = 1024  # images that are compared with all at once


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that show the same, as rising indices; the largest group first.

    exact: copies, byte by byte. near: with their near-duplicates; every exact group is in one of them.
    """

    exact: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, ...], ...]

    def reordered(self, order: NDArray[np.int64]) -> Duplicates:
        """The groups by new indices: image order[i] becomes image i."""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        exact, near = (_ordered([place[list(g)].tolist() for g in of]) for of in (self.exact, self.near))
        return Duplicates(exact, near)

    def group_of(self, num_images: int) -> NDArray[np.int64]:
        """(N,) the lowest index of each image's group: its own, if it is alone."""
        lowest = np.arange(num_images)
        for group in self.near:
            lowest[list(group)] = group[0]
        return lowest


def duplicates_of(images: ImageSet, config: DataConfig) -> Duplicates:
    """The groups among `images`, whose thumbnails are decoded, or taken from the cache."""
    few = len(images) <= MOST_IMAGES
    return find_duplicates(images, thumbnails_of(images, config)[0] if few else None)


def thumbnails_of(images: ImageSet, config: DataConfig) -> tuple[NDArray[np.uint8], list[tuple[int, str]]]:
    """Thumbnails (N, 3, H, W), and (index, reason) of the unreadable images, whose thumbnails are empty."""
    with log.progress_bar("looking for duplicates", len(images)) as advance:
        decoder = replace(THUMBNAIL, max_pixels=config.max_pixels)
        store, unreadable = open_pixels(images, decoder, config, advance)
    return store.fetch(np.arange(len(images))).numpy(), unreadable


def find_duplicates(images: ImageSet, thumbnails: NDArray[np.uint8] | None) -> Duplicates:
    """The groups among `images`.

    thumbnails: (N, 3, H, W) of `THUMBNAIL`; None to look for exact copies only, as if there were more than
    `MOST_IMAGES`. An image whose thumbnail is empty has no near-duplicates.
    """
    exact = _copies(images)
    pairs = [(group[0], other) for group in exact for other in group[1:]]
    if thumbnails is not None and len(images) <= MOST_IMAGES:
        # One of each: a crowd of copies would fill the neighbourhood.
        repeated = [other for _, other in pairs]
        single = np.setdiff1d(np.arange(len(images)), repeated)
        pairs += [(int(single[i]), int(single[j])) for i, j in near_pairs(thumbnails[single])]
    return Duplicates(exact, _joined(pairs))


def hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 3, H, W) uint8 -> (N, 2 (S-1)^2) differences of neighbouring cells, of norm 1; of grey, zeros."""
    n, _, height, width = thumbnails.shape
    grey = thumbnails.astype(np.float32).mean(1)
    cells = grey.reshape(n, _SIDE, height // _SIDE, _SIDE, width // _SIDE).mean((2, 4))
    right, down = cells[:, :-1, 1:] - cells[:, :-1, :-1], cells[:, 1:, :-1] - cells[:, :-1, :-1]
    found = np.concatenate([right.reshape(n, -1), down.reshape(n, -1)], 1)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1), np.float32)


def centres(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 3, H, W) -> the same of each thumbnail's centre."""
    pixels = torch.from_numpy(thumbnails).float()
    inside = torch.tensor([[[_CENTRE, 0.0, 0.0], [0.0, _CENTRE, 0.0]]]).expand(len(pixels), 2, 3)
    grid = F.affine_grid(inside, list(pixels.shape), align_corners=False)
    found = F.grid_sample(pixels, grid, mode="bicubic", align_corners=False)
    return found.round().clamp(0, 255).byte().numpy()


def near_pairs(thumbnails: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs i < j of thumbnails (N, 3, H, W) that are near-duplicates."""
    return standing_out(*decorrelated(hashes(thumbnails), hashes(centres(thumbnails))))


def decorrelated(whole: NDArray[np.float32], centre: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Both (N, D), with the covariance of `whole` whitened and norm 1; as they are for fewer than 100 images.

    The covariance is shrunk towards a multiple of the identity by the square root of what OAS gives (Chen et
    al., arXiv 0907.4698): whitened in full, what tells a photograph from its crop would drown in noise.
    """
    seen = whole.any(1)
    n, dims = int(seen.sum()), whole.shape[1]
    if n < _FEWEST:
        return whole, centre
    mean = whole[seen].mean(0, dtype=np.float64)
    x = whole[seen] - mean
    covariance = x.T @ x / n
    trace, squares = float(np.trace(covariance)), float(np.square(covariance).sum())
    off_identity = (n + 1 - 2 / dims) * (squares - trace**2 / dims)
    oas = ((1 - 2 / dims) * squares + trace**2) / off_identity if off_identity > 0 else 1.0
    shrinkage = min(1.0, oas) ** 0.5
    values, vectors = np.linalg.eigh(covariance)
    scales = np.sqrt((1 - shrinkage) * values.clip(0) + shrinkage * trace / dims)
    whitening = (vectors / scales) @ vectors.T

    def whitened(hashes: NDArray[np.float32]) -> NDArray[np.float32]:
        found = (hashes - mean) @ whitening * hashes.any(1, keepdims=True)  # grey images stay without a hash
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.where(lengths > 0, lengths, 1), np.float32)

    return whitened(whole), whitened(centre)


def standing_out(whole: NDArray[np.float32], centre: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pairs i < j of hashes (N, D) that are near, each seen from both."""
    near: set[tuple[int, int]] = set()
    for first in range(0, len(whole), _BLOCK):
        rows = slice(first, first + _BLOCK)
        alike = np.maximum(whole[rows] @ whole.T, whole[rows] @ centre.T)
        distances = 1 - np.maximum(alike, centre[rows] @ whole.T)
        own = np.arange(len(distances))
        distances[own, first + own] = np.inf
        count = min(_NEIGHBOURS, len(whole))
        nearest = np.argpartition(distances, count - 1, 1)[:, :count]
        order = np.take_along_axis(distances, nearest, 1).argsort(1, kind="stable")
        nearest = np.take_along_axis(nearest, order, 1)
        for i, size in enumerate(map(_neighbours, np.take_along_axis(distances, nearest, 1))):
            near |= {(first + i, int(j)) for j in nearest[i, :size]}
    return sorted((i, j) for i, j in near if i < j and (j, i) in near)


def _neighbours(distances: NDArray[np.float32]) -> int:
    """How many neighbours, at rising `distances`, stand out from those behind; behind the last is unknown."""
    behind = np.append(distances[1:], 0)
    stands = (distances <= _FARTHEST) & (behind >= _STANDS_OUT * np.maximum(distances, _SAME))
    return int(np.flatnonzero(stands)[-1]) + 1 if stands.any() else 0


def _copies(images: ImageSet) -> tuple[tuple[int, ...], ...]:
    """Groups of files with the same bytes. Files of different sizes are not read."""
    by_size: dict[int, list[int]] = {}
    for i in range(len(images)):
        size = size_of(images.file(i))
        if size is not None:
            by_size.setdefault(size, []).append(i)
    by_content: dict[bytes, list[int]] = {}
    for size, members in by_size.items():
        if size > 0 and len(members) > 1:
            for i in members:
                content = hashlib.blake2b(read_bytes(images.file(i)), digest_size=16).digest()
                by_content.setdefault(content, []).append(i)
    return _ordered(by_content.values())


def _joined(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """The groups that chains of pairs form."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        parent[root(j)] = root(i)
    groups: dict[int, list[int]] = {}
    for i in list(parent):
        groups.setdefault(root(i), []).append(i)
    return _ordered(groups.values())


def _ordered(groups: Iterable[list[int]]) -> tuple[tuple[int, ...], ...]:
    kept = [tuple(sorted(map(int, group))) for group in groups if len(group) > 1]
    return tuple(sorted(kept, key=lambda group: (-len(group), group)))
