// Report: what every benchmark of this project writes. Flat rows with the unit in each field's
// name, one JSON object per program ("benchmark", "machine", "rows") and an aligned table for the
// terminal, both from the same rows. Used by all programs in bench/; not thread-safe.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

namespace fileballoon::bench {

/// Where the numbers were measured. What does not apply to a benchmark stays empty (JSON null).
struct Machine {
  std::string accel;         ///< "kvm" or "tcg"; empty where no VM is run
  std::string guest_kernel;  ///< release; empty where no VM is run
  std::string host_kernel;   ///< release
  std::string qemu;          ///< version; empty where no VM is run
  unsigned cpus = 0;         ///< CPUs that this process may use
};

/// host_kernel and cpus of this machine.
[[nodiscard]] Machine this_machine();

/// One row; fields keep the order in which they were added. Numbers, strings, booleans or null.
using Row = boost::json::object;

class Report {
 public:
  explicit Report(std::string benchmark, Machine machine = this_machine());

  [[nodiscard]] Machine& machine() { return machine_; }
  void add(Row row) { rows_.push_back(std::move(row)); }
  [[nodiscard]] const std::vector<Row>& rows() const { return rows_; }
  /// A further top-level field ("scenario", "runs", …).
  void set(std::string_view key, boost::json::value value);

  [[nodiscard]] boost::json::object to_json() const;
  /// Writes the object to `path` and a newline. Throws std::system_error naming the path.
  void write_json(const std::string& path) const;
  /// The rows as a table with one column per field, in order of first appearance; `columns`, where
  /// not empty, selects and orders them. Numbers are right-aligned, missing and null cells are "-".
  void print_table(std::ostream& out, const std::vector<std::string>& columns = {}) const;

 private:
  std::string benchmark_;
  Machine machine_;
  boost::json::object extra_;
  std::vector<Row> rows_;
};

}  // namespace fileballoon::bench
