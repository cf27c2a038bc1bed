#ifndef STOPGRAD_TENSORFLOW_POLICY_INPUTS_H_
#define STOPGRAD_TENSORFLOW_POLICY_INPUTS_H_

#include <string>
#include <vector>

#include "core/plan.h"
#include "core/selection.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/op_attributes.h"

namespace stopgrad::tensorflow_ops {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

inline Shape ToShape(const TensorShape& shape) {
  const auto sizes = shape.dim_sizes();
  return Shape(sizes.begin(), sizes.end());
}

inline absl::Status ReadShape(const char* name, const Tensor& tensor, Shape* shape) {
  if (tensor.dims() != 1) {
    return absl::InvalidArgumentError("`" + std::string(name) +
                                      "` must be a vector; its shape is " +
                                      tensor.shape().DebugString());
  }
  const auto values = tensor.vec<int64_t>();
  shape->assign(values.data(), values.data() + values.size());
  for (int64_t extent : *shape) {
    if (extent < 0) {
      return absl::InvalidArgumentError("`" + std::string(name) + "` has a negative size");
    }
  }
  return absl::OkStatus();
}

// The tensors that restrict gradients, behind an op's other inputs. They are in the host's memory.
class PolicyInputs {
 public:
  PolicyInputs(const PolicyAttributes& attributes, OpKernelContext* context, int first_input)
      : attributes_(attributes), context_(context), first_(first_input) {}

  // What can be said of their shapes, without reading them.
  absl::Status CheckShapes(const Shape& y) const {
    GradientScales scales;
    if (auto s = ReadScales(&scales); !s.ok()) return s;
    if (!attributes_.has_rows) return absl::OkStatus();
    const Tensor& rows = context_->input(first_ + attributes_.scaled.size());
    return ToAbsl(CheckRows(ToShape(rows.shape()), y));
  }

  absl::Status ReadScales(GradientScales* scales) const {
    for (size_t i = 0; i < attributes_.scaled.size(); ++i) {
      const Tensor& scale = context_->input(first_ + i);
      if (scale.dims() != 0) {
        return absl::InvalidArgumentError("`gradient_scale` of `" + attributes_.scaled[i] +
                                          "` must be a scalar; its shape is " +
                                          scale.shape().DebugString());
      }
      *FindScale(attributes_.scaled[i], scales) = scale.flat<double>()(0);
    }
    return absl::OkStatus();
  }

  absl::Status ReadRows(const Shape& y, RowWeights* rows) const {
    if (!attributes_.has_rows) return absl::OkStatus();
    const Tensor& tensor = context_->input(first_ + attributes_.scaled.size());
    const Shape shape = ToShape(tensor.shape());
    const auto make = [&](const auto* values) {
      return ToAbsl(MakeRowWeights(values, shape, y, rows));
    };
    switch (tensor.dtype()) {
      case tensorflow::DT_BOOL:
        return make(tensor.flat<bool>().data());
      case tensorflow::DT_HALF:
        return make(Widen<Eigen::half>(tensor).data());
      case tensorflow::DT_BFLOAT16:
        return make(Widen<tensorflow::bfloat16>(tensor).data());
      case tensorflow::DT_FLOAT:
        return make(tensor.flat<float>().data());
      default:
        return make(tensor.flat<double>().data());
    }
  }

  // Of the operands that are `needed`, the others' shapes need not be known.
  absl::Status ReadRegions(const GradientNeeds& needed, const Shape& a, const Shape& b,
                           int64_t bias, Regions* regions) const {
    const auto add = [&](const RegionPart& part) -> absl::Status {
      GradientNeeds needs = needed;
      if (!*FindNeed(part.axis->operand, &needs)) return absl::OkStatus();
      return ToAbsl(Select(part, part.axis->Extent(a, b, bias), regions));
    };
    for (const RegionPart& part : attributes_.sliced) {
      if (auto s = add(part); !s.ok()) return s;
    }
    int input = first_ + static_cast<int>(attributes_.scaled.size()) + attributes_.has_rows;
    for (const RegionAxis* axis : attributes_.indexed) {
      const Tensor& indices = context_->input(input++);
      if (indices.dims() != 1) {
        return absl::InvalidArgumentError(
            "the indices in `trainable` of `" + std::string(axis->operand) +
            "` must be a vector; their shape is " + indices.shape().DebugString());
      }
      RegionPart part{};
      part.axis = axis;
      part.by_index = true;
      part.indices = indices.flat<int64_t>().data();
      part.num_indices = indices.NumElements();
      if (auto s = add(part); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  template <typename T>
  static std::vector<float> Widen(const Tensor& tensor) {
    const auto values = tensor.flat<T>();
    std::vector<float> wide(values.size());
    for (size_t i = 0; i < wide.size(); ++i) wide[i] = static_cast<float>(values(i));
    return wide;
  }

  const PolicyAttributes& attributes_;
  OpKernelContext* context_;
  int first_;
};

}  // namespace stopgrad::tensorflow_ops

#endif  // STOPGRAD_TENSORFLOW_POLICY_INPUTS_H_
