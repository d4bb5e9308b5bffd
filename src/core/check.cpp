#include "src/core/check.hpp"

namespace weft::detail {

void throw_internal(const char* file, int line, const std::string& message) {
  std::string_view path(file);
  for (const std::string_view root : {"/src/", "/parallel/", "/models/", "/data/", "/launch/"}) {
    if (const size_t at = path.rfind(root); at != std::string_view::npos) {
      path.remove_prefix(at + 1);
      break;
    }
  }
  throw Error(ExitCode::internal, message, concat(path, ":", line));
}

}  // namespace weft::detail
