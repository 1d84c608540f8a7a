"""Makes the repository's own packages, `tests.fakes` and `scripts` importable from every test."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
