"""Prompts files, written by a language model and checked line by line."""
