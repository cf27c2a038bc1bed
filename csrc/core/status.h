#ifndef STOPGRAD_CORE_STATUS_H_
#define STOPGRAD_CORE_STATUS_H_

#include <string>
#include <utility>

namespace stopgrad {

enum class StatusCode { kOk, kInvalidArgument, kResourceExhausted, kUnavailable, kInternal };

// What a kernel returns. Nothing in core, cpu or cuda throws; the adapters turn a status into the
// error of their framework.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status InvalidArgument(std::string message) {
  return Status(StatusCode::kInvalidArgument, std::move(message));
}

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_STATUS_H_
