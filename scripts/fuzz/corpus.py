"""The corpus: small files in tests/corpus, one input each, in a folder per target. Inputs are bytes.

Kept by hand: what `make fuzz` finds it writes beside its report, and an input that taught something is put here under
a name that says what, so that every `make check` tries it again.
"""

import os
from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "corpus"
# Where an input is kept whose try does not come back: a hang leaves no other trace.
UNDER_WAY = "under-way.bin"

# What breaks parsers: ends of ranges, half characters, brackets, separators, numbers that are none.
TOKENS = (
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\r\n", b"\n", b"\t", b" ", b":",
    b",", b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b"[[[[[[[[", b"null", b"true", b"NaN", b"-Infinity", b"1e999",
    b"-0", b"0", b"18446744073709551616", b"9" * 400, b"0x10", b"1_0", b"+1", b"%", b"%00", b"%2e%2e/", b"..", b"/",
    b"//", b"?", b"#", b"\xc2\x85", b"\xe2\x80\xa8", b"\xc5\xbf", b"\xe2\x84\xaa", b";", b"=", b"chunked",
    b"identity", b"keep-alive",
)  # fmt: skip


def kept(target: str) -> list[tuple[str, bytes]]:
    """Return the corpus of a target: names and inputs, in the order of the names."""
    folder = CORPUS / target
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def mutated(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return samples with a few changes: bytes flipped, cut out, doubled, moved, tokens put in, two samples spliced."""

    @st.composite
    def made(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(samples)))
        for _ in range(draw(st.integers(1, 6))):
            at = draw(st.integers(0, len(data)))
            upto = min(len(data), at + draw(st.sampled_from([0, 1, 2, 4, 8, 32, 256])))
            match draw(st.integers(0, 5)):
                case 0:
                    data[at:upto] = draw(st.sampled_from(TOKENS))
                case 1:
                    data[at:upto] = b""
                case 2:
                    data[at:at] = data[at:upto] * draw(st.sampled_from([1, 2, 16, 100]))
                case 3 if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
                case 4:
                    data[at:upto] = draw(st.binary(max_size=8))
                case _:
                    data[at:] = draw(st.sampled_from(samples))[at:]
        return bytes(data[:16384])

    return made()


class Notebook:
    """Where inputs are written that are being tried or were found; one per process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = os.open(folder / UNDER_WAY, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)

    def trying(self, target: str, data: bytes) -> None:
        """Write down what is tried now: a process that hangs or dies leaves it behind. Cheap: it stays in the cache."""
        os.pwrite(self._file, target.encode() + b"\n" + data, 0)
        os.ftruncate(self._file, len(target) + 1 + len(data))

    def found(self, target: str, data: bytes) -> Path:
        """Keep an input; return its file."""
        folder = self.folder / target
        folder.mkdir(exist_ok=True)
        path = folder / f"found-{len(list(folder.iterdir())) + 1}.bin"
        path.write_bytes(data)
        return path

    def close(self) -> None:
        """Close it; nothing is under way any more."""
        os.close(self._file)
        (self.folder / UNDER_WAY).unlink(missing_ok=True)
