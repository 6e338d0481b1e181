// Whether a decode step reads memory that it updates in place: compares the bytes, first to last, that its tensors span.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "common/view.hpp"

namespace jrt {

struct Span {
  const char* name;
  std::uintptr_t first, last;  // both 0 where there is no memory
};

inline Span contiguous(const char* name, const void* data, int64_t elements, int64_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  return {name, at, at ? at + std::uintptr_t(elements * bytes) : at};
}

inline Span strided(const char* name, const void* data, std::initializer_list<std::pair<int64_t, int64_t>> sizes_and_strides,
                    int64_t bytes) {
  int64_t reach = 1;
  for (const auto& [size, stride] : sizes_and_strides) {
    if (size == 0) return {name, 0, 0};
    reach += (size - 1) * stride;
  }
  return contiguous(name, data, reach, bytes);
}

// The names of a tensor that is read and of one that is updated in the same memory; null if there are none.
struct Overlap {
  const char *read, *written;
};

template <class StepArgs>  // of the kernels for CPUs or for GPUs
Overlap overlap(const StepArgs& p) {
  const int64_t bytes = p.dtype == kFloat32 ? 4 : 2, rows = p.batches * p.heads;
  auto input = [&](const char* name, const View& x, int64_t dim) {
    return strided(name, x.data, {{p.batches, x.batch}, {p.heads, x.head}, {dim, x.dim}}, bytes);
  };
  const Span read[] = {input("q", p.q, p.dim), input("k", p.k, p.dim), input("v", p.v, p.head_dim),
                       contiguous("decay", p.decay, p.heads, 4)};
  const Span kv = contiguous("state.kv", p.kv, rows * p.features * p.head_dim, 4);
  const Span k_sum = contiguous("state.k", p.k_sum, rows * p.features, 4);
  auto meet = [](const Span& a, const Span& b) { return a.first < b.last && b.first < a.last; };
  for (const Span& each : read) {
    if (meet(each, kv)) return {each.name, kv.name};
    if (meet(each, k_sum)) return {each.name, k_sum.name};
  }
  if (meet(k_sum, kv)) return {k_sum.name, kv.name};
  return {nullptr, nullptr};
}

}  // namespace jrt
