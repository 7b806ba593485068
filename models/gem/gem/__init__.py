"""GEM in PyTorch: the executable specification of the model family, its trainer and its reference outputs.

What lives here, in reading order:

    config.py        config.json, strictly parsed
    select.py        which modules a token visits (the five policies)
    attention.py     RoPE, the masks, grouped-query attention
    token_router.py  the domain classifier that runs once per token
    block.py         SCAR, the feed-forward paths, one transformer block
    model.py         the three heads, caches, greedy generation
    weights.py       tensor names, safetensors in and out
    quantize.py      codes and scales of weights and activations
    quantized.py     a model in recipe `hybrid`
    npu_numbers.py   the NPU's numbers: orders of sums, exp, ln
    npu.py           a model in recipe `hybrid` as the NPU computes it
    data.py, tokenizer.py, presets.py, train.py, train_command.py, mini.py         training
    preservation.py  fine-tuning that keeps what the model knew
    cost.py, variants.py                             sizes; dense models and ablations to compare with
    evaluate.py, routing_figures.py                  what is measured
    study/           the comparison behind docs/gem-study.md
    reference.py, quantized_reference.py, make_random_models.py what the Rust tests compare against

Kernels, other recipes and everything that is fast live in the Rust crates.

    >>> from gem.weights import load_model
    >>> model = load_model("tests/models/gem-mini")
"""
