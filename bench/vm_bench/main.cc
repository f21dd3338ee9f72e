// vm_bench: scenarios in a real guest, with the peers side by side in one run.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <exception>
#include <iostream>

#include "bench/merge_runs.h"
#include "bench/report.h"
#include "bench/results_file.h"
#include "bench/vm_bench/mode.h"
#include "bench/vm_bench/scenario.h"
#include "tests/vm/kit/accelerator.h"
#include "tests/vm/kit/guest_image.h"
#include "tests/vm/kit/temp_dir.h"

namespace {

using fileballoon::Bytes;
using fileballoon::bench::Machine;
using fileballoon::bench::Report;
using fileballoon::bench::Row;
using fileballoon::bench::Scenario;
using fileballoon::bench::Settings;

struct CommandLine {
  std::string scenario = "inflate";
  std::vector<std::string> modes;
  std::string json;
  std::string plot;
  std::vector<std::string> merge;
  unsigned runs = 3;
  Settings settings;
};

CLI::Option* add_size(CLI::App& app, const std::string& name, Bytes& into,
                      const std::string& help) {
  return app
      .add_option_function<std::string>(
          name,
          [&into, name](const std::string& text) {
            const auto size = fileballoon::parse_size(text);
            if (!size) throw CLI::ValidationError(name, size.error().message);
            into = *size;
          },
          help)
      ->type_name("SIZE")
      ->default_str(fileballoon::to_string(into));
}

void set_up(CLI::App& app, CommandLine& line) {
  std::vector<std::string> names;
  std::string summaries;
  for (const Scenario* scenario : fileballoon::bench::scenarios()) {
    names.push_back(scenario->name());
    summaries += "\n  " + scenario->name() + ": " + scenario->summary();
  }
  app.description("Measures ways to get a guest's memory back, in real guests." + summaries);
  app.add_option("--scenario", line.scenario, "what to measure")
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  app.add_option("--mode", line.modes, "a way to compare; repeatable; default: all that apply");
  app.add_option("--json", line.json, "write the result as one JSON object to this file");
  app.add_option("--runs", line.runs, "repetitions; rows are their medians")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--cpus", line.settings.cpus, "virtual CPUs of the guest")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--plot", line.plot, "draw PATH.svg and PATH.png (tracking)")->type_name("PATH");
  app.add_option("--merge", line.merge,
                 "measure nothing: make table, JSON and picture of earlier --json files")
      ->type_name("FILE...")
      ->check(CLI::ExistingFile);
  app.add_option("--steps", line.settings.steps, "working sets of the staircase, MiB (tracking)")
      ->delimiter(',')
      ->check(CLI::Range(10, 1 << 20))
      ->capture_default_str();
  app.add_option("--step-seconds", line.settings.step_seconds,
                 "about how long a step takes under TCG; its work is fixed (tracking)")
      ->check(CLI::Range(1, 600))
      ->capture_default_str();
  app.add_option(
         "--passes", line.settings.passes,
         "rounds of a job over the hot part of its memory: more, and the jobs overlap longer "
         "(overcommit)")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add_size(app, "--memory", line.settings.memory, "RAM of the guest");
  add_size(app, "--balloon", line.settings.balloon, "target of the balloon");
  add_size(app, "--fill", line.settings.fill, "what the workload fills (pressure)");
  add_size(app, "--limit", line.settings.limit, "memory that the host has for guests (overcommit)");
}

Scenario& find_scenario(const std::string& name) {
  for (Scenario* scenario : fileballoon::bench::scenarios()) {
    if (scenario->name() == name) return *scenario;
  }
  throw std::runtime_error("no scenario " + name);
}

std::vector<std::string> modes_to_run(const CommandLine& line, const Scenario& scenario) {
  std::vector<std::string> apply = scenario.modes();
  if (line.modes.empty()) return apply;
  for (const std::string& mode : line.modes) {
    if (std::find(apply.begin(), apply.end(), mode) == apply.end()) {
      throw std::runtime_error(fmt::format("mode {} does not apply to scenario {}, which has {}",
                                           mode, scenario.name(), fmt::join(apply, ", ")));
    }
  }
  return line.modes;
}

// One repetition over all modes. The order is turned by one in each run, so that none of them is
// always first.
std::vector<Row> run_once(Scenario& scenario, std::vector<std::string> modes, unsigned run,
                          const Settings& settings) {
  std::rotate(modes.begin(), modes.begin() + run % modes.size(), modes.end());
  std::vector<Row> rows;
  for (const std::string& mode : modes) {
    for (const std::string& variant : scenario.variants(mode)) {
      std::cerr << "run " << run + 1 << ": " << mode << (variant.empty() ? "" : ", ") << variant
                << std::endl;
      Row row = scenario.measure(mode, variant, settings);
      row["run"] = run + 1;
      rows.push_back(std::move(row));
    }
  }
  scenario.relate(rows);
  return rows;
}

void sort_by_mode(std::vector<Row>& rows, const std::vector<std::string>& modes) {
  const auto place = [&](const Row& row) {
    return std::find(modes.begin(), modes.end(), std::string(row.at("mode").as_string())) -
           modes.begin();
  };
  std::stable_sort(rows.begin(), rows.end(),
                   [&](const Row& a, const Row& b) { return place(a) < place(b); });
}

// Table, JSON and picture of single measurements. `related`: their comparing fields are made.
void present(const CommandLine& line, const Scenario& scenario, const Machine& machine,
             const std::vector<Row>& samples, bool related) {
  std::vector<Row> rows = fileballoon::bench::merge_runs(samples);
  if (!related) scenario.relate(rows);
  Report report("vm_bench", machine);
  report.set("scenario", boost::json::value(scenario.name()));
  report.set("samples", boost::json::array(samples.begin(), samples.end()));
  for (Row& row : rows) report.add(std::move(row));
  report.print_table(std::cout, scenario.columns());
  if (!line.json.empty()) report.write_json(line.json);
  if (!line.plot.empty()) scenario.draw(samples, line.plot);
}

void merge(const CommandLine& line) {
  fileballoon::bench::ResultsFile all = fileballoon::bench::read_all_results(line.merge);
  Scenario& scenario = find_scenario(all.scenario);
  sort_by_mode(all.samples, modes_to_run(line, scenario));
  present(line, scenario, all.machine, all.samples, false);
}

void run(const CommandLine& line) {
  if (const auto reason = fileballoon::vmkit::why_no_guest()) throw std::runtime_error(*reason);
  Scenario& scenario = find_scenario(line.scenario);
  const std::vector<std::string> modes = modes_to_run(line, scenario);

  Machine machine = fileballoon::bench::this_machine();
  const auto& accelerator = fileballoon::vmkit::accelerator();
  machine.accel = accelerator.name;
  machine.guest_kernel = fileballoon::vmkit::find_guest_kernel().release;
  machine.qemu = fileballoon::vmkit::qemu_version();
  std::cout << "vm_bench --scenario " << scenario.name() << ": QEMU " << machine.qemu << " with "
            << accelerator.name << " (" << accelerator.reason << "), guest kernel "
            << machine.guest_kernel << ", " << line.runs << " runs, medians" << std::endl;

  std::vector<Row> samples;
  for (unsigned number = 0; number < line.runs; ++number) {
    for (Row& row : run_once(scenario, modes, number, line.settings)) {
      samples.push_back(std::move(row));
    }
  }
  sort_by_mode(samples, modes);
  present(line, scenario, machine, samples, true);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app;
  CommandLine line;
  set_up(app, line);
  CLI11_PARSE(app, argc, argv);
  fileballoon::vmkit::exit_cleanly_on_signals();
  try {
    line.merge.empty() ? run(line) : merge(line);
  } catch (const std::exception& error) {
    std::cerr << "vm_bench: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
