"""SVG drawings of the classes that are missing from the icon sets, in each art style.

Original work of this project (Apache-2.0). Every drawing fills a 128-unit square. Like the icon sets, the styles differ
in colours, finish (flat, gradient, side shade, black outline) and proportions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

STYLES = ("noto", "twemoji", "fluent-flat", "emojione", "openmoji")
_METAL = {
    "noto": "#b0bec5",
    "twemoji": "#99aab5",
    "fluent-flat": "#c8c4d8",
    "emojione": "#94989b",
    "openmoji": "#d0cfce",
}
_DARK = {
    "noto": "#37474f",
    "twemoji": "#31373d",
    "fluent-flat": "#433b6b",
    "emojione": "#3e4347",
    "openmoji": "#3f3f3f",
}
_WOOD = {
    "noto": "#a1693b",
    "twemoji": "#c1694f",
    "fluent-flat": "#b56a3c",
    "emojione": "#89664c",
    "openmoji": "#a57939",
}


@dataclass
class Brush:
    """Collects shapes and renders them in one style. `k` is the index of the style, which varies the proportions."""

    style: str
    shapes: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)

    @property
    def k(self) -> int:
        return STYLES.index(self.style)

    @property
    def metal(self) -> str:
        return _METAL[self.style]

    @property
    def dark(self) -> str:
        return _DARK[self.style]

    @property
    def wood(self) -> str:
        return _WOOD[self.style]

    def pick(self, *colours: str) -> str:
        """The colour of the style, from one colour per style."""
        return colours[self.k % len(colours)]

    def _finish(self, colour: str) -> str:
        if self.style == "openmoji":
            return f'fill="{colour}" stroke="#000" stroke-width="4" stroke-linejoin="round"'
        if self.style in ("noto", "fluent-flat"):
            name = f"g{len(self.gradients)}"
            end = _shade(colour, 0.72 if self.style == "noto" else 1.25)
            self.gradients.append(
                f'<linearGradient id="{name}" x1="0" y1="0" x2="0.3" y2="1"><stop offset="0.3" stop-color="{colour}"/>'
                f'<stop offset="1" stop-color="{end}"/></linearGradient>'
            )
            return f'fill="url(#{name})"'
        return f'fill="{colour}"'

    def box(self, x: float, y: float, w: float, h: float, colour: str, r: float = 4) -> None:
        """A rounded rectangle. In `emojione`, its right third is darker."""
        self.shapes.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{r}" {self._finish(colour)}/>')
        if self.style == "emojione" and w > 14:
            dark = _shade(colour, 0.8)
            self.shapes.append(
                f'<rect x="{x + w * 0.66}" y="{y}" width="{w * 0.34}" height="{h}" rx="{r}" fill="{dark}"/>'
            )

    def disc(self, x: float, y: float, rx: float, colour: str, ry: float | None = None) -> None:
        """An ellipse, or a circle if `ry` is not given."""
        self.shapes.append(f'<ellipse cx="{x}" cy="{y}" rx="{rx}" ry="{ry or rx}" {self._finish(colour)}/>')

    def path(self, d: str, colour: str) -> None:
        """A filled path."""
        self.shapes.append(f'<path d="{d}" {self._finish(colour)}/>')

    def line(self, d: str, colour: str, width: float) -> None:
        """A thick stroke with round ends."""
        ends = 'fill="none" stroke-linecap="round" stroke-linejoin="round"'
        if self.style == "openmoji":
            self.shapes.append(f'<path d="{d}" {ends} stroke="#000" stroke-width="{width + 7}"/>')
        self.shapes.append(f'<path d="{d}" {ends} stroke="{colour}" stroke-width="{width}"/>')


def _shade(colour: str, factor: float) -> str:
    parts = (int(colour[position : position + 2], 16) for position in (1, 3, 5))
    return "#" + "".join(f"{min(255, round(part * factor)):02x}" for part in parts)


def _fire_hydrant(b: Brush) -> None:
    red = b.pick("#e53935", "#dd2e44", "#f8312f", "#e84c3d", "#ea5a47")
    w = 40 + 3 * b.k
    b.box(64 - w / 2 - 16, 108, w + 32, 16, _shade(red, 0.8), 4)
    b.box(22, 52, 84, 20, _shade(red, 0.85), 6)
    b.box(64 - w / 2, 36, w, 76, red, 6)
    b.path(f"M{60 - w / 2} 40 Q64 {-4 - 3 * b.k} {68 + w / 2} 40 Z", red)
    b.box(58, 4, 12, 12, _shade(red, 0.8), 3)
    b.disc(64, 62, 14, b.metal if b.k % 2 else "#ffca28")


def _parking_meter(b: Brush) -> None:
    grey = b.pick("#607d8b", "#66757f", "#7d7899", "#5a6b75", "#9b9b9a")
    b.box(57, 66, 14, 58, b.dark, 3)
    b.box(42, 114, 44, 12, b.dark, 4)
    b.path(f"M34 76 V38 Q34 4 64 4 Q94 4 94 38 V76 Q64 {86 + 2 * b.k} 34 76 Z", grey)
    b.path("M44 40 Q44 16 64 16 Q84 16 84 40 Z", b.pick("#e1f5fe", "#ccd6dd", "#d3f0ff", "#e8f6ff", "#ffffff"))
    b.line("M64 38 L72 26", "#e53935", 5)
    b.box(54, 50, 20, 8, b.dark, 2)
    b.box(58, 64, 12, 8, "#ffca28", 2)


def _bench(b: Brush) -> None:
    legs = b.pick("#455a64", "#31373d", "#433b6b", "#3e4347", "#9b9b9a")
    for x in (18, 98):
        b.box(x, 28, 12, 92, legs, 3)
    for row in range(2 + b.k % 2):
        b.box(6, 26 + row * 20, 116, 14, b.wood, 3)
    b.box(2, 76, 124, 16, _shade(b.wood, 0.9), 4)


def _tie(b: Brush) -> None:
    main = b.pick("#1e88e5", "#dd2e44", "#7c3aed", "#c0392b", "#3949ab")
    stripe = b.pick("#90caf9", "#f4abba", "#ffd54f", "#f1c40f", "#fcea2b")
    b.path(f"M52 26 L76 26 L{92 + b.k} 100 L64 126 L{36 - b.k} 100 Z", main)
    b.path("M48 60 L80 46 L83 58 L45 74 Z", stripe)
    b.path("M42 90 L86 70 L89 82 L40 104 Z", stripe)
    b.path("M46 2 L82 2 L76 28 L52 28 Z", _shade(main, 0.8))


def _snowboard(b: Brush) -> None:
    deck = b.pick("#00acc1", "#5dadec", "#00d26a", "#9b59b6", "#61b2e4")
    b.line("M24 108 L104 20", deck, 30)
    b.line("M28 104 L40 90", b.pick("#ffffff", "#226699", "#ffffff", "#f1c40f", "#ffffff"), 12)
    for x, y in ((50, 79), (78, 48)):
        b.line(f"M{x - 12} {y - 11} L{x + 12} {y + 11}", b.dark, 11)


def _baseball_bat(b: Brush) -> None:
    wood = b.pick("#d7a86e", "#c1694f", "#e0a05a", "#e2b07a", "#a57939")
    b.path(f"M14 106 L84 18 Q96 2 114 10 Q126 {24 + b.k} 112 42 L24 116 Z", wood)
    b.line("M18 110 L46 80", b.pick("#5d4037", "#662113", "#433b6b", "#3e4347", "#6a462f"), 15)
    b.disc(16, 113, 11, _shade(wood, 0.75))


def _baseball_glove(b: Brush) -> None:
    hide = b.pick("#a1582b", "#a0522d", "#c2642f", "#9c5b33", "#a57939")
    fingers = ((30, 34), (50, 16), (72, 12), (94, 22))
    for x, y in fingers:
        b.line(f"M{x} {y} L{44 + x * 0.3} 80", hide, 20)
    b.line("M112 66 L78 96", hide, 22)
    b.disc(62, 86, 40, hide, 36)
    b.path("M84 32 L112 62 L86 84 L70 66 Z", _shade(hide, 0.7))
    b.disc(70, 72, 20, "#ffffff")
    b.line("M60 60 Q72 72 62 86", "#e53935", 4)


def _surfboard(b: Brush) -> None:
    board = b.pick("#ffca28", "#ffcc4d", "#ff822d", "#f39c12", "#f1b31c")
    band = b.pick("#e53935", "#3b88c3", "#00a6ed", "#16a085", "#d22f27")
    b.path(f"M64 2 Q{100 + b.k} 40 92 92 Q84 118 64 126 Q44 118 36 92 Q{28 - b.k} 40 64 2 Z", board)
    b.path("M36 56 L92 40 L93 60 L34 76 Z", band)
    b.line("M64 16 L64 118", "#ffffff", 6)


def _tennis_racket(b: Brush) -> None:
    frame = b.pick("#43a047", "#be1931", "#f8312f", "#2980b9", "#5c9e31")
    b.line("M52 80 L18 116", b.dark, 13)
    b.line("M60 70 L46 86", frame, 12)
    b.disc(82, 44, 38 + b.k % 2 * 2, frame, 38)
    b.disc(82, 44, 28, b.pick("#eceff1", "#f5f8fa", "#f4f4f4", "#ecf0f1", "#ffffff"))
    for step in (-14, 0, 14):
        b.line(f"M{82 + step} 22 L{82 + step} 66", b.pick("#b0bec5", "#ccd6dd", "#bebebe", "#bdc3c7", "#9b9b9a"), 3)
        b.line(f"M60 {44 + step} L104 {44 + step}", b.pick("#b0bec5", "#ccd6dd", "#bebebe", "#bdc3c7", "#9b9b9a"), 3)


def _fork(b: Brush) -> None:
    for x in (44, 64, 84):
        b.line(f"M{x} 8 L{x} 44", b.metal, 9)
    b.path(f"M38 38 H90 Q90 66 70 72 L{72 + b.k} 118 Q64 130 {56 - b.k} 118 L58 72 Q38 66 38 38 Z", b.metal)


def _spoon(b: Brush) -> None:
    b.path(f"M58 54 H70 L{72 + b.k} 118 Q64 130 {56 - b.k} 118 Z", b.metal)
    b.disc(64, 34, 24 + b.k % 2 * 2, b.metal, 32)
    b.disc(60, 30, 13, _shade(b.metal, 0.82), 20)


def _dining_table(b: Brush) -> None:
    cloth = b.pick(b.wood, "#d99e82", b.wood, "#ecf0f1", b.wood)
    b.box(16, 48, 12, 72, _shade(b.wood, 0.8), 3)
    b.box(100, 48, 12, 72, _shade(b.wood, 0.8), 3)
    b.box(2, 34, 124, 20 + b.k, cloth, 6)
    b.disc(64, 28, 26, "#f5f5f5", 9)
    b.disc(64, 26, 14, b.pick("#e53935", "#77b255", "#ffb02e", "#e67e22", "#b1cc33"), 6)


def _remote(b: Brush) -> None:
    b.box(38, 2, 52, 124, b.dark, 14)
    b.disc(64, 20, 9, "#e53935")
    for row in range(4):
        for column in range(2 + b.k % 2):
            x = (52, 76)[column] if b.k % 2 == 0 else (49, 64, 79)[column]
            b.disc(x, 46 + row * 20, 6, b.pick("#eceff1", "#99aab5", "#b4acff", "#f1c40f", "#ffffff"))


def _microwave(b: Brush) -> None:
    shell = b.pick("#cfd8dc", "#ccd6dd", "#e6e6e6", "#d0d0d0", "#ffffff")
    b.box(2, 24, 124, 82, shell, 8)
    b.box(12, 36, 76, 58, b.pick("#263238", "#292f33", "#321b41", "#34495e", "#3f3f3f"), 5)
    b.disc(50, 72, 24, b.pick("#ffb74d", "#ffcc4d", "#ffb02e", "#f39c12", "#f1b31c"), 9)
    b.box(94, 36, 24, 14, "#66bb6a", 2)
    for row in range(2):
        for x in (100, 112):
            b.disc(x, 64 + row * 18, 5, b.dark)


def _oven(b: Brush) -> None:
    shell = b.pick("#90a4ae", "#8899a6", "#7e7a99", "#7f8c8d", "#9b9b9a")
    b.box(12, 4, 104, 120, shell, 8)
    b.box(12, 4, 104, 28, b.dark, 8)
    for x in (32, 64, 96):
        b.disc(x, 18, 8, b.pick("#eceff1", "#ffffff", "#ffffff", "#ecf0f1", "#ffffff"))
    b.box(26, 54, 76, 58, b.pick("#ff8a50", "#f4900c", "#ff822d", "#d35400", "#e27022"), 5)
    b.box(22, 40, 84, 8, "#eceff1", 3)


def _toaster(b: Brush) -> None:
    shell = b.pick("#ef5350", "#99aab5", "#00a6ed", "#2ecc71", "#92d3f5")
    crust = b.pick("#c98a4b", "#d99e82", "#d3883e", "#c49a6c", "#a57939")
    for x in (22, 62):
        b.path(f"M{x} 66 V26 Q{x - 4} 8 {x + 22} 8 Q{x + 48} 8 {x + 44} 26 V66 Z", crust)
        b.box(x + 8, 20, 28, 40, _shade(crust, 1.3), 6)
    b.box(6, 52, 110, 64, shell, 18)
    b.box(110, 66, 14, 14, b.dark, 4)
    b.box(24, 110, 80, 12, b.dark, 4)


def _sink(b: Brush) -> None:
    basin = b.pick("#e3f2fd", "#ccd6dd", "#e6f4ff", "#ecf0f1", "#ffffff")
    b.line("M46 64 V26 Q46 10 66 10 Q84 10 84 32", b.metal, 13)
    b.box(20, 44, 16, 18, b.metal, 4)
    b.path("M82 38 Q94 56 84 58 Q74 56 82 38 Z", "#42a5f5")
    b.path("M14 70 H114 Q112 122 64 124 Q16 122 14 70 Z", _shade(basin, 0.9))
    b.box(2, 60, 124, 18, basin, 8)


def _refrigerator(b: Brush) -> None:
    shell = b.pick("#b3e5fc", "#bbddf5", "#8fd3ff", "#a8d5e5", "#92d3f5")
    b.box(26, 2, 76, 120, shell, 8)
    b.box(26, 42 + 2 * b.k, 76, 6, b.dark, 0)
    b.box(34, 16, 9, 20, b.dark, 3)
    b.box(34, 60, 9, 34, b.dark, 3)


def _hair_drier(b: Brush) -> None:
    shell = b.pick("#ec407a", "#9266cc", "#ff5fa2", "#e91e63", "#e67a94")
    b.path(f"M66 64 L96 64 L{90 + b.k} 120 Q80 128 70 120 Z", _shade(shell, 0.85))
    b.path("M2 30 L48 24 L48 64 L2 58 Z", b.dark)
    b.path("M40 24 Q76 2 104 16 Q126 28 122 50 Q112 78 82 74 L40 64 Z", shell)
    b.disc(94, 44, 14, b.pick("#f8bbd0", "#ccd6dd", "#ffd1e5", "#3e4347", "#ffffff"))


_DRAWINGS: dict[str, Callable[[Brush], None]] = {
    "fire hydrant": _fire_hydrant,
    "parking meter": _parking_meter,
    "bench": _bench,
    "tie": _tie,
    "snowboard": _snowboard,
    "baseball bat": _baseball_bat,
    "baseball glove": _baseball_glove,
    "surfboard": _surfboard,
    "tennis racket": _tennis_racket,
    "fork": _fork,
    "spoon": _spoon,
    "dining table": _dining_table,
    "remote": _remote,
    "microwave": _microwave,
    "oven": _oven,
    "toaster": _toaster,
    "sink": _sink,
    "refrigerator": _refrigerator,
    "hair drier": _hair_drier,
}
DRAWN_CLASSES = tuple(_DRAWINGS)


def draw(class_name: str, style: str) -> str:
    """The SVG document of one class in one style.

    Raises ValueError for a class that is not drawn here and for an unknown style.
    """
    if class_name not in _DRAWINGS or style not in STYLES:
        raise ValueError(
            f"no drawing of {class_name!r} in {style!r}; the classes are {', '.join(_DRAWINGS)}, "
            f"the styles {', '.join(STYLES)}"
        )
    brush = Brush(style)
    _DRAWINGS[class_name](brush)
    defs = f"<defs>{''.join(brush.gradients)}</defs>" if brush.gradients else ""
    body = "".join(brush.shapes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">{defs}{body}</svg>'
