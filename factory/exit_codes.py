"""Exit codes of all commands, for scripts and orchestrators. docs/exit-codes.md has the table."""

DONE = 0
"""Complete; for `verify`: no damage found."""
UNEXPECTED = 1
"""An unexpected error, reported with a traceback."""
BAD_INPUT = 2
"""Invalid input; the same command fails again until the input is corrected."""
FAILED = 3
"""Some shards are quarantined after too many errors, workers cannot run at all, or nothing was accepted."""
EXHAUSTED = 4
"""Complete, but some samples or prompts exhausted their attempts without being accepted."""
DAMAGED = 5
"""`verify` found damage that was not repaired."""
HELD = 6
"""`nightly`: another driver is working on the same night; this command did nothing."""
TRY_AGAIN = 75
"""A temporary failure; rerun the same command later to resume (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Stopped by Ctrl-C (SIGINT)."""
TERMINATED = 143
"""Stopped by SIGTERM: Kubernetes, Slurm, `ray job stop`, a shutdown."""
