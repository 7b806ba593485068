#!/usr/bin/env bash
# Prints the python of a virtual environment with models/gem/requirements.txt installed, making it when missing.
# It lives outside the clone, in ${LAPIDARY_CACHE:-~/.cache/lapidary}/venv-<hash of requirements.txt>, because
# PyTorch is large and clones are many. PYTHON chooses the interpreter it is made with.
set -euo pipefail
python="${PYTHON:-python3}"
requirements="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/requirements.txt"
cache="${LAPIDARY_CACHE:-$HOME/.cache/lapidary}"
hash="$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:16])' "$requirements")"
venv="$cache/venv-$hash"

if [ ! -d "$venv" ]; then
    mkdir -p "$cache"
    # Built beside its place and moved there whole, so that what has the right name is complete. Moving breaks the
    # scripts in bin that name their interpreter, hence `python -m pytest` and not `pytest`.
    building="$(mktemp -d "$cache/building-XXXXXX")"
    trap 'rm -rf "$building"' EXIT
    "$python" -m venv "$building/venv" >&2
    "$building/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    [ -d "$venv" ] || mv "$building/venv" "$venv" # unless another call was faster
fi
echo "$venv/bin/python"
