#!/usr/bin/env python3
"""Times one mixture-of-experts layer compiled by lapidary: SwiGLU experts, top-k by the softmax of a router's logits.

The layer is a safetensors file of float32 tensors, rows = outputs: Wr [E, d], Wg and Wu [E, f, d], Wd [E, d, f]; inputs xT [T, d] and
reference outputs yT [T, d] of the same T. It is written as a `.lir` graph whose embedding table is xT, compiled in a recipe for
this machine, run once for its error and then timed by `lapidary bench` on the same rows. The last line is a JSON object:

    {"min_ms": ..., "median_ms": ..., "relerr": ..., "limit_ratio": ..., "precision": "int4"}

Needs numpy. From the repository, after `cargo build --release`:

    python benches/moe_layer.py layer.safetensors --tokens 128 --threads 1 --quant int4
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read_safetensors(path):
    """name -> float32 array."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            sys.exit(f"{path}: {name}: wanted F32, found {entry['dtype']}")
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, "<f4").tobytes())


def lir(tokens, width, inner, experts, k):
    """The layer as a graph; `%1` are the input rows. A language model has logits: those of the last row alone are
    a dot product per token of the table, nothing beside the experts."""
    weights = [f"weight @x: f32[{tokens}, {width}] routing = stored", f"weight @Wr: f32[{experts}, {width}] routing = stored"]
    names = {"g": [], "u": [], "d": []}
    for kind, rows, cols in (("g", inner, width), ("u", inner, width), ("d", width, inner)):
        for e in range(experts):
            weights.append(f"weight @{kind}.{e}: f32[{rows}, {cols}] modules = stored")
            names[kind].append(f"@{kind}.{e}")
    operands = ", ".join(names["g"] + names["u"] + names["d"])
    return f"""lir 1
model {{
  name = "moe-layer", vocab_size = {tokens}, hidden_size = {width}, num_layers = 1, num_clusters = {experts},
  max_position_embeddings = 1048576
}}
phase imported
symbol N0 <= {k}
{chr(10).join(weights)}
input "ids" = %0: u32[T]
%1: f32[T, {width}] = embed(%0, @x) "x"
%2: f32[T, {experts}] = route.scores(%1, _, @Wr) {{scale = 1.0, lambda = 0.0, num_domains = 1}} "scores"
%3: u8[T, {experts}], %4: f32[T, {experts}] = route.select(%2) {{policy = top_k, k_min = {k}, k_max = {k}, p = 1.0, tau = 0.0, \
capacity_factor = 1.0, norm_gates = true}} "select"
%5: u32[{experts + 1}], %6: u32[N0], %7: f32[N0] = route.group(%3, %4) "group"
%8: f32[T, {width}] = expert.ffn(%1, %5, %6, %7, _, {operands}) "experts"
%9: f32[S, {width}] = last_rows(%8) "last"
%10: f32[S, {tokens}] = linear(%9, @x, _) {{act = none}} "logits"
output "y" = %8
output "logits" = %10
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("layer", help="the layer's safetensors file")
    parser.add_argument("--tokens", type=int, required=True, help="T: the file has xT and yT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quant", default="int8", help="recipe of the experts' weights: fp32, fp16, int8, int4")
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--lapidary", default=os.path.join(ROOT, "target", "release", "lapidary"))
    args = parser.parse_args()
    tensors = read_safetensors(args.layer)
    x, wanted = tensors[f"x{args.tokens}"], tensors[f"y{args.tokens}"]
    experts, inner, width = tensors["Wg"].shape
    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name)
        stored = {"x": x, "Wr": tensors["Wr"]}
        for kind, name in (("g", "Wg"), ("u", "Wu"), ("d", "Wd")):
            stored.update({f"{kind}.{e}": tensors[name][e] for e in range(experts)})
        write_safetensors(path("layer.safetensors"), stored)
        with open(path("layer.lir"), "w") as file:
            file.write(lir(args.tokens, width, inner, experts, args.top_k))
        np.save(path("ids.npy"), np.arange(args.tokens, dtype=np.int64))
        call = lambda *command: subprocess.run([args.lapidary, "-q", *command], check=True, stdout=subprocess.PIPE, text=True).stdout
        call("compile", path("layer.lir"), "--target", "native", "--quant", args.quant, "-o", path("layer.lapis"))
        call("run", path("layer.lapis"), "--input", "ids=@" + path("ids.npy"), "--output", path("y.npz"))
        found = np.load(path("y.npz"))["y"]
        timed = call("bench", path("layer.lapis"), "--tokens", str(args.tokens), "--threads", str(args.threads), "--context", "1",
                     "--ids", path("ids.npy"), "--format", "json")
        result = json.loads(timed)["results"][0]
    relerr = float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))
    precision = {"fp32": "fp32", "fp16": "f16", "int8": "int8", "int4": "int4", "hybrid": "int4"}.get(args.quant)
    print(json.dumps({"min_ms": result["min_ms"], "median_ms": result["median_ms"], "relerr": relerr,
                      "limit_ratio": result["limit_ratio"], "precision": precision}))


if __name__ == "__main__":
    main()
