// The functions that put the operators into the Python module, one per operator: see its register.cpp.
#pragma once
#include <pybind11/pybind11.h>

#include "common/args.hpp"

namespace jrt {

// The kernels of the instruction set in use.
const Table& kernels();

void register_taylor_linear_attention(pybind11::module_& m);
void register_causal_dot_product(pybind11::module_& m);
void register_sliding_window_attention(pybind11::module_& m);
void register_short_conv(pybind11::module_& m);
void register_selective_scan(pybind11::module_& m);
void register_ssd(pybind11::module_& m);
void register_gated_linear_attention(pybind11::module_& m);
void register_gated_delta_rule(pybind11::module_& m);

}  // namespace jrt
