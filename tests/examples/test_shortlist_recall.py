import json

import numpy as np
import pytest
import torch
from shortlist_recall import main, shortlist_recall

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
    rows = list(shortlist_recall(Directions(), given, (1, 2)))
    assert [tuple(row.values()) for row in rows] == [
        ("sea", 3, 1, 66.7),
        ("sea", 3, 2, 100),
        ("wood", 2, 1, 0),
        ("wood", 2, 2, 100),
        ("mean", 2, 1, 33.3),
        ("mean", 2, 2, 100),
    ]


def test_script_saves_rows(weights_folder, benchmark_file, tmp_path, capsys):
    arguments = ["--weights", weights_folder, "--benchmark", benchmark_file, "--candidates", 3, 6]
    main([*map(str, arguments), "--device", "cpu", "--dtype", "float32", "--save", str(tmp_path / "recall.json")])
    rows = json.loads((tmp_path / "recall.json").read_text())["rows"]
    assert [row["category"] for row in rows] == ["forest", "forest", "harbour", "harbour", "mean", "mean"]
    assert {row["data"] for row in rows} == {"locations"}
    assert [row["recall"] for row in rows if row["candidates"] == 6] == [100, 100, 100]
    assert "6 of     6: 100.0 %" in capsys.readouterr().out


def test_weights_without_descriptors():
    class Plain(Directions):
        class config:
            class network:
                descriptor_dim = 0

    with pytest.raises(ValueError, match="no descriptors"):
        next(shortlist_recall(Plain(), benchmark([1], [1], ["x"])))
