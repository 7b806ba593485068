"""Simple SVG pictures of tables.json: bars, lines and heat maps, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from .plan import ROUTED

COLOURS = ("#3b6ea8", "#d9853b", "#5a9e5a", "#b04a4a", "#7d62a8", "#7a7a7a", "#c2a33a", "#4aa3a3", "#a86a8f", "#444444")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 60, 190, 40, 60


class Picture:
    def __init__(self, title: str, width: int = WIDTH, height: int = HEIGHT):
        self.width, self.height, self.parts = width, height, []
        self.text(width / 2, 22, title, anchor="middle", size=15)

    def text(self, x: float, y: float, what: str, anchor: str = "start", size: int = 11, turn: int = 0) -> None:
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{turned}>{escape(what)}</text>'
        )

    def rect(self, x: float, y: float, w: float, h: float, fill: str) -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}"/>')

    def line(self, points: Sequence[tuple[float, float]], stroke: str, width: float = 1) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" fill="none" stroke="{stroke}" stroke-width="{width}"/>')

    def legend(self, names: Sequence[str]) -> None:
        for i, name in enumerate(names):
            y = TOP + 10 + 18 * i
            self.rect(self.width - RIGHT + 14, y - 9, 10, 10, COLOURS[i % len(COLOURS)])
            self.text(self.width - RIGHT + 30, y, name)

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" font-family="sans-serif">'
        return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *self.parts, "</svg>", ""])


class Scale:
    """Values low to high as heights of the plotting area, with rounded marks."""

    def __init__(self, low: float, high: float):
        high = high if high > low else low + 1
        span = high - low
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
        self.low, self.high = math.floor(low / step) * step, math.ceil(high / step) * step
        self.marks = [self.low + step * i for i in range(round((self.high - self.low) / step) + 1)]

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)

    def draw(self, picture: Picture, label: str) -> None:
        for mark in self.marks:
            picture.line([(LEFT, self.y(mark)), (WIDTH - RIGHT, self.y(mark))], "#dddddd")
            picture.text(LEFT - 6, self.y(mark) + 4, f"{mark:g}" if abs(mark) > 1e-12 else "0", anchor="end")
        picture.text(16, (TOP + HEIGHT - BOTTOM) / 2, label, anchor="middle", turn=-90)


def bars(title: str, label: str, groups: Sequence[str], series: dict[str, Sequence[float]]) -> str:
    """One group of bars for each of `groups`, one bar in it for each series."""
    values = [v for s in series.values() for v in s]
    picture, scale = Picture(title), Scale(min(0, *values), max(0, *values))
    scale.draw(picture, label)
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    bar = 0.8 * room / len(series)
    foot = scale.y(max(scale.low, 0))
    for g, group in enumerate(groups):
        for s, heights in enumerate(series.values()):
            y = scale.y(heights[g])
            x = LEFT + g * room + 0.1 * room + s * bar
            picture.rect(x, min(y, foot), bar * 0.92, abs(foot - y), COLOURS[s % len(COLOURS)])
        picture.text(LEFT + (g + 0.5) * room, HEIGHT - BOTTOM + 16, group, anchor="end", turn=-25)
    picture.legend(list(series))
    return picture.svg()


def lines(title: str, label: str, points: Sequence[str], series: dict[str, Sequence[float | None]]) -> str:
    """`points` stand at equal distances; a None leaves a gap."""
    values = [v for s in series.values() for v in s if v is not None]
    picture, scale = Picture(title), Scale(min(values), max(values))
    scale.draw(picture, label)
    room = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)
    for i, point in enumerate(points):
        picture.text(LEFT + i * room, HEIGHT - BOTTOM + 18, point, anchor="middle")
    for s, heights in enumerate(series.values()):
        there = [(LEFT + i * room, scale.y(v)) for i, v in enumerate(heights) if v is not None]
        picture.line(there, COLOURS[s % len(COLOURS)], 2.5 if s == 0 else 1.2)
    picture.legend(list(series))
    return picture.svg()


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """Values written into cells; white is 1, blue below, orange above."""
    cell, left, top = 62, 110, 110
    picture = Picture(title, left + cell * len(columns) + 20, top + 34 * len(rows) + 20)
    most = max(1e-9, max(abs(v - 1) for row in values for v in row))
    for c, name in enumerate(columns):
        picture.text(left + (c + 0.5) * cell, top - 8, name, turn=-35)
    for r, name in enumerate(rows):
        picture.text(left - 8, top + 34 * r + 21, name, anchor="end")
        for c, v in enumerate(values[r]):
            share = (v - 1) / most
            end = np.array((217, 133, 59) if share > 0 else (59, 110, 168))
            colour = (255 + abs(share) * 0.8 * (end - 255)).astype(int)
            picture.rect(left + c * cell, top + 34 * r, cell - 2, 32, "#" + "".join(f"{x:02x}" for x in colour))
            picture.text(left + (c + 0.5) * cell, top + 34 * r + 21, f"{v:.3f}", anchor="middle")
    return picture.svg()


def pictures(t: dict) -> dict[str, str]:
    """File name → SVG, of whatever tables.json has."""
    domains, out = t["domains"], {}
    tag = " (smoke)" if t["plan"] == "smoke" else ""

    base = next((r["bits_per_byte"] for r in t["trained"] if r["name"] == ROUTED), None)
    for part in ("routing", "ablation"):
        others = [r for r in t["trained"] if r["part"] == part and r["name"] != ROUTED and r["seed"] == 0]
        if base and others:
            more = {r["name"]: [100 * (r["bits_per_byte"][d] / base[d] - 1) for d in ("mean", *domains)] for r in others}
            title = f"Bits per byte more than {ROUTED}, test split, seed 0{tag}"
            out[f"{part}-bits-per-byte.svg"] = bars(title, "%", ["mean", *domains], more)
    routed = t["routed"]
    if routed:
        layers = [f"layer {i}" for i in range(len(routed["modules_by_layer"]))]
        mi = routed["mutual_information"]
        series = {"estimate": [m["bits"] for m in mi], "of it bias": [m["shuffled_bits"] for m in mi]}
        out["mutual-information.svg"] = bars(f"I(domain; module){tag}", "bits", layers, series)
        by_layer = {"modules": routed["modules_by_layer"]}
        out["modules-by-layer.svg"] = bars(f"Modules per token{tag}", "modules", layers, by_layer)
        by_domain = {"modules": [routed["modules_by_domain"][d] for d in domains]}
        out["modules-by-domain.svg"] = bars(f"Modules per token{tag}", "modules", domains, by_domain)
        rows = routed["router_accuracy_by_context"]
        series = {"mean": [r["mean"] for r in rows]} | {d: [r["by_domain"][d] for r in rows] for d in domains}
        title = f"Token router: right domain after so many tokens{tag}"
        out["router-accuracy.svg"] = lines(title, "share of passages", [str(r["tokens"]) for r in rows], series)
    p = t["preservation"]
    if p:
        kinds = [kind for kind in ("plain", "preserved") if kind in p]
        for key in ("forgetting", "gain"):
            title = f"{key.capitalize()} by domain of fine-tuning{tag}"
            out[f"{key}.svg"] = bars(title, "bits per byte", domains, {kind: p[kind][key] for kind in kinds})
        for kind in kinds:
            title = f"CDTR, {kind}: row fine-tuned, column measured{tag}"
            out[f"cdtr-{kind}.svg"] = heat_map(title, domains, domains, p[kind]["cdtr"])
    return out


def write(t: dict, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(t)
    for name, svg in drawn.items():
        (folder / name).write_text(svg, encoding="utf-8")
    return sorted(drawn)
