// read_file(): what the kit puts into guests, or tells their images apart by.
#pragma once

#include <cerrno>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

namespace fileballoon::vmkit {

/// All of a file. Throws std::system_error where it cannot be read.
inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  if (!file) throw std::system_error(errno, std::generic_category(), "cannot read " + path);
  return content.str();
}

}  // namespace fileballoon::vmkit
