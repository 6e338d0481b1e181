#pragma once
#include "common/args.hpp"

namespace jrt {

// h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T, y_t = (h_t c_t + d x_t) silu(z_t); see ssd.hpp.
struct SsdArgs {
  View x, z;                // (batch, length, heads, dim); z.data null: no gate
  View dt;                  // (batch, length, heads), dim stride unused
  View b, c;                // (batch, length, groups, states): head stride of the groups
  const float* a;           // (heads)
  const float* d;           // (heads), or (heads, dim) if d_per_dim, or null
  const float* dt_bias;     // (heads), or null
  const float* state_in;    // (batch, heads, dim, states), or null: zeros
  float* state_out;         // may be state_in
  void* y;                  // (batch, length, heads, dim), contiguous
  const int64_t* lengths;   // (batch), 0 to length, or null: all of length
  int64_t batches, length, heads, dim, states, groups;
  float dt_min, dt_max;     // dt is clamped to these after the softplus
  bool d_per_dim, softplus;
  int dtype;                // of x, z, dt, b, c and y
  int threads;
};

}  // namespace jrt
