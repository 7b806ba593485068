"""The study's figures against hand-computed ones, its baselines' sizes, and a whole smoke run."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from gem.config import ConfigError, GemConfig, changed
from gem.cost import module_parameters, token_cost, total_parameters, touched_parameters
from gem.model import Gem
from gem.presets import DOMAINS, PRESETS, RECIPES, preset
from gem.study import made_up, metrics, speed, tables
from gem.study.__main__ import study
from gem.study.plan import BUNDLED, ROUTED, full_plan, smoke_plan
from gem.study.plots import Scale
from gem.study.runs import Text, execute, trainer_of
from gem.train import while_training
from gem.variants import ABLATIONS, ablations, dense_active, dense_recipe, dense_total, is_dense, silence_modules
from gem.weights import count_parameters, load_model, named_tensors, save_model
from small_models import model_of, plain, random_ids
from test_reference import MINI

# Metrics, D = 3: rows fine-tuned on, columns measured.
M = np.array([[4.0, 1.0, 2.0], [2.0, 5.0, 1.0], [1.0, 2.0, 8.0]])


def test_dsi_by_hand():
    assert metrics.domain_specialization_index(M) == pytest.approx([(4 - 1.5) / 4, (5 - 1.5) / 5, (8 - 1.5) / 8])


def test_gg_by_hand():
    assert metrics.generalization_gap(M) == pytest.approx((2.5 + 3.5 + 6.5) / 3)


def test_cdtr_by_hand():
    wanted = [[1, 1 / 5, 2 / 8], [2 / 4, 1, 1 / 8], [1 / 4, 2 / 5, 1]]
    np.testing.assert_allclose(metrics.cross_domain_transfer(M), wanted)


def test_gain_and_forgetting_by_hand():
    base = np.array([2.0, 2.0, 4.0])
    bits = np.array([[1.5, 2.5, 4.5], [2.1, 1.0, 4.3], [1.8, 2.0, 3.0]])
    assert metrics.gain(bits, base) == pytest.approx([0.5, 1.0, 1.0])
    assert metrics.forgetting(bits, base) == pytest.approx([0.5, 0.2, -0.1])
    kept = np.array([[1.6, 2.2, 4.2], [2.0, 1.1, 4.0], [2.0, 2.0, 3.1]])
    shares = metrics.preservation(bits, kept, base)
    assert shares["gain_kept"] == pytest.approx(2.2 / 2.5)
    assert shares["less_forgetting"] == pytest.approx(1 - 0.2 / 0.6)
    assert metrics.preservation(np.tile(base, (3, 1)), kept, base) == {"less_forgetting": None, "gain_kept": None}
    assert metrics.scores(bits)[0] == pytest.approx([8 / 1.5, 8 / 2.5, 8 / 4.5])


# Configurations


def test_presets_are_what_they_are_said_to_be():
    assert total_parameters(preset("gem-tiny")) < 1_000_000
    assert total_parameters(preset("gem-tiny", DOMAINS)) < 1_000_000
    assert set(PRESETS) == set(RECIPES)
    few = preset("gem-mini", ("cooking", "chess"), vocab_size=600)
    assert (few.num_domains, few.scar.num_clusters, few.vocab_size) == (2, 16, 600)
    many = preset("gem-tiny", [f"d{i}" for i in range(20)])
    assert many.scar.num_clusters == 40
    with pytest.raises(ConfigError, match="scar.kmax"):
        changed(few, {"scar.kmax": 2})


def test_touched_parameters_by_hand():
    """PLAIN: V 31, d 20, 2 layers, 7 clusters, module size 5, memory of 5; router size 12, 2 layers, window 4."""
    config = GemConfig.from_dict(plain())
    total = count_parameters(Gem(config))
    assert total_parameters(config) == total
    assert module_parameters(config) == 3 * 20 * 5
    idle = 7 - 2.5
    assert touched_parameters(config, 2.5) == total - 2 * idle * (300 + 5) - 30 * 12
    assert touched_parameters(config, 7) == total - 30 * 12
    cost = token_cost(config, 2.5, attended_keys=9)
    # Keys and values: 2 blocks of 9 keys, 1 head of 6; 2 router layers of 4 keys of 12; 2 bytes a number.
    assert cost.bytes_touched == 2 * cost.touched_parameters + 2 * (2 * 9 * 2 * 6) + 2 * (2 * 4 * 2 * 12)
    vectors = 20 + 2 * 2 * 20 + 12 + 2 * 2 * 12
    attention = 2 * 9 * 2 * (2 * 6) + 2 * 4 * 2 * 12
    assert cost.multiply_adds == cost.touched_parameters - vectors - 12 + attention
    untied = changed(config, {"tie_word_embeddings": False, "token_router": None})
    assert touched_parameters(untied, 7) == total_parameters(untied) - 30 * 20
    vectors -= 12 + 2 * 2 * 12
    assert token_cost(untied, 7, 0).multiply_adds == touched_parameters(untied, 7) - vectors - 20


@pytest.mark.parametrize("config", [preset("gem-mini"), preset("gem-tiny"), preset("gem-tiny", DOMAINS)])
@pytest.mark.parametrize("modules", [1.0, 2.48, 3.0])
def test_dense_baselines_have_the_sizes_they_are_named_for(config, modules):
    active, total = dense_active(config, modules), dense_total(config)
    step = config.num_hidden_layers * 3 * config.hidden_size * 8
    assert abs(touched_parameters(active, 0) - touched_parameters(config, modules)) <= step / 2
    assert abs(total_parameters(total) - total_parameters(config)) <= step / 2
    assert total_parameters(active) < total_parameters(total)
    idle = active.num_hidden_layers * active.scar.num_clusters * module_parameters(active)
    assert idle / total_parameters(config) < 0.015
    assert active.domain_names == config.domain_names and is_dense(active) and is_dense(total) and not is_dense(config)
    active.check_generation()


def test_a_dense_model_visits_no_module_and_sees_as_many_keys():
    config = preset("gem-tiny")
    dense = dense_active(config, 1.5)
    model = model_of(dense)
    silence_modules(model)
    out = model(random_ids(dense, 60))
    assert not any(r.modules.any() for r in out.routing) and out.domain_logits is None
    for r in out.routing:
        assert (r.clusters == 0).all()
        keys = model.layers[0].mask(r.clusters, 60).sum(-1)
        limit = config.attention.window + config.attention.cluster_cap + config.attention.sinks
        assert keys.max() == limit


def test_a_dense_model_is_trained_without_modules_whatever_the_routed_one_is_trained_with():
    dense = dense_active(preset("gem-tiny"), 1.5)
    fixed = dataclasses.replace(RECIPES["gem-tiny"], fixed_modules=2)
    assert while_training(dense, dense_recipe(fixed)) == dense and is_dense(dense)
    assert while_training(preset("gem-tiny"), fixed).scar.k_max == 2


def test_a_dense_model_is_the_general_path_alone(tmp_path):
    """Whatever the idle modules hold, the logits are the same; and the folder is read back as any GEM's."""
    dense = dense_total(preset("gem-tiny"))
    model = model_of(dense)
    silence_modules(model)
    ids = random_ids(dense, 30)
    before = model(ids).logits
    save_model(model, tmp_path, "fp32")
    assert torch.equal(load_model(tmp_path)(ids).logits, before)
    for block in model.layers:
        block.domain_modules.down.add_(7.0)
    assert torch.equal(model(ids).logits, before)


def test_every_ablation_changes_one_thing():
    config = preset("gem-mini")
    without = ablations(config, 2.48)
    sizes = {"module_intermediate_size": 1, "intermediate_size": without["no-modules"].intermediate_size}
    changes = ABLATIONS | {"no-modules": sizes, "window-attention": {"attention.window": 128, "attention.cluster_cap": 0}}
    assert set(without) == set(changes)
    for name, change in changes.items():
        given, other = config.to_dict(), without[name].to_dict()
        flat = [{**{k: v for k, v in c.items() if not isinstance(v, dict)}, **{f"{s}.{k}": v for s in c if isinstance(c[s], dict) for k, v in c[s].items()}} for c in (given, other)]  # fmt: skip
        differing = {k for k in flat[0].keys() | flat[1].keys() if flat[0].get(k) != flat[1].get(k)}
        assert differing and all(any(d == k or d.startswith(k + ".") for k in change) for d in differing), name
    step = config.num_hidden_layers * 3 * config.hidden_size * 8
    assert abs(touched_parameters(without["no-modules"], 2.48) - touched_parameters(config, 2.48)) <= step / 2


# The driver


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("study")
    plan = smoke_plan(("law", "stem"))
    short = [dataclasses.replace(r, recipe=dataclasses.replace(r.recipe, steps=6, cooldown_steps=0)) for r in plan.runs]
    plan = dataclasses.replace(plan, runs=tuple(short), test_tokens=800, fine_tuned_test_tokens=400, probe_tokens=200)
    made_up.write_corpus(out / "corpus", ("law", "stem"))
    return plan, out, study(plan, out / "corpus", out)


def test_smoke_files_are_there_and_consistent(smoke):
    plan, out, told = smoke
    assert told == json.loads((out / "tables.json").read_text())
    assert told["missing"] == [] and len(told["trained"]) == 7 + len(ABLATIONS)
    for run in plan.runs:
        found = json.loads((out / "runs" / run.name / "evaluation.json").read_text())
        assert found["parameters"] == total_parameters(run.config)
        assert sum(found["test"]["num_tokens"].values()) <= (plan.fine_tuned_test_tokens if run.preservation else plan.test_tokens)
        model = load_model(out / "runs" / run.name / "model")
        assert model.config == run.config
        if is_dense(run.config):
            assert found["test"]["modules_per_token"]["mean"] == 0
            assert not any(named_tensors(model)[f"model.layers.{i}.scar.keys"].any() for i in range(2))
        else:
            assert found["test"]["modules_per_token"]["mean"] >= 1
    rows = {r["name"]: r for r in told["trained"]}
    assert rows["top-2"]["modules_per_token"] == 2 and rows["top-3"]["modules_per_token"] == 3
    assert rows["full-attention"]["attended_keys"] > rows[ROUTED]["attended_keys"]
    assert len({r["trained_tokens"] for r in rows.values()}) == 1
    p = told["preservation"]
    for kind in ("plain", "preserved"):
        m = np.array(p[kind]["bits_per_byte"])
        assert p[kind]["forgetting"] == pytest.approx(metrics.forgetting(m, p["base"]["bits_per_byte"]), abs=2e-4)
        assert p[kind]["gg"] == pytest.approx(metrics.generalization_gap(8 / m), abs=2e-3)
    markdown = (out / "tables.md").read_text()
    assert "A smoke run" in markdown and all(f"| {name} |" in markdown for name in rows)
    plots = sorted(path.name for path in (out / "plots").iterdir())
    assert len(plots) == 10
    for name in plots:
        assert ElementTree.parse(out / "plots" / name).getroot().tag.endswith("svg")


def test_a_finished_study_trains_nothing_again(smoke, monkeypatch):
    plan, out, told = smoke
    monkeypatch.setattr("gem.study.runs.trainer_of", None)
    assert study(plan, out / "corpus", out) == told


def test_another_plan_is_refused_the_folder(smoke):
    plan, out, _ = smoke
    first = plan.runs[0]
    other = dataclasses.replace(first, recipe=dataclasses.replace(first.recipe, seed=1))
    with pytest.raises(ValueError, match="wanted the same recipe"):
        execute(plan, other, Text.load(plan, out / "corpus", out), out)


@pytest.mark.parametrize("name", ["dense-active", "preserved-law"])
def test_a_run_that_is_stopped_ends_the_same(smoke, tmp_path, name):
    plan, out, _ = smoke
    run = next(r for r in plan.runs if r.name == name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ROUTED).symlink_to(out / "runs" / ROUTED)
    text = Text.load(plan, out / "corpus", tmp_path)
    calls = 0
    while not execute(plan, run, text, tmp_path, minutes=1e-9):
        # The deadline has passed before the first step, so each call trains nothing: take three by hand.
        trainer_of(plan, run, text, tmp_path, tmp_path / "runs" / name).run(until=3 + 3 * calls)
        calls += 1
    assert calls == 2
    one, two = (load_model(folder / "runs" / name / "model") for folder in (out, tmp_path))
    for tensor, t in named_tensors(one).items():
        assert torch.equal(t, named_tensors(two)[tensor]), tensor


def test_missing_runs_are_named(smoke, tmp_path):
    plan, out, _ = smoke
    told = tables.collect(plan, tmp_path)
    assert told["missing"] == [run.name for run in plan.runs]
    assert told["preservation"] is None and "Not run yet: routed, dense-active" in tables.render(told)


LAPIDARY = """#!/bin/sh
# Stands for the command: says how it was called, and answers with made-up figures, prefill's rate another one in each call of bench.
echo "$@" >> CALLS
case $2 in
compile) ;;
simulate)
    echo '{"phases": [{"phase": "prefill", "runs": 4, "cycles": 4000, "dram_read": 1, "energy_uj": 1},
           {"phase": "decode", "runs": 32, "cycles": 3200, "dram_read": 640, "energy_uj": 64}]}' ;;
bench)
    n=$(grep -c ' bench ' CALLS)
    printf '{"results": ['
    for artifact in "$@"; do case $artifact in *.lapis)
        printf '{"artifact": "%s", "test": "decode", "tokens_per_s": 50},' "$artifact"
        printf '{"artifact": "%s", "test": "prefill", "tokens_per_s": %s00},' "$artifact" "$n" ;;
    esac; done | sed 's/,$//'
    echo ']}' ;;
esac
"""


def test_speed_is_of_all_that_is_trained_in_medians_of_rounds_and_means_of_texts(smoke, tmp_path):
    plan, out, _ = smoke
    lapidary, calls = tmp_path / "lapidary", tmp_path / "calls"
    calls.touch()
    lapidary.write_text(LAPIDARY.replace("CALLS", str(calls)))
    lapidary.chmod(0o755)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "runs").symlink_to(out / "runs")
    test = Text.load(plan, out / "corpus", out).test
    told = speed.measure(plan, test, folder, lapidary, rounds=3)
    trained = [run.name for run in plan.runs if run.part != "preservation"]
    assert list(told["models"]) == trained
    texts = len(plan.runs[0].config.domain_names)
    for i, figures in enumerate(told["models"].values()):
        assert (figures["npu_prefill_cycles"], figures["npu_decode_cycles"], figures["npu_decode_dram_bytes"]) == (1000, 100, 20)
        assert figures["decode_tokens_per_s"] == 50
        # The stub's rate is 100 times the number of the call, and models take turns: the second of three rounds is the median.
        rates = [100 * (texts * len(trained) + t * len(trained) + i + 1) for t in range(texts)]
        assert figures["prefill_tokens_per_s"] == pytest.approx(texts / sum(1 / r for r in rates), abs=0.1)
        assert figures["prefill_tokens_per_s_of_texts"] == [rates[0], rates[-1]]
    said = calls.read_text().splitlines()
    assert len(said) == 3 * len(trained) + 3 * texts * len(trained)
    for name in trained:
        assert sum(" bench " in line and f"/{name}.lapis" in line for line in said) == 3 * texts
    prompts = np.load(folder / "speed" / "prompts.npz")
    assert len(prompts) == texts and all(len(ids) == speed.PROMPT_TOKENS for ids in prompts.values())
    assert tables.collect(plan, folder)["speed"] == told
    prefill = f"{told['models']['top-2']['prefill_tokens_per_s']:,.0f}"
    assert f"| top-2 | 50 | 1.00 × | {prefill} | 100 | 1.00 × | 1,000 | 0.000 | 2.0 |" in tables.render(tables.collect(plan, folder))


def test_what_the_command_says_is_in_the_error(tmp_path):
    broken = tmp_path / "lapidary"
    broken.write_text("#!/bin/sh\necho 'error: no such model' >&2; exit 2\n")
    broken.chmod(0o755)
    with pytest.raises(RuntimeError, match="compile.*exit code 2: error: no such model"):
        speed.call(broken, "compile", "x")


def test_only_brings_along_the_teacher():
    plan = smoke_plan()
    assert [r.name for r in plan.named(["preserved-law"])] == [ROUTED, "preserved-law"]
    assert [r.name for r in plan.named(["top-2", "dense-total"])] == ["dense-total", "top-2"]
    with pytest.raises(ValueError, match="--only: wanted one of routed"):
        plan.named(["nothing"])


def test_the_full_plan_trains_all_on_the_same_tokens():
    plan = full_plan(MINI, seeds=2)
    trained = [r for r in plan.runs if r.part in ("routing", "ablation")]
    assert len(trained) == 2 * (7 + len(ABLATIONS)) and len(plan.runs) == len(trained) + 3 + 16
    assert [(r.name, r.given) for r in plan.runs if r.given] == [(BUNDLED, MINI)]
    schedule = {(r.recipe.steps, r.recipe.batch_size, r.recipe.length, r.recipe.learning_rate) for r in trained}
    assert schedule == {(1500, 12, 384, 3e-3)}
    fixed = {r.name for r in trained if r.recipe.fixed_modules}
    assert fixed == {"two-while-training", "two-while-training.seed1"}
    bundled = {r.name: r for r in plan.runs if r.part == "bundled"}
    assert set(bundled) == {BUNDLED, f"{BUNDLED}.dense-active", f"{BUNDLED}.dense-total"}
    assert {r.recipe.steps for r in bundled.values()} == {3600}
    assert [is_dense(r.config) for r in bundled.values()] == [False, True, True]


def test_share_of_visits_to_modules_of_the_own_domain_by_hand():
    """Two domains, five modules: 0, 2 and 4 are the first domain's."""
    assert tables.own_domain_share([[1, 2, 3, 4, 0], [1, 1, 1, 1, 0]]) == pytest.approx((0.4 + 0.5) / 2)
    assert tables.own_domain_share([[0, 0], [0, 0]]) is None


def test_models_are_compared_with_the_routed_one_of_their_seed_and_schedule():
    def row(name, seed, bits, part="routing"):
        return {"name": name, "part": part, "seed": seed, "bits_per_byte": {"mean": bits, "law": bits}}

    rows = [row(ROUTED, 0, 2.0), row("top-2", 0, 1.9), row("routed.seed1", 1, 1.6), row("top-2.seed1", 1, 1.8)]
    shares = [line.split(" | ")[2] for line in tables.bits_table(rows, ["law"]).splitlines()[2:]]
    assert shares == ["+0.0 %", "-5.0 %", "+0.0 %", "+12.5 %"]
    assert "| top-2.seed1 | 1.800 | – |" in tables.bits_table(rows[3:], ["law"])
    assert tables.seeds_table(rows).splitlines()[2:] == [
        "| routed | 2.0000 | 1.6000 | 1.8000 | 0.4000 |",
        "| top-2 | 1.9000 | 1.8000 | 1.8500 | 0.1000 |",
    ]
    assert tables.seeds_table(rows[:2]) is None
    longer = [*rows, row(BUNDLED, 0, 1.0, "bundled"), row(f"{BUNDLED}.dense-total", 0, 1.1, "bundled")]
    assert "| gem-mini.dense-total | 1.100 | +10.0 % |" in tables.bits_table(longer, ["law"])


def test_scale_covers_its_values():
    for low, high in ((0, 1), (-0.03, 0.07), (1.2, 1.3), (0, 0), (3, 2000)):
        scale = Scale(low, high)
        assert scale.low <= low + 1e-9 and scale.high >= high - 1e-9 and 2 <= len(scale.marks) <= 9
        assert all(math.isfinite(scale.y(m)) for m in scale.marks)
