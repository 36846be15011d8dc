/* A libcuda.so.1 without a GPU: the calls that pyquant/ops/cuda_driver.py makes, on devices that exist on paper.
 *
 * It keeps the rules that the real one has and that a caller can break: a context is current for one thread only, a function
 * belongs to the context it was loaded in, more than 48 KiB of dynamic shared memory has to be asked for first, and code may not be
 * loaded while the thread captures a graph. It writes down every call, with the bytes of every kernel argument, as a JSON line. A test
 * can have any call fail with any CUresult. Kernels do not run.
 *
 * An image is a fatbin's head (magic, version, length of the head, length of the rest) and then text, "name sizes,of,arguments;" for
 * every kernel. Compiled against the real cuda.h, where there is one, so that a prototype unlike NVIDIA's does not compile.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef WITH_CUDA_H
#include <cuda.h>
/* The numbers that cuda_driver.py and this file write out. */
_Static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75 && CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76 &&
               CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN == 97 && CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK == 0 &&
               CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES == 1 && CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == 8 &&
               CU_STREAM_CAPTURE_MODE_RELAXED == 2, "attributes");
_Static_assert(CUDA_ERROR_OUT_OF_MEMORY == 2 && CUDA_ERROR_INVALID_IMAGE == 200 && CUDA_ERROR_NO_BINARY_FOR_GPU == 209 &&
               CUDA_ERROR_UNSUPPORTED_PTX_VERSION == 222 && CUDA_ERROR_NOT_FOUND == 500 &&
               CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES == 701 && CUDA_ERROR_ILLEGAL_ADDRESS == 700, "results");
#else
typedef int CUresult, CUdevice, CUdevice_attribute, CUfunction_attribute, CUstreamCaptureMode;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
#define cuCtxPushCurrent cuCtxPushCurrent_v2
#define cuCtxPopCurrent cuCtxPopCurrent_v2
#endif

enum { kDevices = 4, kEntries = 64, kStack = 16, kSizes = 64, kPlainShared = 48 << 10 };
enum { kInvalidValue = 1, kInvalidDevice = 101, kInvalidImage = 200, kInvalidContext = 201, kInvalidHandle = 400,
       kNotFound = 500, kCaptureUnsupported = 900 };

typedef struct { char name[64]; int sizes[kSizes], count, device, shared; } Entry;
typedef struct { int retained, modules, capability, shared_limit; } Device;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char lines[1 << 20];
static size_t used;
static char failing[64];
static int failure, failing_after, initialised, threads_seen, device_count = 1, driver_version = 13000;
static Device devices[kDevices];
static Entry entries[kEntries];
static int entry_count;
static char images[kDevices][4096];
static int capturing;
static __thread CUcontext stack[kStack];
static __thread int depth, thread_number, capture_mode;

static void write_line(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(lines + used, sizeof lines - used, format, arguments);
    va_end(arguments);
    if (written > 0 && used + (size_t)written < sizeof lines) used += (size_t)written;
}

/* Every call begins here: it is written down, and fails if it was told to. The lock is held until leave(). */
static CUresult enter(const char *call, const char *format, ...) {
    pthread_mutex_lock(&lock);
    if (!thread_number) thread_number = ++threads_seen;
    write_line("{\"call\": \"%s\", \"thread\": %d", call, thread_number);
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(lines + used, sizeof lines - used, format, arguments);
    va_end(arguments);
    if (written > 0) used += (size_t)written;
    if (!strcmp(call, failing) && failing_after-- <= 0) return failure;
    if (!initialised && strcmp(call, "cuInit") && strcmp(call, "cuDriverGetVersion")) return 3;
    return 0;
}

static CUresult leave(CUresult result) {
    write_line(", \"result\": %d}\n", (int)result);
    pthread_mutex_unlock(&lock);
    return result;
}

/* The device whose context is current in this thread, or -1. */
static int current(void) { return depth ? (int)((uintptr_t)stack[depth - 1] - 0x1000) : -1; }

/* ------------------------------------------------------------------------------------------------------- for the tests */
void fake_reset(int count, int version) {
    used = 0, lines[0] = 0, failing[0] = 0, initialised = 0, device_count = count, driver_version = version;
    entry_count = 0, capturing = 0;
    for (int i = 0; i < kDevices; ++i) devices[i] = (Device){0, 0, 80, 166912};
}
void fake_device(int device, int capability, int shared_limit) {
    devices[device].capability = capability, devices[device].shared_limit = shared_limit;
}
/* The call fails with this result, from the one after so many good ones on; "" for none. */
void fake_fail(const char *call, int result, int after) {
    snprintf(failing, sizeof failing, "%s", call);
    failure = result, failing_after = after;
}
void fake_capture(int on) { capturing = on; }
int fake_depth(void) { return depth; }
const char *fake_lines(void) { return lines; }

/* --------------------------------------------------------------------------------------------------------- libcuda's own */
CUresult cuInit(unsigned flags) {
    CUresult result = enter("cuInit", ", \"flags\": %u", flags);
    if (!result) initialised = 1;
    return leave(result);
}
CUresult cuDriverGetVersion(int *version) {
    CUresult result = enter("cuDriverGetVersion", "");
    *version = driver_version;
    return leave(result);
}
CUresult cuGetErrorName(CUresult error, const char **name) {
    static const struct { int code; const char *name; } names[] = {
        {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"},
        {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
        {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {400, "CUDA_ERROR_INVALID_HANDLE"}, {500, "CUDA_ERROR_NOT_FOUND"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
        {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    };
    *name = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i)
        if (names[i].code == (int)error) *name = names[i].name;
    return *name ? 0 : kInvalidValue;
}
CUresult cuDeviceGetCount(int *count) {
    CUresult result = enter("cuDeviceGetCount", "");
    *count = device_count;
    return leave(result);
}
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CUresult result = enter("cuDeviceGet", ", \"ordinal\": %d", ordinal);
    *device = ordinal;
    return leave(result ? result : ordinal < 0 || ordinal >= device_count ? kInvalidDevice : 0);
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    CUresult result = enter("cuDeviceGetAttribute", ", \"attribute\": %d, \"device\": %d", (int)attribute, device);
    const Device *d = &devices[device];
    *value = attribute == 75 ? d->capability / 10 : attribute == 76 ? d->capability % 10 : attribute == 97 ? d->shared_limit : -1;
    return leave(result ? result : *value < 0 ? kInvalidValue : 0);
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CUresult result = enter("cuDevicePrimaryCtxRetain", ", \"device\": %d", device);
    if (!result) ++devices[device].retained, *context = (CUcontext)(uintptr_t)(0x1000 + device);
    return leave(result);
}
CUresult cuCtxPushCurrent(CUcontext context) {
    CUresult result = enter("cuCtxPushCurrent_v2", ", \"context\": %zu", (size_t)context);
    int device = (int)((uintptr_t)context - 0x1000);
    if (!result && (device < 0 || device >= kDevices || !devices[device].retained || depth == kStack)) result = kInvalidContext;
    if (!result) stack[depth++] = context;
    return leave(result);
}
CUresult cuCtxPopCurrent(CUcontext *context) {
    CUresult result = enter("cuCtxPopCurrent_v2", "");
    if (!result && !depth) result = kInvalidContext;
    if (!result) *context = stack[--depth];
    return leave(result);
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    CUresult result = enter("cuThreadExchangeStreamCaptureMode", ", \"mode\": %d", (int)*mode);
    int before = capture_mode;
    capture_mode = (int)*mode, *mode = before;
    return leave(result);
}
static CUresult loading(CUresult result) {
    if (!result && current() < 0) return kInvalidContext;
    return result || !capturing || capture_mode == 2 ? result : kCaptureUnsupported;
}
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    CUresult result = loading(enter("cuModuleLoadData", ", \"device\": %d", current()));
    const unsigned char *head = image;
    uint32_t magic;
    uint64_t length;
    memcpy(&magic, head, 4), memcpy(&length, head + 8, 8);
    if (!result && (magic != 0xBA55ED50u || length >= sizeof images[0])) result = kInvalidImage;
    if (!result) {
        int device = current();
        memcpy(images[device], head + head[6], length), images[device][length] = 0;
        ++devices[device].modules;
        *module = (CUmodule)(uintptr_t)(0x2000 + device);
    }
    return leave(result);
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CUresult result = loading(enter("cuModuleGetFunction", ", \"module\": %zu, \"name\": \"%s\"", (size_t)module, name));
    int device = (int)((uintptr_t)module - 0x2000);
    if (!result && (device != current() || !devices[device].modules)) result = kInvalidHandle;
    if (!result) {
        Entry *entry = &entries[entry_count];
        const char *at = images[device];
        result = kNotFound;
        for (char sizes[256]; sscanf(at, "%63s %255[^;];", entry->name, sizes) == 2; at = strchr(at, ';') + 1) {
            if (strcmp(entry->name, name)) continue;
            entry->count = 0, entry->device = device, entry->shared = 0;
            for (char *size = strtok(sizes, ","); size; size = strtok(NULL, ",")) sscanf(size, "%d", &entry->sizes[entry->count++]);
            *function = (CUfunction)(uintptr_t)(0x3000 + entry_count++);
            result = 0;
            break;
        }
    }
    return leave(result);
}
static Entry *entry_of(CUfunction function) {
    size_t number = (size_t)function - 0x3000;
    return number < (size_t)entry_count ? &entries[number] : NULL;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    CUresult result = loading(enter("cuFuncGetAttribute", ", \"attribute\": %d, \"function\": %zu", (int)attribute, (size_t)function));
    if (!result && !entry_of(function)) result = kInvalidHandle;
    *value = attribute == 0 ? 256 : 1024;
    return leave(result);
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    CUresult result = enter("cuFuncSetAttribute", ", \"function\": %zu, \"attribute\": %d, \"value\": %d", (size_t)function, (int)attribute, value);
    Entry *entry = entry_of(function);
    if (!result && (!entry || entry->device != current())) result = kInvalidHandle;
    if (!result && (attribute != 8 || value > devices[entry->device].shared_limit)) result = kInvalidValue;
    if (!result) entry->shared = value;
    return leave(result);
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **parameters, void **extra) {
    CUresult result = enter("cuLaunchKernel", ", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u, \"stream\": %zu",
                            gx, gy, gz, bx, by, bz, shared, (size_t)stream);
    Entry *entry = entry_of(function);
    if (!result && (!entry || entry->device != current())) result = kInvalidHandle;
    if (!result && (extra || bx * by * bz > 256)) result = kInvalidValue;
    if (!result && (int)shared > kPlainShared && (int)shared > entry->shared) result = kInvalidValue;
    if (!result) {
        write_line(", \"entry\": \"%s\", \"device\": %d, \"arguments\": [", entry->name, entry->device);
        for (int i = 0; i < entry->count; ++i) {
            write_line("%s\"", i ? ", " : "");
            for (int b = 0; b < entry->sizes[i]; ++b) write_line("%02x", ((unsigned char *)parameters[i])[b]);
            write_line("\"");
        }
        write_line("]");
    }
    return leave(result);
}
