"""GEM once more, one token and one head at a time, in float64 NumPy from the tensors of a checkpoint.

Written from the definition alone, not from the reference: it shares with it only the config class.
"""

from __future__ import annotations

import math

import numpy as np

import oracles
from gem.config import GemConfig


class LoopModel:
    def __init__(self, config: GemConfig, tensors: dict[str, np.ndarray]):
        self.config = config
        self.tensors = {name: t.astype(np.float64) for name, t in tensors.items()}

    def weight(self, name: str) -> np.ndarray:
        return self.tensors[name + ".weight"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2) + self.config.rms_norm_eps) * self.weight(name)

    def heads(self, y: np.ndarray, head_dim: int, position: int | None) -> list[np.ndarray]:
        parts = [y[i : i + head_dim] for i in range(0, len(y), head_dim)]
        if position is None:
            return parts
        return [np.array(oracles.rope(list(p), position, self.config.rope_theta)) for p in parts]

    def attention(self, rows: list[np.ndarray], at: str, head_dim: int, sees) -> list[np.ndarray]:
        """rows: normalised inputs; sees(t, j): whether token t attends to token j"""
        qs = [self.heads(self.weight(f"{at}.q_proj") @ n, head_dim, t) for t, n in enumerate(rows)]
        ks = [self.heads(self.weight(f"{at}.k_proj") @ n, head_dim, t) for t, n in enumerate(rows)]
        vs = [self.heads(self.weight(f"{at}.v_proj") @ n, head_dim, None) for n in rows]
        out = []
        for t, q in enumerate(qs):
            visible = [j for j in range(len(rows)) if sees(t, j)]
            parts = []
            for h in range(len(q)):
                g = h // (len(q) // len(ks[0]))
                p = oracles.softmax(np.array([q[h] @ ks[j][g] / math.sqrt(head_dim) for j in visible]))
                parts.append(sum(w * vs[j][g] for w, j in zip(p, visible)))
            out.append(self.weight(f"{at}.o_proj") @ np.concatenate(parts))
        return out

    def domains(self, ids: list[int]) -> list[np.ndarray]:
        router, at = self.config.token_router, "model.token_router"
        if router is None:
            return [np.full(self.config.num_domains, 1 / self.config.num_domains) for _ in ids]

        def sees(t: int, j: int) -> bool:
            return not router.causal or (j <= t and (router.window == 0 or t - j < router.window))

        xs = [self.weight(f"{at}.embed")[i] for i in ids]
        for layer in range(router.num_layers):
            here = f"{at}.layers.{layer}"
            normed = [self.norm(x, f"{here}.attn_norm") for x in xs]
            added = self.attention(normed, f"{here}.attn", router.hidden_size // router.num_heads, sees)
            xs = [x + y for x, y in zip(xs, added)]
            for t, x in enumerate(xs):
                u = self.weight(f"{here}.mlp.up_proj") @ self.norm(x, f"{here}.mlp_norm")
                gelu = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
                xs[t] = x + self.weight(f"{here}.mlp.down_proj") @ gelu
        return [oracles.softmax(self.weight(f"{at}.head") @ self.norm(x, f"{at}.norm")) for x in xs]

    def ffn(self, m: np.ndarray, at: str) -> np.ndarray:
        gate, up = self.weight(f"{at}.gate_proj") @ m, self.weight(f"{at}.up_proj") @ m
        return self.weight(f"{at}.down_proj") @ (oracles.silu(gate) * up)

    def block(self, xs: list[np.ndarray], pi: list[np.ndarray], layer: int):
        config, scar, at = self.config, self.config.scar, f"model.layers.{layer}"
        normed = [self.norm(x, f"{at}.attn_norm") for x in xs]
        keys, a = self.tensors[f"{at}.scar.keys"], []
        for n, p in zip(normed, pi):
            query = self.weight(f"{at}.scar.query") @ n
            s = [
                query @ keys[c] / math.sqrt(scar.dim) + scar.lambda_ * math.log(p[c % config.num_domains] + 1e-6)
                for c in range(scar.num_clusters)
            ]
            a.append(oracles.softmax(np.array(s)))
        a = np.array(a).astype(np.float32)  # decisions are defined on single precision
        clusters = [oracles.best_first(row.tolist())[0] for row in a]
        chosen = oracles.chosen_modules(a, scar)
        gates = oracles.gates(a, chosen, scar)

        def sees(t: int, j: int) -> bool:
            if config.attention.kind == "clustered":
                attention = config.attention
                return oracles.clustered_sees(clusters, t, j, attention.window, attention.sinks, attention.cluster_cap)
            return j <= t or not config.is_causal

        hs = [x + y for x, y in zip(xs, self.attention(normed, f"{at}.attn", config.head_dim, sees))]
        out = []
        for t, h in enumerate(hs):
            m = self.norm(h, f"{at}.mlp_norm")
            x = h + self.ffn(m, f"{at}.general")
            for c in sorted(chosen[t]):
                x = x + gates[t, c] * self.ffn(m, f"{at}.modules.{c}")
            if scar.memory:
                read = sum((gates[t, c] * self.tensors[f"{at}.scar.values"][c] for c in chosen[t]), np.zeros(scar.dim))
                x = x + self.weight(f"{at}.scar.memory_proj") @ read
            out.append(x)
        return out, chosen, gates

    def __call__(self, ids: list[int]) -> dict:
        """logits [T, V] or output, domains [T, D], and per layer the chosen sets and gates"""
        config = self.config
        pi = self.domains(ids)
        xs = [self.weight("model.embed_tokens")[i] for i in ids]
        out = {"domains": np.array(pi), "chosen": [], "gates": []}
        for layer in range(config.num_hidden_layers):
            xs, chosen, gates = self.block(xs, pi, layer)
            out["chosen"].append(chosen)
            out["gates"].append(gates)
        xs = np.array([self.norm(x, "model.norm") for x in xs])
        if config.architecture == "GemForCausalLM":
            head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
            out["logits"] = xs @ self.weight(head).T
        elif config.architecture == "GemForSequenceClassification":
            out["output"] = self.weight("score") @ xs.mean(0)
        else:
            mean = xs.mean(0)
            out["output"] = mean / np.sqrt(np.sum(mean**2))
        return out
