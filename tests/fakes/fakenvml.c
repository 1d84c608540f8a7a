/* A fake libnvidia-ml.so.1: enough of NVML for nvidia-ml-py, with no GPU. Its whole state is the text file
 * named by FAKE_NVML_STATE, read again at each call. One line per GPU, in order of index:
 *     uuid|name|total_mib|used_mib|util|temp|milliwatt|ret|pid:MiB,pid:MiB|xid|throttle|remap|recovery|ecc|mig
 * An empty number is "not supported", an empty MiB "not available"; a ret other than 0 is what every call about
 * that GPU returns (15: lost). The last five may be left out: clock event reasons (decimal), whether row remaps
 * are pending, field 230, uncorrected ECC errors, MIG mode (0, 1, or empty). A line whose mig is a GPU's UUID is
 * a MIG device of that GPU. Directives, each on a line of its own:
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
enum { MAX_GPUS = 32, MAX_PROCESSES = 32, MAX_SEEN = 128 };
enum { ECC_EVENT = 2, XID_EVENT = 8, RECOVERY_EVENT = 0x8000, EVENTS = 3, RECOVERY_FIELD = 230 };

typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_t;
typedef struct { char *uuid; } *device_t; /* points into `seen`: one for each UUID ever asked for */
typedef struct { unsigned long long types; long long told[EVENTS]; } watch_t;
typedef struct { watch_t watched[MAX_SEEN]; } *events_t; /* by place in `seen` */
typedef struct {
    char uuid[96], name[96], mig[96];
    long long total, used, util, temp, milliwatt, throttle, remap, recovery, ecc; /* -1: empty */
    int ret, process_count;
    process_t processes[MAX_PROCESSES];
    unsigned long long xid;
} gpu_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned id, scope; long long at, latency; unsigned type; int ret; unsigned long long value; } field_t;
typedef struct { device_t device; unsigned long long type, data; unsigned gi, ci; } event_t;
typedef struct { char driver[80]; int init, call, hang_ms, count; gpu_t gpus[MAX_GPUS]; } state_t;

static struct { char *uuid; } seen[MAX_SEEN];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int opened;

static void nap(int ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL); }

static void parse_gpu(char *line, gpu_t *gpu) {
    char *field[15] = {"", "", "", "", "", "", "", "", "", "", "", "", "", "", ""};
    for (int i = 0; i < 15 && line; i++) field[i] = strsep(&line, "|");
    snprintf(gpu->uuid, sizeof gpu->uuid, "%s", field[0]);
    snprintf(gpu->name, sizeof gpu->name, "%s", field[1]);
    long long *number[] = {&gpu->total, &gpu->used, &gpu->util, &gpu->temp, &gpu->milliwatt};
    for (int i = 0; i < 5; i++) *number[i] = *field[i + 2] ? atoll(field[i + 2]) : -1;
    long long *more[] = {&gpu->throttle, &gpu->remap, &gpu->recovery, &gpu->ecc};
    for (int i = 0; i < 4; i++) *more[i] = *field[i + 10] ? atoll(field[i + 10]) : -1;
    snprintf(gpu->mig, sizeof gpu->mig, "%s", field[14]);
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
    while (slot < MAX_SEEN - 1 && seen[slot].uuid && strcmp(seen[slot].uuid, gpu->uuid)) slot++;
    if (!seen[slot].uuid) seen[slot].uuid = strdup(gpu->uuid);
    pthread_mutex_unlock(&lock);
    *device = (device_t)&seen[slot];
    return gpu->ret;
}

static int is_mig(const gpu_t *gpu) { return !!strchr(gpu->mig, '-'); }
/* The index-th GPU for `parent` NULL, else that GPU's index-th MIG device. */
static int nth(const state_t *state, const char *parent, unsigned index, device_t *out) {
    for (int i = 0; i < state->count; i++) {
        const gpu_t *gpu = &state->gpus[i];
        if ((parent ? !strcmp(gpu->mig, parent) : !is_mig(gpu)) && !index--) return handle_of(gpu, out);
    }
    return parent ? NOT_FOUND : BAD_ARGUMENT;
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
    return __atomic_add_fetch(&opened, 1, __ATOMIC_SEQ_CST), OK;
}
int nvmlShutdown(void) {
    if (!opened) return UNINITIALIZED;
    return __atomic_sub_fetch(&opened, 1, __ATOMIC_SEQ_CST), OK;
}
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error of the fake NVML"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { ENTER; return text(out, size, state.driver); }
int nvmlDeviceGetCount_v2(unsigned *out) {
    ENTER;
    for (int i = *out = 0; i < state.count; i++) *out += !is_mig(&state.gpus[i]);
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *out) { ENTER; return nth(&state, NULL, index, out); }
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

int nvmlDeviceGetCurrentClocksEventReasons(device_t device, unsigned long long *out) {
    ABOUT(device);
    return gpu->throttle < 0 ? NOT_SUPPORTED : (*out = (unsigned long long)gpu->throttle, OK);
}
int nvmlDeviceGetRemappedRows(device_t device, unsigned *corrected, unsigned *not, unsigned *pending, unsigned *failed) {
    ABOUT(device);
    *corrected = *not = *failed = 0;
    return put(gpu->remap, pending);
}
int nvmlDeviceGetFieldValues(device_t device, int count, field_t *values) {
    ABOUT(device);
    for (int i = 0; i < count; i++) {
        values[i].ret = values[i].id == RECOVERY_FIELD && gpu->recovery >= 0 ? OK : NOT_SUPPORTED;
        values[i].value = values[i].ret ? 0 : (unsigned long long)gpu->recovery;
    }
    return OK;
}
int nvmlDeviceGetTotalEccErrors(device_t device, int uncorrected, int aggregate, unsigned long long *out) {
    ABOUT(device);
    if (gpu->ecc < 0) return NOT_SUPPORTED;
    return *out = uncorrected && !aggregate ? (unsigned long long)gpu->ecc : 0, OK;
}
int nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending) {
    ABOUT(device);
    if (!*gpu->mig || is_mig(gpu)) return NOT_SUPPORTED;
    return *current = *pending = (unsigned)atoi(gpu->mig), OK;
}
int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *out) { ABOUT(device); return *out = 7, OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *out) {
    ABOUT(device);
    return nth(&state, gpu->uuid, index, out);
}

/* Events: what changes in the file after the GPU was registered is told once: another Xid, more ECC errors,
 * another recovery action. When all is told, waiting on a lost GPU says so. */
static void events_of(const gpu_t *gpu, long long now[EVENTS]) {
    now[0] = (long long)gpu->xid, now[1] = gpu->ecc, now[2] = gpu->recovery;
}
static const unsigned long long event_types[EVENTS] = {XID_EVENT, ECC_EVENT, RECOVERY_EVENT};

int nvmlDeviceGetSupportedEventTypes(device_t device, unsigned long long *out) {
    ABOUT(device);
    return *out = XID_EVENT | (gpu->ecc < 0 ? 0 : ECC_EVENT) | (gpu->recovery < 0 ? 0 : RECOVERY_EVENT), OK;
}
int nvmlEventSetCreate(events_t *out) { ENTER; return (*out = calloc(1, sizeof **out)) ? OK : NO_MEMORY; }
int nvmlEventSetFree(events_t set) { return free(set), OK; }
int nvmlDeviceRegisterEvents(device_t device, unsigned long long types, events_t set) {
    ABOUT(device);
    unsigned long long known = 0;
    nvmlDeviceGetSupportedEventTypes(device, &known);
    if (is_mig(gpu) || types & ~known) return NOT_SUPPORTED;
    watch_t *watch = &set->watched[(char **)device - &seen[0].uuid];
    return watch->types = types, events_of(gpu, watch->told), OK;
}
int nvmlEventSetWait_v2(events_t set, event_t *out, unsigned ms) {
    for (unsigned waited = 0;; waited += 10, nap(10)) {
        ENTER;
        int lost = 0;
        for (int i = 0; i < state.count; i++) {
            handle_of(&state.gpus[i], &out->device);
            watch_t *watch = &set->watched[(char **)out->device - &seen[0].uuid];
            long long now[EVENTS];
            events_of(&state.gpus[i], now);
            for (int kind = 0; kind < EVENTS; kind++) {
                if (!(watch->types & event_types[kind]) || now[kind] == watch->told[kind]) continue;
                int news = kind == 2 || now[kind] > (kind == 1 ? watch->told[kind] : 0);
                watch->told[kind] = now[kind];
                if (!news) continue;
                out->data = kind == 0 ? (unsigned long long)now[kind] : 0;
                return out->type = event_types[kind], out->gi = out->ci = ~0U, OK;
            }
            lost |= watch->types && state.gpus[i].ret == LOST;
        }
        if (lost) return LOST;
        if (waited >= ms) return TIMEOUT;
    }
}
