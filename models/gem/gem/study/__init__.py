"""The study behind docs/gem-study.md: does routing pay, what does each part of it do, is what was known kept?

    plan.py      which models are trained: configs, recipes, seeds
    runs.py      trains and measures one of them, resumably
    metrics.py   DSI, GG, CDTR, gain and forgetting, of matrices
    speed.py     tokens/s and NPU cycles of the trained models, with --lapidary
    tables.py    evaluation files → tables.json, tables.md
    plots.py     tables.json → SVG
    made_up.py   a corpus for --smoke where none is given

    python -m gem.study --corpus ../shared/corpus --mini tests/models/gem-mini --out out/study
"""
