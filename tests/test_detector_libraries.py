"""Libraries of detectors that do not match torch or cannot be imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from factory.detector import detectron2 as with_detectron2
from factory.errors import UserError
from tests.support.messages import assert_one_sentence

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


def _put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_mismatched_torchvision_affects_only_its_own_detectors(tmp_path: Path) -> None:
    """Such a torchvision raises at import, and transformers and diffusers import it wherever it is installed."""
    _put(
        tmp_path,
        {
            "torchvision/__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')",
            "torchvision-0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n",
        },
    )
    script = (
        "import factory\n"
        "from transformers import Mask2FormerForUniversalSegmentation\n"
        "from diffusers import StableDiffusionPipeline\n"
        "from factory.detector.load import pin_detector\n"
        "try: pin_detector('torchvision:maskrcnn_resnet50_fpn')\n"
        "except factory.errors.UserError as error: print(error)\n"
    )
    path = f"{tmp_path}:{Path(__file__).parents[1]}"
    ran = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "torchvision 0.1 does not work with torch" in ran.stdout
    assert "operator torchvision::nms does not exist; install the matching build" in ran.stdout


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pkg_resources_that_is_not_here as pkg_resources", "cannot be imported"),
        (
            "raise ModuleNotFoundError('x', name='pkg_resources')",
            r"setuptools 82 and later no longer have; .*'setuptools<82'",
        ),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "installed but cannot be imported .operator",
        ),
    ],
)
def test_a_detectron2_that_cannot_be_imported_raises_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    _put(tmp_path, {"detectron2/__init__.py": "", "detectron2/model_zoo/__init__.py": source})
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=message) as raised:
        with_detectron2.labels(MASK_RCNN)
    assert_one_sentence(raised.value)
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
