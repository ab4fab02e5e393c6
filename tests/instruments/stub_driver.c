// stub_driver.c - a libcuda.so.1 that takes what launches call and records it, so that launches can be
// tested where there is no driver. stub_driver.py builds it and puts the three functions at the end into CuPy 14.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

enum { kInvalidValue = 1, kNoBinaryForGpu = 209, kParams = 560, kMappedParams = 4032 };

struct {
  uint32_t grid[3], block[3], shared_bytes, launches, shared_limit, loads, calls, refuse, encodes, parameter_bytes;
  uint64_t stream, function, parameter_address;
  unsigned char parameter[kMappedParams], image[64];
  char entry[64];
} stub;
static char modules[64], functions[64], mapped[64];  // mapped: the functions with tensor maps in their argument

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* stream, void** parameters, void** extra) {
  (void)extra;
  const uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  memcpy(stub.grid, grid, sizeof grid);
  memcpy(stub.block, block, sizeof block);
  stub.function = (char*)function - functions;
  stub.parameter_bytes = mapped[stub.function] ? kMappedParams : kParams;
  memcpy(stub.parameter, parameters[0], stub.parameter_bytes);
  stub.parameter_address = (uint64_t)parameters[0];
  stub.shared_bytes = shared_bytes;
  stub.stream = (uint64_t)stream;
  stub.launches++, stub.calls++;
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  stub.calls++;
  if (stub.refuse) return kNoBinaryForGpu;
  memcpy(stub.image, image, sizeof stub.image);
  *module = &modules[++stub.loads];
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  stub.calls++;
  strncpy(stub.entry, name, sizeof stub.entry - 1);
  *function = &functions[(char*)module - modules];
  mapped[(char*)module - modules] = strstr(name, "_wgmma") != NULL;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  (void)function, stub.calls++;
  if (attribute == 8) stub.shared_limit = value;
  return 0;
}
// A map is its arguments, one after another.
int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave,
                           int swizzle, int promotion, int fill) {
  stub.encodes++;
  if (stub.refuse || (uint64_t)map % 64 || rank != 5) return kInvalidValue;
  const unsigned char kinds[6] = {type, rank, interleave, swizzle, promotion, fill};
  unsigned char* to = memset(map, 0xee, 128);
  to = (unsigned char*)mempcpy(to, &address, 8);
  to = (unsigned char*)mempcpy(to, sizes, 40);
  to = (unsigned char*)mempcpy(to, strides, 32);
  to = (unsigned char*)mempcpy(to, kinds, 6);
  for (int i = 0; i < 5; ++i) to[2 * i] = box[i], to[2 * i + 1] = box[i] >> 8, to[10 + i] = steps[i];
  return 0;
}
int cuModuleUnload(void* module) { return (void)module, 0; }
int cuFuncGetAttribute(int* value, int attribute, void* f) { return (void)attribute, (void)f, *value = 0, 0; }
int cuInit(unsigned flags) { return (void)flags, 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuGetErrorString(int error, const char** text) { return (void)error, *text = "stub says no", 0; }
int cuGetErrorName(int error, const char** text) { return (void)error, *text = "STUB_NO", 0; }
int cuGetProcAddress_v2(const char* name, void** p, int version, uint64_t flags, int* status) {
  (void)version, (void)flags;
  *p = dlsym(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), name);
  if (status) *status = *p ? 0 : 1;
  return 0;
}

// What CuPy asks its runtime before a launch. Python's two names are those of the interpreter around.
extern void Py_IncRef(void*);
extern char _Py_NoneStruct[];
int stub_device(int skip_dispatch) { return (void)skip_dispatch, 0; }
int stub_device_count(int skip_dispatch) { return (void)skip_dispatch, 1; }
void* stub_context(void) { return Py_IncRef(_Py_NoneStruct), (void*)_Py_NoneStruct; }
