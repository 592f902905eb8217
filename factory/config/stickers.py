"""How the embedded model is sampled by default."""

STEPS = 8
GUIDANCE = 3.0
