import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gem.config import GemConfig, GenerationError
from gem.margins import routing_margin
from gem.model import Cache, generate_greedy
from gem.weights import named_tensors
from loop_model import LoopModel
from small_models import model_of, odd_configs, plain, random_ids


def same_routing(a, b):
    for r, s in zip(a, b):
        assert torch.equal(r.modules, s.modules) and torch.equal(r.clusters, s.clusters)
        torch.testing.assert_close(r.gates, s.gates, atol=1e-5, rtol=1e-4)


@settings(max_examples=80)
@given(odd_configs(), st.integers(1, 9), st.integers(0, 99))
def test_model_equals_the_loop_model(config, length, seed):
    model = model_of(config, seed)
    ids = random_ids(config, length, seed)
    out = model(ids)
    if config.scar.num_clusters > 1 and config.token_router is not None:
        assume(routing_margin(out.routing, config.scar) > 1e-5)
    wanted = LoopModel(config, {k: v.numpy() for k, v in named_tensors(model).items()})(ids[0].tolist())
    np.testing.assert_allclose(out.domains[0], wanted["domains"], atol=1e-5)
    for routing, chosen, gates in zip(out.routing, wanted["chosen"], wanted["gates"]):
        assert [set(row.nonzero().flatten().tolist()) for row in routing.modules[0]] == chosen
        np.testing.assert_allclose(routing.gates[0], gates, atol=1e-5)
    name = "logits" if out.logits is not None else "output"
    got = (out.logits if name == "logits" else out.output)[0].numpy()
    np.testing.assert_allclose(got, wanted[name], atol=2e-4, rtol=1e-4)


@settings(max_examples=40)
@given(odd_configs(generating=True), st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_cached_decoding_equals_full_recomputation(config, chunks, seed):
    """Prefill in chunks of any size, single tokens among them."""
    model = model_of(config, seed)
    ids = random_ids(config, sum(chunks), seed)
    full = model(ids)
    if config.scar.num_clusters > 1:
        assume(routing_margin(full.routing, config.scar) > 1e-5)
    cache, done = Cache(config), 0
    for chunk in chunks:
        part = model(ids[:, done : done + chunk], cache)
        torch.testing.assert_close(part.logits, full.logits[:, done : done + chunk], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.domains, full.domains[:, done : done + chunk], atol=1e-5, rtol=1e-4)
        for i, routing in enumerate(part.routing):
            assert torch.equal(routing.modules, full.routing[i].modules[:, done : done + chunk])
        done += chunk
    assert cache.num_tokens == done


def test_greedy_equals_asking_for_the_whole_sequence_each_time():
    model = model_of(plain({"tie_word_embeddings": False}))
    ids = random_ids(model.config, 5)
    greedy = generate_greedy(model, ids[0], 12)
    for token, margin in zip(greedy.tokens, greedy.margins):
        best = model(ids).logits[0, -1].topk(2)
        assert best.indices[0] == token
        assert best.values[0] - best.values[1] == pytest.approx(float(margin), abs=1e-4)
        ids = torch.cat((ids, token.view(1, 1)), 1)
    assert len(set(greedy.tokens.tolist())) > 3


@settings(max_examples=30)
@given(odd_configs(), st.integers(1, 9))
def test_a_batch_is_its_sequences(config, length):
    model = model_of(config)
    ids = torch.cat([random_ids(config, length, seed) for seed in range(3)])
    both = model(ids)
    for i in range(3):
        alone = model(ids[i : i + 1])
        if config.scar.num_clusters > 1 and config.token_router is not None:
            assume(routing_margin(alone.routing, config.scar) > 1e-5)
        one, all_ = (alone.output, both.output) if alone.logits is None else (alone.logits, both.logits)
        torch.testing.assert_close(one[0], all_[i], atol=1e-4, rtol=1e-4)


@settings(max_examples=30)
@given(odd_configs(), st.integers(1, 9))
def test_fast_changes_nothing(config, length):
    model = model_of(config)
    ids = random_ids(config, length)
    slow = model(ids)
    if config.scar.num_clusters > 1 and config.token_router is not None:
        assume(routing_margin(slow.routing, config.scar) > 1e-5)
    model.fast = True
    fast = model(ids)
    same_routing(slow.routing, fast.routing)
    a, b = (slow.output, fast.output) if slow.logits is None else (slow.logits, fast.logits)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_modules_run_on_their_tokens_alone():
    """A module whose weights are not numbers spoils exactly the tokens that visit it."""
    model = model_of(plain({"num_hidden_layers": 1, "attention.window": 1, "attention.sinks": 0, "attention.cluster_cap": 0}))
    ids = random_ids(model.config, 12)
    visits = model(ids).routing[0].modules[0, :, 2]
    assert 0 < visits.sum() < 12
    model.layers[0].domain_modules.up.data[2] = float("nan")
    assert torch.equal(model(ids).logits[0].isnan().any(-1), visits)


def test_no_module_chosen_leaves_the_general_path():
    changes = {"scar.policy": "threshold", "scar.tau": 1, "num_hidden_layers": 1}
    model = model_of(plain(changes))
    ids = random_ids(model.config, 6)
    before = model(ids)
    assert not before.routing[0].modules.any()
    for weights in (model.layers[0].domain_modules.down, model.layers[0].scar.values):
        weights.data.fill_(float("nan"))
    model.layers[0].scar.values.data.zero_()
    assert torch.equal(model(ids).logits, before.logits)


def test_tokens_after_change_nothing_before_when_causal():
    model = model_of(plain())
    ids = random_ids(model.config, 9)
    other = ids.clone()
    other[0, 6:] = (other[0, 6:] + 1) % model.config.vocab_size
    a, b = model(ids).logits, model(other).logits
    torch.testing.assert_close(a[:, :6], b[:, :6])
    assert not torch.allclose(a[:, 6:], b[:, 6:])


def test_router_window_counts_the_token_itself():
    model = model_of(plain({"token_router.num_layers": 1, "token_router.window": 3}))
    ids = random_ids(model.config, 9)
    other = ids.clone()
    other[0, 2] = (other[0, 2] + 1) % model.config.vocab_size
    changed = (model(ids).domains != model(other).domains).any(-1)[0]
    assert changed.tolist() == [False, False, True, True, True, False, False, False, False]


def test_cache_is_refused_where_generating_is():
    model = model_of(plain({"scar.policy": "expert_choice"}))
    ids = random_ids(model.config, 3)
    assert model(ids).logits.shape == (1, 3, 31)
    with pytest.raises(GenerationError, match="expert_choice"):
        model(ids, Cache(model.config))
    with pytest.raises(GenerationError, match="expert_choice"):
        generate_greedy(model, ids[0], 1)


def test_bad_ids_are_named():
    model = model_of(plain({"max_position_embeddings": 8}))
    with pytest.raises(ValueError, match="wanted 0 to 30 .vocab_size., found 5 to 31"):
        model(torch.tensor([[5, 31]]))
    with pytest.raises(ValueError, match="at most 8 tokens .max_position_embeddings., found 9"):
        model(random_ids(model.config, 9))
    with pytest.raises(ValueError, match="at least one token"):
        model(torch.zeros(1, 0, dtype=torch.int64))
    cache = Cache(model.config)
    model(random_ids(model.config, 8), cache)
    with pytest.raises(ValueError, match="found 9"):
        model(torch.tensor([[1]]), cache)


def test_embedding_has_length_one():
    model = model_of(plain({"architectures": ["GemModel"]}))
    assert model(random_ids(model.config, 4)).output.norm().item() == pytest.approx(1, abs=1e-6)


def test_domain_bias_prefers_the_domain_s_modules():
    """With a large λ every chosen module belongs to the likeliest domain, as long as it has enough of them."""
    changes = {"scar.lambda": 50, "scar.policy": "top_k", "scar.k_max": 2, "scar.k_min": 0}
    config = GemConfig.from_dict(plain(changes))
    out = model_of(config)(random_ids(config, 10))
    for token in range(10):
        chosen = out.routing[0].modules[0, token].nonzero().flatten()
        assert {config.domain_of_cluster(int(c)) for c in chosen} == {int(out.domains[0, token].argmax())}
