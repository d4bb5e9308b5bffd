// Linear attention without decay (Katharopoulos et al., arXiv 2006.16236), as
// flash-linear-attention has it: features elu(x) + 1, and an RMSNorm of each head in place of the
// denominator.
#include "models/state_family.hpp"

namespace weft {

const StateFamily kBasicFamily{.name = "basic",
                               .summary = "linear attention without decay",
                               .kind = StateKind::none,
                               .feature_map = FeatureMap::elu,
                               .output_gate = GateFunction::none};

}  // namespace weft
