"""Requests to a generator."""

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.generator.interface import Request


def requests(recipe: Recipe, count: int) -> list[Request]:
    """The first attempts at the first samples of a recipe."""
    return [Request(s.prompt, s.seed(recipe.seed, 0)) for s in Plan(recipe).shard(0).samples[:count]]
