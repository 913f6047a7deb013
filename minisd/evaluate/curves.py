"""Curves on a grid, drawn with Pillow: a panel for each measure, a colour and a mark for each curve."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count as counting

from PIL import Image, ImageDraw, ImageFont

from minisd.images import WHITE

BLACK, GREY = (0, 0, 0), (222, 222, 222)
WIDTH, HEIGHT = 560, 440                          # of a panel's inside
LEFT, TOP, GAP, LINE, LEGEND = 64, 36, 24, 20, 200
LETTERS, DOT = 14, 4                              # pixels
NEAREST = 1e-4                                    # what is nearer to a panel's limit is drawn as if it were no nearer
Curve = Sequence[tuple[float, float]]             # x > 0 rising, y
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Panel:
    """One measure of every curve, over an x that is drawn in logarithms; of a y with a limit, its distance is, too.

    With `powers`, y itself is: a curve that is a power of x is a straight line.
    """

    title: str
    x: str
    curves: Mapping[str, Curve]
    limit: float | None = None                    # above every y, such as the 1 of SSIM
    powers: bool = False                          # y > 0 then

    def bounds(self) -> tuple[float, float, float, float]:
        """Lowest and highest x and y of all points; never of no width."""
        points = [point for curve in self.curves.values() for point in curve]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        least = 2 * min(ys) if self.powers else min(ys) + 1e-6       # what is nearly level is to look it
        return min(xs), max(max(xs), min(xs) * 1.01), min(ys), max(max(ys), least)

    def height(self, y: float) -> float:
        """What is even on the paper."""
        if self.powers:
            return math.log(y)
        return y if self.limit is None else -math.log(max(self.limit - y, NEAREST))

    def lines(self) -> list[float]:
        """The values of y that the grid shows."""
        _, _, low, high = self.bounds()
        if self.powers:
            return powers(low, high)
        if self.limit is None:
            return ticks(low, high)
        return [self.limit - distance for distance in powers(max(self.limit - high, NEAREST), self.limit - low)]


def curves(panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side, and beside them what each colour means; panels without a point are left out."""
    panels = [panel for panel in panels if any(panel.curves.values())]
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    width = len(panels) * (LEFT + WIDTH + GAP) + LEGEND
    image = Image.new("RGB", (width, max(TOP + HEIGHT + 3 * LINE, TOP + LINE * (len(names) + 1))), WHITE)
    draw = ImageDraw.Draw(image)
    looks = dict(zip(names, enumerate(colours(len(names))), strict=True))
    for n, panel in enumerate(panels):
        _panel(draw, panel, n * (LEFT + WIDTH + GAP) + LEFT, looks)
    for n, name in enumerate(names):
        left, y = width - LEGEND, TOP + DOT + n * LINE
        draw.line([(left, y), (left + 24, y)], fill=looks[name][1], width=2)
        _mark(draw, left + 12, y, looks[name])
        _text(draw, left + 32, y, name, "lm")
    return image


def colours(count: int) -> list[Colour]:
    """Hues round the circle; of many, neighbours are far apart, and every other one is darker."""
    hues = [n * 0.381966 % 1.0 if count > 6 else n / count for n in range(count)]
    made = [colorsys.hsv_to_rgb(hue, 0.85, 0.85 if n % 2 else 0.6) for n, hue in enumerate(hues)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in made]


def ticks(low: float, high: float) -> list[float]:
    """Between 3 and 8 plain numbers in a range: multiples of 1, 2 or 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(high - low))
    step = next(one for one in (size / 5, size / 2, size, size * 2) if (high - low) / one < 7)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in a range."""
    found: list[float] = []
    for power in counting(math.floor(math.log10(low))):
        found += [x for x in (10.0 ** power, 2 * 10.0 ** power, 5 * 10.0 ** power)
                  if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]
        if 10.0 ** power > high:
            return found
    return found


def _panel(draw: ImageDraw.ImageDraw, panel: Panel, left: int, looks: Mapping[str, tuple[int, Colour]]) -> None:
    x_low, x_high, y_low, y_high = panel.bounds()

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / x_low) / math.log(x_high / x_low)
        down = (panel.height(y_high) - panel.height(y)) / (panel.height(y_high) - panel.height(y_low))
        return left + across * WIDTH, TOP + HEIGHT * down

    for y in panel.lines():
        draw.line([at(x_low, y), at(x_high, y)], fill=GREY)
        _text(draw, left - 6, at(x_low, y)[1], f"{y:.6g}", "rm")
    for x in powers(x_low, x_high):
        draw.line([at(x, y_low), at(x, y_high)], fill=GREY)
        _text(draw, at(x, y_low)[0], TOP + HEIGHT + 6, f"{x:g}", "mt")
    draw.rectangle([left, TOP, left + WIDTH, TOP + HEIGHT], outline=BLACK)
    _text(draw, left + WIDTH / 2, TOP - 10, panel.title, "mb")
    _text(draw, left + WIDTH / 2, TOP + HEIGHT + LINE + 6, panel.x, "mt")
    for name, curve in panel.curves.items():
        points = [at(x, y) for x, y in curve]
        draw.line(points, fill=looks[name][1], width=2)
        for x, y in points:
            _mark(draw, x, y, looks[name])


def _mark(draw: ImageDraw.ImageDraw, x: float, y: float, look: tuple[int, Colour]) -> None:
    """A disc, a square or a diamond, so that near colours are told apart."""
    n, colour = look
    if n % 3 == 0:
        draw.ellipse([x - DOT, y - DOT, x + DOT, y + DOT], fill=colour)
    elif n % 3 == 1:
        draw.rectangle([x - DOT + 1, y - DOT + 1, x + DOT - 1, y + DOT - 1], fill=colour)
    else:
        draw.polygon([(x - DOT - 1, y), (x, y - DOT - 1), (x + DOT + 1, y), (x, y + DOT + 1)], fill=colour)


def _text(draw: ImageDraw.ImageDraw, x: float, y: float, words: str, anchor: str) -> None:
    """`anchor` as Pillow has it: "lm" begins at a point, "rm" ends at it, "mt" hangs from it, "mb" stands on it."""
    draw.text((x, y), words, fill=BLACK, font=ImageFont.load_default(LETTERS), anchor=anchor)
