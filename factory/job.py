"""A job: a chain of this program's own commands from one file, each of which can be resumed."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from factory import exit_codes, interrupts
from factory.errors import UserError

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
class Job:
    """The steps in order; what is done of them is written to `out`."""

    out: Path
    steps: tuple[Step, ...]


def load_job(path: Path, out: Path | None, commands: Mapping[str, Any], change: Mapping[str, str]) -> Job:
    """Read a job file and check every option of every step before anything runs.

    The file has `out`, `values` and `steps`; a step is one command with its options, and positional arguments under
    `with`; a list of values gives an option several times. `{out}` and `{name}` in them stand for the folder and for
    the values, which `change` overrides. UserError names what is wrong.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = {**data.get("values", {}), **change}
        unknown = set(change) - set(data.get("values", {}))
        place = out or Path(str(data["out"]))
        rows = [next(iter(row.items())) for row in data["steps"]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the job {path}: {' '.join(str(error).split())}.") from error
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UserError(f"{path} is no job: it wants `out:` and `steps:`, each step a command with options.") from error
    if unknown:
        raise UserError(f"{path} has no value {sorted(unknown)[0]!r}; its values are {', '.join(data['values'])}.")
    filled = {"out": str(place), **{name: str(value) for name, value in values.items()}}
    return Job(place, _chained([_step(path, name, options or {}, commands, filled) for name, options in rows]))


def run_job(job: Job, report: Callable[[str], None] = print) -> None:
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
        code = interrupts.run_passing_signals_on([*_PROGRAM, step.name, *step.arguments])
        if code in (exit_codes.INTERRUPTED, exit_codes.TERMINATED):
            raise KeyboardInterrupt
        if code == exit_codes.SHORT:
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


def _step(
    path: Path, name: str, options: Mapping[str, Any], commands: Mapping[str, Any], filled: dict[str, str]
) -> Step:
    if name not in commands:
        raise UserError(f"{path}: there is no command {name!r}; a step is one of {', '.join(sorted(commands))}.")
    known = {
        flag.removeprefix("--"): one for one in commands[name].params for flag in one.opts if flag.startswith("--")
    }
    arguments: list[str] = []
    for option, value in options.items():
        if option == "with":
            arguments += [_filled(path, one, filled) for one in (value if isinstance(value, list) else [value])]
        elif option not in known:
            raise UserError(f"{path}: {name} has no option {option!r}; it has {', '.join(sorted(known))}.")
        elif known[option].is_flag:
            arguments += [f"--{option}"] if value else []
        else:
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{option}", _filled(path, one, filled)]
    return Step(name, tuple(arguments))


def _filled(path: Path, value: object, filled: Mapping[str, str]) -> str:
    try:
        return str(value).format(**filled)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: {value!r} names {error}, which is neither `out` nor one of the values.") from error
