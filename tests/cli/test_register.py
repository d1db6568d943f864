"""``rrl-match register``: what it reads, prints, writes and says."""

import csv
import json
import os
import shutil
from types import SimpleNamespace

import cv2
import ending_worker
import numpy as np
import pytest

from rrl_match import Registration, RRLMatcher
from rrl_match.cli.main import main
from rrl_match.io.batch import Options, register_list
from rrl_match.io.images import ImageFile
from rrl_match.io.pairs import outcome, read_pairs
from rrl_match.registration import TiePoints
from rrl_match.transforms import Affine, Homography, Transform, Translation, compose

RNG = np.random.default_rng(0)
GREY = RNG.integers(1, 256, (70, 90), dtype=np.uint8)
RGB = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
SHIFT = np.array([[1.0, 0, 5], [0, 1, -3]])
LOCATIONS = np.array([(10.0, 20), (30, 40), (50, 60)])
TIE_POINTS = TiePoints(
    LOCATIONS,
    LOCATIONS + np.array([(5, -3), (5.5, -3), (30, 0)]),
    np.array([1, 0.5, np.nan], np.float32),
    np.array([0, 0.5, 25.18]),
    np.array([True, True, False]),
)
FOUND = {"model": "affine", "probability": 0.97, "overlap": 0.9, "agreement": 0.75, "tie_points": TIE_POINTS}


def found(transform=Affine(SHIFT), **attributes):  # noqa: B008
    """What `register` returns: a shift by (5, -3) and three tie points, the last of them an outlier."""
    return Registration(transform, **FOUND | attributes)


def refused():
    given = {"rejected": Affine(SHIFT), "reason": "another transform agrees nearly as well", "advice": "crop A"}
    return Registration(**FOUND | given | {"probability": 0.2})


@pytest.fixture(autouse=True)
def calls(request, monkeypatch):
    """What `register` is called with; its answers are those in the list `answers`, then found()."""
    if "real" in request.fixturenames:
        return None

    def register(matcher, image_a, image_b, model, **options):
        calls.append(SimpleNamespace(image_a=image_a, image_b=image_b, model=model, **options))
        answer = calls.answers.pop(0) if calls.answers else found()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    class Calls(list):
        """With attributes."""

    def load(*name, device):
        calls.loaded.append((*name, device))
        return SimpleNamespace(modalities=("vis", "nir"))

    calls = Calls()
    calls.answers, calls.loaded = [], []
    monkeypatch.setattr("rrl_match.io.batch.register", register)
    monkeypatch.setattr(RRLMatcher, "from_pretrained", load)
    return calls


@pytest.fixture
def real():
    """For tests that want the true `register`."""


@pytest.fixture
def images(tmp_path):
    """Paths of an RGB image and of a grey one that is smaller."""
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    cv2.imwrite(str(paths[0]), RGB[..., ::-1])
    cv2.imwrite(str(paths[1]), GREY[:66, :80])
    return paths


def run(*arguments):
    return main(["register", *map(str, arguments)])


def test_prints_what_was_found(images, calls, capsys):
    assert run(*images) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert printed.err == ""
    assert record["ok"] is True
    assert record["transform"] == {"kind": "affine", "matrix": SHIFT.tolist()}
    assert record["matrix"] == SHIFT.tolist()
    assert record["rejected"] is None
    assert (record["model"], record["reason"], record["advice"]) == ("affine", "", "")
    assert (record["probability"], record["overlap"], record["agreement"]) == (0.97, 0.9, 0.75)
    assert (record["tie_points"], record["inliers"]) == (3, 2)
    assert (record["size_a"], record["size_b"]) == ([90, 70], [80, 66])
    (call,) = calls
    np.testing.assert_array_equal(call.image_a, RGB)
    assert call.image_b.shape == (66, 80)
    assert (call.model, call.mask_a, call.mask_b, call.value_range) == ("affine", None, None, None)
    assert not hasattr(call, "search")
    assert calls.loaded == [("universal", "auto")]


def test_options_reach_register(tmp_path, images, calls, monkeypatch):
    shown = np.zeros((70, 90), np.uint8)
    shown[:50] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), shown)
    options = ["--weights", "vis-lwir", "--device", "cpu", "--model", "homography", "--mask-a", tmp_path / "mask.png"]
    options += ["--value-range-b", -25, 5, "--bands-a", 2, "--max-rotation", 0, "--scale", 1, 1]
    options += ["--mirrored", "--max-shift", 40]
    monkeypatch.setattr("rrl_match.io.batch.Search", dict)
    calls.answers.append(found(Homography(SHIFT)))
    assert run(*images, *options) == 0
    (call,) = calls
    np.testing.assert_array_equal(call.image_a, RGB[..., 1])
    np.testing.assert_array_equal(call.mask_a, shown > 0)
    assert call.value_range == (None, (-25, 5))
    assert call.model == "homography"
    assert call.search == {"rotation": 0, "scale": (1, 1), "mirrored": True, "shift": 40}
    assert calls.loaded == [("vis-lwir", "cpu")]


def test_writes_the_results(tmp_path, images, capsys):
    out = tmp_path / "new" / "out"
    assert run(*images, "--out", out) == 0
    assert json.loads((out / "registration.json").read_text()) == json.loads(capsys.readouterr().out)
    warped = cv2.imread(str(out / "warped.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(warped, cv2.warpAffine(RGB, SHIFT, (80, 66)))
    assert cv2.imread(str(out / "checkerboard.png")).shape == (66, 80, 3)
    assert "a.png registered to b.jpg" in (out / "report.html").read_text()
    assert (out / "tie_points.csv").read_text().splitlines() == [
        "x_a,y_a,x_b,y_b,score,residual,inlier",
        "10,20,15,17,1.0000,0.000,1",
        "30,40,35.5,37,0.5000,0.500,1",
        "50,60,80,60,,25.179,0",
    ]
    assert (out / "tie_points.points").read_text().splitlines() == [
        "mapX,mapY,pixelX,pixelY,enable",  # pixels count from the corner, upwards
        "15.5,-17.5,10.5,-20.5,1",
        "36,-37.5,30.5,-40.5,1",
        "80.5,-60.5,50.5,-60.5,0",
    ]


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, ".png"), (np.float32, ".tif")])
def test_warped_image_keeps_its_depth(tmp_path, images, monkeypatch, dtype, suffix):
    monkeypatch.setattr("rrl_match.io.rasters.RASTERS", False)
    deep = (GREY.astype(dtype) * 100)[..., None].repeat(3, 2)
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), deep, [cv2.IMWRITE_TIFF_COMPRESSION, 5] if suffix == ".tif" else [])
    assert run(path, images[1], "--out", tmp_path) == 0
    warped = cv2.imread(str(tmp_path / f"warped{suffix}"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(warped, cv2.warpAffine(deep, SHIFT, (80, 66)))


@pytest.mark.parametrize(("option", "values"), [([], 3), (["--resampling", "bilinear"], 100)])
def test_classes_are_not_interpolated(tmp_path, images, calls, option, values):
    encode(tmp_path / "classes.png", GREY // 100 * 100)
    calls.answers.append(found(Affine(SHIFT + 0.3 * np.eye(2, 3, 2))))
    assert run(tmp_path / "classes.png", images[1], "--out", tmp_path / "out", *option) == 0
    warped = cv2.imread(str(tmp_path / "out" / "warped.png"), cv2.IMREAD_UNCHANGED)
    assert len(np.unique(warped)) == pytest.approx(values, abs=0 if values == 3 else 100)
    assert (len(np.unique(warped)) == 3) == (values == 3)


def test_refusal(tmp_path, images, calls, capsys):
    run(*images, "--out", tmp_path / "out")
    capsys.readouterr()
    calls.answers.append(refused())
    assert run(*images, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["matrix"] is None
    assert record["transform"] is None
    assert record["rejected"] == {"kind": "affine", "matrix": SHIFT.tolist()}
    assert record["reason"] == "another transform agrees nearly as well"
    assert printed.err == "refused: another transform agrees nearly as well\nadvice: crop A\n"
    written = {path.name for path in (tmp_path / "out").iterdir()}  # nothing of the earlier run
    assert written == {"registration.json", "report.html", "thumbnail.jpg"}


def test_results_do_not_overwrite_the_images(tmp_path, images, capsys):
    path = encode(tmp_path / "warped.png", RGB)
    assert run(path, images[1], "--out", tmp_path) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert path.is_file()


def encode(path, image):
    """RGB or RGBA."""
    image = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    assert cv2.imwrite(str(path), image)
    return path


def mistakes(folder):
    """Arguments, and what the error must say; A and B stand for good images."""
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "short.jpg").write_bytes(cv2.imencode(".jpg", RGB)[1].tobytes()[:3000])
    encode(folder / "small.png", GREY[:31])
    encode(folder / "clear.png", np.dstack([RGB, np.zeros_like(GREY)]))
    encode(folder / "other.png", GREY[:60])
    encode(folder / "black.png", np.zeros_like(GREY))
    encode(folder / "nan.tif", np.full((70, 90), np.nan, np.float32))
    (folder / "pairs.csv").write_text("image_a,image_b\na.png,b.jpg\n")
    return [
        (["nothing.png", "B"], "nothing.png does not exist"),
        (["A", "."], "is a folder"),
        (["A", "empty.png"], "empty.png is empty, 0 bytes"),
        (["A", "text.png"], "text.png cannot be read as an image: convert it to PNG"),
        (["short.jpg", "B"], "short.jpg is a truncated JPEG"),
        (["A", "small.png"], "small.png is 90 x 31 pixels, at least 32 x 32 are needed"),
        (["clear.png", "B"], "clear.png shows nothing"),
        (["nan.tif", "B"], "nan.tif shows nothing"),
        (["A", "B", "--mask-a", "other.png"], "other.png is 90 x 60 pixels, but a.png is 90 x 70"),
        (["A", "B", "--mask-a", "black.png"], "black.png leaves nothing of a.png"),
        (["A", "B", "--mask-b", "nothing.png"], "nothing.png does not exist"),
        (["A", "B", "--bands-a", "4"], "a.png has 3 bands, not 4"),
        (["A", "B", "--max-rotation", "200"], "--max-rotation must be from 0 to 180 degrees, got 200"),
        (["A", "B", "--scale", "2", "1"], "--scale must be two positive numbers"),
        (["A", "B", "--out", "text.png"], "--out must be a folder, but text.png is a file"),
        (
            ["A", "B", "--out", "new.png"],
            "--out must be a folder, in which several files are written, but new.png looks",
        ),
        (["A", "B", "--value-range-a", "5", "5"], "--value-range-a must be two numbers, LOW < HIGH, got 5 5"),
        (["A", "B", "--max-shift", "0"], "--max-shift must be a positive number"),
        (["A", "B", "--device", "gpu"], "argument --device: device must be"),
        (["A", "B", "--model", "rigid"], "argument --model: invalid choice"),
        (["A"], "name two images, A and B, or a list of pairs"),
        ([], "name two images, A and B, or a list of pairs"),
        (["A", "B", "--pairs", "pairs.csv", "--out", "o"], "two images or --pairs, not both"),
        (["--pairs", "pairs.csv"], "--pairs needs --out"),
        (["A", "B", "--jobs", "2"], "--jobs is for a list of pairs"),
        (["--pairs", "pairs.csv", "--out", "text.png"], "--out must be a folder, but text.png is a file"),
        (["--pairs", "pairs.csv", "--out", "o", "--mask-a", "black.png"], "mask_a and mask_b"),
        (["--pairs", "nothing.csv", "--out", "o"], "nothing.csv does not exist"),
    ]


@pytest.mark.parametrize("number", range(28))
def test_mistakes_are_reported_in_one_line(tmp_path, images, monkeypatch, capsys, number):
    monkeypatch.chdir(tmp_path)
    arguments, message = mistakes(tmp_path)[number]
    start = "error: "
    try:
        code = run(*({"A": "a.png", "B": "b.jpg"}.get(argument, argument) for argument in arguments))
    except SystemExit as stopped:  # of argparse, which prints the usage as well
        code, start = stopped.code, "rrl-match register: error: "
    assert code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith(start)
    assert message in printed.err.splitlines()[-1]
    assert printed.err.count("\n") == 1 or start != "error: "


@pytest.mark.parametrize("bands", ["0", "1,2", "red", "1,2,-3"])
def test_bad_bands(images, capsys, bands):
    with pytest.raises(SystemExit) as stopped:
        run(*images, "--bands-a", bands)
    assert stopped.value.code == 2
    assert "--bands-a" in capsys.readouterr().err


@pytest.fixture
def pairs(tmp_path, images):
    """A list of three pairs; a file of the last one is missing."""
    path = tmp_path / "pairs.csv"
    path.write_text("\ufeffname,image_a,image_b\none,a.png,b.jpg\nsub/two,a.png,b.jpg\n,a.png,missing.jpg\n", "utf-8")
    return path


def test_list_of_pairs(tmp_path, pairs, calls, capsys):
    calls.answers += [found(), refused()]
    out = tmp_path / "out"
    assert run("--pairs", pairs, "--out", out) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "outcome", "probability", "expected", "error", "agreement"]
    assert lines[1].split() == ["one", "ok", "97%", "75%"]
    assert lines[2].split()[:4] == ["sub/two", "refused", "20%", "75%"]
    assert lines[2].endswith("another transform agrees nearly as well")
    assert lines[3].startswith("a_missing  error")
    assert lines[3].endswith("missing.jpg does not exist")
    assert lines[4] == "1 registered, 1 refused, 1 with errors"
    assert len(calls.loaded) == 1
    assert (out / "one" / "warped.png").is_file()
    assert (out / "sub" / "two" / "registration.json").is_file()
    assert not (out / "a_missing").exists()
    assert (out / "index.html").is_file()
    with (out / "registrations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == ["ok", "refused", "error"]
    assert [float(rows[0][f"m{k}{j}"]) for k in range(3) for j in range(3)] == [1, 0, 5, 0, 1, -3, 0, 0, 1]
    assert rows[1]["m00"] == ""


def test_bug_in_one_pair_is_its_row(tmp_path, pairs, calls, capsys, caplog):
    """Whatever happens: the other pairs go on, and the traceback is not lost."""
    encode(tmp_path / "missing.jpg", GREY)
    calls.answers += [ZeroDivisionError("a bug"), found()]
    assert run("--pairs", pairs, "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split(maxsplit=2) == ["one", "error", "ZeroDivisionError: a bug"]
    assert lines[2].split()[:2] == ["sub/two", "ok"]
    assert "ZeroDivisionError" in caplog.text


def test_limits_of_the_search_are_pixels_of_the_files(tmp_path, images, calls, monkeypatch):
    """B was reduced to half of its pixels a side."""
    half = Affine(np.array([[2.0, 0, 0.5], [0, 2, 0.5]]))
    monkeypatch.setattr("rrl_match.io.batch.read_image", lambda path, bands: reduced(path, half))
    monkeypatch.setattr("rrl_match.io.batch.Search", dict)

    def reduced(path, to_file):
        return ImageFile(path, (90, 70), GREY, None, to_file if path == images[1] else Affine(np.eye(3)))

    assert run(*images, "--max-shift", 40, "--scale", 1, 2) == 0
    assert calls[0].search == {"shift": 20, "scale": (0.5, 1)}


def test_warped_at_the_resolution_of_a(tmp_path, images, calls):
    calls.answers.append(found(Affine(np.array([[0.25, 0, 10], [0, 0.25, 10]]))))
    assert run(*images, "--grid", "a", "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out" / "warped.png")), RGB[..., ::-1])


def test_table_grows_row_by_row(tmp_path, pairs, calls):
    calls.answers += [found(), KeyboardInterrupt()]
    assert run("--pairs", pairs, "--out", tmp_path / "out") == 130
    with (tmp_path / "out" / "registrations.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["one"]


def test_weights_are_checked_before_the_first_pair(tmp_path, pairs, calls, monkeypatch, capsys):
    monkeypatch.undo()
    assert run("--pairs", pairs, "--out", tmp_path / "out", "--weights", "nothing") == 2
    assert run("--pairs", pairs, "--out", tmp_path / "out", "--weights", "nothing", "--jobs", 2) == 2
    assert capsys.readouterr().err.count("'nothing'") == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_weights_that_cannot_be_read_are_one_line(tmp_path, pairs, monkeypatch, capfd, weights_folder, jobs):
    monkeypatch.undo()
    folder = shutil.copytree(weights_folder, tmp_path / "weights")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert run("--pairs", pairs, "--out", tmp_path / "out", "--weights", folder, "--jobs", jobs) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_ended_process_is_a_row(tmp_path, pairs, weights_folder):
    """As of a pair that takes more memory than there is: the others go on."""
    encode(tmp_path / "a.png", np.zeros_like(GREY))
    pairs.write_text("name,image_a,image_b\nbad,a.png,b.jpg\ntwo,a.png,b.jpg\n")
    options = Options(str(weights_folder), "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rrl_match.io.batch._start_worker", ending_worker.start)
        records = register_list(read_pairs(pairs), options, tmp_path / "out", 2)
    assert [outcome(record) for record in records] == ["error", "refused"]
    assert "the process that registered it ended" in records[0]["error"]


@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_two_processes_give_what_one_does(tmp_path, pairs, weights_folder, capsys):
    (tmp_path / "text.png").write_text("no image")
    encode(tmp_path / "a.png", np.zeros_like(GREY))  # which is refused soon
    pairs.write_text("name,image_a,image_b\none,a.png,b.jpg\nbad,text.png,b.jpg\ntwo,b.jpg,a.png\n")
    options = ["--pairs", pairs, "--weights", weights_folder, "--device", "cpu", "--max-rotation", 5, "--scale", 1, 1]
    for jobs in (1, 2):
        assert run(*options, "--out", tmp_path / str(jobs), "--jobs", jobs) == 2
    first, second = ((tmp_path / name / "registrations.csv").read_text() for name in "12")
    assert first == second
    assert "bad" in capsys.readouterr().out


def test_interrupted_list_resumes(tmp_path, pairs, calls, capsys):
    arguments = ["--pairs", pairs, "--out", tmp_path / "out"]
    calls.answers += [found(), refused()]
    run(*arguments)
    first = capsys.readouterr().out
    calls.clear()
    assert run(*arguments) == 2
    assert capsys.readouterr().out == first
    assert not calls
    encode(tmp_path / "missing.jpg", GREY)
    assert run(*arguments) == 1
    assert len(calls) == 1
    (tmp_path / "out" / "one" / "registration.json").write_text("{")  # as if interrupted while writing
    assert run(*arguments) == 1
    assert len(calls) == 2
    assert run(*arguments, "--model", "similarity") == 0
    assert len(calls) == 5
    later = os.stat(tmp_path / "out" / "one" / "registration.json").st_mtime + 10
    os.utime(tmp_path / "missing.jpg", (later, later))
    assert run(*arguments, "--model", "similarity") == 0
    assert len(calls) == 6


def test_tie_points_of_rasters_have_map_coordinates(tmp_path, images, calls):
    rasterio = pytest.importorskip("rasterio")
    for name, corner in (("a.tif", (100, 200)), ("b.tif", (1000, 2000))):
        shape = {"width": 90, "height": 70, "count": 1, "dtype": "uint8"}
        transform = rasterio.Affine(2, 0, corner[0], 0, -2, corner[1])
        with rasterio.open(tmp_path / name, "w", transform=transform, crs="EPSG:32611", **shape) as dataset:
            dataset.write(GREY, 1)
    assert run(tmp_path / "a.tif", tmp_path / "b.tif", "--out", tmp_path / "out") == 0
    lines = (tmp_path / "out" / "tie_points.points").read_text().splitlines()
    assert lines[0].startswith("#CRS: PROJCS[")
    assert lines[1] == "mapX,mapY,sourceX,sourceY,enable"  # QGIS wants A's map coordinates if it has some
    assert lines[2] == "1031,1965,121,159,1"  # pixel (15, 17) of B and (10, 20) of A
    assert (tmp_path / "out" / "tie_points.csv").read_text().splitlines()[1] == "10,20,15,17,1031,1965,1.0000,0.000,1"
    run(images[0], tmp_path / "b.tif", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "tie_points.points").read_text().splitlines()[2] == "1031,1965,10.5,-20.5,1"
    assert (tmp_path / "out" / "warped.tif").is_file()


def test_rasters_that_were_reduced_are_read_at_full_resolution(tmp_path, images, calls, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    monkeypatch.setattr("rrl_match.io.rasters.MAX_PIXELS", 90 * 70 // 4)
    shape = {
        "width": 90,
        "height": 70,
        "count": 1,
        "dtype": "uint8",
        "transform": rasterio.Affine(2, 0, 100, 0, -2, 200),
    }
    with rasterio.open(tmp_path / "b.tif", "w", **shape) as dataset:
        dataset.write(GREY, 1)
    assert run(images[0], tmp_path / "b.tif") == 0
    finer_a, finer_b = calls[0].finer
    assert finer_a is None
    assert finer_b.finest == pytest.approx(0.5)
    np.testing.assert_array_equal(finer_b(np.zeros(2), np.array([45.0, 35]), 0.5).pixels, GREY)


def test_lists_of_rasters_start_from_their_georeferences(tmp_path, calls):
    rasterio = pytest.importorskip("rasterio")
    for name, corner in (("a.tif", (100, 200)), ("b.tif", (110, 196))):
        shape = {"width": 90, "height": 70, "count": 1, "dtype": "uint8"}
        transform = rasterio.Affine(2, 0, corner[0], 0, -2, corner[1])
        with rasterio.open(tmp_path / name, "w", transform=transform, crs="EPSG:32611", **shape) as dataset:
            dataset.write(GREY, 1)
    (tmp_path / "pairs.csv").write_text("image_a,image_b\na.tif,b.tif\n")
    assert run("--pairs", tmp_path / "pairs.csv", "--out", tmp_path / "out", "--max-shift", 8) == 0
    assert calls[0].search.shift == 8
    np.testing.assert_allclose(calls[0].initial([(10, 20)]), [(5, 18)], atol=1e-6)


def test_rasters_of_two_reference_systems(tmp_path, monkeypatch, capsys):
    """No matrix leads from web Mercator to UTM over 60 km: A comes onto B's system, where it is found 2 pixels off."""
    rasterio = pytest.importorskip("rasterio")
    utm, mercator = rasterio.Affine(300, 0, 5e5, 0, -300, 5e6), rasterio.Affine(420, 0, -13026000, 0, -420, 5640000)
    image = RNG.integers(1, 256, (1, 200, 200), dtype=np.uint8)
    for name, transform, crs in (("a.tif", mercator, "EPSG:3857"), ("b.tif", utm, "EPSG:32611")):
        shape = {"width": 200, "height": 200, "count": 1, "dtype": "uint8"}
        with rasterio.open(tmp_path / name, "w", transform=transform, crs=crs, **shape) as dataset:
            dataset.write(image)

    def register(matcher, image_a, image_b, model, initial, **options):
        return found(compose(initial, Translation([[1, 0, 2], [0, 1, 0]])))

    monkeypatch.setattr("rrl_match.io.batch.register", register)
    assert run(tmp_path / "a.tif", tmp_path / "b.tif", "--out", tmp_path / "out") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["model"], record["transform"]["kind"], record["matrix"]) == ("affine", "local", None)
    np.testing.assert_allclose(record["map_offset"], (600, 0), atol=3)
    assert "no matrix leads from file to file" in record["notes"][0]
    places = np.array([(60, 50), (150, 60), (100, 150.0)])
    x, y = rasterio.warp.transform("EPSG:32611", "EPSG:3857", *(places.T * 300 * [[1], [-1]] + [[5e5], [5e6]]))
    in_a = np.stack([(np.array(x) + 13026000) / 420, (5640000 - np.array(y)) / 420], 1) - 0.5
    in_b = Transform.from_dict(record["transform"])(in_a)
    np.testing.assert_allclose(in_b - places, np.full((3, 2), (1.5, -0.5)), atol=0.01)
    with rasterio.open(tmp_path / "out" / "warped.tif") as warped:
        assert warped.crs.to_epsg() == 32611


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_real_pair(shared, tmp_path, capsys):
    a, b = (shared / "data" / "nir-naip" / "east" / f"2009_2009_{band}.jpg" for band in "ab")
    image = cv2.imread(str(b), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "b.png"), image[20:, 10:].astype(np.uint16) * 16 + 7000)
    assert run(a, tmp_path / "b.png", "--model", "similarity", "--out", tmp_path / "out") == 0
    record = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(record["matrix"], [[1, 0, -10], [0, 1, -20]], atol=3)
    warped = cv2.imread(str(tmp_path / "out" / "warped.png"))
    assert warped.shape == (704, 224, 3)
    expected = cv2.imread(str(a))[20:, 10:]
    inside = (slice(40, -40), slice(40, -40))
    blurred = [cv2.GaussianBlur(one, (0, 0), 3)[inside].ravel() for one in (warped, expected)]
    assert np.corrcoef(*blurred)[0, 1] > 0.95
