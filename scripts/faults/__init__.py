"""The parts of `make test-faults`: what is done to a running Chimera, and how what follows is measured.

Read in this order. `row` is what is known of one fault in the end, and whether a promise was broken: pure.
`load` keeps clients asking and checks each answer to its end. `machine` is what a fault needs of Linux: memory
cgroups, a full disk, a shifted clock; `driver` is the fake NVIDIA driver. `scenario` says what a scenario is, with
the times that all share: pure. `stage` is one Chimera with its load, and the verbs that act and look; `trial` adds
the whole course, and the verbs that hold Chimera to a promise. `processes`, `starts` and `gpus` are the scenarios,
and `run` carries them out and prints the table.

All of it looks at Chimera from outside: HTTP, events, files and /proc.
"""
