// wgmma, the matrix products of a warp group (four warps) on Hopper, and the fences that order them against ordinary accesses.
//
// Accumulators (64 x n): warp w of the group holds rows 16 w ... 16 w + 15; its lane (g = lane / 4, t = lane % 4) has, for each tile
// j of 8 columns, d[4 j], d[4 j + 1] = [16 w + g][8 j + 2 t, + 1] and d[4 j + 2], d[4 j + 3] = [16 w + g + 8][the same columns].
// Left operands in registers are the A fragments of device.cuh, one 16 x 16 block for each warp.
//
// Operands in shared memory are in tiles that are 128, 64 or 32 bytes wide, with their 16-byte pieces swizzled: piece p of row r is at
// p ^ (r % 8) in a 128-byte row, at p ^ (r / 2 % 4) in a 64-byte row, at p ^ (r / 4 % 2) in a 32-byte row. Tiles start at multiples of
// eight rows.
#pragma once
#include "cuda/device.cuh"

namespace jrt_cuda {

enum Swizzle : uint64_t { kBytes128 = 1, kBytes64 = 2, kBytes32 = 3 };

JRT_DEVICE uint32_t swizzled128(int row, int piece) { return uint32_t(row * 128 + ((piece ^ (row & 7)) << 4)); }
JRT_DEVICE uint32_t swizzled64(int row, int piece) { return uint32_t(row * 64 + ((piece ^ ((row >> 1) & 3)) << 4)); }

JRT_DEVICE uint32_t swizzled32(int row, int piece) { return uint32_t(row * 32 + ((piece ^ ((row >> 2) & 1)) << 4)); }

// The address with some of the bits that choose a piece turned over: another piece of the same row.
template <typename Byte>
JRT_DEVICE Byte* flipped(Byte* at, int bits) { return reinterpret_cast<Byte*>(reinterpret_cast<uintptr_t>(at) ^ uintptr_t(bits)); }

#ifdef JRT_EMULATE
JRT_DEVICE MatrixDescriptor matrix_descriptor(const void* at, int beside, int below, Swizzle swizzle) {
  return {at, beside, below, swizzle == kBytes128 ? 128 : swizzle == kBytes64 ? 64 : 32};
}
JRT_DEVICE MatrixDescriptor further(MatrixDescriptor x, int bytes) {
  return {static_cast<const char*>(x.at) + bytes, x.beside, x.below, x.width};
}
#else
// The matrix descriptor of an operand in shared memory. `beside`: bytes from one tile to the next along its adjacent elements;
// `below`: bytes from 8 rows to the next 8.
using MatrixDescriptor = uint64_t;
JRT_DEVICE MatrixDescriptor matrix_descriptor(const void* at, int beside, int below, Swizzle swizzle) {
  return (uint64_t(shared_address(at) & 0x3ffff) >> 4) | uint64_t(beside >> 4) << 16 | uint64_t(below >> 4) << 32 | uint64_t(swizzle) << 62;
}

// The descriptor of the operand that starts `bytes` later, a multiple of 16.
JRT_DEVICE MatrixDescriptor further(MatrixDescriptor x, int bytes) { return x + uint64_t(bytes >> 4); }

// Needed before the first wgmma that reads registers written since the last one.
JRT_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
JRT_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
JRT_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Makes this thread's writes to shared memory visible to wgmma and TMA after the next __syncthreads.
JRT_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four 8 x 8 matrices from their C fragments; lane l gives the address of row l % 8 of matrix l / 8.
JRT_DEVICE void stmatrix(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// d (64 x 64) = [d +] a b: a (64 x 16) in registers, b (16 x 64) in shared memory, with neighbouring columns adjacent there if
// `columns`, neighbouring rows otherwise.
template <bool columns>
JRT_DEVICE void wgmma(float (&d)[32], const uint32_t (&a)[4], MatrixDescriptor b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(columns ? 1 : 0));
}

// d (64 x 160) += a b: both in shared memory, a (64 x 16) with neighbouring rows adjacent, b (16 x 160) with neighbouring columns.
JRT_DEVICE void wgmma(float (&d)[80], MatrixDescriptor a, MatrixDescriptor b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
      "}, %80, %81, p, 1, 1, 1, 1;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
        "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
        "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
      : "l"(a), "l"(b));
}
#endif

}  // namespace jrt_cuda
