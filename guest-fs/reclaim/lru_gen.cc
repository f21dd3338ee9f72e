#include "guest-fs/reclaim/lru_gen.h"

#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace fileballoon::guest {
namespace {

/// "1234", "1234x" (spent, in newer kernels), "-0".
std::uint64_t page_count(const char* text) {
  const long long value = std::strtoll(text, nullptr, 10);
  return value > 0 ? static_cast<std::uint64_t>(value) : 0;
}

/// A line of a tier in lru_gen_full: its number, then of anonymous and of file pages how many were
/// refaulted ("12r"), evicted ("12e"), and protected ("12p").
void add_tier(const std::string& line, CacheList& list) {
  unsigned tier = 0;
  std::uint64_t evicted = 0;
  char kind = 0;
  if (std::sscanf(line.c_str(), " %u %*s %*s %*s %*[0-9]r %" SCNu64 "%c", &tier, &evicted, &kind) ==
          3 &&
      kind == 'e') {
    list.evicted_in_use = list.evicted_in_use.value_or(0) + (tier > 0 ? evicted : 0);
  }
}

bool has_word(const std::string& line, std::size_t number) {
  std::istringstream words(line);
  std::string word;
  for (std::size_t i = 0; i <= number; ++i) {
    if (!(words >> word)) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::vector<LruGenList> parse_lru_gen(std::string_view text) {
  std::vector<LruGenList> lists;
  std::string path;
  std::uint64_t cgroup = 0;
  bool in_cgroup = false;
  bool in_node = false;
  std::istringstream lines{std::string(text)};
  std::string line;
  while (std::getline(lines, line)) {
    std::array<char, 32> anon{};
    std::array<char, 32> file{};
    std::uint64_t number = 0;
    std::uint64_t age_ms = 0;
    int path_at = 0;
    if (std::sscanf(line.c_str(), "memcg %" SCNu64 " %n", &number, &path_at) == 1) {
      cgroup = number;
      path = path_at > 0 ? line.substr(static_cast<std::size_t>(path_at)) : "";
      while (!path.empty() && path.back() == ' ') {
        path.pop_back();
      }
      in_cgroup = true;
      in_node = false;
    } else if (std::sscanf(line.c_str(), " node %" SCNu64, &number) == 1) {
      in_node = in_cgroup;
      if (in_node) {
        lists.push_back({{cgroup, static_cast<unsigned>(number), {}, {}}, path});
      }
    } else if (in_node && has_word(line, 4)) {
      add_tier(line, lists.back().list);
    } else if (in_node && std::sscanf(line.c_str(), " %" SCNu64 " %" SCNu64 " %31s %31s", &number,
                                      &age_ms, anon.data(), file.data()) == 4) {
      GenerationView& view = lists.back().list.view;
      const std::uint64_t pages = page_count(file.data());
      if (view.file_pages == 0) {
        view.oldest = number;
        view.oldest_pages = pages;
      }
      view.file_pages += pages;
      view.youngest = number;
    }
  }
  return lists;
}

std::string age_command(const CacheList& list, std::uint64_t youngest) {
  return "+ " + std::to_string(list.cgroup) + " " + std::to_string(list.node) + " " +
         std::to_string(youngest) + " 0 1";
}

std::string evict_command(const CacheList& list, std::uint64_t generation, std::uint64_t pages) {
  return "- " + std::to_string(list.cgroup) + " " + std::to_string(list.node) + " " +
         std::to_string(generation) + " 0 " + std::to_string(pages);
}

}  // namespace fileballoon::guest
