"""A runner that takes memory on a real GPU: run by fake_ollama.py in place of its own (FAKE_OLLAMA_RUNNER).

It asks the CUDA driver (libcuda.so.1, the driver API alone) which devices it can see, allocates CUDA_RUNNER_MIB
(512) on the first, appends one line of JSON to the file named by CUDA_RUNNER_REPORT, and waits for its end:

    {"pid": 7, "worker": "w1", "visible": "GPU-…", "uuids": ["GPU-…"], "error": null}

`worker` is the id in CHIMERA_WORKER, `visible` is CUDA_VISIBLE_DEVICES. No device to be seen is no error: that is what
a worker on the CPU must meet. Standard library only.
"""

import ctypes
import json
import os
import signal
import uuid
from pathlib import Path

# Source: cuda.h, CUresult.
CUDA_SUCCESS, CUDA_ERROR_NO_DEVICE = 0, 100
MIB = 1024**2
# Like the fake's own runner: a failed test does not leave it for ever.
LIFE_S = 900


class CudaError(Exception):
    """A call of the CUDA driver failed; the text says which and how."""


def call(cuda: ctypes.CDLL, name: str, *arguments: object) -> int:
    """Call a function; return CUDA_SUCCESS or CUDA_ERROR_NO_DEVICE. Raises CudaError for any other result."""
    result = int(getattr(cuda, name)(*arguments))
    if result not in (CUDA_SUCCESS, CUDA_ERROR_NO_DEVICE):
        raise CudaError(f"{name} returned {result}")
    return result


def uuids_of(cuda: ctypes.CDLL, prefix: str) -> list[str]:
    """The devices that this process can see, as NVML writes them. Raises CudaError."""
    if call(cuda, "cuInit", ctypes.c_uint(0)) == CUDA_ERROR_NO_DEVICE:
        return []
    count = ctypes.c_int()
    call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    # the second version tells a MIG device's own UUID; drivers before 11.4 do not have it
    getter = "cuDeviceGetUuid_v2" if hasattr(cuda, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    found: list[str] = []
    for ordinal in range(count.value):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        call(cuda, getter, ctypes.byref(raw), device)
        found.append(f"{prefix}-{uuid.UUID(bytes=bytes(raw))}")
    return found


def allocate(cuda: ctypes.CDLL, size_bytes: int) -> None:
    """Take memory on the first device, for as long as this process lives. Raises CudaError."""
    device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_ulonglong()
    call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call(cuda, "cuCtxSetCurrent", context)
    call(cuda, "cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))


def main() -> None:
    """Look, allocate, report, wait."""
    signal.alarm(LIFE_S)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    uuids: list[str] = []
    error = None
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        uuids = uuids_of(cuda, "MIG" if (visible or "").startswith("MIG-") else "GPU")
        if uuids:
            allocate(cuda, int(os.environ.get("CUDA_RUNNER_MIB", "512")) * MIB)
    except (OSError, AttributeError, CudaError) as failure:  # no library; a function that it lacks; a refused call
        error = str(failure)
    worker = os.environ.get("CHIMERA_WORKER", "").rpartition("/")[2]
    report = {"pid": os.getpid(), "worker": worker, "visible": visible, "uuids": uuids, "error": error}
    with Path(os.environ["CUDA_RUNNER_REPORT"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(report) + "\n")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
