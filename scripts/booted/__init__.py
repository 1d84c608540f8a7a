"""The parts of `make test-systemd`: a real systemd in a container, and Chimera installed in it as a service.

Read in this order. `machine` boots systemd over an overlay of this machine's own file system, which keeps nothing;
`traffic` asks twenty times a second and tells what became of each request; `checks` are the rows, in order.

The container has this machine's network, and uses its loopback only.
"""
