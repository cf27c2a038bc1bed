#include "xla/activations.h"

#include "xla/hlo/builder/lib/constants.h"

namespace stopgrad::xla_ops {

namespace {

using xla::XlaOp;

// tf.nn's default, and those of Klambauer et al., Self-Normalizing Neural Networks, 2017.
constexpr double kLeakySlope = 0.2;
constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluScaleAlpha = 1.7580993408473768599402175208123;
// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
constexpr double kSqrtHalf = 0.70710678118654752440;
constexpr double kInvSqrtTwoPi = 0.39894228040143267794;
constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
constexpr double kCubic = 0.044715;

XlaOp Number(XlaOp like, double value) { return xla::ScalarLike(like, value); }

XlaOp IsPositive(XlaOp x) { return xla::Gt(x, xla::ZerosLike(x)); }

// Phi(z), Phi the normal distribution.
XlaOp NormalDistribution(XlaOp z) {
  return Number(z, 0.5) * (Number(z, 1) + xla::Erf(Number(z, kSqrtHalf) * z));
}

XlaOp TanhOfGelu(XlaOp z) {
  return xla::Tanh(Number(z, kSqrtTwoOverPi) * (z + Number(z, kCubic) * z * z * z));
}

}  // namespace

XlaOp Value(Activation activation, XlaOp z) {
  if (activation == Activation::kLinear) return z;  // integers too, which have no half
  const XlaOp zero = Number(z, 0), one = Number(z, 1), half = Number(z, 0.5);
  switch (activation) {
    case Activation::kLinear:
      break;
    case Activation::kRelu:
      return xla::Max(z, zero);
    case Activation::kRelu6:
      return xla::Clamp(zero, z, Number(z, 6));
    case Activation::kLeakyRelu:
      return xla::Select(IsPositive(z), z, Number(z, kLeakySlope) * z);
    case Activation::kElu:
      return xla::Select(xla::Lt(z, zero), xla::Expm1(z), z);
    case Activation::kSelu:
      return xla::Select(xla::Lt(z, zero), Number(z, kSeluScaleAlpha) * xla::Expm1(z),
                         Number(z, kSeluScale) * z);
    case Activation::kGelu:
      return z * NormalDistribution(z);
    case Activation::kGeluTanh:
      return half * z * (one + TanhOfGelu(z));
    case Activation::kSigmoid:
      return xla::Logistic(z);
    case Activation::kTanh:
      return xla::Tanh(z);
    case Activation::kSilu:
      return z * xla::Logistic(z);
    case Activation::kSoftplus:
      return xla::Max(z, zero) + xla::Log1p(xla::Exp(-xla::Abs(z)));
  }
  __builtin_unreachable();
}

// Selects where f' is 0 or 1, not products: as TensorFlow's own, and XLA for CPUs gives the sum of
// a select, the bias's gradient, to a faster loop than that of a product.
XlaOp TimesDerivative(Activation activation, XlaOp saved, XlaOp dy) {
  const XlaOp x = saved;
  const XlaOp zero = Number(x, 0), one = Number(x, 1), half = Number(x, 0.5);
  switch (activation) {
    case Activation::kLinear:
      return dy;
    case Activation::kRelu:
      return xla::Select(IsPositive(x), dy, xla::ZerosLike(dy));
    case Activation::kRelu6:
      return xla::Select(xla::And(IsPositive(x), xla::Lt(x, Number(x, 6))), dy, xla::ZerosLike(dy));
    case Activation::kLeakyRelu:
      return xla::Select(IsPositive(x), dy, Number(x, kLeakySlope) * dy);
    case Activation::kElu:
      return xla::Select(IsPositive(x), dy, dy * (x + one));
    case Activation::kSelu:
      return xla::Select(xla::Lt(x, zero), dy * (x + Number(x, kSeluScaleAlpha)),
                         Number(x, kSeluScale) * dy);
    case Activation::kGelu: {
      const XlaOp density = Number(x, kInvSqrtTwoPi) * xla::Exp(Number(x, -0.5) * x * x);
      return dy * (NormalDistribution(x) + x * density);
    }
    case Activation::kGeluTanh: {
      const XlaOp tanh = TanhOfGelu(x);
      const XlaOp slope = Number(x, kSqrtTwoOverPi) * (one + Number(x, 3 * kCubic) * x * x);
      return dy * (half * (one + tanh) * (one + x * (one - tanh) * slope));
    }
    case Activation::kSigmoid:
      return dy * (x * (one - x));
    case Activation::kTanh:
      return dy * ((one - x) * (one + x));
    case Activation::kSilu: {
      const XlaOp sigmoid = xla::Logistic(x);
      return dy * (sigmoid * (one + x * (one - sigmoid)));
    }
    case Activation::kSoftplus:
      return dy * -xla::Expm1(-x);
  }
  __builtin_unreachable();
}

}  // namespace stopgrad::xla_ops
