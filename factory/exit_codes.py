"""Exit codes of every command, for scripts and orchestrators; docs/exit-codes.md explains them."""

DONE = 0
"""Complete; for `verify`: sound."""
UNEXPECTED = 1
"""An unexpected error, printed with a traceback."""
BAD_INPUT = 2
"""The input is invalid; the same command fails again until the input is changed."""
GIVEN_UP = 3
"""Some shards are in quarantine after too many errors, or the workers cannot run at all."""
EXHAUSTED = 4
"""Complete, but some samples were accepted in none of their attempts."""
DAMAGED = 5
"""`verify` found damage that was not repaired."""
TRY_AGAIN = 75
"""A temporary failure: rerun the same command later to resume (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Stopped by Ctrl-C (SIGINT)."""
TERMINATED = 143
"""Stopped by SIGTERM: Kubernetes, Slurm, `ray job stop`, a shutdown."""
