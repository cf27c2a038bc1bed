#include "core/problem.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace stopgrad {

int64_t NumElements(const Shape& shape) {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

std::string ToString(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

bool FindLayout(std::string_view name, Layout* layout) {
  for (int i = 0; i < 3; ++i) {
    if (name == kLayoutNames[i]) {
      *layout = static_cast<Layout>(i);
      return true;
    }
  }
  return false;
}

Shape MatMulProblem::ShapeOfY() const {
  Shape shape = batch;
  shape.push_back(m);
  shape.push_back(n);
  return shape;
}

namespace {

Status CheckRank(const char* name, const Shape& shape) {
  if (shape.size() >= 2) return Status();
  return InvalidArgument(
      std::string("`") + name +
      "` must have rank 2 or more (a matrix, or a batch of them); its shape is " + ToString(shape));
}

// Rows and columns of op(X), X stored with `shape`.
std::pair<int64_t, int64_t> RowsAndColumns(const Shape& shape, Layout layout) {
  const int64_t rows = shape[shape.size() - 2];
  const int64_t cols = shape[shape.size() - 1];
  return layout == Layout::kNormal ? std::make_pair(rows, cols) : std::make_pair(cols, rows);
}

// The shape of an operand that is rows x cols after its layout is applied, given dY's and the other
// operand's.
Shape MissingOperand(const Shape& dy, const Shape& other, int64_t rows, int64_t cols,
                     Layout layout) {
  Shape shape;
  if (other.size() == 2) shape.assign(dy.begin(), dy.end() - 2);
  shape.push_back(layout == Layout::kNormal ? rows : cols);
  shape.push_back(layout == Layout::kNormal ? cols : rows);
  return shape;
}

std::string Describe(const Shape& shape, Layout layout) {
  if (layout == Layout::kNormal) return ToString(shape);
  return ToString(shape) + " (" + kLayoutNames[static_cast<int>(layout)] + ")";
}

// op(X) with `rows` x `cols` as a view of X as it is stored.
MatrixView ViewOf(int64_t rows, int64_t cols, Layout layout) {
  if (layout == Layout::kNormal) return {cols, 1, false};
  return {1, rows, layout == Layout::kAdjoint};
}

// X^H as a view, given X.
MatrixView Adjoint(const MatrixView& view) {
  MatrixView adjoint = Transposed(view);
  adjoint.conjugate = !adjoint.conjugate;
  return adjoint;
}

// Elements between neighbours along each dimension of a densely stored batch of matrices; 0 where
// a dimension of extent 1 is broadcast.
std::vector<int64_t> BatchStrides(const Shape& operand, int64_t matrix_size) {
  std::vector<int64_t> strides(operand.size());
  int64_t stride = matrix_size;
  for (size_t i = operand.size(); i-- > 0;) {
    strides[i] = operand[i] == 1 ? 0 : stride;
    stride *= operand[i];
  }
  return strides;
}

}  // namespace

Status MakeMatMulProblem(DType dtype, Layout layout_a, Layout layout_b, const Shape& a,
                         const Shape& b, MatMulProblem* problem) {
  if (Status status = CheckRank("a", a); !status.ok()) return status;
  if (Status status = CheckRank("b", b); !status.ok()) return status;
  MatMulProblem& p = *problem;
  p.dtype = dtype;
  p.layout_a = layout_a;
  p.layout_b = layout_b;
  p.shape_a = a;
  p.shape_b = b;
  int64_t rows_of_b;
  std::tie(p.m, p.k) = RowsAndColumns(a, layout_a);
  std::tie(rows_of_b, p.n) = RowsAndColumns(b, layout_b);
  if (rows_of_b != p.k) {
    return InvalidArgument("`b` must have as many rows as `a` has columns, " + std::to_string(p.k) +
                           ", and has " + std::to_string(rows_of_b) + ": a is " +
                           Describe(a, layout_a) + ", b is " + Describe(b, layout_b));
  }
  const size_t rank = std::max(a.size(), b.size()) - 2;
  p.batch_a.assign(rank, 1);
  p.batch_b.assign(rank, 1);
  std::copy(a.begin(), a.end() - 2, p.batch_a.end() - (a.size() - 2));
  std::copy(b.begin(), b.end() - 2, p.batch_b.end() - (b.size() - 2));
  p.batch.resize(rank);
  for (size_t i = 0; i < rank; ++i) {
    if (p.batch_a[i] != p.batch_b[i] && p.batch_a[i] != 1 && p.batch_b[i] != 1) {
      return InvalidArgument("the batch dimensions of `a` and `b` must be equal or 1: a is " +
                             Describe(a, layout_a) + ", b is " + Describe(b, layout_b));
    }
    p.batch[i] = p.batch_a[i] == 1 ? p.batch_b[i] : p.batch_a[i];
  }
  return Status();
}

Status CheckBias(const MatMulProblem& problem, const Shape& bias) {
  if (bias.size() == 1 && bias[0] == problem.n) return Status();
  return InvalidArgument("`bias` must have shape [" + std::to_string(problem.n) +
                         "], one element per column of the product; its shape is " +
                         ToString(bias));
}

Status MakeGradientProblem(DType dtype, Layout layout_a, Layout layout_b, const Shape& dy,
                           const Shape* a, const Shape* b, MatMulProblem* problem) {
  if (Status status = CheckRank("dy", dy); !status.ok()) return status;
  if (a == nullptr && b == nullptr) {
    return InvalidArgument("a gradient product needs `a` or `b`");
  }
  Shape missing;
  if (a == nullptr) {
    if (Status status = CheckRank("b", *b); !status.ok()) return status;
    missing =
        MissingOperand(dy, *b, dy[dy.size() - 2], RowsAndColumns(*b, layout_b).first, layout_a);
    a = &missing;
  } else if (b == nullptr) {
    if (Status status = CheckRank("a", *a); !status.ok()) return status;
    missing =
        MissingOperand(dy, *a, RowsAndColumns(*a, layout_a).second, dy[dy.size() - 1], layout_b);
    b = &missing;
  }
  Status status = MakeMatMulProblem(dtype, layout_a, layout_b, *a, *b, problem);
  if (status.ok() && problem->ShapeOfY() != dy) {
    return InvalidArgument("`dy` must have the shape of the product, " +
                           ToString(problem->ShapeOfY()) + "; its shape is " + ToString(dy));
  }
  return status;
}

namespace {

struct Views {
  MatrixView a, b, y;
  std::vector<int64_t> batch_a, batch_b, batch_y;
};

Views ViewsOf(const MatMulProblem& p) {
  return {ViewOf(p.m, p.k, p.layout_a),       ViewOf(p.k, p.n, p.layout_b),
          ViewOf(p.m, p.n, Layout::kNormal),  BatchStrides(p.batch_a, p.m * p.k),
          BatchStrides(p.batch_b, p.k * p.n), BatchStrides(p.batch, p.m * p.n)};
}

// C, as a view of how it is stored, may ask for conjugated results; the factors give them.
Product WithoutConjugateResult(Product product, const MatMulProblem& problem) {
  if (product.c.conjugate) {
    product.c.conjugate = false;
    product.a.conjugate = !product.a.conjugate;
    product.b.conjugate = !product.b.conjugate;
  }
  if (!IsComplex(problem.dtype)) product.a.conjugate = product.b.conjugate = false;
  return product;
}

std::vector<BatchDim> BatchDims(const Shape& extents, const std::vector<int64_t>& a,
                                const std::vector<int64_t>& b, const std::vector<int64_t>& c) {
  std::vector<BatchDim> dims;
  for (size_t i = 0; i < extents.size(); ++i) dims.push_back({extents[i], a[i], b[i], c[i]});
  return dims;
}

}  // namespace

Product ForwardProduct(const MatMulProblem& p) {
  const Views v = ViewsOf(p);
  return Simplify(WithoutConjugateResult(
      {p.m, p.n, p.k, v.a, v.b, v.y, BatchDims(p.batch, v.batch_a, v.batch_b, v.batch_y)}, p));
}

// For C = op(A) op(B) with upstream gradient G, TensorFlow's convention for complex numbers:
//   d op(A) = G op(B)^H,   d op(B) = op(A)^H G.
// Reading A's storage through the same view as forward carries the gradient to where A is stored.
Product GradientProductA(const MatMulProblem& p) {
  const Views v = ViewsOf(p);
  return WithoutConjugateResult(
      {p.m, p.k, p.n, v.y, Adjoint(v.b), v.a, BatchDims(p.batch, v.batch_y, v.batch_b, v.batch_a)},
      p);
}

Product GradientProductB(const MatMulProblem& p) {
  const Views v = ViewsOf(p);
  return WithoutConjugateResult(
      {p.k, p.n, p.m, Adjoint(v.a), v.y, v.b, BatchDims(p.batch, v.batch_a, v.batch_y, v.batch_b)},
      p);
}

}  // namespace stopgrad
