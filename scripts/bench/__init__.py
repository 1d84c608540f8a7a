"""What `make bench` measures: Chimera next to what people would use instead, in one run on one machine.

`haproxy` runs the peer, `conversations` the measurement; `scripts/bench.py` is the command.
"""
