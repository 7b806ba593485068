"""Adaptive knowledge preservation (docs/gem.md §7): fine-tuning on one domain while being held to what was known.

    L = CE(target domain) + Σ_{d ≠ target} w_d · KL(teacher ‖ student on domain d)

The teacher is the model that fine-tuning starts from. KL is the mean over the tokens of one sequence of training text a
domain and step. Every `refresh_every` steps the student's loss on a few valid passages is measured, and

    w_d = weight · (floor + ℓ_d) / Σ_{j ≠ target} (floor + ℓ_j)      ℓ_d = max(0, bits per byte now − the teacher's)

so the weights always sum to `weight`, are equal as long as nothing was lost, and follow the loss where there is one.
With `weight` 0 this is plain fine-tuning. π is a constant to these losses (docs/gem.md §1), so the token router stays
the teacher's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Batches, Passage
from .evaluate import measure
from .model import Gem
from .train import Recipe, Trainer


@dataclass(frozen=True)
class Preservation:
    target: str  # the domain that is fine-tuned on
    weight: float  # Σ_d w_d; 0: plain fine-tuning
    floor: float = 0.01  # bits per byte
    refresh_every: int = 10
    length: int = 128  # tokens of each of the other domains in a step


def distillation_weights(lost: Tensor, target: int, weight: float, floor: float) -> Tensor:
    """lost [D] bits per byte more than the teacher's → w [D], 0 at the target."""
    raised = floor + lost.double().clamp_min(0)
    raised[target] = 0
    total = raised.sum()
    return weight * raised / total if total > 0 else raised


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Logits [B, T, V] of both → KL(teacher ‖ student) in nats [B], mean over tokens."""
    known, new = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return (known.exp() * (known - new)).sum(-1).mean(-1)


class FineTuner(Trainer):
    """A trainer that starts from `teacher` and minimises the L above. `probe`: valid passages of all domains."""

    def __init__(
        self,
        teacher: Gem,
        preservation: Preservation,
        recipe: Recipe,
        train: list[Passage],
        probe: list[Passage],
        folder: str | Path,
    ):
        config = teacher.config
        self.teacher, self.preservation, self.probe = teacher, preservation, probe
        self.target = config.domain_names.index(preservation.target)
        self.others = [d for d in range(config.num_domains) if d != self.target]
        self.weights = torch.zeros(config.num_domains, dtype=torch.float64)
        super().__init__(config, recipe, [p for p in train if p.domain == self.target], [], folder)
        if self.step == 0:
            self.model.load_state_dict(teacher.state_dict())
        if preservation.weight:
            self.replays = [
                Batches([p for p in train if p.domain == d], 1, preservation.length, recipe.seed) for d in self.others
            ]
            self.known = self._probe_bits(teacher)

    def _terms(self) -> dict[str, Tensor]:
        batch = self.batches[self.step]
        out = self.model(batch.ids)
        terms = {"next_token": F.cross_entropy(out.logits.flatten(0, 1).float(), batch.targets.flatten())}
        total = terms["next_token"]
        if self.preservation.weight:
            if self.step % self.preservation.refresh_every == 0:
                self._refresh()
            ids = torch.cat([replay[self.step].ids for replay in self.replays])
            with torch.no_grad():
                known = self.teacher(ids).logits
            each = divergence(known, self.model(ids).logits)
            terms["distillation"] = (self.weights[self.others].float() * each).sum()
            total = total + terms["distillation"]
        visits = torch.stack([r.modules.sum(-1).double().mean() for r in out.routing])
        return {"total": total, **terms, "modules_per_token": visits.mean()}

    def _probe_bits(self, model: Gem) -> Tensor:
        """[D] bits per byte"""
        tally = measure(model, self.probe)
        return tally.bits / tally.num_bytes

    def _refresh(self) -> None:
        lost = self._probe_bits(self.model) - self.known
        p = self.preservation
        self.weights = distillation_weights(lost, self.target, p.weight, p.floor)

    def _identity(self) -> dict:
        return super()._identity() | {"preservation": dataclasses.asdict(self.preservation)}

    def _state(self) -> dict:
        return super()._state() | {"weights": self.weights}

    def _load_state(self, state: dict) -> None:
        super()._load_state(state)
        self.weights = state["weights"]
