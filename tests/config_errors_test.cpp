// Every bad config file is one exact line with exit code 64.
#include <gtest/gtest.h>

#include "tests/config_testing.hpp"

namespace weft {
namespace {

std::string repeat(const std::string& piece, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += piece;
  return out;
}

struct BadText {
  const char* name;
  std::string text;
  std::string message;
};

void PrintTo(const BadText& bad, std::ostream* out) {
  *out << bad.message;
}

std::string name_of(const testing::TestParamInfo<BadText>& info) {
  return info.param.name;
}

class BadTextTest : public testing::TestWithParam<BadText> {};

TEST_P(BadTextTest, IsOneLine) {
  EXPECT_EQ(message_of(GetParam().text), GetParam().message);
}

const BadText kBadYaml[] = {
    {"Empty", "", "run.yaml:1: expected keys, got an empty file"},
    {"OnlyComments", "# nothing\n", "run.yaml:1: expected keys, got an empty file"},
    {"EmptyDocument", "---\n", "run.yaml:2: expected keys at the top, got nothing"},
    {"ListAtTop", "- a\n- b\n", "run.yaml:1: expected keys at the top, got a list"},
    {"ScalarAtTop", "train\n", "run.yaml:1: expected keys at the top, got 'train'"},
    {"TwoDocuments", "log: {every: 1}\n---\nlog: {every: 2}\n",
     "run.yaml:2: expected one document, got a second one"},
    {"DuplicateKey", "train:\n  steps: 1\n  steps: 2\n",
     "run.yaml:3: train.steps: expected each key once, got it twice"},
    {"DuplicateSection", "log: {every: 1}\nlog: {every: 2}\n",
     "run.yaml:2: log: expected each key once, got it twice"},
    {"Anchor", "train: &t\n  steps: 1\n",
     "run.yaml:1: train: expected a value without anchors, got the anchor 't'"},
    {"AnchorAtTop", "&t\ntrain: {steps: 1}\n",
     "run.yaml:1: expected a value without anchors, got the anchor 't'"},
    {"SelfAlias", "train: &t [*t]\n",
     "run.yaml:1: train: expected a value without anchors, got the anchor 't'"},
    {"Alias", "train: *t\n", "run.yaml:1: train: expected a value without aliases, got an alias"},
    {"BareStar", "model: {}\nlog: *\n",
     "run.yaml:2: log: expected YAML, got text that is not: alias not found after *"},
    {"AliasBomb", "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: &d [*c, *c, *c]\n",
     "run.yaml:1: a: expected a value without anchors, got the anchor 'a'"},
    {"MergeKey", "train:\n  <<: {steps: 1}\n",
     "run.yaml:2: train: expected a key, got the merge key '<<'"},
    {"Tag", "train:\n  steps: !!int 3\n",
     "run.yaml:2: train.steps: expected a value without tags, got the tag 'tag:yaml.org,2002:int'"},
    {"TagOfSection", "train: !mine {steps: 1}\n",
     "run.yaml:1: train: expected a value without tags, got the tag '!mine'"},
    {"NulByte", std::string("log: {every: 1}\ntrain: \0\n", 25),
     "run.yaml:2: expected text, got a NUL byte"},
    {"TruncatedCharacter", "data: {path: a\xe2\x82",
     "run.yaml:1: expected UTF-8 text, got other bytes"},
    {"OverlongCharacter", "log: {}\ndata: {path: \xc0\xaf}\n",
     "run.yaml:2: expected UTF-8 text, got other bytes"},
    {"TooLong", "#" + std::string(1'000'000, 'x'),
     "run.yaml:1: expected at most 1000000 bytes, got 1000001"},
    {"BracketsInAValue", "train: " + std::string(100'000, '[') + std::string(100'000, ']'),
     "run.yaml:1: train: expected a list of scalars, got a list inside"},
    {"BracketsAtTheTop", std::string(100'000, '[') + std::string(100'000, ']'),
     "run.yaml:1: expected keys at the top, got a list"},
    {"BracketsOverLines", "train:\n" + repeat(" [\n", 100'000) + std::string(100'000, ']'),
     "run.yaml:3: train: expected a list of scalars, got a list inside"},
    {"Braces", repeat("{a: ", 100'000) + std::string(100'000, '}'),
     "run.yaml:1: " + repeat("a.", 31) + "a: expected at most 32 levels, got more"},
    // yaml-cpp sees brackets that never close as keys
    {"OpenBracketsInAValue", "train: " + std::string(100'000, '['),
     "run.yaml:1: train: expected a list of scalars, got a section inside"},
    {"OpenBracketsAtTheTop", std::string(100'000, '['), "run.yaml:1: expected a key, got a list"},
    {"OpenBraces", repeat("{a: ", 100'000), "run.yaml:1: expected a key, got a section"},
    {"BracesAsKeys", "train: " + std::string(100'000, '{'),
     "run.yaml:1: train: expected a key, got a section"},
    {"Dashes", "train:\n  " + repeat("- ", 100'000),
     "run.yaml:2: train: expected a list of scalars, got a list inside"},
    {"QuestionMarks", repeat("? ", 100'000), "run.yaml:1: expected a key, got a section"},
    {"Indents",
     [] {
       std::string text;
       for (int i = 0; i < 1'000; ++i) text += std::string(i, ' ') + "a:\n";
       return text;
     }(),
     "run.yaml:33: " + repeat("a.", 31) + "a: expected at most 32 levels, got more"},
    {"SectionInList", "train: [{steps: 1}]\n",
     "run.yaml:1: train: expected a list of scalars, got a section inside"},
    {"ListAsKey", "? [a]\n: 1\n", "run.yaml:1: expected a key, got a list"},
    {"NullKey", "train:\n  ~: 1\n", "run.yaml:2: train: expected a key, got nothing"},
    {"DottedKey", "train.steps: 3\n",
     "run.yaml:1: expected a key of letters, digits, '_' and '-', got 'train.steps'"},
    {"ControlCharactersInAKey", "\"a\\nb\\x1b\": 3\n",
     "run.yaml:1: expected a key of letters, digits, '_' and '-', got 'a\\x0ab\\x1b'"},
    {"OpenFlow", "train: {steps: 3\nlog: {every: 1}\n",
     "run.yaml:2: train: expected YAML, got text that is not: end of map flow not found"},
    {"EscapedControlCharacter", "data: {path: \"\\\x01\"}\n",
     "run.yaml:1: data.path: expected YAML, got text that is not: unknown escape character: ?"},
    {"TabIndent", "train:\n\tsteps: 3\n",
     "run.yaml:2: expected YAML, got text that is not: illegal map value"},
};
INSTANTIATE_TEST_SUITE_P(Yaml, BadTextTest, testing::ValuesIn(kBadYaml), name_of);

const BadText kBadValues[] = {
    {"UnknownKey", "train:\n  stps: 3\n",
     "run.yaml:2: train.stps: expected a key of this version, got 'train.stps' (did you mean "
     "'train.steps'?)"},
    {"UnknownSection", "optimiser:\n  lr: 3\n",
     "run.yaml:2: optimiser.lr: expected a key of this version, got 'optimiser.lr' (did you mean "
     "'optimizer.lr'?)"},
    {"WrongSection", "train: {grad_clip: 1}\n",
     "run.yaml:1: train.grad_clip: expected a key of this version, got 'train.grad_clip' (did you "
     "mean 'optimizer.grad_clip'?)"},
    {"UnknownAndFar", "wheels: {round: yes}\n",
     "run.yaml:1: wheels.round: expected a key of this version, got 'wheels.round'"},
    {"UnknownEmptySection", "wheels: {}\n",
     "run.yaml:1: wheels: expected a key of this version, got 'wheels'"},
    {"ScalarForASection", "train: 3\n", "run.yaml:1: train: expected a section of keys, got '3'"},
    {"ListForASection", "train: [steps]\n",
     "run.yaml:1: train: expected a section of keys, got a list"},
    {"SectionForAScalar", "train: {steps: {of: 3}}\n",
     "run.yaml:1: train.steps: expected an integer from 1 to 1000000000, got a section of keys"},
    {"EmptySectionForAScalar", "train: {steps: {}}\n",
     "run.yaml:1: train.steps: " + kSteps + "a section of keys"},
    {"SectionForAnAxis", "mesh: {tensor: {x: 1}}\n",
     "run.yaml:1: mesh.tensor: expected an integer from 1 to 65535, got a section of keys"},
    {"SectionForAPattern", "model: {layer_pattern: {x: 1}}\n",
     "run.yaml:1: model.layer_pattern: expected a pattern of letters, got a section of keys"},
    {"SectionForAFlag", "train: {deterministic: {none: 1}}\n",
     "run.yaml:1: train.deterministic: expected true or false, got a section of keys"},
    {"NumberForAFlag", "train: {deterministic: 1}\n",
     "run.yaml:1: train.deterministic: expected true or false, got '1'"},
    {"ListForAScalar", "train: {steps: [3]}\n", "run.yaml:1: train.steps: " + kSteps + "a list"},
    {"NothingForAScalar", "train:\n  steps:\n", "run.yaml:2: train.steps: " + kSteps + "nothing"},
    {"WordForAnInteger", "train: {steps: many}\n", "run.yaml:1: train.steps: " + kSteps + "'many'"},
    {"IntegerInQuotes", "train: {steps: \"3\"}\n", "run.yaml:1: train.steps: " + kSteps + "\"3\""},
    {"TrailingLetters", "train: {steps: 12abc}\n",
     "run.yaml:1: train.steps: " + kSteps + "'12abc'"},
    {"Exponent", "train: {steps: 1e3}\n", "run.yaml:1: train.steps: " + kSteps + "'1e3'"},
    {"FloatForAnInteger", "train: {steps: 3.0}\n", "run.yaml:1: train.steps: " + kSteps + "'3.0'"},
    {"Octal", "train: {steps: 010}\n", "run.yaml:1: train.steps: " + kSteps + "'010'"},
    {"OctalO", "train: {steps: 0o10}\n", "run.yaml:1: train.steps: " + kSteps + "'0o10'"},
    {"Hexadecimal", "train: {steps: 0x10}\n", "run.yaml:1: train.steps: " + kSteps + "'0x10'"},
    {"Underscore", "train: {steps: 1_000}\n", "run.yaml:1: train.steps: " + kSteps + "'1_000'"},
    {"Plus", "train: {steps: +5}\n", "run.yaml:1: train.steps: " + kSteps + "'+5'"},
    {"Zero", "train: {steps: 0}\n", "run.yaml:1: train.steps: " + kSteps + "'0'"},
    {"Negative", "train: {steps: -5}\n", "run.yaml:1: train.steps: " + kSteps + "'-5'"},
    {"TooLarge", "train: {steps: 1000000001}\n",
     "run.yaml:1: train.steps: " + kSteps + "'1000000001'"},
    {"PastInt64", "train: {seed: 99999999999999999999}\n",
     "run.yaml:1: train.seed: expected an integer >= 0, got '99999999999999999999'"},
    {"NotANumber", "optimizer: {lr: .nan}\n",
     "run.yaml:1: optimizer.lr: expected a number > 0, got '.nan'"},
    {"NanWord", "optimizer: {lr: nan}\n",
     "run.yaml:1: optimizer.lr: expected a number > 0, got 'nan'"},
    {"Infinite", "optimizer: {lr: inf}\n",
     "run.yaml:1: optimizer.lr: expected a number > 0, got 'inf'"},
    {"NumberTooLarge", "optimizer: {lr: 1e999}\n",
     "run.yaml:1: optimizer.lr: expected a number > 0, got '1e999'"},
    {"NumberTooSmall", "optimizer: {eps: 1e-999}\n",
     "run.yaml:1: optimizer.eps: expected a number > 0, got '1e-999'"},
    {"OctalNumber", "optimizer: {lr: 01.5}\n",
     "run.yaml:1: optimizer.lr: expected a number > 0, got '01.5'"},
    {"ZeroRate", "optimizer: {lr: 0}\n",
     "run.yaml:1: optimizer.lr: expected a number > 0, got '0'"},
    {"Yes", "train: {strict: yes}\n",
     "run.yaml:1: train.strict: expected true or false, got 'yes'"},
    {"MisspeltFlag", "train: {strict: ture}\n",
     "run.yaml:1: train.strict: expected true or false, got 'ture'"},
    {"MisspeltChoice", "optimizer: {schedule: cosin}\n",
     "run.yaml:1: optimizer.schedule: expected cosine, wsd or constant, got 'cosin' (did you mean "
     "'cosine'?)"},
    {"OneBeta", "optimizer: {betas: [0.9]}\n",
     "run.yaml:1: optimizer.betas: expected a list of two numbers >= 0 and < 1, got a list"},
    {"BetaOfOne", "optimizer: {betas: [0.9, 1]}\n",
     "run.yaml:1: optimizer.betas: expected a list of two numbers >= 0 and < 1, got a list"},
    {"AxisTwice", "mesh: {order: [data, data, sequence, tensor]}\n",
     "run.yaml:1: mesh.order: expected a list of the four axes, got a list"},
    {"NoStrategies", "sequence: {attention: []}\n",
     "run.yaml:1: sequence.attention: expected ring, lightseq, allgather, ulysses, rsa, auto, or a "
     "list of them, got a list"},
    {"MisspeltStrategy", "sequence: {attention: rign}\n",
     "run.yaml:1: sequence.attention: expected ring, lightseq, allgather, ulysses, rsa, auto, or a "
     "list of them, got 'rign'"},
    {"LineBreakInAPath", "data: {path: \"a\\nb\"}\n",
     "run.yaml:1: data.path: expected a token file or synthetic, got \"a\\x0ab\""},
    {"LongValue", "train: {steps: " + std::string(70, 'x') + "}\n",
     "run.yaml:1: train.steps: " + kSteps + "'" + std::string(60, 'x') + "...'"},
};
INSTANTIATE_TEST_SUITE_P(Value, BadTextTest, testing::ValuesIn(kBadValues), name_of);

const BadText kBadTogether[] = {
    {"NoPath", "log: {every: 1}\n",
     "run.yaml: data.path: expected a token file or synthetic, got nothing"},
    {"KvHeads", "model:\n  num_attention_heads: 4\n  num_key_value_heads: 3\n",
     "run.yaml:3: model.num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3"},
    {"KvHeadsByDefault", "model:\n  num_attention_heads: 3\n",
     "run.yaml: model.num_key_value_heads: expected a divisor of num_attention_heads = 3, got 4"},
    {"OddHead", "model: {head_dim: 15}\n",
     "run.yaml:1: model.head_dim: expected an even number, got 15"},
    {"UnknownLetter", "model: {layer_pattern: \"*X\"}\n",
     "run.yaml:1: model.layer_pattern: expected a pattern of the letters *, W, P, L and G, got "
     "'*X'"},
    {"WindowWithoutW", "model:\n  layer_pattern: \"*\"\n  window: 512\n",
     "run.yaml:3: model.window: expected no such key without a W in model.layer_pattern, got 512"},
    {"WWithoutWindow", "model:\n  layer_pattern: \"*W\"\n",
     "run.yaml: model.window: expected an integer >= 1 for the W of model.layer_pattern, got "
     "nothing"},
    {"WBothWays", "model:\n  layer_pattern: W\n  window: 5\n  causal: false\n",
     "run.yaml:4: model.causal: expected true for the W of model.layer_pattern, got false"},
    {"EmptyWindow", "model:\n  layer_pattern: W\n  window: 0\n",
     "run.yaml:3: model.window: expected an integer from 1 to 1000000000, or a list of them, got "
     "'0'"},
    {"EmptyWindows", "model:\n  layer_pattern: W\n  window: []\n",
     "run.yaml:3: model.window: expected an integer from 1 to 1000000000, or a list of them, got a "
     "list"},
    {"WindowsOfSomeLayers",
     "model:\n  num_hidden_layers: 6\n  layer_pattern: \"W*\"\n  window: [5, 6]\n",
     "run.yaml:4: model.window: expected one window, or 3: one a W layer, got 2"},
    {"ProjectedKeysWithoutP", "model:\n  projected_keys: 5\n",
     "run.yaml:2: model.projected_keys: expected no such key without a P in model.layer_pattern, "
     "got 5"},
    {"PWithoutProjectedKeys", "model:\n  layer_pattern: P\n  causal: false\n",
     "run.yaml: model.projected_keys: expected an integer >= 1 for the P of model.layer_pattern, "
     "got nothing"},
    {"CausalP", "model:\n  layer_pattern: P\n  projected_keys: 5\n",
     "run.yaml: model.causal: expected false for the P of model.layer_pattern, got true"},
    {"MoreProjectedKeysThanTokens",
     "model: {layer_pattern: P, causal: false, projected_keys: 65}\n"
     "data: {path: x, seq_length: 64, documents: false}\n",
     "run.yaml:1: model.projected_keys: expected at most data.seq_length = 64, got 65"},
    {"PWithDocuments",
     "model: {layer_pattern: P, causal: false, projected_keys: 5}\ndata: {path: x}\n",
     "run.yaml: data.documents: expected false for the P of model.layer_pattern, got true"},
    {"RopeFactors", "model: {rope_scaling: {low_freq_factor: 4}}\n",
     "run.yaml: model.rope_scaling.high_freq_factor: expected more than low_freq_factor = 4, got "
     "4"},
    {"MinLr", "data: {path: x}\noptimizer:\n  lr: 0.001\n  min_lr: 0.01\n",
     "run.yaml:4: optimizer.min_lr: expected at most optimizer.lr = 0.001, got 0.01"},
    {"Warmup", "data: {path: x}\ntrain: {steps: 5}\noptimizer: {warmup_steps: 6}\n",
     "run.yaml:3: optimizer.warmup_steps: expected at most train.steps = 5, got 6"},
    {"MaskedButCausal", "data:\n  path: x\n  objective: masked\n",
     "run.yaml:3: data.objective: expected next_token for a causal model (model.causal: true), got "
     "masked"},
    {"MaskTokenPastTheVocabulary",
     "data:\n  path: x\n  mask_token: 256\nmodel: {vocab_size: 256}\n",
     "run.yaml:3: data.mask_token: expected a token id below model.vocab_size = 256, got 256"},
    {"MaskNothing", "data: {path: x, mask_fraction: 0}\n",
     "run.yaml:1: data.mask_fraction: expected a number > 0 and <= 1, got '0'"},
    {"MaskMoreThanAll", "data: {path: x, mask_fraction: 1.01}\n",
     "run.yaml:1: data.mask_fraction: expected a number > 0 and <= 1, got '1.01'"},
    {"NegativeMaskToken", "data: {path: x, mask_token: -1}\n",
     "run.yaml:1: data.mask_token: expected an integer from 0 to 1000000000, got '-1'"},
    {"MisspeltObjective", "data: {path: x, objective: maskd}\n",
     "run.yaml:1: data.objective: expected next_token or masked, got 'maskd' (did you mean "
     "'masked'?)"},
    {"Strategies",
     "data: {path: x}\nmodel: {num_hidden_layers: 3}\nsequence: {attention: [ring, auto]}\n",
     "run.yaml:3: sequence.attention: expected one name, or 3: one a softmax layer, got 2"},
    {"Scans",
     "data: {path: x}\nmodel: {num_hidden_layers: 4, layer_pattern: LG*, linear: {family: gla}}\n"
     "sequence: {state: [lasp, zeco]}\n",
     "run.yaml:3: sequence.state: expected one name, or 3: one an L or G layer, got 2"},
    {"LWithoutFamily", "model: {layer_pattern: L}\n",
     "run.yaml: model.linear.family: expected one of basic, lightning, retention, simple_gla, gla "
     "for "
     "the L of model.layer_pattern, got nothing"},
    {"FamilyWithoutL", "model: {linear: {family: gla}}\n",
     "run.yaml: model.linear: expected no such section without an L in model.layer_pattern, got "
     "one"},
    {"DeltaWithoutG", "model: {delta: {head_dim: 8}}\n",
     "run.yaml: model.delta: expected no such section without a G in model.layer_pattern, got one"},
    {"MisspeltFamily", "model: {layer_pattern: L, linear: {family: glaa}}\n",
     "run.yaml:1: model.linear.family: expected basic, lightning, retention, simple_gla or gla, "
     "got "
     "'glaa' (did you mean 'gla'?)"},
    {"MapBeforeARotation",
     "model:\n  layer_pattern: L\n  linear: {family: retention, feature_map: elu}\n",
     "run.yaml:3: model.linear.feature_map: expected identity with family: retention, whose keys "
     "turn, got another map"},
    {"RankOfAFixedDecay", "model:\n  layer_pattern: L\n  linear: {family: basic, gate_rank: 4}\n",
     "run.yaml:3: model.linear.gate_rank: expected no such key with family: basic, got 4"},
    {"LBothWays", "model:\n  layer_pattern: L\n  linear: {family: basic}\n  causal: false\n",
     "run.yaml:4: model.causal: expected true for the L of model.layer_pattern, got false"},
    {"GBothWays", "model:\n  layer_pattern: G\n  causal: false\n",
     "run.yaml:3: model.causal: expected true for the G of model.layer_pattern, got false"},
    {"WidthOfKeys",
     "model: {layer_pattern: L, hidden_size: 100, linear: {family: gla, num_heads: 8}}\n",
     "run.yaml: model.linear.expand_k: expected a number that makes heads of an integer width, got "
     "0.5: 0.5 x 100 / 8 heads = 6.25"},
    {"OddRotaryKeys", "model: {layer_pattern: L, hidden_size: 20, linear: {family: retention}}\n",
     "run.yaml: model.linear.expand_k: expected keys of an even width, which turn with their "
     "positions, got 5"},
    {"WidthOfValues", "model: {layer_pattern: G, delta: {expand_v: 0.3, head_dim: 8}}\n",
     "run.yaml:1: model.delta.expand_v: expected a number that makes heads of an integer width, "
     "got "
     "0.3: 0.3 x 8 / 1 heads = 2.4"},
    {"LongConvolution", "model: {layer_pattern: G, delta: {short_conv: 17}}\n",
     "run.yaml:1: model.delta.short_conv: expected an integer from 0 to 16, got '17'"},
    {"AliasAndKey", "context_parallel_size: 4\nmesh: {sequence: 4}\n",
     "run.yaml:2: mesh.sequence: expected each key once, got it at run.yaml:1 too"},
    {"ValueOfAnAlias", "parallelism: {tp: two}\n",
     "run.yaml:1: mesh.tensor: expected an integer from 1 to 65535, got 'two'"},
    {"MissingFolder", "model:\n  from_hf: /nowhere/at/all\n",
     "/nowhere/at/all/config.json: cannot be opened"},
};
INSTANTIATE_TEST_SUITE_P(Together, BadTextTest, testing::ValuesIn(kBadTogether), name_of);

// ---- What is not built yet

struct Later {
  const char* name;
  std::string text;
  std::string what;
};

void PrintTo(const Later& later, std::ostream* out) {
  *out << later.what;
}

class LaterTest : public testing::TestWithParam<Later> {};

TEST_P(LaterTest, IsRefused) {
  const std::string message = message_of(GetParam().text);
  const std::string expected =
      "run.yaml:1: '" + GetParam().what + "' is not available in this version (";
  EXPECT_EQ(message.substr(0, expected.size()), expected);
}

const Later kLater[] = {
    {"CheckpointAsAScalar", "checkpoint: 100", "checkpoint"},
    {"Checkpoint", "checkpoint: {every: 100}", "checkpoint.every"},
};
INSTANTIATE_TEST_SUITE_P(All, LaterTest, testing::ValuesIn(kLater),
                         [](const auto& later) { return std::string(later.param.name); });

}  // namespace
}  // namespace weft
