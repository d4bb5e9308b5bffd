// safetensors files, good and bad. Every bad one is one line with exit code 65.
#include "launch/safetensors.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "src/core/check.hpp"

namespace weft {
namespace {

/// A file that goes when the test ends.
class TemporaryFile {
 public:
  TemporaryFile() {
    std::string pattern = (std::filesystem::temp_directory_path() / "weft-st-XXXXXX").string();
    close(mkstemp(pattern.data()));
    path_ = pattern;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  void write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }

 private:
  std::string path_;
};

/// Length, header and data as a file has them.
std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + data;
}

template <class T>
std::string bytes_of(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
}

/// What is said of a file with these bytes, without its path; empty where it opens.
std::string message_of(const std::string& bytes) {
  const TemporaryFile file;
  file.write(bytes);
  try {
    const SafetensorsFile opened(file.path());
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::data);
    const std::string message = e.what();
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_TRUE(message.starts_with(file.path() + ": ")) << message;
    return message.substr(file.path().size() + 2);
  }
  return {};
}

std::string message_of_header(const std::string& header, size_t data_bytes = 8) {
  return message_of(file_of(header, std::string(data_bytes, 'x')));
}

template <class F>
std::string message_of_call(const SafetensorsFile& file, F&& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::data);
    return std::string(e.what()).substr(file.path().size() + 2);
  }
  return {};
}

const std::string kGolden = WEFT_SOURCE_DIR "/tests/golden/";

TEST(SafetensorsTest, ReadsTheGoldenFiles) {
  const SafetensorsFile model(kGolden + "llama-gqa/model.safetensors");
  EXPECT_EQ(model.metadata().at("format"), "pt");
  EXPECT_EQ(model.names().size(), 39u);
  EXPECT_TRUE(model.tensor("lm_head.weight").has_shape({256, 64}));
  EXPECT_EQ(model.tensor("lm_head.weight").dtype, DType::f32);

  const SafetensorsFile expected(kGolden + "llama-gqa/expected.safetensors");
  std::vector<double> loss(20);
  expected.read("loss", std::span(loss));
  EXPECT_NEAR(loss[0], std::log(256.0), 0.5);  // a new model knows nothing
  EXPECT_LT(loss[19], loss[0]);
  const Tensor tokens = expected.tensor("tokens");
  EXPECT_TRUE(tokens.has_shape({20, 2, 257}));
  std::vector<int64_t> ids(tokens.numel());
  expected.read("tokens", std::span(ids));
  for (const int64_t id : ids) EXPECT_TRUE(id >= 0 && id < 256);

  for (const char* kind : {"none", "scalar", "scalar-docs", "vector", "delta"}) {
    const SafetensorsFile mixer(kGolden + "mixer-" + kind + ".safetensors");
    EXPECT_EQ(mixer.metadata().count("scale"), 1u);
    EXPECT_EQ(mixer.tensor("q").ndim, 4);
  }
}

TEST(SafetensorsTest, ConvertsEveryDtype) {
  const std::string header = R"({"__metadata__":{"made":"here"},)"
                             R"("d":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},)"
                             R"("f":{"dtype":"F32","shape":[1,2],"data_offsets":[16,24]},)"
                             R"("l":{"dtype":"I64","shape":[1],"data_offsets":[24,32]},)"
                             R"("i":{"dtype":"I32","shape":[1],"data_offsets":[32,36]},)"
                             R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[36,40]},)"
                             R"("u":{"dtype":"U8","shape":[2],"data_offsets":[40,42]},)"
                             R"("one":{"dtype":"U8","shape":[],"data_offsets":[42,43]},)"
                             R"("none":{"dtype":"F32","shape":[3,0],"data_offsets":[43,43]}})"
                             "   ";
  const TemporaryFile file;
  file.write(file_of(header, bytes_of({0.1, -2.5}) + bytes_of({0.25f, 3.0f}) +
                                 bytes_of({int64_t{-5}}) + bytes_of({int32_t{-6}}) +
                                 bytes_of({uint16_t{0x3F80}, uint16_t{0xC040}}) +
                                 bytes_of({uint8_t{7}, uint8_t{255}}) + bytes_of({uint8_t{9}})));
  const SafetensorsFile opened(file.path());
  EXPECT_EQ(opened.metadata().at("made"), "here");
  EXPECT_TRUE(opened.contains("d"));
  EXPECT_FALSE(opened.contains("__metadata__"));

  const auto floats = [&](const char* name, size_t n) {
    std::vector<double> wide(n);
    std::vector<float> narrow(n);
    opened.read(name, std::span(wide));
    opened.read(name, std::span(narrow));
    for (size_t i = 0; i < n; ++i) EXPECT_EQ(narrow[i], static_cast<float>(wide[i]));
    return wide;
  };
  EXPECT_EQ(floats("d", 2), (std::vector<double>{0.1, -2.5}));
  EXPECT_EQ(floats("f", 2), (std::vector<double>{0.25, 3.0}));
  EXPECT_EQ(floats("b", 2), (std::vector<double>{1.0, -3.0}));
  EXPECT_TRUE(floats("none", 0).empty());

  const auto integers = [&](const char* name, size_t n) {
    std::vector<int64_t> out(n);
    opened.read(name, std::span(out));
    return out;
  };
  EXPECT_EQ(integers("l", 1), std::vector<int64_t>{-5});
  EXPECT_EQ(integers("i", 1), std::vector<int64_t>{-6});
  EXPECT_EQ(integers("u", 2), (std::vector<int64_t>{7, 255}));
  EXPECT_EQ(integers("one", 1), std::vector<int64_t>{9});
  EXPECT_TRUE(opened.tensor("one").has_shape({1}));
  EXPECT_TRUE(opened.tensor("none").has_shape({3, 0}));
}

TEST(SafetensorsTest, RefusesWhatIsAskedForWrongly) {
  const std::string header =
      R"({"half":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
      R"("new":{"dtype":"F4\n","shape":[3],"data_offsets":[2,3]},)"
      R"("odd":{"dtype":"F32","shape":[2],"data_offsets":[3,11]},)"
      R"("six":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[11,12]}})";
  const TemporaryFile file;
  file.write(file_of(header, std::string(12, '\0')));
  const SafetensorsFile opened(file.path());
  const auto tensor = [&](const char* name) {
    return message_of_call(opened, [&] { opened.tensor(name); });
  };
  EXPECT_EQ(opened.entry("half").dtype, "F16");
  EXPECT_EQ(opened.entry("six").shape.size(), 6u);
  EXPECT_EQ(tensor("half"), "tensor 'half': expected F64, F32, BF16, I64, I32 or U8, got 'F16'");
  EXPECT_EQ(tensor("new"), "tensor 'new': expected F64, F32, BF16, I64, I32 or U8, got 'F4\\x0a'");
  EXPECT_EQ(tensor("six"), "tensor 'six': expected at most 5 dims, got 6");
  EXPECT_EQ(tensor("missing"), "tensor 'missing': is not in the file");
  const std::string begin = std::to_string(8 + header.size() + 3);
  const bool aligned = (8 + header.size() + 3) % 4 == 0;
  EXPECT_EQ(tensor("odd"), aligned ? ""
                                   : "tensor 'odd': expected it to begin at a multiple of 4 bytes, "
                                     "got byte " +
                                         begin);
  std::vector<float> two(2);
  EXPECT_NO_THROW(opened.read("odd", std::span(two)));  // a copy may be anywhere
  std::vector<float> three(3);
  EXPECT_EQ(message_of_call(opened, [&] { opened.read("odd", std::span(three)); }),
            "tensor 'odd': expected 3 elements, got 2");
  std::vector<int64_t> integers(2);
  EXPECT_EQ(message_of_call(opened, [&] { opened.read("odd", std::span(integers)); }),
            "tensor 'odd': expected integers, got f32");
}

TEST(SafetensorsTest, FilesThatCannotBeRead) {
  for (const std::string& path : {std::string("/nowhere/at/all"), kGolden}) {
    try {
      const SafetensorsFile opened(path);
      ADD_FAILURE();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::data);
      EXPECT_EQ(e.what(), path + (path == kGolden ? ": expected a file" : ": cannot be opened"));
    }
  }
}

TEST(SafetensorsTest, BadLengths) {
  EXPECT_EQ(message_of(""), "byte 0: expected a header length of 8 bytes, got a file of 0 bytes");
  EXPECT_EQ(message_of("1234567"),
            "byte 0: expected a header length of 8 bytes, got a file of 7 bytes");
  EXPECT_EQ(message_of(bytes_of({uint64_t{3}}) + "{}"),
            "byte 0: expected a header of at most 2 bytes, got 3");
  EXPECT_EQ(message_of(bytes_of({UINT64_MAX}) + "{}"),
            "byte 0: expected a header of at most 2 bytes, got 18446744073709551615");
  const TemporaryFile file;  // 100 MB of holes
  file.write(bytes_of({uint64_t{100'000'001}}));
  std::filesystem::resize_file(file.path(), 200'000'000);
  try {
    const SafetensorsFile opened(file.path());
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(
        e.what(),
        file.path() + ": byte 0: expected a header of at most 100000000 bytes, got 100000001");
  }
}

TEST(SafetensorsTest, BadJson) {
  EXPECT_EQ(message_of(file_of("", "")), "byte 8: expected JSON, got other text");
  EXPECT_EQ(message_of(file_of("{\"a\":", "")), "byte 13: expected JSON, got other text");
  EXPECT_EQ(message_of(file_of("{}x", "")), "byte 10: expected JSON, got other text");
  EXPECT_EQ(message_of(file_of("{\"\xe2\x82\":1}", "")), "byte 12: expected JSON, got other text");
  EXPECT_EQ(message_of(file_of("[]", "")), "byte 8: expected an object");
  EXPECT_EQ(message_of(file_of("{\"a\":1e999}", "")), "expected JSON, got a number out of range");
  EXPECT_EQ(message_of(file_of(std::string(100'000, '['), "")),
            "expected a flat header, got 9 levels");
  EXPECT_EQ(message_of(file_of(R"({"a\n":1,"a\n":2})", "")),
            "expected each name once, got 'a\\x0a' twice");
  EXPECT_EQ(message_of(file_of(R"({"a":{"dtype":"U8","dtype":"F32"}})", "")),
            "expected each name once, got 'dtype' twice");
  EXPECT_EQ(message_of(file_of(R"({"__metadata__":[]})", "")),
            "__metadata__: expected an object of strings");
  EXPECT_EQ(message_of(file_of(R"({"__metadata__":{"a":1}})", "")),
            "__metadata__: expected a string for 'a'");
}

TEST(SafetensorsTest, BadTensors) {
  const auto of = [](const std::string& entry) {
    return message_of_header("{\"a\":" + entry + "}");
  };
  const std::string a = "tensor 'a': ";
  EXPECT_EQ(of("3"), a + "expected dtype, shape and data_offsets");
  EXPECT_EQ(of(R"({"dtype":"U8","shape":[8]})"), a + "expected dtype, shape and data_offsets");
  EXPECT_EQ(of(R"({"dtype":"U8","shape":[8],"data_offsets":[0,8],"more":1})"),
            a + "expected dtype, shape and data_offsets");
  EXPECT_EQ(of(R"({"dtype":3,"shape":[8],"data_offsets":[0,8]})"),
            a + "expected a dtype in quotes");
  for (const char* shape : {"8", "[-8]", "[8.0]", "[\"8\"]", "[9223372036854775808]", "[[8]]"}) {
    EXPECT_EQ(of(concat(R"({"dtype":"U8","shape":)", shape, R"(,"data_offsets":[0,8]})")),
              a + "expected a shape of integers >= 0");
  }
  for (const char* offsets : {"8", "[8]", "[0,4,8]", "[-1,7]", "[0,8.0]"}) {
    EXPECT_EQ(of(concat(R"({"dtype":"U8","shape":[8],"data_offsets":)", offsets, "}")),
              a + "expected two data_offsets >= 0");
  }
  EXPECT_EQ(of(R"({"dtype":"U8","shape":[9],"data_offsets":[0,9]})"),
            a + "expected data_offsets inside 8 bytes of data, got [0, 9)");
  EXPECT_EQ(of(R"({"dtype":"U8","shape":[8],"data_offsets":[8,0]})"),
            a + "expected data_offsets inside 8 bytes of data, got [8, 0)");
  EXPECT_EQ(of(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
            a + "expected 12 bytes for its shape, got 8");
  EXPECT_EQ(of(R"({"dtype":"F16","shape":[3],"data_offsets":[0,8]})"),
            a + "expected 6 bytes for its shape, got 8");
  EXPECT_EQ(of(R"({"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,8]})"),
            a + "expected a shape of fewer than 2^64 bytes");
  EXPECT_EQ(of(R"({"dtype":"U8","shape":[4294967296,4294967296,8],"data_offsets":[0,8]})"),
            a + "expected a shape of fewer than 2^64 bytes");
}

TEST(SafetensorsTest, OverlapsAndHoles) {
  const auto of = [](const std::string& a, const std::string& b, size_t data_bytes) {
    return message_of_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                                 R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                             data_bytes);
  };
  EXPECT_EQ(of("[4,8]", "[0,4]", 8), "");
  EXPECT_EQ(of("[0,4]", "[3,7]", 8),
            "tensor 'b': expected it to begin at 4 where the one before ends, got 3");
  EXPECT_EQ(of("[0,4]", "[0,4]", 4),
            "tensor 'b': expected it to begin at 4 where the one before ends, got 0");
  EXPECT_EQ(of("[0,4]", "[5,9]", 9),
            "tensor 'b': expected it to begin at 4 where the one before ends, got 5");
  EXPECT_EQ(of("[1,5]", "[5,9]", 9),
            "tensor 'a': expected it to begin at 0 where the one before ends, got 1");
  EXPECT_NE(of("[0,4]", "[4,8]", 11).find("expected the file to end after the last tensor, got 3"),
            std::string::npos);
  EXPECT_EQ(message_of(file_of("{}", "")), "");
  EXPECT_EQ(message_of(file_of("{}", "x")),
            "byte 10: expected the file to end after the last tensor, got 1 bytes more");
}

/// A valid small file with several tensors.
std::string small_file() {
  return file_of(
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
      R"("n":{"dtype":"I64","shape":[1],"data_offsets":[32,40]}})",
      std::string(40, '\x11'));
}

TEST(SafetensorsTest, RandomEditsOpenOrAreRefusedInOneLine) {
  std::mt19937 random(1);
  const std::string valid = small_file();
  const std::string marks = "0123456789{}[]\",:-eF\\";
  const TemporaryFile file;
  int opened_files = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string bytes = valid;
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random() % 256);
          break;
        case 1:
          bytes[at] = marks[random() % marks.size()];
          break;
        case 2:
          bytes.resize(1 + at);
          break;
        default:
          bytes.insert(at, 1, marks[random() % marks.size()]);
          break;
      }
    }
    file.write(bytes);
    try {
      const SafetensorsFile opened(file.path());
      ++opened_files;
      for (const std::string& name : opened.names()) {
        const Tensor tensor = opened.tensor(name);
        int sum = 0;  // every byte is inside the mapping
        for (int64_t b = 0; b < tensor.nbytes(); ++b) sum += static_cast<int>(tensor.data[b]);
        EXPECT_GE(sum, 0);
      }
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ExitCode::data) << e.what();
      ASSERT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    }
  }
  EXPECT_GT(opened_files, 100);
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string valid = small_file();
  for (size_t size = 0; size < valid.size(); ++size) {
    EXPECT_NE(message_of(valid.substr(0, size)), "") << size;
  }
  EXPECT_EQ(message_of(valid), "");
}

}  // namespace
}  // namespace weft
