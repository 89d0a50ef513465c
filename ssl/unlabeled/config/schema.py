"""A JSON schema of recipes, so that editors complete keys and show their meaning."""

from __future__ import annotations

from typing import Any, Literal, Union

from pydantic import create_model

from unlabeled.config.read import method_config
from unlabeled.config.recipe import Recipe
from unlabeled.config.tables import METHODS


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a recipe whose `method` is one of the table, by name or as a block."""
    names = tuple(METHODS)
    blocks = tuple(method_config(name) for name in names)
    model = create_model("Recipe", __base__=Recipe, method=(Union[(Literal[names], *blocks)], ...))  # type: ignore
    schema = model.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
