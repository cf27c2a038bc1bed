#ifndef STOPGRAD_CORE_SELECTION_H_
#define STOPGRAD_CORE_SELECTION_H_

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "core/export.h"
#include "core/problem.h"
#include "core/status.h"

namespace stopgrad {

// Which rows or columns of a matrix: all of them, a run, perhaps with steps, or those of a list.
struct Selection {
  enum class Kind { kAll, kRun, kList };

  Kind kind = Kind::kAll;
  int64_t begin = 0;  // of a run
  int64_t count = 0;
  int64_t step = 1;
  std::vector<int64_t> list;  // strictly ascending

  bool all() const { return kind == Kind::kAll; }
  bool none() const { return Count(1) == 0; }
  int64_t Count(int64_t extent) const {
    return kind == Kind::kAll ? extent : kind == Kind::kRun ? count : int64_t(list.size());
  }
  int64_t At(int64_t i) const {
    return kind == Kind::kAll ? i : kind == Kind::kRun ? begin + i * step : list[i];
  }
  // Which of the selected ones that is; -1 if it is not selected.
  int64_t PositionOf(int64_t index) const;
};

// The trainable regions of a call's operands, as they are stored. What is outside gets zeros.
struct Regions {
  Selection a_rows;
  Selection a_columns;
  Selection b_rows;
  Selection b_columns;
  Selection bias;
};

// Their names and places, in the order in which they stand in a message.
struct RegionAxis {
  enum class Of { kA, kB, kBias };

  const char* name;
  const char* operand;
  const char* unit;  // in messages
  Of of;
  bool is_rows;
  Selection Regions::* selection;

  // Of the operands as they are stored.
  int64_t Extent(const Shape& a, const Shape& b, int64_t bias) const {
    if (of == Of::kBias) return bias;
    const Shape& shape = of == Of::kA ? a : b;
    return shape[shape.size() - (is_rows ? 2 : 1)];
  }
};
inline constexpr RegionAxis kRegionAxes[] = {
    {"a_rows", "a", "row", RegionAxis::Of::kA, true, &Regions::a_rows},
    {"a_columns", "a", "column", RegionAxis::Of::kA, false, &Regions::a_columns},
    {"b_rows", "b", "row", RegionAxis::Of::kB, true, &Regions::b_rows},
    {"b_columns", "b", "column", RegionAxis::Of::kB, false, &Regions::b_columns},
    {"bias", "bias", "element", RegionAxis::Of::kBias, false, &Regions::bias},
};
// nullptr if there is none of that name.
STOPGRAD_EXPORT const RegionAxis* FindRegionAxis(std::string_view name);

// A slice as Python has it: what is negative counts from the end, and kToTheEnd stands for no end.
struct Slice {
  static constexpr int64_t kToTheEnd = std::numeric_limits<int64_t>::max();

  int64_t begin = 0;
  int64_t end = kToTheEnd;
  int64_t step = 1;
};

// One axis of a region, before the operand's shape is known: a slice, or a list of indices that
// somebody else owns.
struct RegionPart {
  const RegionAxis* axis;
  Slice slice;
  const int64_t* indices = nullptr;
  int64_t num_indices = 0;
  bool by_index = false;
};

// Checks a part against the extent of its axis and adds it to the regions. A slice must lie within
// the extent; indices too, strictly ascending. Otherwise InvalidArgument says what is due.
STOPGRAD_EXPORT Status Select(const RegionPart& part, int64_t extent, Regions* regions);

// The weights that `gradient_rows` gives to the rows of Y [..., m, n], taken as one list of rows.
struct RowWeights {
  bool given = false;
  int64_t num_active = 0;       // rows whose weight is not 0
  std::vector<uint8_t> active;  // of each row, 1 or 0
  std::vector<double> weights;  // of each row; empty where all are 1 or 0

  int64_t total() const { return static_cast<int64_t>(active.size()); }
  bool has_zeros() const { return num_active < total(); }
};

// InvalidArgument if that shape does not broadcast to the rows of Y.
STOPGRAD_EXPORT Status CheckRows(const Shape& shape, const Shape& y);

// Broadcasts `values` of `shape` to the rows of Y. InvalidArgument if they do not broadcast, or
// where there is a NaN. Nothing is given for a Y without elements, whose rows may be very many.
// T: bool, float, double.
template <typename T>
STOPGRAD_EXPORT Status MakeRowWeights(const T* values, const Shape& shape, const Shape& y,
                                      RowWeights* rows);

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_SELECTION_H_
