#ifndef STOPGRAD_XLA_LOWERING_H_
#define STOPGRAD_XLA_LOWERING_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/activation.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/selection.h"
#include "xla/hlo/builder/xla_builder.h"

namespace stopgrad::xla_ops {

using xla::XlaOp;

// The fused matmul and its gradients as HLO: dots, elementwise operations and selects, which XLA
// fuses, shards and simplifies like any others. There is no custom call.

// What decides how a dot is written.
struct DotOptions {
  // Of float32: as TensorFlow's switch for TF32 says.
  xla::PrecisionConfig::Precision precision = xla::PrecisionConfig::HIGHEST;
  // Whether factors of 16 bits are widened before the dot. XLA has no dots of these with float32
  // sums for CPUs, and fast ones for GPUs.
  bool widens_factors = false;
};

struct Forward {
  XlaOp y;
  XlaOp z;  // f(z) = y
};
Forward LowerForward(const MatMulProblem& problem, Activation activation, DotOptions dots, XlaOp a,
                     XlaOp b, std::optional<XlaOp> bias);

// What a call asks of its gradients. XLA knows some of it when it compiles, which is in the policy,
// and the rest when the program runs. Row weights are of the latter: HLO has no shapes that depend
// on numbers, so there rows of weight 0 are multiplied too, as zeros.
struct LoweredPolicy {
  GradientPolicy policy;
  // Those that are known when the program runs. 0 skips the dot.
  std::optional<XlaOp> scale_a, scale_b, scale_bias;
  std::optional<XlaOp> rows;  // bool or floating, of a shape that broadcasts to Y's rows
  // The list of indices of each axis, by name. An index out of range selects nothing.
  std::map<std::string, XlaOp> indices;

  std::optional<XlaOp> IndicesOf(const RegionAxis& axis) const {
    const auto found = indices.find(axis.name);
    return found == indices.end() ? std::nullopt : std::optional<XlaOp>(found->second);
  }
};

struct BackwardOps {
  XlaOp dy;
  std::optional<XlaOp> a;
  std::optional<XlaOp> b;
  std::optional<XlaOp> saved;
};

// The gradient of that name: "a", "b", "bias" or "z". `problem` may be null for the last two.
class GradientLowering {
 public:
  GradientLowering(DType dtype, const MatMulProblem* problem, Activation activation,
                   DotOptions dots, const LoweredPolicy& policy, const BackwardOps& ops);

  XlaOp Lower(const std::string& name);

 private:
  // dZ, with the rows' weights or without, in the dtype of sums.
  XlaOp WideDz(bool with_rows) const;
  XlaOp Dz();
  XlaOp LowerFactor(bool of_a);
  XlaOp LowerBias();

  DType dtype_;
  const MatMulProblem* problem_;
  Activation activation_;
  DotOptions dots_;
  const LoweredPolicy& policy_;
  const BackwardOps& ops_;
  GradientNeeds zeros_;
  std::optional<XlaOp> dz_;
};

}  // namespace stopgrad::xla_ops

#endif  // STOPGRAD_XLA_LOWERING_H_
