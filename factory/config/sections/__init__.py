"""The sections of a recipe: their fields, defaults and bounds."""

from factory.config.sections.base import Section, given_fields, plain_fields
from factory.config.sections.contents import OracleRecipe, PromptEntry, RealRecipe
from factory.config.sections.engine import EngineRecipe
from factory.config.sections.generator import GeneratorRecipe, model_in
from factory.config.sections.masks import EARLIER_FORMATS, READ_BY_ATTENTION, FilterRecipe, MaskRecipe
from factory.config.sections.store import StoreRecipe

__all__ = [
    "EARLIER_FORMATS",
    "READ_BY_ATTENTION",
    "EngineRecipe",
    "FilterRecipe",
    "GeneratorRecipe",
    "MaskRecipe",
    "OracleRecipe",
    "PromptEntry",
    "RealRecipe",
    "Section",
    "StoreRecipe",
    "given_fields",
    "model_in",
    "plain_fields",
]
