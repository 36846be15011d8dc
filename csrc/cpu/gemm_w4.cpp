#include "cpu/gemm_w4.h"

namespace pyquant {

const GemmW4Kernels& gemm_w4_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx) return gemm_w4_amx();
  if (isa == Isa::avx512) return gemm_w4_avx512();
  if (isa == Isa::avx_vnni) return gemm_w4_avx_vnni();
  if (isa == Isa::avx2) return gemm_w4_avx2();
#endif
  (void)isa;
  return gemm_w4_portable();
}

}  // namespace pyquant
