"""The supervisor: launches one `ollama serve` per wanted worker, watches it, heals it, and says what it did.

The map: `cli` is the `chimera` command, `config` the settings, `__main__` the root that wires everything and the
only file that knows the gateway. `fleet` has the wanted fleet and one task per worker; `worker` is that task, the
sole writer of one worker's state; `lifecycle` its table of states, `restart` its back-off, `health` what probes
add up to, `placement` which GPU it gets, `command` what is run. `process` starts, watches and ends a process group;
`sweep` ends what a former run left; `probe` asks workers over HTTP, by `ask` what is asked often; `usage` says what
their processes use, read from /proc by `procs`, `memory` how that grows, `oom` whether the kernel ended one for want
of it; `cgroup` gives each worker its own where systemd lets us; `store` brings in models through the primary;
`embedded` and `locate` find the ollama to run; `wanted` is the fleet on disk, `lock` the state directory's lock,
`events` what happened.

GPUs: `gpu` reads them each second by `nvml`, `gpu_events` hears what the driver reports at once; both speak in the
values of `gpu_reading`. `gpu_health` adds them up, one `gpu_state` per GPU, with the table in `xid`, into orders:
quarantine, release, restart the workers, tell the operator.

The supervisor never imports the gateway. What it needs of it are the protocols `worker.Leases` and
`fleet.FleetSize`.
"""
