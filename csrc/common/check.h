// Errors that name the operator, the argument, what was expected and what came.
#pragma once

#include <sstream>
#include <stdexcept>

namespace brittle {

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace brittle
