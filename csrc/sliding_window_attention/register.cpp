// sliding_window_attention and its decode step, for Python.
#include "bindings.hpp"
#include "common/tensor.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void prefill(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ring_k, const Tensor& ring_v, const Tensor& seen,
             const Tensor& lengths, const Tensor& y, const Tensor& ring_k_out, const Tensor& ring_v_out, const Tensor& seen_out,
             int threads) {
  jrt::WindowArgs p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view();
  p.y = y.data;
  p.ring_k_in = ring_k.data, p.ring_v_in = ring_v.data, p.seen = seen.as<int64_t>(), p.lengths = lengths.as<int64_t>();
  p.ring_k_out = ring_k_out.data, p.ring_v_out = ring_v_out.data, p.seen_out = seen_out.as<int64_t>();
  p.batches = v.shape[0], p.length = v.shape[1], p.heads = v.shape[2], p.dim = v.shape[3], p.window = ring_k_out.shape[1];
  p.dtype = v.dtype;
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  jrt::kernels().sliding_window_attention(p);
}

void step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ring_k, const Tensor& ring_v, const Tensor& seen,
          const Tensor& y, int threads) {
  jrt::WindowStepArgs p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view();
  p.y = y.data;
  p.ring_k = ring_k.data, p.ring_v = ring_v.data, p.seen = seen.as<int64_t>();
  p.batches = v.shape[0], p.heads = v.shape[1], p.dim = v.shape[2], p.window = ring_k.shape[1];
  p.dtype = v.dtype;
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  jrt::kernels().sliding_window_attention_step(p);
}

}  // namespace

void jrt::register_sliding_window_attention(py::module_& m) {
  m.def("sliding_window_attention", &prefill, arg("q"), arg("k"), arg("v"), arg("ring_k"), arg("ring_v"), arg("seen"), arg("lengths"),
        arg("y"), arg("ring_k_out"), arg("ring_v_out"), arg("seen_out"), arg("threads"),
        "Causal softmax attention over the last `window` keys, the second size of the rings.\n\n"
        "q, k, v (batch, length, heads, dim) of any strides; ring_k, ring_v (batch, window, heads, dim) and seen (batch) int64 are the\n"
        "state, or None; lengths (batch) int64 or None. Writes y (like v, contiguous) and the final state.");
  m.def("sliding_window_attention_step", &step, arg("q"), arg("k"), arg("v"), arg("ring_k"), arg("ring_v"), arg("seen"), arg("y"),
        arg("threads"), "A decode step: updates the rings and seen in place and writes y (batch, heads, dim), contiguous.");
}
