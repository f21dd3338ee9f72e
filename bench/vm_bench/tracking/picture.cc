#include "bench/vm_bench/tracking/picture.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <stdexcept>

#include "tests/vm/kit/child_process.h"
#include "tests/vm/kit/temp_dir.h"

namespace fileballoon::bench {
namespace {

constexpr std::size_t kColumns = 3;
constexpr int kPanelWidth = 420;
constexpr int kPanelHeight = 260;
constexpr int kTitleHeight = 40;
/// MiB above the highest value, for the key.
constexpr double kKeyRoom = 150;

// Titles are text, not gnuplot's markup; the quotes here are single ones.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("''") : std::string(1, c);
  return out + "'";
}

void write_data(std::ostream& out, const std::vector<Panel>& panels) {
  for (std::size_t i = 0; i < panels.size(); ++i) {
    out << "$panel" << i << " << END\n";
    for (const Sample& sample : panels[i].series) {
      out << sample.time_s << ' ' << sample.footprint_mib << ' '
          << sample.working_set_mib + panels[i].idle_mib << '\n';
    }
    out << "END\n";
  }
}

void write_panels(std::ostream& out, const std::vector<Panel>& panels) {
  double longest = 0;
  double highest = 0;
  for (const Panel& panel : panels) {
    for (const Sample& sample : panel.series) {
      longest = std::max(longest, sample.time_s);
      highest = std::max(highest, sample.footprint_mib);
    }
  }
  // The same axes everywhere: panels are there to be compared.
  out << "set xrange [0:" << std::ceil(longest / 10) * 10
      << "]\nset yrange [0:" << std::ceil((highest + kKeyRoom) / 200) * 200
      << "]\nset xtics nomirror out scale 0.5\n"
      << "set ytics 200 nomirror out scale 0.5\nset grid ytics lc rgb '#dddddd' lt 1\n"
      << "set border 3 lc rgb '#777777'\nset key top right samplen 1.5 spacing 1.1\n"
      << "set style fill solid 1 noborder\n";
  for (std::size_t i = 0; i < panels.size(); ++i) {
    // Two lines: only in gnuplot's double quotes is \n a line break, and these texts hold no
    // quotes.
    out << "set title \"" << panels[i].title << "\\n"
        << panels[i].note << "\" noenhanced\n"
        << (i % kColumns == 0 ? "set ylabel 'MiB'\n" : "unset ylabel\n")
        << (i + kColumns >= panels.size() ? "set xlabel 's'\n" : "unset xlabel\n") << "plot $panel"
        << i << " using 1:3 with fillsteps lc rgb '#e4e4e4' notitle, $panel" << i
        << " using 1:3 with steps lw 1.5 lc rgb '#888888' title 'idle + working set', $panel" << i
        << " using 1:2 with lines lw 2 lc rgb '#c0392b' title 'footprint'\nunset key\n";
  }
}

}  // namespace

void draw_panels(const std::string& path, const std::string& title,
                 const std::vector<Panel>& panels) {
  if (panels.empty()) return;
  const std::size_t rows = (panels.size() + kColumns - 1) / kColumns;
  const vmkit::TempDir dir("bench-picture");
  for (const char* kind : {"svg", "png"}) {
    const std::string script = dir.file(std::string(kind) + ".gnuplot");
    std::ofstream out(script);
    out << "set encoding utf8\nset terminal " << (kind == std::string("svg") ? "svg" : "pngcairo")
        << " size " << kColumns * kPanelWidth << ',' << rows * kPanelHeight + kTitleHeight
        << " background rgb 'white' font ',11'\nset output " << quoted(path + "." + kind) << '\n';
    write_data(out, panels);
    out << "set multiplot layout " << rows << ',' << kColumns << " title " << quoted(title)
        << " noenhanced\n";
    write_panels(out, panels);
    out << "unset multiplot\n";
    out.close();
    const auto done = vmkit::run_command({"gnuplot", script});
    if (done.status != 0) {
      throw std::runtime_error("gnuplot (package gnuplot-nox) cannot draw " + path + "." + kind +
                               ": " + done.err);
    }
  }
}

}  // namespace fileballoon::bench
