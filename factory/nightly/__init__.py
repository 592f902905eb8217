"""Nightly datasets: generated within a budget, verified, exported and recorded in a folder per date."""
