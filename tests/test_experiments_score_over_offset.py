import cv2
import numpy as np
import pytest
import torch
from image_folder import textured, write_folder, write_manifest
from score_over_offset import OffsetCurve, main, score_over_offset

from rrl_match import DataError
from rrl_match.training.datasets import read_pairs


def test_metrics_by_hand():
    offsets = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
    one = [0.1, 0.2, 0.9, 0.8, 0.1]  # peaks at 0
    other = [0.1, 0.6, 0.6, 0.2, 0.1]  # at -2 and 0, with equal scores
    curve = OffsetCurve(offsets, np.array([[one, other], [one, one]], np.float32).transpose(0, 2, 1))
    np.testing.assert_allclose(curve.peaks(), [[0, -1], [0, 0]])
    assert curve.metrics(0.5) == {
        "bias_x": -0.5,
        "bias_y": 0,
        "spread": 0.25,
        "above_threshold_at_0": 1,
        "half_width": 2,  # at -2 one of four locations is above
    }
    assert curve.metrics(0.0)["half_width"] == np.inf


class Similarity:
    """Stands in for a matcher: the score of two patches is high where their grey values are similar."""

    patch_size = 64

    def encode(self, patches, band):
        return patches

    def score_features(self, codes_a, codes_b, index_pairs):
        difference = codes_a[index_pairs[:, 0]] - codes_b[index_pairs[:, 1]]
        return torch.exp(-difference.square().mean((1, 2, 3))).numpy()


@pytest.mark.parametrize("apart", [(0, 0), (4, -2)])
def test_peaks_lie_where_the_bands_agree(tmp_path, apart):
    """An image against itself, shifted by (x, y), although the manifest says that the two are aligned."""
    image = textured(220, 200)
    moved = np.roll(image, (apart[1], apart[0]), axis=(0, 1))
    cv2.imwrite(str(tmp_path / "a0.png"), image)
    cv2.imwrite(str(tmp_path / "b0.png"), moved)
    curve = score_over_offset(Similarity(), read_pairs(write_manifest(tmp_path, [{}])), reach=6, step=2, locations=5)
    assert curve.scores.shape == (2, 7, 5)
    if apart == (0, 0):
        assert (curve.peaks() == 0).all()
    else:  # location (x, y) of B is (x - 4, y + 2) of A
        assert curve.metrics(0.0)["bias_x"] == -4
        assert curve.metrics(0.0)["bias_y"] == 2


def test_no_location_far_enough_inside(tmp_path, matcher):
    pairs = read_pairs(write_folder(tmp_path, width=112, height=112))
    with pytest.raises(DataError, match="24 pixels"):
        score_over_offset(matcher, pairs, reach=24)


def test_script_plots_the_curve(tmp_path, weights_folder, capsys):
    data, plot = write_folder(tmp_path / "images", pairs=2, width=200, height=180), tmp_path / "curve.png"
    arguments = ["--weights", weights_folder, "--data", data, "--plot", plot, "--split", "train", "--locations", "2"]
    main([*map(str, arguments), "--device", "cpu"])
    assert "half_width:" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
