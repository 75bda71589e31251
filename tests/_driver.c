// As much of NVIDIA's driver as Triton's launcher asks for. It runs nothing, and keeps what the last
// launch was given; `expect` says how many bytes each parameter of the kernel has.
#include <stdint.h>
#include <string.h>

enum { MOST = 256, SHARED_BYTES = 227 * 1024 }; // as an H100 has

static struct {
  long launches, grid, threads, shared, stream;
} seen;
static int count, sizes[MOST];
static char kept[MOST][8];

void expect(int n, const int *bytes) {
  count = n;
  memcpy(sizes, bytes, n * sizeof(int));
}
const void *launched(void) { return &seen; }
const char *parameter(int i) { return kept[i]; }

// The beginning of CUlaunchConfig.
struct config {
  unsigned grid[3], block[3], shared;
  void *stream;
};
int cuLaunchKernelEx(const struct config *c, void *function, void **parameters, void **extra) {
  seen.launches++;
  seen.grid = c->grid[0];
  seen.threads = c->block[0];
  seen.shared = c->shared;
  seen.stream = (long)c->stream;
  for (int i = 0; i < count; i++)
    memcpy(kept[i], parameters[i], sizes[i]);
  return 0;
}

static int anything;
static int handle(void **to) { *to = &anything; return 0; }
int cuCtxGetCurrent(void **to) { return handle(to); }
int cuModuleLoadData(void **to, const void *code) { return handle(to); }
int cuModuleGetFunction(void **to, void *module, const char *name) { return handle(to); }
int cuPointerGetAttribute(uint64_t *to, int what, uint64_t at) { *to = at; return 0; }
int cuFuncGetAttribute(int *to, int what, void *function) { *to = what ? 0 : 1024; return 0; }
int cuDeviceGetAttribute(int *to, int what, int device) { *to = SHARED_BYTES; return 0; }

// What it links to and does not call here.
#define UNUSED(name) int name(void) { return 999; }
UNUSED(cuCtxGetDevice) UNUSED(cuCtxGetLimit) UNUSED(cuCtxSetCurrent) UNUSED(cuCtxSetLimit)
UNUSED(cuDeviceGet) UNUSED(cuDevicePrimaryCtxRetain) UNUSED(cuDriverGetVersion)
UNUSED(cuGetErrorString) UNUSED(cuOccupancyMaxActiveClusters)
UNUSED(cuPointerGetAttributes) UNUSED(cuStreamIsCapturing) UNUSED(cuTensorMapEncodeIm2col)
UNUSED(cuTensorMapEncodeTiled)
int cuFuncSetAttribute(void *function, int what, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int what) { return 0; }
int cuModuleUnload(void *module) { return 0; }
