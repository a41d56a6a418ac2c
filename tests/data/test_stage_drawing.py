"""The stage's models and drawing: posed vertices, broken files, pixels, each against hand work."""

import re

import numpy as np
import pytest
from fixtures_stage import FACES, HALF, POINTS, UPPER, Glb, strip

from flowcept.data.stage import draw, riding
from flowcept.data.stage.draw import Camera, Light, paint, rasterise, shadow
from flowcept.data.stage.gltf import Mesh, read_model
from flowcept.data.stage.take import Poses, moved, turned
from flowcept.errors import UserError


@pytest.fixture
def read(tmp_path):
    def of(glb: Glb | bytes, **options):
        path = tmp_path / "model.glb"
        path.write_bytes(glb if isinstance(glb, bytes) else glb.data())
        return read_model(path, **options)

    return of


def test_a_strip_bends_as_by_hand(read):
    model = read(strip("Bend"))
    np.testing.assert_allclose(model.pose().point_V3, POINTS, atol=1e-6)
    half = model.pose("Bend", 0.5).point_V3
    # The upper bone stands at (0, 1, -0.2), turned by 45 degrees: (x, y - 1) becomes the sum below.
    for (x, y, _), share, found in zip(POINTS, UPPER, half, strict=True):
        bent = np.array([HALF * (x - (y - 1)), 1 + HALF * (x + (y - 1)), -0.2])
        still = np.array([x, y, -0.2])
        np.testing.assert_allclose(found, share * bent + (1 - share) * still, atol=1e-6)
    end = model.pose("Bend", 1.0)
    np.testing.assert_allclose(end.point_V3[5], (-1, 1.5, -0.4), atol=1e-6)
    np.testing.assert_allclose(end.point_V3[3], (0.25, 1.25, -0.4), atol=1e-6)
    np.testing.assert_allclose(model.pose("Bend", 7.0).point_V3, end.point_V3)  # it stays there
    np.testing.assert_allclose(end.colour_V3, [(0.8, 0.2, 0.1)] * 6, atol=1e-6)
    assert model.movements == ["Bend"]
    assert model.animations["Bend"].seconds == 1


def test_rotations_take_the_short_way(read):
    data, turn = strip("Bend").data(), np.array((0, 0, HALF, HALF), np.float32)
    assert data.count(turn.tobytes()) == 1
    negated = read(data.replace(turn.tobytes(), (-turn).tobytes()))
    wanted = read(strip("Bend")).pose("Bend", 0.3).point_V3
    np.testing.assert_allclose(negated.pose("Bend", 0.3).point_V3, wanted, atol=1e-6)


def test_meshes_without_a_skin_follow_their_nodes(read):
    glb = strip()
    glb.json["nodes"] = [
        {"name": "up", "translation": [0, 3, 0], "scale": [2, 2, 2], "children": [1]},
        {"name": "sword", "mesh": 0, "rotation": [0, HALF, 0, HALF], "translation": [1, 0, 0]},
        {"name": "mug", "mesh": 0},
    ]
    wanted = [(2 * z + 2, 2 * y + 3, -2 * x) for x, y, z in POINTS]
    np.testing.assert_allclose(read(glb, hidden=("mug",)).pose().point_V3, wanted, atol=1e-6)
    assert len(read(glb).mesh.point_V3) == 12


def test_normals_are_turned_and_made_where_there_are_none(read):
    glb = strip()
    del glb.json["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]
    np.testing.assert_allclose(read(glb).pose().normal_V3, [(0, 0, 1)] * 6, atol=1e-6)
    mesh = turned(read(strip()).pose(), yaw=90)
    np.testing.assert_allclose(mesh.normal_V3, [(1, 0, 0)] * 6, atol=1e-6)
    np.testing.assert_allclose(mesh.point_V3[1], (0, 0, -0.5), atol=1e-6)


def broken(change):
    glb = strip("Bend")
    change(glb.json)
    return glb


def animated(tree):
    """What the first channel of the first animation moves: a rotation, of four numbers."""
    return tree["animations"][0]["channels"][0]["target"]


def lengthened(data: bytes) -> bytes:
    return data[:8] + (len(data) + 4).to_bytes(4, "little") + data[12:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a usable .glb model"),
        (b"solid cube\n" * 9, "not a complete glTF 2 file"),
        (strip().data()[:-40], "not a complete glTF 2 file"),
        (lengthened(strip().data()), "not a complete glTF 2 file"),
        (strip().data().replace(b"accessors", b"accessorz"), "is not a usable .glb model"),
        (strip().data().replace(b'"meshes"', b'"meshes",'), "is not a usable .glb model"),
        (broken(lambda j: j.update(meshes=[{"primitives": []}])), "no triangles"),
        (broken(lambda j: j.update(nodes=[])), "no triangles"),
        (broken(lambda j: j["nodes"][2].update(children=[1])), "circle"),
        (broken(lambda j: j["accessors"][0].update(count=3)), "is not a usable .glb model"),
        (broken(lambda j: j["accessors"][0].update(count=10**9)), "is not a usable .glb model"),
        (broken(lambda j: j["nodes"][1].update(translation=[float("nan")] * 3)), "invalid"),
        (broken(lambda j: j["nodes"][1].update(children=[7])), "is not a usable .glb model"),
        (broken(lambda j: j["nodes"][1].update(scale=[1e30] * 3)), "invalid"),
        (broken(lambda j: animated(j).update(node=7)), "is not a usable .glb model"),
        (broken(lambda j: animated(j).update(node="1")), "is not a usable .glb model"),
        (broken(lambda j: animated(j).update(path="scale")), "is not a usable .glb model"),
        (broken(lambda j: j["accessors"][0].update(type="x" * 5000)), r"x{100}\.\.\. is missing"),
        (broken(lambda j: j.update(extensionsRequired=["KHR_draco"])), "extension KHR_draco"),
        (broken(lambda j: j["animations"][0]["samplers"][0].update(input=1)), "invalid"),
    ],
)
def test_broken_files_are_named_in_one_line(read, data, words):
    with pytest.raises(UserError, match=r"model\.glb") as error:
        read(data)
    assert re.search(words, str(error.value))
    assert "\n" not in str(error.value)


def test_a_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / "a.glb").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*a\.glb"):
        read_model(tmp_path / "a.glb")


def square(left: float, right: float, near: float) -> tuple[np.ndarray, np.ndarray]:
    corners = [(left, 2, near), (right, 2, near), (right, 6, near), (left, 6, near)]
    return np.array(corners, np.float32), np.array([(0, 1, 2), (0, 2, 3)])


@pytest.mark.parametrize("order", [0, 1])
def test_the_nearest_triangle_is_seen_in_any_order(order):
    (far, face), (near, _) = square(0, 6, 0.5), square(3, 8, 0.9)
    both = [far, near] if order == 0 else [near, far]
    faces = np.concatenate([face, face + 4])
    points = np.concatenate(both)
    seen = rasterise(points, faces, 8)
    owner = np.full(64, -1)
    owner[seen.pixel_P] = seen.corner_P3[:, 0] // 4
    wanted = np.full((8, 8), -1)
    wanted[2:6, 0:3], wanted[2:6, 3:8] = order, 1 - order
    np.testing.assert_array_equal(owner.reshape(8, 8), wanted)
    np.testing.assert_allclose(seen.share_P3.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(seen.of(points)[:, 0], seen.pixel_P % 8 + 0.5, atol=1e-5)


def test_triangles_without_area_or_behind_the_camera_are_not_seen():
    line = np.array([(0, 0, 1), (8, 8, 1), (4, 4, 1)], np.float32)
    behind = np.array([(0, 0, 1), (8, 0, 1 / draw.NEAREST), (0, 8, 1)], np.float32)
    for points in (line, behind, line + 100):
        assert not len(rasterise(points, np.array([(0, 1, 2)]), 8).pixel_P)


def test_a_camera_sees_straight_and_its_ground_is_the_inverse():
    camera = Camera((0.3, 0.5, -0.2), 4.0, elevation=20)
    middle = camera.pixels(np.array([camera.target], np.float32), 64)[0]
    np.testing.assert_allclose(middle, (32, 32, 0.25), atol=1e-5)
    ground_HW2, meets_HW = camera.ground(64)
    assert meets_HW[-1].all()
    assert not Camera((0, 0.5, 0), 4.0, elevation=2).ground(64)[1][0].any()
    points = np.insert(ground_HW2[meets_HW], 1, 0.0, axis=1).astype(np.float32)
    rows, columns = np.nonzero(meets_HW)
    found = camera.pixels(points, 64)[:, :2]
    near = np.abs(points).max(1) < 50
    np.testing.assert_allclose(found[near], np.stack([columns, rows], 1)[near] + 0.5, atol=0.02)


def facing(colour=(0.5, 0.5, 0.5)) -> Mesh:
    points = np.array(POINTS, np.float32)
    normals = np.tile(np.array((0, 0, 1), np.float32), (6, 1))
    return Mesh(points, normals, np.tile(np.float32(colour), (6, 1)), np.array(FACES))


def test_paint_covers_what_the_mesh_covers():
    camera = Camera((0, 1, 0), 8.0, elevation=0)
    picture = paint(facing(), camera, Light(), 64)
    unit = 64 / (2 * camera.slope * 8)  # pixels
    assert picture[..., 3].sum() == pytest.approx(2 * unit**2, rel=0.03)
    assert set(np.unique(picture[..., 3])) <= {0, 0.25, 0.5, 0.75, 1}
    assert (picture[..., :3] <= picture[..., 3:] + 1e-6).all()
    red = paint(facing((0.5, 0.0, 0.0)), camera, Light(), 64)
    assert red[..., 0].max() > 0.3
    assert red[..., 1:3].max() == 0
    turned_away = turned(facing(), yaw=180)
    assert paint(turned_away, camera, Light(), 64).sum() < picture.sum()  # its back is darker


def test_a_shader_is_told_where_its_points_are():
    camera, seen = Camera((0, 1, 0), 5.0, elevation=10), []

    def shade(point_P3):
        seen.append(point_P3)
        return np.ones_like(point_P3)

    paint(turned(facing(), yaw=50), camera, Light(), 64, shader=shade)
    (points,) = seen
    found = camera.pixels(points, 64 * draw.OVERSAMPLING)[:, :2]
    np.testing.assert_allclose(found % 1, 0.5, atol=0.01)  # the middles of pixels
    assert len(np.unique(found.round(1), axis=0)) == len(points)
    assert points[:, 1].min() > -0.01
    assert points[:, 1].max() < 2.01


def test_shadows_fall_away_from_the_sun_and_leave_what_flies():
    camera = Camera((0, 0.5, 0), 9.0, elevation=30)
    dark = shadow(turned(facing(), yaw=45), camera, 64)
    assert set(np.unique(dark)) == {0, 1}
    row, column = (axis.mean() for axis in np.nonzero(dark))
    foot = camera.pixels(np.zeros((1, 3), np.float32), 64)[0]
    assert column > foot[0]  # the sun stands on the left, before the actor
    assert row < foot[1]
    flying = shadow(moved(turned(facing(), yaw=45), y=1.0), camera, 64)
    assert np.nonzero(flying)[1].mean() > column + 3


def test_poses_are_one_high_and_strides_follow_the_feet(read):
    poses = Poses(read(strip("Walk")))
    mesh = poses.at("Walk", 0.0)
    np.testing.assert_allclose(mesh.point_V3.min(0), (-0.25, 0, 0), atol=1e-6)
    np.testing.assert_allclose(mesh.point_V3.max(0), (0.25, 1, 0), atol=1e-6)
    assert poses.stride("Walk") == pytest.approx(0.2, rel=1e-4)  # 0.4 of 2


def test_boards_lie_flat_under_the_feet():
    deck = riding.board(1.4, 0.4, riding.BOARDS[0])
    assert np.ptp(deck.point_V3[:, 2]) == pytest.approx(1.4)
    assert np.ptp(deck.point_V3[:, 0]) == pytest.approx(0.4, abs=0.01)
    wheels = riding.skateboard(1.0, 0.4, riding.BOARDS[1])
    assert wheels.point_V3[:, 1].min() == pytest.approx(-riding.WHEELS, abs=0.01)
    assert wheels.face_T3.max() < len(wheels.point_V3)


def test_the_wave_stands_behind_and_moves():
    z = np.linspace(-4, 1, 200)
    height = riding.wave_height(np.zeros(200), z, 0.0)
    assert z[height.argmax()] == pytest.approx(riding.BEHIND, abs=0.15)
    assert height.max() > 3 * abs(height[-1])
    mesh = riding.wave(0.5)
    np.testing.assert_allclose(
        mesh.point_V3[:, 1],
        riding.wave_height(mesh.point_V3[:, 0], mesh.point_V3[:, 2], 0.5),
        atol=1e-5,
    )
    assert (mesh.normal_V3[:, 1] > 0).all()
