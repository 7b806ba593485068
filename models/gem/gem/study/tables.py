"""From the runs' evaluation.json to tables.json, which has every figure that docs/gem-study.md quotes, and tables.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..evaluate import markdown_table
from . import metrics
from .plan import BUNDLED, ROUTED, Plan, fine_tuned, seeded
from .runs import evaluation_of
from .speed import SPEED_FILE


def collect(plan: Plan, out: Path) -> dict:
    """Everything measured so far. Runs that are not done are named under "missing"."""
    done = {run.name: evaluation_of(out / "runs" / run.name) for run in plan.runs}
    missing = [name for name, found in done.items() if found is None]
    done = {name: found for name, found in done.items() if found is not None}
    domains = plan.runs[0].config.domain_names
    return {
        "plan": plan.name,
        "domains": list(domains),
        "missing": missing,
        "trained": [trained_row(run) for run in done.values() if run["part"] != "preservation"],
        "routed": routed_figures(done[ROUTED]) if ROUTED in done else None,
        "preservation": preservation_figures(domains, done),
        "speed": speed_figures(out / SPEED_FILE),
    }


def speed_figures(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def trained_row(run: dict) -> dict:
    keys = (
        "name", "part", "seed", "trained_tokens", "train_tokens_per_s", "parameters", "touched_parameters",
        "bytes_touched", "multiply_adds", "attended_keys", "intermediate_size",
    )  # fmt: skip
    test = run["test"]
    return {k: run[k] for k in keys} | {
        "bits_per_byte": test["bits_per_byte"],
        "modules_per_token": test["modules_per_token"]["mean"],
        "mutual_information_bits": [m["bits"] for m in test["mutual_information"]],
        "own_domain_share": own_domain_share(list(test["module_visits_by_domain"].values())),
    }


def own_domain_share(visits: list[list[int]]) -> float | None:
    """visits [D][C] → the share of a domain's visits that goes to modules of that domain (c ≡ d mod D), mean over domains."""
    if not all(map(sum, visits)):
        return None
    return float(np.mean([sum(row[d :: len(visits)]) / sum(row) for d, row in enumerate(visits)]))


def routed_figures(run: dict) -> dict:
    test = run["test"]
    modules = test["modules_per_token"]
    return {
        "mutual_information": test["mutual_information"],
        "router_accuracy_by_context": test["router_accuracy_by_context"],
        "modules_by_domain": modules["mean_by_domain"],
        "modules_by_layer": modules["mean_by_layer"],
        "attended_keys_by_layer": test["attended_keys_by_layer"],
    }


def preservation_figures(domains: tuple[str, ...], done: dict[str, dict]) -> dict | None:
    """None until all fine-tuned models of one kind, plain or preserved, are there."""
    out: dict = {}
    matrices = {}
    for kind, preserved in (("plain", False), ("preserved", True)):
        runs = [done.get(fine_tuned(domain, preserved)) for domain in domains]
        if all(runs):
            matrices[kind] = np.array([bits(run, domains) for run in runs])
    if not matrices or ROUTED not in done:
        return None
    base = np.array(base_bits(done, domains))
    score = metrics.scores(base)
    out["base"] = {
        "bits_per_byte": base.round(4).tolist(),
        "dsi": metrics.domain_specialization_index(np.tile(score, (len(score), 1))).round(4).tolist(),
    }
    for kind, m in matrices.items():
        score = metrics.scores(m)
        out[kind] = {
            "bits_per_byte": m.round(4).tolist(),
            "gain": metrics.gain(m, base).round(4).tolist(),
            "forgetting": metrics.forgetting(m, base).round(4).tolist(),
            "dsi": metrics.domain_specialization_index(score).round(4).tolist(),
            "gg": round(metrics.generalization_gap(score), 4),
            "cdtr": metrics.cross_domain_transfer(score).round(4).tolist(),
        }
    if len(matrices) == 2:
        shares = metrics.preservation(matrices["plain"], matrices["preserved"], base)
        out["shares"] = {k: None if v is None else round(v, 4) for k, v in shares.items()}
    return out


def bits(run: dict, domains: tuple[str, ...]) -> list[float]:
    return [run["test"]["bits_per_byte"][d] for d in domains]


def base_bits(done: dict[str, dict], domains: tuple[str, ...]) -> list[float]:
    """The routed model's, on the passages that fine-tuned models are measured on."""
    return [done[ROUTED]["fine_tuned_test"]["bits_per_byte"][d] for d in domains]


def render(t: dict) -> str:
    domains = t["domains"]
    out = [f"# Tables of plan {t['plan']}", ""]
    if t["plan"] == "smoke":
        out += ["A smoke run: models too small and trained too shortly for these figures to say anything of the method.", ""]
    if t["missing"]:
        out += ["Not run yet: " + ", ".join(t["missing"]) + ".", ""]
    if t["trained"]:
        out += ["## Bits per byte, test split", "", bits_table(t["trained"], domains), ""]
        by_seed = seeds_table(t["trained"])
        out += ["## Bits per byte by seed, mean of the domains", "", by_seed, ""] if by_seed else []
        out += ["## Cost per generated token", "", cost_table(t["trained"]), ""]
    if t["speed"]:
        out += ["## Speed, compiled", "", speed_table(t["speed"]), ""]
    if t["routed"]:
        out += ["## Where the routed model's tokens go", "", layer_table(t["routed"]), ""]
        rows = [[d, f"{t['routed']['modules_by_domain'][d]:.2f}"] for d in domains]
        out += [markdown_table(["domain", "modules per token"], rows), ""]
        out += ["## Token router", "", context_table(t["routed"]["router_accuracy_by_context"], domains), ""]
    if t["preservation"]:
        out += ["## Knowledge preservation", "", *preservation_tables(t["preservation"], domains)]
    return "\n".join(out)


def bits_table(rows: list[dict], domains: list[str]) -> str:
    body = []
    for r in rows:
        b, routed = r["bits_per_byte"], routed_like(rows, r)
        apart = "–" if routed is None else f"{100 * (b['mean'] / routed['bits_per_byte']['mean'] - 1):+.1f} %"
        body.append([r["name"], f"{b['mean']:.3f}", apart, *(f"{b[d]:.3f}" for d in domains)])
    return markdown_table(["model", "mean", "against the routed one", *domains], body)


def routed_like(rows: list[dict], row: dict) -> dict | None:
    """The routed model that was trained for as long and with the same seed."""
    name = BUNDLED if row["part"] == "bundled" else seeded(ROUTED, row["seed"])
    return next((r for r in rows if r["name"] == name), None)


def seeds_table(rows: list[dict]) -> str | None:
    """Models that were trained with several seeds; None when there are none."""
    by_name: dict[str, dict[int, float]] = {}
    for r in rows:
        by_name.setdefault(r["name"].removesuffix(f".seed{r['seed']}"), {})[r["seed"]] = r["bits_per_byte"]["mean"]
    seeds = sorted({r["seed"] for r in rows})
    body = [
        [name, *(f"{bits[s]:.4f}" if s in bits else "–" for s in seeds), f"{np.mean(list(bits.values())):.4f}",
         f"{max(bits.values()) - min(bits.values()):.4f}"]
        for name, bits in by_name.items()
        if len(bits) > 1
    ]  # fmt: skip
    return markdown_table(["model", *(f"seed {s}" for s in seeds), "mean", "largest − smallest"], body) if body else None


def cost_table(rows: list[dict]) -> str:
    body = [
        [r["name"], f"{r['parameters']:,}", f"{r['touched_parameters']:,}", f"{r['modules_per_token']:.2f}",
         f"{r['attended_keys']:.1f}", f"{r['bytes_touched'] / 1e6:.3f}", f"{r['multiply_adds'] / 1e6:.3f}",
         f"{np.mean(r['mutual_information_bits']):.3f}" if r["modules_per_token"] else "–",
         f"{100 * r['own_domain_share']:.0f} %" if r["own_domain_share"] is not None else "–"]
        for r in rows
    ]  # fmt: skip
    heads = ["model", "parameters", "touched", "modules", "keys attended to", "MB touched (fp16)", "million multiply-adds",
             "I(domain; module), mean of layers", "visits to own domain's modules"]  # fmt: skip
    return markdown_table(heads, body)


def speed_table(speed: dict) -> str:
    base = speed["models"].get(ROUTED)

    def times(routed: float | None, other: float) -> str:
        return "–" if routed is None else f"{other / routed:.2f} ×"

    body = []
    for name, m in speed["models"].items():
        cpu, cycles = m["decode_tokens_per_s"], m["npu_decode_cycles"]
        rate, time = (base["decode_tokens_per_s"], base["npu_decode_cycles"]) if base else (None, None)
        body.append(
            [name, f"{cpu:,.0f}", times(rate, cpu), f"{m['prefill_tokens_per_s']:,.0f}", f"{cycles:,}", times(time, cycles),
             f"{m['npu_prefill_cycles']:,}", f"{m['npu_decode_dram_bytes'] / 1e6:.3f}", f"{m['npu_decode_energy_uj']:.1f}"]
        )  # fmt: skip
    npu = speed["machine"]
    heads = ["model", "decode tokens/s, this CPU", "× routed", "prefill tokens/s, this CPU", f"decode cycles, {npu}", "× routed",
             f"prefill cycles, {npu}", "MB from DRAM a token", "µJ a token"]  # fmt: skip
    return markdown_table(heads, body)


def layer_table(routed: dict) -> str:
    rows = [
        [str(i), f"{routed['modules_by_layer'][i]:.2f}", f"{routed['attended_keys_by_layer'][i]:.1f}",
         f"{m['bits']:.3f}", f"{m['shuffled_bits']:.3f}", f"{m['independent_bias_bits']:.6f}"]
        for i, m in enumerate(routed["mutual_information"])
    ]  # fmt: skip
    heads = ["layer", "modules per token", "keys attended to", "I(domain; module), bits", "of it bias, shuffled labels",
             "of it bias, Miller–Madow"]  # fmt: skip
    return markdown_table(heads, rows)


def context_table(rows: list[dict], domains: list[str]) -> str:
    def share(v: float | None) -> str:
        return "–" if v is None else f"{100 * v:.1f} %"

    body = [
        [str(r["tokens"]), str(r["passages"]), share(r["mean"]), *(share(r["by_domain"][d]) for d in domains)] for r in rows
    ]
    return markdown_table(["tokens read", "passages", "right", *domains], body)


def preservation_tables(p: dict, domains: list[str]) -> list[str]:
    kinds = [kind for kind in ("plain", "preserved") if kind in p]
    rows = []
    for i, d in enumerate(domains):
        row = [d, f"{p['base']['bits_per_byte'][i]:.3f}"]
        rows.append(row + [f"{p[kind][key][i]:+.4f}" for key in ("gain", "forgetting") for kind in kinds])
    means = [f"{np.mean(p[kind][key]):+.4f}" for key in ("gain", "forgetting") for kind in kinds]
    rows.append(["mean", f"{np.mean(p['base']['bits_per_byte']):.3f}", *means])
    heads = ["fine-tuned on", "before, bits per byte", *(f"{key}, {kind}" for key in ("gain", "forgetting") for kind in kinds)]
    out = [markdown_table(heads, rows), ""]
    if "shares" in p:
        less, kept = p["shares"]["less_forgetting"], p["shares"]["gain_kept"]
        less = "undefined: plain fine-tuning forgot nothing" if less is None else f"{100 * less:.1f} %"
        kept = "undefined: plain fine-tuning gained nothing" if kept is None else f"{100 * kept:.1f} %"
        out += [f"Less forgetting: {less}. In-domain gain kept: {kept}.", ""]
    rows = [["before", "–", *(f"{v:+.3f}" for v in p["base"]["dsi"])]]
    rows += [[kind, f"{p[kind]['gg']:+.4f}", *(f"{v:+.3f}" for v in p[kind]["dsi"])] for kind in kinds]
    out += [markdown_table(["", "GG", *(f"DSI {d}" for d in domains)], rows), ""]
    for kind in kinds:
        rows = [[d, *(f"{v:.3f}" for v in row)] for d, row in zip(domains, p[kind]["cdtr"])]
        out += [markdown_table([f"CDTR, {kind}: from ↓ to →", *domains], rows), ""]
    return out
