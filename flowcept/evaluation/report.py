"""The table and the picture of scores, and charts of lines, bars and growth.

Charts are figures of matplotlib on its Agg canvas, each on its own: no state is shared or kept.
They have 72 dots per inch, where a point is a pixel, so that all sizes here are pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from flowcept.codecs import to_frames
from flowcept.data import video
from flowcept.evaluation.evaluate import Clip, Pairs, Scores

Picture = NDArray[np.uint8]  # [H, W, 3]
Colors = NDArray[np.float64]  # [N, 4]: red, green, blue, opacity
Visible = tuple[int, float, bool]  # a frame of a growing clip: name, flow time, just inserted
Placed = tuple[int, float, Image.Image]  # a thumbnail: column, left edge, picture

INK, GREY, AXIS, GRID = "#262a33", "#636975", "#969ca8", "#e5e8ed"  # titles, labels, lines
HIDDEN = "#f4f6f9"  # the place of a frame that does not exist yet
INSERTED, GIVEN = "#e23d5a", "#f5a642"
# Okabe and Ito's colours, which the usual kinds of colour blindness keep apart; their yellow is
# left out because it is too pale for a line on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#3c3c3c")
# Noise to finished in equal steps of OKLab lightness (0.24 to 0.90), hue 285 to 165 degrees.
RAMP = ("#1d1841", "#1a3d7b", "#006da6", "#009eb9", "#60c8c0", "#afeed2")

DOTS = 72  # per inch
SIZE = (960, 540)  # of a chart with axes: width and height
TEXT: dict[str, Any] = {"fontsize": 13, "color": GREY}
LINE: dict[str, Any] = {"linewidth": 2, "markersize": 7, "markeredgewidth": 0, "clip_on": False}
LEGEND: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0, 1.02), "alignment": "left", "frameon": False,
    "borderpad": 0, "borderaxespad": 0, "handlelength": 1.4, "fontsize": 13, "labelcolor": GREY,
    "title_fontsize": 18,
}  # fmt: skip
PAD = 18  # white around a picture
LEFT, TOP = 70, 58  # of the cells of a growth chart
LEGEND_WIDTH = 420
THUMBNAIL = 44  # width where not every frame has one
WAYS = {  # to make missing frames
    "model": "missing frames by the model",
    "linear": "  by blending the ends",
    "repeat": "  by repeating the first",
}
LOWER, HIGHER, NEARER = "lower is better", "higher is better", "nearer to real is better"
SHOWN = 6  # clips of a sheet
HUGE = 1e150  # beyond it differences and products overflow; also false for NaN and infinity


# --- scores -------------------------------------------------------------------------------------


def table(scores: Scores) -> list[str]:
    """The scores as lines of text: what was measured, the figure, and which way is better."""
    about = scores.about
    return [
        f"{about['model']} ({about['model_steps']} steps), {about['task']} on {about['data']}: "
        f"{about['clips']} clips, seed {about['seed']}, {about['dtype']} on {about['device']}",
        *(f"  {name:<43}{value:<42}{better}" for name, value, better in _rows(scores)),
        *(f"note: {note}" for note in scores.notes),
    ]


def _rows(scores: Scores) -> Iterator[tuple[str, str, str]]:
    found, lengths, counts = scores.features, scores.lengths, scores.counts
    if found:
        yield f"{found['name']}, {found['clips']} clips each", _interval(found["distance"]), LOWER
    if found and "density" in found:
        yield "density of made clips among the real", f"{found['density']:.3f}", "1 is ideal"
        yield "coverage of real clips by the made", f"{found['coverage']:.3f}", HIGHER
    yield "lengths: total variation", f"{lengths['total_variation']:.3f}", LOWER
    yield "  expected by chance alone", f"{lengths['by chance']:.3f}", "the best to expect"

    interp = scores.interp or {}
    for way, part in ((way, interp[way]) for way in WAYS if way in interp):
        likeness = f", ssim {part['ssim']:.3f}" if "ssim" in part else ""
        value = f"PSNR {_interval(part['psnr'])} dB{likeness}"
        yield WAYS[way], value, HIGHER if way == "model" else "to compare"
    for side, better in (("made", NEARER), ("real", "to compare")):
        values = " ".join(f"{v:.4f}" for v in scores.drift["sharpness"][side])
        yield f"sharpness of the {side} clips, by quarter", values, better
    if "distance" in scores.drift:
        distances = " ".join(f"{v:.2f}" for v in scores.drift["distance"])
        yield "distance by quarter of the clip", distances, f"{LOWER}, and even"
    for side, better in (("made", NEARER), ("real", "to compare")):
        yield f"motion of the {side} clips", f"{scores.motion[side]:.4f}", better

    yield (
        f"log score of missing frames, {counts['states']} states",
        f"{counts['log_score']:.3f}",
        HIGHER,
    )
    yield "  predicted from lengths alone", f"{counts['lengths_log_score']:.3f}", "to compare"
    yield "  by one constant law", f"{counts['constant_log_score']:.3f}", "to compare"


def _interval(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def picture(scores: Scores, clips: Image.Image | None = None) -> Image.Image:
    """Some clips, the scores, and charts of lengths, sharpness and calibration, top to bottom."""
    total, lengths = scores.about["clips"], scores.lengths
    shares = {
        side: {n: count / total for n, count in lengths[side].items()} for side in ("real", "made")
    }
    sharpness = scores.drift["sharpness"]
    by_quarter = {side: list(enumerate(values, start=1)) for side, values in sharpness.items()}
    parts = [
        *([clips] if clips else []),
        bar_chart(
            shares,
            title="lengths: made should be like real",
            x_label="frames",
            y_label="share of clips",
        ),
        line_chart(
            by_quarter,
            title="sharpness along the clip: made should be like real",
            x_label="quarter",
        ),
        calibration_chart(scores.counts["reliability"]),
    ]
    return _stacked(parts)


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other, on white."""
    size = max(part.width for part in parts), sum(part.height for part in parts)
    whole, y = Image.new("RGB", size, "white"), 0
    for part in parts:
        whole.paste(part, (0, y))
        y += part.height
    return whole


def side_by_side(real: Sequence[Clip], made: Sequence[Clip], pairs: Pairs) -> Image.Image:
    """The first real clips, each above those made from its caption and between its ends."""
    between = {id(clip_FCHW): made_FCHW for clip_FCHW, made_FCHW in pairs}
    rows: list[tuple[str, Tensor]] = []
    for one, other in list(zip(real, made, strict=True))[:SHOWN]:
        caption = one.caption or "(no caption)"
        rows.append((f"real: {caption}", one.image_FCHW))
        rows.append(("made from its caption, or first frame", other.image_FCHW))
        if id(one.image_FCHW) in between:
            rows.append(("made between its first and last frame", between[id(one.image_FCHW)]))
    labels, clips = zip(*rows, strict=True)
    return video.contact_sheets([to_frames(clip) for clip in clips], labels, max_columns=32)


# --- charts with axes ---------------------------------------------------------------------------


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    log_y: bool = False,
) -> Image.Image:
    """Lines through (x, y) points, a colour a series.

    Points that are not finite, and with ``log_y`` those that are not positive, are left out; the
    line goes on from its next point. A series of one point is a dot, an empty one only a name.
    """
    axes = _axes(x_label, y_label)
    drawn = [_drawable(points, log_y) for points in series.values()]
    for name, point_N2 in zip(series, drawn, strict=True):
        axes.plot(
            *point_N2.T, label=_legible(name), marker="o" if len(point_N2) <= 30 else "", **LINE
        )
    _fit_axes(axes, drawn, log_y)
    return _finished(axes, title)


def _drawable(points: Sequence[tuple[float, float]], log_y: bool) -> NDArray[np.float64]:
    """Points ``[N, 2]`` that an axis can show."""
    least = 0.0 if log_y else -HUGE
    return np.reshape([(x, y) for x, y in points if abs(x) < HUGE and least < y < HUGE], (-1, 2))


def _fit_axes(axes: Axes, drawn: Sequence[NDArray[np.float64]], log_y: bool) -> None:
    """Bounds and marks for lines through these points."""
    point_N2 = np.concatenate([np.zeros((0, 2)), *drawn])
    place_N, height_N = point_N2.T if len(point_N2) else np.eye(2)
    axes.margins(x=0)
    axes.locator_params(axis="x", integer=bool((place_N == place_N.round()).all()))
    if log_y:
        few_decades = height_N.max() < 300 * height_N.min()  # then marks at 2 and 5 times, too
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.10g}")
    elif 0 <= height_N.min() < 0.3 * height_N.max():  # what nears zero is read against it
        axes.set_ylim(bottom=0)


def bar_chart(
    series: Mapping[str, Mapping[int, float]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> Image.Image:
    """Bars over whole numbers, those of all series side by side; values not finite are left out."""
    axes = _axes(x_label, y_label)
    wide = 0.8 / (len(series) or 1)
    for number, (name, values) in enumerate(series.items()):
        shown = {n - 0.4 + (number + 0.5) * wide: v for n, v in values.items() if abs(v) < HUGE}
        axes.bar([*shown], [*shown.values()], 0.95 * wide, label=_legible(name))
    axes.locator_params(axis="x", nbins=16, integer=True)
    axes.margins(x=0.02)
    axes.axhline(0, color=AXIS, linewidth=1)
    axes.spines.bottom.set_visible(False)
    return _finished(axes, title)


def calibration_chart(bins: Sequence[tuple[float, float, int]]) -> Image.Image:
    """How often predicted probabilities came true; a bin: (predicted, came true, how many)."""
    axes = _axes("predicted", "came true")
    axes.axline((0, 0), slope=1, color=AXIS, linewidth=1, linestyle="--", label="perfect")
    predicted, came, _ = zip(*bins, strict=True)
    axes.plot(predicted, came, "o-", label="missing frames (number of cases)", **LINE)
    for x, y, count in bins:
        axes.annotate(f"{count:,}", (x, y), (8, -16), textcoords="offset points", **TEXT)
    axes.set(xlim=(-0.01, 1.04), ylim=(-0.03, 1.03))
    return _finished(axes, "how often a predicted probability came true")


def _axes(x_label: str, y_label: str) -> Axes:
    """An empty chart: a grid of horizontal lines and an axis below."""
    figure = _figure(*SIZE)
    figure.set_layout_engine("constrained", w_pad=PAD / DOTS, h_pad=PAD / DOTS)
    axes = figure.add_subplot()
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines.bottom.set_color(AXIS)
    axes.set_prop_cycle(color=SERIES)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.tick_params(color=AXIS, labelcolor=GREY, labelsize=TEXT["fontsize"])
    axes.tick_params(axis="y", length=0)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.locator_params(nbins=8, steps=(1, 2, 5, 10))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x + 0.0:,.10g}")
    axes.set_xlabel(_legible(x_label), parse_math=False, **TEXT)
    axes.set_ylabel(_legible(y_label), parse_math=False, **TEXT)
    return axes


def _finished(axes: Axes, title: str) -> Image.Image:
    """The chart with its title and the names of its series in rows above it."""
    handles, names = axes.get_legend_handles_labels()
    letters = max(map(len, names), default=0) + 6  # six are as wide as a sample of the line
    columns = max(1, 100 // letters)
    legend = axes.legend(handles, names, ncols=columns, title=_legible(title), **LEGEND)
    legend.get_title().set_color(INK)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)
    return _rendered(axes)


def _figure(width: int, height: int) -> Figure:
    return Figure((width / DOTS, height / DOTS), DOTS, facecolor="white")


def _rendered(axes: Axes) -> Image.Image:
    canvas: Any = FigureCanvasAgg(axes.get_figure(root=True))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _legible(text: str, longest: int = 80) -> str:
    """The text on one line, not too long, in letters that matplotlib's own font has."""
    plain = video.legible(text).encode("ascii", "replace").decode("ascii")
    return plain if len(plain) <= longest else plain[: longest - 3].rstrip() + "..."


# --- a clip that grows --------------------------------------------------------------------------


def growth_chart(
    steps: Sequence[Sequence[Visible]],
    order: Sequence[int],
    *,
    thumbnails: Sequence[Picture] | None = (),
    num_steps: int | None = None,
) -> Image.Image:
    """How a clip grows: a row per step from the top, a column per frame of the finished clip.

    ``steps[i]`` lists the visible frames of row i as (name, flow time in [0, 1], inserted in this
    step); row 0 is the start, at ``tau = 0``, and bears no marks. ``order`` names the finished
    clip's frames from left to right, ``thumbnails`` are its pictures [H, W, 3]; where they would
    be too small, only some are shown, evenly spread and with a line to their column. Row i stands
    for ``tau = i / num_steps``; without ``num_steps`` the last row is taken to be at ``tau = 2``.
    A frame of flow time 1 in row 0 was given and keeps a hue of its own. A frame that ``order``
    lacks, and thumbnails of another count, are a ``ValueError``.
    """
    cells = _cells(steps, order)
    if thumbnails and len(thumbnails) != len(order):
        raise ValueError(f"{len(thumbnails)} thumbnails for {len(order)} frames")

    grid = _Grid(len(order), len(steps))
    strip = _Strip(grid, thumbnails or ())
    axes = _page(grid, strip.bottom)
    _draw_legend(axes, cells)
    _draw_tau(axes, grid, num_steps)
    _draw_cells(axes, grid, cells)
    strip.draw_links(axes, grid)
    image = _rendered(axes)
    strip.paste(image)
    return image


def flow_shades(times_N: ArrayLike) -> Colors:
    """Colours [N, 4] of generated frames: dark noise at flow time 0, bright and finished at 1."""
    shades = LinearSegmentedColormap.from_list("flow", RAMP)(np.asarray(times_N, dtype=float))
    return np.reshape(shades, (-1, 4))


class _Cell(NamedTuple):
    """A visible frame in a row of the chart."""

    column: int
    row: int
    time: float
    inserted: bool  # to be marked as such
    given: bool


def _cells(steps: Sequence[Sequence[Visible]], order: Sequence[int]) -> list[_Cell]:
    columns = {name: number for number, name in enumerate(order)}
    unknown = {name for row in steps for name, _, _ in row} - columns.keys()
    if unknown or len(columns) != len(order):
        raise ValueError(f"every frame needs one place in the order: {sorted(unknown) or 'twice'}")
    given = {name for row in steps[:1] for name, time, _ in row if time >= 1}
    return [
        _Cell(columns[name], number, time, inserted and number > 0, name in given)
        for number, row in enumerate(steps)
        for name, time, inserted in row
    ]


class _Grid:
    """Where the cells are, in pixels from the top left corner of the chart."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.wide = min(68, max(15, 960 // max(1, columns)))  # from a column to the next
        self.cell = self.wide - (4 if self.wide > 40 else 2)  # width without the white between
        self.tall = min(26.0, max(3.0, 416 / max(1, rows)))  # from a row to the next
        self.bottom = TOP + self.tall * rows

    def place(self, column: int, row: int = 0) -> tuple[float, float]:
        """Left and top of a cell."""
        return LEFT + column * self.wide, TOP + row * self.tall


class _Strip:
    """Pictures below the cells: of all frames, or of as many as are large enough to see."""

    def __init__(self, grid: _Grid, thumbnails: Sequence[Picture]) -> None:
        count = len(thumbnails)
        room = max(0, grid.wide * (count - 1) + grid.cell)
        shown = count if grid.wide >= 28 else min(count, room // (THUMBNAIL + 4))
        size = grid.cell if shown == count else THUMBNAIL
        self.linked = shown < count
        self.parts: list[Placed] = []
        for place in np.linspace(0, 1, shown):
            column = round(place * (count - 1))
            picture = _scaled(thumbnails[column], size)
            self.parts.append((column, LEFT + place * (room - size), picture))
        self.top = round(grid.bottom + (26 if self.linked else 12))
        self.bottom = self.top + self.parts[0][2].height if shown else round(grid.bottom)

    def draw_links(self, axes: Axes, grid: _Grid) -> None:
        """Lines from columns to their pictures, where not every column has one."""
        for column, left, picture in self.parts if self.linked else ():
            ends = [grid.place(column)[0] + grid.cell / 2, left + picture.width / 2]
            axes.plot(ends, [grid.bottom + 2, self.top - 2], color=AXIS, linewidth=1)

    def paste(self, image: Image.Image) -> None:
        for _, left, picture in self.parts:
            image.paste(picture, (round(left), self.top))


def _scaled(thumbnail: Picture, width: int) -> Image.Image:
    image = Image.fromarray(thumbnail)
    height = max(1, round(width * image.height / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _page(grid: _Grid, bottom: int) -> Axes:
    """Axes whose coordinates are pixels from the top left corner of the picture."""
    width = LEFT + max(grid.wide * grid.columns, LEGEND_WIDTH) + PAD
    height = bottom + PAD
    axes = _figure(width, height).add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _draw_cells(axes: Axes, grid: _Grid, cells: Sequence[_Cell]) -> None:
    """Hidden columns, over them the cells of visible frames, and carets where one was inserted."""
    corner, seam = (2, 1) if grid.tall >= 8 else (0, 0)
    tops = [grid.place(column) for column in range(grid.columns)]
    _draw_boxes(axes, tops, (grid.cell, grid.tall * grid.rows), HIDDEN, corner)

    places = [grid.place(cell.column, cell.row) for cell in cells]
    shades = flow_shades([cell.time for cell in cells])
    shades[[cell.given for cell in cells]] = to_rgba(GIVEN)
    _draw_boxes(axes, places, (grid.cell, grid.tall - seam), shades, corner)
    for cell, (left, top) in zip(cells, places, strict=True):
        if cell.inserted:
            _draw_caret(axes, left + grid.cell / 2, top)


def _draw_boxes(
    axes: Axes,
    places: Sequence[tuple[float, float]],
    size: tuple[float, float],
    colors: Colors | str,
    corner: int = 0,
) -> None:
    """Filled rectangles of one size at the places of their top left corners, all rounded."""
    unit_42 = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    inside_42 = corner + unit_42 * (np.array(size) - 2 * corner)
    shapes = PolyCollection(list(np.reshape(places, (-1, 1, 2)) + inside_42), joinstyle="round")
    shapes.set(facecolor=colors, edgecolor=colors, linewidth=2 * corner)
    axes.add_collection(shapes)


def _draw_caret(axes: Axes, x: float, y: float) -> None:
    """A small arrow head that points down to (x, y), where a frame was inserted."""
    axes.fill([x - 5, x + 5, x], [y - 6.5, y - 6.5, y], color=INSERTED, linewidth=0)


def _draw_legend(axes: Axes, cells: Sequence[_Cell]) -> None:
    """The ramp from noise to finished, the mark of an insertion, the hue of given frames."""
    y, given = TOP - 24, any(cell.given for cell in cells)
    words = {0: "noise", 152: "finished", 238: "inserted"} | ({338: "given"} if given else {})
    for x, word in words.items():
        axes.text(LEFT + x, y, word, va="center_baseline", **TEXT)
    ramp = [(LEFT + 44 + i, y - 6) for i in range(100)]
    _draw_boxes(axes, ramp, (1, 12), flow_shades(np.linspace(0, 1, len(ramp))))
    _draw_caret(axes, LEFT + 228, y + 4)
    if given:
        axes.plot(LEFT + 324, y, "s", color=GIVEN, markersize=12)


def _draw_tau(axes: Axes, grid: _Grid, num_steps: int | None) -> None:
    """Marks at ``tau`` 0, 1 and 2, each in the middle of its row, as far as there are rows."""
    rows_per_tau = num_steps or max(1.0, (grid.rows - 1) / 2)
    for tau in range(3):
        y = TOP + (tau * rows_per_tau + 0.5) * grid.tall
        if y < grid.bottom:
            axes.plot([LEFT - 12, LEFT - 5], [y, y], color=AXIS, linewidth=1)
            axes.text(LEFT - 18, y, str(tau), ha="right", va="center", **TEXT)
    middle = (TOP + grid.bottom) / 2
    axes.text(PAD, middle, "tau", rotation="vertical", va="center", **TEXT)
