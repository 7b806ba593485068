import pytest
from hypothesis import given

from gem.config import CHECKS, ConfigError, GemConfig, GenerationError
from small_models import PLAIN, odd_configs, plain

IMPOSSIBLE = [
    # key changed, its value, the key the error has to name
    ("model_type", "llama", "model_type"),
    ("architectures", [], "architectures"),
    ("architectures", ["GemForCausalLM", "GemModel"], "architectures"),
    ("architectures", "GemModel", "architectures"),
    ("architectures", [["GemModel"]], "architectures"),
    ("is_causal", 1, "is_causal"),
    ("is_causal", False, "attention.kind"),
    ("vocab_size", 0, "vocab_size"),
    ("hidden_size", 20.0, "hidden_size"),
    ("hidden_size", True, "hidden_size"),
    ("num_hidden_layers", -1, "num_hidden_layers"),
    ("num_key_value_heads", 3, "num_key_value_heads"),
    ("head_dim", 5, "head_dim"),
    ("num_domains", 2, "domain_names"),
    ("num_domains", 8, "domain_names"),
    ("domain_names", ["law", "law", "stem"], "domain_names"),
    ("domain_names", ["law", "", "stem"], "domain_names"),
    ("domain_names", "law", "domain_names"),
    ("rms_norm_eps", 0, "rms_norm_eps"),
    ("rope_theta", float("nan"), "rope_theta"),
    ("rope_theta", float("inf"), "rope_theta"),
    ("num_labels", -1, "num_labels"),
    ("scar", None, "scar"),
    ("scar", [], "scar"),
    ("scar.num_clusters", 2, "scar.num_clusters"),
    ("scar.policy", "top_q", "scar.policy"),
    ("scar.policy", ["top_p"], "scar.policy"),
    ("scar.k_max", 8, "scar.k_max"),
    ("scar.k_max", 0, "scar.k_max"),
    ("scar.k_min", 5, "scar.k_min"),
    ("scar.p", 0, "scar.p"),
    ("scar.p", 1.01, "scar.p"),
    ("scar.tau", -0.1, "scar.tau"),
    ("scar.lambda", "1", "scar.lambda"),
    ("scar.capacity_factor", 0.0, "scar.capacity_factor"),
    ("scar.memory", "yes", "scar.memory"),
    ("attention.kind", "sliding", "attention.kind"),
    ("attention.window", 0, "attention.window"),
    ("attention.sinks", -1, "attention.sinks"),
    ("token_router", {}, "token_router.hidden_size"),
    ("token_router.num_heads", 5, "token_router.num_heads"),
    ("token_router.num_heads", 4, "token_router.num_heads"),  # 12 / 4 is odd
    ("token_router.causal", False, "token_router.window"),
    ("token_router.window", 1.5, "token_router.window"),
]


def test_plain_config_parses():
    config = GemConfig.from_dict(plain())
    assert config.architecture == "GemForCausalLM"
    assert config.scar.lambda_ == 0.5
    assert [config.domain_of_cluster(c) for c in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("key, value, named", IMPOSSIBLE)
def test_impossible_value_names_its_key(key, value, named):
    with pytest.raises(ConfigError) as error:
        GemConfig.from_dict(plain({key: value}))
    assert error.value.key == named
    assert f"config.json: {named}: wanted " in str(error.value) and ", found " in str(error.value)


def test_found_value_is_in_the_message():
    with pytest.raises(ConfigError, match=r"scar\.k_max: wanted at most scar\.num_clusters = 7, found 9"):
        GemConfig.from_dict(plain({"scar.k_max": 9}))


SECTIONS = ["", "scar", "attention", "token_router"]


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_key_is_named(section):
    name = f"{section}.windw" if section else "windw"
    with pytest.raises(ConfigError) as error:
        GemConfig.from_dict(plain({name: 4}))
    assert error.value.key == name


@pytest.mark.parametrize("section", SECTIONS)
def test_every_missing_key_is_named(section):
    for key in PLAIN[section] if section else PLAIN:
        config = plain()
        del (config[section] if section else config)[key]
        with pytest.raises(ConfigError, match="to be present") as error:
            GemConfig.from_dict(config)
        assert error.value.key == (f"{section}.{key}" if section else key)


def test_every_section_is_covered_by_these_tests():
    assert len(CHECKS) == len(SECTIONS)


def test_classification_needs_labels_and_others_do_not():
    with pytest.raises(ConfigError, match="num_labels"):
        GemConfig.from_dict(plain({"architectures": ["GemForSequenceClassification"], "num_labels": 0}))
    GemConfig.from_dict(plain({"num_labels": 0}))


@given(odd_configs())
def test_config_round_trip(config):
    assert GemConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"scar.policy": "expert_choice"}, "scar.policy"),
        ({"scar.policy": "bidirectional"}, "scar.policy"),
        ({"token_router.causal": False, "token_router.window": 0}, "token_router.causal"),
        ({"is_causal": False, "attention.kind": "full"}, "is_causal"),
        ({"architectures": ["GemModel"]}, "architectures"),
        ({"architectures": ["GemForSequenceClassification"]}, "architectures"),
    ],
)
def test_generation_is_refused(changes, named):
    config = GemConfig.from_dict(plain(changes))
    with pytest.raises(GenerationError, match=f"{named}: wanted"):
        config.check_generation()


def test_generation_is_allowed_without_token_router():
    GemConfig.from_dict(plain({"token_router": None})).check_generation()


def test_capacity_rounds_up_and_stops_at_the_sequence():
    scar = GemConfig.from_dict(plain({"scar.capacity_factor": 1.0, "scar.k_max": 2})).scar
    assert [scar.capacity(t) for t in (1, 3, 4, 7, 8)] == [1, 1, 2, 2, 3]
    assert GemConfig.from_dict(plain({"scar.capacity_factor": 90})).scar.capacity(5) == 5
