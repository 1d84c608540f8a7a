"""The supervisor: launches one `ollama serve` per wanted worker, watches it, heals it, and says what it did.

The map. `__main__` is the root: it says in which order everything goes up and down. What is tried and refused before
that is in `root_refusals`, what each setting is to the gateway in `root_gateway`; these three know both packages,
nobody else does. `supervision` wires the supervisor's own parts; a task runs `alongside` what needs it.

Settings: `config` has them, typed. `config_values` reads the text of one (`domains` the host names in it),
`config_load` brings all together with every fault, `config_text` writes them down again; `env_file` is where commands
get them from.

Commands: `cli` is `chimera` itself, `cli_fleet` shows and orders a running one, `cli_keys` its API keys, both by way of
`admin_client`; `cli_faults` is how each tells what is wrong, `background` starts one that outlives its terminal.

Workers: `fleet` has the wanted fleet and one task per worker; `worker` is that task, `life` what it does with one
process, `standing` what is known of a worker and wanted of it, `lifecycle` its table of states, `restart` its back-off
and the fleet's restart budget. `house` is what all workers share; the `primary` is the one that has the store, and no
leases.

A process: `command` is what is run, `process` starts, watches and ends its group, `worker_log` is what it writes,
`ports` where it listens, `cgroup` gives each worker its own where systemd lets us; `sweep` ends what a former run left,
`strays` what holds a GPU though nobody has it.

A process that runs is looked after by `watch`, as the ladder of `health` says; `watched` is what of it is seen there,
`placed` whether it computes where it should, `runner` whether its runner is there, `proof` whether it still gives
tokens; `trouble` tells people what is wrong, in the form of `words`.

What is asked: `probe` asks workers over HTTP, by `ask` what is asked often, on the `beat` that all workers share;
`usage` says what their processes use, read from /proc by `procs`, `memory` how that grows, `oom` whether the kernel
ended one for want of it.

GPUs: `gpu` reads them each second by `nvml`, `gpu_events` hears what the driver reports at once; both speak in the
values of `gpu_reading`. `gpu_health` adds them up, one `gpu_state` per GPU, with the table in `xid`, into orders:
quarantine, release, restart the workers, tell the operator. `ward` owns that verdict and tells the fleet; `placement`
says which GPU the next worker gets.

New settings while it runs: `change` is what they change, as a plan, `reload` takes it, `roll` restarts workers one
after the other; `news` is the word from one to another, `orders` what signals ask for. As a service: `service` is what
systemd is told, by `notify`; `activation` takes the sockets that it holds for us, `comeback` waits after failed starts,
`unit_files` is what of the units follows from the settings, `cli_service` the commands for all that. `tls` says what is
wrong with the gateway's certificate, and has our own commands trust it; `certificate` takes its renewals.

`store` brings in models through the primary; `embedded` and `locate` find the ollama to run; `wanted` is on disk what
the operator asked for, each file of the kind a `state_file`; `lock` is the state directory's lock, `events` what
happened; `operator` and `show` are what people see (`output`: where there is no room for it).

Logs: `logs` is the form of all lines, `journal` that of systemd's journal; `lines` takes those of each request without
waiting for a disk, `logfiles` writes them; `notes` tells in a worker's own log which request it was given. `log_keeper`
keeps all log files together within their bound, by the rules of `rotation`.

What is wrong here: `cli_doctor` is the command, `examine` how its checks are carried out, `examine_machine` and
`examine_service` what they read, `doctor_machine` and `doctor_service` what is made of it, in the form of `doctor`.

Outside the root, what the supervisor needs of the gateway are the protocols `house.Leases` and `fleet.FleetSize`.
"""
