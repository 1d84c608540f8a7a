"""What `make bench` measures: Chimera next to what people would use instead, in one run on one machine.

`worker` is a worker of known speed, `workers` starts some, `load` asks over many connections and checks every answer,
`accounts` reads what processes have cost. `peers` starts what stands between: nothing, nginx, `haproxy`, a `plain`
proxy, Chimera. Each measurement is a module of its own whose `measure` leaves a `measurement.Record`, with the
`machine` it was made on. `python -m scripts.bench` is the command.
"""
