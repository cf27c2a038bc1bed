#ifndef STOPGRAD_TENSORFLOW_OP_ATTRIBUTES_H_
#define STOPGRAD_TENSORFLOW_OP_ATTRIBUTES_H_

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/activation.h"
#include "core/dtype.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/selection.h"
#include "core/status.h"
#include "tensorflow/core/framework/types.pb.h"

namespace stopgrad::tensorflow_ops {

// A row per dtype: TensorFlow's and ours.
struct DTypePair {
  tensorflow::DataType tensorflow;
  DType dtype;
};
inline constexpr DTypePair kDTypes[] = {
    {tensorflow::DT_FLOAT, DType::kFloat},         {tensorflow::DT_DOUBLE, DType::kDouble},
    {tensorflow::DT_HALF, DType::kHalf},           {tensorflow::DT_BFLOAT16, DType::kBFloat16},
    {tensorflow::DT_COMPLEX64, DType::kComplex64}, {tensorflow::DT_COMPLEX128, DType::kComplex128},
    {tensorflow::DT_INT32, DType::kInt32},         {tensorflow::DT_INT64, DType::kInt64},
};

inline absl::Status ToAbsl(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return absl::OkStatus();
    case StatusCode::kInvalidArgument:
      return absl::InvalidArgumentError(status.message());
    case StatusCode::kResourceExhausted:
      return absl::ResourceExhaustedError(status.message());
    case StatusCode::kUnavailable:
      return absl::UnavailableError(status.message());
    case StatusCode::kInternal:
      return absl::InternalError(status.message());
  }
  return absl::InternalError(status.message());
}

// What all ops have in common, read the same way from a kernel's construction and from a shape
// function: anything with GetAttr(name, value).
struct ProductAttributes {
  DType dtype = DType::kFloat;
  Layout layout_a = Layout::kNormal;
  Layout layout_b = Layout::kNormal;
  Activation activation = Activation::kLinear;
};

// How the attributes restrict gradients; what is read at run time comes in the inputs that they
// name, in this order: a scale for each operand in `scaled`, perhaps row weights, a list for each
// axis in `indexed`.
struct PolicyAttributes {
  std::vector<std::string> scaled;
  bool has_rows = false;
  std::vector<RegionPart> sliced;
  std::vector<const RegionAxis*> indexed;
  bool compact_a = false;
  bool compact_b = false;

  bool empty() const { return scaled.empty() && !has_rows && sliced.empty() && indexed.empty(); }
};

// The gradient op's further attributes.
struct GradientAttributes {
  std::vector<std::string> needed;  // in order of the outputs
  bool has_a = false;
  bool has_b = false;
  bool has_saved = false;
  bool has_shape_a = false;
  bool has_shape_b = false;
};

template <typename Context>
absl::Status ReadProductAttributes(Context* context, tensorflow::DataType type,
                                   ProductAttributes* attributes) {
  std::string layout_a, layout_b, activation;
  if (auto s = context->GetAttr("layout_a", &layout_a); !s.ok()) return s;
  if (auto s = context->GetAttr("layout_b", &layout_b); !s.ok()) return s;
  if (auto s = context->GetAttr("activation", &activation); !s.ok()) return s;
  const auto* const pair =
      std::find_if(std::begin(kDTypes), std::end(kDTypes),
                   [&](const DTypePair& pair) { return pair.tensorflow == type; });
  if (pair == std::end(kDTypes)) {
    return absl::InvalidArgumentError("no products of " + tensorflow::DataType_Name(type));
  }
  attributes->dtype = pair->dtype;
  // TensorFlow has checked the three names against the lists in the registration.
  if (!FindLayout(layout_a, &attributes->layout_a) ||
      !FindLayout(layout_b, &attributes->layout_b) ||
      !FindActivation(activation, &attributes->activation)) {
    return absl::InternalError("an attribute of the op is not in its table");
  }
  if (attributes->activation != Activation::kLinear && !HasActivations(attributes->dtype)) {
    return absl::InvalidArgumentError("`activation` \"" + activation +
                                      "\" needs a real floating dtype; the operands are " +
                                      tensorflow::DataType_Name(type));
  }
  return absl::OkStatus();
}

template <typename Context>
absl::Status ReadProductAttributes(Context* context, ProductAttributes* attributes) {
  tensorflow::DataType type;
  if (auto s = context->GetAttr("T", &type); !s.ok()) return s;
  return ReadProductAttributes(context, type, attributes);
}

// The axes that a list of names has, none of them twice in any such list.
inline absl::Status FindAxes(const char* attribute, const std::vector<std::string>& names,
                             std::vector<const RegionAxis*>* seen,
                             std::vector<const RegionAxis*>* axes) {
  for (const std::string& name : names) {
    const RegionAxis* const axis = FindRegionAxis(name);
    if (axis == nullptr || std::find(seen->begin(), seen->end(), axis) != seen->end()) {
      return absl::InvalidArgumentError("`" + std::string(attribute) + "` has \"" + name +
                                        "\", which is selected twice or no axis of an operand");
    }
    seen->push_back(axis);
    axes->push_back(axis);
  }
  return absl::OkStatus();
}

template <typename Context>
absl::Status ReadCount(Context* context, const char* name, const char* what, size_t due) {
  int count;
  if (auto s = context->GetAttr(name, &count); !s.ok()) return s;
  if (count == static_cast<int>(due)) return absl::OkStatus();
  return absl::InvalidArgumentError("there must be " + std::to_string(due) + " " + what +
                                    ", as many as are named, and there are " +
                                    std::to_string(count));
}

template <typename Context>
absl::Status ReadPolicyAttributes(Context* context, PolicyAttributes* attributes) {
  if (auto s = context->GetAttr("scaled", &attributes->scaled); !s.ok()) return s;
  if (auto s = ReadCount(context, "num_scales", "gradient scales", attributes->scaled.size());
      !s.ok()) {
    return s;
  }
  GradientScales scales;
  for (const std::string& name : attributes->scaled) {
    double* const scale = FindScale(name, &scales);
    if (scale == nullptr || *scale == 0) {
      return absl::InvalidArgumentError("`scaled` has \"" + name +
                                        "\" twice, or it is none of \"a\", \"b\" and \"bias\"");
    }
    *scale = 0;  // seen
  }

  std::vector<tensorflow::DataType> row_types;
  if (auto s = context->GetAttr("row_types", &row_types); !s.ok()) return s;
  if (row_types.size() > 1) {
    return absl::InvalidArgumentError("there must be one tensor of row weights or none");
  }
  attributes->has_rows = row_types.size() == 1;

  std::vector<std::string> sliced, indexed, compact;
  std::vector<int64_t> slices;
  if (auto s = context->GetAttr("sliced", &sliced); !s.ok()) return s;
  if (auto s = context->GetAttr("slices", &slices); !s.ok()) return s;
  if (auto s = context->GetAttr("indexed", &indexed); !s.ok()) return s;
  if (auto s = context->GetAttr("indexed_slices", &compact); !s.ok()) return s;
  if (slices.size() != 3 * sliced.size()) {
    return absl::InvalidArgumentError("`slices` must have begin, end and step for each of the " +
                                      std::to_string(sliced.size()) + " axes in `sliced`");
  }
  if (auto s = ReadCount(context, "num_indices", "lists of indices", indexed.size()); !s.ok()) {
    return s;
  }
  std::vector<const RegionAxis*> seen, axes;
  if (auto s = FindAxes("sliced", sliced, &seen, &axes); !s.ok()) return s;
  if (auto s = FindAxes("indexed", indexed, &seen, &attributes->indexed); !s.ok()) return s;
  for (size_t i = 0; i < axes.size(); ++i) {
    RegionPart part{};
    part.axis = axes[i];
    part.slice = {slices[3 * i], slices[3 * i + 1], slices[3 * i + 2]};
    attributes->sliced.push_back(part);
  }
  for (const std::string& name : compact) {
    if (name != "a" && name != "b") {
      return absl::InvalidArgumentError("`indexed_slices` has \"" + name +
                                        "\"; due are \"a\" and \"b\"");
    }
    (name == "a" ? attributes->compact_a : attributes->compact_b) = true;
  }
  return absl::OkStatus();
}

// An optional input or output is a list of none or one.
template <typename Context>
absl::Status ReadPresence(Context* context, const char* name, bool* present) {
  int count;
  if (auto s = context->GetAttr(name, &count); !s.ok()) return s;
  if (count > 1) {
    return absl::InvalidArgumentError("`" + std::string(name) + "` must be 0 or 1 and is " +
                                      std::to_string(count));
  }
  *present = count == 1;
  return absl::OkStatus();
}

// The eager op's. Its operands are a, b and perhaps bias, each of one dtype or a variable; its
// results are y, or y and the values of the variables, and behind them perhaps z.
template <typename Context>
absl::Status ReadEagerAttributes(Context* context, ProductAttributes* attributes,
                                 tensorflow::DataType* dtype, bool* has_values, bool* has_z) {
  std::vector<tensorflow::DataType> operands, results;
  if (auto s = context->GetAttr("operand_types", &operands); !s.ok()) return s;
  if (auto s = context->GetAttr("result_types", &results); !s.ok()) return s;
  if (operands.size() < 2 || operands.size() > 3 || results.empty()) {
    return absl::InvalidArgumentError("there must be 2 or 3 operands, and a result");
  }
  *dtype = results[0];
  size_t variables = 0;
  for (tensorflow::DataType type : operands) {
    variables += type == tensorflow::DT_RESOURCE;
    if (type != *dtype && type != tensorflow::DT_RESOURCE) {
      return absl::InvalidArgumentError("an operand has another dtype than the result");
    }
  }
  for (tensorflow::DataType type : results) {
    if (type != *dtype) return absl::InvalidArgumentError("the results have several dtypes");
  }
  const size_t further = results.size() - 1;
  if (further != 0 && further != variables && further != variables + 1) {
    return absl::InvalidArgumentError("the results must be y, the values of all " +
                                      std::to_string(variables) + " variables or none, and z");
  }
  *has_values = further != 0;
  *has_z = further == variables + 1;
  return ReadProductAttributes(context, *dtype, attributes);
}

template <typename Context>
absl::Status ReadGradientAttributes(Context* context, const ProductAttributes& product,
                                    GradientAttributes* attributes) {
  if (auto s = context->GetAttr("needed", &attributes->needed); !s.ok()) return s;
  const std::pair<const char*, bool*> counts[] = {{"num_a", &attributes->has_a},
                                                  {"num_b", &attributes->has_b},
                                                  {"num_saved", &attributes->has_saved},
                                                  {"num_shape_a", &attributes->has_shape_a},
                                                  {"num_shape_b", &attributes->has_shape_b}};
  for (const auto& [name, present] : counts) {
    if (auto s = ReadPresence(context, name, present); !s.ok()) return s;
  }
  if ((attributes->has_a && attributes->has_shape_a) ||
      (attributes->has_b && attributes->has_shape_b)) {
    return absl::InvalidArgumentError(
        "an operand comes with its shape; `shape_a` and `shape_b` "
        "stand in for operands that are not given");
  }
  int num_needed;
  if (auto s = context->GetAttr("num_needed", &num_needed); !s.ok()) return s;
  if (num_needed != static_cast<int>(attributes->needed.size())) {
    return absl::InvalidArgumentError("`needed` must name each of the " +
                                      std::to_string(num_needed) + " results");
  }
  GradientNeeds needs;
  for (const std::string& name : attributes->needed) {
    bool* const need = FindNeed(name, &needs);
    if (need == nullptr || *need) {
      return absl::InvalidArgumentError("`needed` has \"" + name +
                                        "\" twice, or it is none of \"a\", \"b\", \"bias\", \"z\"");
    }
    *need = true;
  }
  if (needs.a && !attributes->has_b) {
    return absl::InvalidArgumentError("the gradient of `a` needs `b`");
  }
  if (needs.b && !attributes->has_a) {
    return absl::InvalidArgumentError("the gradient of `b` needs `a`");
  }
  if (SavedFor(product.activation) != Saved::kNothing && !attributes->has_saved) {
    return absl::InvalidArgumentError("the gradient of the activation needs `saved`");
  }
  return absl::OkStatus();
}

}  // namespace stopgrad::tensorflow_ops

#endif  // STOPGRAD_TENSORFLOW_OP_ATTRIBUTES_H_
