"""The trainer: next-token loss, a labelled token router, balanced modules, a budget for modules per token.

A run is a function of its config, recipe, passages, thread count and PyTorch build: batches depend on the step
alone and a checkpoint holds all other state, so a resumed run ends with the same weights, bit for bit.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .config import GemConfig, changed
from .data import NO_DOMAIN, Batch, Batches, Passage
from .evaluate import measure
from .model import Gem, GemOutput
from .weights import initialise

CHECKPOINT_FILE, LOG_FILE = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch_size: int
    length: int  # tokens per sequence
    learning_rate: float
    warmup_steps: int
    horizon_steps: int  # where the cosine would end
    cooldown_steps: int  # the last of `steps`, in which the rate also falls linearly, so a run may stop early
    final_rate: float = 0.05  # cosine and cooldown end at this share of their start
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    domain_weight: float = 0.5
    balance_weight: float = 0.01
    budget_weight: float = 0.05
    module_budget: float = 5.0  # wanted effective number of modules, exp of the entropy of a
    fixed_modules: int = 0  # while training every token visits so many, whatever the config's policy; 0: as it says
    seed: int = 0
    bf16: bool = True
    checkpoint_every: int = 50
    evaluate_every: int = 250
    log_every: int = 25


def while_training(config: GemConfig, recipe: Recipe) -> GemConfig:
    """What is trained. A policy has no weights, so what is trained with one can be run with another."""
    if recipe.fixed_modules == 0:
        return config
    k = recipe.fixed_modules
    return changed(config, {"scar.policy": "top_k", "scar.k_min": min(k, config.scar.k_min), "scar.k_max": k})


def rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine; over the last steps a linear cooldown on top of it."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps

    def scaled(left: float) -> float:  # from 1 to final_rate while `left` goes from 1 to 0
        return recipe.final_rate + (1 - recipe.final_rate) * left

    done = min(1.0, (step - recipe.warmup_steps) / max(1, recipe.horizon_steps - recipe.warmup_steps))
    lr = recipe.learning_rate * scaled(0.5 * (1 + math.cos(math.pi * done)))
    left = (recipe.steps - step) / max(1, recipe.cooldown_steps)
    return lr * scaled(min(1.0, max(0.0, left)))


def losses(out: GemOutput, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """The weighted sum under "total", each term unweighted, and the mean number of modules per token."""
    terms = {"next_token": F.cross_entropy(out.logits.flatten(0, 1).float(), batch.targets.flatten())}
    total = terms["next_token"]
    if out.domain_logits is not None:
        logits = out.domain_logits.flatten(0, 1).float()
        terms["domain"] = F.cross_entropy(logits, batch.domains.flatten(), ignore_index=NO_DOMAIN)
        total = total + recipe.domain_weight * terms["domain"]
    balance, budget, used = [], [], []
    for routing in out.routing:
        a = routing.scores.flatten(0, 1).float()  # [N, C]
        visits = routing.modules.flatten(0, 1).float().sum(0)
        # Switch Transformer's: least, 1, when visits and scores are spread evenly over the modules.
        balance.append(a.shape[-1] * (visits / visits.sum().clamp_min(1) * a.mean(0)).sum())
        # Holding the mean of the effective number, not each token's, leaves hard tokens free to take more.
        effective = torch.special.entr(a).sum(-1).exp()
        budget.append((effective.mean() - recipe.module_budget) ** 2)
        used.append(visits.sum() / len(a))
    terms["balance"] = torch.stack(balance).mean()
    terms["budget"] = torch.stack(budget).mean()
    total = total + recipe.balance_weight * terms["balance"] + recipe.budget_weight * terms["budget"]
    return {"total": total, **terms, "modules_per_token": torch.stack(used).mean().detach()}


class Trainer:
    """`folder` receives checkpoint.pt and log.jsonl; an existing checkpoint there is continued."""

    def __init__(self, config: GemConfig, recipe: Recipe, train: list[Passage], valid: list[Passage], folder: str | Path):
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        keep_freed_memory()
        self.config, self.recipe, self.valid, self.folder = config, recipe, valid, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.batches = Batches(train, recipe.batch_size, recipe.length, recipe.seed)
        self.model = Gem(while_training(config, recipe), fast=True)
        initialise(self.model, recipe.seed)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
        self.step = 0
        if (self.folder / CHECKPOINT_FILE).exists():
            self._resume()

    def run(self, until: int | None = None, progress: bool = False, deadline: float | None = None) -> Gem:
        """Trains up to step `until` (all of them when None), leaves a checkpoint there, and gives the model with its own policy.

        At `deadline`, in `time.monotonic()`'s seconds, it stops sooner, with a checkpoint, too.
        """
        until = self.recipe.steps if until is None else until
        bar = tqdm(total=self.recipe.steps, initial=self.step, desc="train", disable=not progress, mininterval=5)
        started, since, saved = time.monotonic(), self.step, self.step
        while self.step < until and not (deadline is not None and time.monotonic() > deadline):
            row = self._train_step()
            self.step += 1
            bar.update()
            last = self.step == until
            evaluate = self.step % self.recipe.evaluate_every == 0 or last
            if self.step % self.recipe.log_every == 0 or evaluate:
                row = {"step": self.step, **{k: round(float(v), 5) for k, v in row.items()}}
                tokens = (self.step - since) * self.recipe.batch_size * self.recipe.length
                row["tokens_per_s"] = round(tokens / (time.monotonic() - started))
                if evaluate and self.valid:
                    row["valid_bits_per_byte"] = round(self._evaluate(), 5)
                    started, since = time.monotonic(), self.step
                with open(self.folder / LOG_FILE, "a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                bar.set_postfix(loss=row["next_token"], modules=row["modules_per_token"])
            if self.step % self.recipe.checkpoint_every == 0 or last:
                self._save()
                saved = self.step
        if self.step > saved:
            self._save()
        bar.close()
        return self._own_policy()

    def _train_step(self) -> dict[str, Tensor | float]:
        lr = rate(self.recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            terms = self._terms()
        self.optimizer.zero_grad()
        terms["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return {**{k: v.detach() for k, v in terms.items()}, "gradient_norm": norm, "learning_rate": lr}

    def _terms(self) -> dict[str, Tensor]:
        """What this step makes smaller, under "total", and what else its row of the log says."""
        batch = self.batches[self.step]
        return losses(self.model(batch.ids), batch, self.recipe)

    def _evaluate(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            return measure(self._own_policy(), self.valid).bits_per_byte()

    def _own_policy(self) -> Gem:
        """The model as the config has it: itself, or a copy where another number of modules is trained."""
        if self.config == self.model.config:
            return self.model
        model = Gem(self.config, fast=True)
        model.load_state_dict(self.model.state_dict())
        return model

    def _identity(self) -> dict:
        return {"config": self.config.to_dict(), "recipe": dataclasses.asdict(self.recipe)}

    def _state(self) -> dict:
        """Everything that the next step depends on and that is not in `_identity`."""
        return {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _save(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        state = self._state()
        torch.save(state | self._identity(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # a run that is killed here still has the previous checkpoint

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        state = torch.load(path, weights_only=True)
        for key, wanted in self._identity().items():
            if state.get(key) != wanted:
                raise ValueError(f"{path}: wanted the {key} {wanted}, found {state.get(key)}: give the run another folder")
        self._load_state(state)
        log = self.folder / LOG_FILE
        if log.exists():  # rows written after the checkpoint will be written again
            rows = log.read_text(encoding="utf-8").splitlines(keepends=True)
            log.write_text("".join(r for r in rows if json.loads(r)["step"] <= self.step), encoding="utf-8")


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks instead of returning them to the kernel, which then zeroes them again.

    Without it a training step takes three times as long; on other C libraries it does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 1 << 30)


if __name__ == "__main__":
    from gem.train_command import main

    main()
