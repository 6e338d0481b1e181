// The matrix product that the CPU kernels share.
//
// C[r][c] (+)= sum_k A(r, k) B[k][c] for small matrices in scratch memory. A tile is R rows by N vectors of columns and its
// R*N accumulators never leave the registers: each step over k loads N vectors of B and broadcasts R numbers of A for R*N
// multiply-adds. With AVX-512 a tile is 6 x 64 floats: 24 multiply-adds (12 cycles on two ports) against 10 loads (5 cycles),
// so the multipliers are the limit, not the loads. With AVX2 it is 6 x 16: 12 accumulators, as 16 registers allow.
//
// There is no blocking for the cache. The operators keep B (the state of one head, 153 x 64 floats = 39 KB, and a chunk of values,
// 16 KB) and A (a chunk's features) in the core's second-level cache from chunk to chunk.
// A chunk of 64 tokens is 4nF + 2C(d+F) FLOPs per token, n = 153, F = 64: 49,408, against 640 bytes read and written.
//
// An `Epilogue` takes a finished tile (stores it, adds it to memory, scales and converts it, turns scores into weights): begin(r, c)
// gives the accumulator's first value, end(r, c, x) takes its last.
#pragma once
#include "common/pack.hpp"

namespace {

constexpr int tile_rows(int columns) { return kTile / columns < 12 ? kTile / columns : 12; }

// A(r, k) is a[r * lda + k] if AByRow, else a[k * lda + r].
template <int R, int N, bool AByRow, class Epilogue>
JRT_INLINE void tile(int64_t row, int64_t col, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb,
                     Epilogue& e) {
  Vec acc[R][N];
  JRT_UNROLL for (int r = 0; r < R; ++r) JRT_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = e.begin(row + r, col + n * kW);
  const float* at = AByRow ? a + row * lda : a + row;
  const float* from = b + col;
  for (int64_t k = 0; k < depth; ++k) {
    Vec line[N];
    JRT_UNROLL for (int n = 0; n < N; ++n) line[n] = load(from + n * kW);
    JRT_UNROLL for (int r = 0; r < R; ++r) {
      const Vec x = set1(AByRow ? at[r * lda] : at[r]);
      JRT_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = fma(x, line[n], acc[r][n]);
    }
    at += AByRow ? 1 : lda;
    from += ldb;
  }
  JRT_UNROLL for (int r = 0; r < R; ++r) JRT_UNROLL for (int n = 0; n < N; ++n) e.end(row + r, col + n * kW, acc[r][n]);
}

// How many steps over k a tile that ends before row `stop` takes.
struct Depth {
  int64_t fixed;   // always these
  int64_t causal;  // and as many of these as there are rows up to the tile's last
  JRT_INLINE int64_t of(int64_t stop) const { return fixed + (stop < causal ? stop : causal); }
};

template <int R, int N, bool AByRow, class Epilogue>
JRT_INLINE void rows_of(int64_t& row, int64_t stop, int64_t col, Depth depth, const float* a, int64_t lda, const float* b,
                        int64_t ldb, Epilogue& e) {
  if constexpr (R <= tile_rows(N)) {
    while (stop - row >= R) {
      tile<R, N, AByRow>(row, col, depth.of(row + R), a, lda, b, ldb, e);
      row += R;
    }
  }
}

// Rows row..stop of N vectors of columns, in the largest tiles that fit.
template <int N, bool AByRow, class Epilogue>
void panel(int64_t row, int64_t stop, int64_t col, Depth depth, const float* a, int64_t lda, const float* b, int64_t ldb,
           Epilogue& e) {
  rows_of<12, N, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
  rows_of<8, N, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
  rows_of<6, N, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
  rows_of<4, N, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
  rows_of<3, N, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
  rows_of<2, N, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
  rows_of<1, N, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
}

// Rows row..stop, columns col..col_stop (whole vectors). B's and A's pointers belong to row 0 and column 0.
template <bool AByRow, class Epilogue>
inline void gemm(int64_t row, int64_t stop, int64_t col, int64_t col_stop, Depth depth, const float* a, int64_t lda,
                 const float* b, int64_t ldb, Epilogue& e) {
  while (col < col_stop) {
    int64_t left = (col_stop - col) / kW;
    // 5 = 3 + 2 rather than 4 + 1: a tile of one column is all latency
    if (left > kMaxColumns) left = left == kMaxColumns + 1 && kMaxColumns > 2 ? kMaxColumns - 1 : kMaxColumns;
    if constexpr (kMaxColumns >= 4) {
      if (left == 4) panel<4, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
      if (left == 3) panel<3, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
    }
    if (left == 2) panel<2, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
    if (left == 1) panel<1, AByRow>(row, stop, col, depth, a, lda, b, ldb, e);
    col += left * kW;
  }
}

// Whether x has neither NaN nor infinity; count is a multiple of kW.
inline bool all_finite(const float* x, int64_t count) {
  Vec zeros = zero();
  for (int64_t i = 0; i < count; i += kW) zeros = fma(load(x + i), zero(), zeros);
  return sum(zeros) == 0.0f;
}

// C += A B
struct Accumulate {
  float* c;
  int64_t ldc;
  JRT_INLINE Vec begin(int64_t r, int64_t col) const { return load(c + r * ldc + col); }
  JRT_INLINE void end(int64_t r, int64_t col, Vec x) const { store(c + r * ldc + col, x); }
};

// C = A B
struct Assign {
  float* c;
  int64_t ldc;
  JRT_INLINE Vec begin(int64_t, int64_t) const { return zero(); }
  JRT_INLINE void end(int64_t r, int64_t col, Vec x) const { store(c + r * ldc + col, x); }
};

// Rows of C = scale[r] * A B, written to a tensor of `width` columns in its own dtype.
struct WriteRows {
  void* to;
  int dtype;
  int64_t offset, stride, width;
  const float* scale;  // or null
  JRT_INLINE Vec begin(int64_t, int64_t) const { return zero(); }
  JRT_INLINE void end(int64_t r, int64_t col, Vec x) const {
    if (scale) x = mul(x, set1(scale[r]));
    const int64_t left = width - col;
    if (left > 0) write(dtype, to, offset + r * stride + col, x, int(left < kW ? left : kW));
  }
};

}  // namespace
