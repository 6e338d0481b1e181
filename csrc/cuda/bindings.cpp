// The Python module _cuda: numbers in, the structures of args.hpp out, an exception for what CUDA refuses.
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cuda/args.hpp"

namespace py = pybind11;

namespace jrt_cuda {

void register_selective_scan(py::module_& m);

}  // namespace jrt_cuda

namespace {

using Address = std::uintptr_t;
using Int = int64_t;
using jrt_cuda::View;

template <typename T>
T* pointer(Address address) { return reinterpret_cast<T*>(address); }

void check(int error) {
  if (error) throw std::runtime_error("jrt-eval's CUDA kernels: " + std::string(jrt_cuda::error_name(error)));
}

void linear(Address q, Int qb, Int ql, Int qh, Int qd, Address k, Int kb, Int kl, Int kh, Int kd, Address v, Int vb, Int vl, Int vh,
            Int vd, Address k_enc, Int keb, Int kel, Int keh, Int ked, Address v_enc, Int veb, Int vel, Int veh, Int ved, Address y,
            Address denominator, Address kv_in, Address k_in, Address kv_out, Address k_out, Address mask, Address mask_enc, Address decay,
            Address scratch, Int batches, Int length, Int length_enc, Int heads, Int dim, Int features, Int head_dim, Int segments,
            Int segments_enc, int dtype, bool taylor, int kernel, Address stream) {
  const jrt_cuda::LinearArgs p{{pointer<void>(q), qb, ql, qh, qd},
                               {pointer<void>(k), kb, kl, kh, kd},
                               {pointer<void>(v), vb, vl, vh, vd},
                               {pointer<void>(k_enc), keb, kel, keh, ked},
                               {pointer<void>(v_enc), veb, vel, veh, ved},
                               pointer<void>(y),
                               pointer<float>(denominator),
                               pointer<float>(kv_in),
                               pointer<float>(k_in),
                               pointer<float>(kv_out),
                               pointer<float>(k_out),
                               pointer<float>(mask),
                               pointer<float>(mask_enc),
                               pointer<float>(decay),
                               pointer<float>(scratch),
                               batches,
                               length,
                               length_enc,
                               heads,
                               dim,
                               features,
                               head_dim,
                               segments,
                               segments_enc,
                               dtype,
                               taylor};
  check(jrt_cuda::linear(p, jrt_cuda::Kernel(kernel), pointer<void>(stream)));
}

// The state is written while the other tensors are read.
void apart(Address written, Int floats, std::initializer_list<Address> others) {
  for (const Address other : others) {
    if (other >= written && other < written + Address(floats) * sizeof(float)) {
      throw py::value_error("taylor_step: an input lies inside the state that the step writes; pass a clone of it");
    }
  }
}

void step(Address q, Int qb, Int qh, Int qd, Address k, Int kb, Int kh, Int kd, Address v, Int vb, Int vh, Int vd, Address y, Address kv,
          Address k_sum, Address decay, Int batches, Int heads, Int dim, Int features, Int head_dim, int dtype, Address stream) {
  apart(kv, batches * heads * features * head_dim, {q, k, v, k_sum});
  apart(k_sum, batches * heads * features, {q, k, v, kv});
  const jrt_cuda::StepArgs p{{pointer<void>(q), qb, 0, qh, qd},
                             {pointer<void>(k), kb, 0, kh, kd},
                             {pointer<void>(v), vb, 0, vh, vd},
                             pointer<void>(y),
                             pointer<float>(kv),
                             pointer<float>(k_sum),
                             pointer<float>(decay),
                             batches,
                             heads,
                             dim,
                             features,
                             head_dim,
                             dtype};
  check(jrt_cuda::step(p, pointer<void>(stream)));
}

void conv(Address a, Int ab, Int al, Int ac, Address b, Int bb, Int bl, Int bc, Address y, Address weight, Address bias, Address state_in,
          Address state_out, Address lengths, Int batches, Int length, Int channels, Int width, int dtype, Address stream) {
  const jrt_cuda::ConvArgs p{{pointer<void>(a), ab, al, 0, ac},
                             {pointer<void>(b), bb, bl, 0, bc},
                             pointer<void>(y),
                             pointer<void>(weight),
                             pointer<void>(bias),
                             pointer<float>(state_in),
                             pointer<float>(state_out),
                             pointer<Int>(lengths),
                             batches,
                             length,
                             channels,
                             width,
                             dtype};
  check(jrt_cuda::conv(p, pointer<void>(stream)));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of jrt-eval; call them through jrt_eval.kernels.";
  // Raised by one whenever a signature changes, so that a stale build is named instead of crashing.
  m.attr("ABI") = 4;
  m.attr("HOPPER") = jrt_cuda::has_hopper();
  m.def("linear", &linear);
  m.def("step", &step);
  m.def("conv", &conv);
  jrt_cuda::register_selective_scan(m);
  m.def("generic_shared", &jrt_cuda::generic_shared, "Bytes of shared memory that the generic kernel needs.");
}
