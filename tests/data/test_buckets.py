"""Sizes of one area: on the grid, near the area, and the one that crops least."""

import math

import pytest

from flowcept.data.buckets import ASPECTS, cropped, family, nearest

AREA, STEP = (512, 768), 32


def test_a_family_has_the_size_itself_and_others_of_its_area_on_the_grid():
    sizes = family(AREA, STEP)
    assert sizes[0] == AREA
    assert {(768, 512), (640, 640), (480, 832), (832, 480)} <= set(sizes)
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % STEP == width % STEP == 0
        assert abs(math.log(height * width / (512 * 768))) < 0.06
        assert (width, height) in sizes  # upright and lying
        assert min(abs(math.log(width / height / aspect)) for aspect in ASPECTS) < 0.05


@pytest.mark.parametrize("step", [1, 16, 32, 200])
def test_sides_are_multiples_of_the_step_and_never_nothing(step):
    for size in ((64, 64), (37, 90), (480, 832)):
        for height, width in family(size, step):
            assert height % step == width % step == 0
            assert min(height, width) >= step


def test_a_coarse_grid_leaves_few_sizes():
    assert family((64, 64), 64) == ((64, 64),)
    assert family((64, 96), 32) == ((64, 96), (64, 64), (96, 64))


def test_what_is_cropped_is_what_a_middle_cut_loses():
    assert cropped((100, 200), (50, 100)) == 0
    assert cropped((100, 200), (64, 64)) == pytest.approx(0.5)
    assert cropped((200, 100), (64, 64)) == pytest.approx(0.5)
    assert cropped((1080, 1920), (512, 768)) == pytest.approx(1 - 1.5 / (16 / 9))


@pytest.mark.parametrize("clip", [(1080, 1920), (1920, 1080), (480, 640), (500, 501), (30, 999)])
def test_the_nearest_size_crops_least(clip):
    sizes = family(AREA, STEP)
    best = nearest(clip, sizes)
    assert all(cropped(clip, best) <= cropped(clip, other) + 1e-9 for other in sizes)


def test_examples():
    sizes = family(AREA, STEP)
    assert nearest((1080, 1920), sizes) == (480, 832)
    assert nearest((1920, 1080), sizes) == (832, 480)
    assert nearest((720, 720), sizes) == (640, 640)
    assert nearest((480, 720), sizes) == (512, 768)
