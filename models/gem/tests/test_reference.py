"""The committed models and their reference outputs are what the code makes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from gem import reference
from gem.config import GemConfig
from gem.make_random_models import CHOICES, GREEDY_TOKENS, LENGTHS, MARGIN, cases, make, pairwise, possible
from gem.mini import CONFIG, compact_json
from gem.model import Gem
from gem.reference import can_generate, clear_of_ties, logits_rows, precision, prompt_arrays, prompts_of_length, save_prompts
from gem.weights import load_model, named_tensors, save_model
from loop_model import LoopModel
from small_models import model_of, plain

MODELS = Path(__file__).resolve().parents[3] / "tests" / "models"
MINI = MODELS / "gem-mini"
RANDOM = sorted(p.name for p in (MODELS / "random").iterdir())


def stored_prompts(folder, names=None):
    """The arrays of the named prompts, or of all."""
    with np.load(folder / "reference.npz") as npz:
        names = names or sorted({key[: len("prompt.000")] for key in npz.files})
        return [{key[len(n) + 1 :]: npz[key] for key in npz.files if key.startswith(n + ".")} for n in names]


def check_prompt(model, stored, num_greedy):
    """Decisions exactly, numbers to a tolerance."""
    ids = torch.from_numpy(stored["ids"])
    rows = stored["logits_rows"].tolist() if "logits_rows" in stored else []
    again = prompt_arrays(model, ids, rows, num_greedy)
    assert set(stored) == set(again)
    for name, array in again.items():
        assert array.dtype == stored[name].dtype and array.shape == stored[name].shape, name
        if array.dtype == np.float32:
            np.testing.assert_allclose(array, stored[name], atol=1e-4, rtol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(array, stored[name], err_msg=name)


@pytest.mark.parametrize("name", RANDOM)
def test_random_model_gives_its_reference_outputs(name):
    model = load_model(MODELS / "random" / name)
    prompts = stored_prompts(MODELS / "random" / name)
    assert [len(p["ids"]) for p in prompts] == list(LENGTHS)
    for stored in prompts:
        check_prompt(model, stored, GREEDY_TOKENS)
        if model.config.architecture == "GemForCausalLM":
            assert stored["logits"].shape == (len(stored["ids"]), 97)
            assert ("greedy" in stored) == can_generate(model)
        else:
            assert stored["output"].shape in ((4,), (model.config.hidden_size,))


@pytest.mark.parametrize("name", RANDOM)
def test_random_model_decides_as_the_loop_model(name):
    """A second implementation, in float64, takes exactly the stored decisions."""
    model = load_model(MODELS / "random" / name)
    loop = LoopModel(model.config, {k: v.numpy() for k, v in named_tensors(model).items()})
    [stored] = stored_prompts(MODELS / "random" / name, ["prompt.003"])
    out = loop(stored["ids"].tolist())
    for layer, chosen in enumerate(out["chosen"]):
        assert [set(np.flatnonzero(row)) for row in stored[f"modules.{layer}"]] == chosen
    key = "logits" if "logits" in stored else "output"
    np.testing.assert_allclose(out[key], stored[key], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in RANDOM if "all-scores-equal" not in n])
def test_random_model_is_clear_of_near_ties(name):
    model = load_model(MODELS / "random" / name)
    for stored in stored_prompts(MODELS / "random" / name):
        assert clear_of_ties(model, stored, MARGIN)


def test_random_models_are_the_listed_ones():
    listed = {c.name: c for c in cases()}
    assert sorted(listed) == RANDOM
    for name, case in listed.items():
        assert GemConfig.load(MODELS / "random" / name / "config.json") == case.config


def test_random_models_cover_every_possible_pair():
    covered = set()
    for case in pairwise():
        covered |= {(m, x, n, y) for m, x in case.items() for n, y in case.items() if m < n}
        assert possible(case)
    wanted = 0
    for m, xs in CHOICES.items():
        for n, ys in CHOICES.items():
            for x in xs if m < n else ():
                for y in ys:
                    if possible({m: x, n: y}):
                        wanted += 1
                        assert (m, x, n, y) in covered
    assert wanted > 500


@pytest.mark.parametrize("index", [6, -1])
def test_a_random_model_can_be_made_again(index, tmp_path):
    case = list(cases())[index]
    make(case, tmp_path)
    folder = MODELS / "random" / case.name
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_rows_fit_the_budget_and_hold_the_last():
    lengths = [1, 2, 17, 64, 80] * 12
    rows = logits_rows(lengths, 4096)
    for n, r in zip(lengths, rows):
        assert r[-1] == n - 1 and sorted(set(r)) == r and r[0] >= 0
    assert 4 * 4096 * sum(map(len, rows)) <= 5_600_000
    assert logits_rows([3, 5], 97) == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_precision_of_a_tiny_model(tmp_path):
    model = model_of(plain())
    save_model(model, tmp_path, "fp32")
    arrays = prompt_arrays(model, torch.tensor([3, 1, 4, 1, 5]), [4], 0)
    save_prompts(tmp_path / "reference.npz", [arrays])
    told = precision(tmp_path)
    assert 0 < told["max_abs_logit_difference"] < 1e-4
    assert told["module_decisions"] == 5 * 7 * 2 and told["module_decisions_that_differ"] == 0


def test_compact_json_says_the_same():
    value = {"a": [1, 2, [3]], "b": {"c": [0.5, 1e-7], "d": "[1,\n 2]"}}
    assert json.loads(compact_json(value)) == value
    assert "[1, 2]" in compact_json({"a": [1, 2]})


# gem-mini


def test_mini_is_the_recipe_s_model():
    assert GemConfig.load(MINI / "config.json") == CONFIG
    evaluation = json.loads((MINI / "evaluation.json").read_text())
    model = Gem(CONFIG)
    assert evaluation["parameters"] == sum(p.numel() for p in model.parameters()) < 8e6
    assert evaluation["weights_bytes"] == (MINI / "model.safetensors").stat().st_size < 16e6
    assert (MINI / "reference.npz").stat().st_size < 8e6


def test_mini_prompts_are_the_tokens_of_their_text():
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    listed, stored = json.loads((MINI / "prompts.json").read_text(encoding="utf-8")), stored_prompts(MINI)
    assert len(listed) == len(stored) == 64
    for prompt, arrays in zip(listed, stored):
        assert tokenizer.encode(prompt["text"]).ids == arrays["ids"].tolist()
        assert prompt["num_tokens"] == len(arrays["ids"])
        assert tokenizer.decode(arrays["greedy"].tolist(), skip_special_tokens=False) == prompt["greedy_text"]
    for domain in CONFIG.domain_names:
        lengths = [p["num_tokens"] for p in listed if p["domain"] == domain]
        assert len(lengths) == 8 and max(lengths) > CONFIG.attention.window


@pytest.mark.parametrize("index", [0, 7, 18, 36, 55])
def test_mini_gives_its_reference_outputs(index):
    model, [stored] = load_model(MINI), stored_prompts(MINI, [f"prompt.{index:03}"])
    assert stored["logits_rows"][-1] == len(stored["ids"]) - 1
    assert clear_of_ties(model, stored, reference.MARGIN)
    check_prompt(model, stored, reference.GREEDY_TOKENS)


def test_mini_s_tokens_take_from_one_to_k_max_modules():
    histogram = json.loads((MINI / "evaluation.json").read_text())["test"]["modules_per_token"]["histogram"]
    share = np.array(histogram) / sum(histogram)
    assert share[0] == 0 and not share[CONFIG.scar.k_max + 1 :].any()
    assert (share[1 : CONFIG.scar.k_max + 1] > 0.02).all()


def test_mini_evaluation_adds_up():
    test = json.loads((MINI / "evaluation.json").read_text())["test"]
    counts = test["modules_per_token"]
    assert sum(counts["histogram"]) == CONFIG.num_hidden_layers * sum(test["num_tokens"].values())
    assert np.array_equal(np.sum(list(counts["histogram_by_domain"].values()), 0), counts["histogram"])
    assert np.array_equal(np.sum(counts["histogram_by_layer"], 0), counts["histogram"])
    visits = sum(i * n for i, n in enumerate(counts["histogram"]))
    assert visits == np.sum(list(test["module_visits_by_domain"].values())) == np.sum(test["module_visits_by_layer"])
    per_domain = [test["bits_per_byte"][d] for d in CONFIG.domain_names]
    assert test["bits_per_byte"]["mean"] == pytest.approx(np.mean(per_domain), abs=1e-4)
    assert test["bits_per_byte"]["mean"] < 2.1


def test_prompts_encode_to_their_ids():
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    passages = iter(["short", *(f"Größe {i}: some words, and more of them. " * 9 for i in range(40))])
    found = list(prompts_of_length(tokenizer, passages, 33))
    assert len(found) > 5
    for text, ids in found:
        assert len(ids) == 33 and tokenizer.encode(text).ids == ids
    assert not list(prompts_of_length(tokenizer, iter(["short"]), 33))
