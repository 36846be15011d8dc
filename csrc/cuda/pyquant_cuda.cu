// All CUDA kernels as one module: a fatbin holds one image for each architecture.
#include "gemm_s8.cu"
#include "gemm_w4a16.cu"
#include "gemm_w4a8.cu"
// int4 tensor cores came with sm_80 and went after sm_89.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#include "gemm_w4a4.cu"
#endif
