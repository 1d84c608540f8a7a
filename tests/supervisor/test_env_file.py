"""The `.env` file: read as everybody's tools do, each line that is none named by its number and never repeated."""

from pathlib import Path

import pytest

from supervisor.env_file import read_dotenv


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n\n", {}),
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ("A=\n", {"A": ""}),
        ("export A=1", {"A": "1"}),
        ("A='x # y'\nB=x # y\n", {"A": "x # y", "B": "x"}),
        ('A="a\\nb"\n', {"A": "a\nb"}),
        ("  A = 1  \n", {"A": "1"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("A=${HOME}\n", {"A": "${HOME}"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=x=y\n", {"A": "x=y"}),
    ],
)
def test_a_dotenv_is_read_as_everybodys_tools_do(tmp_path: Path, text: str, values: dict[str, str]) -> None:
    (tmp_path / ".env").write_text(text, encoding="utf-8", newline="")
    assert read_dotenv(tmp_path / ".env") == (values, ())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A=1\nhunter2\n", "line 2: this is not NAME=VALUE"),
        ("\n\n  \nhunter2\n", "line 4: this is not NAME=VALUE"),
        ("A B=hunter2\n", "line 1: this is not NAME=VALUE"),
        ("1 = hunter2 3\n=hunter2", "line 2: this is not NAME=VALUE"),
        ("# c\nTOKEN='hunter2\n", "line 2: TOKEN: this is not NAME=VALUE"),
        ("NAME 8000\n", "line 1: this is not NAME=VALUE"),
    ],
)
def test_a_line_that_is_none_is_named_by_its_number_and_never_repeated(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / ".env"
    path.write_text(text, encoding="utf-8")
    assert fault in "\n".join(read_dotenv(path)[1])
    assert "hunter2" not in str(read_dotenv(path)[1])


def test_no_dotenv_is_no_fault_and_an_unreadable_one_is_a_line(tmp_path: Path) -> None:
    assert read_dotenv(tmp_path / "none") == ({}, ())
    assert read_dotenv(tmp_path)[1][0].startswith(f"{tmp_path}: cannot be read: ")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert read_dotenv(tmp_path / "binary")[1][0].startswith(f"{tmp_path}/binary: cannot be read: ")
