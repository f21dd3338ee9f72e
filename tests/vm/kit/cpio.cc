#include "tests/vm/kit/cpio.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "tests/vm/kit/read_file.h"

namespace fileballoon::vmkit {

CpioWriter::CpioWriter(const std::string& path)
    : path_(path), file_(path, std::ios::binary | std::ios::trunc) {
  if (!file_) throw std::system_error(errno, std::generic_category(), "cannot write " + path);
}

void CpioWriter::add_directory(std::string_view name) { add(name, S_IFDIR | 0755, {}); }

void CpioWriter::add_file(std::string_view name, std::string_view content, unsigned mode) {
  add(name, S_IFREG | mode, content);
}

void CpioWriter::add_copy(std::string_view name, const std::string& source, unsigned mode) {
  add_file(name, read_file(source), mode);
}

void CpioWriter::add_symlink(std::string_view name, std::string_view target) {
  add(name, S_IFLNK | 0777, target);
}

void CpioWriter::add_character_device(std::string_view name, unsigned major, unsigned minor,
                                      unsigned mode) {
  add(name, S_IFCHR | mode, {}, major, minor);
}

void CpioWriter::finish() {
  add("TRAILER!!!", 0, {});
  file_.close();
  if (!file_) throw std::system_error(errno, std::generic_category(), "cannot write " + path_);
}

void CpioWriter::add(std::string_view name, unsigned mode, std::string_view content, unsigned major,
                     unsigned minor) {
  // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
  char header[111];
  std::snprintf(header, sizeof header, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
                inode_++, mode, 0U, 0U, 1U, 0U, static_cast<unsigned>(content.size()), 0U, 0U,
                major, minor, static_cast<unsigned>(name.size() + 1), 0U);
  file_ << header << name << '\0';
  written_ += 110 + name.size() + 1;
  pad();
  file_ << content;
  written_ += content.size();
  pad();
}

void CpioWriter::pad() {
  while (written_ % 4 != 0) {
    file_.put('\0');
    ++written_;
  }
}

}  // namespace fileballoon::vmkit
