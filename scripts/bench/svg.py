"""A small writer of SVG: text, lines, boxes on a card that is light on light pages and dark on dark ones. Pure.

Text stays text. The card and what stands on it change colour together (`prefers-color-scheme`), so that nothing is
ever dark on dark, whatever the page around it does. Colours of data are of middle brightness: at least 3 to 1 against
both cards (WCAG 2.2, 1.4.11).
"""

from collections.abc import Sequence
from xml.etree import ElementTree as Xml

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
SIZE = 13.0
# A wide sans serif font (DejaVu, Verdana) has letters of about this many ems; most are narrower.
_EM = {"narrow": 0.36, "usual": 0.63, "wide": 0.92}
_BOLD = 1.1
_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[]/ -"), frozenset("mwMW@%")
STYLE = """\
.card { fill: #ffffff; stroke: #d0d7de }
.text { fill: #1f2328 }
.soft { fill: #59636e }
.grid { stroke: #d8dee4 }
.axis { stroke: #818b98 }
.over { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
  .card { fill: #0d1117; stroke: #3d444d }
  .text { fill: #f0f6fc }
  .soft { fill: #9198a1 }
  .grid { stroke: #2a313c }
  .over { stroke: #0d1117 }
}
"""


def text_width(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """Return about how wide a text is, in pixels: what a wide font needs, so that no font needs more."""
    kinds = ("narrow" if letter in _NARROW else "wide" if letter in _WIDE else "usual" for letter in text)
    return sum(_EM[kind] for kind in kinds) * size * (_BOLD if bold else 1)


def wrapped(text: str, width: float, size: float = SIZE) -> list[str]:
    """Return the lines of a text that is to be no wider than `width`; a word that is wider stands alone."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


class Picture:
    """A picture that is drawn, of `width` times `height` pixels; `title` is what a screen reader says of it."""

    def __init__(self, width: float, height: float, title: str) -> None:
        box = f"0 0 {_px(width)} {_px(height)}"
        self._root = Xml.Element(
            "svg", xmlns="http://www.w3.org/2000/svg", viewBox=box, width=_px(width), height=_px(height), role="img"
        )
        self.width, self.height = width, height
        Xml.SubElement(self._root, "title").text = title
        Xml.SubElement(self._root, "style").text = f"\n{STYLE}"
        self._put("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=6, kind="card")

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "text", size: float = SIZE,
        bold: bool = False,
    ) -> None:  # fmt: skip
        """Write a text; `anchor` (start, middle, end) is what of it stands at `x`, `y` where its letters stand."""
        more = {"font_weight": "600"} if bold else {}
        made = self._put("text", x=x, y=y, text_anchor=anchor, font_size=size, font_family=FONT, kind=kind, **more)
        made.text = text

    def line(self, x1: float, y1: float, x2: float, y2: float, *, kind: str = "grid", dashed: bool = False) -> None:
        """Draw a thin line."""
        more = {"stroke_dasharray": "4 3"} if dashed else {}
        self._put("line", x1=x1, y1=y1, x2=x2, y2=y2, kind=kind, **more)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draw a filled box."""
        self._put("rect", x=x, y=y, width=width, height=height, fill=colour)

    def path(self, points: Sequence[tuple[float, float]], colour: str, *, thick: float = 2.0) -> None:
        """Draw a line through points."""
        joined = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
        self._put("polyline", points=joined, fill="none", stroke=colour, stroke_width=thick, stroke_linejoin="round")

    def dot(self, x: float, y: float, colour: str, *, radius: float = 3.0) -> None:
        """Draw a filled dot."""
        self._put("circle", cx=x, cy=y, r=radius, fill=colour)

    def svg(self) -> str:
        """Return the picture as an XML document."""
        Xml.indent(self._root, " ")
        return Xml.tostring(self._root, encoding="unicode") + "\n"

    def _put(self, tag: str, *, kind: str = "", **values: float | str) -> Xml.Element:
        fields = {name.replace("_", "-"): text if isinstance(text, str) else _px(text) for name, text in values.items()}
        return Xml.SubElement(self._root, tag, ({"class": kind} if kind else {}) | fields)


def _px(value: float) -> str:
    """Return a length in tenths of a pixel: what is made twice of the same figures is the same text."""
    return f"{round(value, 1):g}"
