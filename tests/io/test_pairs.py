"""Lists of pairs: what is read of them, and which are refused."""

import pytest

from rrl_match import DataError
from rrl_match.io.pairs import read_pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns image_a, image_b"),
        ("image_a,image_b\n", "must have a row for each pair"),
        ("a,b\nx,y\n", "lacks the columns image_a, image_b, got: 'a,b'"),
        ("image_a,image_b\nx.png,\n", "line 2: image_a or image_b is empty"),
        ("image_a,image_b\nx.png,y.png\nx.png,y.png\n", "line 3: a second pair is called 'x_y'"),
        ("image_a,image_b,name\nx.png,y.png,../z\n", "line 2: '../z' cannot be the name of a folder"),
        ("image_a,image_b,name\nx.png,y.png,/z\n", "line 2: '/z' cannot be the name of a folder"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(DataError, match=r"pairs\.csv") as caught:
        read_pairs(tmp_path / "pairs.csv")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage_a;image_b;mask_b\r\nx.png;sub/y.png;m.png\r\n",
        "image_a, image_b , mask_b\nx.png, sub/y.png, m.png\n",
        "Image_A\tIMAGE_B\tmask_b\nx.png\tsub/y.png\tm.png\n",
        '# two cameras\n\nimage_a,image_b,mask_b\n# the first\nx.png,"sub/y.png",m.png\n\n',
    ],
)
def test_list_as_programs_write_it(tmp_path, text):
    (tmp_path / "pairs.csv").write_bytes(text.encode())
    (pair,) = read_pairs(tmp_path / "pairs.csv")
    assert pair == ("x_y", tmp_path / "x.png", tmp_path / "sub" / "y.png", None, tmp_path / "m.png")


def test_list_in_latin_1_is_told_with_its_line(tmp_path):
    (tmp_path / "pairs.csv").write_bytes("image_a,image_b\nx.png,y.png\nK\u00f6ln.png,y.png\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"pairs\.csv, line 3: not encoded in UTF-8"):
        read_pairs(tmp_path / "pairs.csv")
