#include "tests/mixer_golden.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace weft {
namespace {

/// The values of a tensor, none where the file has no such tensor.
template <class T = double>
std::vector<T> read(const SafetensorsFile& file, const std::string& tensor) {
  if (!file.contains(tensor)) return {};
  int64_t numel = 1;
  for (const int64_t d : file.entry(tensor).shape) numel *= d;
  std::vector<T> out(numel);
  file.read<T>(tensor, out);
  return out;
}

void expect_near(const SafetensorsFile& file, const std::string& tensor,
                 const std::vector<double>& got, double tolerance) {
  EXPECT_EQ(file.contains(tensor), !got.empty()) << tensor;
  EXPECT_LE(relative_rms(got, read(file, tensor)), tolerance) << tensor;
}

}  // namespace

std::string test_name(const std::string& file) {
  std::string test = std::filesystem::path(file).stem();
  std::replace(test.begin(), test.end(), '-', '_');
  return test;
}

naive::StateMixerInputs mixer_inputs(const SafetensorsFile& file) {
  naive::StateMixerInputs in;
  const std::string kind = file.metadata().at("kind");
  const auto* known = std::find_if(std::begin(kStateKinds), std::end(kStateKinds),
                                   [&](StateKind k) { return kind == name(k); });
  WEFT_CHECK(known != std::end(kStateKinds), file.path(), ": kind ", kind);
  in.kind = *known;
  const std::vector<int64_t>& q = file.entry("q").shape;
  in.batch = q[0], in.tokens = q[1], in.heads = q[2], in.key_dim = q[3];
  in.value_dim = file.entry("v").shape[3];
  in.scale = std::stod(file.metadata().at("scale"));
  in.q = read(file, "q");
  in.k = read(file, "k");
  in.v = read(file, "v");
  in.log_decay = read(file, "g");
  in.beta = read(file, "beta");
  in.h0 = read(file, "h0");
  in.dout = read(file, "do");
  in.dhT = read(file, "dht");
  in.positions.assign(in.batch * in.tokens, 1);
  for (const int64_t start : read<int64_t>(file, "doc_starts")) {
    for (int64_t b = 0; b < in.batch; ++b) in.positions[b * in.tokens + start] = 0;
  }
  return in;
}

void expect_agreement(const SafetensorsFile& file, const naive::StateMixerResult& r, DType dtype) {
  const bool oracle_type = dtype == DType::f64;
  const double tolerance = oracle_type ? 1e-6 : 1e-5;
  const double tolerance_of_gates = oracle_type ? 1e-6 : 1e-4;
  expect_near(file, "o", r.out, tolerance);
  expect_near(file, "hT", r.hT, tolerance);
  expect_near(file, "dq", r.dq, tolerance);
  expect_near(file, "dk", r.dk, tolerance);
  expect_near(file, "dv", r.dv, tolerance);
  expect_near(file, "dg", r.dlog_decay, tolerance_of_gates);
  expect_near(file, "dbeta", r.dbeta, tolerance_of_gates);
  expect_near(file, "dh0", r.dh0, tolerance);
}

}  // namespace weft
