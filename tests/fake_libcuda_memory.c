/* The driver's virtual memory management over anonymous pages, compiled against NVIDIA's own cuda.h so that layouts are
   the real ones. Addresses without memory behind them fault; memory that is mapped anew holds garbage. */
#include <cuda.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define UNIT 65536
#define HANDLES 64
static struct { size_t size; int held, mapped; } handles[HANDLES];
static CUdeviceptr place[HANDLES];
static size_t limit = (size_t)-1, reserved = 0;
static int unsupported = 0, fail_access = 0;

/* What the tests set and ask. */
void fake_limit(size_t bytes) { limit = bytes; }
void fake_unsupported(int on) { unsupported = on; }
void fake_fail_access(int status) { fail_access = status; }
size_t fake_reserved(void) { return reserved; }
size_t fake_taken(void) {
  size_t sum = 0;
  for (int i = 1; i < HANDLES; i++)
    if (handles[i].held || handles[i].mapped) sum += handles[i].size;
  return sum;
}

static int bad(const CUmemAllocationProp *p) {
  return p->type != CU_MEM_ALLOCATION_TYPE_PINNED || p->requestedHandleTypes || p->win32HandleMetaData ||
         p->location.type != CU_MEM_LOCATION_TYPE_DEVICE || p->location.id != 0 || p->allocFlags.usage ||
         p->allocFlags.compressionType || p->allocFlags.gpuDirectRDMACapable;
}

CUresult CUDAAPI cuMemGetAllocationGranularity(size_t *unit, const CUmemAllocationProp *p,
                                               CUmemAllocationGranularity_flags option) {
  if (unsupported) return CUDA_ERROR_NOT_SUPPORTED;
  if (bad(p) || option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) return CUDA_ERROR_INVALID_VALUE;
  *unit = UNIT;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAddressReserve(CUdeviceptr *at, size_t size, size_t align, CUdeviceptr wish,
                                     unsigned long long flags) {
  if (!size || size % UNIT || align || wish || flags) return CUDA_ERROR_INVALID_VALUE;
  void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *at = (CUdeviceptr)p;
  reserved += size;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAddressFree(CUdeviceptr at, size_t size) {
  for (int i = 1; i < HANDLES; i++)
    if (handles[i].mapped && place[i] == at) return CUDA_ERROR_INVALID_VALUE;
  munmap((void *)at, size);
  reserved -= size;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *p,
                             unsigned long long flags) {
  if (bad(p) || flags || size % UNIT) return CUDA_ERROR_INVALID_VALUE;
  if (fake_taken() + size > limit) return CUDA_ERROR_OUT_OF_MEMORY;
  for (int i = 1; i < HANDLES; i++)
    if (!handles[i].held && !handles[i].mapped) {
      handles[i].size = size;
      handles[i].held = 1;
      *handle = i;
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_UNKNOWN;
}

CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle handle) {
  if (!handle || handle >= HANDLES || !handles[handle].held) return CUDA_ERROR_INVALID_VALUE;
  handles[handle].held = 0;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                          unsigned long long flags) {
  if (!handles[handle].held || handles[handle].size != size || offset || flags) return CUDA_ERROR_INVALID_VALUE;
  handles[handle].mapped = 1;
  place[handle] = at;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc *access, size_t count) {
  if (fail_access) return fail_access;
  if (count != 1 || access->location.type != CU_MEM_LOCATION_TYPE_DEVICE || access->location.id ||
      access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
    return CUDA_ERROR_INVALID_VALUE;
  for (int i = 1; i < HANDLES; i++)
    if (handles[i].mapped && place[i] == at && handles[i].size == size) {
      mprotect((void *)at, size, PROT_READ | PROT_WRITE);
      memset((void *)at, 0xab, size);
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuMemUnmap(CUdeviceptr at, size_t size) {
  for (int i = 1; i < HANDLES; i++)
    if (handles[i].mapped && place[i] == at && handles[i].size == size) {
      handles[i].mapped = 0;
      mmap((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_VALUE;
}
