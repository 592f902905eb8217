"""A job: a chain of this program's own commands from one file, each of which can be resumed."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from factory import exit_codes, signals
from factory.errors import UserError
from factory.files.paths import local_path
from factory.files.strict_yaml import parse_plain_yaml
from factory.files.text import read_text
from factory.workflow.check import arguments_of, steps_of, values_of

DONE = "job.json"
_WRITES = ("--shards", "--out", "--to")
_PROGRAM = (sys.executable, "-c", "from factory.cli.main import run; run()")


class StepFailedError(UserError):
    """A step of a job failed; the job ends with the step's own exit code (1 where a signal killed the step)."""

    def __init__(self, number: int, name: str, code: int) -> None:
        self.exit_code = code if code > 0 else exit_codes.UNEXPECTED
        how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
        hint = " (out of memory?)" if code == -9 else ""
        super().__init__(
            f"step {number}, {name}, {how}{hint}; correct the cause, shown above, and give the same command again."
        )


@dataclass(frozen=True)
class Step:
    """One command with its arguments, as on a command line; `after` are digests of the steps whose work it reads."""

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What stands for the step: one that was changed, or reads what a changed one writes, is run again."""
        parts = [self.name, self.arguments, *self.after]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def writes(self) -> list[str]:
        """The folders that the step makes."""
        return [value for flag, value in pairwise(self.arguments) if flag in _WRITES]

    def reads(self, folder: str) -> bool:
        """Whether an argument names a folder, or something in it; "NAME=FOLDER" names one too."""
        return any(f"{one.rpartition('=')[2]}/".startswith(f"{folder}/") for one in self.arguments)

    def told(self) -> str:
        """As one would type it."""
        return " ".join(["factory", self.name, *(f"'{one}'" if " " in one else one for one in self.arguments)])


@dataclass(frozen=True)
class Workflow:
    """The steps in order; what is done of them is written to `out`."""

    out: Path
    steps: tuple[Step, ...]


def load_workflow(path: Path, out: Path | None, commands: Mapping[str, Any], change: Mapping[str, str]) -> Workflow:
    """Read a job file and check every option of every step before anything runs.

    The file has `out`, `values` and `steps`; a step is one command with its options, and positional arguments under
    `with`; a list of values gives an option several times where it may be. `{out}` and `{name}` in them stand for the
    folder and for the values, which `change` overrides. UserError names what is wrong.
    """
    data = parse_plain_yaml(read_text(path, "job"), f"the job {path}")
    rows, values = steps_of(data, str(path)), values_of(data, str(path))
    unknown = sorted(set(change) - set(values))
    if unknown:
        raise UserError(f"{path} has no value {unknown[0]!r}; its values are {', '.join(values) or 'none'}.")
    place = out or local_path(data["out"], f"`out` of {path}")
    filled = {"out": str(place), **values, **change}
    steps = [_step(f"{path}", name, options, commands, filled) for name, options in rows]
    return Workflow(place, _chained(steps))


def run_workflow(job: Workflow, report: Callable[[str], None] = print) -> None:
    """Run the steps that are not done, in order; the same call continues at the first one that failed.

    Signals are passed on to the step under way, and its end is waited for. A dataset in which some samples were
    accepted in no attempt is complete: it stops no job. Raises StepFailedError, KeyboardInterrupt where the step was
    interrupted, and UserError where the list of finished steps cannot be read.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    path = job.out / DONE
    done = _done_before(path)
    for number, step in enumerate(job.steps, 1):
        if step.digest in done:
            report(f"[{number}/{len(job.steps)}] done before: {step.told()}")
            continue
        report(f"[{number}/{len(job.steps)}] {step.told()}")
        code = signals.run_passing_signals_on([*_PROGRAM, step.name, *step.arguments])
        if code in (exit_codes.INTERRUPTED, exit_codes.TERMINATED):
            raise KeyboardInterrupt
        if code == exit_codes.EXHAUSTED:
            report("That step is complete, with some places left empty; going on.")
        elif code:
            raise StepFailedError(number, step.name, code)
        done.append(step.digest)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(done))
        partial.replace(path)


def _done_before(path: Path) -> list[str]:
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(
            f"the list of finished steps {path} cannot be read ({error}); delete it to begin again."
        ) from error
    if not isinstance(done, list):
        raise UserError(f"the list of finished steps {path} is no list; delete it to begin again.")
    return [str(one) for one in done]


def _chained(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps, each told on which earlier ones it depends."""
    chain: list[Step] = []
    for step in steps:
        sources = (one for one in chain if any(step.reads(folder) for folder in one.writes))
        chain.append(replace(step, after=tuple(one.digest for one in sources)))
    return tuple(chain)


def _step(path: str, name: str, options: Any, commands: Mapping[str, Any], filled: Mapping[str, str]) -> Step:
    if name not in commands:
        raise UserError(f"{path}: there is no command {name!r}; a step is one of {', '.join(sorted(commands))}.")
    return Step(name, arguments_of(path, name, options, commands[name], lambda value: _filled(path, value, filled)))


def _filled(path: str, value: object, filled: Mapping[str, str]) -> str:
    """A text with the values of its {names}; {{ and }} are braces, and there is no other form."""

    def one(match: re.Match[str]) -> str:
        part = match[0]
        if part in ("{{", "}}"):
            return part[0]
        if len(part) == 1:
            raise UserError(f"{path}: {value!r} holds a single {part}; write {part * 2} for a brace.")
        if part[1:-1] not in filled:
            raise UserError(f"{path}: {value!r} names {part[1:-1]!r}, which is neither `out` nor one of the values.")
        return filled[part[1:-1]]

    return re.sub(r"\{\{|\}\}|\{[^{}]*\}|[{}]", one, str(value))
