"""Small .glb models built in code: a strip of two bones, whose upper one turns."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

HALF = 0.5**0.5
POINTS = [(-0.5, 0, 0), (0.5, 0, 0), (-0.5, 1, 0), (0.5, 1, 0), (-0.5, 2, 0), (0.5, 2, 0)]
FACES = [(0, 1, 2), (1, 3, 2), (2, 3, 4), (3, 5, 4)]
UPPER = [0, 0, 0.5, 0.5, 1, 1]  # how much each point follows the upper bone
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
KINDS = {"f": 5126, "H": 5123, "B": 5121}


class Glb:
    """JSON and bytes that grow together."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0"}, "accessors": [], "bufferViews": [],
            "nodes": [], "meshes": [], "skins": [], "animations": [], "materials": [],
        }  # fmt: skip
        self.bytes = b""

    def array(self, rows: Any, kind: str = "f") -> int:
        """A new accessor's number."""
        values = np.array(rows, {"f": np.float32, "H": np.uint16, "B": np.uint8}[kind])
        values = values.reshape(len(values), -1)
        view = {"buffer": 0, "byteOffset": len(self.bytes), "byteLength": values.nbytes}
        self.bytes += values.tobytes() + b"\0" * (-values.nbytes % 4)
        self.json["bufferViews"].append(view)
        self.json["accessors"].append({
            "bufferView": len(self.json["bufferViews"]) - 1, "componentType": KINDS[kind],
            "count": len(values), "type": TYPES[values.shape[1]],
        })  # fmt: skip
        return len(self.json["accessors"]) - 1

    def data(self) -> bytes:
        text = json.dumps(self.json).encode()
        text += b" " * (-len(text) % 4)
        length = 12 + 8 + len(text) + 8 + len(self.bytes)
        head = struct.pack("<4sII", b"glTF", 2, length)
        return (
            head
            + struct.pack("<I4s", len(text), b"JSON")
            + text
            + struct.pack("<I4s", len(self.bytes), b"BIN\0")
            + self.bytes
        )


def strip(*animations: str, seconds: float = 1.0) -> Glb:
    """A strip 1 wide and 2 high; each animation turns its upper half by 90 degrees to the left.

    Half of the way the foot slides 0.4 backwards, towards -z.
    """
    glb = Glb()
    lower = [1 - share for share in UPPER]
    down = np.eye(4)
    down[3, :3] = (0, -1, 0)  # column by column, from the model to the upper bone at rest
    attributes = {
        "POSITION": glb.array(POINTS),
        "NORMAL": glb.array([(0, 0, 1)] * 6),
        "JOINTS_0": glb.array([(0, 1, 0, 0)] * 6, "B"),
        "WEIGHTS_0": glb.array([(a, b, 0, 0) for a, b in zip(lower, UPPER, strict=True)]),
    }
    faces = glb.array(np.ravel(FACES), "H")
    glb.json["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [0.8, 0.2, 0.1, 1]}}]
    part = {"attributes": attributes, "indices": faces, "material": 0}
    glb.json["meshes"] = [{"primitives": [part]}]
    glb.json["nodes"] = [
        {"name": "strip", "mesh": 0, "skin": 0, "translation": [9, 9, 9]},  # of no effect
        {"name": "lower", "children": [2]},
        {"name": "upper", "translation": [0, 1, 0]},
    ]
    inverse = glb.array([np.eye(4).ravel(), down.ravel()])
    glb.json["skins"] = [{"joints": [1, 2], "inverseBindMatrices": inverse}]
    for name in animations:
        times = glb.array([0.0, seconds])
        turns = glb.array([(0, 0, 0, 1), (0, 0, HALF, HALF)])
        slides = glb.array([(0, 0, 0), (0, 0, -0.4)])
        glb.json["animations"].append({
            "name": name,
            "samplers": [{"input": times, "output": turns}, {"input": times, "output": slides}],
            "channels": [
                {"sampler": 0, "target": {"node": 2, "path": "rotation"}},
                {"sampler": 1, "target": {"node": 1, "path": "translation"}},
            ],
        })  # fmt: skip
    return glb


def write_models(folder: Path, models: dict[str, tuple[str, ...]]) -> Path:
    """A folder of strips: path without suffix, and names of animations."""
    for name, animations in models.items():
        path = folder / f"{name}.glb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(strip(*animations).data())
    return folder


COMPANY = {
    "animals_pack/ShibaInu": (
        "AnimalArmature|Walk",
        "AnimalArmature|Gallop",
        "AnimalArmature|Idle",
    ),
    "farm/Farm_Animals_Animated___Cow": ("Armature|Walk", "Armature|Idle", "Armature|Death"),
    "fish_pack/Shark": ("Armature|Swim",),
    "mine/GreatOwl": ("Owl_Walk", "Preen", "Idle"),
    "platformer_game_pack/Bee": ("MonsterArmature|Flying", "MonsterArmature|Death"),
}
