"""Reading binary glTF (.glb): meshes, skins, animations, and colours of vertices.

What pictures of small animated figures need and no more: no morph targets, no compressed meshes;
a texture is read at the vertices.

Shape suffixes: N nodes, V vertices, T triangles, J matrices that move vertices, K keys in time.
"""

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowcept.errors import UserError
from flowcept.settings import short

Floats = NDArray[Any]  # np.floating; float32 where it matters
Indices = NDArray[np.int64]

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
TRIANGLES = 4
FARTHEST = 1e9  # of any number of a model
HARMLESS = ("KHR_materials_", "KHR_texture_transform")  # extensions that change no shape


class _File:
    """The JSON part and the bytes of a .glb."""

    def __init__(self, data: bytes) -> None:
        magic, version, length = struct.unpack_from("<III", data)
        if magic != MAGIC or version != 2 or length > len(data):
            raise ValueError("not a complete glTF 2 file")
        chunks: dict[int, bytes] = {}
        at = 12
        while at + 8 <= length:
            size, kind = struct.unpack_from("<II", data, at)
            chunks.setdefault(kind, data[at + 8 : at + 8 + size])
            at += 8 + size
        self.json: dict[str, Any] = json.loads(chunks[JSON_CHUNK])
        self.bytes = chunks.get(BIN_CHUNK, b"")
        for name in self.json.get("extensionsRequired", ()):
            if not name.startswith(HARMLESS):
                raise ValueError(f"it needs the extension {name}")

    def list(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json.get(name, [])
        return found

    def view(self, index: int) -> tuple[bytes, int]:
        """The bytes of a buffer view, and the step between its elements or 0."""
        view = self.list("bufferViews")[index]
        start = view.get("byteOffset", 0)
        return self.bytes[start : start + view["byteLength"]], view.get("byteStride", 0)

    def array(self, index: int) -> NDArray[Any]:
        """An accessor's elements, one row each; normalised whole numbers as floats."""
        accessor = self.list("accessors")[index]
        if "sparse" in accessor or "bufferView" not in accessor:
            raise ValueError("it has sparse accessors")
        data, step = self.view(accessor["bufferView"])
        kind, width = np.dtype(TYPES[accessor["componentType"]]), WIDTHS[accessor["type"]]
        shape, steps = (accessor["count"], width), (step or width * kind.itemsize, kind.itemsize)
        rows: NDArray[Any] = np.ndarray(shape, kind, data, accessor.get("byteOffset", 0), steps)
        if accessor.get("normalized"):
            return rows.astype(np.float32) / np.iinfo(kind).max
        return rows


@dataclass(frozen=True)
class _Channel:
    """Values of one property of one node at some times."""

    node: int
    path: str  # translation, rotation or scale
    time_K: Floats
    value_KX: Floats
    steps: bool  # values jump instead of blending

    def at(self, time: float) -> Floats:
        after = int(np.searchsorted(self.time_K, time, side="right"))
        last = len(self.time_K) - 1
        before, after = min(max(after - 1, 0), last), min(after, last)
        start: Floats = self.value_KX[before]
        end: Floats = self.value_KX[after]
        gap = float(self.time_K[after] - self.time_K[before])
        if self.steps or gap <= 0:
            return start
        if self.path == "rotation" and float(start @ end) < 0:
            end = -end  # the same rotation, the short way round
        blended: Floats = start + (end - start) * ((time - float(self.time_K[before])) / gap)
        return blended


@dataclass(frozen=True)
class Animation:
    """Movements of nodes; `seconds` is its length."""

    name: str
    channels: tuple[_Channel, ...]

    @property
    def seconds(self) -> float:
        return max((float(c.time_K[-1]) for c in self.channels), default=0.0)


def _matrices(translation_N3: Floats, rotation_N4: Floats, scale_N3: Floats) -> Floats:
    """Local matrices [N, 4, 4]; rotations are quaternions x, y, z, w of any length but 0."""
    unit = rotation_N4 / np.maximum(np.linalg.norm(rotation_N4, axis=1, keepdims=True), 1e-9)
    x, y, z, w = unit.T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    matrix_N44 = np.zeros((len(unit), 4, 4), np.float32)
    matrix_N44[:, :3, :3] = np.moveaxis(np.array(rows), 2, 0) * scale_N3[:, None, :]
    matrix_N44[:, :3, 3] = translation_N3
    matrix_N44[:, 3, 3] = 1
    return matrix_N44


class Skeleton:
    """The tree of nodes with their places at rest."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.parent = [-1] * len(nodes)
        for i, node in enumerate(nodes):
            for child in node.get("children", ()):
                self.parent[child] = i
        self.order = sorted(range(len(nodes)), key=self._depth)
        self.rest = {
            path: np.array([node.get(path, default) for node in nodes], np.float32)
            for path, default in (
                ("translation", (0, 0, 0)),
                ("rotation", (0, 0, 0, 1)),
                ("scale", (1, 1, 1)),
            )
        }
        # Given as matrices, column by column; such nodes are not animated.
        self.fixed = {
            i: np.array(node["matrix"], np.float32).reshape(4, 4).T
            for i, node in enumerate(nodes)
            if "matrix" in node
        }
        if not _sensible(*self.rest.values(), *self.fixed.values()):
            raise ValueError("its nodes are invalid")

    def _depth(self, node: int) -> int:
        depth = 0
        while node >= 0:
            node, depth = self.parent[node], depth + 1
            if depth > len(self.parent):
                raise ValueError("its nodes go round in a circle")
        return depth

    def world(self, animation: Animation | None, time: float) -> Floats:
        """Matrices [N, 4, 4] from each node to the scene."""
        now = {path: rest.copy() for path, rest in self.rest.items()}
        for channel in animation.channels if animation else ():
            now[channel.path][channel.node] = channel.at(time)
        matrix_N44 = _matrices(now["translation"], now["rotation"], now["scale"])
        for node, matrix in self.fixed.items():
            matrix_N44[node] = matrix
        for node in self.order:
            if self.parent[node] >= 0:
                matrix_N44[node] = matrix_N44[self.parent[node]] @ matrix_N44[node]
        return matrix_N44


@dataclass(frozen=True)
class Mesh:
    """Triangles with normals and linear colours at their corners."""

    point_V3: Floats
    normal_V3: Floats
    colour_V3: Floats
    face_T3: Indices

    @property
    def foot_3(self) -> Floats:
        """The middle of the mesh, but at its lowest height."""
        low_3, high_3 = self.point_V3.min(0), self.point_V3.max(0)
        middle_3: Floats = (low_3 + high_3) / 2
        middle_3[1] = low_3[1]
        return middle_3


def joined(*meshes: Mesh) -> Mesh:
    """All meshes as one."""
    starts = np.cumsum([0, *(len(mesh.point_V3) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.point_V3 for mesh in meshes]),
        np.concatenate([mesh.normal_V3 for mesh in meshes]),
        np.concatenate([mesh.colour_V3 for mesh in meshes]),
        np.concatenate([m.face_T3 + s for m, s in zip(meshes, starts, strict=False)]),
    )


@dataclass(frozen=True)
class Model:
    """A mesh whose vertices follow joints; `pose` moves it."""

    mesh: Mesh
    weight_VJ: Floats  # how much each vertex follows each of the joints
    joint_J: Indices  # their nodes
    inverse_J44: Floats  # from the scene to each joint, at rest
    skeleton: Skeleton
    animations: dict[str, Animation]

    @property
    def movements(self) -> list[str]:
        """Names of the animations that take time."""
        return [name for name, one in self.animations.items() if one.seconds > 0]

    def pose(self, name: str | None = None, time: float = 0.0) -> Mesh:
        """The mesh at a time of the named animation, at rest without a name."""
        world_N44 = self.skeleton.world(self.animations[name] if name else None, time)
        move_J44 = world_N44[self.joint_J] @ self.inverse_J44
        move_V34 = (self.weight_VJ @ move_J44[:, :3].reshape(-1, 12)).reshape(-1, 3, 4)
        turn_V33 = move_V34[:, :, :3]
        point_V3 = (turn_V33 @ self.mesh.point_V3[:, :, None])[:, :, 0] + move_V34[:, :, 3]
        normal_V3 = (turn_V33 @ self.mesh.normal_V3[:, :, None])[:, :, 0]
        return Mesh(point_V3, unit(normal_V3), self.mesh.colour_V3, self.mesh.face_T3)


def unit(vector_V3: Floats) -> Floats:
    """Vectors of length 1, but for those of length 0."""
    scaled: Floats = vector_V3 / np.maximum(np.linalg.norm(vector_V3, axis=1, keepdims=True), 1e-12)
    return scaled


def face_normals(point_V3: Floats, face_T3: Indices) -> Floats:
    """Normals of vertices: the mean of their triangles' by area."""
    a, b, c = (point_V3[face_T3[:, i]] for i in range(3))
    normal_V3 = np.zeros_like(point_V3)
    for i in range(3):
        np.add.at(normal_V3, face_T3[:, i], np.cross(b - a, c - a))
    return unit(normal_V3)


class _Reader:
    """Gathers the parts of a model's mesh."""

    def __init__(self, file: _File) -> None:
        self.file = file
        self.skeleton = Skeleton(file.list("nodes"))
        self.joints: list[int] = []
        self.inverses: list[Floats] = []
        self.skin_starts: dict[int, int] = {}
        self.pictures: dict[int, Floats] = {}

    def model(self, hidden: tuple[str, ...]) -> Model:
        """The whole model without the nodes of these names."""
        parts = list(self._parts(hidden))
        if not parts:
            raise ValueError("it has no triangles")
        mesh = joined(*(part for part, _, _ in parts))
        weight_VJ = np.zeros((len(mesh.point_V3), len(self.joints)), np.float32)
        start = 0
        for _, joint_VX, weight_VX in parts:
            row_V1 = np.arange(start, start + len(joint_VX))[:, None]
            np.add.at(weight_VJ, (row_V1, joint_VX), weight_VX)
            start += len(joint_VX)
        weight_VJ /= np.maximum(weight_VJ.sum(1, keepdims=True), 1e-9)
        inverse_J44 = np.stack(self.inverses)
        animations = {one.name: one for one in self._animations()}
        joint_J = np.array(self.joints)
        model = Model(mesh, weight_VJ, joint_J, inverse_J44, self.skeleton, animations)
        posed = [model.pose(name).point_V3 for name in (None, *animations)]
        numbers = (*posed, mesh.point_V3, mesh.normal_V3, inverse_J44)
        if not _sensible(*numbers) or mesh.face_T3.max() >= len(mesh.point_V3):
            raise ValueError("its triangles are invalid")
        return model

    def _parts(self, hidden: tuple[str, ...]) -> Iterator[tuple[Mesh, Indices, Floats]]:
        """Meshes with the joints that each vertex follows, and how much."""
        for number, node in enumerate(self.file.list("nodes")):
            if "mesh" not in node or node.get("name") in hidden:
                continue
            start = self._start_of(node.get("skin"), number)
            for part in self.file.list("meshes")[node["mesh"]]["primitives"]:
                if part.get("mode", TRIANGLES) != TRIANGLES:
                    continue
                mesh, names = self._mesh(part), part["attributes"]
                if "skin" in node and "JOINTS_0" in names:
                    joint_VX = self.file.array(names["JOINTS_0"]).astype(np.int64) + start
                    weight_VX = np.nan_to_num(self.file.array(names["WEIGHTS_0"])).astype(
                        np.float32
                    )
                    weight_VX[weight_VX.sum(1) <= 0, 0] = 1  # such vertices are found in real files
                else:
                    joint_VX = np.full((len(mesh.point_V3), 1), start)
                    weight_VX = np.ones((len(mesh.point_V3), 1), np.float32)
                yield mesh, joint_VX, weight_VX

    def _start_of(self, skin: int | None, node: int) -> int:
        """Where the joints of a skin, or a node on its own, begin in the list of all."""
        if skin in self.skin_starts:
            return self.skin_starts[skin]
        start = len(self.joints)
        if skin is None:
            self.joints.append(node)
            self.inverses.append(np.eye(4, dtype=np.float32))
            return start
        about = self.file.list("skins")[skin]
        self.skin_starts[skin] = start
        self.joints += about["joints"]
        identity_J44 = np.tile(np.eye(4, dtype=np.float32), (len(about["joints"]), 1, 1))
        if "inverseBindMatrices" in about:
            given = self.file.array(about["inverseBindMatrices"]).astype(np.float32)
            identity_J44 = given.reshape(-1, 4, 4).transpose(0, 2, 1)
        self.inverses += list(identity_J44)
        return start

    def _mesh(self, part: dict[str, Any]) -> Mesh:
        names = part["attributes"]
        point_V3 = self.file.array(names["POSITION"]).astype(np.float32)
        if "indices" in part:
            corners = self.file.array(part["indices"]).astype(np.int64)[:, 0]
        else:
            corners = np.arange(len(point_V3))
        face_T3 = corners[: len(corners) // 3 * 3].reshape(-1, 3)
        if "NORMAL" in names:
            normal_V3 = self.file.array(names["NORMAL"]).astype(np.float32)
        else:
            normal_V3 = face_normals(point_V3, face_T3)
        return Mesh(point_V3, normal_V3, self._colours(part, len(point_V3)), face_T3)

    def _colours(self, part: dict[str, Any], vertices: int) -> Floats:
        """Linear colours of a part's vertices."""
        about: dict[str, Any] = {}
        if "material" in part:
            about = self.file.list("materials")[part["material"]].get("pbrMetallicRoughness", {})
        plain = np.array(about.get("baseColorFactor", (1, 1, 1, 1))[:3], np.float32)
        texture, names = about.get("baseColorTexture"), part["attributes"]
        place = f"TEXCOORD_{texture.get('texCoord', 0)}" if texture else ""
        if not texture or place not in names:
            return np.tile(plain, (vertices, 1))
        picture_HW3 = self._picture(self.file.list("textures")[texture["index"]]["source"])
        uv_V2 = self.file.array(names[place]).astype(np.float32) % 1
        height, width = picture_HW3.shape[:2]
        x, y = (uv_V2 * (width, height)).astype(np.int64).T
        colour_V3: Floats = picture_HW3[y.clip(0, height - 1), x.clip(0, width - 1)]
        return plain * colour_V3

    def _picture(self, index: int) -> Floats:
        """A texture in linear colours."""
        if index not in self.pictures:
            about = self.file.list("images")[index]
            data, _ = self.file.view(about["bufferView"])
            try:
                with Image.open(io.BytesIO(data)) as picture:
                    levels = np.asarray(picture.convert("RGB"), np.float32) / 255
            except OSError as error:
                raise ValueError("its texture cannot be read") from error
            self.pictures[index] = levels**2.2
        return self.pictures[index]

    def _animations(self) -> Iterator[Animation]:
        for number, about in enumerate(self.file.list("animations")):
            channels = tuple(self._channels(about))
            yield Animation(about.get("name", f"animation {number}"), channels)

    def _channels(self, about: dict[str, Any]) -> Iterator[_Channel]:
        for channel in about["channels"]:
            target, sampler = channel["target"], about["samplers"][channel["sampler"]]
            if target["path"] not in self.skeleton.rest or "node" not in target:
                continue
            kind = sampler.get("interpolation", "LINEAR")
            time_K = self.file.array(sampler["input"]).astype(np.float32)[:, 0]
            value_KX = self.file.array(sampler["output"]).astype(np.float32)
            if kind == "CUBICSPLINE":  # a value between two tangents each
                value_KX = value_KX[1::3]
            if not len(time_K) or len(time_K) != len(value_KX) or not _sensible(time_K, value_KX):
                raise ValueError("one of its animations is invalid")
            yield _Channel(target["node"], target["path"], time_K, value_KX, kind == "STEP")


def _sensible(*values: Floats) -> bool:
    """Whether numbers are finite, and none so large that its square overflows."""
    return all(bool((np.abs(one) < FARTHEST).all()) for one in values)


def read_model(path: Path, hidden: tuple[str, ...] = ()) -> Model:
    """The model of a .glb file without the nodes of these names.

    UserError names a file that cannot be read.
    """
    try:
        with np.errstate(all="ignore"):  # what overflows makes no sense, which is said
            return _Reader(_File(path.read_bytes())).model(hidden)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ArithmeticError,
        struct.error,
    ) as error:
        raise UserError(f"{path} is not a usable .glb model: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    told = short(str(error))
    return f"{told} is missing" if isinstance(error, KeyError) else told
