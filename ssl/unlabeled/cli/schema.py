"""unlabeled schema."""

from __future__ import annotations

import argparse

SUMMARY = "Print the JSON schema of recipes, with which editors complete keys and explain them."
EXAMPLES = ["unlabeled schema > recipe.schema.json"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    import json

    from unlabeled.config.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))
    return 0
