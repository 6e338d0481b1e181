// Causal linear attention with Taylor features on the tensor cores: 16-bit inputs, feature dim d <= 16, head dim <= 128.
//
// A block processes one segment of one (row, head) in chunks of 64 tokens and keeps the state, 160 x F, in registers as float
// accumulators. Of a chunk it computes, with bf16 operands and float accumulation,
//   y = [phi(q) S + tril(p(q k^T)) v] / [phi(q) z + rowsum tril p],   p(s) = 1 + s + s^2/2,   S += phi(k)^T v,   z += phi(k)^T 1.
// Features are never stored: each lane multiplies them together from the few numbers of q or k it holds, in the places where the
// matrix instructions want them. For that the 153 symmetric features are in ten tiles of 16 (tile, row -> factors):
//   0: x_r                         1 + s, s = 0..3: x_r x_{(r+s)%8} within each half of the 16 dims
//   5 + m, m = 0..3: x_r x_{8+(r+2m)%8}, and x_r x_{8+(r+2m+1)%8} for rows 8 + r
//   9: x_r x_{r+4} (rows 0..3 and 8..11), the constant (row 4), nothing
// without weights: phi(q).phi(k) = 1 + c q'.k + c^2 (sum_{i<j} q'_i q'_j k_i k_j + sum_i (q'_i k_i)^2 / 2) where q' = q times a power
// of two near d^-1/2 and c makes up for the rest; c is 1 for d = 16. The constant's row of S and z are added in float; z is held as
// the sum of two bf16. Between chunks S goes through shared memory as bf16.
//
// Warps: (half, column group of 32). In the read-out `half` chooses 32 of the 64 tokens (first and last 16, or the middle ones: equal
// work under the causal mask), in the update it chooses five of the ten feature tiles.
#pragma once
#include "cuda/args.hpp"
#include "cuda/device.cuh"

namespace jrt_cuda {

constexpr int kChunk = 64;
constexpr int kStages = 3;
constexpr int kFeatureRows = 160;
constexpr int kDimPitch = 24;  // of q and k in shared memory: 48 bytes, so that 8 rows touch all banks once
constexpr float kEps = 1e-12f;

template <typename T, int F>
struct PrefillShared {
  static constexpr int kPitch = F + 8;
  struct Stage {
    T q[kChunk][kDimPitch];
    T k[kChunk][kDimPitch];
    T v[kChunk][kPitch];
    float weight[kChunk];  // the mask's numbers; 0 past the end
  };
  Stage stage[kStages];
  uint16_t state[2][kFeatureRows][kPitch];  // bf16; column F: z, F + 1: z - bf16(z)
  float constant[2][F + 4];                 // the constant feature's row of S; at F: of z
};

struct PrefillParams {
  LinearArgs a;
  int64_t segment;       // tokens of a segment, a multiple of kChunk (the last may have fewer)
  int64_t segment_enc;   // the same of an encoder's tokens
  // The initial and final states of segment s of head bh are at base + bh * head_step + s * segment_step; or null.
  const float *kv_in, *k_in;
  float *kv_out, *k_out;
  int64_t kv_in_head, kv_in_segment, k_in_head, k_in_segment;
  int64_t kv_out_head, kv_out_segment, k_out_head, k_out_segment;
  bool only_last_out;    // only the last segment's final state is wanted
  bool wide_copies;      // q, k, v: rows of full width, aligned to 16 bytes
  float q_scale;         // a power of two near d^-1/2
  float correction;      // d^-1/2 / q_scale
};

// Factors of the feature at (tile, row): i, j >= 0; or i >= 0, j = -1: linear; or i = -1: the constant; or i = -2: nothing.
JRT_DEVICE void feature_at(int tile, int row, int& i, int& j) {
  const int low = row & 7, upper = row & 8;
  j = -1;
  if (tile == 0) {
    i = row;
  } else if (tile < 5) {
    i = row;
    j = upper + ((low + tile - 1) & 7);
  } else if (tile < 9) {
    i = low;
    j = 8 + ((low + 2 * (tile - 5) + (upper >> 3)) & 7);
  } else if (low < 4) {
    i = row;
    j = row + 4;
  } else {
    i = row == 4 ? -1 : -2;
  }
}

// The place among the d-dimensional features, -1 for none, and the weight sqrt(w) such that phi_canonical = weight * product.
JRT_DEVICE int canonical(int tile, int row, int d, float& weight) {
  int i, j;
  feature_at(tile, row, i, j);
  if (i == -2 || i >= d || j >= d) return -1;
  if (i == -1) {
    weight = 1.f;
    return 0;
  }
  const float second = 1.f / sqrtf(float(d));
  if (j < 0) {
    weight = sqrtf(second);
    return 1 + i;
  }
  weight = i == j ? second * 0.70710678118654752f : second;
  return pair_index(i, j, d);
}

// A row in shared memory, aligned to 16 bytes.
template <typename T, int columns>
JRT_DEVICE void clear(T (&row)[columns]) {
  static_assert(sizeof(row) % 16 == 0);
#pragma unroll
  for (int i = 0; i < int(sizeof(row) / 16); ++i) reinterpret_cast<uint4*>(row)[i] = make_uint4(0u, 0u, 0u, 0u);
}

template <typename T, int F, bool outputs>
__global__ void
#ifndef JRT_EMULATE
__launch_bounds__(F * 2, F > 64 ? 1 : outputs ? 2 : 3)
#endif
prefill_kernel(const PrefillParams p) {
  using Shared = PrefillShared<T, F>;
  using Stage = typename Shared::Stage;
  constexpr int kGroups = F / 32;
  constexpr int kThreads = F * 2;
  constexpr int kZ = (5 + kGroups - 1) / kGroups;
  JRT_DYNAMIC_SHARED(raw);
  Shared& sh = *reinterpret_cast<Shared*>(raw);

  const LinearArgs& a = p.a;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int half = warp & 1, group = warp >> 1, column = group * 32;
  const int g = lane >> 2, t = lane & 3;
  const int bh = blockIdx.x, segment = blockIdx.y;
  const int64_t b = bh / a.heads, h = bh % a.heads;
  const int64_t begin = segment * p.segment;
  const int64_t end = begin + p.segment < a.length ? begin + p.segment : a.length;
  const int d = int(a.dim), f = int(a.head_dim);
  const int chunks = int((end - begin + kChunk - 1) / kChunk);

  const T* q_at = static_cast<const T*>(a.q.data) + b * a.q.batch + h * a.q.head;
  const T* k_at = static_cast<const T*>(a.k.data) + b * a.k.batch + h * a.k.head;
  const T* v_at = static_cast<const T*>(a.v.data) + b * a.v.batch + h * a.v.head;
  const float* mask_at = a.mask ? a.mask + b * a.length : nullptr;

  auto load = [&](int chunk) {
    Stage& to = sh.stage[chunk % kStages];
    const int64_t first = begin + int64_t(chunk) * kChunk;
    if (p.wide_copies) {
      for (int n = thread; n < kChunk * 2; n += kThreads) {
        const int row = n >> 1, piece = (n & 1) * 8;
        const bool there = first + row < end;
        const int64_t token = there ? first + row : begin;
        if (outputs) cp_async16(&to.q[row][piece], q_at + token * a.q.length + piece, there);
        cp_async16(&to.k[row][piece], k_at + token * a.k.length + piece, there);
      }
      for (int n = thread; n < kChunk * (F / 8); n += kThreads) {
        const int row = n / (F / 8), piece = n % (F / 8) * 8;
        const bool there = first + row < end && piece < f;
        const int64_t token = first + row < end ? first + row : begin;
        cp_async16(&to.v[row][piece], v_at + token * a.v.length + (piece < f ? piece : 0), there);
      }
    } else {
      const T zero = from_float<T>(0.f);
      for (int n = thread; n < kChunk * 16; n += kThreads) {
        const int row = n >> 4, i = n & 15;
        const bool there = first + row < end && i < d;
        if (outputs) to.q[row][i] = there ? q_at[(first + row) * a.q.length + i * a.q.dim] : zero;
        to.k[row][i] = there ? k_at[(first + row) * a.k.length + i * a.k.dim] : zero;
      }
      for (int n = thread; n < kChunk * F; n += kThreads) {
        const int row = n / F, i = n % F;
        to.v[row][i] = first + row < end && i < f ? v_at[(first + row) * a.v.length + i * a.v.dim] : zero;
      }
    }
    for (int row = thread; row < kChunk; row += kThreads) {
      const bool there = first + row < end;
      if (mask_at) {
        cp_async4(&to.weight[row], mask_at + (there ? first + row : begin), there);
      } else {
        to.weight[row] = there ? 1.f : 0.f;
      }
    }
  };

  for (int ahead = 0; ahead < kStages - 1; ++ahead) {
    if (ahead < chunks) load(ahead);
    cp_async_commit();
  }

  // The state: tiles 5 * half + i, columns column + 8 * j.
  float s[5][4][4], z[kZ][4];
  {
    const float* kv = p.kv_in ? p.kv_in + bh * p.kv_in_head + segment * p.kv_in_segment : nullptr;
    const float* ks = p.k_in ? p.k_in + bh * p.k_in_head + segment * p.k_in_segment : nullptr;
#pragma unroll
    for (int i = 0; i < 5; ++i) {
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        float weight = 1.f;
        const int at = kv ? canonical(half * 5 + i, g + 8 * up, d, weight) : -1;
        const float back = 1.f / weight;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int col = column + 8 * j + 2 * t + e;
            s[i][j][2 * up + e] = at >= 0 && col < f ? kv[int64_t(at) * f + col] * back : 0.f;
          }
        if (i % kGroups == group) z[i / kGroups][2 * up] = z[i / kGroups][2 * up + 1] = at >= 0 ? ks[at] * back : 0.f;
      }
    }
  }

  const float linear_weight = p.correction, second_weight = p.correction * p.correction;
  auto store_state = [&](int buffer) {
    uint16_t(&to)[kFeatureRows][Shared::kPitch] = sh.state[buffer];
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      const float w = half == 0 && i == 0 ? linear_weight : second_weight;
      const int row = (half * 5 + i) * 16 + g;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        *reinterpret_cast<uint32_t*>(&to[row][column + 8 * j + 2 * t]) = pack(s[i][j][0] * w, s[i][j][1] * w);
        *reinterpret_cast<uint32_t*>(&to[row + 8][column + 8 * j + 2 * t]) = pack(s[i][j][2] * w, s[i][j][3] * w);
      }
      if (i % kGroups == group && t == 0) {
#pragma unroll
        for (int up = 0; up < 2; ++up) {
          const float whole = z[i / kGroups][2 * up] * w;
          const float head = to_float(from_float<bf16>(whole));
          *reinterpret_cast<uint32_t*>(&to[row + 8 * up][F]) = pack(head, whole - head);
        }
      }
    }
    if (half == 1 && g == 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sh.constant[buffer][column + 8 * j + 2 * t] = s[4][j][0];
        sh.constant[buffer][column + 8 * j + 2 * t + 1] = s[4][j][1];
      }
      if (4 % kGroups == group && t == 0) sh.constant[buffer][F] = z[4 / kGroups][0];
    }
  };

  if (outputs) {
    // The unused columns next to z are read by the matrix instruction.
    for (int n = thread; n < 2 * kFeatureRows * 3; n += kThreads)
      *reinterpret_cast<uint32_t*>(&sh.state[n / (kFeatureRows * 3)][n / 3 % kFeatureRows][F + 2 + n % 3 * 2]) = 0;
    store_state(0);
  }

  const uint32_t q_scale = pack(p.q_scale, p.q_scale), one_half = pack(0.5f, 0.5f), ones = pack(1.f, 1.f);

  for (int chunk = 0; chunk < chunks; ++chunk) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (chunk + kStages - 1 < chunks) load(chunk + kStages - 1);
    cp_async_commit();
    Stage& now = sh.stage[chunk % kStages];
    if (mask_at) {  // a masked token's key and value become zeros, whatever is there: NaN times 0 is NaN
      for (int row = thread; row < kChunk; row += kThreads) {
        if (now.weight[row] != 0.f) continue;
        clear(now.k[row]);
        clear(now.v[row]);
      }
      __syncthreads();
    }

    if (outputs) {
      const uint16_t(&state)[kFeatureRows][Shared::kPitch] = sh.state[chunk & 1];
      const float* constant = sh.constant[chunk & 1];
      // Pairs of q' at dims (2t + n, 2t + n + 1) mod 8 of the lower and upper half: low[m][up][n], high[m][up][n].
      uint32_t low[2][2][5], high[2][2][8];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int up = 0; up < 2; ++up) {
          const int tile = half ? 1 + m : 3 * m;
          const uint32_t* row = reinterpret_cast<const uint32_t*>(now.q[tile * 16 + g + 8 * up]);
#pragma unroll
          for (int n = 0; n < 3; ++n) low[m][up][2 * n] = mul2(as_bf16<T>(row[(t + n) & 3]), q_scale);
#pragma unroll
          for (int n = 0; n < 4; ++n) high[m][up][2 * n] = mul2(as_bf16<T>(row[4 + ((t + n) & 3)]), q_scale);
#pragma unroll
          for (int n = 0; n < 2; ++n) low[m][up][2 * n + 1] = straddle(low[m][up][2 * n], low[m][up][2 * n + 2]);
#pragma unroll
          for (int n = 0; n < 4; ++n) high[m][up][2 * n + 1] = straddle(high[m][up][2 * n], high[m][up][(2 * n + 2) & 7]);
        }

      float o[2][4][4], below[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) o[m][j][e] = constant[column + 8 * j + 2 * t + (e & 1)];
#pragma unroll
        for (int e = 0; e < 4; ++e) below[m][e] = 0.f;
      }

      // phi(q) S
#pragma unroll
      for (int tile = 0; tile < 10; ++tile) {
        const uint16_t* at = &state[tile * 16 + (lane & 15)][column + (lane >> 4) * 8];
        uint32_t left[4], right[4], sums[2];
        ldmatrix_transposed(left, at);
        ldmatrix_transposed(right, at + 16);
        ldmatrix_transposed(sums, &state[tile * 16 + (lane & 15)][F]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t phi[4];
#pragma unroll
          for (int up = 0; up < 2; ++up) {
            const uint32_t(&lo)[5] = low[m][up];
            const uint32_t(&hi)[8] = high[m][up];
            if (tile == 0) {
              phi[up] = lo[0];
              phi[up + 2] = hi[0];
            } else if (tile == 1) {
              phi[up] = mul2(mul2(lo[0], one_half), lo[0]);
              phi[up + 2] = mul2(mul2(hi[0], one_half), hi[0]);
            } else if (tile < 5) {
              phi[up] = mul2(lo[0], lo[tile - 1 < 5 ? tile - 1 : 0]);
              phi[up + 2] = mul2(hi[0], hi[tile - 1 < 8 ? tile - 1 : 0]);
            } else if (tile < 9) {
              phi[up] = mul2(lo[0], hi[(2 * (tile - 5)) & 7]);
              phi[up + 2] = mul2(lo[0], hi[(2 * (tile - 5) + 1) & 7]);
            } else {
              phi[up] = t < 2 ? mul2(lo[0], lo[4]) : 0u;
              phi[up + 2] = t < 2 ? mul2(hi[0], hi[4]) : 0u;
            }
          }
          mma(o[m][0], phi, left[0], left[1]);
          mma(o[m][1], phi, left[2], left[3]);
          mma(o[m][2], phi, right[0], right[1]);
          mma(o[m][3], phi, right[2], right[3]);
          mma(below[m], phi, sums[0], sums[1]);
        }
      }

      // tril(p(q k^T)) v
      const float c = p.correction;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int tile = half ? 1 + m : 3 * m;
        const uint32_t query[4] = {low[m][0][0], low[m][1][0], high[m][0][0], high[m][1][0]};
        float sum[2] = {below[m][0] + below[m][1], below[m][2] + below[m][3]};  // the other lanes of the quad have zeros
        for (int other = 0; other <= tile; ++other) {
          uint32_t keys[4], left[4], right[4];
          ldmatrix(keys, &now.k[other * 16 + (lane & 7) + (lane >> 4) * 8][(lane >> 3 & 1) * 8]);
          const T* at = &now.v[other * 16 + (lane & 15)][column + (lane >> 4) * 8];
          ldmatrix_transposed(left, at);
          ldmatrix_transposed(right, at + 16);
          uint32_t weights[4];
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            float x[4] = {0.f, 0.f, 0.f, 0.f};
            mma(x, query, as_bf16<T>(keys[2 * n]), as_bf16<T>(keys[2 * n + 1]));
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float score = x[e] * c;
              x[e] = fmaf(score, fmaf(score, 0.5f, 1.f), 1.f);
            }
            if (mask_at) {
#pragma unroll
              for (int e = 0; e < 4; ++e) x[e] *= now.weight[other * 16 + 8 * n + 2 * t + (e & 1)];
            }
            if (other == tile) {
#pragma unroll
              for (int e = 0; e < 4; ++e)
                if (8 * n + 2 * t + (e & 1) > g + 8 * (e >> 1)) x[e] = 0.f;
            }
            sum[0] += x[0] + x[1];
            sum[1] += x[2] + x[3];
            weights[2 * n] = pack(x[0], x[1]);
            weights[2 * n + 1] = pack(x[2], x[3]);
          }
          if constexpr (sizeof(T) == 2) {
#pragma unroll
            for (int e = 0; e < 4; ++e) left[e] = as_bf16<T>(left[e]), right[e] = as_bf16<T>(right[e]);
          }
          mma(o[m][0], weights, left[0], left[1]);
          mma(o[m][1], weights, left[2], left[3]);
          mma(o[m][2], weights, right[0], right[1]);
          mma(o[m][3], weights, right[2], right[3]);
        }

#pragma unroll
        for (int up = 0; up < 2; ++up) {
          float whole = sum[up];
          whole += shuffle_xor(whole, 1);
          whole += shuffle_xor(whole, 2);
          whole += constant[F];
          const float inverse = 1.f / (whole + kEps);
          uint32_t r[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) r[j] = pack_as<T>(o[m][j][2 * up] * inverse, o[m][j][2 * up + 1] * inverse);
          transpose_quad(r, t);
          const int64_t token = begin + int64_t(chunk) * kChunk + tile * 16 + g + 8 * up;
          if (token < end) {
            const int first = column + 8 * t;
            T* to = static_cast<T*>(a.y) + ((b * a.length + token) * a.heads + h) * f + first;
            if ((f & 7) == 0) {
              if (first < f) *reinterpret_cast<uint4*>(to) = make_uint4(r[0], r[1], r[2], r[3]);
            } else {
              T values[8];
              memcpy(values, r, 16);
#pragma unroll
              for (int e = 0; e < 8; ++e)
                if (first + e < f) to[e] = values[e];
            }
            if (a.denominator && group == 0 && t == 0) a.denominator[(b * a.length + token) * a.heads + h] = whole;
          }
        }
      }
    }

    // S += phi(k)^T v, z += phi(k)^T 1, over 16 tokens at a time.
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t x[4], left[4], right[4];
      // x: dims g (tokens 2t.., 2t + 8..), then dims 8 + g; own: the same times the mask.
      ldmatrix_transposed(x, &now.k[step * 16 + (lane & 15)][(lane >> 4) * 8]);
      const T* at = &now.v[step * 16 + (lane & 15)][column + (lane >> 4) * 8];
      ldmatrix_transposed(left, at);
      ldmatrix_transposed(right, at + 16);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[e] = as_bf16<T>(x[e]);
        left[e] = as_bf16<T>(left[e]);
        right[e] = as_bf16<T>(right[e]);
      }
      const float* w = &now.weight[step * 16 + 2 * t];
      const uint32_t present[2] = {pack(w[0], w[1]), pack(w[8], w[9])};
      uint32_t own[4] = {x[0], x[1], x[2], x[3]};
      if (mask_at) {
#pragma unroll
        for (int e = 0; e < 4; ++e) own[e] = mul2(own[e], present[e & 1]);
      }
      auto accumulate = [&](int i, const uint32_t(&phi)[4]) {
        mma(s[i][0], phi, left[0], left[1]);
        mma(s[i][1], phi, left[2], left[3]);
        mma(s[i][2], phi, right[0], right[1]);
        mma(s[i][3], phi, right[2], right[3]);
        if (i % kGroups == group) mma(z[i / kGroups], phi, ones, ones);
      };
      auto turned = [&](uint32_t value, int by) { return shuffle(value, ((g + by) & 7) * 4 + t); };
      if (half == 0) {
        const uint32_t linear[4] = {own[0], own[2], own[1], own[3]};
        accumulate(0, linear);
#pragma unroll
        for (int by = 0; by < 4; ++by) {
          uint32_t phi[4];
          phi[0] = mul2(own[0], by ? turned(x[0], by) : x[0]);
          phi[1] = mul2(own[2], by ? turned(x[2], by) : x[2]);
          phi[2] = mul2(own[1], by ? turned(x[1], by) : x[1]);
          phi[3] = mul2(own[3], by ? turned(x[3], by) : x[3]);
          accumulate(1 + by, phi);
        }
      } else {
        uint32_t rest[4] = {0u, 0u, 0u, 0u};
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          uint32_t phi[4];
          const uint32_t even0 = m ? turned(x[2], 2 * m) : x[2], even1 = m ? turned(x[3], 2 * m) : x[3];
          phi[0] = mul2(own[0], even0);
          phi[1] = mul2(own[0], turned(x[2], 2 * m + 1));
          phi[2] = mul2(own[1], even1);
          phi[3] = mul2(own[1], turned(x[3], 2 * m + 1));
          accumulate(m, phi);
          if (m == 2) rest[1] = mul2(own[2], even0), rest[3] = mul2(own[3], even1);
        }
        const uint32_t low0 = turned(x[0], 4), low1 = turned(x[1], 4);
        rest[0] = g < 4 ? mul2(own[0], low0) : g == 4 ? present[0] : 0u;
        rest[2] = g < 4 ? mul2(own[1], low1) : g == 4 ? present[1] : 0u;
        if (g >= 4) rest[1] = rest[3] = 0u;
        accumulate(4, rest);
      }
    }
    if (outputs && chunk + 1 < chunks) store_state((chunk + 1) & 1);
  }

  if (p.kv_out && (!p.only_last_out || segment + 1 == int(gridDim.y))) {
    float* kv = p.kv_out + bh * p.kv_out_head + segment * p.kv_out_segment;
    float* ks = p.k_out + bh * p.k_out_head + segment * p.k_out_segment;
#pragma unroll
    for (int i = 0; i < 5; ++i)
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        float weight = 1.f;
        const int at = canonical(half * 5 + i, g + 8 * up, d, weight);
        if (at < 0) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int col = column + 8 * j + 2 * t + e;
            if (col < f) kv[int64_t(at) * f + col] = s[i][j][2 * up + e] * weight;
          }
        if (i % kGroups == group && t == 0) ks[at] = z[i / kGroups][2 * up] * weight;
      }
  }
}

// Sums of segments, (heads, segments, size) -> the state before each segment from `first` on, in place; the sum of all into `total`
// where wanted. `filled` segments hold sums; the others are only written. Element n < split is the state's kv, the rest its k.
__global__ void prefix_sums(float* sums, const float* kv_in, const float* k_in, float* kv_total, float* k_total, int filled, int first,
                            int segments, int size, int split) {
  constexpr int kAtOnce = 8;  // segments whose sums are loaded together: loading them one by one would wait for each
  const int n = blockIdx.y * blockDim.x + threadIdx.x;
  if (n >= size) return;
  const int64_t bh = blockIdx.x;
  float* at = sums + bh * segments * size + n;
  const bool kv = n < split;
  float run = 0.f;
  if (kv_in) run = kv ? kv_in[bh * split + n] : k_in[bh * (size - split) + n - split];
  for (int from = 0; from < segments; from += kAtOnce) {
    float here[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) here[i] = from + i < filled ? at[int64_t(from + i) * size] : 0.f;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (from + i >= first && from + i < segments) at[int64_t(from + i) * size] = run;
      run += here[i];
    }
  }
  if (kv_total) (kv ? kv_total[bh * split + n] : k_total[bh * (size - split) + n - split]) = run;
}

}  // namespace jrt_cuda
