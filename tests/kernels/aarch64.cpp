// Runs the portable kernels on data from standard input, for test_aarch64.py. It is compiled for another processor, which an
// emulator runs here. Arguments: batches length heads dim head_dim window dtype. In: q, k (batches, length + 1, heads, dim), v
// (..., head_dim). Out: y of all but the last token, y of a step with that one, the final state, then a window's y over v.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/args.hpp"

using namespace jrt;

int main(int count, char** arguments) {
  int64_t size[7];
  if (count != 8) return 2;
  for (int i = 0; i < 7; ++i) size[i] = std::atoll(arguments[i + 1]);
  const auto [batches, length, heads, d, f, window, dtype] = size;
  const int64_t n = (d + 1) * (d + 2) / 2, bytes = dtype == kFloat32 ? 4 : 2, all = length + 1, rows = batches * heads;
  auto buffer = [](int64_t size) { return std::vector<char>(size_t(size)); };
  auto q = buffer(batches * all * heads * d * bytes), k = q, v = buffer(batches * all * heads * f * bytes);
  for (auto* x : {&q, &k, &v}) {
    if (std::fread(x->data(), 1, x->size(), stdin) != x->size()) return 3;
  }
  auto view = [&](const std::vector<char>& x, int64_t width, int64_t token) {
    return View{x.data() + token * heads * width * bytes, all * heads * width, heads * width, width, 1};
  };
  auto y = buffer(batches * length * heads * f * bytes), last = buffer(rows * f * bytes), w = buffer(batches * all * heads * f * bytes);
  auto kv = buffer(rows * n * f * 4), k_sum = buffer(rows * n * 4);
  auto floats = [](std::vector<char>& x) { return reinterpret_cast<float*>(x.data()); };

  const Table& table = *table_portable();
  table.linear_attention({view(q, d, 0), view(k, d, 0), view(v, f, 0), y.data(), nullptr, nullptr, nullptr, floats(kv), floats(k_sum), nullptr,
                nullptr, batches, length, heads, d, n, f, int(dtype), true, 1});
  table.taylor_linear_attention_step({view(q, d, length), view(k, d, length), view(v, f, length), last.data(), floats(kv), floats(k_sum), nullptr, batches,
              heads, d, n, f, int(dtype), 1});
  auto ring_k = buffer(batches * window * heads * f * bytes), ring_v = ring_k;
  std::vector<int64_t> seen(static_cast<size_t>(batches));
  table.sliding_window_attention({view(v, f, 0), view(v, f, 0), view(v, f, 0), w.data(), nullptr, nullptr, nullptr, nullptr, ring_k.data(),
                ring_v.data(), seen.data(), batches, all, heads, f, window, int(dtype), 1});
  for (auto* x : {&y, &last, &kv, &k_sum, &w}) std::fwrite(x->data(), 1, x->size(), stdout);
  return 0;
}
