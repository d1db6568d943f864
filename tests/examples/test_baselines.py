import json
import shutil

import cv2
import numpy as np
import pytest
from baselines import evaluate_sift, main, sift_descriptors
from networks import make_patches

from rrl_match.training.evaluation import Benchmark


def test_descriptors_are_those_of_opencv():
    patches = make_patches(3, seed=1)
    _, expected = cv2.SIFT.create().compute(patches[1], [cv2.KeyPoint(32, 32, 10, 0)])
    assert sift_descriptors(patches)[1].tolist() == expected[0].tolist()
    assert sift_descriptors(patches[:0]).shape == (0, 128)


def test_a_patch_is_most_similar_to_itself(patches_a):
    pairs = np.array([(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)], np.int32)
    kind = np.array(["match"] * 3 + ["random"] * 3)
    benchmark = Benchmark(patches_a, patches_a, np.array(["x"] * len(patches_a)), pairs, kind)
    assert evaluate_sift(benchmark)["random"]["mean"]["FPR95"] == 0


def test_script_saves_rows(tmp_path, benchmark_file, capsys):
    for name in ("first", "second"):
        shutil.copy(benchmark_file, tmp_path / f"{name}.npz")
    files = [tmp_path / "first.npz", tmp_path / "second.npz"]
    main([str(argument) for argument in ("--benchmark", *files, "--save", tmp_path / "metrics.json")])
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    keys = [(row["data"], row["negatives"], row["category"]) for row in rows]
    categories = [(kind, name) for kind in ("random", "near") for name in ("forest", "harbour", "mean")]
    assert keys == [(data, *rest) for data in ("first", "second") for rest in categories]
    assert (
        rows[0]["FPR95"]
        == rows[6]["FPR95"]
        == pytest.approx(evaluate_sift(Benchmark.load(benchmark_file))["random"]["forest"]["FPR95"], abs=0.01)
    )
    assert "SIFT on second" in capsys.readouterr().out
