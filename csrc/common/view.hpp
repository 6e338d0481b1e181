// A tensor as the kernels for CPUs and for GPUs take it.
#pragma once
#include <cstdint>

namespace jrt {

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A (batch, length, heads, dim) tensor of any strides.
struct View {
  const void* data;
  int64_t batch, length, head, dim;  // strides in elements
};

}  // namespace jrt
