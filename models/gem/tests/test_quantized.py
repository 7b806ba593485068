"""Quantized models: their wiring, the NPU's numbers, and the reference outputs of gem-mini in recipe `hybrid`."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given

from gem import npu_numbers as npu
from gem import quantized
from gem.model import Gem
from gem.npu import NpuGem
from gem.quantized import CodedMatrix, QuantizedGem
from gem.quantized_reference import COLUMN_STEP, QUANTIZED_REFERENCE_FILE, prompt_arrays, stored_prompts
from gem.weights import load_model, named_tensors
from small_models import model_of, odd_configs, plain, random_ids

MINI = Path(__file__).resolve().parents[3] / "tests" / "models" / "gem-mini"


def dequantized(model: Gem) -> Gem:
    """The model with the numbers that codes stand for."""
    codes = QuantizedGem(model).coded
    out = Gem(model.config).to(model.embed_tokens.weight.dtype).eval().requires_grad_(False)
    given = named_tensors(model)
    for name, tensor in named_tensors(out).items():
        tensor.copy_(torch.from_numpy(codes[name].dequantize()) if name in codes else given[name])
    return out


@given(odd_configs(generating=True))
def test_every_matrix_stands_where_it_should(config):
    """With activations left as they are, a quantized model is the model of the numbers that its codes stand for."""
    model = model_of(config).double()
    ids = random_ids(config, 7)
    coded = QuantizedGem(model)
    whole = quantized.quantize_activations
    try:
        quantized.quantize_activations = lambda x: (x, torch.ones_like(x[..., :1]))
        found = coded(ids)
    finally:
        quantized.quantize_activations = whole
    plain_model = dequantized(model)
    wanted = plain_model(ids, coded.new_cache())
    # What codes stand for is rounded to f32 here and not there.
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)


def test_only_models_that_generate_are_taken():
    with pytest.raises(ValueError, match="scar.policy"):
        QuantizedGem(model_of(plain({"scar.policy": "expert_choice"})))


def test_which_tensors_become_codes():
    coded = QuantizedGem(model_of(plain({"tie_word_embeddings": False}))).coded
    kept = set(named_tensors(model_of(plain({"tie_word_embeddings": False})))) - set(coded)
    assert all(n.endswith(("norm.weight", "scar.keys", "scar.values", "token_router.head.weight")) for n in kept)
    assert {n for n, c in coded.items() if c.group == 32} == {n for n in coded if ".modules." in n}
    assert "lm_head.weight" in coded and "model.embed_tokens.weight" in coded


def small_npu(changes: dict | None = None) -> NpuGem:
    return NpuGem(QuantizedGem(model_of(plain({"scar.norm_gates": False} | (changes or {})))))


@pytest.mark.parametrize("policy", ("top_k", "top_p", "threshold"))
@pytest.mark.parametrize("kind", ("full", "clustered"))
@pytest.mark.parametrize("router", (True, False))
def test_prefill_and_single_tokens_give_the_same_bits(policy, kind, router):
    model = small_npu({"scar.policy": policy, "attention.kind": kind} | ({} if router else {"token_router": None}))
    ids = random_ids(model.config, 11)
    whole = model(ids)
    cache = model.new_cache()
    for t in range(ids.shape[1]):
        assert torch.equal(model(ids[:, t : t + 1], cache).logits[:, 0], whole.logits[:, t])


def forced(model: QuantizedGem, order: NpuGem, ids: torch.Tensor):
    """Logits in the NPU's order; in ordinary arithmetic with its codes; codes, and those that ordinary arithmetic turned."""
    times, seen = CodedMatrix.times, {}
    counts = [0, 0]

    def record(self, codes, scale):
        seen[id(self)] = codes
        return times(self, codes, scale)

    def replay(self, codes, scale):
        off = (codes - seen[id(self)]).abs()
        assert off.max() <= 1
        counts[0] += off.numel()
        counts[1] += int((off != 0).sum())
        return times(self, seen[id(self)], scale)

    try:
        CodedMatrix.times = record
        wanted = order(ids).logits
        CodedMatrix.times = replay
        return wanted, model(ids).logits, counts
    finally:
        CodedMatrix.times = times


@pytest.fixture(scope="module")
def mini():
    model = QuantizedGem(load_model(MINI))
    return model, NpuGem(model)


def test_orders_of_sums_differ_by_turned_codes_alone(mini):
    """Given the same codes of activations, ordinary arithmetic agrees to rounding, and nearly all codes are its own."""
    model, order = mini
    for ids in stored_prompts(MINI)[2:64:20]:
        wanted, found, (codes, turned) = forced(model, order, ids[None])
        # Keys and values are rounded to f16, which may turn as well.
        assert (wanted - found).abs().mean() < 1e-5
        assert turned <= 1 + 1e-4 * codes


def test_gem_mini_gives_its_reference_outputs(mini):
    model, order = mini
    prompts = stored_prompts(MINI)
    with np.load(MINI / QUANTIZED_REFERENCE_FILE) as stored:
        assert stored["greedy_columns"].tolist() == list(range(0, 4096, COLUMN_STEP))
        names = bytes(stored["weights.names"]).decode().split("\n")
        assert names == list(model.coded)
        for name, codes, scales in zip(names, stored["weights.codes"], stored["weights.scales"]):
            coded = model.coded[name]
            assert zlib.crc32(coded.codes.tobytes()) == codes and zlib.crc32(coded.scales.tobytes()) == scales, name
        for i in (1, 34):
            for name, array in prompt_arrays(order, prompts[i], 4).items():
                wanted = stored[f"prompt.{i:03}.{name}"]
                wanted = wanted if name == "logits" else wanted[:4]
                assert array.dtype == wanted.dtype and array.shape == wanted.shape, name
                np.testing.assert_allclose(array, wanted, atol=1e-4, err_msg=name)


def test_sums_follow_the_rule():
    x = torch.zeros(17)
    x[0], x[16], x[1] = 1, 2.0**-24, 2.0**-24  # terms 0 and 16 share a partial sum, which meets that of 1 last
    assert npu.row_sum(x) == 1
    x[16], x[9] = 0, 2.0**-24  # 1 and 9 meet before 0
    assert npu.row_sum(x) == 1 + 2.0**-23
    assert npu.row_sum(torch.arange(100.0)) == 4950
    a = torch.zeros(17)
    a[0], a[16] = -1, 1 + 2.0**-23
    b = torch.zeros(17)
    b[0], b[16] = 1 + 2.0**-22, 1 + 2.0**-23
    assert npu.dot(a, b) == 2.0**-46  # products are not rounded


def test_functions_are_near_their_formulas():
    x = torch.linspace(-90, 88, 100_001)
    exact = x.double().exp()
    normal = exact > 1.2e-38
    assert ((npu.exp(x).double() - exact) / exact)[normal].abs().max() < 1.5e-7
    assert npu.exp(torch.tensor([-200.0, 0.0, 200.0])).tolist() == [0, 1, torch.inf]
    y = torch.logspace(-6, 2, 100_001)
    off = (npu.ln(y).double() - y.double().log()).abs()
    assert (off <= 1.5e-7 * y.double().log().abs().clamp_min(1e-3)).all()
    z = torch.linspace(-20, 20, 10_001)
    for found, wanted in (
        (npu.silu(z), torch.nn.functional.silu(z.double())),
        (npu.gelu(z), torch.nn.functional.gelu(z.double(), approximate="tanh")),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=3e-5, atol=1e-7)
    assert torch.equal(npu.sqrt(y), torch.from_numpy(np.sqrt(y.numpy())))


def test_softmax_over_the_first_terms():
    z = torch.tensor([[0.5, 0.5, 9.0], [1.0, 1.0, 1.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert npu.softmax(z, valid).tolist() == [[0.5, 0.5, 0.0], [float(np.float32(1 / 3))] * 3]
