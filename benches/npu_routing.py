#!/usr/bin/env python3
"""What routing costs on the NPU, over machines, tokens, modules and modules per token: a CSV and a plot.

Makes GEM folders of one layer with made-up weights (width 192, modules of 96, as gem-mini; C modules, policy top_k with k_max = C, no token
router), compiles each for each machine in the NPU's default recipe (modules int4:32), and times them without values under
`--routing`. Tokens 1 is one decoded token; more are a prefill. k = C is dense: every token goes through all modules. Nothing but Python's
standard library is needed. From the repository, after `cargo build --release`:

    python3 benches/npu_routing.py --csv out/routing.csv --svg docs/routing-on-the-npu.svg
    python3 benches/npu_routing.py --from out/routing.csv --svg docs/routing-on-the-npu.svg --tables    # without running anything

`--shares MODEL` instead prints what routing takes of a whole model, prefill of 128 tokens and one decoded behind them, as per cent of the
cycles; a model with `--routing` is timed without values, without it its own router decides:

    python3 benches/npu_routing.py --shares tests/models/gem-mini
    python3 benches/npu_routing.py --shares preset:gem-paper --routing uniform

Columns of the CSV: cycles of the run, of the layer's routed part (`layers.0.modules`, its grouping and the selection) and of its stages;
modules that anybody chose, visits of the most loaded; bytes that the op of modules reads from DRAM.
"""
import argparse
import csv
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MACHINES = ["edge-16", "edge-32", "mobile-64"]
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128]
MODULES = [4, 8, 16, 32, 64]
# Modules whose grid is also timed with skewed routing.
SKEWED = [16, 64]
WIDTH, INNER, HEADS, KEY_HEADS, HEAD, KEY_DIM, GENERAL, VOCAB = 192, 96, 6, 2, 32, 32, 384, 64
STAGES = ["select", "group", "gather", "scatter"]
COLUMNS = ["machine", "routing", "modules", "per_token", "tokens", "cycles", "layer_cycles", "modules_cycles", *STAGES, "matrix", "load",
           "reached", "most", "dram_read"]


# --- models ---------------------------------------------------------------------------------------------------------------------


def config(modules):
    return {
        "model_type": "gem", "architectures": ["GemForCausalLM"], "is_causal": True, "vocab_size": VOCAB, "hidden_size": WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "head_dim": HEAD,
        "intermediate_size": GENERAL, "module_intermediate_size": INNER, "num_domains": 1, "domain_names": ["all"],
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256, "tie_word_embeddings": True, "num_labels": 0,
        "scar": {"num_clusters": modules, "dim": KEY_DIM, "lambda": 0.5, "policy": "top_k", "k_min": 1, "k_max": modules, "p": 0.7,
                 "tau": 0.1, "capacity_factor": 1.25, "norm_gates": True, "memory": False},
        "attention": {"kind": "full", "window": 64, "sinks": 4, "cluster_cap": 64}, "token_router": None,
    }


def tensors(modules):
    """name -> shape."""
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": [VOCAB, WIDTH], "model.norm.weight": [WIDTH]}
    shapes |= {f"{layer}{norm}.weight": [WIDTH] for norm in ("attn_norm", "mlp_norm")}
    for name, rows in (("q", HEADS * HEAD), ("k", KEY_HEADS * HEAD), ("v", KEY_HEADS * HEAD)):
        shapes[f"{layer}attn.{name}_proj.weight"] = [rows, WIDTH]
    shapes[f"{layer}attn.o_proj.weight"] = [WIDTH, HEADS * HEAD]
    shapes[f"{layer}scar.query.weight"] = [KEY_DIM, WIDTH]
    shapes[f"{layer}scar.keys"] = [modules, KEY_DIM]
    paths = [("general", GENERAL)] + [(f"modules.{m}", INNER) for m in range(modules)]
    for path, inner in paths:
        for name, shape in (("gate", [inner, WIDTH]), ("up", [inner, WIDTH]), ("down", [WIDTH, inner])):
            shapes[f"{layer}{path}.{name}_proj.weight"] = shape
    return shapes


def write_model(folder, modules):
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config(modules), file)
    header, at = {}, 0
    for name, shape in tensors(modules).items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    drawn = random.Random(1)
    block = b"".join(struct.pack("<e", drawn.gauss(0, 0.02)) for _ in range(4096))
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write((block * (at // len(block) + 1))[:at])


# --- measuring ------------------------------------------------------------------------------------------------------------------


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def simulate(lapidary, artifact, routing, per_token, tokens, max_new):
    """The numbers of a CSV row, of all calls together."""
    report = json.loads(run([lapidary, "simulate", artifact, "--timing-only", "--routing", routing, "--modules-per-token", str(per_token),
                             "--tokens", str(tokens), "--max-new", str(max_new), "--format", "json"]))
    ops = {op["op"]: op for op in report["ops"]}
    stages = {stage["stage"]: stage["cycles"] for stage in report["routing"]["stages"]}
    modules = ops["layers.0.modules"]
    visits = report["selections"][0]["visits"]
    numbers = {name: stages.get(name, 0) for name in STAGES}
    numbers |= {
        "cycles": report["cycles"],
        "layer_cycles": sum(ops[f"layers.0.{op}"]["cycles"] for op in ("scar.select", "modules.group", "modules")),
        "modules_cycles": modules["cycles"],
        "matrix": modules["unit_cycles"].get("matrix", 0),
        "load": modules["unit_cycles"].get("load", 0),
        "dram_read": modules["dram_read"],
    }
    return numbers, visits


def measure(lapidary, artifact, routing, per_token, tokens):
    if tokens > 1:
        numbers, visits = simulate(lapidary, artifact, routing, per_token, tokens, 0)
    else:
        # What the decoded token adds to a prefill.
        before, seen = simulate(lapidary, artifact, routing, per_token, 1, 0)
        both, visits = simulate(lapidary, artifact, routing, per_token, 1, 1)
        numbers = {name: both[name] - before[name] for name in both}
        visits = [b - a for a, b in zip(seen, visits)]
    return numbers | {"reached": sum(v > 0 for v in visits), "most": max(visits)}


def powers(most):
    return [1 << i for i in range(most.bit_length())]


def measured(lapidary):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for modules in MODULES:
            model = os.path.join(folder, f"c{modules}")
            write_model(model, modules)
            for machine in MACHINES:
                artifact = os.path.join(folder, f"{machine}-{modules}.lapis")
                run([lapidary, "compile", model, "--target", f"npu:{machine}", "--max-tokens", "256", "--chunk-tokens", "128", "-o", artifact])
                for routing in ["uniform", "zipf:1.1"] if modules in SKEWED else ["uniform"]:
                    for per_token in powers(modules):
                        if routing != "uniform" and per_token == modules:
                            continue  # all modules, however they are drawn
                        for tokens in TOKENS:
                            numbers = measure(lapidary, artifact, routing, per_token, tokens)
                            key = {"machine": machine, "routing": routing, "modules": modules, "per_token": per_token, "tokens": tokens}
                            rows.append(key | numbers)
                print(f"{modules} modules on {machine}: {len(rows)} rows", file=sys.stderr)
    return rows


STAGE_COLUMNS = ["token_router", "scores", "select", "cluster", "group", "gather", "scatter"]


def shares(lapidary, model, routing, tokens):
    """Lines of a table: phase, machine, ms, stages, all of routing, products with the modules' weights."""
    lines = []
    for machine in MACHINES:
        def cycles(max_new):
            command = [lapidary, "simulate", model, "--machine", machine, "--tokens", str(tokens), "--max-new", str(max_new), "--max-tokens", "256"]
            command += ["--timing-only", "--routing", routing] if routing else ["--ignore-eos"]
            report = json.loads(run(command + ["--format", "json"]))
            found = {stage["stage"]: stage["cycles"] for stage in report["routing"]["stages"]}
            modules = sum(op["cycles"] for op in report["ops"] if op["op"].endswith(".modules"))
            own = modules - found.get("gather", 0) - found.get("scatter", 0)
            return [report["latency_ms"], report["cycles"], *(found.get(s, 0) for s in STAGE_COLUMNS), report["routing"]["cycles"], own]

        new = 1 if routing else 16
        before = cycles(0)
        after = [(b - a) / new for a, b in zip(before, cycles(new))]
        for phase, (ms, total, *parts) in (("prefill", before), ("decode", after)):
            lines.append([phase, machine, f"{ms:.3g}", *(f"{100 * part / total:.2f}" for part in parts)])
    lines.sort(key=lambda line: line[0], reverse=True)
    table(["phase", "machine", "ms", *STAGE_COLUMNS, "routing", "products"], lines)


# --- a closed form --------------------------------------------------------------------------------------------------------------

# R, C, overlap, bytes per cycle of DRAM less refresh, vector lanes, what a scatter-add's step takes (two streams of y at one port: 2)
SHAPES = {
    "edge-16": (16, 16, False, 2 * 2.133 / 0.5 * (1 - 0.280 / 3.904), 16, 2),
    "edge-32": (32, 32, False, 2 * 2.133 * (1 - 0.280 / 3.904), 32, 1),
    "mobile-64": (64, 64, True, 2 * 2 * 6.4 * (1 - 0.280 / 3.906), 64, 1),
}
GROUP = 32
MODULE_BYTES = 3 * WIDTH * INNER * 9 // 16  # int4, an f16 per 32
DIVIDE, EXP = 8, 8


def up(a, b):
    return -(-a // b)


def array_cycles(machine, rows):
    """Of a module's three products over so many rows (M3, M4): tiles are no taller than a group."""
    r, c, overlap = SHAPES[machine][:3]
    tall = min(r, GROUP)
    total = 0
    for inputs, outputs in ((WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)):
        tiles = up(inputs, tall) * up(outputs, c)
        total += r + (tiles - 1) * max(rows, r) + rows + r + c - 2 if overlap else tiles * (2 * r + c + rows - 2)
    return total


def vector_cycles(machine, rows):
    """SiLU and product, quantization of what is hidden, gather, scatter-add."""
    lanes, port = SHAPES[machine][4:]
    silu = up(INNER, lanes) * (EXP + DIVIDE + 1)
    quantize = 2 * up(INNER, lanes) + 2 * DIVIDE
    return rows * (silu + quantize + up(WIDTH, 4 * lanes) + 1 + up(WIDTH, lanes) * port)


def blocks_of(at, machine, modules):
    """What the program does with many rows of a module, from the bytes of a dense call: rows of a block (weights are read once per
    block) and bytes of DRAM per row beside the weights (codes and residual stream of a machine where they are not on chip)."""
    most = TOKENS[-1]
    ratio = at[machine, modules, modules, most]["dram_read"] / (modules * MODULE_BYTES)
    count = 1 << int(math.log2(ratio))
    read = (ratio - count) * MODULE_BYTES / most
    return most // count, read + (4 * WIDTH if read > 4 * WIDTH else 0)


def bounds(at, machine, modules, per_token, tokens, uncut=False):
    """Cycles of the op of modules if DRAM and array work at the same time, and if one waits for the other. All modules that anybody
    chose have the same number of rows here. Uncut: all rows of a module are one block."""
    number = at[machine, modules, per_token, tokens]["reached"]
    rows = tokens * per_token / number
    size, row_bytes = blocks_of(at, machine, modules)
    size = tokens if uncut else size
    bytes_per_cycle = SHAPES[machine][3]
    low = high = 0
    while rows > 0:
        here = min(rows, size)
        array, vector = array_cycles(machine, here), vector_cycles(machine, here)
        fetch, move = MODULE_BYTES / bytes_per_cycle, here * row_bytes / bytes_per_cycle
        low += max(array, fetch) + vector + move
        high += array + fetch + vector + move
        rows -= here
    return number * low, number * high


# --- what a document shows ------------------------------------------------------------------------------------------------------


def index(rows, routing="uniform"):
    return {(r["machine"], r["modules"], r["per_token"], r["tokens"]): r for r in rows if r["routing"] == routing}


def gain(at, machine, modules, per_token, tokens, dispatch=True):
    """Cycles of dense over cycles of routed, of the layer's routed part; dense without its own dispatch if so wanted."""
    dense = at[machine, modules, modules, tokens]
    cycles = dense["layer_cycles"] - (0 if dispatch else sum(dense[stage] for stage in STAGES))
    return cycles / at[machine, modules, per_token, tokens]["layer_cycles"]


def table(head, lines):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def tables(rows):
    at, skewed = index(rows), index(rows, "zipf:1.1")
    number = lambda n: f"{round(n):,}"
    print("Dense / routed, 16 modules, 2 per token; in brackets dense without dispatch\n")
    table(["machine", *(f"T = {t}" for t in TOKENS)],
          [[m, *(f"{gain(at, m, 16, 2, t):.2f} ({gain(at, m, 16, 2, t, False):.2f})" for t in TOKENS)] for m in MACHINES])
    print("Dense / routed without dispatch, half of the modules\n")
    table(["machine", "modules", *(f"T = {t}" for t in TOKENS)],
          [[m, str(c), *(f"{gain(at, m, c, c // 2, t, False):.2f}" for t in TOKENS)] for m in MACHINES for c in MODULES])
    print("Share of dispatch in the routed part, 16 modules, %\n")
    share = lambda r: f"{100 * sum(r[s] for s in STAGES) / r['layer_cycles']:.1f}"
    table(["machine", "k", *(f"T = {t}" for t in TOKENS)],
          [[m, str(k), *(share(at[m, 16, k, t]) for t in TOKENS)] for m in MACHINES for k in (1, 2, 4, 8, 16)])
    print("Closed form and measured, op of modules, cycles\n")
    lines = []
    for m in MACHINES:
        for c, k, t in ((16, 2, 1), (16, 16, 1), (16, 2, 16), (16, 2, 128), (16, 16, 128), (64, 2, 16), (64, 2, 128)):
            low, high = bounds(at, m, c, k, t)
            seen = at[m, c, k, t]["modules_cycles"]
            lines.append([m, str(c), str(k), str(t), number(low), number(high), number(seen), f"{seen / low:.2f}", f"{seen / high:.2f}"])
    table(["machine", "C", "k", "T", "max", "sum", "measured", "/ max", "/ sum"], lines)
    for m in MACHINES:
        ratios = [[r["modules_cycles"] / b for b in bounds(at, m, r["modules"], r["per_token"], r["tokens"])] for r in rows
                  if r["machine"] == m and r["routing"] == "uniform"]
        low, high = zip(*ratios)
        print(f"{m}: measured / max {min(low):.2f} to {max(low):.2f}, measured / sum {min(high):.2f} to {max(high):.2f}")
    print("\nDense / routed of 128 tokens, 16 modules, 2 per token: measured, closed form (both bounds), closed form with uncut blocks\n")
    ratios = lambda m, uncut: [d / r for d, r in zip(bounds(at, m, 16, 16, 128, uncut), bounds(at, m, 16, 2, 128, uncut))]
    both = lambda pair: f"{pair[0]:.2f}, {pair[1]:.2f}"
    table(["machine", "measured", "closed form", "uncut"],
          [[m, f"{at[m, 16, 16, 128]['modules_cycles'] / at[m, 16, 2, 128]['modules_cycles']:.2f}", both(ratios(m, False)), both(ratios(m, True))]
           for m in MACHINES])
    print("Rows of a block, bytes of DRAM per row, by modules\n")
    table(["machine", *map(str, MODULES)], [[m, *("%d, %d" % blocks_of(at, m, c) for c in MODULES)] for m in MACHINES])
    print("Bytes of dense over those of the modules, 16 modules\n")
    table(["machine", *(f"T = {t}" for t in TOKENS)],
          [[m, *(f"{at[m, 16, 16, t]['dram_read'] / (16 * MODULE_BYTES):.2f}" for t in TOKENS)] for m in MACHINES])
    print("Zipf 1.1 over uniform, routed part, 2 per token\n")
    one = lambda m, c, t: (skewed[m, c, 2, t], at[m, c, 2, t])
    table(["machine", "C", *(f"T = {t}" for t in TOKENS)],
          [[m, str(c), *(f"{z['layer_cycles'] / u['layer_cycles']:.2f}" for z, u in (one(m, c, t) for t in TOKENS))]
           for m in MACHINES for c in SKEWED])
    table(["C", "what", *(f"T = {t}" for t in TOKENS)],
          [[str(c), what, *(f"{z[key]} / {u[key]}" for z, u in (one("edge-32", c, t) for t in TOKENS))]
           for c in SKEWED for what, key in (("reached", "reached"), ("most loaded", "most"))])


STYLE = """
svg { --ink: #1f2328; --quiet: #656d76; --rule: #d0d7de; --l0: #0550ae; --l1: #1a7f37; --l2: #9a6700; --l3: #a40e66; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --quiet: #9198a1; --rule: #3d444d; --l0: #79b8ff; --l1: #56d364; --l2: #e3b341; --l3: #ff8ac4; }
}
text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.t { font-weight: 600; font-size: 12px; } .q { fill: var(--quiet); } .m { text-anchor: middle; } .e { text-anchor: end; }
.r { stroke: var(--rule); fill: none; } .one { stroke: var(--ink); stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 2; } .cell { fill: #2188ff; stroke: var(--rule); stroke-width: .5; }
"""


def svg(rows, path):
    """Above: dense over routed, over tokens, 16 modules. Below: the same over tokens and modules, 2 per token."""
    at = index(rows)
    wide, high, left, top, gap = 250, 190, 52, 62, 42
    below = top + high + 92
    cell_w, cell_h = wide / len(TOKENS), 26
    parts = []
    put = lambda text: parts.append(text)
    write = lambda x, y, text, kind="": put(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{text}</text>')
    width = left + 3 * wide + 2 * gap + 12
    height = below + len(MODULES) * cell_h + 44
    write(left, 18, "Cycles of dense over cycles of routed: modules, selection and grouping of one layer", "t")
    write(left, 34, "Dense: all modules for every token, without gather, scatter-add, selection and grouping. Above 1 routed is faster. T = 1: decode.", "q")
    ticks = [1, 2, 4, 8, 16]
    y_of = lambda ratio: top + high - high * (math.log2(ratio) + 0.5) / 4.8
    x_of = lambda tokens: cell_w * (math.log2(tokens) + 0.5)
    for p, machine in enumerate(MACHINES):
        x0 = left + p * (wide + gap)
        write(x0 + wide / 2, top - 8, f"{machine}, 16 modules", "t m")
        for tick in ticks:
            put(f'<path class="{"one" if tick == 1 else "r"}" d="M{x0} {y_of(tick):.1f}h{wide}"/>')
            write(x0 - 6, y_of(tick) + 4, f"{tick}×", "e q")
        for i, k in enumerate((1, 2, 4, 8)):
            points = [(x0 + x_of(t), y_of(gain(at, machine, 16, k, t, False))) for t in TOKENS]
            put(f'<polyline class="line" style="stroke:var(--l{i})" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
            for x, y in points:
                put(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:var(--l{i})"/>')
            if p == 2:
                put(f'<rect x="{x0 + wide - 74}" y="{top + 4 + 15 * i}" width="14" height="3" style="fill:var(--l{i})"/>')
                write(x0 + wide - 56, top + 9 + 15 * i, f"k = {k} of 16")
        for t in TOKENS:
            write(x0 + x_of(t), top + high + 15, t, "m q")
        write(x0 + wide / 2, top + high + 31, "tokens of the call", "m q")
        write(x0 + wide / 2, below - 8, f"{machine}, 2 modules per token", "t m")
        for i, modules in enumerate(MODULES):
            y = below + i * cell_h
            write(x0 - 6, y + 17, modules, "e q")
            for j, t in enumerate(TOKENS):
                ratio = gain(at, machine, modules, 2, t, False)
                shade = min(max(math.log2(ratio) / 6, 0), 1) ** 0.8
                put(f'<rect class="cell" x="{x0 + j * cell_w:.1f}" y="{y}" width="{cell_w:.1f}" height="{cell_h}" fill-opacity="{shade:.2f}"/>')
                write(x0 + (j + 0.5) * cell_w, y + 17, f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}", "m")
        for j, t in enumerate(TOKENS):
            write(x0 + (j + 0.5) * cell_w, below + len(MODULES) * cell_h + 15, t, "m q")
        write(x0 + wide / 2, below + len(MODULES) * cell_h + 31, "tokens of the call", "m q")
    for y, text in ((top + high / 2, "dense / routed"), (below + len(MODULES) * cell_h / 2, "modules")):
        put(f'<text class="m q" transform="translate(14 {y:.1f}) rotate(-90)">{text}</text>')
    with open(path, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}">\n'
                   f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", help="where the numbers go")
    parser.add_argument("--from", dest="source", help="numbers of an earlier run, instead of measuring")
    parser.add_argument("--svg", help="where the plot goes")
    parser.add_argument("--tables", action="store_true", help="prints what docs/routing-on-the-npu.md shows")
    parser.add_argument("--shares", metavar="MODEL", help="instead of all that: what routing takes of a model")
    parser.add_argument("--routing", help="for --shares: where tokens go, without values")
    parser.add_argument("--lapidary", default=os.path.join(ROOT, "target", "release", "lapidary"))
    args = parser.parse_args()
    if args.shares:
        return shares(args.lapidary, args.shares, args.routing, 128)
    if args.source:
        with open(args.source, newline="") as file:
            rows = [{k: v if k in ("machine", "routing") else int(v) for k, v in row.items()} for row in csv.DictReader(file)]
    else:
        rows = measured(args.lapidary)
    if args.csv:
        os.makedirs(os.path.dirname(args.csv) or ".", exist_ok=True)
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if args.svg:
        svg(rows, args.svg)
    if args.tables:
        tables(rows)


if __name__ == "__main__":
    main()
