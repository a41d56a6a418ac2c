"""Charts: round ticks, and pictures whose pixels say what the numbers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from flowcept.evaluation import charts


def pixels(image: Image.Image, color: charts.Color) -> np.ndarray:
    """Rows and columns of all pixels of exactly this colour, [N, 2]."""
    return np.argwhere((np.asarray(image) == color).all(-1))


def lightness(color: charts.Color) -> float:
    """OKLab lightness of an sRGB colour."""
    value = np.array(color) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cone = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    return float(np.cbrt(np.array(cone) @ linear) @ [0.2104542553, 0.7936177850, -0.0040720468])


# --- ticks


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.1, 0.4, 3, [0.1, 0.2, 0.3, 0.4]),
        (-3, 7, 5, [-2, 0, 2, 4, 6]),
        (0, 20_000, 4, [0, 5000, 10_000, 15_000, 20_000]),
        (1e-7, 5e-7, 4, [1e-7, 2e-7, 3e-7, 4e-7, 5e-7]),
    ],
)
def test_ticks_are_round(low, high, count, expected):
    assert charts.ticks(low, high, count) == expected


def test_log_ticks_thin_out_as_decades_grow():
    assert charts.log_ticks(-3, 1) == [0.001, 0.01, 0.1, 1, 10]
    assert charts.log_ticks(-1, 1) == [0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert charts.log_ticks(math.log10(3), math.log10(4), 5) == [3.0, 3.2, 3.4, 3.6, 3.8, 4.0]
    assert len(charts.log_ticks(-30, 10)) < 10


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.2, 0.4], ["0.0", "0.2", "0.4"]),
        ([0, 5000, 10_000], ["0", "5,000", "10,000"]),
        ([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"]),
        ([0, 0.00002, 0.00004], ["0", "2e-05", "4e-05"]),
        ([], []),
    ],
)
def test_tick_labels_are_short(values, expected):
    assert charts.tick_labels(values) == expected


@pytest.mark.parametrize("start", [0.0, 1.0, -7.0, 1e6, 1e8])
@pytest.mark.parametrize("span", [1e-3, 0.37, 1.0, 42.0, 9e5, 3e9])
def test_tick_labels_tell_ticks_apart_and_name_them(start, span):
    values = charts.ticks(start, start + span)
    labels = charts.tick_labels(values)
    assert len(set(labels)) == len(values) > 2
    step = values[1] - values[0]
    for value, label in zip(values, labels, strict=True):
        assert float(label.replace(",", "")) == pytest.approx(value, abs=0.01 * step)


def test_letters_lose_accents_that_the_font_lacks():
    """Where Pillow's own font would draw an empty box, as it does for a letter that no one has."""
    font = charts._font(20)
    box = bytes(font.getmask("\uffff"))
    assert bytes(font.getmask("é")) == box, "a newer Pillow can: then nothing need be lost"
    assert charts.shorten("Fréchet, un chien à skis", 500) == "Frechet, un chien a skis"
    assert bytes(font.getmask("e")) != box


def test_shorten_ends_a_long_text_within_its_room():
    assert charts.shorten("two\nwords", 500) == "two words"
    short = charts.shorten("a dog surfing " * 30, 200)
    assert short.endswith("...")
    assert 150 < charts.text_width(short) <= 200


# --- lines and bars


def test_line_runs_from_corner_to_corner():
    size = (400, 300)
    rising = pixels(charts.line_chart({"": [(0, 0), (10, 10)]}, size=size), charts.SERIES[0])
    falling = pixels(charts.line_chart({"": [(0, 10), (10, 0)]}, size=size), charts.SERIES[0])
    for found, sign in ((rising, -1), (falling, 1)):
        assert np.ptp(found, 0).min() > 200
        assert np.corrcoef(found.T)[0, 1] * sign > 0.999


def test_log_axis_makes_a_power_law_decay_straight():
    points = [(float(x), 10.0**-x) for x in range(5)]
    straight = pixels(charts.line_chart({"": points}, log_y=True), charts.SERIES[0])
    bent = pixels(charts.line_chart({"": points}), charts.SERIES[0])
    assert np.corrcoef(straight.T)[0, 1] > 0.999
    assert abs(np.corrcoef(bent.T)[0, 1]) < 0.98


def test_points_that_cannot_be_drawn_are_left_out():
    good = [(0.0, 1.0), (1.0, 2.0), (2.0, 1.5)]
    bad = [(0.5, math.nan), (0.6, math.inf), (-math.inf, 1.0), (1.5, -1.0), (1.6, 0.0)]
    expected = charts.line_chart({"a": good}, log_y=True)
    assert charts.line_chart({"a": sorted(good + bad)}, log_y=True) == expected
    assert charts.line_chart({"a": good}) != expected


def test_a_long_log_looks_like_its_outline():
    points = [(x / 100, (x % 7) / 6) for x in range(50_000)]
    found = pixels(charts.line_chart({"": points}, size=(400, 300)), charts.SERIES[0])
    area = np.prod(np.ptp(found, 0) + 1)
    assert area > 300 * 200
    assert len(found) > 0.98 * area


@pytest.mark.parametrize("log_y", [False, True])
def test_empty_and_single_point_series_do_not_fail(log_y):
    for series in ({}, {"a": []}, {"a": [(3, 7)]}, {"a": [(1, math.nan)]}, {"a": [(0, 5)] * 3}):
        chart = charts.line_chart(series, log_y=log_y, title="t", x_label="x", y_label="y")
        assert chart.size == (960, 540)
    dot = pixels(charts.line_chart({"": [(3, 7)]}, log_y=log_y), charts.SERIES[0])
    assert 20 < len(dot) < 60


def test_series_have_their_own_colours_and_names():
    curves = {name: [(0.0, i), (1.0, i + 1.0)] for i, name in enumerate("abcdefgh")}
    chart = charts.line_chart(curves)
    assert len(set(charts.SERIES)) == len(charts.SERIES)
    assert all(len(pixels(chart, color)) > 300 for color in charts.SERIES)
    assert chart != charts.line_chart({name.upper(): line for name, line in curves.items()})


def test_bars_are_as_high_as_their_values_and_side_by_side():
    chart = charts.bar_chart({"": {3: 1.0, 5: 4.0}, " ": {3: 2.0, 5: 0.0}})
    first, second = pixels(chart, charts.SERIES[0]), pixels(chart, charts.SERIES[1])
    second = second[second[:, 0] > 100]  # below the legend
    middle = np.median(np.unique(first[:, 1]))
    low, high = first[first[:, 1] < middle], first[first[:, 1] > middle]
    height = np.ptp(low[:, 0]) + 1
    assert np.ptp(high[:, 0]) + 1 == pytest.approx(4 * height, rel=0.03)
    assert np.ptp(second[:, 0]) + 1 == pytest.approx(2 * height, rel=0.03)
    assert low[:, 1].max() < second[:, 1].min() < second[:, 1].max() < high[:, 1].min()


def test_bars_below_zero_hang_and_others_are_left_out():
    chart = charts.bar_chart({"": {0: 1.0, 1: -1.0, 2: math.nan}})
    found = pixels(chart, charts.SERIES[0])
    middle = np.median(np.unique(found[:, 1]))
    left, right = found[found[:, 1] < middle], found[found[:, 1] > middle]
    assert left[:, 0].max() < right[:, 0].min()
    for empty in ({}, {"a": {}}, {"a": {4: 0.0}}, {"a": {4: math.inf}}):
        assert charts.bar_chart(empty, size=(300, 200)).size == (300, 200)


# --- growth


def test_shade_brightens_evenly_from_dark_to_bright():
    shades = [lightness(charts.flow_shade(t)) for t in np.linspace(0, 1, 21)]
    steps = np.diff(shades)
    assert shades[0] < 0.3
    assert shades[-1] > 0.85
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()
    assert charts.flow_shade(-1) == charts.flow_shade(0)
    assert charts.flow_shade(2) == charts.flow_shade(1)


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
    found = pixels(image, charts.flow_shade(1))
    found = found[found[:, 0] > 60]  # below the legend
    left, right, bottom = found[:, 1].min(), found[:, 1].max(), found[:, 0].max()
    wide = (right - left + 5) / columns  # 4 pixels between columns
    tall = 26.0
    y = bottom + 1 - tall * (np.arange(rows)[::-1] + 0.45)
    x = left + wide * (np.arange(columns) + 0.45)
    return picture[y.astype(int)[:, None], x.astype(int)[None]]


def test_growth_cells_show_flow_time_and_hidden_frames():
    found = cells(charts.growth_chart(GROWTH, [2, 7, 5]), 3, 5)
    hidden = charts.HIDDEN
    times = [[None, 0, None], [0, 0.5, None], [0.5, 1, 0], [1, 1, 0.5], [1, 1, 1]]
    expected = [[hidden if t is None else charts.flow_shade(t) for t in row] for row in times]
    np.testing.assert_array_equal(found, expected)


def test_each_insertion_has_a_mark_above_its_cell():
    def marks(steps: list) -> int:
        return len(pixels(charts.growth_chart(steps, [2, 7, 5]), charts.INSERTED))

    quiet = [[(name, time, False) for name, time, _ in row] for row in GROWTH]
    legend = marks(quiet)
    one = marks([*quiet[:1], GROWTH[1], *quiet[2:]]) - legend
    assert legend > 10
    assert one > 10
    assert marks(GROWTH) - legend == 2 * one
    assert marks([[(7, 0.0, True)], *GROWTH[1:]]) == marks(GROWTH)


def test_given_frames_keep_their_own_hue():
    steps = [[(0, 1.0, False), (1, i / 4, False)] for i in range(5)]
    image = charts.growth_chart(steps, [0, 1])
    column = pixels(image, charts.GIVEN)
    column = column[column[:, 0] > 60]
    assert np.ptp(column[:, 0]) > 4 * 26
    assert (cells(image, 1, 5)[:, 0] == [charts.flow_shade(i / 4) for i in range(5)]).all()
    assert len(pixels(charts.growth_chart(GROWTH, [2, 7, 5]), charts.GIVEN)) == 0


def test_thumbnails_stand_below_their_columns_in_order():
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    pictures = [np.full((32, 64, 3), color, np.uint8) for color in colors]
    image = charts.growth_chart(GROWTH, [2, 7, 5], thumbnails=pictures)
    grid = pixels(image, charts.flow_shade(1))
    lefts = []
    for color in colors:
        found = pixels(image, color)
        assert found[:, 0].min() > grid[:, 0].max()
        assert tuple(np.ptp(found, 0) + 1) == (32, 64)
        lefts.append(int(found[:, 1].min()))
    assert lefts == [lefts[0], lefts[0] + 68, lefts[0] + 136]
    assert lefts[0] == grid[grid[:, 0] > 60][:, 1].min()


def test_many_frames_show_first_and_last_thumbnail():
    colors = [(255, i, 0) for i in range(64)]
    pictures = [np.full((64, 64, 3), color, np.uint8) for color in colors]
    steps = [[(i, 0.5, False) for i in range(64)]] * 100
    image = charts.growth_chart(steps, range(64), thumbnails=pictures)
    shown = [i for i, color in enumerate(colors) if len(pixels(image, color))]
    assert shown[0] == 0
    assert shown[-1] == 63
    assert 15 <= len(shown) <= 25


@pytest.mark.parametrize(("frames", "rows"), [(0, 0), (1, 1), (4, 8), (64, 8), (4, 200), (64, 100)])
def test_growth_chart_of_any_size_fits_a_page(frames, rows):
    steps = [[(i, 0.5, False) for i in range(frames)]] * rows
    image = charts.growth_chart(steps, range(frames), title="a dog surfing " * 20)
    assert 400 < image.width < 1100
    right = pixels(image, charts.INK)[:, 1].max()
    assert image.width - 60 < right < image.width - 15
    assert image.height < 800


def test_rows_per_tau_move_the_marks_of_the_axis():
    assert charts.growth_chart(GROWTH, [2, 7, 5], num_steps=2) == charts.growth_chart(
        GROWTH, [2, 7, 5]
    )
    assert charts.growth_chart(GROWTH, [2, 7, 5], num_steps=3) != charts.growth_chart(
        GROWTH, [2, 7, 5]
    )


def test_growth_chart_refuses_frames_without_a_place():
    with pytest.raises(ValueError, match=r"\[5\]"):
        charts.growth_chart(GROWTH, [2, 7])
    with pytest.raises(ValueError, match="twice"):
        charts.growth_chart(GROWTH, [2, 7, 5, 5])
    with pytest.raises(ValueError, match="1 thumbnails for 3"):
        charts.growth_chart(GROWTH, [2, 7, 5], thumbnails=[np.zeros((4, 4, 3), np.uint8)])
