/* A fake libnvidia-ml.so.1: enough of NVML for nvidia-ml-py, with no GPU. Its whole state is the text file
 * named by FAKE_NVML_STATE, read again at each call. One line per GPU, in order of index:
 *     uuid|name|total_mib|used_mib|util|temp|milliwatt|ret|pid:MiB,pid:MiB|xid
 * An empty total, util, temp or milliwatt is "not supported", an empty MiB "not available"; a ret other than 0
 * is what every call about that GPU returns (15: lost). Directives, each on a line of its own:
 *     !driver 570.00   !init 18  (nvmlInitWithFlags returns 18)   !call 9  (every other call returns 9)
 *     !hang 3000       (each call takes 3000 ms, or until this line has gone)
 * No file: the driver is not loaded. A symbol that is not here does not exist, as in an old driver. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MIB (1ULL << 20)
enum { OK, UNINITIALIZED, BAD_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, TOO_SMALL, NO_DRIVER = 9, TIMEOUT,
       LOST = 15, NO_MEMORY = 20, BAD_VERSION = 25 };
enum { MAX_GPUS = 16, MAX_PROCESSES = 32, XID_EVENT = 8 };

typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_t;
typedef struct { char *uuid; } *device_t; /* points into `seen`: one for each UUID ever asked for */
typedef struct { unsigned long long delivered[MAX_GPUS]; int registered[MAX_GPUS]; } *events_t;
typedef struct {
    char uuid[96], name[96];
    long long total, used, util, temp, milliwatt; /* -1: empty */
    int ret, process_count;
    process_t processes[MAX_PROCESSES];
    unsigned long long xid;
} gpu_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { device_t device; unsigned long long type, data; unsigned gi, ci; } event_t;
typedef struct { char driver[80]; int init, call, hang_ms, count; gpu_t gpus[MAX_GPUS]; } state_t;

static struct { char *uuid; } seen[MAX_GPUS * 4];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int opened;

static void nap(int ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL); }

static void parse_gpu(char *line, gpu_t *gpu) {
    char *field[10] = {"", "", "", "", "", "", "", "", "", ""};
    for (int i = 0; i < 10 && line; i++) field[i] = strsep(&line, "|");
    snprintf(gpu->uuid, sizeof gpu->uuid, "%s", field[0]);
    snprintf(gpu->name, sizeof gpu->name, "%s", field[1]);
    long long *number[] = {&gpu->total, &gpu->used, &gpu->util, &gpu->temp, &gpu->milliwatt};
    for (int i = 0; i < 5; i++) *number[i] = *field[i + 2] ? atoll(field[i + 2]) : -1;
    gpu->ret = atoi(field[7]);
    for (char *list = field[8]; list && *list && gpu->process_count < MAX_PROCESSES;) {
        char *pid = strsep(&list, ","), *mib = strchr(pid, ':');
        unsigned long long used = mib && mib[1] ? strtoull(mib + 1, NULL, 10) * MIB : ~0ULL;
        gpu->processes[gpu->process_count++] = (process_t){(unsigned)atoi(pid), used, ~0U, ~0U};
    }
    gpu->xid = strtoull(field[9], NULL, 10);
}

static int load(state_t *state) {
    memset(state, 0, sizeof *state);
    snprintf(state->driver, sizeof state->driver, "570.00");
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "re") : NULL;
    if (!file) return NO_DRIVER;
    for (char line[4096]; fgets(line, sizeof line, file);) {
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "!driver %79s", state->driver) == 1 || sscanf(line, "!init %d", &state->init) == 1 ||
            sscanf(line, "!call %d", &state->call) == 1 || sscanf(line, "!hang %d", &state->hang_ms) == 1)
            continue;
        if (*line && *line != '!' && state->count < MAX_GPUS) parse_gpu(line, &state->gpus[state->count++]);
    }
    return fclose(file);
}

/* What every call does first: hang if it must, and say whether it may go on. */
static int enter(state_t *state) {
    int ret = load(state);
    for (int waited = 0; !ret && waited < state->hang_ms; waited += 10) nap(10), ret = load(state);
    return ret ? ret : !opened ? UNINITIALIZED : state->call;
}

static int enter_gpu(device_t device, state_t *state, gpu_t **gpu) {
    int ret = enter(state);
    if (ret) return ret;
    for (int i = 0; i < state->count; i++)
        if (!strcmp(state->gpus[i].uuid, device->uuid)) return *gpu = &state->gpus[i], (*gpu)->ret;
    return LOST;
}

static int handle_of(const gpu_t *gpu, device_t *device) {
    int slot = 0;
    pthread_mutex_lock(&lock);
    while (slot < MAX_GPUS * 4 - 1 && seen[slot].uuid && strcmp(seen[slot].uuid, gpu->uuid)) slot++;
    if (!seen[slot].uuid) seen[slot].uuid = strdup(gpu->uuid);
    pthread_mutex_unlock(&lock);
    *device = (device_t)&seen[slot];
    return gpu->ret;
}

static int put(long long value, unsigned *out) {
    return value < 0 ? NOT_SUPPORTED : (*out = (unsigned)value, OK);
}
static int text(char *out, unsigned size, const char *from) {
    return snprintf(out, size, "%s", from) < (int)size ? OK : TOO_SMALL;
}

/* Open a function: `state`, and in the second also `gpu`, are there from here on. */
#define ENTER state_t state; do { int ret = enter(&state); if (ret) return ret; } while (0)
#define ABOUT(device) \
    state_t state; gpu_t *gpu = NULL; \
    do { int ret = enter_gpu(device, &state, &gpu); if (ret) return ret; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    state_t state;
    int ret = enter(&state);
    (void)flags;
    if (ret == NO_DRIVER || state.init) return ret == NO_DRIVER ? ret : state.init;
    return opened++, OK;
}
int nvmlShutdown(void) { return opened ? (opened--, OK) : UNINITIALIZED; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error of the fake NVML"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { ENTER; return text(out, size, state.driver); }
int nvmlDeviceGetCount_v2(unsigned *out) { ENTER; return *out = (unsigned)state.count, OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *out) {
    ENTER;
    return index < (unsigned)state.count ? handle_of(&state.gpus[index], out) : BAD_ARGUMENT;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *out) {
    ENTER;
    for (int i = 0; i < state.count; i++)
        if (!strcmp(state.gpus[i].uuid, uuid)) return handle_of(&state.gpus[i], out);
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(device_t device, char *out, unsigned size) {
    ABOUT(device);
    return text(out, size, gpu->uuid);
}
int nvmlDeviceGetName(device_t device, char *out, unsigned size) {
    ABOUT(device);
    return text(out, size, gpu->name);
}
int nvmlDeviceGetMemoryInfo(device_t device, unsigned long long out[3]) { /* total, free, used */
    ABOUT(device);
    if (gpu->total < 0) return NOT_SUPPORTED;
    out[0] = gpu->total * MIB, out[1] = (gpu->total - gpu->used) * MIB, out[2] = gpu->used * MIB;
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(device_t device, memory_v2_t *out) {
    ABOUT(device);
    if (out->version != (sizeof *out | 2U << 24)) return BAD_VERSION;
    if (gpu->total < 0) return NOT_SUPPORTED;
    out->total = gpu->total * MIB, out->free = (gpu->total - gpu->used) * MIB;
    out->reserved = 0, out->used = gpu->used * MIB;
    return OK;
}
int nvmlDeviceGetUtilizationRates(device_t device, unsigned out[2]) {
    ABOUT(device);
    return out[1] = 0, put(gpu->util, out);
}
int nvmlDeviceGetTemperature(device_t device, int sensor, unsigned *out) {
    ABOUT(device);
    return sensor ? BAD_ARGUMENT : put(gpu->temp, out);
}
int nvmlDeviceGetPowerUsage(device_t device, unsigned *out) {
    ABOUT(device);
    return put(gpu->milliwatt, out);
}
int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, process_t *out) {
    ABOUT(device);
    unsigned room = *count, there = (unsigned)gpu->process_count;
    *count = there;
    if (there > room) return TOO_SMALL;
    if (there) memcpy(out, gpu->processes, there * sizeof *out);
    return OK;
}

/* Xid events: each xid that appears in the file after the GPU was registered is delivered once. */
int nvmlDeviceGetSupportedEventTypes(device_t device, unsigned long long *out) {
    ABOUT(device);
    return *out = XID_EVENT, OK;
}
int nvmlEventSetCreate(events_t *out) { ENTER; return (*out = calloc(1, sizeof **out)) ? OK : NO_MEMORY; }
int nvmlEventSetFree(events_t set) { return free(set), OK; }
int nvmlDeviceRegisterEvents(device_t device, unsigned long long types, events_t set) {
    ABOUT(device);
    if (types != XID_EVENT) return NOT_SUPPORTED;
    set->registered[gpu - state.gpus] = 1, set->delivered[gpu - state.gpus] = gpu->xid;
    return OK;
}
int nvmlEventSetWait_v2(events_t set, event_t *out, unsigned ms) {
    for (unsigned waited = 0;; waited += 10, nap(10)) {
        ENTER;
        for (int i = 0; i < state.count; i++) {
            if (!set->registered[i] || state.gpus[i].xid == set->delivered[i]) continue;
            if (!(set->delivered[i] = state.gpus[i].xid)) continue;
            handle_of(&state.gpus[i], &out->device);
            return out->type = XID_EVENT, out->data = state.gpus[i].xid, out->gi = out->ci = ~0U, OK;
        }
        if (waited >= ms) return TIMEOUT;
    }
}
