"""The parts of `make test-gpu`: a whole Chimera on real NVIDIA GPUs, a CUDA program in the place of Ollama's runner.

Read in this order. `row` is a row of the table, and the page made of them: pure. `judge` says what the reports of the
CUDA programs, NVML's lists and the admin API's answers add up to: pure. `launcher` is Chimera with one thing added:
Xids that are written to a file reach it as if the driver had reported them. `stage` runs it, looks and waits; `checks`
are the rows, in order.

Nothing here needs Ollama or a model. The programs allocate some hundred MiB and compute nothing.
"""
