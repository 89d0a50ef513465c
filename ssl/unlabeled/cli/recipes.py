"""unlabeled recipes."""

from __future__ import annotations

import argparse

SUMMARY = "List the recipes that come with the project."
EXAMPLES = ["unlabeled recipes"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print every recipe with the first line of its header."""
    from unlabeled.config.files import find, listing

    names = listing("recipes")
    width = max(map(len, names), default=0)
    for name in names:
        with open(find("recipes", f"recipes/{name}"), encoding="utf-8") as file:
            first = file.readline()
        print(f"{name:{width}}  {first[1:].strip() if first.startswith('#') else ''}".rstrip())
    return 0
