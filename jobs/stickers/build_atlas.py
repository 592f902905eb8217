"""Rebuild the sprite atlas that `factory.stickers` ships, from fixed versions of openly licensed icon sets.

`make atlas` installs the icon sets and runs this script.

The styles `noto`, `twemoji`, `fluent-flat` and `openmoji` have sprites of every COCO class, `emojione` of most.
Classes that are missing from an icon set come from `drawings.py`, which imitates each of these five styles. The other
icon sets contribute the classes that they contain. `openmoji` is the held-out style.

Some classes have *variants*, other drawings in the training styles, on which the detector is trained as well.
"""

import argparse
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import resvg_py
from drawings import DRAWN_CLASSES, draw
from drawings import STYLES as DRAWN_STYLES
from PIL import Image

from factory.config.vocabulary import coco
from factory.stickers.atlas import HELD_OUT_STYLE

CELL = 128
COLUMNS = 20
SETS = {
    "noto": "noto@1.2.9",
    "twemoji": "twemoji@1.2.5",
    "fluent-flat": "fluent-emoji-flat@1.2.6",
    "emojione": "emojione@1.2.3",
    "openmoji": "openmoji@1.2.29",
    "noto-v1": "noto-v1@1.2.5",
    "fluent": "fluent-emoji@1.2.7",
    "emojione-v1": "emojione-v1@1.2.3",
    "fxemoji": "fxemoji@1.2.2",
    "streamline": "streamline-emojis@1.2.4",
}
"""The icon set of each art style, as PACKAGE@VERSION."""
ICON_OF_CLASS = {
    "person": "person-standing", "bicycle": "bicycle", "car": "automobile", "motorcycle": "motorcycle",
    "airplane": "airplane", "bus": "bus", "train": "locomotive", "truck": "delivery-truck", "boat": "sailboat",
    "traffic light": "vertical-traffic-light", "stop sign": "stop-sign", "bird": "bird", "cat": "cat", "dog": "dog",
    "horse": "horse", "sheep": "ewe", "cow": "cow", "elephant": "elephant", "bear": "bear", "zebra": "zebra",
    "giraffe": "giraffe", "backpack": "backpack", "umbrella": "umbrella", "handbag": "handbag",
    "suitcase": "luggage", "frisbee": "flying-disc", "skis": "skis", "sports ball": "soccer-ball", "kite": "kite",
    "skateboard": "skateboard", "bottle": "bottle-with-popping-cork", "wine glass": "wine-glass",
    "cup": "hot-beverage", "knife": "kitchen-knife", "bowl": "bowl-with-spoon", "banana": "banana",
    "apple": "red-apple", "sandwich": "sandwich", "orange": "tangerine", "broccoli": "broccoli",
    "carrot": "carrot", "hot dog": "hot-dog", "pizza": "pizza", "donut": "doughnut", "cake": "birthday-cake",
    "chair": "chair", "couch": "couch-and-lamp", "potted plant": "potted-plant", "bed": "bed", "toilet": "toilet",
    "tv": "television", "laptop": "laptop", "mouse": "computer-mouse", "keyboard": "keyboard",
    "cell phone": "mobile-phone", "book": "open-book", "clock": "alarm-clock", "vase": "amphora",
    "scissors": "scissors", "teddy bear": "teddy-bear", "toothbrush": "toothbrush",
}  # fmt: skip
"""The icon of each class. Classes that are missing here always come from `drawings.py`."""
VARIANTS_OF_CLASS = {
    "person": ["person-walking", "person-running"],
    "car": ["oncoming-automobile", "sport-utility-vehicle", "racing-car", "taxi", "police-car"],
    "motorcycle": ["motor-scooter"], "airplane": ["small-airplane"], "bus": ["oncoming-bus", "trolleybus"],
    "train": ["tram-car", "train", "high-speed-train", "bullet-train", "railway-car"],
    "truck": ["fire-engine", "pickup-truck", "articulated-lorry", "ambulance"],
    "traffic light": ["horizontal-traffic-light"],
    "bird": ["eagle", "dove", "duck", "owl", "parrot", "penguin", "rooster", "goose"],
    "cat": ["black-cat", "cat-face"], "dog": ["poodle", "guide-dog", "service-dog", "dog-face"],
    "horse": ["horse-face"], "sheep": ["ram"], "cow": ["ox", "water-buffalo", "cow-face"],
    "bear": ["polar-bear"], "umbrella": ["closed-umbrella"], "handbag": ["purse", "clutch-bag"],
    "sports ball": ["basketball", "baseball", "volleyball", "softball"], "bottle": ["lotion-bottle"],
    "wine glass": ["cocktail-glass"], "cup": ["teacup-without-handle", "cup-with-straw", "beer-mug", "glass-of-milk"],
    "knife": ["dagger"], "spoon": ["spoon"], "bowl": ["steaming-bowl", "green-salad", "cooked-rice"],
    "sandwich": ["stuffed-flatbread", "hamburger"], "donut": ["bagel"], "cake": ["shortcake"], "chair": ["seat"],
    "tv": ["desktop-computer"],
    "book": ["closed-book", "books", "notebook", "ledger"],
    "clock": ["mantelpiece-clock", "three-oclock", "timer-clock"],
}  # fmt: skip
"""Icons that are variants of a class."""
UNFIT = {
    *(("emojione-v1", "keyboard"), ("fxemoji", "keyboard"), ("fxemoji", "boat"), ("fxemoji", "bird")),
    *(("noto-v1", "laptop"), ("emojione-v1", "laptop"), ("emojione-v1", "desktop-computer")),
    *(("emojione", "basketball"), ("noto-v1", "basketball")),
}
"""Icons, by style and class (variants: by style and icon), that show something else (a piano, a desktop computer) or
only a part, or that have a filled background."""


VARIANT_COLOURS = 20


def icon_svg(icon_set: dict, name: str) -> str | None:
    """One icon of an Iconify collection as an SVG document; None if the collection does not contain it."""
    entry = icon_set["icons"].get(name)
    if entry is None:
        alias = icon_set.get("aliases", {}).get(name)
        entry = icon_set["icons"].get(alias["parent"]) if alias else None
    if entry is None:
        return None
    left, top = entry.get("left", 0), entry.get("top", 0)
    width = entry.get("width", icon_set.get("width", 16))
    height = entry.get("height", icon_set.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{entry["body"]}</svg>'
    )


def rasterise(svg: str) -> Image.Image:
    """Render an SVG document as a sprite: RGBA, `CELL` pixels square, cropped to the drawing and centred."""
    large = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * CELL)))).convert("RGBA")
    box = large.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    assert box is not None, "the drawing is empty"
    drawing = large.crop(box)
    scale = (CELL - 2) / max(drawing.size)
    drawing = drawing.resize([max(1, round(side * scale)) for side in drawing.size], Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(drawing, ((CELL - drawing.width) // 2, (CELL - drawing.height) // 2))
    return cell


def reduced(cell: Image.Image) -> Image.Image:
    """The sprite with few colours, which makes the atlas smaller; the detector's training changes colours anyway."""
    return cell.quantize(VARIANT_COLOURS, method=Image.Quantize.FASTOCTREE).convert("RGBA")


def default_sprites(icon_sets: dict[str, dict]) -> Iterator[tuple[dict, Image.Image]]:
    """The index entry and the cell of the default drawing of every class in every style that has one."""
    for style, icon_set in icon_sets.items():
        for name in coco().names:
            icon_name = ICON_OF_CLASS.get(name) if (style, name) not in UNFIT else None
            icon = icon_svg(icon_set, icon_name) if icon_name else None
            if icon is None and (name not in DRAWN_CLASSES or style not in DRAWN_STYLES):
                continue
            source = "factory" if icon is None else f"{SETS[style]}:{icon_name}"
            yield (
                {"class": name, "style": style, "source": source},
                rasterise(icon if icon is not None else draw(name, style)),
            )


def variant_sprites(icon_sets: dict[str, dict]) -> Iterator[tuple[dict, Image.Image]]:
    """The index entries and the cells of all variants."""
    for style, icon_set in icon_sets.items():
        for name, icon_names in VARIANTS_OF_CLASS.items():
            for icon_name in icon_names:
                icon = icon_svg(icon_set, icon_name)
                if icon is None or style == HELD_OUT_STYLE or (style, icon_name) in UNFIT:
                    continue
                source = f"{SETS[style]}:{icon_name}"
                yield {"class": name, "style": style, "source": source, "variant": True}, reduced(rasterise(icon))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", type=Path, required=True, help="Folder of the icon set packages.")
    parser.add_argument("--out", type=Path, default=Path("factory/stickers/data"))
    arguments = parser.parse_args()
    icon_sets = {
        style: json.loads((arguments.icons / package.partition("@")[0] / "icons.json").read_text())
        for style, package in SETS.items()
    }
    cells, index = [], []
    drawings = set()
    for entry, cell in (*default_sprites(icon_sets), *variant_sprites(icon_sets)):
        if cell.tobytes() in drawings:  # one icon with several names
            continue
        drawings.add(cell.tobytes())
        cells.append(cell)
        index.append(entry)
    rows = -(-len(cells) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for position, cell in enumerate(cells):
        atlas.paste(cell, (position % COLUMNS * CELL, position // COLUMNS * CELL))
    arguments.out.mkdir(parents=True, exist_ok=True)
    atlas.save(arguments.out / "atlas.png", optimize=True)
    digest = hashlib.sha256((arguments.out / "atlas.png").read_bytes()).hexdigest()
    statement = {"cell": CELL, "columns": COLUMNS, "held_out": HELD_OUT_STYLE, "sha256": digest, "sprites": index}
    (arguments.out / "atlas.json").write_text(json.dumps(statement, indent=1) + "\n")
    print(f"{len(cells)} sprites, {(arguments.out / 'atlas.png').stat().st_size / 2**20:.1f} MiB, sha256 {digest}")


if __name__ == "__main__":
    main()
