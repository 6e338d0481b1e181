// Which instruction set to use. Compiled without flags for any of them: this code must run everywhere.
#include "common/cpu.hpp"

#include <cstdlib>
#include <new>

#if defined(__x86_64__) || defined(_M_X64)
#define JRT_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace jrt {
namespace {

#ifdef JRT_X86
struct Registers {
  unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r{};
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, int(leaf), int(subleaf));
  r = {unsigned(out[0]), unsigned(out[1]), unsigned(out[2]), unsigned(out[3])};
#else
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
  return r;
}

// The registers whose contents the operating system keeps over a context switch.
unsigned kept_registers() {
#if defined(_MSC_VER)
  return unsigned(_xgetbv(0));
#else
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}
#endif

}  // namespace

bool has_avx2() {
#ifdef JRT_X86
  if (cpuid(0, 0).a < 7) return false;
  const Registers one = cpuid(1, 0);
  const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
  const unsigned need = fma | osxsave | avx | f16c;
  if ((one.c & need) != need) return false;
  if ((kept_registers() & 0x6u) != 0x6u) return false;
  return (cpuid(7, 0).b & (1u << 5)) != 0;
#else
  return false;
#endif
}

bool has_avx512() {
#ifdef JRT_X86
  if (!has_avx2() || (kept_registers() & 0xe6u) != 0xe6u) return false;
  const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
  const unsigned need = f | dq | bw | vl;
  return (cpuid(7, 0).b & need) == need;
#else
  return false;
#endif
}

namespace {

struct Buffer {
  float* data = nullptr;
  std::size_t size = 0;
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
};

}  // namespace

float* scratch(std::size_t floats) {
  static thread_local Buffer buffer;
#if defined(__SANITIZE_ADDRESS__)
  buffer.size = 0;  // the exact size, so that a sanitizer finds an access past its end
#endif
  if (buffer.size < floats) {
    ::operator delete(buffer.data, std::align_val_t(64));
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t(64)));
    buffer.size = floats;
  }
  return buffer.data;
}

void large_pages(void* data, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t(1) << 21;
  const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  if (data && last > first + page) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace jrt
