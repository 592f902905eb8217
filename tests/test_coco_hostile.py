"""Hostile COCO instances files: segmentations are checked before C code reads them, files before they are parsed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factory.config.vocabulary import coco
from factory.errors import UserError
from factory.labelled.coco import CocoFolder
from factory.labelled.segmentation import MAX_OUTLINE, to_mask
from tests.support.coco_instances import DOG_BOX, instances, opened

BAD: dict[str, tuple[Any, str]] = {
    "nan": ([[5, 5, float("nan"), 5, 25, 20]], "NaN or infinity"),
    "infinite": ([[5, 5, float("inf"), 5, 25, 20]], "NaN or infinity|extends from"),
    "huge": ([[5, 5, 1e9, 5, 25, 20]], "extends from 5 to 1e.09, but the image has 60 pixels"),
    "far below": ([[5, -1e18, 9, 5, 25, 20]], "extends from -1e.18 to 20, but the image has 40 pixels"),
    "no float": ([[5, 5, 10**400, 5, 25, 20]], "too large"),
    "long": ([[0, 0, 60, 40] * 20_000], f"outline of a polygon has .* more than the limit of {MAX_OUTLINE:,}"),
    "odd": ([[5, 5, 25, 5, 25, 20, 5]], "has 7 numbers, but x and y must come in pairs"),
    "texts": ([["5", "5", "25", "5", "25", "20"]], "a list of numbers"),
    "null inside": ([[5, 5, None, 5, 25, 20]], "a list of numbers"),
    "mixed": ([DOG_BOX, 5], "a list of numbers"),
    "text": ("abc", "it is of type str, but must be polygons or run lengths"),
    "number": (7, "it is of type int"),
    "other size": ({"size": [60, 40], "counts": [2400]}, r"have size \[60, 40\], but the image is \[40, 60\]"),
    "no size": ({"counts": [2400]}, "have size None"),
    "huge size": ({"size": [2**31, 2**31], "counts": [1]}, "have size"),
    "short": ({"size": [40, 60], "counts": [100, 50]}, "add up to 150, but the image has 2400 pixels"),
    "too long": ({"size": [40, 60], "counts": [2000, 2**33]}, "add up to 8.58994e.09, but the image has 2400"),
    "negative": ({"size": [40, 60], "counts": [2500, -100]}, "not all non-negative numbers"),
    "nan run": ({"size": [40, 60], "counts": [float("nan")]}, "not all non-negative numbers"),
    "infinite run": ({"size": [40, 60], "counts": [float("inf")]}, "add up to inf"),
    "half runs": ({"size": [40, 60], "counts": [1200.5, 1199.5]}, "add up to 2400"),
    "no runs": ({"size": [40, 60]}, "its run lengths are of type NoneType"),
    "text of junk": ({"size": [40, 60], "counts": "zzz~"}, "truncated or contain invalid characters"),
    "text with null": ({"size": [40, 60], "counts": "0\x000"}, "truncated or contain invalid characters"),
    "empty text": ({"size": [40, 60], "counts": ""}, "truncated or contain invalid characters"),
    "text without end": ({"size": [40, 60], "counts": "PPPPPPP"}, "truncated or contain invalid characters"),
    "text of another size": ({"size": [40, 60], "counts": "0PPPPPPPPPPPPPPPPPPP1"}, "more than 32 bits"),
    "text too short": ({"size": [40, 60], "counts": "52203"}, "add up to 16, but the image has 2400"),
    "negative text": ({"size": [40, 60], "counts": "O1"}, "not all non-negative numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_segmentation_is_refused_before_c_code_reads_it(name: str, tmp_path: Path) -> None:
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        to_mask(value, 40, 60)
    with pytest.raises(UserError, match=r"the segmentation of annotation 0 .*image 1, is invalid: ") as error:
        opened(tmp_path, lambda data: data["annotations"][0].update(segmentation=value)).load("1")
    assert "a.json" in str(error.value)


def test_a_hostile_file_needs_little_memory(tmp_path: Path) -> None:
    """In a process with a memory limit: NaN and huge coordinates made pycocotools allocate all memory."""
    opened(tmp_path, lambda data: None)
    data = instances()
    for number, (value, _) in enumerate(BAD.values()):
        data["annotations"][0]["segmentation"] = value
        (tmp_path / f"{number}.json").write_text(json.dumps(data))
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
from pathlib import Path
from factory.errors import UserError
from factory.labelled.coco import CocoFolder
from factory.config.vocabulary import coco
refused = 0
for number in range({len(BAD)}):
    try:
        CocoFolder(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}) / f"{{number}}.json", coco()).load("1")
    except UserError:
        refused += 1
print(refused)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout.strip(), result.returncode) == (str(len(BAD)), 0), result.stderr[-500:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"images": ' + "[" * 100_000, "is nested too deeply"),
        ("[]", "it holds a list, not an object"),
        ('{"images": [', "is not a COCO instances file"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "is not a COCO instances file"),
        ("\x00\x01\x02", "is not a COCO instances file"),
    ],
)
def test_invalid_or_deeply_nested_json_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        CocoFolder(tmp_path, tmp_path / "a.json", coco())


def test_an_oversized_file_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps(instances()))
    for name, limit, message in (
        ("MAX_JSON_BYTES", 100, "more than the limit of 100 bytes"),
        ("MAX_JSON_VALUES", 10, "about .* values"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"factory.labelled.annotations.{name}", limit)
            patch.setattr("json.loads", None)
            with pytest.raises(UserError, match=message):
                CocoFolder(tmp_path, tmp_path / "a.json", coco())
