/* A fake libcuda.so.1: enough of the CUDA driver API for cuda_runner.py, with no GPU. CUDA_VISIBLE_DEVICES must be a
 * GPU's or MIG device's UUID, which is then the only device, or -1. If FAKE_CUDA_SHOWS names a UUID, that GPU is seen whatever
 * CUDA_VISIBLE_DEVICES says: a pin that does not hold. Memory is not counted here: the fake Ollama's FAKE_NVML_STATE
 * shows what its runner takes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK, INVALID_VALUE, NO_DEVICE = 100 };

static const char *device_uuid(void) {
    const char *shows = getenv("FAKE_CUDA_SHOWS"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    const char *name = shows && *shows ? shows : visible;
    return name && (!strncmp(name, "GPU-", 4) || !strncmp(name, "MIG-", 4)) ? name + 4 : NULL;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : device_uuid() ? OK : NO_DEVICE; }
int cuDeviceGetCount(int *out) { return *out = device_uuid() ? 1 : 0, OK; }
int cuDeviceGet(int *out, int ordinal) { return ordinal ? INVALID_VALUE : (*out = 0, OK); }
int cuDeviceGetUuid_v2(unsigned char out[16], int device) {
    const char *text = device_uuid();
    int count = 0;
    for (; !device && text && count < 16 && *text; text += *text == '-') {
        unsigned byte;
        if (sscanf(text, "%2x", &byte) != 1) break;
        out[count++] = (unsigned char)byte, text += 2;
    }
    return count == 16 ? OK : INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **out, int device) { return device ? INVALID_VALUE : (*out = out, OK); }
int cuCtxSetCurrent(void *context) { return context ? OK : INVALID_VALUE; }
int cuMemAlloc_v2(unsigned long long *out, size_t size) { return size ? (*out = 1, OK) : INVALID_VALUE; }
