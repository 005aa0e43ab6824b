"""The rooms of utils/: imports between them point one way, and each says what flows in and what comes out."""
import ast
import sys

import pytest
from conftest import ROOT

# Each room, and the rooms that it may import from; all of them may import from nets/.
ARROWS = {
    "common": set(),
    "faces": {"common"},
    "data": {"common", "faces"},
    "evaluation": {"common", "faces"},
    "weights": {"common", "faces", "evaluation"},
    "drawing": {"common", "evaluation"},
    "training": {"common", "faces", "data", "evaluation", "weights", "drawing"},
}
# What the floors above utils/ and below it may import of this repository.
FLOORS = {"nets": {"nets"}, "utils": {"nets", "utils"}, "arcface.py": {"nets", "utils"}}
FILES = sorted([*ROOT.glob("nets/*.py"), *ROOT.glob("utils/**/*.py"), ROOT / "arcface.py"])


def imported(path):
    """The modules that a file imports, wherever in it, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their room in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_room_is_in_the_table():
    assert {path.parent.name for path in ROOT.glob("utils/*/__init__.py")} == set(ARROWS)
    assert not [path for path in ROOT.glob("utils/*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    place = path.relative_to(ROOT)
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top in ("nets", "utils", "arcface", "train", "predict", "eval_LFW", "txt_annotation", "benchmarks", "tests"):
            assert top in FLOORS[place.parts[0]], f"{place} imports {name}, which lies above it"
        if place.parts[0] == "utils" and top == "utils" and len(place.parts) > 2:
            room, other = place.parts[1], rest.split(".")[0]
            assert other in ARROWS[room] | {room}, f"{place} imports {name}: utils/{room} must not know utils/{other}"


def test_the_arrows_make_no_circle():
    floors, left = [], dict(ARROWS)
    while left:
        floor = {room for room, below in left.items() if below.isdisjoint(left)}
        assert floor, f"a circle among {sorted(left)}"
        floors.append(floor)
        left = {room: below for room, below in left.items() if room not in floor}
    assert floors[0] == {"common"}


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_has_a_docstring_and_no_code(room):
    body = ast.parse((ROOT / "utils" / room / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value.value, str)


@pytest.mark.parametrize("room", ARROWS)
def test_tests_mirror_the_rooms(room):
    assert list((ROOT / "tests" / room).glob("test_*.py"))


def test_nets_import_only_torch():
    for path in ROOT.glob("nets/*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= sys.stdlib_module_names | {"torch", "nets"}, path
