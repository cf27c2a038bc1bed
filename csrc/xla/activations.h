#ifndef STOPGRAD_XLA_ACTIVATIONS_H_
#define STOPGRAD_XLA_ACTIVATIONS_H_

#include "core/activation.h"
#include "xla/hlo/builder/xla_builder.h"

namespace stopgrad::xla_ops {

// f(z).
xla::XlaOp Value(Activation activation, xla::XlaOp z);

// dy f'(z), from what core/activation.h says is saved: y = f(z), or z.
xla::XlaOp TimesDerivative(Activation activation, xla::XlaOp saved, xla::XlaOp dy);

}  // namespace stopgrad::xla_ops

#endif  // STOPGRAD_XLA_ACTIVATIONS_H_
