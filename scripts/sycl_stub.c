/* Stands in for libollama-ggml-sycl.so, whose own build needs a GPU stack and aborts without one.
 * Ollama's libraries ask it for three things; the answers say that there is no such device, so that
 * everything is computed on the CPU. scripts/embedded.py compiles it, without the C library. */
#include <stddef.h>

void *ggml_backend_sycl_reg(void) { return NULL; }

void *ggml_backend_sycl_init(int device) {
    (void)device;
    return NULL;
}

void ggml_backend_sycl_get_device_name(int device, char *name, size_t size) {
    (void)device;
    if (size > 0)
        name[0] = '\0';
}
