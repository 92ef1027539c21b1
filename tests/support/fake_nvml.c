/* Stands for libnvidia-ml.so.1, and for libcuda.so.1, of a machine that the file $FAKE_NVML describes, a line for each:
 *
 *   init CODE                                 what nvmlInit returns
 *   sleep SECONDS                             how long it takes
 *   old                                       a driver without the second version of the memory's layout
 *   gpu UUID|NAME|TOTAL|FREE|USED|BUSY|TEMPERATURE|MILLIWATTS|MIG      -1: not supported
 *   lost                                      a GPU that gives no handle
 *   mig UUID|NAME|TOTAL|FREE|USED             an instance of the GPU before
 *   capability MAJOR MINOR                    of the device before; without such a line it is not told
 *   process PID BYTES                         on the device before; -1: not told
 *   cuda UUID                                 a device in CUDA's order
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; } Process;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct Device {
    char uuid[96], name[96];
    long long total, free, used, busy, temperature, milliwatts;
    int is_mig_enabled, is_lost, parent, major, minor;
    unsigned processes;
    Process process[64];
} Device;

static Device devices[32];
static int device_count, users, init_code, is_old, cuda_count;
static char cuda_uuids[16][96];
enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9, NO_FUNCTION = 13, LOST = 15,
       OTHER_VERSION = 25 };

static double read_machine(void) {
    char line[512];
    double seconds = 0;
    FILE *file = getenv("FAKE_NVML") ? fopen(getenv("FAKE_NVML"), "r") : NULL;
    device_count = is_old = cuda_count = 0;
    init_code = file ? OK : NOT_LOADED;
    while (file && fgets(line, sizeof line, file)) {
        Device *new = &devices[device_count], *last = new - 1;
        memset(new, 0, sizeof *new);
        new->parent = -1;
        new->busy = new->temperature = new->milliwatts = -1;
        u64 bytes;
        unsigned pid;
        if (sscanf(line, "gpu %95[^|]|%95[^|]|%lld|%lld|%lld|%lld|%lld|%lld|%d", new->uuid, new->name, &new->total,
                   &new->free, &new->used, &new->busy, &new->temperature, &new->milliwatts, &new->is_mig_enabled) == 9)
            device_count++;
        else if (!strncmp(line, "lost", 4))
            devices[device_count++].is_lost = 1;
        else if (sscanf(line, "mig %95[^|]|%95[^|]|%lld|%lld|%lld", new->uuid, new->name, &new->total, &new->free,
                        &new->used) == 5) {
            new->parent = device_count - 1;
            while (devices[new->parent].parent >= 0) new->parent--;
            device_count++;
        } else if (sscanf(line, "process %u %lld", &pid, (long long *)&bytes) == 2)
            last->process[last->processes++] = (Process){pid, bytes, 0, 0};
        else if (sscanf(line, "capability %d %d", &new->major, &new->minor) == 2)
            last->major = new->major, last->minor = new->minor;
        else if (sscanf(line, "cuda %95s", cuda_uuids[cuda_count]) == 1)
            cuda_count++;
        else if (!strncmp(line, "old", 3))
            is_old = 1;
        else
            (void)(sscanf(line, "init %d", &init_code) || sscanf(line, "sleep %lf", &seconds));
    }
    if (file) fclose(file);
    return seconds;
}

int nvmlInit_v2(void) {
    if (users == 0) usleep((unsigned)(read_machine() * 1e6));
    if (init_code == OK) users++;
    return init_code;
}
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return users > 0 ? (users--, OK) : 1; }
const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "Some Error"; }

static int nth(int parent, unsigned index, Device **found) {
    for (int i = 0; i < device_count; i++)
        if (devices[i].parent == parent && index-- == 0) return *found = &devices[i], devices[i].is_lost ? LOST : OK;
    return NOT_FOUND;
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    Device *ignored;
    for (*count = 0; nth(-1, *count, &ignored) != NOT_FOUND; ++*count) ;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **found) { return nth(-1, index, found); }
int nvmlDeviceGetMigMode(Device *device, unsigned *now, unsigned *next) {
    if (device->parent >= 0) return NOT_SUPPORTED;
    return *now = *next = (unsigned)device->is_mig_enabled, OK;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) { (void)device; return *count = 7, OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **found) {
    return nth((int)(device - devices), index, found);
}
static int text(const char *from, char *to, unsigned length) { return snprintf(to, length, "%s", from), OK; }
int nvmlDeviceGetUUID(Device *device, char *to, unsigned length) { return text(device->uuid, to, length); }
int nvmlDeviceGetName(Device *device, char *to, unsigned length) { return text(device->name, to, length); }
static int number(long long from, unsigned *to) { return from < 0 ? NOT_SUPPORTED : (*to = (unsigned)from, OK); }
int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *to) {
    return sensor == 0 ? number(device->temperature, to) : 2;
}
int nvmlDeviceGetPowerUsage(Device *device, unsigned *to) { return number(device->milliwatts, to); }
int nvmlDeviceGetUtilizationRates(Device *device, unsigned to[2]) { return number(device->busy, to); }
int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    return device->major ? (*major = device->major, *minor = device->minor, OK) : NOT_SUPPORTED;
}
int nvmlDeviceGetMemoryInfo(Device *device, Memory *to) {
    if (device->total < 0) return NOT_SUPPORTED;
    return *to = (Memory){(u64)device->total, (u64)device->free, (u64)(device->total - device->free)}, OK;
}
int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *to) {
    if (is_old) return NO_FUNCTION;
    if (to->version != (sizeof *to | 2 << 24)) return OTHER_VERSION;
    if (device->total < 0) return NOT_SUPPORTED;
    u64 reserved = (u64)(device->total - device->free - device->used);
    return *to = (MemoryV2){to->version, (u64)device->total, reserved, (u64)device->free, (u64)device->used}, OK;
}
int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *count, Process *to) {
    unsigned room = *count;
    *count = device->processes;
    if (room < device->processes) return INSUFFICIENT_SIZE;
    memcpy(to, device->process, device->processes * sizeof *to);
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *to) {
    return nvmlDeviceGetComputeRunningProcesses_v2(device, count, to);
}

int cuInit(unsigned flags) { (void)flags; return read_machine(), init_code == OK && cuda_count ? 0 : 100; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = cuda_count, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDeviceGetUuid(unsigned char *to, int device) {
    const char *from = cuda_uuids[device] + strlen("GPU-");
    for (int i = 0; i < 16; i++, from += 2) {
        unsigned byte;
        if (*from == '-') from++;
        if (sscanf(from, "%2x", &byte) != 1) return 1;
        to[i] = (unsigned char)byte;
    }
    return 0;
}
