import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from gem.attention import attend, causal_mask, clustered_mask, rope_tables, rotate

clusters_of = st.lists(st.integers(0, 2), min_size=1, max_size=14)


@given(clusters_of, st.integers(1, 14), st.integers(1, 4), st.integers(0, 3), st.integers(0, 4))
def test_clustered_mask_equals_the_loop(clusters, num_new, window, sinks, cap):
    num_new = min(num_new, len(clusters))
    mask = clustered_mask(torch.tensor([clusters]), num_new, window, sinks, cap, num_clusters=3)[0]
    past = len(clusters) - num_new
    for t in range(past, len(clusters)):
        for j in range(len(clusters)):
            assert mask[t - past, j] == oracles.clustered_sees(clusters, t, j, window, sinks, cap)


@given(clusters_of, st.integers(1, 4), st.integers(0, 3), st.integers(0, 4))
def test_cost_per_token_is_bounded(clusters, window, sinks, cap):
    mask = clustered_mask(torch.tensor([clusters]), len(clusters), window, sinks, cap, num_clusters=3)
    assert mask.sum(-1).max() <= window + sinks + cap


def test_clusters_of_one_sequence_do_not_touch_another():
    clusters = torch.tensor([[0, 1, 0, 0, 1], [2, 2, 2, 0, 2]])
    both = clustered_mask(clusters, 5, 1, 0, 2, num_clusters=3)
    for row, alone in zip(both, clusters):
        assert torch.equal(row, clustered_mask(alone[None], 5, 1, 0, 2, num_clusters=3)[0])


@given(st.integers(0, 9), st.integers(1, 6), st.integers(0, 5))
def test_causal_mask_equals_the_loop(past, num_new, window):
    mask = causal_mask(past, num_new, window)
    for row, t in enumerate(range(past, past + num_new)):
        for j in range(past + num_new):
            assert mask[row, j] == (j <= t and (window == 0 or t - j < window))


@given(st.sampled_from([2, 6, 20]), st.integers(0, 500), st.sampled_from([500.0, 10000.0]), st.integers(0, 99))
def test_rope_equals_the_loop(head_dim, position, theta, seed):
    x = torch.randn(head_dim, generator=torch.Generator().manual_seed(seed))
    cos, sin = rope_tables(torch.tensor([position]), head_dim, theta, torch.float32)
    wanted = oracles.rope(x.tolist(), position, theta)
    np.testing.assert_allclose(rotate(x[None], cos, sin)[0], wanted, atol=1e-5)


def test_fused_attention_is_the_same_sum():
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, 9, 20, generator=rng) for h in (6, 2, 2))
    mask = clustered_mask(torch.randint(3, (2, 9), generator=rng), 9, 2, 1, 2, num_clusters=3)
    for m in (mask, causal_mask(0, 9, 3), None):
        torch.testing.assert_close(attend(q, k, v, m, fast=True), attend(q, k, v, m, fast=False), atol=1e-5, rtol=1e-5)


def test_query_heads_share_key_heads_in_order():
    q = torch.zeros(1, 4, 1, 2)
    v = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    assert attend(q, torch.zeros(1, 2, 1, 2), v, None, fast=False).flatten().tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
