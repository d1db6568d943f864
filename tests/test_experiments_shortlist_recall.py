import numpy as np
import pytest
import torch
from shortlist_recall import main, shortlist_recall, table

from rrl_match import Features
from rrl_match.training.evaluation import Benchmark


class Directions:
    """Stands in for a matcher: the first pixel of a patch is the angle of its descriptor, in degrees."""

    class config:
        class network:
            descriptor_dim = 2

    def encode(self, patches, band):
        angle = torch.from_numpy(patches[:, 0, 0]).double().deg2rad()
        return Features(band, (), torch.stack([angle.cos(), angle.sin()], 1).float(), 0)


def benchmark(angles_a, angles_b, category):
    patches = [np.zeros((len(angles), 64, 64), np.uint8) for angles in (angles_a, angles_b)]
    for some, angles in zip(patches, (angles_a, angles_b), strict=True):
        some[:, 0, 0] = angles
    return Benchmark(*patches, np.array(category), np.array([(0, 0), (0, 1)]), np.array(["match", "random"]))


def test_recall_by_hand():
    # sea: patch 0 of A ranks its partner first, 1 and 2 rank it second. In the other direction, the partner of 1 ranks
    # it first, that of 2 second.
    # wood: all descriptors are equal, so the partner is not found. Categories do not compete with each other.
    given = benchmark([10, 50, 90, 7, 7], [10, 64, 60, 7, 7], ["sea"] * 3 + ["wood"] * 2)
    result = shortlist_recall(Directions(), given, (1, 2))
    third = 100 / 3
    assert result["sea"] == pytest.approx({"pool": 3, "1 of A": third, "2 of A": 100, "1": 2 * third, "2": 100})
    assert result["wood"] == pytest.approx({"pool": 2, "1 of A": 0, "2 of A": 100, "1": 0, "2": 100})
    assert result["mean"]["1 of A"] == pytest.approx(third / 2)
    assert list(result) == ["sea", "wood", "mean"]


def test_script_prints_recall(weights_folder, benchmark_file, capsys):
    arguments = ["--weights", weights_folder, "--benchmark", benchmark_file, "--candidates", 3, 6]
    main([*map(str, arguments), "--device", "cpu", "--dtype", "float32"])
    line = capsys.readouterr().out.splitlines()[2].split()
    assert line[:2] == ["forest", "6"]
    assert float(line[2]) <= float(line[4])  # recall at 3: proposed by A, by A or B
    assert line[3] == line[5] == "100.00"


def test_weights_without_descriptors():
    class Plain(Directions):
        class config:
            class network:
                descriptor_dim = 0

    with pytest.raises(ValueError, match="no descriptors"):
        shortlist_recall(Plain(), benchmark([1], [1], ["x"]))


def test_table():
    lines = list(table({"x": {"pool": 5.0, "8": 50.0}, "mean": {"pool": 5.0, "8": 50.0}}))
    assert [line.split() for line in lines] == [
        ["candidates", "pool", "8"],
        ["x", "5", "50.00"],
        ["mean", "5", "50.00"],
    ]
