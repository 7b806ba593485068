import json

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file

from gem.config import ConfigError, GemConfig
from gem.model import Gem
from gem.weights import (
    DTYPES,
    WeightsError,
    count_parameters,
    load_model,
    load_tensors,
    named_tensors,
    round_weights,
    save_model,
    tensor_shapes,
)
from small_models import model_of, odd_configs, plain, random_ids


@given(odd_configs())
def test_the_table_names_every_parameter_once(config):
    model = Gem(config)
    shapes = tensor_shapes(config)
    assert {name: tuple(t.shape) for name, t in named_tensors(model).items()} == shapes
    assert sum(t.numel() for t in named_tensors(model).values()) == count_parameters(model)


def test_names_are_the_file_format_s():
    names = tensor_shapes(GemConfig.from_dict(plain({"tie_word_embeddings": False})))
    for name, shape in {
        "model.embed_tokens.weight": (31, 20),
        "lm_head.weight": (31, 20),
        "model.norm.weight": (20,),
        "model.token_router.embed.weight": (31, 12),
        "model.token_router.norm.weight": (12,),
        "model.token_router.head.weight": (3, 12),
        "model.token_router.layers.1.attn_norm.weight": (12,),
        "model.token_router.layers.1.attn.q_proj.weight": (12, 12),
        "model.token_router.layers.1.mlp.up_proj.weight": (10, 12),
        "model.token_router.layers.1.mlp.down_proj.weight": (12, 10),
        "model.layers.1.mlp_norm.weight": (20,),
        "model.layers.1.attn.q_proj.weight": (12, 20),
        "model.layers.1.attn.v_proj.weight": (6, 20),
        "model.layers.1.attn.o_proj.weight": (20, 12),
        "model.layers.1.scar.query.weight": (5, 20),
        "model.layers.1.scar.keys": (7, 5),
        "model.layers.1.scar.values": (7, 5),
        "model.layers.1.scar.memory_proj.weight": (20, 5),
        "model.layers.1.general.gate_proj.weight": (24, 20),
        "model.layers.1.modules.6.up_proj.weight": (5, 20),
        "model.layers.1.modules.6.down_proj.weight": (20, 5),
    }.items():
        assert names[name] == shape
    assert "lm_head.weight" not in tensor_shapes(GemConfig.from_dict(plain()))
    assert "score.weight" in tensor_shapes(GemConfig.from_dict(plain({"architectures": ["GemForSequenceClassification"]})))


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_bit_exact(dtype, tmp_path):
    model = model_of(plain())
    round_weights(model, dtype)
    save_model(model, tmp_path / "a", dtype)
    again = load_model(tmp_path / "a")
    for name, t in named_tensors(model).items():
        assert torch.equal(t, named_tensors(again)[name])
    ids = random_ids(model.config, 9)
    assert torch.equal(model(ids).logits, again(ids).logits)
    save_model(again, tmp_path / "b", dtype)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert {t.dtype for t in load_file(tmp_path / "a" / "model.safetensors").values()} == {DTYPES[dtype]}


def tensors_of(model):
    return {name: t.clone() for name, t in named_tensors(model).items()}


@pytest.mark.parametrize("name", ["model.layers.0.modules.6.up_proj.weight", "model.layers.1.scar.keys"])
def test_missing_tensor_is_named(name):
    model = model_of(plain())
    tensors = tensors_of(model)
    del tensors[name]
    with pytest.raises(WeightsError, match=f"here: {name}: wanted a tensor of shape .*, found none"):
        load_tensors(model, tensors, "here")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.2.attn_norm.weight", "model.layers.0.modules.7.up_proj.weight"])
def test_unknown_tensor_is_named(name):
    model = model_of(plain())
    with pytest.raises(WeightsError, match=f"{name}: wanted no such tensor"):
        load_tensors(model, tensors_of(model) | {name: torch.zeros(1)}, "here")


def test_wrong_shape_and_type_are_named():
    model = model_of(plain())
    name = "model.layers.0.scar.values"
    with pytest.raises(WeightsError, match=rf"{name}: wanted shape \[7, 5\], found \[5, 7\]"):
        load_tensors(model, tensors_of(model) | {name: torch.zeros(5, 7)}, "here")
    with pytest.raises(WeightsError, match=f"{name}: wanted F32, F16 or BF16, found torch.int32"):
        load_tensors(model, tensors_of(model) | {name: torch.zeros(7, 5, dtype=torch.int32)}, "here")


def test_a_folder_with_a_bad_config_is_refused(tmp_path):
    save_model(model_of(plain()), tmp_path, "fp32")
    config = json.loads((tmp_path / "config.json").read_text())
    config["scar"]["k_mx"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="scar.k_mx"):
        load_model(tmp_path)


def test_values_too_large_for_fp16_are_refused(tmp_path):
    model = model_of(plain())
    model.norm.weight.data[3] = 1e6
    with pytest.raises(WeightsError, match="model.norm.weight: wanted finite values"):
        save_model(model, tmp_path, "fp16")
    save_model(model, tmp_path, "bf16")


def test_dense_file_of_another_tool_loads(tmp_path):
    """Any order of tensors and a mixture of types."""
    model = model_of(plain())
    round_weights(model, "bf16")
    tensors = dict(reversed(tensors_of(model).items()))
    tensors = {n: t.to(torch.bfloat16) if "modules" in n else t for n, t in tensors.items()}
    model.config.save(tmp_path / "config.json")
    save_file(tensors, tmp_path / "model.safetensors")
    ids = random_ids(model.config, 5)
    assert torch.equal(load_model(tmp_path)(ids).logits, model(ids).logits)
