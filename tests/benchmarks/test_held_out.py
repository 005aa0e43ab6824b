"""benchmarks/held_out.py: the held-out identities are not trained on, and make a benchmark."""
from conftest import assert_user_error
from PIL import Image

from utils.data.annotation import read_annotation
from utils.evaluation.pairs import read_pairs


def make_people(folder, count):
    for person in range(count):
        for number in range(3):
            path = folder / f"person {person:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (person, number, 0)).save(path)


def test_held_out_identities_are_a_benchmark_and_not_in_the_annotation(run_script, tmp_path):
    make_people(tmp_path / "datasets", 25)
    result = run_script("benchmarks/held_out.py")
    assert result.returncode == 0, result.stderr
    paths, labels = read_annotation(tmp_path / "cls_train.txt")
    assert set(labels.tolist()) == set(range(22)) and len(paths) == 66
    assert not any(f"person {number:02d}" in path for path in paths for number in (4, 14, 24))
    pairs = read_pairs(tmp_path / "held_out" / "pairs.txt", tmp_path / "held_out")
    assert pairs.folds == 10 and len(pairs.genuine) == 6000
    assert {path.parent.name for path in pairs.paths} == {"person_04", "person_14", "person_24"}
    for path in pairs.paths:
        number = int(path.stem[-4:]) - 1
        assert Image.open(path).convert("RGB").getpixel((0, 0)) == (int(path.parent.name[-2:]), number, 0)
    assert all((pairs.paths[a].parent == pairs.paths[b].parent) == same and a != b
               for a, b, same in zip(pairs.first, pairs.second, pairs.genuine))


def test_too_few_identities_are_a_user_error(call_script, tmp_path):
    make_people(tmp_path / "datasets", 10)
    assert_user_error(call_script("benchmarks/held_out.py"), "too few people", "15")
