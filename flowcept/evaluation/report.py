"""Numbers for people: the table and the picture of scores, and charts of lines, bars and growth.

Charts are figures of matplotlib on its Agg canvas, each on its own: no state is shared or kept.
They have 72 dots per inch, where a point is a pixel, so that all sizes here are pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from flowcept.data import video
from flowcept.evaluation.evaluate import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#262a33"  # titles
GREY = "#636975"  # labels
AXIS = "#969ca8"
GRID = "#e5e8ed"
HIDDEN = "#f4f6f9"  # the place of a frame that does not exist yet
INSERTED = "#e23d5a"
GIVEN = "#f5a642"
# Okabe and Ito's colours, which the usual kinds of colour blindness keep apart; their yellow is
# left out because it is too pale for a line on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#3c3c3c")
# Noise to finished in equal steps of OKLab lightness (0.24 to 0.90), hue 285 to 165 degrees.
RAMP = ("#1d1841", "#1a3d7b", "#006da6", "#009eb9", "#60c8c0", "#afeed2")

DOTS = 72  # per inch: a point of matplotlib is a pixel
WIDE, TALL = 960, 540  # pixels of a chart
TITLE, LABEL = 18, 13  # heights of letters, pixels
PAD = 18  # pixels of white around a picture
LONGEST = 80  # letters of a title or a label, at most
HUGE = 1e150  # beyond it differences and products overflow; also false for NaN and infinity
DOTTED = 30  # points of a line that is drawn with its dots, at most

LEGEND = 420  # pixels of a growth chart's legend

Rows = Iterator[tuple[str, str]]  # name and value
Shown = tuple[int, float, bool]  # a visible frame: name, flow time, inserted in this step
Box = tuple[float, float, float, float]  # left, top, right, bottom


# --- scores -------------------------------------------------------------------------------------


def table(scores: Scores) -> list[str]:
    """The scores as lines of text."""
    about = scores.about
    rows = [*_of_features(scores), *_of_frames(scores), *_of_counts(scores)]
    return [
        f"{about['model']} ({about['model_steps']} steps), {about['task']} on {about['data']}: "
        f"{about['clips']} clips, seed {about['seed']}, {about['dtype']} on {about['device']}",
        *(f"  {name:<52}{value}" for name, value in rows),
        *(f"note: {note}" for note in scores.notes),
    ]


def _of_features(scores: Scores) -> Rows:
    found = scores.features
    if found:
        yield f"{found['name']}, {found['clips']} clips each", _interval(found["distance"])
        if "density" in found:
            yield "density; coverage", f"{found['density']:.3f}; {found['coverage']:.3f}"


def _of_frames(scores: Scores) -> Rows:
    for way, part in (scores.interp or {}).items():
        if way in ("model", "linear", "repeat"):
            likeness = f", ssim {part['ssim']:.3f}" if "ssim" in part else ""
            yield f"missing frames by {way}", f"PSNR {_interval(part['psnr'])} dB{likeness}"
    for name, values in scores.drift["sharpness"].items():
        yield f"sharpness by quarter, {name}", " ".join(f"{v:.4f}" for v in values)
    if "distance" in scores.drift:
        yield "distance by quarter", " ".join(f"{v:.2f}" for v in scores.drift["distance"])
    yield "motion: made; real", f"{scores.motion['made']:.4f}; {scores.motion['real']:.4f}"


def _of_counts(scores: Scores) -> Rows:
    lengths, counts = scores.lengths, scores.counts
    yield (
        "lengths: total variation (by chance alone)",
        f"{lengths['total_variation']:.3f} ({lengths['by chance']:.3f})",
    )
    yield (
        f"log score of missing counts, {counts['states']} states",
        f"{counts['log_score']:.3f} (from lengths alone {counts['lengths_log_score']:.3f}, "
        f"constant law {counts['constant_log_score']:.3f})",
    )


def _interval(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def picture(scores: Scores) -> Image.Image:
    """Lengths, drift and calibration, one below the other."""
    total = scores.about["clips"]
    shares = {
        side: {length: count / total for length, count in scores.lengths[side].items()}
        for side in ("real", "made")
    }
    by_quarter = {
        side: [(number + 1.0, value) for number, value in enumerate(values)]
        for side, values in scores.drift["sharpness"].items()
    }
    parts = [
        bar_chart(shares, title="lengths", x_label="frames", y_label="share of clips"),
        line_chart(by_quarter, title="sharpness along the clip", x_label="quarter"),
        calibration_chart(scores.counts["reliability"]),
    ]
    whole = Image.new("RGB", (WIDE, TALL * len(parts)))
    for number, part in enumerate(parts):
        whole.paste(part, (0, TALL * number))
    return whole


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
    figure, axes = _chart(x_label, y_label)
    heights: list[float] = []
    for number, (name, points) in enumerate(series.items()):
        shown = [
            (float(x), float(y))
            for x, y in points
            if abs(x) < HUGE and abs(y) < HUGE and (y > 0 or not log_y)
        ]
        x, y = zip(*shown, strict=True) if shown else ((), ())
        heights += y
        axes.plot(
            x,
            y,
            label=_legible(name),
            color=_color(number),
            linewidth=2,
            marker="o" if len(shown) <= DOTTED else "",
            markersize=7,
            markeredgewidth=0,
            clip_on=False,
        )
    axes.margins(x=0)
    low, high = min(heights, default=0.0), max(heights, default=1.0)
    if log_y:
        _log_axis(axes, low, high)
    elif 0 <= low < 0.3 * high:  # what nears zero is read against zero, what does not closely
        axes.set_ylim(bottom=0)
    return _finished(figure, axes, title)


def bar_chart(
    series: Mapping[str, Mapping[int, float]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> Image.Image:
    """Bars over whole numbers, those of all series side by side; values not finite are left out."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _chart(x_label, y_label)
    wide = 0.8 / max(1, len(series))
    for number, (name, values) in enumerate(series.items()):
        shown = {n: value for n, value in values.items() if abs(value) < HUGE}
        axes.bar(
            [n - 0.4 + number * wide for n in shown],
            list(shown.values()),
            0.95 * wide,
            align="edge",
            label=_legible(name),
            color=_color(number),
        )
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axes.axhline(0, color=AXIS, linewidth=1)
    axes.spines.bottom.set_visible(False)
    axes.margins(x=0.02)
    return _finished(figure, axes, title)


def calibration_chart(bins: Sequence[tuple[float, float, int]]) -> Image.Image:
    """How often what was said with a probability came true: (said, came true, how many) a bin."""
    figure, axes = _chart("said", "came true")
    axes.plot([0, 1], [0, 1], color=AXIS, linewidth=1, linestyle="--", label="perfect")
    said, came, _ = zip(*bins, strict=True)
    axes.plot(said, came, "o-", color=SERIES[0], linewidth=2, markersize=7, label="missing count")
    for x, y, count in bins:
        axes.annotate(
            f"{count:,}", (x, y), (9, -4), textcoords="offset points", color=GREY, va="top"
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    return _finished(figure, axes, "how often a said probability came true")


def _chart(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty chart: a grid of horizontal lines and an axis below."""
    figure = _figure(WIDE, TALL)
    figure.set_layout_engine("constrained", w_pad=PAD / DOTS, h_pad=PAD / DOTS)
    axes = figure.add_subplot()
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines.bottom.set_color(AXIS)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.tick_params(color=AXIS, labelcolor=GREY, labelsize=LABEL)
    axes.tick_params(axis="y", length=0)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.locator_params(nbins=8, steps=(1, 2, 5, 10))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x + 0.0:,.10g}")
    words = {"fontsize": LABEL, "color": GREY}
    axes.set_xlabel(_legible(x_label), **words).set_parse_math(False)
    axes.set_ylabel(_legible(y_label), **words).set_parse_math(False)
    return figure, axes


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """Marks at powers of ten; over few decades at 2 and 5 times them, too."""
    from matplotlib.ticker import LogLocator, NullLocator

    few_decades = high < 300 * low
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.10g}")


def _finished(figure: Figure, axes: Axes, title: str) -> Image.Image:
    """The chart with its title and the names of its series in rows above it."""
    handles, names = axes.get_legend_handles_labels()
    letters = max(map(len, names), default=0) + 6  # the sample of the line takes about six
    legend = axes.legend(
        handles,
        names,
        ncols=max(1, 120 // letters),
        title=_legible(title),
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1.02),
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
        frameon=False,
        fontsize=LABEL,
        labelcolor=GREY,
        title_fontsize=TITLE,
    )
    legend.get_title().set_color(INK)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)
    return _rendered(figure)


def _figure(width: int, height: int) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / DOTS, height / DOTS), DOTS, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _rendered(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _color(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _legible(text: str) -> str:
    """The text on one line, not too long, in letters that matplotlib's own font has."""
    plain = video.legible(text).encode("ascii", "replace").decode("ascii")
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 3].rstrip() + "..."


# --- a clip that grows --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Where the cells of a growth chart are: pixels from its top left corner."""

    columns: int
    rows: int
    left: float = PAD + 52.0
    top: float = PAD + 40.0

    @property
    def wide(self) -> int:
        """From a column to the next."""
        return min(68, max(15, 960 // max(1, self.columns)))

    @property
    def gap(self) -> int:
        """White between columns."""
        return 4 if self.wide > 40 else 2

    @property
    def tall(self) -> float:
        """From a row to the next."""
        return min(26.0, max(3.0, 416 / max(1, self.rows)))

    @property
    def bottom(self) -> float:
        return self.top + self.tall * self.rows

    def box(self, column: int, row: int, rows: int = 1) -> Box:
        """Left, top, right and bottom of a cell, or of several in a column."""
        x, y = self.left + column * self.wide, self.top + row * self.tall
        return x, y, x + self.wide - self.gap, y + rows * self.tall

    def middle(self, column: int) -> float:
        return self.left + column * self.wide + (self.wide - self.gap) / 2


def growth_chart(
    steps: Sequence[Sequence[Shown]],
    order: Sequence[int],
    *,
    thumbnails: Sequence[NDArray[np.uint8]] | None = None,
    num_steps: int | None = None,
) -> Image.Image:
    """A clip growing: a row a step from the top, a column a frame of the finished clip.

    ``steps[i]`` lists the visible frames of row i as (name, flow time in [0, 1], inserted in this
    step); row 0 is the start, at ``tau = 0``, and bears no marks. ``order`` names the finished
    clip's frames from left to right, ``thumbnails`` are its pictures [H, W, 3]; where they would
    be too small, only some are shown, evenly spread and with a line to their column. Row i stands
    for ``tau = i / num_steps``; without ``num_steps`` the last row is taken to be at ``tau = 2``.
    A frame of flow time 1 in row 0 was given and keeps a hue of its own. A frame that ``order``
    lacks, and thumbnails of another count, are a ``ValueError``.
    """
    column = {name: number for number, name in enumerate(order)}
    unknown = {name for row in steps for name, _, _ in row} - column.keys()
    if unknown or len(column) != len(order):
        raise ValueError(f"every frame needs one place in the order: {sorted(unknown) or 'twice'}")
    if thumbnails is not None and len(thumbnails) != len(order):
        raise ValueError(f"{len(thumbnails)} thumbnails for {len(order)} frames")

    grid = _Grid(len(order), len(steps))
    strip = _strip(grid, thumbnails or ())
    tall = strip[0].picture.height if strip else 0
    thinned = 0 < len(strip) < len(order)
    top = grid.bottom + 12 + 14 * thinned  # of the thumbnails
    width = round(grid.left + max(grid.wide * len(order), LEGEND) + PAD)
    height = round((top + tall if strip else grid.bottom) + PAD)

    figure = _figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    given = {name for row in steps[:1] for name, time, _ in row if time >= 1}
    _draw_legend(axes, grid, bool(given))
    _draw_tau(axes, grid, num_steps or max(1.0, (len(steps) - 1) / 2))
    _draw_cells(axes, grid, steps, column, given)
    for shown in strip if thinned else ():
        middles = [grid.middle(shown.column), shown.left + shown.picture.width / 2]
        axes.plot(middles, [grid.bottom + 2, top - 2], color=AXIS, linewidth=1)

    image = _rendered(figure)
    for shown in strip:
        image.paste(shown.picture, (round(shown.left), round(top)))
    return image


def flow_shades(times_N: ArrayLike) -> NDArray[np.float64]:
    """Colours [N, 4] of generated frames: dark noise at flow time 0, bright and finished at 1."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("flow", RAMP)
    return np.asarray(ramp(np.asarray(times_N, dtype=float))).reshape(-1, 4)


def _draw_cells(
    axes: Axes,
    grid: _Grid,
    steps: Sequence[Sequence[Shown]],
    column: Mapping[int, int],
    given: Collection[int],
) -> None:
    """Hidden columns, over them the cells of visible frames, and carets where one was inserted."""
    from matplotlib.colors import to_rgba

    seam = 1.0 if grid.tall >= 8 else 0.0
    cells = [(row, *frame) for row, frames in enumerate(steps) for frame in frames]
    boxes = [grid.box(column[name], row) for row, name, _, _ in cells]
    colors = flow_shades([time for _, _, time, _ in cells])
    colors[[name in given for _, name, _, _ in cells]] = to_rgba(GIVEN)

    hidden = [grid.box(number, 0, grid.rows) for number in range(grid.columns)]
    _draw_boxes(axes, hidden, HIDDEN, corner=2 * seam)
    _draw_boxes(axes, boxes, colors, corner=2 * seam, seam=seam)
    for row, name, _, is_new in cells:
        if is_new and row:
            _draw_caret(axes, grid.middle(column[name]), grid.top + row * grid.tall)


def _draw_boxes(
    axes: Axes,
    boxes: Sequence[Box],
    colors: str | NDArray[np.float64],
    *,
    corner: float = 0.0,
    seam: float = 0.0,
) -> None:
    """Filled rectangles with corners rounded by a radius, and a seam left free below each."""
    from matplotlib.collections import PolyCollection

    left, top, right, bottom = np.reshape(boxes, (-1, 4)).T
    left, top, right, bottom = left + corner, top + corner, right - corner, bottom - corner - seam
    corners_N42 = np.stack([left, top, right, top, right, bottom, left, bottom], 1).reshape(
        -1, 4, 2
    )
    style = {"facecolors": colors, "edgecolors": colors, "linewidths": 2 * corner}
    axes.add_collection(PolyCollection(corners_N42, joinstyle="round", **style))


def _draw_caret(axes: Axes, x: float, y: float) -> None:
    """A small arrow head that points down to (x, y), where a frame was inserted."""
    axes.fill([x - 5, x + 5, x], [y - 6.5, y - 6.5, y], color=INSERTED, linewidth=0)


def _draw_legend(axes: Axes, grid: _Grid, given: bool) -> None:
    """The ramp from noise to finished, the mark of an insertion, the hue of given frames."""
    x, y = grid.left, grid.top - 24
    words = [(0, "noise"), (152, "finished"), (238, "inserted")]
    ramp = [(x + 44 + i, y - 6, x + 45 + i, y + 6) for i in range(100)]
    _draw_boxes(axes, ramp, flow_shades(np.linspace(0, 1, len(ramp))))
    _draw_caret(axes, x + 228, y + 4)
    if given:
        _draw_boxes(axes, [(x + 318, y - 6, x + 330, y + 6)], GIVEN, corner=1)
        words.append((338, "given"))
    for offset, word in words:
        axes.text(x + offset, y, word, fontsize=LABEL, color=GREY, va="center_baseline")


def _draw_tau(axes: Axes, grid: _Grid, rows_per_tau: float) -> None:
    """Marks at ``tau`` 0, 1 and 2, each in the middle of its row, as far as there are rows."""
    words = {"fontsize": LABEL, "color": GREY, "va": "center"}
    for tau in range(3):
        y = grid.top + (tau * rows_per_tau + 0.5) * grid.tall
        if y < grid.bottom:
            axes.plot([grid.left - 12, grid.left - 5], [y, y], color=AXIS, linewidth=1)
            axes.text(grid.left - 18, y, str(tau), ha="right", **words)
    axes.text(PAD, (grid.top + grid.bottom) / 2, "tau", rotation="vertical", **words)


@dataclass(frozen=True)
class _Thumbnail:
    column: int
    picture: Image.Image
    left: float  # pixels


def _strip(grid: _Grid, thumbnails: Sequence[NDArray[np.uint8]]) -> list[_Thumbnail]:
    """The pictures below the grid: of all frames, or of as many as are large enough to see."""
    count = len(thumbnails)
    room = grid.wide * count - grid.gap
    shown = count if grid.wide >= 28 else min(count, room // 48)
    size = grid.wide - grid.gap if shown == count else 44
    strip = []
    for place in range(shown):
        share = place / max(1, shown - 1)
        column = round(share * (count - 1))
        picture = Image.fromarray(thumbnails[column])
        height = max(1, round(size * picture.height / picture.width))
        picture = picture.resize((size, height), Image.Resampling.LANCZOS)
        strip.append(_Thumbnail(column, picture, grid.left + share * (room - size)))
    return strip
