"""Exit codes of all commands, for scripts and orchestrators; see docs/exit-codes.md."""

DONE = 0
"""Complete; for `verify`, all existing shards are sound."""
UNEXPECTED = 1
"""An unexpected error, reported with a traceback."""
BAD_INPUT = 2
"""Invalid input; the same command fails again until the input is corrected."""
FAILED = 3
"""Shards are quarantined after repeated errors, no worker can run, or no sample or prompt was accepted."""
EXHAUSTED = 4
"""Complete, but some samples or prompts were rejected in every attempt and skipped."""
DAMAGED = 5
"""`verify` found damage that was not repaired."""
HELD = 6
"""`nightly`: another driver is working on the same night; this command did nothing."""
TRY_AGAIN = 75
"""A temporary failure; rerun the same command later to resume (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Stopped by Ctrl-C (SIGINT)."""
TERMINATED = 143
"""Stopped by SIGTERM, for example by Kubernetes, Slurm or `ray job stop`, or because the terminal was closed."""
