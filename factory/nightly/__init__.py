"""A dataset every night: generated within a budget, verified, exported and recorded under a dated folder."""
