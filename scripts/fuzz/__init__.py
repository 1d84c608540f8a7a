"""make fuzz: what tries Chimera with input that nobody would send on purpose. `python -m scripts.fuzz --help`.

`parsers` tries what reads bytes, in this process; `published` tries the published OpenAPI document against a running
Chimera, and `wire` raw bytes on its port (`stage` has that Chimera, and looks that nothing is left after each batch).
All three count in a `tally`. What was interesting is kept in tests/corpus (`corpus`), and tried anew by `make check`.
"""
