#include "cpu/isa.h"

#include <stdexcept>

#include "cpu/kernels.h"

namespace pyquant {
namespace {

bool machine_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::portable:
      return true;
  }
#endif
  return isa == Isa::portable;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      break;
  }
  return "portable";
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (machine_has(isa)) names.push_back(isa_name(isa));
  }
  return names;
}

Isa best_isa() { return isa_by_name(available_isas().front()); }

Isa isa_by_name(const std::string& name) {
  if (name == "auto") return best_isa();
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (name == isa_name(isa) && machine_has(isa)) return isa;
  }
  std::string have;
  for (const std::string& other : available_isas()) have += (have.empty() ? "" : ", ") + other;
  throw std::invalid_argument("instruction set '" + name + "' is not available here; use auto, " + have);
}

const Kernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return kernels_avx512();
  if (isa == Isa::avx2) return kernels_avx2();
#endif
  (void)isa;
  return kernels_portable();
}

}  // namespace pyquant
