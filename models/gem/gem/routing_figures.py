"""What routing does on a corpus beyond the sums of `evaluate.Tally`: information, context, keys attended to.

Mutual information I(domain; module) of a layer. One visit of a token to a module is one draw; every domain counts the
same, so with v[d, c] visits p(d, c) = v[d, c] / (D · Σ_c v[d, c]). It is 0 when all domains visit modules alike and at
most log₂ min(D, C). The plug-in estimate is too high, since finite samples of equal distributions differ. Two estimates
of by how much stand beside it:

* `independent_bias_bits`, (D − 1)(C' − 1) / (2 N ln 2), Miller and Madow's first-order term for N independent visits,
  C' the modules visited at all. Tokens of one passage are not independent, so it is a lower bound;
* `shuffled_bits`, the mean of the same estimate after dealing the domain labels anew to whole passages, which keeps
  the dependence within passages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .block import Routing
from .model import Gem, GemOutput

CONTEXT_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NUM_SHUFFLES = 20


@dataclass
class Watch:
    """Per passage, in the order seen. L layers, C clusters, K context lengths."""

    labels: list[Tensor] = field(default_factory=list)  # [B] domain
    visits: list[Tensor] = field(default_factory=list)  # [B, L, C] tokens that visited the module
    right: list[Tensor] = field(default_factory=list)  # [B, K] argmax of π at the K-th length is the label
    long_enough: list[Tensor] = field(default_factory=list)  # [B, K] the passage has so many tokens
    keys: Tensor | None = None  # [L] keys attended to, summed over tokens
    num_tokens: int = 0

    def see(self, model: Gem, out: GemOutput, labels: Tensor, lengths: Tensor, counted: Tensor) -> None:
        """One batch of `measure`: counted [B, T], of the tokens after the separator."""
        at = torch.tensor([n for n in CONTEXT_LENGTHS if n <= counted.shape[1]], dtype=torch.int64)
        beyond = len(CONTEXT_LENGTHS) - len(at)
        found = out.domains[:, at].argmax(-1) == labels[:, None]  # the n-th token after the separator has index n
        pad = torch.zeros(len(labels), beyond, dtype=torch.bool)
        self.labels.append(labels)
        self.right.append(torch.cat((found, pad), 1))
        self.long_enough.append(lengths[:, None] >= torch.tensor(CONTEXT_LENGTHS))
        self.visits.append(torch.stack([(r.modules[:, 1:] & counted[..., None]).sum(1) for r in out.routing], 1))
        keys = torch.tensor([attended_keys(model, r, counted) for r in out.routing], dtype=torch.float64)
        self.keys = keys if self.keys is None else self.keys + keys
        self.num_tokens += int(counted.sum())

    def report(self, model: Gem) -> dict:
        names = model.config.domain_names
        labels, visits = torch.cat(self.labels), torch.cat(self.visits)
        right, there = torch.cat(self.right), torch.cat(self.long_enough)
        return {
            "mutual_information": [
                mutual_information(labels, visits[:, layer], len(names)) for layer in range(visits.shape[1])
            ],
            "router_accuracy_by_context": None
            if model.token_router is None
            else [context_row(names, n, labels, right[:, k], there[:, k]) for k, n in enumerate(CONTEXT_LENGTHS)],
            "attended_keys_by_layer": [round(float(k) / self.num_tokens, 2) for k in self.keys],
        }


def attended_keys(model: Gem, routing: Routing, counted: Tensor) -> int:
    """How many keys the counted tokens attend to, together."""
    mask = model.layers[0].mask(routing.clusters, routing.clusters.shape[1])
    if mask is None:
        mask = torch.ones(counted.shape[1] + 1, counted.shape[1] + 1, dtype=torch.bool)
    return int((mask.sum(-1).expand(len(counted), -1)[:, 1:] * counted).sum())


def plug_in_bits(visits: Tensor) -> float:
    """visits [D, C] → the plug-in estimate of I(domain; module) in bits. Domains without a visit are left out."""
    visits = visits.double()
    visits = visits[visits.sum(1) > 0]
    if len(visits) == 0:
        return 0.0
    joint = visits / visits.sum(1, keepdim=True) / len(visits)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return max(0.0, float(torch.special.xlogy(joint, joint / independent.clamp_min(1e-300)).sum()) / math.log(2))


def independent_bias_bits(visits: Tensor) -> float:
    """visits [D, C] → Miller and Madow's first-order bias of `plug_in_bits`, as if visits were independent."""
    domains, modules = int((visits.sum(1) > 0).sum()), int((visits.sum(0) > 0).sum())
    total = int(visits.sum())
    return (domains - 1) * (modules - 1) / (2 * total * math.log(2)) if total else 0.0


def mutual_information(labels: Tensor, visits: Tensor, num_domains: int) -> dict[str, float]:
    """labels [P] and visits [P, C] of passages."""

    def by_domain(labels: Tensor) -> Tensor:
        return torch.zeros(num_domains, visits.shape[1], dtype=torch.int64).index_add_(0, labels, visits)

    rng = torch.Generator().manual_seed(0)
    shuffled = [plug_in_bits(by_domain(labels[torch.randperm(len(labels), generator=rng)])) for _ in range(NUM_SHUFFLES)]
    seen = by_domain(labels)
    return {
        "bits": round(plug_in_bits(seen), 4),
        "independent_bias_bits": round(independent_bias_bits(seen), 6),
        "shuffled_bits": round(sum(shuffled) / len(shuffled), 4),
        "most_possible_bits": round(math.log2(min(seen.shape)), 4),
    }


def context_row(names: tuple[str, ...], length: int, labels: Tensor, right: Tensor, there: Tensor) -> dict:
    """The share of passages of at least `length` tokens whose domain π names at just that token."""
    by_domain: dict[str, float | None] = {}
    for d, name in enumerate(names):
        of = there & (labels == d)
        by_domain[name] = round(float(right[of].double().mean()), 4) if of.any() else None
    known = [v for v in by_domain.values() if v is not None]
    mean = round(sum(known) / len(known), 4) if known else None
    counts = {name: int((there & (labels == d)).sum()) for d, name in enumerate(names)}
    return {
        "tokens": length,
        "passages": int(there.sum()),
        "passages_by_domain": counts,
        "mean": mean,
        "by_domain": by_domain,
    }
