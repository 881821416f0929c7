import numpy as np
import pytest
import torch

from deitkit.evaluation.attention import mean_distance, patch_distances, patch_maps, rollout


def random_attention(batch=2, heads=3, tokens=8, seed=0):
    scores = torch.randn(batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    return scores.softmax(-1)


def test_distances_are_between_centres_in_pixels():
    # Two patches down of 10 pixels, three across of 4: counted in rows.
    distances = patch_distances((2, 3), (10, 4))
    assert distances.shape == (6, 6) and distances.diagonal().eq(0).all()
    assert distances[0, 2] == 8 and distances[0, 3] == 10
    assert distances[0, 5].item() == pytest.approx(np.hypot(10, 8))


@pytest.mark.parametrize("prefix", [1, 2])
def test_mean_distance_agrees_with_a_loop(prefix):
    attention, distances = random_attention(tokens=6 + prefix), patch_distances((2, 3), (10, 4))
    found = mean_distance(attention, distances)
    for b in range(2):
        for h in range(3):
            means = []
            for query in range(6):
                weights = attention[b, h, prefix + query, prefix:].numpy().astype(float)
                means.append((weights * distances[query].numpy()).sum() / weights.sum())
            assert found[b, h].item() == pytest.approx(np.mean(means))


def test_mean_distance_of_the_two_extremes():
    distances = patch_distances((2, 2), (8, 8))
    own, every = torch.eye(6)[None, None], torch.full((1, 1, 6, 6), 1 / 6)
    assert mean_distance(own, distances).item() == 0
    assert mean_distance(every, distances).item() == pytest.approx(distances.mean().item())


def test_attention_to_prefix_tokens_alone_has_no_distance():
    attention = torch.zeros(1, 1, 6, 6)
    attention[..., 0] = 1
    assert mean_distance(attention, patch_distances((2, 2), (8, 8))).item() == 0


def test_rollout_agrees_with_numpy():
    blocks = [random_attention(seed=s) for s in range(3)]
    found = rollout(blocks)
    for b in range(2):
        expected = np.eye(8)
        for block in blocks:
            expected = (0.5 * block[b].numpy().mean(0) + 0.5 * np.eye(8)) @ expected
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2, 8), atol=1e-5)


def test_rollout_of_nothing_is_refused():
    with pytest.raises(ValueError, match="one block"):
        rollout([])


def test_patch_maps_keep_rows_and_leave_prefix_tokens_out():
    attention = torch.arange(8 * 8).float().reshape(1, 8, 8)
    maps = patch_maps(attention, (2, 3))
    assert maps[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]  # the class token's row
    assert maps[0, 1].tolist() == [[10, 11, 12], [13, 14, 15]]  # the distillation token's row
