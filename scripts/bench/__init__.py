"""What `make bench` measures: Chimera next to what people would use instead, in one run on one machine.

`worker` is a worker of known speed (`answers` it gives, `jobs` it has, `worker_http` and `worker_connections`), and
`workers` starts some. `load` says what is asked over how many connections, `load_run` does it in a process of its own
and checks every answer (`reader`); `accounts` reads what processes have cost. `peer` is what all sides have in common,
`peers` are those that stand between: nothing, nginx, `haproxy`, a `plain` proxy, Chimera; `guests` come where they are
asked for. All of them run at once on a `stage`. Each measurement (`cost`, `growth`, `saturation`, `makespan`,
`conversations`, `kills`, `memory`, `decision`) is a module of its own whose `measure` leaves a `measurement.Record`,
with the `machine` it was made on.

`report` makes a page of the records: a `section` for each (`proxy_sections`, `fleet_sections`) with tables (`markdown`)
and pictures (`charts`, `plot`, written by `svg`), the verdicts on the `criteria`, and the `summary` in the project's
README. `python -m scripts.bench` is the command.
"""
