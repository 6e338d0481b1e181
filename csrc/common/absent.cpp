// Replaces the x86 kernels on other architectures and compilers.
#include "common/args.hpp"

namespace jrt {

const Table* table_avx512() { return nullptr; }
const Table* table_avx2() { return nullptr; }

}  // namespace jrt
