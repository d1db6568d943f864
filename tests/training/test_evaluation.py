import json
import zipfile

import numpy as np
import pytest

from rrl_match import DataError
from rrl_match.training.evaluation import METRICS, Benchmark, evaluate, metrics_of, table

PATCHES = np.zeros((4, 64, 64), np.uint8)


def benchmark(pairs, kind, category=("sea", "sea", "wood", "wood")):
    return Benchmark(PATCHES, PATCHES, np.array(category), np.array(pairs, np.int32), np.array(kind))


def test_categories_are_averaged_unweighted():
    # sea: one match above all 3 random negatives; wood: one match below its only random negative.
    pairs = [(0, 0), (0, 1), (1, 0), (0, 2), (2, 2), (2, 3), (0, 1), (2, 3)]
    kind = ["match", "random", "random", "random", "match", "random", "near", "near"]
    scores = np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.95, 0.1], np.float32)
    result = metrics_of(benchmark(pairs, kind), scores)
    assert list(result) == ["random", "near"]
    assert list(result["random"]) == ["sea", "wood", "mean"]
    random = {name: values["FPR95"] for name, values in result["random"].items()}
    assert random == {"sea": 0, "wood": 100, "mean": 50}
    near = {name: values["FPR95"] for name, values in result["near"].items()}
    assert near == {"sea": 100, "wood": 0, "mean": 50}
    assert result["random"]["sea"]["AUC"] == 100
    assert result["random"]["wood"]["FDR95"] == 50
    assert result["random"]["mean"]["FDR95"] == 25
    assert set(result["random"]["mean"]) == set(METRICS)
    json.dumps(result)


def test_a_pair_counts_for_the_category_of_its_patch_of_a():
    pairs, kind = [(0, 0), (2, 2), (0, 2), (2, 0)], ["match", "match", "random", "random"]
    result = metrics_of(benchmark(pairs, kind), np.array([0.5, 0.5, 0.9, 0.1], np.float32))
    assert {name: values["FPR95"] for name, values in result["random"].items()} == {"sea": 100, "wood": 0, "mean": 50}


def test_table_has_a_line_for_each_category():
    pairs, kind = [(0, 0), (0, 1), (2, 2), (2, 3)], ["match", "random"] * 2
    lines = list(table(metrics_of(benchmark(pairs, kind), np.array([0.9, 0.1, 0.1, 0.9], np.float32))))
    assert [line.split()[0] for line in lines] == ["random", "sea", "wood", "mean"]
    assert all(metric in lines[0] for metric in METRICS)
    assert lines[1].split()[1:] == ["0.00", "0.00", "0.00", "100.00", "100.00"]
    assert lines[3].split()[1] == "50.00"


def test_evaluate_scores_the_pairs_of_the_benchmark(matcher, patches_a, patches_b):
    pairs = np.array([(k, k) for k in range(6)] + [(k, (k + 1) % 6) for k in range(6)], np.int32)
    kind = np.array(["match"] * 6 + ["near"] * 6)
    given = Benchmark(patches_a, patches_b, np.array(["x"] * len(patches_a)), pairs, kind)
    scores = matcher.score(patches_a[pairs[:, 0]], patches_b[pairs[:, 1]])
    expected, result = metrics_of(given, scores), evaluate(matcher, given)
    assert result["near"]["x"] == pytest.approx(expected["near"]["x"])


def test_benchmark_is_read_as_it_was_written(tmp_path):
    pairs, kind = [(0, 0), (0, 1)], ["match", "random"]
    wanted = benchmark(pairs, kind)
    np.savez(tmp_path / "b.npz", label=np.zeros(2, np.uint8), **vars(wanted))
    seen = Benchmark.load(tmp_path / "b.npz")
    for name, value in vars(wanted).items():
        np.testing.assert_array_equal(getattr(seen, name), value)


def write_cut_off(path):
    np.savez(path, **vars(benchmark([(0, 0)], ["match"])))
    path.write_bytes(path.read_bytes()[:2000])


def write_array(path):
    with open(path, "wb") as file:
        np.save(file, PATCHES)


def write_with(**other):
    return lambda path: np.savez(path, **vars(benchmark([(0, 0), (0, 1)], ["match", "random"])) | other)


def write_flipped_bytes(path):
    arrays = vars(benchmark([(0, 0)], ["match"])) | {"patches_a": np.random.default_rng(0).bytes(64 * 64)}
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("patches"),
        lambda path: np.savez(path, patches_a=PATCHES, patches_b=PATCHES),
        write_with(kind=np.array([None])),
        write_with(patches_a=np.array(0)),
        write_with(patches_b=np.array(0)),
        write_with(pairs=np.zeros((2, 2))),
        write_with(pairs=np.zeros((2, 3), int)),
        write_with(pairs=np.full((2, 2), 4)),
        lambda path: zipfile.ZipFile(path, "w").close(),
        write_cut_off,
        write_array,
        write_flipped_bytes,
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "arrays missing",
        "pickled",
        "no array of patches a",
        "no array of patches b",
        "pairs not integers",
        "triples",
        "pairs of patches that are not there",
        "empty zip",
        "cut off",
        "npy",
        "flipped bytes",
    ],
)
def test_file_that_is_no_benchmark(tmp_path, write):
    path = tmp_path / "broken.npz"
    write(path)
    with pytest.raises(DataError, match=r"broken\.npz"):
        Benchmark.load(path)


def test_nobody_is_advised_to_unpickle(tmp_path):
    np.savez(tmp_path / "objects.npz", patches_a=np.array([None, {}]))
    with pytest.raises(DataError, match="an array holds Python objects") as caught:
        Benchmark.load(tmp_path / "objects.npz")
    assert "pickle" not in str(caught.value)
