// Causal linear attention with Taylor features on Hopper's tensor cores: bf16, feature dim 16, any head dim that is a multiple of 8.
//
// One warp group processes one segment of one (row, head), for 64 columns of v, in chunks of 64 tokens. Per chunk:
//   S += v^T phi(k)      64 x 160, float accumulators in registers; v and phi(k) from shared memory
//   y = phi(q) S'^T + tril(p(q k^T)) v      phi(q) and p in registers; S' (S before this chunk, as bf16) and v from shared memory
// and y is divided by phi(q) z + rowsum tril p, where p(s) = 1 + s + s^2/2. With bf16 operands and 153 features that is 49,408 FLOP and
// 320 bytes per token and head: below the machine's balance, so the floor is one pass over q, k, v and y.
//
// The 153 symmetric features are in ten blocks of 16: x_i; x_i x_{(i+s)%16} for s = 0..7; then x_i x_{i+8} for i = 0..7, the constant
// (slot 152), a slot whose feature is 1 for q and 0 for k (there S' keeps the rounding error of the constant's row in bf16), nothing. All weights
// go to q's side, where they are powers of two: 1/4 (linear), 1/16 (pairs), 1/32 (squares).
//
// phi(k) is written to shared memory once per chunk; phi(q) is computed in the registers that wgmma reads. The normaliser needs no
// features: phi(q) z = sum_j 1 + q'.k_j + (q'.k_j)^2 / 2 = n + q'.K + q'^T G q' / 2 with K = sum k_j and G = sum k_j k_j^T, 16 x 16, of which
// each warp has a part as the accumulator of small products.
#pragma once
#include <cstddef>

#include "taylor_linear_attention/tensor_cores.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

namespace jrt_cuda {

constexpr int kHopperThreads = 128;
constexpr int kColumns = 64;   // of v, per block

using Features = unsigned char[5][kChunk * 64];  // of a chunk's keys or a block's columns: [32 features][token or column][feature]
struct HopperShared {
  static constexpr int stages = 3;  // chunks that have arrived or are being loaded
  alignas(1024) Features phi;       // phi(k)
  alignas(1024) Features state;     // S'
  alignas(1024) unsigned char v[stages][kChunk * 128];
  alignas(1024) unsigned char y[kChunk * 128];
  alignas(256) unsigned char k[stages][kChunk * 32];
  alignas(256) unsigned char q[stages][kChunk * 32];
  float weight[stages][kChunk];  // the mask's numbers; 0 past the end; where there is a mask
  uint2 sums[4][32];             // of each warp and lane: two rows of G as bf16, or two dims of K
  Mbarrier mbarriers[stages];
};

// The same shared memory while only sums are wanted.
template <int stages_>
struct SumShared {
  static constexpr int stages = stages_;
  alignas(1024) Features phi[2];
  alignas(1024) unsigned char v[stages][kChunk * 128];
  alignas(256) unsigned char k[stages][kChunk * 32];
  float weight[stages][kChunk];
  Mbarrier mbarriers[stages];
};
using LoneSums = SumShared<3>;     // three blocks fit on a multiprocessor
using EncoderSums = SumShared<4>;  // what fits where outputs follow
static_assert(sizeof(EncoderSums) <= offsetof(HopperShared, mbarriers) && kChunk == kTileTokens);

struct HopperParams {
  PrefillParams prefill;
  TensorMap q, k, v, k_enc, v_enc;
};

// The sums that the normaliser is made of. Warps 0 and 1 hold 8 columns of G each, as accumulators; of warp 1 the upper and lower 8 rows
// are swapped. Warps 2 and 3 hold 8 dims of K each, in all rows.
struct Sums {
  float part[4];
  float count;
};
JRT_DEVICE int sum_row(int warp, int g, int e) { return (g + 8 * (e >> 1)) ^ (warp == 1 ? 8 : 0); }
JRT_DEVICE int sum_column(int warp, int t, int e) { return (warp & 1) * 8 + 2 * t + (e & 1); }

// One run of chunks: a segment of the sequence, or the encoder's tokens.
struct Run {
  const TensorMap *q, *k, *v;
  const float* mask;  // null: all tokens are there
  int row, head, column, first;  // where the run begins
  int tokens, loaded;

  JRT_DEVICE int chunks() const { return (tokens + kChunk - 1) / kChunk; }
};

template <bool queries, bool masked, typename Shared>
JRT_DEVICE void load_chunk(Shared& sh, Run& run, int stage, int thread) {
  if (thread == 0) {
    Mbarrier& at = sh.mbarriers[stage];
    const int token = run.first + run.loaded;
    expect_bytes(at, kChunk * (128 + (queries ? 64 : 32)));
    if constexpr (queries) tma_load(sh.q[stage], *run.q, at, 0, run.head, token, run.row);
    tma_load(sh.k[stage], *run.k, at, 0, run.head, token, run.row);
    tma_load(sh.v[stage], *run.v, at, run.column, run.head, token, run.row);
  }
  if (masked && thread < kChunk) {
    const bool there = run.loaded + thread < run.tokens;
    if (run.mask) {
      cp_async4(&sh.weight[stage][thread], run.mask + run.loaded + thread, there);
    } else {
      sh.weight[stage][thread] = there ? 1.f : 0.f;
    }
  }
  run.loaded += kChunk;
}

// One token's key.
struct Key {
  uint4 low, high;
  JRT_DEVICE Key(const unsigned char* k, int row)
      : low(*reinterpret_cast<const uint4*>(k + swizzled32(row, 0))), high(*reinterpret_cast<const uint4*>(k + swizzled32(row, 1))) {}
};

// A masked token must count for nothing, whatever its key and value are, and NaN times 0 is NaN. So its numbers are replaced by zeros.
// In the bf16 pairs of two tokens: all bits of those that count.
JRT_DEVICE uint32_t present_bits(float low, float high) { return (low != 0.f ? 0xffffu : 0u) | (high != 0.f ? 0xffff0000u : 0u); }

// Of a lane's fragments: tokens 0 and 1 of w in x[0] and x[1], tokens 8 and 9 in x[2] and x[3].
JRT_DEVICE void keep_present(uint32_t (&x)[4], const float* w) {
  const uint32_t early = present_bits(w[0], w[1]), late = present_bits(w[8], w[9]);
  x[0] &= early, x[1] &= early, x[2] &= late, x[3] &= late;
}

// In shared memory: the value of token thread % 64, of which each thread has half a row.
JRT_DEVICE void clear_masked(unsigned char* v, const float* weights, int thread) {
  const int row = thread & 63;
  if (weights[row] != 0.f) return;
  uint4* const half = reinterpret_cast<uint4*>(v + row * 128 + (thread >> 6) * 64);
#pragma unroll
  for (int i = 0; i < 4; ++i) half[i] = make_uint4(0u, 0u, 0u, 0u);
}

// phi(k) of token thread % 64, whose key that is: the first five blocks of 16 by threads 0..63, the others by 64..127.
template <bool masked>
JRT_DEVICE void expand_keys(Features& out, const Key& key, const float* weights, int left, int thread) {
  const int row = thread & 63;
  uint32_t turned[8], own[8];
  uint32_t x[8] = {key.low.x, key.low.y, key.low.z, key.low.w, key.high.x, key.high.y, key.high.z, key.high.w};
  const float weight = masked ? weights[row] : row < left ? 1.f : 0.f;
  if (masked) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = weight != 0.f ? x[i] : 0u;
  }
  const uint32_t present = pack(weight, weight);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    turned[i] = straddle(x[i], x[(i + 1) & 7]);
    own[i] = masked ? mul2(x[i], present) : x[i];
  }
  auto put = [&](int piece, const uint32_t(&from)[8], int half) {
    *reinterpret_cast<uint4*>(out[piece >> 2] + swizzled64(row, piece & 3)) =
        make_uint4(from[4 * half], from[4 * half + 1], from[4 * half + 2], from[4 * half + 3]);
  };
  // Block 1 + s: x_i x_{(i + s) % 16}.
  auto block = [&](int s) {
    uint32_t phi[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) phi[i] = mul2(own[i], s & 1 ? turned[(i + s / 2) & 7] : x[(i + s / 2) & 7]);
    put(2 + 2 * s, phi, 0);
    put(3 + 2 * s, phi, 1);
  };
  if (thread < 64) {
    put(0, own, 0);
    put(1, own, 1);
#pragma unroll
    for (int s = 0; s < 4; ++s) block(s);
  } else {
#pragma unroll
    for (int s = 4; s < 8; ++s) block(s);
    uint32_t last[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) last[i] = mul2(own[i], x[i + 4]), last[4 + i] = 0u;
    last[4] = pack(weight, 0.f);
    put(18, last, 0);
    put(19, last, 1);
  }
}

// S += v^T phi(k), issued and committed; the caller waits.
JRT_DEVICE void update_state(float (&s)[80], MatrixDescriptor values, MatrixDescriptor phi) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) wgmma(s, further(values, step * 2048), further(phi, step * 1024));
  wgmma_commit();
}

// The chunk's own part of G, K and n.
template <bool masked>
JRT_DEVICE void update_sums(Sums& sums, const unsigned char* k, const float* weights, int left, int warp, int lane) {
  const int t = lane & 3, matrix = lane >> 3;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t x[4];  // dims g (tokens 2t..), 8 + g, then the same at tokens 8 + 2t..; in warps 1 and 3 dims 8 + g first
    ldmatrix_transposed(x, k + swizzled32(16 * step + (matrix >> 1) * 8 + (lane & 7), (matrix ^ warp) & 1));
    const float* w = weights + 16 * step + 2 * t;
    const uint32_t early = masked ? pack(w[0], w[1]) : pack(1.f, 1.f), late = masked ? pack(w[8], w[9]) : pack(1.f, 1.f);
    if (masked) keep_present(x, w);
    if (warp < 2) {
      const uint32_t own[4] = {masked ? mul2(x[0], early) : x[0], masked ? mul2(x[1], early) : x[1],
                               masked ? mul2(x[2], late) : x[2], masked ? mul2(x[3], late) : x[3]};
      mma(sums.part, own, x[0], x[2]);
    } else {
      const uint32_t own[4] = {early, early, late, late};
      mma(sums.part, own, x[0], x[2]);
    }
  }
  if (masked) {
    float whole = to_float(from_float<bf16>(weights[lane])) + to_float(from_float<bf16>(weights[lane + 32]));
#pragma unroll
    for (int by = 1; by < 32; by *= 2) whole += shuffle_xor(whole, by);
    sums.count += whole;
  } else {
    sums.count += float(left < kChunk ? left : kChunk);
  }
}

// The same sums over a run without outputs. Each warp takes 16 tokens of a chunk and so reads a quarter of what update_sums reads; the
// warps' sums are added at the end.
struct LooseSums {
  float part[3][4];  // G's first and last 8 columns, and K in each column, of this warp's tokens
  float count;       // masked: of this lane's tokens; else of all
};

template <bool masked>
JRT_DEVICE void update_loose(LooseSums& sums, const unsigned char* k, const float* weights, int left, int warp, int lane) {
  const int t = lane & 3, matrix = lane >> 3;
  uint32_t x[4];  // dims g (tokens 2t..), 8 + g, then the same at tokens 8 + 2t..
  ldmatrix_transposed(x, k + swizzled32(16 * warp + (matrix >> 1) * 8 + (lane & 7), matrix & 1));
  const float* w = weights + 16 * warp + 2 * t;
  const uint32_t early = masked ? pack(w[0], w[1]) : 0u, late = masked ? pack(w[8], w[9]) : 0u;
  if (masked) keep_present(x, w);
  const uint32_t own[4] = {masked ? mul2(x[0], early) : x[0], masked ? mul2(x[1], early) : x[1],
                           masked ? mul2(x[2], late) : x[2], masked ? mul2(x[3], late) : x[3]};
  const uint32_t ones = pack(1.f, 1.f);
  mma(sums.part[0], own, x[0], x[2]);
  mma(sums.part[1], own, x[1], x[3]);
  mma(sums.part[2], own, ones, ones);
  if (!masked) {
    sums.count += float(left < kChunk ? left : kChunk);
  } else if (lane < 16) {
    sums.count += to_float(from_float<bf16>(weights[16 * warp + lane]));
  }
}

// Adds them to `sums`, through shared memory: [number][warp][lane].
template <bool masked>
JRT_DEVICE void gather_loose(Sums& sums, float* room, const LooseSums& loose, int warp, int lane) {
#pragma unroll
  for (int n = 0; n < 12; ++n) room[(4 * n + warp) * 32 + lane] = loose.part[n >> 2][n & 3];
  if (masked) room[(48 + warp) * 32 + lane] = loose.count;
  __syncthreads();
  auto whole = [&](int number, int at) {
    const float* from = room + 128 * number + at;
    return from[0] + from[32] + from[64] + from[96];
  };
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    // G as accumulators; of K the column that lane 4 (i % 8) holds of dim i.
    if (warp < 2) {
      sums.part[e] += whole(4 * warp + (warp == 1 ? e ^ 2 : e), lane);
    } else {
      sums.part[e] += whole(8 + 2 * (warp & 1), 4 * (2 * (lane & 3) + (e & 1)));
    }
  }
  if (!masked) {
    sums.count += loose.count;
  } else {
    float tokens = whole(12, lane);
#pragma unroll
    for (int by = 1; by < 32; by *= 2) tokens += shuffle_xor(tokens, by);
    sums.count += tokens;
  }
}

// G and K for all warps to read, after the next barrier.
JRT_DEVICE void share_sums(HopperShared& sh, const Sums& sums, int warp, int lane) {
  uint2 mine;
  if (warp < 2) {
    const uint32_t upper = pack(sums.part[0], sums.part[1]), lower = pack(sums.part[2], sums.part[3]);
    mine = warp == 0 ? make_uint2(upper, lower) : make_uint2(lower, upper);
  } else {
    mine = make_uint2(bits_of(sums.part[0]), bits_of(sums.part[1]));
  }
  sh.sums[warp][lane] = mine;
}

template <int count>
JRT_DEVICE void mbarriers_init(Mbarrier (&mbarriers)[count]) {
  for (Mbarrier& each : mbarriers) mbarrier_init(each);
}

// Starts a run: issues the loads of its first chunks.
template <bool queries, bool masked, typename Shared>
JRT_DEVICE void load_first(Shared& sh, Run& run, int thread) {
#pragma unroll
  for (int ahead = 0; ahead < Shared::stages - 1; ++ahead) {
    if (run.loaded < run.tokens) load_chunk<queries, masked>(sh, run, ahead, thread);
    if (masked) cp_async_commit();
  }
}

// Issues the loads of the chunk that replaces the one before `stage`. No warp may read that one any more.
template <bool queries, bool masked, typename Shared>
JRT_DEVICE void load_next(Shared& sh, Run& run, int stage, int thread) {
  if (run.loaded < run.tokens) load_chunk<queries, masked>(sh, run, stage == 0 ? Shared::stages - 1 : stage - 1, thread);
  if (masked) cp_async_commit();
}

// The stage of a run's chunk, and the parity of that stage's mbarrier.
template <typename Shared>
struct Position {
  int stage = 0, parity = 0;
  JRT_DEVICE void next() {
    if (++stage == Shared::stages) stage = 0, parity ^= 1;
  }
};

JRT_DEVICE MatrixDescriptor features_descriptor(const Features& x) { return matrix_descriptor(x, kChunk * 64, 512, kBytes64); }
JRT_DEVICE MatrixDescriptor values_descriptor(const unsigned char* v) { return matrix_descriptor(v, 0, 1024, kBytes128); }

// S and the sums over a run of chunks without queries. A chunk's features are computed while wgmma multiplies those of the previous chunk.
// There is one __syncthreads per chunk. After it, this chunk's features and the next chunk's weights are complete and the previous chunk is free.
template <bool masked, typename Shared>
JRT_DEVICE void sum_up(float (&s)[80], Sums& sums, Shared& sh, Run run, int thread) {
  const int chunks = run.chunks(), warp = thread >> 5, lane = thread & 31;
  if (chunks == 0) return;
  const MatrixDescriptor values = values_descriptor(sh.v[0]), phi = features_descriptor(sh.phi[0]);
  load_first<false, masked>(sh, run, thread);
  if (masked) {
    cp_async_wait<Shared::stages - 2>();
    __syncthreads();
  }
  LooseSums loose{};
  Position<Shared> at;
  auto prepare = [&](int chunk) {
    const int left = run.tokens - chunk * kChunk;
    mbarrier_wait(sh.mbarriers[at.stage], at.parity);
    const Key key(sh.k[at.stage], thread & 63);
    update_loose<masked>(loose, sh.k[at.stage], sh.weight[at.stage], left, warp, lane);
    expand_keys<masked>(sh.phi[chunk & 1], key, sh.weight[at.stage], left, thread);
    if (masked) clear_masked(sh.v[at.stage], sh.weight[at.stage], thread);
    fence_async_proxy();
    if (masked) cp_async_wait<Shared::stages - 3>();
  };
  // The first chunk is outside the loop: inside, the compiler would see the initial sums as a write between products, and wait for each.
  prepare(0);
  __syncthreads();
  update_state(s, values, phi);
  load_next<false, masked>(sh, run, 0, thread);
  for (int chunk = 1; chunk < chunks; ++chunk) {
    at.next();
    prepare(chunk);
    wgmma_wait<0>();
    __syncthreads();
    update_state(s, further(values, at.stage * kChunk * 128), further(phi, (chunk & 1) * int(sizeof(Features))));
    load_next<false, masked>(sh, run, at.stage, thread);
  }
  wgmma_wait<0>();
  if (masked) cp_async_wait<0>();
  fence_async_proxy();
  __syncthreads();
  if (thread == 0) {  // another run may load tiles into the memory of these mbarriers
    for (Mbarrier& each : sh.mbarriers) mbarrier_invalidate(each);
    fence_async_proxy();
  }
  gather_loose<masked>(sums, reinterpret_cast<float*>(sh.phi), loose, warp, lane);
}

// tril(p(scores)) as left operand, and its row sums on top of `whole`.
template <int tile, bool masked>
JRT_DEVICE void weigh(uint32_t (&weights)[4][4], float (&whole)[2], const float (&scores)[32], const float* present, int lane) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int other = 0; other < 4; ++other)
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (other > tile) {
        weights[other][2 * n] = weights[other][2 * n + 1] = 0u;
        continue;
      }
      float y[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float score = scores[8 * other + 4 * n + e];
        y[e] = fmaf(score, fmaf(score, 0.03125f, 0.25f), 1.f);
        if (masked) {
          const float weight = present[16 * other + 8 * n + 2 * t + (e & 1)];
          y[e] = weight != 0.f ? y[e] * weight : 0.f;
        }
        if (other == tile && 8 * n + 2 * t + (e & 1) > g + 8 * (e >> 1)) y[e] = 0.f;
        whole[e >> 1] += y[e];
      }
      weights[other][2 * n] = pack(y[0], y[1]);
      weights[other][2 * n + 1] = pack(y[2], y[3]);
    }
}

// The weight of a slot's feature against that of taylor_linear_attention/features.py, and its place there (-1: none).
JRT_DEVICE int slot_place(int slot, float& weight) {
  if (slot < 16) {
    weight = 0.5f;
    return 1 + slot;
  }
  weight = slot < 32 ? 0.25f * 0.70710678118654752f : 0.25f;
  if (slot < 152) return 1 + slot;
  weight = 1.f;
  return slot == 152 ? 0 : -1;
}

template <bool outputs, bool masked>
__global__ void
#ifndef JRT_EMULATE
__launch_bounds__(kHopperThreads, outputs ? 2 : 3)
#endif
hopper_kernel(const __grid_constant__ HopperParams params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other architectures get an empty kernel, which nothing launches
  JRT_DYNAMIC_SHARED(raw);
  const PrefillParams& p = params.prefill;
  const LinearArgs& a = p.a;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
  const int bh = blockIdx.x, segment = blockIdx.y, first_column = blockIdx.z * kColumns;
  const int64_t b = bh / a.heads, h = bh % a.heads;
  const int f = int(a.head_dim), columns = f - first_column < kColumns ? f - first_column : kColumns;
  // If only sums are computed, an encoder's segments come before the others.
  const bool early = !outputs && segment < a.segments_enc;
  const int64_t begin = early ? segment * p.segment_enc : (outputs ? segment : segment - a.segments_enc) * p.segment;
  auto until = [&](int64_t tokens, int64_t length) { return begin + tokens < length ? begin + tokens : length; };

  auto run_over = [&](const TensorMap& k, const TensorMap& v, const float* mask, int64_t first, int64_t tokens) {
    return Run{&params.q, &k, &v, mask ? mask + first : nullptr, int(b), int(h), first_column, int(first), int(tokens), 0};
  };
  if (thread == 0) {
    if constexpr (outputs) {
      mbarriers_init(reinterpret_cast<EncoderSums*>(raw)->mbarriers);
      mbarriers_init(reinterpret_cast<HopperShared*>(raw)->mbarriers);
    } else {
      mbarriers_init(reinterpret_cast<LoneSums*>(raw)->mbarriers);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const float* mask = masked && a.mask ? a.mask + b * a.length : nullptr;
  const float* mask_enc = masked && a.mask_enc ? a.mask_enc + b * a.length_enc : nullptr;
  Run run = early ? run_over(params.k_enc, params.v_enc, mask_enc, begin, until(p.segment_enc, a.length_enc) - begin)
                  : run_over(params.k, params.v, mask, begin, until(p.segment, a.length) - begin);

  // Lane (g, t): rows 16 warp + g (+ 8), which are columns of v; of them slots 8 j + 2t, + 1.
  float s[80];
  Sums sums;
  {
    const float* kv = p.kv_in ? p.kv_in + bh * p.kv_in_head + segment * p.kv_in_segment : nullptr;
#pragma unroll
    for (int j = 0; j < 20; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float weight = 1.f;
        const int place = slot_place(8 * j + 2 * t + (e & 1), weight), column = 16 * warp + g + 8 * (e >> 1);
        s[4 * j + e] = kv && place >= 0 && column < columns ? kv[int64_t(place) * f + first_column + column] / weight : 0.f;
      }
    const float* ks = p.k_in ? p.k_in + bh * p.k_in_head + segment * p.k_in_segment : nullptr;
    sums.count = ks ? ks[0] : 0.f;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = sum_row(warp, g, e), j = sum_column(warp, t, e);
      const float square = ks ? ks[pair_index(i, j, 16)] * (i == j ? 4.f * 1.4142135623730951f : 4.f) : 0.f;
      sums.part[e] = warp < 2 ? square : ks ? ks[1 + j] * 2.f : 0.f;
    }
  }

  if constexpr (!outputs) {
    sum_up<masked>(s, sums, *reinterpret_cast<LoneSums*>(raw), run, thread);
  } else {
    if (a.k_enc.data) {
      const Run encoder = run_over(params.k_enc, params.v_enc, mask_enc, 0, a.length_enc);
      sum_up<masked>(s, sums, *reinterpret_cast<EncoderSums*>(raw), encoder, thread);
    }
    HopperShared& sh = *reinterpret_cast<HopperShared*>(raw);
    const MatrixDescriptor phi_k = features_descriptor(sh.phi), state = features_descriptor(sh.state);
    const MatrixDescriptor first_values = values_descriptor(sh.v[0]), first_keys = matrix_descriptor(sh.k[0], 0, 256, kBytes32);
    const uint32_t quarter = pack(0.25f, 0.25f), sixteenth = pack(0.0625f, 0.0625f), thirtysecond = pack(0.03125f, 0.03125f);
    load_first<true, masked>(sh, run, thread);
    share_sums(sh, sums, warp, lane);
    const int y_step = int(a.heads) * f;  // of y, from token to token
    // Where this lane writes: rows lane / 8 + 4 n of a block of 16, columns 8 (lane % 8) ...
    bf16* y_at = static_cast<bf16*>(a.y) + ((b * a.length + begin + (lane >> 3)) * a.heads + h) * f + first_column + (lane & 7) * 8;
    unsigned char* const out = sh.y + warp * 2048;
    unsigned char* const put = out + swizzled128((lane >> 3 & 1) * 8 + (lane & 7), lane >> 4);
    const unsigned char* const get = out + swizzled128(lane >> 3, lane & 7);
    uint32_t at_query[8];  // of row g's dims 2 (t + n), + 1
#pragma unroll
    for (int n = 0; n < 8; ++n) at_query[n] = swizzled32(g, (t + n) >> 2 & 1) + ((t + n) & 3) * 4;
    Position<HopperShared> at;
    for (int chunk = 0; chunk < run.chunks(); ++chunk, at.next()) {
      const int stage = at.stage;
      if (masked) cp_async_wait<HopperShared::stages - 2>();
      __syncthreads();
      load_next<true, masked>(sh, run, stage, thread);
      mbarrier_wait(sh.mbarriers[stage], at.parity);
      const unsigned char* const k = sh.k[stage];
      const int left = run.tokens - chunk * kChunk;
      const MatrixDescriptor values = further(first_values, stage * kChunk * 128);

      // The 16 tokens whose outputs this warp computes. Later tokens are more work, so neighbouring blocks use opposite orders.
      const int tile = (chunk + bh) & 1 ? 3 - warp : warp;
      const Key key(k, thread & 63);
      uint32_t x[2][8];  // row g + 8 up: q at dims (2 (t + n), + 1) % 16
#pragma unroll
      for (int up = 0; up < 2; ++up)
#pragma unroll
        for (int n = 0; n < 8; ++n)
          x[up][n] = *reinterpret_cast<const uint32_t*>(sh.q[stage] + 512 * tile + 256 * up + at_query[n]);
      // The small products first, G q and the sums: after the large ones they would have to wait.
      const uint32_t query[4] = {x[0][0], x[1][0], x[0][4], x[1][4]};
      float turned[2][4] = {};
      const uint2 near = sh.sums[0][lane], far = sh.sums[1][lane], first = sh.sums[2][lane], last = sh.sums[3][lane];
      mma(turned[0], query, near.x, far.x);
      mma(turned[1], query, near.y, far.y);
      // phi(q) z of earlier tokens, this lane's part.
      const float linear[2][2] = {{float_of(first.x), float_of(first.y)}, {float_of(last.x), float_of(last.y)}};
      float whole[2];
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        whole[up] = t == 0 ? sums.count : 0.f;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            whole[up] = fmaf(half_of(x[up][4 * n], e), fmaf(turned[n][2 * up + e], 0.03125f, 0.25f * linear[n][e]), whole[up]);
      }
      update_sums<masked>(sums, k, sh.weight[stage], left, warp, lane);

      expand_keys<masked>(sh.phi, key, sh.weight[stage], left, thread);
      if (masked) clear_masked(sh.v[stage], sh.weight[stage], thread);
      {
        const int matrix = lane >> 3, column = 16 * warp + (matrix & 1) * 8 + (lane & 7);
#pragma unroll
        for (int block = 0; block < 10; ++block) {
          const float* y = s + 8 * block;
          uint32_t r[4] = {pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7])};
          if (block == 9) {
#pragma unroll
            for (int up = 0; up < 2; ++up) {
              const float constant = y[4 + 2 * up];
              if (t == 0) r[2 + up] = pack(constant, constant - to_float(from_float<bf16>(constant)));
            }
          }
          stmatrix(sh.state[block >> 1] + swizzled64(column, (block & 1) * 2 + (matrix >> 1)), r[0], r[1], r[2], r[3]);
        }
      }
      fence_async_proxy();
      __syncthreads();
      float scores[32];  // of all pairs of tokens
      wgmma_fence();
      wgmma<false>(scores, query, further(first_keys, stage * kChunk * 32), false);
      wgmma_commit();
      update_state(s, values, phi_k);
      share_sums(sh, sums, warp, lane);

      // phi(q) S'
      uint32_t phi[10][4];
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        const uint32_t(&z)[8] = x[up];
        const uint32_t low = mul2(z[0], sixteenth), high = mul2(z[4], sixteenth);
        phi[0][up] = mul2(z[0], quarter);
        phi[0][2 + up] = mul2(z[4], quarter);
        phi[1][up] = mul2(mul2(z[0], thirtysecond), z[0]);
        phi[1][2 + up] = mul2(mul2(z[4], thirtysecond), z[4]);
#pragma unroll
        for (int shift = 1; shift < 8; ++shift) {
          const int n = shift / 2;
          phi[1 + shift][up] = mul2(low, shift & 1 ? straddle(z[n], z[n + 1]) : z[n]);
          phi[1 + shift][2 + up] = mul2(high, shift & 1 ? straddle(z[4 + n], z[(5 + n) & 7]) : z[4 + n]);
        }
        phi[9][up] = mul2(low, z[4]);
        phi[9][2 + up] = t == 0 ? pack(1.f, 1.f) : 0u;
      }
      float o[32];
      wgmma_fence();
#pragma unroll
      for (int block = 0; block < 10; ++block)
        wgmma<false>(o, phi[block], further(state, (block >> 1) * kColumns * 64 + (block & 1) * 32), block > 0);
      wgmma_commit();

      // tril(p) v
      wgmma_wait<2>();
      uint32_t weights[4][4];
      switch (tile) {
        case 0: weigh<0, masked>(weights, whole, scores, sh.weight[stage], lane); break;
        case 1: weigh<1, masked>(weights, whole, scores, sh.weight[stage], lane); break;
        case 2: weigh<2, masked>(weights, whole, scores, sh.weight[stage], lane); break;
        default: weigh<3, masked>(weights, whole, scores, sh.weight[stage], lane);
      }
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) wgmma<true>(o, weights[step], further(values, step * 2048), true);
      wgmma_commit();

      float inverse[2];
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        whole[up] += shuffle_xor(whole[up], 1);
        whole[up] += shuffle_xor(whole[up], 2);
        inverse[up] = reciprocal(whole[up] + kEps);
      }
      const int rows = left - 16 * tile;  // of this block of 16 that are there
      if (a.denominator && first_column == 0 && t == 0) {
        float* to = a.denominator + (b * a.length + begin + int64_t(chunk) * kChunk + 16 * tile + g) * a.heads + h;
#pragma unroll
        for (int up = 0; up < 2; ++up)
          if (g + 8 * up < rows) to[8 * up * a.heads] = whole[up];
      }
      wgmma_wait<0>();

      // Through this warp's part of shared memory, so that rows leave as a whole.
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const float* y = o + 4 * j;
        stmatrix(flipped(put, j * 16), pack(y[0] * inverse[0], y[1] * inverse[0]), pack(y[2] * inverse[1], y[3] * inverse[1]),
                       pack(y[4] * inverse[0], y[5] * inverse[0]), pack(y[6] * inverse[1], y[7] * inverse[1]));
      }
      syncwarp();
      bf16* to = y_at + int64_t(16 * tile) * y_step;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (4 * n + (lane >> 3) < rows && (lane & 7) * 8 < columns)
          *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(flipped(get, (n & 1) * 64) + 512 * n);
        to += 4 * y_step;
      }
      y_at += int64_t(kChunk) * y_step;
    }
  }

  if (p.kv_out && (!p.only_last_out || segment + 1 == int(gridDim.y))) {
    float* kv = p.kv_out + bh * p.kv_out_head + segment * p.kv_out_segment;
#pragma unroll
    for (int j = 0; j < 20; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float weight = 1.f;
        const int place = slot_place(8 * j + 2 * t + (e & 1), weight), column = 16 * warp + g + 8 * (e >> 1);
        if (place >= 0 && column < columns) kv[int64_t(place) * f + first_column + column] = s[4 * j + e] * weight;
      }
    if (first_column == 0) {
      float* ks = p.k_out + bh * p.k_out_head + segment * p.k_out_segment;
      if (thread == 0) ks[0] = sums.count;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = sum_row(warp, g, e), j = sum_column(warp, t, e);
        if (warp < 2) {
          if (i <= j) ks[pair_index(i, j, 16)] = sums.part[e] * (i == j ? 0.25f * 0.70710678118654752f : 0.25f);
        } else if (g == 0 && e < 2) {
          ks[1 + j] = sums.part[e] * 0.5f;
        }
      }
    }
  }
#endif
}

}  // namespace jrt_cuda
