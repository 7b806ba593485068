import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from gem.config import POLICIES, GemConfig
from gem.margins import selection_margin
from gem.select import select
from small_models import plain


def scar_of(num_clusters=7, **changes):
    given = {"scar.num_clusters": num_clusters} | {f"scar.{k}": v for k, v in changes.items()}
    return GemConfig.from_dict(plain(given)).scar


@st.composite
def scores(draw):
    """Rows of softmax-like scores [T, C] with frequent exact ties."""
    num_tokens = draw(st.integers(1, 12))
    num_clusters = draw(st.sampled_from([3, 7, 8]))
    parts = st.lists(st.integers(0, 4), min_size=num_clusters, max_size=num_clusters).filter(any)
    rows = draw(st.lists(parts, min_size=num_tokens, max_size=num_tokens))
    a = np.array(rows, np.float32)
    return a / a.sum(-1, keepdims=True)


@pytest.mark.parametrize("policy", POLICIES)
@given(
    scores(),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.booleans(),
)
def test_selection_equals_the_loop(policy, a, k_max, k_min, share, capacity_factor, norm_gates):
    scar = scar_of(
        a.shape[1], policy=policy, k_max=k_max, k_min=min(k_min, k_max), p=share, tau=share,
        capacity_factor=capacity_factor, norm_gates=norm_gates,
    )  # fmt: skip
    chosen, gates = select(torch.from_numpy(a)[None], scar)
    wanted = oracles.chosen_modules(a, scar)
    assert [set(row.nonzero().flatten().tolist()) for row in chosen[0]] == wanted
    np.testing.assert_allclose(gates[0].numpy(), oracles.gates(a, wanted, scar), rtol=1e-6)
    assert not gates[0][~chosen[0]].any()


def test_ties_take_the_lower_index():
    a = torch.full((1, 4, 7), 1 / 7)
    assert select(a, scar_of(policy="top_k", k_max=2))[0][0].nonzero()[:, 1].tolist() == [0, 1] * 4
    by_module = select(a, scar_of(policy="expert_choice", k_max=2, capacity_factor=1.0))[0][0]
    assert by_module.sum(0).tolist() == [2] * 7 and by_module[:2].all()


def test_top_p_stops_where_the_mass_is_reached_exactly():
    a = torch.tensor([[[0.5, 0.25, 0.125, 0.125, 0, 0, 0]]])
    for p, n in ((0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3)):
        assert select(a, scar_of(policy="top_p", k_min=0, p=p))[0].sum() == n
    assert select(a, scar_of(policy="top_p", k_min=3, p=0.5))[0].sum() == 3
    assert select(a, scar_of(policy="top_p", k_max=1, p=1.0))[0].sum() == 1


def test_threshold_may_choose_nothing_and_gates_stay_zero():
    a = torch.full((1, 3, 7), 1 / 7)
    for norm_gates in (True, False):
        chosen, gates = select(a, scar_of(policy="threshold", tau=0.2, norm_gates=norm_gates))
        assert not chosen.any() and not gates.any()


def test_bidirectional_ranks_over_all_tokens():
    """Token 0 loses module 0 to token 1, although token 1 has not chosen it."""
    a = torch.zeros(1, 2, 7)
    a[0, 0, :3] = torch.tensor([0.4, 0.3, 0.3])
    a[0, 1, :3] = torch.tensor([0.45, 0.05, 0.5])
    scar = scar_of(policy="bidirectional", k_max=1, capacity_factor=0.5)
    assert scar.capacity(2) == 1
    chosen, _ = select(a, scar)
    assert chosen[0].nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("k_max", [1, 2, 6, 7])
def test_no_smaller_change_than_the_margin_changes_the_selection(policy, k_max):
    """The margin is what the random models' promise of exact decisions rests on."""
    rng = torch.Generator().manual_seed(1)
    for seed in range(40):
        scar = scar_of(policy=policy, k_max=k_max, k_min=seed % 2, p=0.7, tau=0.15, capacity_factor=0.8)
        a = (2 * torch.randn(1, 9, 7, generator=rng)).softmax(-1).double()
        margin = selection_margin(a, scar)
        assert margin > 0
        # A sum of up to seven scores and a difference of two both move by less than the margin.
        for _ in range(4):
            moved = a + (torch.rand(a.shape, generator=rng) * 2 - 1) * margin / 7.01 if margin < 1 else a
            assert torch.equal(select(a, scar)[0], select(moved, scar)[0])


def test_the_margin_sees_each_kind_of_near_tie():
    near = 1e-6
    a = torch.tensor([[[0.4, 0.4 - near, 0.2 + near, 0, 0, 0, 0]]], dtype=torch.float64)
    assert selection_margin(a, scar_of(policy="top_k", k_max=1)) == pytest.approx(near)
    assert selection_margin(a, scar_of(policy="top_p", k_max=4, p=0.8 - 2 * near)) == pytest.approx(near)
    assert selection_margin(a, scar_of(policy="threshold", tau=0.2)) == pytest.approx(near)
    two = torch.cat((a, a + near), 1)
    for policy in ("expert_choice", "bidirectional"):
        assert selection_margin(two, scar_of(policy=policy, k_max=3, capacity_factor=0.5)) == pytest.approx(near)
