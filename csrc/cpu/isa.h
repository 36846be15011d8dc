// The instruction sets that the kernels are compiled for, and the run-time choice between them.
#pragma once
#include <string>
#include <vector>

namespace pyquant {

enum class Isa { portable, avx2, avx_vnni, avx512, amx };

// The best one that this machine has.
Isa best_isa();

// The names of those that this machine has, best first: "amx", "avx512" (with VNNI), "avx_vnni" (AVX2 with it),
// "avx2", "portable".
std::vector<std::string> available_isas();

// The instruction set called `name`, where "auto" is the best; throws std::invalid_argument if this machine lacks it.
Isa isa_by_name(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace pyquant
