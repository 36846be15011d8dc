// All CUDA kernels as one module: a fatbin holds one image for each architecture.
#include "gemm_s8.cu"
