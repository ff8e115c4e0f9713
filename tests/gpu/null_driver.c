/* A null CUDA driver (libcuda.so.1) for Triton, which loads its kernels through it; see null_runtime.c. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>

#define SUCCEED { return CUDA_SUCCESS; }

static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}
static void *handle(void) {
    static char addresses[1 << 16];
    static unsigned next;
    return addresses + 16 * (__sync_add_and_fetch(&next, 1) & 0xfff);
}
static CUresult make(void *made) { *(void **)made = handle(); return CUDA_SUCCESS; }

/* ---- the card and its context */
CUresult cuInit(unsigned flags) SUCCEED
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = setting("NULL_CARDS", 1); return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) { snprintf(name, size, "null card"); return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) { return make(context); }
CUresult cuCtxSetCurrent(CUcontext context) SUCCEED
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 1024; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) SUCCEED
CUresult cuCtxSynchronize(void) SUCCEED
CUresult cuStreamSynchronize(CUstream stream) SUCCEED
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return make(context); }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    int shared = setting("NULL_SHARED", 101376);
    switch ((int)attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = setting("NULL_MAJOR", 8); break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = setting("NULL_MINOR", 6); break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = shared; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = shared + 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 82; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 1536; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1695000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 9751000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 384; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

/* ---- kernels */
CUresult cuModuleLoad(CUmodule *module, const char *path) { return make(module); }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { return make(module); }
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options, void **values) {
    return make(module);
}
CUresult cuModuleUnload(CUmodule module) SUCCEED
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) { return make(function); }
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) SUCCEED
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) SUCCEED
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    switch ((int)attribute) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 128; break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned size, CUstream stream, void **arguments, void **extra)
    SUCCEED
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) SUCCEED
CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                   unsigned block_y, unsigned block_z, unsigned size, CUstream stream, void **arguments)
    SUCCEED
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int size, size_t memory) {
    *blocks = 2;
    return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
    *clusters = 2;
    return CUDA_SUCCESS;
}
CUresult cuLinkCreate_v2(unsigned count, CUjit_option *options, void **values, CUlinkState *state) { return make(state); }
CUresult cuLinkComplete(CUlinkState state, void **image, size_t *size) { *size = 0; return CUDA_SUCCESS; }
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill)
    SUCCEED

/* ---- pointers and errors */
static CUresult attribute_of(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    switch ((int)attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = pointer; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)value = CU_MEMORYTYPE_DEVICE; break;
    default: *(int *)value = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    return attribute_of(value, attribute, pointer);
}
CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **values, CUdeviceptr pointer) {
    for (unsigned i = 0; i < count; i++) attribute_of(values[i], attributes[i], pointer);
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "error of the null card"; return CUDA_SUCCESS; }
/* NVRTC, by which torch compiles some of its operations when they are first called, asks for one and goes on without */
CUresult cuGetExportTable(const void **table, const CUuuid *name) {
    *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
CUresult cuGetProcAddress_v2(const char *name, void **function, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *result) {
    *function = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
