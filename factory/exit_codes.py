"""Exit codes of every command, for scripts and orchestrators; the table for people is docs/exit-codes.md."""

DONE = 0
"""Complete; for `verify`: sound."""
UNEXPECTED = 1
"""An error that this program did not foresee; a traceback goes with it."""
BAD_INPUT = 2
"""The input is wrong; the same command fails again until it is changed."""
GIVEN_UP = 3
"""Some shards are in quarantine after too many errors, or the workers cannot run at all."""
EXHAUSTED = 4
"""Complete, but some samples were accepted in no attempt."""
DAMAGED = 5
"""`verify` found damage that is not repaired."""
TRY_AGAIN = 75
"""Trouble that passes by itself or by making room: the same command, later, continues (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Stopped by Ctrl-C (SIGINT)."""
TERMINATED = 143
"""Stopped by SIGTERM: Kubernetes, Slurm, `ray job stop`, a shutdown."""
