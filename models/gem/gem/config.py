"""`config.json` of a GEM, parsed strictly: every key must be there, be known and be possible."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Callable

ARCHITECTURES = ("GemForCausalLM", "GemForSequenceClassification", "GemModel")
POLICIES = ("top_k", "top_p", "threshold", "expert_choice", "bidirectional")
ATTENTION_KINDS = ("full", "clustered")
ACROSS_TOKENS = ("expert_choice", "bidirectional")
"""Policies that need the whole sequence before the first token's modules are known."""


class ConfigError(ValueError):
    """A config value that cannot be: `key`, what was `found`, what is `wanted`."""

    def __init__(self, key: str, found: Any, wanted: str):
        self.key, self.found, self.wanted = key, found, wanted
        super().__init__(f"config.json: {key}: wanted {wanted}, found {found}")


class GenerationError(ValueError):
    """This model cannot produce one token after another."""


# A check takes (key, value) and returns the value as stored, or raises ConfigError.
Check = Callable[[str, Any], Any]


def _int(low: int) -> Check:
    def check(key: str, v: Any) -> int:
        if isinstance(v, bool) or not isinstance(v, int) or v < low:
            raise ConfigError(key, json.dumps(v), f"an integer of at least {low}")
        return v

    return check


def _float(low: float, high: float, low_open: bool = False) -> Check:
    def check(key: str, v: Any) -> float:
        number = isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        if not number or v > high or v < low or (low_open and v == low):
            span = f"{'more than' if low_open else 'at least'} {low:g}"
            span += "" if high == math.inf else f" and at most {high:g}"
            raise ConfigError(key, json.dumps(v), f"a finite number of {span}")
        return float(v)

    return check


def _bool(key: str, v: Any) -> bool:
    if not isinstance(v, bool):
        raise ConfigError(key, json.dumps(v), "true or false")
    return v


def _one_of(*allowed: str) -> Check:
    def check(key: str, v: Any) -> str:
        if not isinstance(v, str) or v not in allowed:
            raise ConfigError(key, json.dumps(v), "one of " + ", ".join(allowed))
        return v

    return check


def _architectures(key: str, v: Any) -> str:
    if not isinstance(v, list) or len(v) != 1 or v[0] not in ARCHITECTURES:
        raise ConfigError(key, json.dumps(v), "a list with one of " + ", ".join(ARCHITECTURES))
    return v[0]


def _names(key: str, v: Any) -> tuple[str, ...]:
    ok = isinstance(v, list) and all(isinstance(n, str) and n for n in v)
    if not ok or len(set(v)) != len(v):
        raise ConfigError(key, json.dumps(v), "a list of different, non-empty names")
    return tuple(v)


def _section(cls: type, optional: bool = False) -> Check:
    def check(key: str, v: Any) -> Any:
        if v is None and optional:
            return None
        if not isinstance(v, dict):
            raise ConfigError(key, json.dumps(v), "an object" + (" or null" if optional else ""))
        return cls(**_parse(CHECKS[cls], v, prefix=key + "."))

    return check


def _parse(checks: dict[str, Check], given: dict[str, Any], prefix: str) -> dict[str, Any]:
    for key in given:
        if key not in checks:
            raise ConfigError(prefix + key, "this unknown key", "one of " + ", ".join(checks))
    out = {}
    for key, check in checks.items():
        if key not in given:
            raise ConfigError(prefix + key, "no such key", "it to be present")
        out[FIELD_OF_KEY.get(key, key)] = check(prefix + key, given[key])
    return out


FIELD_OF_KEY = {"lambda": "lambda_", "architectures": "architecture"}
"""JSON keys whose Python field has another name: a keyword, and a list of exactly one."""


@dataclass(frozen=True)
class ScarConfig:
    num_clusters: int
    dim: int
    lambda_: float
    policy: str
    k_min: int
    k_max: int
    p: float
    tau: float
    capacity_factor: float
    norm_gates: bool
    memory: bool

    def capacity(self, num_tokens: int) -> int:
        """`cap`: how many tokens one module takes. Evaluated in double precision, left to right."""
        return min(num_tokens, math.ceil(self.capacity_factor * num_tokens * self.k_max / self.num_clusters))


@dataclass(frozen=True)
class AttentionConfig:
    kind: str
    window: int
    sinks: int
    cluster_cap: int


@dataclass(frozen=True)
class TokenRouterConfig:
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    causal: bool
    window: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class GemConfig:
    model_type: str
    architecture: str
    is_causal: bool
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    module_intermediate_size: int
    num_domains: int
    domain_names: tuple[str, ...]
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    num_labels: int
    scar: ScarConfig
    attention: AttentionConfig
    token_router: TokenRouterConfig | None

    @staticmethod
    def from_dict(given: dict[str, Any]) -> GemConfig:
        if not isinstance(given, dict):
            raise ConfigError("(top level)", json.dumps(given), "an object")
        config = GemConfig(**_parse(CHECKS[GemConfig], given, prefix=""))
        config._check_together()
        return config

    @staticmethod
    def load(path: str | Path) -> GemConfig:
        return GemConfig.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` gives this config back."""
        return _to_dict(self)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def domain_of_cluster(self, cluster: int) -> int:
        return cluster % self.num_domains

    def check_generation(self) -> None:
        """Raises GenerationError unless each token's output depends on nothing after it."""
        why = None
        if self.architecture != "GemForCausalLM":
            why = f"architectures: wanted GemForCausalLM, found {self.architecture}, which has no next token"
        elif not self.is_causal:
            why = "is_causal: wanted true, found false: a token would attend to tokens not generated yet"
        elif self.scar.policy in ACROSS_TOKENS:
            why = (
                f"scar.policy: wanted top_k, top_p or threshold, found {self.scar.policy}, "
                "which picks modules only when the whole sequence is known"
            )
        elif self.token_router is not None and not self.token_router.causal:
            why = "token_router.causal: wanted true, found false: domains would depend on tokens not generated yet"
        if why:
            raise GenerationError(f"cannot generate one token at a time: {why}")

    def _check_together(self) -> None:
        """What no single key can tell."""

        def need(ok: bool, key: str, found: Any, wanted: str) -> None:
            if not ok:
                raise ConfigError(key, found, wanted)

        s, t = self.scar, self.token_router
        need(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number (RoPE rotates halves)")
        need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
            f"a divisor of num_attention_heads = {self.num_attention_heads}",
        )
        need(
            len(self.domain_names) == self.num_domains,
            "domain_names",
            f"{len(self.domain_names)} names",
            f"num_domains = {self.num_domains} names",
        )
        need(
            self.architecture != "GemForSequenceClassification" or self.num_labels >= 1,
            "num_labels",
            self.num_labels,
            "at least 1 for GemForSequenceClassification",
        )
        need(
            s.num_clusters >= self.num_domains,
            "scar.num_clusters",
            s.num_clusters,
            f"at least num_domains = {self.num_domains}",
        )
        need(s.k_max <= s.num_clusters, "scar.k_max", s.k_max, f"at most scar.num_clusters = {s.num_clusters}")
        need(s.k_min <= s.k_max, "scar.k_min", s.k_min, f"at most scar.k_max = {s.k_max}")
        if self.attention.kind == "clustered":
            need(self.is_causal, "attention.kind", "clustered", "full when is_causal is false")
            need(self.attention.window >= 1, "attention.window", self.attention.window, "at least 1 when clustered")
        if t is not None:
            need(
                t.hidden_size % t.num_heads == 0,
                "token_router.num_heads",
                t.num_heads,
                f"a divisor of token_router.hidden_size = {t.hidden_size}",
            )
            need(
                t.head_dim % 2 == 0,
                "token_router.num_heads",
                t.num_heads,
                f"hidden_size / num_heads even (RoPE rotates halves), which is {t.head_dim}",
            )
            need(t.causal or t.window == 0, "token_router.window", t.window, "0 when token_router.causal is false")


CHECKS: dict[type, dict[str, Check]] = {
    ScarConfig: {
        "num_clusters": _int(1),
        "dim": _int(1),
        "lambda": _float(0, math.inf),
        "policy": _one_of(*POLICIES),
        "k_min": _int(0),
        "k_max": _int(1),
        "p": _float(0, 1, low_open=True),
        "tau": _float(0, 1),
        "capacity_factor": _float(0, math.inf, low_open=True),
        "norm_gates": _bool,
        "memory": _bool,
    },
    AttentionConfig: {
        "kind": _one_of(*ATTENTION_KINDS),
        "window": _int(0),
        "sinks": _int(0),
        "cluster_cap": _int(0),
    },
    TokenRouterConfig: {
        "hidden_size": _int(1),
        "num_layers": _int(1),
        "num_heads": _int(1),
        "intermediate_size": _int(1),
        "causal": _bool,
        "window": _int(0),
    },
    GemConfig: {
        "model_type": _one_of("gem"),
        "architectures": _architectures,
        "is_causal": _bool,
        "vocab_size": _int(1),
        "hidden_size": _int(1),
        "num_hidden_layers": _int(1),
        "num_attention_heads": _int(1),
        "num_key_value_heads": _int(1),
        "head_dim": _int(1),
        "intermediate_size": _int(1),
        "module_intermediate_size": _int(1),
        "num_domains": _int(1),
        "domain_names": _names,
        "rms_norm_eps": _float(0, math.inf, low_open=True),
        "rope_theta": _float(0, math.inf, low_open=True),
        "max_position_embeddings": _int(1),
        "tie_word_embeddings": _bool,
        "num_labels": _int(0),
        "scar": _section(ScarConfig),
        "attention": _section(AttentionConfig),
        "token_router": _section(TokenRouterConfig, optional=True),
    },
}


def _to_dict(section: Any) -> dict[str, Any]:
    key_of_field = {field: key for key, field in FIELD_OF_KEY.items()}
    out = {}
    for f in fields(section):
        v = getattr(section, f.name)
        if type(v) in CHECKS:
            v = _to_dict(v)
        elif isinstance(v, tuple):
            v = list(v)
        elif f.name == "architecture":
            v = [v]
        out[key_of_field.get(f.name, f.name)] = v
    return out


def changed(config: GemConfig, changes: dict[str, Any]) -> GemConfig:
    """`config` with dotted keys replaced: `changed(config, {"scar.k_max": 2})`."""
    given = config.to_dict()
    for key, value in changes.items():
        *sections, last = key.split(".")
        at: Any = given
        for name in (*sections, last):
            if not isinstance(at, dict) or name not in at:
                known = "one of " + ", ".join(at) if isinstance(at, dict) else "a key"
                raise ConfigError(key, "this unknown key", known)
            inner, at = at, at[name]
        inner[last] = value
    return GemConfig.from_dict(given)
