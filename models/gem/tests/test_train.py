import dataclasses
import json

import numpy as np
import pytest
import torch

from gem.config import GemConfig, changed
from gem.data import NO_DOMAIN, Batches, Passage, encode_split, read_passages
from gem.evaluate import measure, report
from gem.export import export
from gem.model import Gem
from gem.tokenizer import SEPARATOR, SEPARATOR_ID, train_tokenizer
from gem.train import Recipe, Trainer, losses, rate
from gem.weights import initialise, load_model, named_tensors, save_model
from small_models import model_of, plain, random_ids

RECIPE = Recipe(
    steps=6, batch_size=3, length=16, learning_rate=1e-2, warmup_steps=2, horizon_steps=6, cooldown_steps=2,
    checkpoint_every=2, evaluate_every=3, log_every=1, bf16=False,
)  # fmt: skip
CONFIG = GemConfig.from_dict(plain())


def passages(count=30, seed=0):
    """Each domain has its own ten tokens, so there is something to learn."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        domain = i % 3
        ids = rng.integers(1 + 10 * domain, 11 + 10 * domain, size=int(rng.integers(3, 30)))
        out.append(Passage(domain, ids, num_bytes=2 * len(ids)))
    return out


def weights(trainer):
    return {name: t.clone() for name, t in named_tensors(trainer.model).items()}


def test_a_fixed_number_of_modules_is_trained_and_the_configs_own_policy_is_given(tmp_path):
    recipe = dataclasses.replace(RECIPE, fixed_modules=2)
    trainer = Trainer(CONFIG, recipe, passages(), passages(4, 1), tmp_path / "fixed")
    model = trainer.run()
    rows = [json.loads(r) for r in (tmp_path / "fixed" / "log.jsonl").read_text().splitlines()]
    assert [r["modules_per_token"] for r in rows] == [2] * 6
    assert model.config == CONFIG and CONFIG.scar.policy == "top_p"
    # What is logged of the valid split is the model's that is given.
    assert rows[-1]["valid_bits_per_byte"] == round(measure(model, passages(4, 1)).bits_per_byte(), 5)
    # The same weights as of a model whose policy is that number.
    fixed = changed(CONFIG, {"scar.policy": "top_k", "scar.k_max": 2})
    same = Trainer(fixed, RECIPE, passages(), [], tmp_path / "same").run()
    assert same.config == fixed
    for name, t in named_tensors(same).items():
        assert torch.equal(t, named_tensors(model)[name]), name
    Trainer(CONFIG, recipe, passages(), [], tmp_path / "fixed")  # continues its own run
    (tmp_path / "fixed" / "tokenizer.json").write_text("{}")
    export(tmp_path / "fixed", tmp_path / "out", "fp32")
    assert load_model(tmp_path / "out").config == CONFIG


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, bf16):
    recipe = dataclasses.replace(RECIPE, bf16=bf16)
    whole = Trainer(CONFIG, recipe, passages(), passages(4, 1), tmp_path / "whole")
    start = weights(whole)
    whole.run()
    Trainer(CONFIG, recipe, passages(), passages(4, 1), tmp_path / "parts").run(until=3)
    resumed = Trainer(CONFIG, recipe, passages(), passages(4, 1), tmp_path / "parts")
    assert resumed.step == 3
    resumed.run()
    for name, t in weights(whole).items():
        assert torch.equal(t, weights(resumed)[name]), name
        assert not torch.equal(t, start[name]), f"{name} was not trained"
    log = [[json.loads(r) for r in (tmp_path / d / "log.jsonl").read_text().splitlines()] for d in ("whole", "parts")]
    for rows in log:
        assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
        for r in rows:
            del r["tokens_per_s"]
    assert log[0] == log[1]
    assert "valid_bits_per_byte" in log[0][2] and "valid_bits_per_byte" not in log[0][3]


def test_rows_after_the_checkpoint_are_written_again(tmp_path):
    trainer = Trainer(CONFIG, RECIPE, passages(), [], tmp_path)
    trainer.run(until=2)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write(json.dumps({"step": 3}) + "\n")
    Trainer(CONFIG, RECIPE, passages(), [], tmp_path).run(until=4)
    steps = [json.loads(r)["step"] for r in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_another_recipe_does_not_continue_a_run(tmp_path):
    Trainer(CONFIG, RECIPE, passages(), [], tmp_path).run(until=1)
    with pytest.raises(ValueError, match="checkpoint.pt: wanted the recipe"):
        Trainer(CONFIG, dataclasses.replace(RECIPE, seed=1), passages(), [], tmp_path)


def test_training_learns_the_domains_and_the_text(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=60, horizon_steps=60, evaluate_every=1000, checkpoint_every=1000)
    trainer = Trainer(CONFIG, recipe, passages(60), [], tmp_path)
    before = report(trainer.model, measure(trainer.model, passages(12, 1)))
    trainer.run()
    after = report(trainer.model, measure(trainer.model, passages(12, 1)))
    assert after["token_router_accuracy"]["mean"] > 0.95 > before["token_router_accuracy"]["mean"]
    assert after["bits_per_byte"]["mean"] < 0.85 * before["bits_per_byte"]["mean"]


def test_the_trainer_s_forward_is_the_reference_s(tmp_path):
    """What is trained, once exported, is the same function in the reference implementation."""
    trainer = Trainer(CONFIG, RECIPE, passages(), [], tmp_path / "run")
    trainer.run(until=3)
    save_model(trainer.model, tmp_path / "model", "fp32")
    reference = load_model(tmp_path / "model")
    assert trainer.model.fast and not reference.fast
    ids = torch.cat([random_ids(CONFIG, 20, seed) for seed in range(3)])
    with torch.no_grad():
        a = trainer.model(ids)
    b = reference(ids)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.domains, b.domains, atol=1e-4, rtol=0)
    for r, s in zip(a.routing, b.routing):
        assert torch.equal(r.modules, s.modules)


def test_fast_and_plain_gradients_agree():
    batch = Batches(passages(), 2, 12, seed=0)[0]
    gradients = []
    for fast in (False, True):
        model = Gem(CONFIG, fast=fast)
        initialise(model, 3)
        losses(model(batch.ids), batch, RECIPE)["total"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, g in gradients[0].items():
        assert g.abs().max() > 0, name
        torch.testing.assert_close(g, gradients[1][name], atol=1e-5, rtol=1e-3)


def test_only_labels_train_the_token_router():
    batch = Batches(passages(), 2, 12, seed=0)[0]
    model = Gem(CONFIG)
    initialise(model, 0)
    losses(model(batch.ids), batch, dataclasses.replace(RECIPE, domain_weight=0.0))["total"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.token_router.parameters())


def test_balance_is_least_when_even():
    def balance(a, modules):
        model_out = model_of(plain())(random_ids(CONFIG, 8))
        for r in model_out.routing:
            r.scores, r.modules = a[None], modules[None]
        return losses(model_out, Batches(passages(), 1, 8, 0)[0], RECIPE)["balance"].item()

    even = balance(torch.full((8, 7), 1 / 7), torch.ones(8, 7, dtype=torch.bool))
    one = torch.zeros(8, 7)
    one[:, 2] = 1
    assert even == pytest.approx(1)
    assert balance(one, one.bool()) == pytest.approx(7)


def test_rate():
    recipe = dataclasses.replace(RECIPE, steps=1000, warmup_steps=10, horizon_steps=110, cooldown_steps=0)
    assert rate(recipe, 0) == pytest.approx(1e-3)
    assert rate(recipe, 9) == rate(recipe, 10) == pytest.approx(1e-2)
    assert rate(recipe, 60) == pytest.approx(1e-2 * (0.05 + 0.95 * 0.5))
    assert rate(recipe, 110) == rate(recipe, 500) == pytest.approx(5e-4)
    cooled = dataclasses.replace(recipe, steps=80, cooldown_steps=20)
    assert [rate(cooled, s) for s in range(61)] == [rate(recipe, s) for s in range(61)]
    assert rate(cooled, 70) == pytest.approx(rate(recipe, 70) * (0.05 + 0.95 * 0.5))
    assert rate(cooled, 80) == pytest.approx(rate(recipe, 80) * 0.05)


def test_batches_carry_every_token_once_with_its_domain():
    given = passages()
    batches = Batches(given, batch_size=2, length=10, seed=5)
    ids = torch.cat([batches[s].ids.flatten() for s in range(batches.steps_per_epoch)])
    domains = torch.cat([batches[s].domains.flatten() for s in range(batches.steps_per_epoch)])
    total = sum(len(p.ids) + 1 for p in given)
    assert total - 21 <= len(ids) < total
    assert torch.equal(ids == SEPARATOR_ID, domains == NO_DOMAIN)
    assert torch.equal(domains[ids > 0], (ids[ids > 0] - 1) // 10)
    first = batches[0]
    assert torch.equal(first.ids.flatten()[1:], first.targets.flatten()[:-1])
    assert not torch.equal(batches[batches.steps_per_epoch].ids, first.ids), "each epoch has its own order"
    assert torch.equal(Batches(given, 2, 10, seed=5)[0].ids, first.ids)


def test_measure_equals_one_passage_at_a_time():
    model = model_of(plain())
    given = passages(9, 2)
    together = measure(model, given, batch_size=4)
    alone = [measure(model, [p]) for p in given]
    for field in dataclasses.fields(together):
        torch.testing.assert_close(getattr(together, field.name), sum(getattr(t, field.name) for t in alone))
    # Against the definition, for one passage.
    p = given[3]
    ids = torch.tensor([[SEPARATOR_ID, *p.ids.tolist()]])
    out = model(ids)
    nats = -out.logits[0].double().log_softmax(-1)[torch.arange(len(p.ids)), ids[0, 1:]].sum()
    assert alone[3].bits.sum().item() == pytest.approx(nats.item() / np.log(2), rel=1e-6)
    assert alone[3].num_bytes.tolist()[p.domain] == p.num_bytes
    used = out.routing[1].modules[0, 1:].sum(-1)
    assert torch.equal(alone[3].module_counts[p.domain, 1], torch.bincount(used, minlength=8))
    assert torch.equal(alone[3].module_visits[p.domain, 1], out.routing[1].modules[0, 1:].sum(0))


def test_report_counts_every_token():
    given = passages(9, 2)
    model = model_of(plain())
    told = report(model, measure(model, given))
    tokens = sum(len(p.ids) for p in given)
    assert sum(told["num_tokens"].values()) == tokens
    assert sum(told["modules_per_token"]["histogram"]) == tokens * 2
    mean = sum(i * n for i, n in enumerate(told["modules_per_token"]["histogram"])) / (2 * tokens)
    assert told["modules_per_token"]["mean"] == pytest.approx(mean, abs=1e-4)


def corpus(folder):
    text = {"law": "The court held; the court fined.", "stem": "Sei Größe x₁ = 2.", "finance": "A rate of 3 %.\nUp."}
    for domain, sentence in text.items():
        for split in ("train", "valid", "test"):
            body = "\n\n".join(f"{sentence} {i}" for i in range(40))
            (folder / f"{domain}.{split}.txt").write_text(body + "\n", encoding="utf-8")
    return tuple(text)


def test_tokenizer_reads_every_byte_and_adds_nothing(tmp_path):
    domains = corpus(tmp_path)
    texts = [t for d in domains for t in read_passages(tmp_path, d, "train")]
    assert len(texts) == 120 and texts[0].endswith(" 0") and "\n" in texts[-1]
    tokenizer = train_tokenizer(texts, 300)
    assert tokenizer.get_vocab_size() == 300 and tokenizer.token_to_id(SEPARATOR) == SEPARATOR_ID == 0
    for text in (*texts, "", " leading", "\x00 日本語 🦀 \r\n\t"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("a").ids == tokenizer.encode("a", add_special_tokens=False).ids
    assert train_tokenizer(texts, 300).to_str() == tokenizer.to_str()
    with pytest.raises(ValueError, match="wanted 9000 pieces"):
        train_tokenizer(texts, 9000)
    for p in encode_split(tmp_path, domains, "valid", tokenizer):
        assert SEPARATOR_ID not in p.ids and p.num_bytes == len(tokenizer.decode(p.ids.tolist()).encode())


def test_export_of_a_checkpoint(tmp_path):
    trainer = Trainer(CONFIG, RECIPE, passages(), [], tmp_path / "run")
    trainer.run(until=2)
    (tmp_path / "run" / "tokenizer.json").write_text("{}")
    assert export(tmp_path / "run", tmp_path / "out", "fp16") == 2
    for name, t in named_tensors(load_model(tmp_path / "out")).items():
        assert torch.equal(t, named_tensors(trainer.model)[name].half().float())
    assert (tmp_path / "out" / "tokenizer.json").exists()
