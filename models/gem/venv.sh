#!/usr/bin/env bash
# Prints the python of a virtual environment with models/gem/requirements.txt installed, making it when missing.
# It lives outside the clone, in ${LAPIDARY_CACHE:-~/.cache/lapidary}/venv-<hash of requirements.txt>, because
# PyTorch is large and clones are many. PYTHON chooses the interpreter it is made with.
set -euo pipefail
requirements="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/requirements.txt"
cache="${LAPIDARY_CACHE:-$HOME/.cache/lapidary}"
venv="$cache/venv-$(sha256sum "$requirements" | cut -c1-16)"

if [ ! -e "$venv/complete" ]; then
    mkdir -p "$cache"
    exec 9>"$venv.lock"
    flock 9 # of two callers one builds and the other waits
    if [ ! -e "$venv/complete" ]; then
        rm -rf "$venv" # left by a build that did not reach its end
        "${PYTHON:-python3}" -m venv "$venv" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
        touch "$venv/complete"
    fi
fi
echo "$venv/bin/python"
