import pytest

from counterflow.data.gene_sets import read_gmt
from counterflow.errors import DataError


def test_a_gmt_file_is_read_whatever_its_line_ends(tmp_path):
    file = tmp_path / "pathways.gmt"
    file.write_bytes(b"ONE\thttp://x\tA\tB\tA\t\r\n\r\nTWO\t\tC\tB\r\n")
    assert read_gmt(file) == {"ONE": ("A", "B"), "TWO": ("C", "B")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ONE\tdescription\n", "line 1.*separated by tabs"),
        (b"ONE A B\n", "line 1"),
        (b"ONE\tx\tA\nONE\tx\tB\n", "line 2: the set 'ONE' is there twice"),
        (b"\n\n", "holds no gene sets"),
        (b"\x1f\x8b\xff", "not text"),
    ],
)
def test_what_is_not_a_gmt_file_is_said(content, message, tmp_path):
    (tmp_path / "bad.gmt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_gmt(tmp_path / "bad.gmt")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="cannot read the gene sets in .*absent.gmt.*No such file"):
        read_gmt(tmp_path / "absent.gmt")
