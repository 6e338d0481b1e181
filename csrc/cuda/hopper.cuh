// Causal linear attention with Taylor features on Hopper's tensor cores: bf16, feature dim 16, any head dim that is a multiple of 8.
//
// One warpgroup walks over one segment of one (row, head), for 64 columns of v, in chunks of 64 tokens. Per chunk:
//   S += v^T phi(k)      64 x 160, float accumulators in registers; v and phi(k) from shared memory
//   y = phi(q) S'^T + tril(p(q k^T)) v      phi(q) and p in registers; S' (S before this chunk, as bf16) and v from shared memory
// and y is divided by phi(q) z + rowsum tril p, where p(s) = 1 + s + s^2/2. With bf16 operands and 153 features that is 49,408 FLOP and
// 320 bytes per token and head: below the machine's balance, so the floor is one pass over q, k, v and y.
//
// The 153 symmetric features stand in ten blocks of 16: x_i; x_i x_{(i+s)%16} for s = 0..7; then x_i x_{i+8} for i = 0..7, the constant
// (slot 152), a slot whose feature is 1 for q and 0 for k (there S' keeps what bf16 cuts off the constant's row), nothing. All weights
// go to q's side, where they are powers of two: 1/4 (linear), 1/16 (pairs), 1/32 (squares).
//
// phi(k) is written to shared memory once a chunk; phi(q) is made in the places where the products want it. The normaliser needs no
// feature at all: phi(q) z = sum_j 1 + q'.k_j + (q'.k_j)^2 / 2 = n + q'.K + q'^T G q' / 2 with K = sum k_j and G = sum k_j k_j^T, 16 x 16, of
// which each warp holds a part as the accumulator of small products.
#pragma once
#include "prefill.cuh"
#include "wgmma.cuh"

namespace jrt_cuda {

constexpr int kHopperThreads = 128;
constexpr int kHopperStages = 3;
constexpr int kColumns = 64;   // of v, per block
constexpr int kHalfRow = 1088;  // of k: from the first 8 dims of 64 tokens to the last 8; 64 bytes more than they take, for the banks
constexpr int kQueryRow = 80;   // of q: a token's 16 dims, twice, so that each rotation of them is a straight read; and 16 bytes for the banks

struct HopperStage {
  alignas(16) unsigned char k[2 * kHalfRow];
  float weight[kChunk];  // the mask's numbers; 0 past the end; where there is a mask
};
struct HopperShared {
  alignas(1024) unsigned char phi[5][kChunk * 64];      // phi(k): [32 features][token][feature]
  alignas(1024) unsigned char state[5][kColumns * 64];  // S': [32 features][column of v][feature]
  alignas(1024) unsigned char v[kHopperStages][kChunk * 128];
  HopperStage stage[kHopperStages];
  uint2 sums[4][32];  // of each warp and lane: two rows of G as bf16, or two dims of K
  // What follows is there only where outputs are computed; without it three blocks fit on a multiprocessor.
  alignas(1024) unsigned char y[kChunk * 128];
  alignas(16) unsigned char q[kHopperStages][kChunk * kQueryRow];
};

// The sums that the normaliser is made of. Warps 0 and 1 hold 8 columns of G each, as accumulators; of warp 1 the upper and lower 8 rows
// are swapped. Warps 2 and 3 hold 8 dims of K each, in all rows.
struct Sums {
  float part[4];
  float count;
};
JRT_DEVICE int sum_row(int warp, int g, int e) { return (g + 8 * (e >> 1)) ^ (warp == 1 ? 8 : 0); }
JRT_DEVICE int sum_column(int warp, int t, int e) { return (warp & 1) * 8 + 2 * t + (e & 1); }

// One run of chunks: a segment of the sequence, or the encoder's tokens. Pointers are at what this thread copies of the next chunk:
// 16 bytes of q and k of token thread / 2, and of v of tokens thread / 8 + 16 n.
struct Run {
  const bf16 *q, *k, *v;
  const float* mask;  // null: all tokens are there
  int64_t q_step, k_step, v_step;  // from token to token
  int tokens, loaded;
  bool inside;  // whether this thread's piece of v lies in the head

  JRT_DEVICE int chunks() const { return (tokens + kChunk - 1) / kChunk; }
};

template <bool queries, bool masked>
JRT_DEVICE void load_chunk(HopperShared& sh, Run& run, int stage, int thread) {
  HopperStage& to = sh.stage[stage];
  const int left = run.tokens - run.loaded;
  const bool there = thread / 2 < left;
  if (queries) {
    unsigned char* row = sh.q[stage] + (thread / 2) * kQueryRow + (thread & 1) * 16;
    copy16(row, run.q, there);
    copy16(row + 32, run.q, there);
    run.q += kChunk * run.q_step;
  }
  copy16(to.k + (thread & 1) * kHalfRow + (thread / 2) * 16, run.k, there);
  run.k += kChunk * run.k_step;
  unsigned char* values = sh.v[stage] + swizzled128(thread / 8, thread & 7);
  const int rows = run.inside ? left - thread / 8 : 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) copy16(values + 2048 * n, run.v + 16 * n * run.v_step, 16 * n < rows);
  run.v += kChunk * run.v_step;
  if (masked && thread < kChunk) {
    if (run.mask) {
      copy4(&to.weight[thread], run.mask + run.loaded + thread, thread < left);
    } else {
      to.weight[thread] = thread < left ? 1.f : 0.f;
    }
  }
  run.loaded += kChunk;
}

// phi(k) of token thread % 64: the first five blocks of 16 by threads 0..63, the others by 64..127.
template <bool masked>
JRT_DEVICE void expand_keys(unsigned char (&out)[5][kChunk * 64], const HopperStage& now, int left, int thread) {
  const int row = thread & 63;
  uint32_t x[8], turned[8], own[8];
  {
    const uint4 low = *reinterpret_cast<const uint4*>(now.k + row * 16);
    const uint4 high = *reinterpret_cast<const uint4*>(now.k + kHalfRow + row * 16);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  }
  const float weight = masked ? now.weight[row] : row < left ? 1.f : 0.f;
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
JRT_DEVICE void update_state(float (&s)[80], Operand values, Operand phi) {
  products_begin();
#pragma unroll
  for (int step = 0; step < 4; ++step) multiply(s, further(values, step * 2048), further(phi, step * 1024));
  products_commit();
}

// The chunk's own part of G, K and n.
template <bool masked>
JRT_DEVICE void update_sums(Sums& sums, const HopperStage& now, int left, int warp, int lane) {
  const int t = lane & 3, matrix = lane >> 3;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t x[4];  // dims g (tokens 2t..), 8 + g, then the same at tokens 8 + 2t..; in warps 1 and 3 dims 8 + g first
    load_transposed(x, now.k + ((matrix ^ warp) & 1) * kHalfRow + (16 * step + (matrix >> 1) * 8 + (lane & 7)) * 16);
    const float* w = &now.weight[16 * step + 2 * t];
    const uint32_t early = masked ? pack(w[0], w[1]) : pack(1.f, 1.f), late = masked ? pack(w[8], w[9]) : pack(1.f, 1.f);
    if (warp < 2) {
      const uint32_t own[4] = {masked ? mul2(x[0], early) : x[0], masked ? mul2(x[1], early) : x[1],
                               masked ? mul2(x[2], late) : x[2], masked ? mul2(x[3], late) : x[3]};
      mma(sums.part, own, x[0], x[2]);
    } else {
      const uint32_t weights[4] = {early, early, late, late};
      mma(sums.part, weights, x[0], x[2]);
    }
  }
  if (masked) {
    float whole = to_float(from_float<bf16>(now.weight[lane])) + to_float(from_float<bf16>(now.weight[lane + 32]));
#pragma unroll
    for (int by = 1; by < 32; by *= 2) whole += from_xor(whole, by);
    sums.count += whole;
  } else {
    sums.count += float(left < kChunk ? left : kChunk);
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

// The operands of the products: phi(k), S' and (of the first stage) v.
struct Operands {
  Operand phi, state, values;
  JRT_DEVICE explicit Operands(const HopperShared& sh)
      : phi(operand(sh.phi, kChunk * 64, 512, kBytes64)),
        state(operand(sh.state, 0, 512, kBytes64)),
        values(operand(sh.v, 0, 1024, kBytes128)) {}
};

JRT_DEVICE int next_stage(int stage) { return stage + 1 == kHopperStages ? 0 : stage + 1; }

// Starts a run: its first chunks on their way to shared memory.
template <bool queries, bool masked>
JRT_DEVICE void load_first(HopperShared& sh, Run& run, int thread) {
#pragma unroll
  for (int ahead = 0; ahead < kHopperStages - 1; ++ahead) {
    if (run.loaded < run.tokens) load_chunk<queries, masked>(sh, run, ahead, thread);
    commit_copies();
  }
}

// Sends for the chunk that takes the place of the one before `stage`, which nobody may be reading any more.
template <bool queries, bool masked>
JRT_DEVICE void load_next(HopperShared& sh, Run& run, int stage, int thread) {
  if (run.loaded < run.tokens) load_chunk<queries, masked>(sh, run, stage == 0 ? kHopperStages - 1 : stage - 1, thread);
  commit_copies();
}

// S and the sums over a run of chunks that has no queries. A chunk's features are made while the one before is being multiplied; the
// room of S' serves as a second place for them.
template <bool masked>
JRT_DEVICE void sum_up(float (&s)[80], Sums& sums, HopperShared& sh, const Operands& at, Run run, int thread) {
  const int chunks = run.chunks();
  if (chunks == 0) return;
  load_first<false, masked>(sh, run, thread);
  // Up to where only the products with the chunk before have to be waited for.
  auto prepare = [&](int chunk, int stage) {
    wait_copies<kHopperStages - 2>();
    __syncthreads();
    const HopperStage& now = sh.stage[stage];
    const int left = run.tokens - chunk * kChunk;
    expand_keys<masked>(chunk & 1 ? sh.state : sh.phi, now, left, thread);
    update_sums<masked>(sums, now, left, thread >> 5, thread & 31);
    publish_shared();
  };
  prepare(0, 0);
  __syncthreads();
  update_state(s, at.values, at.phi);
  load_next<false, masked>(sh, run, 0, thread);
  for (int chunk = 1, stage = 1; chunk < chunks; ++chunk, stage = next_stage(stage)) {
    prepare(chunk, stage);
    products_wait<0>();
    __syncthreads();
    update_state(s, further(at.values, stage * kChunk * 128), further(at.phi, chunk & 1 ? kChunk * 64 * 5 : 0));
    load_next<false, masked>(sh, run, stage, thread);
  }
  products_wait<0>();
  wait_copies<0>();
  __syncthreads();
}

// q k^T for 16 queries of block `tile`, against the keys of that block of 16 and of those before it.
template <int tile>
JRT_DEVICE void multiply_keys(float (&scores)[4][2][4], const uint32_t (&query)[4], const unsigned char* k, int lane) {
#pragma unroll
  for (int other = 0; other <= tile; ++other) {
    uint32_t keys[4];
    load_matrices(keys, k + (lane >> 3 & 1) * kHalfRow + (16 * other + (lane & 7) + (lane >> 4) * 8) * 16);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[other][n][e] = 0.f;
      mma(scores[other][n], query, keys[2 * n], keys[2 * n + 1]);
    }
  }
}

// tril(p(scores)) as left operand, and its row sums on top of `whole`.
template <int tile, bool masked>
JRT_DEVICE void weigh(uint32_t (&weights)[4][4], float (&whole)[2], const float (&scores)[4][2][4], const float* present, int lane) {
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
        const float score = scores[other][n][e];
        y[e] = fmaf(score, fmaf(score, 0.03125f, 0.25f), 1.f);
        if (masked) y[e] *= present[16 * other + 8 * n + 2 * t + (e & 1)];
        if (other == tile && 8 * n + 2 * t + (e & 1) > g + 8 * (e >> 1)) y[e] = 0.f;
        whole[e >> 1] += y[e];
      }
      weights[other][2 * n] = pack(y[0], y[1]);
      weights[other][2 * n + 1] = pack(y[2], y[3]);
    }
}

// The weight of a slot's feature against that of jrt_eval/kernels/features.py, and its place there (-1: none).
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
hopper_kernel(const PrefillParams p) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other architectures get an empty kernel, which nothing launches
  JRT_DYNAMIC_SHARED(raw);
  HopperShared& sh = *reinterpret_cast<HopperShared*>(raw);
  const LinearArgs& a = p.a;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
  const int bh = blockIdx.x, segment = blockIdx.y, first_column = blockIdx.z * kColumns;
  const int64_t b = bh / a.heads, h = bh % a.heads;
  const int f = int(a.head_dim), columns = f - first_column < kColumns ? f - first_column : kColumns;
  // Where only sums are computed, an encoder's segments come before the others.
  const bool early = !outputs && segment < a.segments_enc;
  const int64_t begin = early ? segment * p.segment_enc : (outputs ? segment : segment - a.segments_enc) * p.segment;
  auto until = [&](int64_t tokens, int64_t length) { return begin + tokens < length ? begin + tokens : length; };

  auto run_over = [&](const View* q, const View& k, const View& v, const float* mask, int64_t first, int64_t tokens) {
    auto from = [&](const View& x, int token, int piece) {
      return static_cast<const bf16*>(x.data) + b * x.batch + h * x.head + (first + token) * x.length + piece * 8;
    };
    Run run{};
    if (q) run.q = from(*q, thread / 2, thread & 1), run.q_step = q->length;
    run.k = from(k, thread / 2, thread & 1), run.k_step = k.length;
    run.v = from(v, thread / 8, thread & 7) + first_column, run.v_step = v.length;
    run.mask = mask ? mask + first : nullptr;
    run.tokens = int(tokens);
    run.inside = (thread & 7) * 8 < columns;
    return run;
  };
  const float* mask = masked && a.mask ? a.mask + b * a.length : nullptr;
  const float* mask_enc = masked && a.mask_enc ? a.mask_enc + b * a.length_enc : nullptr;
  Run run = early ? run_over(nullptr, a.k_enc, a.v_enc, mask_enc, begin, until(p.segment_enc, a.length_enc) - begin)
                  : run_over(outputs ? &a.q : nullptr, a.k, a.v, mask, begin, until(p.segment, a.length) - begin);
  const Operands operands(sh);

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
    sum_up<masked>(s, sums, sh, operands, run, thread);
  } else {
    if (a.k_enc.data) sum_up<masked>(s, sums, sh, operands, run_over(nullptr, a.k_enc, a.v_enc, mask_enc, 0, a.length_enc), thread);
    const uint32_t quarter = pack(0.25f, 0.25f), sixteenth = pack(0.0625f, 0.0625f), thirtysecond = pack(0.03125f, 0.03125f);
    load_first<true, masked>(sh, run, thread);
    share_sums(sh, sums, warp, lane);
    const int y_step = int(a.heads) * f;  // of y, from token to token
    // Where this lane writes: rows lane / 8 + 4 n of a block of 16, columns 8 (lane % 8) ...
    bf16* y_at = static_cast<bf16*>(a.y) + ((b * a.length + begin + (lane >> 3)) * a.heads + h) * f + first_column + (lane & 7) * 8;
    unsigned char* const out = sh.y + warp * 2048;
    unsigned char* const put = out + swizzled128((lane >> 3 & 1) * 8 + (lane & 7), lane >> 4);
    const unsigned char* const get = out + swizzled128(lane >> 3, lane & 7);
    for (int chunk = 0, stage = 0; chunk < run.chunks(); ++chunk, stage = next_stage(stage)) {
      wait_copies<kHopperStages - 2>();
      __syncthreads();
      load_next<true, masked>(sh, run, stage, thread);
      const HopperStage& now = sh.stage[stage];
      const int left = run.tokens - chunk * kChunk;
      const Operand values = further(operands.values, stage * kChunk * 128);

      // Which 16 tokens this warp answers for: warps have more work the later their tokens, so blocks take turns.
      const int tile = (chunk + bh) & 1 ? 3 - warp : warp;
      uint32_t x[2][8];  // row g + 8 up: q at dims (2 (t + n), + 1) % 16
#pragma unroll
      for (int up = 0; up < 2; ++up)
#pragma unroll
        for (int n = 0; n < 8; ++n)
          x[up][n] = *reinterpret_cast<const uint32_t*>(sh.q[stage] + (16 * tile + g + 8 * up) * kQueryRow + 4 * (t + n));
      // The small products first: behind the large ones they would have to wait. Scores, G q, and the sums.
      const uint32_t query[4] = {x[0][0], x[1][0], x[0][4], x[1][4]};
      float scores[4][2][4], turned[2][4] = {};
      switch (tile) {
        case 0: multiply_keys<0>(scores, query, now.k, lane); break;
        case 1: multiply_keys<1>(scores, query, now.k, lane); break;
        case 2: multiply_keys<2>(scores, query, now.k, lane); break;
        default: multiply_keys<3>(scores, query, now.k, lane);
      }
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
      update_sums<masked>(sums, now, left, warp, lane);

      expand_keys<masked>(sh.phi, now, left, thread);
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
          store_matrices(sh.state[block >> 1] + swizzled64(column, (block & 1) * 2 + (matrix >> 1)), r[0], r[1], r[2], r[3]);
        }
      }
      publish_shared();
      __syncthreads();
      update_state(s, values, operands.phi);
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
      products_begin();
#pragma unroll
      for (int block = 0; block < 10; ++block)
        multiply<false>(o, phi[block], further(operands.state, (block >> 1) * kColumns * 64 + (block & 1) * 32), block > 0);
      products_commit();

      // tril(p) v
      uint32_t weights[4][4];
      switch (tile) {
        case 0: weigh<0, masked>(weights, whole, scores, now.weight, lane); break;
        case 1: weigh<1, masked>(weights, whole, scores, now.weight, lane); break;
        case 2: weigh<2, masked>(weights, whole, scores, now.weight, lane); break;
        default: weigh<3, masked>(weights, whole, scores, now.weight, lane);
      }
      products_begin();
#pragma unroll
      for (int step = 0; step < 4; ++step) multiply<true>(o, weights[step], further(values, step * 2048), true);
      products_commit();

      float inverse[2];
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        whole[up] += from_xor(whole[up], 1);
        whole[up] += from_xor(whole[up], 2);
        inverse[up] = reciprocal(whole[up] + kEps);
      }
      const int rows = left - 16 * tile;  // of this block of 16 that are there
      if (a.denominator && first_column == 0 && t == 0) {
        float* to = a.denominator + (b * a.length + begin + int64_t(chunk) * kChunk + 16 * tile + g) * a.heads + h;
#pragma unroll
        for (int up = 0; up < 2; ++up)
          if (g + 8 * up < rows) to[8 * up * a.heads] = whole[up];
      }
      products_wait<0>();

      // Through this warp's part of shared memory, so that rows leave as a whole.
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const float* y = o + 4 * j;
        store_matrices(flipped(put, j * 16), pack(y[0] * inverse[0], y[1] * inverse[0]), pack(y[2] * inverse[1], y[3] * inverse[1]),
                       pack(y[4] * inverse[0], y[5] * inverse[0]), pack(y[6] * inverse[1], y[7] * inverse[1]));
      }
      warp_barrier();
      bf16* to = y_at + int64_t(16 * tile) * y_step;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (4 * n + (lane >> 3) < rows && run.inside)
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
