/* A CUDA driver that knows one made-up graph, compiled against NVIDIA's own cuda.h so that layouts are the real ones.
   -DOLD: a driver of 12.2, without edge data and without the queries for names and parameters. */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <string.h>

#define NODES 9
#define H(n) ((void *)(uintptr_t)(n))

static char handles[64]; /* a node's handle is an address in here: not in the order of creation */
static const int place[NODES] = {40, 8, 48, 16, 56, 0, 32, 24, 1};
static const CUgraphNodeType types[NODES] = {
    CU_GRAPH_NODE_TYPE_KERNEL, CU_GRAPH_NODE_TYPE_KERNEL, CU_GRAPH_NODE_TYPE_MEMCPY,
    CU_GRAPH_NODE_TYPE_MEMSET, CU_GRAPH_NODE_TYPE_GRAPH,  CU_GRAPH_NODE_TYPE_CONDITIONAL,
    CU_GRAPH_NODE_TYPE_EMPTY,  CU_GRAPH_NODE_TYPE_KERNEL, (CUgraphNodeType)99};
static int visible = NODES, reversed = 0, edges_fail = 0, capturing = 1;
static CUdeviceptr weight, input;

/* What the tests set. */
void fake_show(int nodes) { visible = nodes; }
void fake_reverse(int on) { reversed = on; }
void fake_fail_edges(int status) { edges_fail = status; }
void fake_capturing(int on) { capturing = on; }
void fake_buffers(CUdeviceptr w, CUdeviceptr x) { weight = w; input = x; }

static int number(CUgraphNode node) {
  for (int i = 0; i < NODES; i++)
    if ((char *)node == handles + place[i]) return i;
  return -1;
}

CUresult CUDAAPI cuDriverGetVersion(int *version) {
#ifdef OLD
  *version = 12020;
#else
  *version = 13010;
#endif
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char **name) {
  *name = error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
          : error == CUDA_ERROR_LOSSY_QUERY ? "CUDA_ERROR_LOSSY_QUERY" : NULL;
  return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
  size_t there = graph == H(7) ? 3 : graph == H(5) ? visible : 0;
  if (!there && graph != H(5)) return CUDA_ERROR_INVALID_VALUE;
  if (nodes)
    for (size_t i = 0; i < *count; i++)
      nodes[i] = i < there ? (CUgraphNode)(handles + place[reversed ? there - 1 - i : i]) : NULL;
  if (!nodes || *count > there) *count = there;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType *type) {
  if (number(node) < 0) return CUDA_ERROR_INVALID_VALUE;
  *type = types[number(node)];
  return CUDA_SUCCESS;
}

static CUresult edges(CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data, int has_data, size_t *count) {
  if (edges_fail) return (CUresult)edges_fail;
  size_t there = visible - 1;
  if (from && has_data && !data) return CUDA_ERROR_LOSSY_QUERY; /* the graph has a programmatic edge */
  for (size_t i = 0; from && i < *count; i++) {
    from[i] = i < there ? (CUgraphNode)(handles + place[i]) : NULL;
    to[i] = i < there ? (CUgraphNode)(handles + place[i + 1]) : NULL;
    if (data) memset(data + i, i == 0, sizeof *data);
  }
  *count = there;
  return CUDA_SUCCESS;
}

#ifdef OLD
CUresult CUDAAPI cuGraphGetEdges(CUgraph graph, CUgraphNode *from, CUgraphNode *to, size_t *count) {
  return graph == H(5) ? edges(from, to, NULL, 0, count) : CUDA_ERROR_INVALID_VALUE;
}
#else
CUresult CUDAAPI cuGraphGetEdges_v2(CUgraph graph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data,
                                    size_t *count) {
  return graph == H(5) ? edges(from, to, data, 1, count) : CUDA_ERROR_INVALID_VALUE;
}
#endif

/* Node 0: two pointers, an int and a struct that begins beside a word and holds three. Node 1: one blob in extra. Node 7: a CUkernel, no arguments. */
static struct __attribute__((packed)) { int kind; long long many, few; CUdeviceptr at; } inner;
static CUdeviceptr pointer_w, pointer_x;
static int bound = 5;
static void *arguments[] = {&pointer_w, &pointer_x, &bound, &inner};
static struct { CUdeviceptr x; int m, n; CUdeviceptr w; } blob;
static size_t blob_size = sizeof blob;
static void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &blob, CU_LAUNCH_PARAM_BUFFER_SIZE, &blob_size,
                        CU_LAUNCH_PARAM_END};

CUresult CUDAAPI cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 *params) {
  int n = number(node);
  if (n < 0 || types[n] != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
  memset(params, 0, sizeof *params);
  params->gridDimX = 100 + n, params->gridDimY = 2, params->gridDimZ = 3;
  params->blockDimX = 128, params->blockDimY = 4, params->blockDimZ = 5;
  params->sharedMemBytes = 49152;
  pointer_w = weight, pointer_x = input + 16;
  inner.many = 1LL << 40, inner.few = 3, inner.at = weight + 8;
  blob.x = input, blob.m = 8, blob.n = 64, blob.w = weight + 4;
  if (n == 0) params->func = H(21), params->kernelParams = arguments;
  if (n == 1) params->func = H(22), params->extra = extra;
  if (n == 7) params->kern = H(23);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D_v2 *params) {
  if (number(node) != 2) return CUDA_ERROR_INVALID_VALUE;
  memset(params, 0, sizeof *params);
  params->srcMemoryType = CU_MEMORYTYPE_HOST, params->srcHost = H(input), params->srcXInBytes = 4;
  params->dstMemoryType = CU_MEMORYTYPE_DEVICE, params->dstDevice = weight, params->dstY = 1, params->dstPitch = 8;
  params->WidthInBytes = 8, params->Height = 2, params->Depth = 1;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS_v1 *params) {
  if (number(node) != 3) return CUDA_ERROR_INVALID_VALUE;
  memset(params, 0, sizeof *params);
  params->dst = weight, params->elementSize = 4, params->width = 6, params->height = 1, params->value = 9;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *graph) {
  *graph = (CUgraph)H(7);
  return number(node) == 4 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

#ifdef OLD
CUresult CUDAAPI cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id,
                                           CUgraph *graph, const CUgraphNode **dependencies, size_t *count) {
#else
CUresult CUDAAPI cuStreamGetCaptureInfo_v3(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id,
                                           CUgraph *graph, const CUgraphNode **dependencies,
                                           const CUgraphEdgeData **data, size_t *count) {
#endif
  if (stream != H(77) || dependencies || count) return CUDA_ERROR_INVALID_VALUE;
  *status = capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  *id = 1;
  if (capturing) *graph = (CUgraph)H(5);
  return CUDA_SUCCESS;
}

#ifndef OLD
CUresult CUDAAPI cuFuncGetName(const char **name, CUfunction function) {
  *name = function == H(21) ? "_ZN2at6native6kernelILi4EEEvi" : "gemm_blob";
  return function == H(21) || function == H(22) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuKernelGetName(const char **name, CUkernel kernel) {
  *name = "triton_red_fused_0";
  return kernel == H(23) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset, size_t *size) {
  static const size_t offsets[] = {0, 8, 16, 20}, sizes[] = {8, 8, 4, 28};
  if (function != H(21) || index >= 4) return CUDA_ERROR_INVALID_VALUE;
  *offset = offsets[index], *size = sizes[index];
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t *offset, size_t *size) {
  return CUDA_ERROR_INVALID_VALUE;
}
#endif
