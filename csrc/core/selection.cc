#include "core/selection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace stopgrad {

const RegionAxis* FindRegionAxis(std::string_view name) {
  for (const RegionAxis& axis : kRegionAxes) {
    if (name == axis.name) return &axis;
  }
  return nullptr;
}

namespace {

std::string Trainable(const RegionAxis& axis) {
  return std::string("`trainable` of `") + axis.operand + "` ";
}

std::string Extent(const RegionAxis& axis, int64_t extent) {
  return std::string("`") + axis.operand + "` has " + std::to_string(extent) + " " + axis.unit +
         (extent == 1 ? "" : "s");
}

Status SelectSlice(const RegionAxis& axis, const Slice& slice, int64_t extent,
                   Selection* selection) {
  if (slice.step < 1) {
    return InvalidArgument(Trainable(axis) + "is a slice with step " + std::to_string(slice.step) +
                           "; due is 1 or more");
  }
  int64_t bounds[] = {slice.begin, slice.end == Slice::kToTheEnd ? extent : slice.end};
  for (int64_t& bound : bounds) {
    if (bound < -extent || bound > extent) {
      return InvalidArgument(Trainable(axis) + "is a slice up to or from " + axis.unit + " " +
                             std::to_string(bound) + ", and " + Extent(axis, extent) + "; due is " +
                             std::to_string(-extent) + " to " + std::to_string(extent));
    }
    if (bound < 0) bound += extent;
  }
  const auto [begin, end] = bounds;
  if (begin > end) {
    return InvalidArgument(Trainable(axis) + "is a reversed slice, from " + axis.unit + " " +
                           std::to_string(begin) + " to " + std::to_string(end) +
                           "; due is a begin that is not behind the end");
  }
  if (begin == 0 && end == extent && slice.step == 1) return Status();
  selection->kind = Selection::Kind::kRun;
  selection->begin = begin;
  selection->count = begin == end ? 0 : (end - begin - 1) / slice.step + 1;
  selection->step = selection->count > 1 ? slice.step : 1;
  return Status();
}

Status SelectIndices(const RegionPart& part, int64_t extent, Selection* selection) {
  const RegionAxis& axis = *part.axis;
  for (int64_t i = 0; i < part.num_indices; ++i) {
    const int64_t index = part.indices[i];
    if (index < 0 || index >= extent) {
      return InvalidArgument(Trainable(axis) + "selects " + axis.unit + " " +
                             std::to_string(index) + ", and " + Extent(axis, extent) +
                             (extent == 0 ? std::string("; due is none")
                                          : "; due are 0 to " + std::to_string(extent - 1)));
    }
    if (i > 0 && index <= part.indices[i - 1]) {
      return InvalidArgument(
          Trainable(axis) + "selects " + axis.unit + " " + std::to_string(index) + " behind " +
          std::to_string(part.indices[i - 1]) + "; due are different indices in ascending order");
    }
  }
  // A list without a gap is a run, which is addressed in place.
  const int64_t first = part.num_indices == 0 ? 0 : part.indices[0];
  if (part.num_indices == 0 || part.indices[part.num_indices - 1] - first + 1 == part.num_indices) {
    if (part.num_indices == extent) return Status();
    selection->kind = Selection::Kind::kRun;
    selection->begin = first;
    selection->count = part.num_indices;
    return Status();
  }
  selection->kind = Selection::Kind::kList;
  selection->list.assign(part.indices, part.indices + part.num_indices);
  return Status();
}

}  // namespace

int64_t Selection::PositionOf(int64_t index) const {
  if (all()) return index;
  if (kind == Kind::kRun) {
    const int64_t position = (index - begin) / step;
    return index >= begin && position < count && At(position) == index ? position : -1;
  }
  const auto found = std::lower_bound(list.begin(), list.end(), index);
  return found == list.end() || *found != index ? -1 : found - list.begin();
}

Status Select(const RegionPart& part, int64_t extent, Regions* regions) {
  Selection& selection = regions->*part.axis->selection;
  selection = Selection();
  return part.by_index ? SelectIndices(part, extent, &selection)
                       : SelectSlice(*part.axis, part.slice, extent, &selection);
}

Status CheckRows(const Shape& shape, const Shape& y) {
  const size_t rank = y.size() - 1;
  bool fits = shape.size() <= rank;
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    const int64_t due = y[rank - shape.size() + i];
    fits = shape[i] == due || shape[i] == 1;
  }
  if (!fits) {
    return InvalidArgument("`gradient_rows` must broadcast to the rows of the result, " +
                           ToString(Shape(y.begin(), y.end() - 1)) + "; its shape is " +
                           ToString(shape));
  }
  return Status();
}

namespace {

// How many of these bytes, which are 0 or 1, are 1; eight of them add up in a word's first byte.
int64_t CountOnes(const uint8_t* bytes, int64_t count) {
  int64_t sum = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, sizeof word);
    sum += word * 0x0101010101010101 >> 56;
  }
  for (; i < count; ++i) sum += bytes[i];
  return sum;
}

// What a run of weights is. A loop over it does little a row, as there may be very many.
struct RunOfWeights {
  int64_t num_active = 0;
  bool are_0_or_1 = true;
  bool has_nan = false;
};

template <int stride, typename T>
RunOfWeights MarkActive(const T* weights, int64_t count, uint8_t* active) {
  RunOfWeights run;
  for (int64_t i = 0; i < count; ++i) {
    const T weight = weights[i * stride];
    active[i] = weight != 0;
    if constexpr (!std::is_same_v<T, bool>) {
      run.are_0_or_1 &= weight == 0 || weight == 1;
      run.has_nan |= weight != weight;
    }
  }
  run.num_active = CountOnes(active, count);
  return run;
}

}  // namespace

template <typename T>
Status MakeRowWeights(const T* values, const Shape& shape, const Shape& y, RowWeights* rows) {
  if (Status status = CheckRows(shape, y); !status.ok()) return status;
  if (NumElements(y) == 0) return Status();
  const size_t rank = y.size() - 1;
  // How far a step along each dimension of Y's rows goes in `values`.
  std::vector<int64_t> strides(rank, 0);
  int64_t stride = 1;
  int64_t total = 1;
  for (size_t i = rank; i-- > 0;) {
    total *= y[i];
    if (i + shape.size() < rank) continue;
    const int64_t extent = shape[i + shape.size() - rank];
    if (extent != 1) strides[i] = stride;
    stride *= extent;
  }
  const int64_t per_matrix = y[rank - 1];
  const int64_t row_stride = strides[rank - 1];  // 0 or 1
  // Calls visit(first row, its weight) for the matrices of Y in order.
  const auto for_each_matrix = [&](auto visit) {
    std::vector<int64_t> position(rank, 0);
    int64_t at = 0;
    for (int64_t first = 0; first < total; first += per_matrix) {
      visit(first, values + at);
      for (size_t i = rank - 1; i-- > 0;) {
        at += strides[i];
        if (++position[i] < y[i]) break;
        at -= strides[i] * y[i];
        position[i] = 0;
      }
    }
  };
  RunOfWeights all;
  rows->active.resize(total);
  for_each_matrix([&](int64_t first, const T* weights) {
    uint8_t* const active = rows->active.data() + first;
    const RunOfWeights run = row_stride == 0 ? MarkActive<0>(weights, per_matrix, active)
                                             : MarkActive<1>(weights, per_matrix, active);
    all.num_active += run.num_active;
    all.are_0_or_1 &= run.are_0_or_1;
    all.has_nan |= run.has_nan;
  });
  rows->given = true;
  rows->num_active = all.num_active;
  if (all.are_0_or_1) return Status();
  rows->weights.reserve(total);
  for_each_matrix([&](int64_t, const T* weights) {
    for (int64_t i = 0; i < per_matrix; ++i) rows->weights.push_back(weights[i * row_stride]);
  });
  if (!all.has_nan) return Status();
  const auto found = std::find_if(rows->weights.begin(), rows->weights.end(),
                                  [](double weight) { return std::isnan(weight); });
  return InvalidArgument("`gradient_rows` is NaN at row " +
                         std::to_string(found - rows->weights.begin()) +
                         " of the result; due are numbers");
}

template Status MakeRowWeights(const bool*, const Shape&, const Shape&, RowWeights*);
template Status MakeRowWeights(const float*, const Shape&, const Shape&, RowWeights*);
template Status MakeRowWeights(const double*, const Shape&, const Shape&, RowWeights*);

}  // namespace stopgrad
