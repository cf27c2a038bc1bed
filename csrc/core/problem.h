#ifndef STOPGRAD_CORE_PROBLEM_H_
#define STOPGRAD_CORE_PROBLEM_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/export.h"
#include "core/product.h"
#include "core/status.h"

namespace stopgrad {

using Shape = std::vector<int64_t>;

STOPGRAD_EXPORT int64_t NumElements(const Shape& shape);
STOPGRAD_EXPORT std::string ToString(const Shape& shape);

// How an operand is stored: as it is read, transposed, or transposed and conjugated.
enum class Layout : int { kNormal, kTranspose, kAdjoint };
inline constexpr const char* kLayoutNames[] = {"normal", "transpose", "adjoint"};
STOPGRAD_EXPORT bool FindLayout(std::string_view name, Layout* layout);

// The fused matmul's sizes: Y = op(A) op(B), A [..., m, k], B [..., k, n], Y [..., m, n] after the
// layouts are applied, with batch dimensions that broadcast.
struct MatMulProblem {
  DType dtype = DType::kFloat;
  Layout layout_a = Layout::kNormal;
  Layout layout_b = Layout::kNormal;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  Shape shape_a;  // as stored
  Shape shape_b;
  Shape batch_a;  // of equal length, filled with ones in front
  Shape batch_b;
  Shape batch;  // of Y

  STOPGRAD_EXPORT Shape ShapeOfY() const;
};

// Checks that the shapes fit; otherwise InvalidArgument names the operand, its shape and what is
// due.
STOPGRAD_EXPORT Status MakeMatMulProblem(DType dtype, Layout layout_a, Layout layout_b,
                                         const Shape& a, const Shape& b, MatMulProblem* problem);

STOPGRAD_EXPORT Status CheckBias(const MatMulProblem& problem, const Shape& bias);

// The problem that dY [..., m, n] belongs to. An operand whose shape is not given (nullptr) gets
// its sizes from dY and the other operand: all of dY's batch dimensions where the other one is a
// matrix, since they can come from nowhere else, and otherwise none.
STOPGRAD_EXPORT Status MakeGradientProblem(DType dtype, Layout layout_a, Layout layout_b,
                                           const Shape& dy, const Shape* a, const Shape* b,
                                           MatMulProblem* problem);

STOPGRAD_EXPORT Product ForwardProduct(const MatMulProblem& problem);
// dA from dZ (in the role of a) and B;  dB from A and dZ (in the role of b). Not simplified: they
// have a batch dimension for each of the problem's.
Product GradientProductA(const MatMulProblem& problem);
Product GradientProductB(const MatMulProblem& problem);

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_PROBLEM_H_
