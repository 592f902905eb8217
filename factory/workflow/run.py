"""Loads and runs jobs: chains of factory commands from one file, each of which can be resumed."""

import hashlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from os.path import normpath
from pathlib import Path
from typing import Any

from factory import exit_codes, signals
from factory.errors import UserError
from factory.files.atomic import write_atomically
from factory.files.digest import file_digest
from factory.files.lock import sole_writer
from factory.files.paths import check_writable_folder, expanded, local_path, split_named_path, without_file_scheme
from factory.files.strict_yaml import parse_plain_yaml
from factory.files.text import read_text
from factory.workflow.check import arguments_of, steps_of, values_of

_log = logging.getLogger(__name__)

DONE = "job.json"
_KILLED = 128
"""Shells report this number plus that of the signal as the exit code of a process that a signal killed."""
_WRITES = ("--shards", "--out")
_RESULTS = (*_WRITES, "--table")
_FILES = ("--recipe", "--prompts", "--classes", "--split", "--cooccurrence")
"""Options whose value may be a file with settings."""
_INPUTS = ("--real", "--annotations", "--recipe", "--prompts")
"""Options whose value is a file or folder that the step reads."""
_IS_PATH_SAFE = {"", os.getcwd()}.isdisjoint(sys.path)
_PROGRAM = (sys.executable, *(("-P",) if _IS_PATH_SAFE else ()), "-m", "factory")
"""`python -m` would import modules from the current folder, unlike the command `factory`: a file named yaml.py there
would break every step."""


class StepFailedError(UserError):
    """A step of a job failed; the job ends with the exit code of the step.

    If a signal killed the step, this is the code that a shell reports, such as 137 for SIGKILL, so that an orchestrator
    treats a job that ran out of memory like a single command.
    """

    def __init__(self, number: int, name: str, code: int) -> None:
        self.exit_code = code if code > 0 else _KILLED - code
        how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
        hint = " (out of memory?)" if code == -9 else ""
        super().__init__(
            f"step {number} ({name}) {how}{hint}; fix the cause shown above and rerun the same command to resume."
        )


@dataclass(frozen=True)
class Step:
    """One command with its arguments; `after` holds the digests of the earlier steps whose output it reads."""

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Identifies the step. It changes with the step's arguments and with the digests of the steps it depends on."""
        parts = [self.name, self.arguments, *self.after]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def writes(self) -> list[str]:
        """The folders that the step writes, in one spelling."""
        return [normpath(value) for flag, value in pairwise(self.arguments) if flag in _WRITES]

    @property
    def results(self) -> list[str]:
        """The folders and files that the step determines, in one spelling."""
        return [normpath(value) for flag, value in pairwise(self.arguments) if flag in _RESULTS]

    @property
    def inputs(self) -> list[str]:
        """The files and folders that the step reads: the values of _INPUTS, and positional arguments with a slash.

        A positional argument after a flag is not found, because it could be the value of an option.
        """

        def is_positional_path(before: str, argument: str) -> bool:
            return "/" in argument and not before.startswith("--") and not argument.startswith("--")

        pairs = pairwise(("", *self.arguments))
        return [value for flag, value in pairs if flag in _INPUTS or is_positional_path(flag, value)]

    def state(self) -> str:
        """The digest of the step and, if it has files with settings, of their contents at this time."""
        given = (value for flag, value in pairwise(self.arguments) if flag in _FILES)
        paths = (expanded(without_file_scheme(value)) for value in given)
        # Not Path.is_file, which raises an error for a long list of class names.
        digests = [file_digest(path) for path in paths if os.path.isfile(path) and os.access(path, os.R_OK)]
        return f"{self.digest}-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:16]}" if digests else self.digest

    def reads(self, folder: str) -> bool:
        """Whether an argument is the folder or a path in it, also in the form NAME=FOLDER, in any spelling."""
        # `a=b` is either the path `a=b` or the path `b` with a name.
        paths = (path for argument in self.arguments for path in (argument, split_named_path(argument)[1]))
        return any(f"{normpath(path)}/".startswith(f"{folder}/") for path in paths)

    def command_line(self) -> str:
        """The step as typed in a shell."""
        return shlex.join(["factory", self.name, *self.arguments])


@dataclass(frozen=True)
class Workflow:
    """The steps in order; `out` holds the list of completed steps."""

    out: Path
    steps: tuple[Step, ...]


def load_workflow(path: Path, out: Path | None, commands: Mapping[str, Any], change: Mapping[str, str]) -> Workflow:
    """Read a job file and check every option of every step before anything runs.

    The file has `out`, `values` and `steps`. A step is one command with its options, and with positional arguments
    under `with`; a list of values repeats an option that allows it. The placeholders `{out}` and `{name}` are replaced
    by the folder and the values, which `change` overrides. Raises UserError if anything is invalid.
    """
    data = parse_plain_yaml(read_text(path, "job"), f"the job {path}")
    entries, values = steps_of(data, str(path)), values_of(data, str(path))
    unknown = sorted(set(change) - set(values))
    if unknown:
        hint = " To change the folder of the job, give --out." if unknown[0] == "out" else ""
        raise UserError(f"{path} has no value {unknown[0]!r}; its values are {', '.join(values) or 'none'}.{hint}")
    folder = out or local_path(data["out"], f"`out` of {path}")
    values = {"out": str(folder), **values, **change}
    steps = [_step(str(path), name, options, commands, values) for name, options in entries]
    return Workflow(folder, _chained(steps))


def run_workflow(job: Workflow, report: Callable[[str], None] = _log.info) -> None:
    """Run the steps that are not completed, in order; call it again to resume at the first one that failed.

    Signals are forwarded to the running step, and its end is awaited. A dataset with skipped samples is complete and
    does not stop the job. A step becomes incomplete if a step of another version of the job writes to the same place,
    or if a file with its settings changes, such as a recipe. Raises StepFailedError, KeyboardInterrupt if the step was
    interrupted, UserError if its folder cannot be written, the list of completed steps cannot be read or the input of a
    step does not exist, and TransientError while another process runs the job.
    """
    check_writable_folder(job.out, "the folder of the job")
    job.out.mkdir(parents=True, exist_ok=True)
    with sole_writer(job.out / "job.lock", job.out):
        _run_steps(job, report)


def _run_steps(job: Workflow, report: Callable[[str], None]) -> None:
    path = job.out / DONE
    done, current, interrupted = _completed(path), {step.digest for step in job.steps}, False
    for number, step in enumerate(job.steps, 1):
        if step.state() not in done:
            _check_inputs(number, step, job.steps[: number - 1])
    for number, step in enumerate(job.steps, 1):
        state = step.state()
        if state in done:
            report(f"[{number}/{len(job.steps)}] already completed: {step.command_line()}")
            continue
        if interrupted:  # the previous step was about to end and completed despite the signal
            raise KeyboardInterrupt
        report(f"[{number}/{len(job.steps)}] {step.command_line()}")
        with_other_files = step.digest in map(_digest_in, done)
        outdated = _with_dependents(step, job.steps) if with_other_files else set()
        overwritten = set(step.results)
        kept = {
            state: results
            for state, results in done.items()
            if _digest_in(state) not in outdated and (_digest_in(state) in current or overwritten.isdisjoint(results))
        }
        if kept != done:
            done = kept
            write_atomically(path, json.dumps(done))
        code, interrupted = signals.run_forwarding_signals([*_PROGRAM, step.name, *step.arguments])
        if code in (exit_codes.INTERRUPTED, exit_codes.TERMINATED):
            raise KeyboardInterrupt
        if code == exit_codes.EXHAUSTED:
            report("The step is complete, although some samples were rejected in every attempt; continuing.")
        elif code:
            raise StepFailedError(number, step.name, code)
        done[state] = step.results
        write_atomically(path, json.dumps(done))


def _check_inputs(number: int, step: Step, earlier: Iterable[Step]) -> None:
    """UserError if the step reads a local file or folder that does not exist, and that no earlier step writes.

    It would fail after the earlier steps, which may take days. Some commands write next to their input by default, so a
    path that starts with any of their arguments is not checked.
    """
    written = tuple(normpath(argument) for other in earlier for argument in other.arguments)
    for argument in step.inputs:
        paths = [without_file_scheme(text) for text in (argument, split_named_path(argument)[1])]
        if not any(
            "://" in path or os.path.exists(expanded(path)) or normpath(path).startswith(written) for path in paths
        ):
            raise UserError(
                f"step {number} ({step.name}) reads {paths[-1]}, which does not exist, and no earlier step writes it; "
                f"correct the path, or create it first."
            )


def _digest_in(state: str) -> str:
    """The digest of the step in its state."""
    return state.partition("-")[0]


def _with_dependents(step: Step, steps: Iterable[Step]) -> set[str]:
    """The digests of a step and of all later ones that depend on it."""
    found = {step.digest}
    for later in steps:
        if not found.isdisjoint(later.after):
            found.add(later.digest)
    return found


def _completed(path: Path) -> dict[str, list[str]]:
    """The results of each completed step by its state."""
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"the list of completed steps {path} cannot be read ({error}); delete it to start from the first step."
        ) from error
    if not isinstance(done, dict) or not all(isinstance(results, list) for results in done.values()):
        raise UserError(f"the list of completed steps {path} is invalid; delete it to start from the first step.")
    return {state: [str(result) for result in results] for state, results in done.items()}


def _chained(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps, each with the digests of the earlier ones that it depends on."""
    chain: list[Step] = []
    for step in steps:
        sources = (earlier for earlier in chain if any(step.reads(folder) for folder in earlier.writes))
        chain.append(replace(step, after=tuple(source.digest for source in sources)))
    return tuple(chain)


def _step(path: str, name: str, options: Any, commands: Mapping[str, Any], values: Mapping[str, str]) -> Step:
    if name not in commands:
        known = sorted(known for known, command in commands.items() if not command.hidden)
        raise UserError(f"{path}: there is no command {name!r}; a step is one of {', '.join(known)}.")
    return Step(name, arguments_of(path, name, options, commands[name], lambda value: _filled(path, value, values)))


def _filled(path: str, value: object, values: Mapping[str, str]) -> str:
    """Replace the {names} in a text by their values; {{ and }} are literal braces.

    Not `str.format`, which would evaluate attributes, indices and format specifications.
    """

    def replacement(match: re.Match[str]) -> str:
        part = match[0]
        if part in ("{{", "}}"):
            return part[0]
        if len(part) == 1:
            raise UserError(f"{path}: {value!r} contains a single {part}; write {part * 2} for a literal brace.")
        if part[1:-1] not in values:
            raise UserError(f"{path}: {value!r} uses {part[1:-1]!r}, which is neither `out` nor one of the values.")
        return values[part[1:-1]]

    return re.sub(r"\{\{|\}\}|\{[^{}]*\}|[{}]", replacement, str(value))
