"""The configurations in jobs/ are valid, and their times fit the limits of the environment that they are for."""

import datetime
import re
import tomllib
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from factory import exit_codes
from factory.nightly.budget import deadline
from factory.nightly.config import NightlyConfig, load_config
from factory.nightly.record import Period

ROOT = Path(__file__).parent.parent.parent
CONFIGURATIONS = (
    "kuberay/base/nightly.yaml",
    "slurm/nightly.yaml",
    "systemd/nightly.yaml",
    "skypilot/config.yaml",
)
DATE = datetime.date(2026, 11, 25)


def load(name: str) -> NightlyConfig:
    return load_config(ROOT / "jobs" / name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_is_valid_and_starts_when_its_schedule_does(name: str) -> None:
    config = load(name)
    recipe = config.recipe_of(DATE)
    assert (recipe.n, config.starts, config.timezone) == (4000, "22:00", "Europe/Berlin")
    assert config.keep is not None
    on_a_cluster = name.startswith(("kuberay", "slurm"))
    assert recipe.engine.address == ("auto" if on_a_cluster else None)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_night_that_starts_in_the_morning_does_not_run_until_the_next_one(name: str) -> None:
    config = load(name)
    zone = ZoneInfo(config.timezone)
    late = datetime.datetime(2026, 11, 26, 8, tzinfo=zone)
    end = deadline(config.budget, Period(started=late), zone)
    assert end is not None
    assert end <= late + datetime.timedelta(hours=8)


def test_kubernetes_does_not_repeat_what_needs_a_person() -> None:
    page = (ROOT / "docs/exit-codes.md").read_text()
    policy = yaml.safe_load(page.partition("## Kubernetes\n\n```yaml\n")[2].partition("```")[0])
    codes = {value for name, value in vars(exit_codes).items() if name.isupper()}
    repeated = {exit_codes.DONE, exit_codes.TRY_AGAIN, exit_codes.INTERRUPTED, exit_codes.TERMINATED}
    (values,) = [rule["onExitCodes"]["values"] for rule in policy["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert set(values) == codes - repeated


def test_lost_worker_does_not_stop_the_service() -> None:
    # By default, systemd stops a service when the out-of-memory killer ends any of its processes.
    assert "\nOOMPolicy=continue\n" in (ROOT / "jobs/systemd/factory-nightly.service").read_text()


def test_systemd_waits_longer_than_the_grace_period_and_starts_on_schedule() -> None:
    service = (ROOT / "jobs/systemd/factory-nightly.service").read_text()
    timer = (ROOT / "jobs/systemd/factory-nightly.timer").read_text()
    config = load("systemd/nightly.yaml")
    stop = re.search(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
    assert stop is not None
    assert config.recipe_of(DATE).engine.grace + 10 <= int(stop[1])
    assert f"OnCalendar=*-*-* {config.starts}:00 {config.timezone}\n" in timer


def test_systemd_and_the_image_keep_downloaded_models_together() -> None:
    service = (ROOT / "jobs/systemd/factory-nightly.service").read_text()
    image = (ROOT / "jobs/container/Dockerfile").read_text()
    for name in ("HF_HOME", "TORCH_HOME"):  # of the detectors of torchvision
        assert f" {name}=/models/" in image
        assert re.search(rf"^Environment=(.* )?{name}=/var/cache/factory/", service, re.MULTILINE)


def test_slurm_signals_early_enough_and_ends_after_the_budget() -> None:
    script = (ROOT / "jobs/slurm/nightly.sbatch").read_text()
    config = load("slurm/nightly.yaml")
    signal = re.search(r"^#SBATCH --signal=B:TERM@(\d+)$", script, re.MULTILINE)
    limit = re.search(r"^#SBATCH --time=(\d+):00:00$", script, re.MULTILINE)
    assert signal is not None
    assert limit is not None
    assert config.recipe_of(DATE).engine.grace + 10 <= int(signal[1])
    assert config.budget is not None
    assert config.budget.until == "06:00"
    hours_from_22_to_6 = 8
    assert 3600 * int(limit[1]) > 3600 * hours_from_22_to_6 + config.budget.grace + int(signal[1])


def test_skypilot_copies_the_configuration_and_recovers_what_is_temporary() -> None:
    job = yaml.safe_load((ROOT / "jobs/skypilot/nightly.yaml").read_text())
    (source,) = job["file_mounts"].values()
    assert (ROOT / source).is_file()
    (target,) = job["file_mounts"]
    assert target in job["run"]
    assert 75 in job["resources"]["job_recovery"]["recover_on_exit_codes"]


def test_skypilot_installs_a_python_that_factory_supports() -> None:
    """The images that SkyPilot starts by default have Python 3.10."""
    setup = yaml.safe_load((ROOT / "jobs/skypilot/nightly.yaml").read_text())["setup"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r"uv venv .*--python (\S+) ", setup)
    assert version in SpecifierSet(project["requires-python"])
    assert setup.index("uv venv") < setup.index("make setup"), "make uses the environment if there is one"
