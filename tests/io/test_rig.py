"""Two fixed cameras: one transform from many frames."""

import json

import cv2
import numpy as np
import pytest

from rrl_match import Registration
from rrl_match.cli.main import main
from rrl_match.errors import ImageError
from rrl_match.io import rig
from rrl_match.io.batch import Options
from rrl_match.io.pairs import Pair
from rrl_match.registration import TiePoints
from rrl_match.transforms import Affine

SHIFT = Affine(np.array([[1.0, 0, 5], [0, 1, -3]]))
LOCATIONS = np.array([(10.0, 20), (30, 40)])


class Matcher:
    modalities = "visible", "thermal"


@pytest.fixture
def frames(tmp_path):
    """30 frames of two cameras; each has one grey value, its number."""
    pairs = []
    for k in range(30):
        paths = [tmp_path / f"{band}{k:02d}.png" for band in "ab"]
        cv2.imwrite(str(paths[0]), np.full((70, 90), k, np.uint8))
        cv2.imwrite(str(paths[1]), np.full((66, 80), 100 + k, np.uint8))
        pairs.append(Pair("", *paths))
    return pairs


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """What `register` is called with."""
    calls = []

    def register(matcher, image_a, image_b, **options):
        calls.append((image_a, image_b, options))
        points = TiePoints(LOCATIONS, SHIFT(LOCATIONS), np.ones(2, np.float32), np.zeros(2), np.ones(2, bool))
        return Registration(SHIFT, model="affine", probability=0.9, tie_points=points)

    monkeypatch.setattr(rig, "register", register)
    return calls


def test_twelve_frames_spread_over_the_list(tmp_path, frames, calls):
    options = Options(model="homography", value_range_b=(0, 200), search={"rotation": 10})
    record = rig.register_rig(Matcher, frames, options, tmp_path / "out")
    ((image_a, image_b, given),) = calls
    numbers = [int(image[0, 0]) for image in image_a]
    assert len(numbers) == 12
    assert numbers[0] == 0
    assert numbers[-1] == 29
    assert set(np.diff(numbers)) <= {2, 3}
    assert [int(image[0, 0]) - 100 for image in image_b] == numbers
    assert (given["model"], given["value_range"], given["search"].rotation) == ("homography", (None, (0, 200)), 10)
    assert (given["mask_a"], given["mask_b"]) == (None, None)
    assert record["frames"] == [[str(path) for path in frames[k][1:3]] for k in numbers]
    assert json.loads((tmp_path / "out" / "registration.json").read_text(encoding="utf-8")) == record
    assert record["image_a"] == str(frames[numbers[6]].image_a)
    assert cv2.imread(str(tmp_path / "out" / "warped.png"), 0)[10, 40] == numbers[6]
    assert (tmp_path / "out" / "report.html").is_file()


def test_few_frames_and_masks(tmp_path, frames, calls):
    shown = np.zeros((70, 90), np.uint8)
    shown[:40] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), shown)
    rig.register_rig(Matcher, [frames[0]._replace(mask_a=tmp_path / "mask.png"), *frames[1:3]], Options())
    ((image_a, _, given),) = calls
    assert len(image_a) == 3
    assert [int(mask.sum()) for mask in given["mask_a"]] == [40 * 90, 70 * 90, 70 * 90]


def test_images_of_a_camera_have_one_size(frames):
    cv2.imwrite(str(frames[2].image_b), np.zeros((60, 80), np.uint8))
    message = r"b02.png is 80 x 60 pixels, but .*b00.png of the same camera is 80 x 66"
    with pytest.raises(ImageError, match=message):
        rig.register_rig(Matcher, frames[:4], Options())


def test_on_the_command_line(tmp_path, frames, monkeypatch, capsys):
    monkeypatch.setattr(Options, "matcher", lambda self: Matcher)
    rows = "\n".join(f"{pair.image_a.name},{pair.image_b.name}" for pair in frames[:3])
    (tmp_path / "frames.csv").write_text(f"image_a,image_b\n{rows}\n", encoding="utf-8")
    assert main(["register", "--pairs", str(tmp_path / "frames.csv"), "--rig"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["matrix"] == SHIFT.matrix.tolist()
    assert len(record["frames"]) == 3
    for arguments, message in (
        (["a.png", "b.png", "--rig"], "--rig needs the frames of both cameras as --pairs CSV"),
        (["--pairs", "frames.csv", "--rig", "--jobs", "2"], "--jobs is for a list of pairs that are registered one by"),
    ):
        with pytest.raises(SystemExit):
            main(["register", *arguments])
        assert message in capsys.readouterr().err
