// Compiled once per instruction set, with that set's flags and JRT_AVX512, JRT_AVX2 or neither.
#include "selective_scan/selective_scan.hpp"
#include "gated_linear_attention/recurrence.hpp"
#include "short_conv/short_conv.hpp"
#include "ssd/ssd.hpp"
#include "taylor_linear_attention/taylor_linear_attention.hpp"
#include "taylor_linear_attention/backward.hpp"
#include "taylor_linear_attention/step.hpp"
#include "sliding_window_attention/sliding_window_attention.hpp"

#if defined(JRT_AVX512)
#define JRT_TABLE table_avx512
#define JRT_NAME "avx512"
#elif defined(JRT_AVX2)
#define JRT_TABLE table_avx2
#define JRT_NAME "avx2"
#else
#define JRT_TABLE table_portable
#define JRT_NAME "portable"
#endif

namespace jrt {

const Table* JRT_TABLE() {
  static constexpr Table table = {JRT_NAME,
                                  linear_attention,
                                  linear_attention_backward,
                                  ::taylor_linear_attention_step,
                                  ::sliding_window_attention,
                                  ::sliding_window_attention_step,
                                  ::short_conv,
                                  ::selective_scan,
                                  ::selective_scan_step,
                                  ::ssd,
                                  ::ssd_step,
                                  ::gated_linear_attention,
                                  ::gated_delta_rule};
  return &table;
}

}  // namespace jrt
