#include "cpu/isa.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/kernels.h"

namespace pyquant {
namespace {

constexpr Isa kBestFirst[] = {Isa::amx, Isa::avx512, Isa::avx_vnni, Isa::avx2, Isa::portable};

#if defined(__x86_64__)
// Linux gives a process the tile registers when it asks for them.
bool tiles_granted() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Leaf 7, subleaf 1: not every compiler's __builtin_cpu_supports knows it.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAvxVnni = 1u << 4;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;
  __cpuid_count(7, 1, a, b, c, d);
  return (a & kAvxVnni) != 0;
}
#endif

bool machine_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::amx: {
      // In this order: the table of AMX is compiled for AVX-512.
      static const bool granted = machine_has(Isa::avx512) && kernels_amx() != nullptr && tiles_granted();
      return granted;
    }
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
    case Isa::avx_vnni: {
      // In this order: the table is compiled for AVX2, which also asks whether the system keeps the registers.
      static const bool has = machine_has(Isa::avx2) && kernels_avx_vnni() != nullptr && has_avx_vnni();
      return has;
    }
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
    case Isa::amx:
      return "amx";
    case Isa::avx512:
      return "avx512";
    case Isa::avx_vnni:
      return "avx_vnni";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      break;
  }
  return "portable";
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : kBestFirst) {
    if (machine_has(isa)) names.push_back(isa_name(isa));
  }
  return names;
}

Isa best_isa() { return isa_by_name(available_isas().front()); }

Isa isa_by_name(const std::string& name) {
  if (name == "auto") return best_isa();
  for (Isa isa : kBestFirst) {
    if (name == isa_name(isa) && machine_has(isa)) return isa;
  }
  std::string have;
  for (const std::string& other : available_isas()) have += (have.empty() ? "" : ", ") + other;
  throw std::invalid_argument("instruction set '" + name + "' is not available here; use auto, " + have);
}

const Kernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx) return *kernels_amx();
  if (isa == Isa::avx512) return kernels_avx512();
  if (isa == Isa::avx_vnni) return *kernels_avx_vnni();
  if (isa == Isa::avx2) return kernels_avx2();
#endif
  (void)isa;
  return kernels_portable();
}

}  // namespace pyquant
