import json

from match_candidates import main


def test_few_candidates_are_all_scored(weights_folder, benchmark_file, tmp_path, capsys):
    """Of few patches all candidates are scored, so that both ways give the same."""
    out = tmp_path / "figures.json"
    main(["--weights", str(weights_folder), "--benchmark", str(benchmark_file), "--save", str(out)])
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert (row["locations"], row["precision"], row["recall"]) == (12, row["precision_of_all"], row["recall_of_all"])
    assert row["times_as_fast"] > 0
    assert "locations 12" in capsys.readouterr().out
