#pragma once
#include "common/args.hpp"

namespace jrt {

// Processor and operating system both: CPUID, and XGETBV for the registers.
bool has_avx2();
bool has_avx512();

}  // namespace jrt
