"""Renders a report as one HTML file, which loads no scripts, styles or images."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from factory.dataset.records import Image
from factory.report.thumbnails import ENCODINGS, encoded

MAX_BYTES = 2_000_000
"""Size of a page, thumbnails included."""
_MATRIX_CLASSES = 24
_MISSING = "\u2013"
_TEMPLATES = Path(__file__).parent / "templates"

REASONS = {
    "blank_image": "Blank image",
    "mask_empty": "No mask for a class",
    "mask_small": "Mask too small",
    "mask_large": "Mask too large",
    "mask_border": "Mask along the border",
    "mask_fragmented": "Mask in several regions",
    "low_confidence": "Low mask confidence",
    "overlap": "Masks overlap",
    "detector_disagrees": "Detector disagrees",
    "near_duplicate": "Near-duplicate in its shard",
}
"""Titles of the rejection reasons; others are shown as they are."""


def write_page(report: Mapping[str, Any], thumbnails: Mapping[str, Image]) -> str:
    """The page of a report. If it would be too large, the thumbnails are made smaller, and finally left out."""
    for side, quality in ENCODINGS:
        images = encoded(thumbnails, side, quality)
        if sum(map(len, images.values())) < MAX_BYTES:
            page = render(report, images)
            if len(page.encode()) <= MAX_BYTES:
                return page
    return render(report, {})


def render(report: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The page with the given thumbnails: a pure function of report.json and the images, as `data:` URLs by name."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "size": size,
        "duration": duration,
        "reason": lambda name: REASONS.get(name, name),
        "moment": moment,
    }
    environment.globals |= {"plain": plain, "power": lambda value: percent(10**value, 2)}
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "filter.js"))
    # Class names never enter the style or the script, so both are trusted as they are.
    page = environment.get_template("page.html").render(
        report=report,
        images=images,
        related=_most_combined(report["objects"]["pairs"]),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        f"base-uri 'none'; form-action 'none'",
    )
    # JSON files of other origin may hold unpaired surrogates, which UTF-8 cannot encode.
    return page.encode(errors="replace").decode()


def _most_combined(pairs: Sequence[Sequence[Any]]) -> list[str]:
    """The classes that occur most often together with others, in alphabetical order, for the matrix."""
    counts: Counter[str] = Counter()
    for first, second, images in pairs:
        counts.update({first: images, second: images})
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return sorted(ranked[:_MATRIX_CLASSES])


def _hash(text: str) -> str:
    """The source expression of a content security policy that allows exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return _MISSING if share is None else f"{100 * share:.{digits}f}\u202f%"


def number(value: float | None, digits: int | None = None) -> str:
    """A number with thousands separators; three significant digits unless `digits` after the point are given."""
    if value is None:
        return _MISSING
    if isinstance(value, int) and digits is None:
        return f"{value:,}"
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 or value == 0 else 4
    return f"{value:,.{digits}f}"


def plain(value: float) -> str:
    """A number with two digits after the point."""
    return number(float(value), 2)


def size(count: int) -> str:
    """A number of bytes in decimal units."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.{0 if unit == 'B' else 1}f} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds is None:
        return _MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(text: str) -> str:
    """A time in ISO format, readable; any other text unchanged."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text
