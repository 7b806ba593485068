"""What gem.evaluate measures of routing, against closed forms and definitions; the distillation weights and loss."""

import argparse
import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gem.config import ConfigError
from gem.data import Passage, cut, domains_of, read_passages, some
from gem.evaluate import change, evaluate, tables
from gem.preservation import FineTuner, Preservation, distillation_weights, divergence
from gem.routing_figures import CONTEXT_LENGTHS, independent_bias_bits, mutual_information, plug_in_bits
from gem.study import made_up
from gem.tokenizer import SEPARATOR_ID, train_tokenizer
from gem.train_command import planned, train_on
from gem.presets import RECIPES
from gem.train import Recipe
from gem.weights import WeightsError, load_model, save_model
from small_models import model_of, plain

MODELS = Path(__file__).resolve().parents[2]


def test_mutual_information_in_closed_form():
    assert plug_in_bits(torch.eye(4, dtype=torch.int64) * torch.tensor([5, 1, 70, 2])) == pytest.approx(2)
    assert plug_in_bits(torch.tensor([[3, 6, 9], [1, 2, 3]])) == pytest.approx(0, abs=1e-12)
    # Two domains, p(c|d) = (3/4, 1/4) and (1/4, 3/4): 1 − H(1/4) bits, however many tokens either domain has.
    h = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert plug_in_bits(torch.tensor([[3, 1], [100, 300]])) == pytest.approx(1 - h)
    assert plug_in_bits(torch.zeros(3, 4, dtype=torch.int64)) == 0
    assert plug_in_bits(torch.tensor([[1, 1], [0, 0]])) == pytest.approx(0, abs=1e-12)


def test_the_stated_bias_is_the_bias_of_independent_visits():
    rng = np.random.default_rng(0)
    draws = [plug_in_bits(torch.from_numpy(rng.multinomial(300, [1 / 6] * 6, size=4))) for _ in range(300)]
    stated = independent_bias_bits(torch.full((4, 6), 50))
    assert stated == pytest.approx(3 * 5 / (2 * 1200 * math.log(2)))
    assert np.mean(draws) == pytest.approx(stated, rel=0.1)


def test_shuffling_passages_tells_bias_that_tokens_cannot():
    """Each passage visits one module, whatever its domain: nothing is known of the domain, though it seems so."""
    rng = np.random.default_rng(1)
    labels = torch.arange(40) % 4
    visits = torch.zeros(40, 6, dtype=torch.int64)
    visits[torch.arange(40), torch.from_numpy(rng.integers(0, 6, 40))] = 100
    told = mutual_information(labels, visits, 4)
    assert told["bits"] > 0.15 and told["bits"] == pytest.approx(told["shuffled_bits"], rel=0.6)
    assert told["independent_bias_bits"] < 0.01 and told["most_possible_bits"] == 2


def test_evaluate_is_the_definition():
    model = model_of(plain({"max_position_embeddings": 600}))
    rng = np.random.default_rng(3)
    passages = [Passage(i % 3, rng.integers(1, 31, int(n)), 2 * int(n)) for i, n in enumerate([1, 2, 5, 9, 33, 300, 16, 70])]
    told = evaluate(model, passages)
    hits, keys, total = {n: [] for n in CONTEXT_LENGTHS}, torch.zeros(2), 0
    visits = torch.zeros(3, 2, 7, dtype=torch.int64)
    for p in passages:
        out = model(torch.tensor([[SEPARATOR_ID, *p.ids.tolist()]]))
        for n in CONTEXT_LENGTHS:
            if len(p.ids) >= n:
                hits[n].append((p.domain, int(out.domains[0, n].argmax()) == p.domain))
        for layer, r in enumerate(out.routing):
            visits[p.domain, layer] += r.modules[0, 1:].sum(0)
            keys[layer] += model.layers[0].mask(r.clusters, len(p.ids) + 1)[0, 1:].sum()
        total += len(p.ids)
    for row in told["router_accuracy_by_context"]:
        of = hits[row["tokens"]]
        assert row["passages"] == len(of) == sum(row["passages_by_domain"].values())
        by_domain = [np.mean([h for d, h in of if d == k]) for k in range(3) if any(d == k for d, _ in of)]
        assert row["mean"] == pytest.approx(np.mean(by_domain), abs=1e-4)
    for layer in range(2):
        assert told["mutual_information"][layer]["bits"] == pytest.approx(plug_in_bits(visits[:, layer]), abs=1e-4)
        assert told["attended_keys_by_layer"][layer] == pytest.approx(float(keys[layer]) / total, abs=0.01)
    assert "| 256 | 1 |" in tables(told)


def test_another_value_of_the_config_is_measured_on_the_same_weights(tmp_path):
    save_model(model_of(plain()), tmp_path, "fp32")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    for k in (1, 2, 7):
        model = load_model(tmp_path, changes=dict([change("scar.policy=top_k"), change(f"scar.k_max={k}")]))
        assert model(ids).routing[0].modules.sum(-1).unique().tolist() == [k]
    for wrong, found in (("scar.kmax=2", "scar.kmax"), ("nothing.k=2", "nothing.k"), ("hidden_size.k=2", "a key")):
        with pytest.raises(ConfigError, match=found):
            load_model(tmp_path, changes=dict([change(wrong)]))
    with pytest.raises(WeightsError, match="wanted shape"):
        load_model(tmp_path, changes=dict([change("scar.num_clusters=8")]))
    with pytest.raises(argparse.ArgumentTypeError, match="KEY=VALUE"):
        change("scar.p")


def test_without_a_token_router_there_is_no_accuracy():
    model = model_of(plain({"token_router": None}))
    told = evaluate(model, [Passage(0, np.arange(1, 9), 8), Passage(2, np.arange(3, 20), 17)])
    assert told["router_accuracy_by_context"] is None
    assert "tokens read" not in tables(told) and "| law |" in tables(told)


def test_cut_keeps_every_token_and_byte(tmp_path):
    made_up.write_corpus(tmp_path, ("law", "stem"))
    texts = read_passages(tmp_path, "law", "train")
    tokenizer = train_tokenizer(texts, 300)
    given = [Passage(1, np.array(tokenizer.encode(t).ids), len(t.encode())) for t in (*texts[:5], "Größe 日本 🦀 " * 9)]
    pieces = cut(given, 7, tokenizer)
    assert max(len(p.ids) for p in pieces) == 7
    assert np.array_equal(np.concatenate([p.ids for p in pieces]), np.concatenate([p.ids for p in given]))
    assert sum(p.num_bytes for p in pieces) == sum(p.num_bytes for p in given)
    assert cut(given, 10_000, tokenizer) == given


def test_some_takes_all_domains_in_turn():
    given = [Passage(d, np.full(n, d + 1), n) for d, n in ((0, 5), (0, 6), (0, 7), (1, 8), (1, 9), (2, 4))]
    assert [(p.domain, p.num_bytes) for p in some(given, 24)] == [(0, 5), (1, 8), (2, 4), (0, 6)]
    assert some(given, None) is given and len(some(given, 1)) == 1 and len(some(given, 1000)) == 6


def test_domains_are_the_files(tmp_path):
    made_up.write_corpus(tmp_path, ("stem", "law"))
    assert domains_of(tmp_path) == ("law", "stem")
    (tmp_path / "law.test.txt").unlink()
    with pytest.raises(ValueError, match="wanted law.test.txt"):
        domains_of(tmp_path)
    with pytest.raises(ValueError, match="found none"):
        domains_of(tmp_path / "nowhere")


# Distillation


def test_weights_follow_what_was_lost():
    lost = torch.tensor([0.5, 0.0, 0.03, -0.2])
    w = distillation_weights(lost, target=0, weight=2.0, floor=0.01)
    assert w.tolist() == pytest.approx([0, 2 * 0.01 / 0.06, 2 * 0.04 / 0.06, 2 * 0.01 / 0.06])
    assert distillation_weights(torch.zeros(4), 2, 3.0, 0.01).tolist() == pytest.approx([1, 1, 0, 1])
    assert not distillation_weights(torch.zeros(4), 2, 0.0, 0.01).any()
    assert not distillation_weights(torch.zeros(1), 0, 1.0, 0.01).any()


def test_divergence_by_hand():
    known = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]).log()
    new = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log()
    assert divergence(known, new).tolist() == pytest.approx([(0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2])
    assert divergence(known + 3, known).item() == pytest.approx(0, abs=1e-6)


def fine_tuner(folder, weight, learning_rate=1e-2):
    rng = np.random.default_rng(0)
    passages = [Passage(d, rng.integers(1 + 10 * d, 11 + 10 * d, 20), 20) for d in (0, 1, 2) for _ in range(20)]
    recipe = Recipe(8, 2, 16, learning_rate, 1, 8, 0, bf16=False, checkpoint_every=100, log_every=1)
    teacher = model_of(plain())
    preservation = Preservation("stem", weight, refresh_every=3, length=12)
    return teacher, FineTuner(teacher, preservation, recipe, passages, passages[::5], folder)


def test_fine_tuning_starts_from_the_teacher_and_leaves_its_router(tmp_path):
    teacher, tuner = fine_tuner(tmp_path, 2.0)
    first = tuner._terms()
    assert first["distillation"].item() == pytest.approx(0, abs=1e-6)
    assert first["total"].item() == pytest.approx(first["next_token"].item(), abs=1e-5)
    tuner.run()
    assert tuner.weights[1] == 0 and tuner.weights.sum().item() == pytest.approx(2)
    for (name, old), new in zip(teacher.state_dict().items(), tuner.model.state_dict().values()):
        # Weight decay alone moves a parameter that has a gradient of 0; the token router has none at all.
        assert torch.equal(old, new) == name.startswith("token_router."), name


def test_distillation_keeps_what_plain_fine_tuning_forgets(tmp_path):
    lost = {}
    for weight in (0.0, 20.0):
        _, tuner = fine_tuner(tmp_path / str(weight), weight)
        before = tuner._probe_bits(tuner.teacher)
        tuner.run()
        lost[weight] = tuner._probe_bits(tuner.model) - before
    assert lost[0.0][1] < 0 and lost[20.0][1] < 0
    assert lost[20.0][[0, 2]].mean() < 0.7 * lost[0.0][[0, 2]].mean()


# Commands


def test_a_model_of_one_s_own_text(tmp_path):
    made_up.write_corpus(tmp_path / "text", ("cooking", "chess"))
    figures = train_on(tmp_path / "text", "gem-tiny", 0.05, tmp_path / "out", progress=False)
    model = load_model(tmp_path / "out")
    assert model.config.domain_names == ("chess", "cooking")
    assert set(figures["bits_per_byte"]) == {"mean", "chess", "cooking"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "evaluation.json", "run"
    }  # fmt: skip
    again = train_on(tmp_path / "text", "gem-tiny", 0.1, tmp_path / "out", progress=False)
    assert set(again) == set(figures)


def test_a_planned_schedule_keeps_its_shape():
    recipe = RECIPES["gem-mini"]
    half = planned(recipe, 1800)
    assert (half.steps, half.warmup_steps, half.horizon_steps, half.cooldown_steps) == (1800, 50, 1800, 200)
    assert dataclasses.replace(planned(recipe, 3600), evaluate_every=0, log_every=0) == dataclasses.replace(
        recipe, evaluate_every=0, log_every=0
    )
    assert planned(recipe, 15000).warmup_steps == 100
    assert planned(recipe, 10).log_every == 1


@pytest.mark.parametrize("place", [MODELS, MODELS / "gem"])
def test_commands_are_found_from_models_and_from_the_package_s_folder(place):
    found = "import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module(MODULE, run_name='__main__')"
    code = "\n".join(
        f"try:\n    MODULE = 'gem.{m}'; {found}\nexcept SystemExit as end:\n    assert end.code == 0"
        for m in ("evaluate", "train", "study")
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("usage: ") == 3, done.stderr
