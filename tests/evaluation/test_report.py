"""Charts whose pixels say what the numbers say, and the table of scores."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from flowcept.evaluation import report


def rgb(color) -> np.ndarray:
    """A colour of matplotlib's as the three bytes that a picture has."""
    return np.round(255 * np.array(to_rgb(color))).astype(np.uint8)


def pixels(image: Image.Image, color) -> np.ndarray:
    """Rows and columns of all pixels of exactly this colour, [N, 2]."""
    return np.argwhere((np.asarray(image) == rgb(color)).all(-1))


def shade(time: float | None) -> np.ndarray:
    return report.flow_shades([time])[0]


def lightness(color) -> float:
    """OKLab lightness of an sRGB colour."""
    value = np.array(to_rgb(color))
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cone = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    return float(np.cbrt(np.array(cone) @ linear) @ [0.2104542553, 0.7936177850, -0.0040720468])


# --- lines and bars


def test_line_runs_from_corner_to_corner():
    rising = pixels(report.line_chart({"": [(0, 0), (10, 10)]}), report.SERIES[0])
    falling = pixels(report.line_chart({"": [(0, 10), (10, 0)]}), report.SERIES[0])
    for found, sign in ((rising, -1), (falling, 1)):
        assert np.ptp(found, 0).min() > 200
        assert np.corrcoef(found.T)[0, 1] * sign > 0.999


def test_log_axis_makes_a_power_law_decay_straight():
    points = [(float(x), 10.0**-x) for x in range(5)]
    straight = pixels(report.line_chart({"": points}, log_y=True), report.SERIES[0])
    bent = pixels(report.line_chart({"": points}), report.SERIES[0])
    assert np.corrcoef(straight.T)[0, 1] > 0.999
    assert abs(np.corrcoef(bent.T)[0, 1]) < 0.98


def test_points_that_cannot_be_drawn_are_left_out():
    good = [(0.0, 1.0), (1.0, 2.0), (2.0, 1.5)]
    bad = [(0.5, math.nan), (0.6, math.inf), (-math.inf, 1.0), (1.5, -1.0), (1.6, 0.0)]
    expected = report.line_chart({"a": good}, log_y=True)
    assert report.line_chart({"a": sorted(good + bad)}, log_y=True) == expected
    assert report.line_chart({"a": good}) != expected


def test_a_long_log_looks_like_its_outline():
    points = [(x / 100, (x % 7) / 6) for x in range(20_000)]
    found = pixels(report.line_chart({"": points}), report.SERIES[0])
    area = np.prod(np.ptp(found, 0) + 1)
    assert area > 800 * 400
    assert len(found) > 0.98 * area


@pytest.mark.parametrize("log_y", [False, True])
def test_empty_and_single_point_series_do_not_fail(log_y):
    for series in ({}, {"a": []}, {"a": [(3, 7)]}, {"a": [(1, math.nan)]}, {"a": [(0, 5)] * 3}):
        chart = report.line_chart(series, log_y=log_y, title="t", x_label="x", y_label="y")
        assert chart.size == (960, 540)
    dot = pixels(report.line_chart({"": [(3, 7)]}, log_y=log_y), report.SERIES[0])
    assert 20 < len(dot) < 60


def test_series_have_their_own_colours_and_names():
    curves = {name: [(0.0, i), (1.0, i + 1.0)] for i, name in enumerate("abcdefgh")}
    chart = report.line_chart(curves)
    assert len(set(report.SERIES)) == len(report.SERIES)
    assert all(len(pixels(chart, color)) > 300 for color in report.SERIES)
    assert chart != report.line_chart({name.upper(): line for name, line in curves.items()})


def test_bars_are_as_high_as_their_values_and_side_by_side():
    chart = report.bar_chart({"": {3: 1.0, 5: 4.0}, " ": {3: 2.0, 5: 0.0}})
    first, second = pixels(chart, report.SERIES[0]), pixels(chart, report.SERIES[1])
    second = second[second[:, 0] > 100]  # below the legend
    middle = np.median(np.unique(first[:, 1]))
    low, high = first[first[:, 1] < middle], first[first[:, 1] > middle]
    height = np.ptp(low[:, 0]) + 1
    assert np.ptp(high[:, 0]) + 1 == pytest.approx(4 * height, rel=0.03)
    assert np.ptp(second[:, 0]) + 1 == pytest.approx(2 * height, rel=0.03)
    assert low[:, 1].max() < second[:, 1].min() < second[:, 1].max() < high[:, 1].min()


def test_bars_below_zero_hang_and_others_are_left_out():
    chart = report.bar_chart({"": {0: 1.0, 1: -1.0, 2: math.nan}})
    found = pixels(chart, report.SERIES[0])
    middle = np.median(np.unique(found[:, 1]))
    left, right = found[found[:, 1] < middle], found[found[:, 1] > middle]
    assert left[:, 0].max() < right[:, 0].min()
    for empty in ({}, {"a": {}}, {"a": {4: 0.0}}, {"a": {4: math.inf}}):
        assert report.bar_chart(empty).size == (960, 540)


AWKWARD = "a 🐶 surfs the 波 for $5 of Fréchet_Ψ ^ " * 9


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_neither_warn_nor_stop():
    points = [(0.0, 1.0), (1.0, 2.0)]
    chart = report.line_chart({AWKWARD: points}, title=AWKWARD, x_label=AWKWARD, y_label=AWKWARD)
    white = (np.asarray(chart) == 255).all(-1)
    assert white[:, -10:].all(), "a long text is cut"
    assert chart == report.line_chart(
        {AWKWARD.replace("🐶", "猫"): points}, title=AWKWARD, x_label=AWKWARD, y_label=AWKWARD
    ), "what cannot be drawn is a question mark"
    accents, plain = (
        {name: points} for name in ("Fréchet, un chien à skis", "Frechet, un chien a skis")
    )
    assert report.line_chart(accents) == report.line_chart(plain)
    report.bar_chart({AWKWARD: {1: 2.0}}, title=AWKWARD)


def test_charts_leave_no_figure_behind():
    report.line_chart({"": [(0, 0), (1, 1)]})
    assert "matplotlib.pyplot" not in sys.modules


def test_calibration_lies_on_the_diagonal_where_it_is_perfect():
    bins = [(share, share, 10) for share in (0.1, 0.4, 0.6, 0.9)]
    good, sure = (
        pixels(report.calibration_chart(curve), report.SERIES[0])
        for curve in (bins, [(said, 0.6 * came, n) for said, came, n in bins])
    )
    good, sure = (found[found[:, 0] > 70] for found in (good, sure))  # below the legend
    assert np.corrcoef(good.T)[0, 1] < -0.999
    assert np.ptp(sure[:, 0]) < 0.7 * np.ptp(good[:, 0])
    assert np.ptp(sure[:, 1]) == np.ptp(good[:, 1])


# --- growth


def test_shade_brightens_evenly_from_dark_to_bright():
    shades = [lightness(shade(t)) for t in np.linspace(0, 1, 21)]
    steps = np.diff(shades)
    assert shades[0] < 0.3
    assert shades[-1] > 0.85
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()
    assert (shade(-1) == shade(0)).all()
    assert (shade(2) == shade(1)).all()


# Frame 7 starts; 2 is inserted left of it, then 5 right of it.
GROWTH = [
    [(7, 0.0, False)],
    [(2, 0.0, True), (7, 0.5, False)],
    [(2, 0.5, False), (7, 1.0, False), (5, 0.0, True)],
    [(2, 1.0, False), (7, 1.0, False), (5, 0.5, False)],
    [(2, 1.0, False), (7, 1.0, False), (5, 1.0, False)],
]


def cells(image: Image.Image, columns: int, rows: int) -> np.ndarray:
    """Colour in the middle of each cell, [rows, columns, 3]; the picture has no thumbnails."""
    picture = np.asarray(image)
    found = pixels(image, shade(1))
    found = found[found[:, 0] > 60]  # below the legend
    left, right, bottom = found[:, 1].min(), found[:, 1].max(), found[:, 0].max()
    wide = (right - left + 5) / columns  # 4 pixels between columns
    tall = 26.0
    y = bottom + 1 - tall * (np.arange(rows)[::-1] + 0.45)
    x = left + wide * (np.arange(columns) + 0.45)
    return picture[y.astype(int)[:, None], x.astype(int)[None]]


def test_growth_cells_show_flow_time_and_hidden_frames():
    found = cells(report.growth_chart(GROWTH, [2, 7, 5]), 3, 5)
    hidden = report.HIDDEN
    times = [[None, 0, None], [0, 0.5, None], [0.5, 1, 0], [1, 1, 0.5], [1, 1, 1]]
    expected = [[rgb(hidden if t is None else shade(t)) for t in row] for row in times]
    np.testing.assert_array_equal(found, expected)


def test_each_insertion_has_a_mark_above_its_cell():
    def marks(steps: list) -> int:
        return len(pixels(report.growth_chart(steps, [2, 7, 5]), report.INSERTED))

    quiet = [[(name, time, False) for name, time, _ in row] for row in GROWTH]
    legend = marks(quiet)
    one = marks([*quiet[:1], GROWTH[1], *quiet[2:]]) - legend
    assert legend > 10
    assert one > 10
    assert marks(GROWTH) - legend == 2 * one
    assert marks([[(7, 0.0, True)], *GROWTH[1:]]) == marks(GROWTH)


def test_given_frames_keep_their_own_hue():
    steps = [[(0, 1.0, False), (1, i / 4, False)] for i in range(5)]
    image = report.growth_chart(steps, [0, 1])
    column = pixels(image, report.GIVEN)
    column = column[column[:, 0] > 60]
    assert np.ptp(column[:, 0]) > 4 * 26
    assert (cells(image, 1, 5)[:, 0] == [rgb(shade(i / 4)) for i in range(5)]).all()
    assert len(pixels(report.growth_chart(GROWTH, [2, 7, 5]), report.GIVEN)) == 0


def test_thumbnails_stand_below_their_columns_in_order():
    colors = ["#fa0000", "#00fa00", "#0000fa"]
    pictures = [np.full((32, 64, 3), rgb(color), np.uint8) for color in colors]
    image = report.growth_chart(GROWTH, [2, 7, 5], thumbnails=pictures)
    grid = pixels(image, shade(1))
    lefts = []
    for color in colors:
        found = pixels(image, color)
        assert found[:, 0].min() > grid[:, 0].max()
        assert tuple(np.ptp(found, 0) + 1) == (32, 64)
        lefts.append(int(found[:, 1].min()))
    assert lefts == [lefts[0], lefts[0] + 68, lefts[0] + 136]
    assert lefts[0] == grid[grid[:, 0] > 60][:, 1].min()


def test_many_frames_show_first_and_last_thumbnail():
    colors = [f"#ff{i:02x}00" for i in range(64)]
    pictures = [np.full((64, 64, 3), rgb(color), np.uint8) for color in colors]
    steps = [[(i, 0.5, False) for i in range(64)]] * 100
    image = report.growth_chart(steps, range(64), thumbnails=pictures)
    shown = [i for i, color in enumerate(colors) if len(pixels(image, color))]
    assert shown[0] == 0
    assert shown[-1] == 63
    assert 15 <= len(shown) <= 25


@pytest.mark.parametrize(("frames", "rows"), [(0, 0), (1, 1), (4, 8), (64, 8), (4, 200), (64, 100)])
def test_growth_chart_of_any_size_fits_a_page(frames, rows):
    steps = [[(i, 0.5, False) for i in range(frames)]] * rows
    image = report.growth_chart(steps, range(frames))
    assert 400 < image.width < 1100
    assert image.height < 800
    white = (np.asarray(image) == 255).all(-1)
    assert white[:, -15:].all()
    assert white[-15:].all() or not rows


def test_rows_per_tau_move_the_marks_of_the_axis():
    assert report.growth_chart(GROWTH, [2, 7, 5], num_steps=2) == report.growth_chart(
        GROWTH, [2, 7, 5]
    )
    assert report.growth_chart(GROWTH, [2, 7, 5], num_steps=3) != report.growth_chart(
        GROWTH, [2, 7, 5]
    )


def test_growth_chart_refuses_frames_without_a_place():
    with pytest.raises(ValueError, match=r"\[5\]"):
        report.growth_chart(GROWTH, [2, 7])
    with pytest.raises(ValueError, match="twice"):
        report.growth_chart(GROWTH, [2, 7, 5, 5])
    with pytest.raises(ValueError, match="1 thumbnails for 3"):
        report.growth_chart(GROWTH, [2, 7, 5], thumbnails=[np.zeros((4, 4, 3), np.uint8)])
