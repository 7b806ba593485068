"""Lets `python -m gem.evaluate` and its like run from `models/`: the package `gem` is the folder `gem/gem` beside this file.

With `models/gem` on the path instead (`PYTHONPATH=models/gem`, from the repository's root) the same package is found
without this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent / "gem")]
