// weft bench kernels: it has every kernel of the dispatch layer, it finds a kernel that is wrong or
// leaves something unwritten, and its figures follow from one another.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "launch/kernels_bench.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/command.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Json = nlohmann::json;
using enum Element;

/// What the sources of src/kernels dispatch to twins.
std::set<std::string> dispatched_kernels() {
  std::set<std::string> names;
  const std::regex dispatch(R"(WEFT_DISPATCH\((\w+), args, stream\))");
  for (const auto& entry : std::filesystem::directory_iterator(WEFT_SOURCE_DIR "/src/kernels")) {
    if (entry.path().extension() != ".cpp") continue;
    std::ifstream in(entry.path());
    std::stringstream source;
    source << in.rdbuf();
    const std::string text = source.str();
    for (std::sregex_iterator match(text.begin(), text.end(), dispatch), end; match != end;
         ++match) {
      names.insert((*match)[1]);
    }
  }
  return names;
}

TEST(BenchKernels, HasEveryKernelThatIsDispatched) {
  std::set<std::string> named;
  std::set<std::pair<std::string, std::string>> cases;
  for (const KernelCase& one : kernel_cases()) {
    named.insert(one.kernel);
    EXPECT_TRUE(cases.insert({one.kernel, one.form}).second) << one.kernel << " twice";
  }
  EXPECT_GT(named.size(), 40u);
  EXPECT_EQ(named, dispatched_kernels());
}

/// On shapes, for devices that this machine may not have.
TEST(BenchKernels, EveryCaseCallsItsKernelOnEveryDevice) {
  for (const KernelCase& one : kernel_cases()) {
    for (const auto& [device, dtype] : {std::pair{Device::cpu, DType::f32},
                                        {Device::cpu, DType::f64},
                                        {Device::cuda, DType::f32},
                                        {Device::cuda, DType::bf16}}) {
      SCOPED_TRACE(concat(one.kernel, " ", one.form, " on ", name(device), " in ", name(dtype)));
      const KernelPlan large = plan_kernel(one, {device, dtype, dtype, timed_sizes(device)});
      const KernelPlan small = plan_kernel(one, {device, dtype, dtype, compared_sizes()});
      for (const KernelPlan& plan : {large, small}) {
        EXPECT_STREQ(plan.call.name, one.kernel);
        EXPECT_GT(plan.call.cost.bytes, 0);
        EXPECT_FALSE(plan.shape.empty());
      }
      EXPECT_LE(small.bytes, 16 << 20);
      EXPECT_LE(large.bytes, device == Device::cuda ? int64_t{30} << 30 : int64_t{1} << 30);
    }
  }
}

struct BenchRun {
  Json json;
  CommandResult result;
};

BenchRun bench(const std::string& arguments) {
  const std::string file = fresh_folder() + "/kernels.json";
  BenchRun run;
  run.result = run_command(weft_alone() + " bench kernels --json " + file + " " + arguments);
  EXPECT_EQ(run.result.code, 0) << run.result.out;
  std::ifstream in(file);
  if (in) run.json = Json::parse(in);
  return run;
}

TEST(BenchKernels, MeasuresEveryCaseWithinItsBound) {
  const auto [json, result] = bench("--device cpu --repeats 1");
  ASSERT_FALSE(json.is_null());
  EXPECT_EQ(json.at("device"), "cpu");
  EXPECT_EQ(json.at("dtype"), "f32");
  EXPECT_EQ(json.at("repeats"), 1);
  EXPECT_TRUE(json.at("ok"));
  const double copies = json.at("copy_bytes_per_s"), products = json.at("product_flops_per_s");
  EXPECT_GT(copies, 0);
  EXPECT_GT(products, 0);
  ASSERT_EQ(json.at("kernels").size(), kernel_cases().size());
  int of_flops = 0;
  for (size_t i = 0; i < kernel_cases().size(); ++i) {
    const KernelCase& one = kernel_cases()[i];
    const Json& row = json.at("kernels")[i];
    SCOPED_TRACE(row.dump());
    EXPECT_EQ(row.at("kernel"), one.kernel);
    EXPECT_EQ(row.at("form"), one.form);
    EXPECT_GT(row.at("seconds"), 0);
    EXPECT_GT(row.at("bytes"), 0);
    EXPECT_LE(row.at("error"), row.at("bound"));
    EXPECT_LE(row.at("bound"), 1e-4);
    EXPECT_FALSE(row.at("output").get<std::string>().empty());
    EXPECT_TRUE(row.at("ok"));
    const bool flops = row.at("floor") == "flops";
    const double bound =
        flops ? row.at("flops").get<double>() / products : row.at("bytes").get<double>() / copies;
    EXPECT_NEAR(row.at("floor_s").get<double>() / bound, 1, 1e-9);
    EXPECT_NEAR(row.at("share").get<double>() * row.at("seconds").get<double>() / bound, 1, 1e-9);
    EXPECT_FALSE(result.lines(one.kernel).empty()) << result.out;
    of_flops += flops ? 1 : 0;
  }
  EXPECT_GT(of_flops, 3);
  EXPECT_LT(of_flops, static_cast<int>(kernel_cases().size()) - 30);
}

TEST(BenchKernels, ComparesWithoutTiming) {
  const auto [json, result] = bench("--kernels row_squares,matmul --repeats 0");
  ASSERT_FALSE(json.is_null());
  EXPECT_EQ(json.at("copy_bytes_per_s"), 0);
  EXPECT_EQ(json.at("product_flops_per_s"), 0);
  ASSERT_EQ(json.at("kernels").size(), 4u);
  for (const Json& row : json.at("kernels")) {
    EXPECT_EQ(row.at("seconds"), 0);
    EXPECT_EQ(row.at("share"), 0);
    EXPECT_GT(row.at("error"), 0);
    EXPECT_TRUE(row.at("ok"));
  }
}

TEST(BenchKernels, MeasuresTheKernelsThatAreNamed) {
  const auto [json, result] = bench("--kernels row_squares,rope,matmul --dtype f64 --repeats 1");
  ASSERT_FALSE(json.is_null());
  std::vector<std::string> kernels;
  for (const Json& row : json.at("kernels")) {
    kernels.push_back(row.at("kernel"));
    EXPECT_EQ(row.at("error"), 0);  // its own twin
    EXPECT_EQ(row.at("bound"), 1e-12);
  }
  const std::vector<std::string> expected{"matmul", "matmul", "matmul", "rope", "row_squares"};
  EXPECT_EQ(kernels, expected);
}

TEST(BenchKernels, MistakesLeaveWithTheirCode) {
  const std::tuple<const char*, int, const char*> mistakes[] = {
      {"--device cuda", 2, "no GPU"},
      {"--device tpu", 2, "--device"},
      {"--dtype bf16", 2, "f32 or f64 on the CPU"},
      {"--device cuda --dtype f64", 2, "f32 or bf16 on a GPU"},
      {"--kernels fill,smoke", 2, "'smoke'"},
      {"--repeats -1", 2, "--repeats"},
      {"--kernels fill --json /proc/none/x.json", 74, "/proc/none/x.json"},
  };
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run = run_command(weft_alone() + " bench kernels " + arguments);
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << run.out;
    EXPECT_EQ(run.lines("weft: ").size(), 1u) << run.out;
  }
}

// ---- Cases that are wrong

KernelResult measure(const KernelCase& one, int repeats = 1) {
  return KernelsBench({.repeats = repeats}, {&one}).measure(one);
}

/// y = a + b, and a + c in the reference.
KernelUse sum_of_others(Workbench& w) {
  const Tensor a = w.input(data, {50}), b = w.input(data, {50}), c = w.input(data, {50});
  const bool reference = w.stored(data) == DType::f64;
  return use_of(add, {.y = w.output("y", data, {50}), .a = a, .b = reference ? c : b}, "50");
}

TEST(BenchKernels, FindsAKernelThatIsWrong) {
  const KernelCase wrong{"add", "of others", sum_of_others};
  const KernelResult result = measure(wrong);
  EXPECT_NEAR(result.error, 1, 0.3);  // |b - c| over |a + c|
  EXPECT_FALSE(result.ok());
  const KernelCase right{"fill", "", [](Workbench& w) {
                           return use_of(fill, {w.output("y", data, {7}), 2.0}, "7");
                         }};
  const KernelResult good = measure(right);
  EXPECT_TRUE(good.ok());
  EXPECT_NO_THROW(require_within_bounds({good}));
  try {
    require_within_bounds({good, result});
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::comparison);
    EXPECT_NE(std::string(error.what()).find("1 of 2 cases"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("add (of others): y"), std::string::npos);
  }
}

TEST(BenchKernels, FindsAnErrorOfEveryOutput) {
  // Of two outputs the second is wrong, by little.
  const KernelCase wrong{"rmsnorm_forward", "", [](Workbench& w) {
                           const bool reference = w.stored(data) == DType::f64;
                           return use_of(rmsnorm_forward,
                                         {.y = w.output("y", data, {5, 8}),
                                          .rstd = w.output("rstd", wide, {5}),
                                          .x = w.input(data, {5, 8}),
                                          .weight = w.input(data, {8}, [](double) { return 0.0; }),
                                          .eps = reference ? 1e-5 : 1e-3},
                                         "5 x 8");
                         }};
  const KernelResult result = measure(wrong);
  EXPECT_EQ(result.output, "rstd");
  EXPECT_GT(result.error, 1e-4);
  EXPECT_LT(result.error, 1e-2);
  EXPECT_FALSE(result.ok());
}

TEST(BenchKernels, FindsWhatIsLeftUnwritten) {
  const KernelCase half{"fill", "", [](Workbench& w) {
                          const Tensor y = w.output("y", data, {8});
                          return use_of(fill, {y.slice(0, 0, 4), 2.0}, "8");
                        }};
  const KernelResult result = measure(half);
  EXPECT_EQ(result.error, kInfinity);
  EXPECT_FALSE(result.ok());
}

TEST(BenchKernels, RefusesACaseOfAnotherKernelOrOfNoOutput) {
  const KernelCase other{"copy", "", sum_of_others};
  EXPECT_THROW(measure(other), Error);
  const KernelCase none{"fill", "", [](Workbench& w) {
                          return use_of(fill, {w.work(data, {8}), 2.0}, "8");
                        }};
  EXPECT_THROW(measure(none), Error);
}

TEST(BenchKernels, EveryCallStartsFromTheSameValues) {
  std::vector<float> seen;
  const KernelCase doubling{"add", "in place", [&](Workbench& w) {
                              const Tensor y = w.updated("y", data, {8});
                              KernelUse use = use_of(add, {.y = y, .a = y, .b = y}, "8");
                              const bool counts = y.data != nullptr && y.dtype == DType::f32;
                              use.call = [&seen, counts, y, call = use.call](Stream& stream) {
                                if (counts) seen.push_back(y.as<float>()[3]);
                                call(stream);
                              };
                              return use;
                            }};
  EXPECT_TRUE(measure(doubling, 4).ok());
  EXPECT_EQ(seen.size(), 1u + 4u + 1u);  // to warm up, timed, compared
  EXPECT_EQ(std::set<float>(seen.begin(), seen.end()).size(), 1u);
}

TEST(BenchKernels, RelativeErrors) {
  EXPECT_EQ(relative_error({3, -4}, {3, -4}), 0);
  EXPECT_DOUBLE_EQ(relative_error({3, 5}, {3, 4}), 0.2);
  EXPECT_EQ(relative_error({}, {}), 0);
  EXPECT_EQ(relative_error({0, 0}, {0, 0}), 0);
  EXPECT_EQ(relative_error({0, 1}, {0, 0}), kInfinity);
  EXPECT_EQ(relative_error({-kInfinity, 1}, {-kInfinity, 1}), 0);
  EXPECT_EQ(relative_error({-kInfinity, 1}, {kInfinity, 1}), kInfinity);
  EXPECT_EQ(relative_error({-kInfinity, 1}, {0, 1}), kInfinity);
  EXPECT_EQ(relative_error({NAN, 1}, {NAN, 1}), kInfinity);
  EXPECT_EQ(relative_error({1}, {1, 1}), kInfinity);
}

}  // namespace
}  // namespace weft
