// Enough of CUDA to run csrc/cuda's kernels on a processor, one block at a time, for tests where no GPU is: a fiber per thread,
// the collective instructions in software (with the fragments' layouts as device.cuh gives them), copies in the background done as
// late as they may be, shared memory that starts as NaN. It checks indices and barriers, not speed.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__ static
#define __grid_constant__
#define JRT_DEVICE inline
#define JRT_HOST_DEVICE
#define JRT_DYNAMIC_SHARED(name) unsigned char* const name = emulated::shared_memory()
#define JRT_STATIC_SHARED(type, name, size) static type name[size]
#define JRT_LAUNCH(kernel, grid, threads, bytes, stream, ...) emulated::launch(grid, threads, bytes, [&] { kernel(__VA_ARGS__); })
#define threadIdx (emulated::now().thread)
#define blockIdx (emulated::block)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct float4 {
  float x, y, z, w;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
inline uint2 make_uint2(uint32_t a, uint32_t b) { return {a, b}; }
inline uint4 make_uint4(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return {a, b, c, d}; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

using cudaStream_t = void*;
using cudaError_t = int;
inline const char* cudaGetErrorString(int) { return "emulated"; }
constexpr int cudaSuccess = 0, cudaErrorNotSupported = 801, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
inline int cudaGetLastError() { return 0; }
inline int cudaFuncSetAttribute(const void*, int, int) { return 0; }

namespace emulated {

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int bytes;
};

struct Fiber {
  dim3 thread;
  ucontext_t context;
  std::vector<char> stack;
  std::vector<std::vector<Copy>> groups;  // committed copies
  std::vector<Copy> open;
  long block_barriers = 0, warp_steps = 0;
  bool done = false;
};

inline dim3 block, block_size, grid_size;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline int current = 0, running = 0;
inline long block_arrived = 0;
struct Slot {
  alignas(16) unsigned char bytes[64];
};
struct Warp {
  long arrived = 0;
  Slot slots[2][32];
};
inline std::vector<Warp> warps;
inline std::vector<unsigned char> memory;
inline ucontext_t home;
inline std::function<void()> body;
inline std::mt19937 dice{1};

inline Fiber& now() { return *fibers[current]; }
inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 1023) / 1024 * 1024);
}

// To the next lane of this warp, at times to another warp.
inline void yield() {
  const int from = current, count = int(fibers.size());
  int next = from / 32 * 32 + (from + 1) % 32;
  if (dice() % 48 == 0 || next >= count) next = int(dice() % unsigned(count));
  for (int tries = 0; fibers[next]->done; ++tries) next = tries < 40 ? next / 32 * 32 + (next + 1) % 32 : int(dice() % unsigned(count));
  if (next == from) next = int(dice() % unsigned(count));
  if (next == from || fibers[next]->done) return;
  current = next;
  swapcontext(&fibers[from]->context, &fibers[next]->context);
}

inline void entry() {
  body();
  now().done = true;
  if (--running == 0) {
    setcontext(&home);
  }
  while (true) {
    const int next = int(dice() % unsigned(fibers.size()));
    if (!fibers[next]->done) {
      current = next;
      setcontext(&fibers[next]->context);
    }
  }
}

inline void block_barrier() {
  const long until = ++now().block_barriers * long(fibers.size());
  ++block_arrived;
  while (block_arrived < until) yield();
}

// Every lane gives `bytes`; what all gave.
template <typename V>
const Slot* exchange(const V& value) {
  static_assert(sizeof(V) <= sizeof(Slot));
  Warp& warp = warps[current / 32];
  Slot* slots = warp.slots[now().warp_steps & 1];
  std::memcpy(slots[current % 32].bytes, &value, sizeof(V));
  const long until = ++now().warp_steps * 32;
  ++warp.arrived;
  while (warp.arrived < until) yield();
  return slots;
}
template <typename V>
V of_lane(const Slot* slots, int lane) {
  V value;
  std::memcpy(&value, slots[lane].bytes, sizeof(V));
  return value;
}

template <typename F>
void launch(dim3 grid, dim3 threads, size_t bytes, F&& kernel) {
  grid_size = grid;
  block_size = threads;
  body = kernel;
  const int count = int(threads.x);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block = dim3(x, y, z);
        memory.assign(bytes + 1024, 0xff);
        warps.assign((count + 31) / 32, Warp{});
        block_arrived = 0;
        fibers.clear();
        for (int i = 0; i < count; ++i) {
          auto fiber = std::make_unique<Fiber>();
          fiber->thread = dim3(i);
          fiber->stack.resize(96 * 1024);
          getcontext(&fiber->context);
          fiber->context.uc_stack.ss_sp = fiber->stack.data();
          fiber->context.uc_stack.ss_size = fiber->stack.size();
          fiber->context.uc_link = nullptr;
          makecontext(&fiber->context, entry, 0);
          fibers.push_back(std::move(fiber));
        }
        running = count;
        current = int(dice() % unsigned(count));
        swapcontext(&home, &now().context);
      }
}

}  // namespace emulated

inline void __syncthreads() { emulated::block_barrier(); }

namespace jrt_cuda {

struct bf16 {
  uint16_t bits;
};
using f16 = _Float16;

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline float to_float(f16 x) { return float(x); }
template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }
template <>
inline f16 from_float<f16>(float x) { return f16(x); }
template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline uint32_t bits_of(float x) {
  uint32_t out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline float float_of(uint32_t x) {
  float out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline uint32_t pack(float low, float high) { return from_float<bf16>(low).bits | uint32_t(from_float<bf16>(high).bits) << 16; }
inline uint32_t pack_f16(float low, float high) {
  const f16 both[2] = {f16(low), f16(high)};
  uint32_t out;
  std::memcpy(&out, both, 4);
  return out;
}
inline float half_of(uint32_t x, int which) { return to_float(bf16{uint16_t(x >> 16 * which)}); }
inline uint32_t mul2(uint32_t a, uint32_t b) { return pack(half_of(a, 0) * half_of(b, 0), half_of(a, 1) * half_of(b, 1)); }
inline uint32_t straddle(uint32_t a, uint32_t b) { return a >> 16 | b << 16; }
inline uint32_t f16_to_bf16(uint32_t x) {
  f16 both[2];
  std::memcpy(both, &x, 4);
  return pack(float(both[0]), float(both[1]));
}

inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Given {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const emulated::Slot* slots = emulated::exchange(mine);
  const int lane = emulated::current % 32, g = lane / 4, t = lane % 4;
  float all[4];
  for (int e = 0; e < 4; ++e) {
    const int row = g + 8 * (e / 2), col = 2 * t + e % 2;
    float sum = c[e];
    for (int k = 0; k < 16; ++k) {
      const Given x = emulated::of_lane<Given>(slots, row % 8 * 4 + k % 8 / 2), y = emulated::of_lane<Given>(slots, col * 4 + k % 8 / 2);
      sum += half_of(x.a[row / 8 + 2 * (k / 8)], k % 2) * half_of(y.b[k / 8], k % 2);
    }
    all[e] = sum;
  }
  for (int e = 0; e < 4; ++e) c[e] = all[e];
}

template <int count, bool transposed>
void load_fragments(uint32_t (&r)[count], const void* row) {
  if (emulated::current % 32 < 8 * count && reinterpret_cast<uintptr_t>(row) % 16) {
    std::fprintf(stderr, "emulate: a matrix row is not aligned to 16 bytes\n");
    std::abort();
  }
  const emulated::Slot* slots = emulated::exchange(row);
  const int lane = emulated::current % 32, g = lane / 4, t = lane % 4;
  for (int m = 0; m < count; ++m) {
    uint16_t both[2];
    for (int e = 0; e < 2; ++e) {
      const int at = transposed ? 2 * t + e : g, col = transposed ? g : 2 * t + e;
      both[e] = static_cast<const uint16_t*>(emulated::of_lane<const void*>(slots, 8 * m + at))[col];
    }
    r[m] = both[0] | uint32_t(both[1]) << 16;
  }
}
inline void ldmatrix(uint32_t (&r)[4], const void* row) { load_fragments<4, false>(r, row); }
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) { load_fragments<4, true>(r, row); }
inline void ldmatrix_transposed(uint32_t (&r)[2], const void* row) { load_fragments<2, true>(r, row); }

inline float reciprocal(float x) { return 1.f / x; }
inline float fast_exp(float x) { return std::exp(x); }
inline void syncwarp() { emulated::exchange(0); }
inline uint32_t shuffle(uint32_t x, int lane) { return emulated::of_lane<uint32_t>(emulated::exchange(x), lane); }
inline uint32_t shuffle_xor(uint32_t x, int mask) {
  const int lane = emulated::current % 32;
  return emulated::of_lane<uint32_t>(emulated::exchange(x), lane ^ mask);
}
inline float shuffle_xor(float x, int mask) {
  const int lane = emulated::current % 32;
  return emulated::of_lane<float>(emulated::exchange(x), lane ^ mask);
}

inline void copy(void* to, const void* from, bool there, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
    std::fprintf(stderr, "emulate: a copy of %d bytes is not aligned\n", bytes);
    std::abort();
  }
  emulated::now().open.push_back({to, there ? from : nullptr, bytes});
}
inline void cp_async16(void* to, const void* from, bool there) { copy(to, from, there, 16); }
inline void cp_async4(void* to, const void* from, bool there) { copy(to, from, there, 4); }
inline void cp_async_commit() {
  emulated::Fiber& fiber = emulated::now();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int pending>
void cp_async_wait() {
  auto& groups = emulated::now().groups;
  while (int(groups.size()) > pending) {
    for (const emulated::Copy& c : groups.front()) c.from ? (void)std::memcpy(c.to, c.from, c.bytes) : (void)std::memset(c.to, 0, c.bytes);
    groups.erase(groups.begin());
  }
}

// tma.cuh: a tile is copied when somebody waits for it, as late as it may be.
struct TensorMap {
  const unsigned char* data;
  int64_t sizes[4], steps[4];  // dim, heads, length, batches; in bytes
  int columns;
};
struct Mbarrier {
  int rounds, expected;  // completed; bytes of the tiles that are still to come
};
struct Tile {
  unsigned char* to;
  const TensorMap* map;
  Mbarrier* at;
  int from[4];
};
inline std::vector<Tile> tiles;
inline void mbarrier_init(Mbarrier& at) { at = {0, 0}; }
inline void mbarrier_invalidate(Mbarrier& at) { at = {-1, -1}; }
inline void fence_mbarrier_init() {}
inline void expect_bytes(Mbarrier& at, int bytes) {
  if (at.expected) std::fprintf(stderr, "emulate: a barrier is used again before its round is over\n"), std::abort();
  at.expected = bytes;
}
inline void tma_load(void* to, const TensorMap& map, Mbarrier& at, int column, int head, int token, int row) {
  // What is swizzled begins at eight rows, whose order the swizzle changes.
  if (reinterpret_cast<uintptr_t>(to) % (16 * map.columns)) std::fprintf(stderr, "emulate: a tile's place is not aligned\n"), std::abort();
  tiles.push_back({static_cast<unsigned char*>(to), &map, &at, {column, head, token, row}});
}
inline void copy_tile(const Tile& tile) {
  const TensorMap& map = *tile.map;
  const int width = 2 * map.columns;
  for (int n = 0; n < 64; ++n)
    for (int c = 0; c < map.columns; ++c) {
      const int64_t at[4] = {tile.from[0] + c, tile.from[1], tile.from[2] + n, tile.from[3]};
      int64_t offset = 0;
      bool inside = true;
      for (int i = 0; i < 4; ++i) offset += at[i] * map.steps[i], inside = inside && at[i] < map.sizes[i];
      uintptr_t to = reinterpret_cast<uintptr_t>(tile.to) + n * width + 2 * c;
      to ^= (to >> 7 & uintptr_t(width / 16 - 1)) << 4;
      inside ? (void)std::memcpy(reinterpret_cast<void*>(to), map.data + offset, 2) : (void)std::memset(reinterpret_cast<void*>(to), 0, 2);
    }
  tile.at->expected -= 64 * width;
}
inline void mbarrier_wait(Mbarrier& at, int parity) {
  while ((at.rounds & 1) == parity) {
    bool any = false;
    for (size_t i = 0; i < tiles.size();) {
      if (tiles[i].at != &at) {
        ++i;
        continue;
      }
      copy_tile(tiles[i]);
      tiles.erase(tiles.begin() + long(i));
      any = true;
    }
    if (any && at.expected) std::fprintf(stderr, "emulate: tiles have %d bytes fewer than expected\n", at.expected), std::abort();
    if (any) ++at.rounds;
    if (!any) emulated::yield();
  }
}
template <typename X>
int make_tensor_map(TensorMap& map, const X& x, int64_t dim, int64_t heads, int64_t length, int64_t batches, int columns) {
  map = {static_cast<const unsigned char*>(x.data), {dim, heads, length, batches}, {2, 2 * x.head, 2 * x.length, 2 * x.batch}, columns};
  return cudaSuccess;
}

// wgmma.cuh: products of a warpgroup, computed where they are issued (so a missing wait is not seen here).
struct MatrixDescriptor {
  const void* at;
  int beside, below, width;  // width of a tile's rows in bytes
};

inline float element(const MatrixDescriptor& x, bool rows_adjacent, int k, int other) {
  const int width = x.width / 2;
  const uintptr_t offset = rows_adjacent ? other % width * 2 + other / width * x.beside + k % 8 * x.width + k / 8 * x.below
                                         : k * 2 + other % 8 * x.width + other / 8 * x.below;
  uintptr_t address = reinterpret_cast<uintptr_t>(x.at) + offset;
  address ^= (address >> 7 & uintptr_t(x.width / 16 - 1)) << 4;
  return to_float(*reinterpret_cast<const bf16*>(address));
}

// d[row][column] of the accumulators' layout += a b, for this thread's part.
template <int count, typename A, typename B>
void accumulate(float (&d)[count], bool add, A&& a, B&& b) {
  const int lane = emulated::current % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < count; ++i) {
    const int row = g + 8 * (i % 4 / 2), column = i / 4 * 8 + 2 * t + i % 2;
    float sum = add ? d[i] : 0.f;
    for (int k = 0; k < 16; ++k) sum += a(row, k) * b(k, column);
    d[i] = sum;
  }
}

template <bool columns>
void wgmma(float (&d)[32], const uint32_t (&a)[4], const MatrixDescriptor& b, bool add) {
  struct Given {
    uint32_t a[4];
  };
  const emulated::Slot* slots = emulated::exchange(Given{{a[0], a[1], a[2], a[3]}});
  accumulate(
      d, add,
      [&](int row, int k) {
        return half_of(emulated::of_lane<Given>(slots, row % 8 * 4 + k % 8 / 2).a[row / 8 + 2 * (k / 8)], k % 2);
      },
      [&](int k, int column) { return element(b, columns, k, column); });
}
inline void wgmma(float (&d)[80], const MatrixDescriptor& a, const MatrixDescriptor& b) {
  const int warp = emulated::current / 32;
  accumulate(
      d, true, [&](int row, int k) { return element(a, true, k, 16 * warp + row); },
      [&](int k, int column) { return element(b, true, k, column); });
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int pending>
void wgmma_wait() {}
inline void fence_async_proxy() {}
inline void stmatrix(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const emulated::Slot* slots = emulated::exchange(row);
  const int lane = emulated::current % 32;
  const uint32_t r[4] = {a, b, c, d};
  for (int m = 0; m < 4; ++m) {
    std::memcpy(static_cast<char*>(emulated::of_lane<void*>(slots, 8 * m + lane / 4)) + lane % 4 * 4, &r[m], 4);
  }
}

}  // namespace jrt_cuda
