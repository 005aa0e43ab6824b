"""The packages of utils/: imports between them point one way, and tests/ has the same packages."""
import ast
import sys

import pytest
from conftest import ROOT

# Each package, and those that it may import from; all of them may import from nets/.
ALLOWED = {
    "common": set(),
    "faces": {"common"},
    "data": {"common", "faces"},
    "evaluation": {"common", "faces"},
    "weights": {"common", "faces", "evaluation"},
    "drawing": {"common", "evaluation"},
    "training": {"common", "faces", "data", "evaluation", "weights", "drawing"},
}
# What nets/, utils/ and arcface.py may import from this repository.
LAYERS = {"nets": {"nets"}, "utils": {"nets", "utils"}, "arcface.py": {"nets", "utils"}}
FILES = sorted([*ROOT.glob("nets/*.py"), *ROOT.glob("utils/**/*.py"), ROOT / "arcface.py"])


def imported(path):
    """Return the dotted names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their package in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_package_is_in_the_table():
    assert {path.parent.name for path in ROOT.glob("utils/*/__init__.py")} == set(ALLOWED)
    assert not [path for path in ROOT.glob("utils/*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    place = path.relative_to(ROOT)
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top in ("nets", "utils", "arcface", "train", "predict", "eval_LFW", "txt_annotation", "benchmarks", "tests"):
            assert top in LAYERS[place.parts[0]], f"{place} imports {name}, which is above it"
        if place.parts[0] == "utils" and top == "utils" and len(place.parts) > 2:
            package, other = place.parts[1], rest.split(".")[0]
            assert other in ALLOWED[package] | {package}, f"{place} must not import {name}"


@pytest.mark.parametrize("package", ALLOWED)
def test_tests_mirror_the_packages(package):
    assert list((ROOT / "tests" / package).glob("test_*.py"))


def test_nets_import_only_torch():
    for path in ROOT.glob("nets/*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= sys.stdlib_module_names | {"torch", "nets"}, path
