#pragma once
#include "common/args.hpp"

namespace jrt {

// h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t, y_t = (h_t . c_t + d x_t) silu(z_t); see selective_scan.hpp.
struct SelectiveScanArgs {
  View x, dt, z;            // (batch, length, channels), head stride unused; z.data null: no gate
  View b, c;                // (batch, length, groups, states): head stride of the groups
  const float* a;           // (channels, states), contiguous
  const float* d;           // (channels), or null
  const float* dt_bias;     // (channels), or null
  const float* state_in;    // (batch, channels, states), or null: zeros
  float* state_out;         // may be state_in
  void* y;                  // (batch, length, channels), contiguous
  const int64_t* lengths;   // (batch), 0 to length, or null: all of length
  int64_t batches, length, channels, states, groups;
  bool softplus;            // dt = log(1 + e^(dt + dt_bias)), else dt + dt_bias
  int dtype;                // of x, dt, z, b, c and y
  int threads;
};

}  // namespace jrt
