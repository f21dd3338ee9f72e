#include "host/guest_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace fileballoon::host {
namespace {

constexpr std::uint64_t kLegacyHoleStart = 0xa0000;
constexpr std::uint64_t kLegacyHoleEnd = 0x100000;
/// QEMU 7.2 keeps RAM contiguous from 0 up to at least here on every x86 machine: q35 splits
/// 2.75 GiB or more at 2 GiB, i440fx 3.5 GiB or more at 3 GiB (hw/i386/pc_q35.c, pc_piix.c).
constexpr Bytes kIdentityLimit = Bytes::gib(2);

/// Appends [first, end) as a page-aligned range unless it is empty.
void add_part(const MtreeRange& range, std::uint64_t first, std::uint64_t end,
              std::vector<MtreeRange>& out) {
  first = (first + kPageSize - 1) / kPageSize * kPageSize;
  end = end / kPageSize * kPageSize;
  if (first < end) {
    out.push_back({first, end - 1, range.kind, range.name, range.offset + (first - range.first)});
  }
}

}  // namespace

std::string_view backend_id(std::string_view name) {
  constexpr std::string_view kObjects = "/objects/";
  return name.starts_with(kObjects) ? name.substr(kObjects.size()) : name;
}

std::string shared_ram_options(Bytes size) {
  return fmt::format(
      "-object memory-backend-memfd,id=ram0,size={},share=on -machine memory-backend=ram0",
      size.count() == 0 ? std::string("...") : fmt::format("{}M", size.count() >> 20));
}

Result<std::vector<MemoryBackend>> parse_memdevs(const boost::json::value& reply) {
  if (!reply.is_array()) {
    return Error{"QMP query-memdev: the reply is no list"};
  }
  std::vector<MemoryBackend> backends;
  for (const boost::json::value& item : reply.get_array()) {
    if (!item.is_object()) {
      return Error{"QMP query-memdev: the reply is no list of objects"};
    }
    const boost::json::object& object = item.get_object();
    const auto* size = object.if_contains("size");
    const auto* share = object.if_contains("share");
    MemoryBackend backend;
    backend.id = reply_text(object, "id");
    backend.size =
        Bytes(size != nullptr && size->is_number() ? size->to_number<std::uint64_t>() : 0);
    backend.shared = share != nullptr && share->is_bool() && share->get_bool();
    backends.push_back(std::move(backend));
  }
  return backends;
}

std::vector<MtreeRange> guest_ram_ranges(std::span<const MtreeRange> mtree,
                                         std::span<const MemoryBackend> backends) {
  std::vector<MtreeRange> ranges;
  for (const MtreeRange& range : mtree) {
    const bool is_backend =
        range.kind == "ram" && std::any_of(backends.begin(), backends.end(), [&](const auto& b) {
          return !b.id.empty() && b.id == backend_id(range.name);
        });
    if (!is_backend) {
      continue;
    }
    const std::uint64_t end = range.last + 1;
    if (range.first < kLegacyHoleStart) {
      add_part(range, range.first, std::min(end, kLegacyHoleStart), ranges);
    }
    if (end > kLegacyHoleEnd) {
      add_part(range, std::max(range.first, kLegacyHoleEnd), end, ranges);
    }
  }
  return ranges;
}

Result<std::uint64_t> parse_gpa2hva(std::string_view text) {
  constexpr std::string_view kMark = " is 0x";
  const auto at = text.rfind(kMark);
  std::uint64_t address = 0;
  if (at != std::string_view::npos) {
    const std::string_view digits = text.substr(at + kMark.size());
    if (std::from_chars(digits.data(), digits.data() + digits.size(), address, 16).ec ==
        std::errc{}) {
      return address;
    }
  }
  return Error{"QEMU does not say where guest memory lies ('gpa2hva' answered: " +
               std::string(text.substr(0, text.find_first_of("\r\n"))) + ")"};
}

Result<RamLayout> place_in_backings(std::span<const PlacedRam> runs,
                                    std::span<const Backing> backings) {
  struct Piece {
    std::uint32_t backing;
    VmmMapping mapping;
  };
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < backings.size(); ++i) {
    for (const VmmMapping& mapping : backings[i].mappings) {
      pieces.push_back({static_cast<std::uint32_t>(i), mapping});
    }
  }
  std::vector<RamSegment> segments;
  for (const PlacedRam& run : runs) {
    // One run may span several mappings: the kernel splits one where its flags differ.
    std::uint64_t done = 0;
    while (done < run.size.count()) {
      const std::uint64_t address = run.vmm_address + done;
      const auto piece = std::find_if(pieces.begin(), pieces.end(), [&](const Piece& p) {
        return p.mapping.address <= address && address < p.mapping.end();
      });
      if (piece == pieces.end()) {
        return Error{fmt::format(
            "guest RAM at {:#x} is not shared memory, so the host cannot discard it; start QEMU "
            "with {}",
            run.guest_address + done, shared_ram_options(Bytes(0)))};
      }
      const std::uint64_t skip = address - piece->mapping.address;
      const std::uint64_t take =
          std::min(run.size.count() - done, piece->mapping.range.size.count() - skip);
      segments.push_back({{GuestFrame((run.guest_address + done) / kPageSize), take / kPageSize},
                          piece->mapping.range.start + Bytes(skip),
                          piece->backing});
      done += take;
    }
  }
  if (segments.empty()) {
    return Error{"QEMU shows no guest RAM that belongs to a memory backend; start it with " +
                 shared_ram_options(Bytes(0))};
  }
  return RamLayout::create(std::move(segments));
}

Result<RamLayout> layout_from_qmp(QmpClient& qmp, std::span<const Backing> backings,
                                  std::span<const std::string> shared_backends) {
  const Result<boost::json::value> memdev_reply = qmp.execute("query-memdev");
  if (!memdev_reply) {
    return memdev_reply.error();
  }
  Result<std::vector<MemoryBackend>> memdevs = parse_memdevs(*memdev_reply);
  if (!memdevs) {
    return memdevs.error();
  }
  std::erase_if(*memdevs, [&](const MemoryBackend& backend) {
    return std::find(shared_backends.begin(), shared_backends.end(), backend.id) !=
           shared_backends.end();
  });
  for (const MemoryBackend& backend : *memdevs) {
    if (!backend.shared) {
      return Error{fmt::format(
          "guest RAM '{}' ({}) is private to QEMU, so the host cannot discard it; start QEMU with "
          "{}",
          backend.id, to_string(backend.size), shared_ram_options(backend.size))};
    }
  }
  const Result<std::string> text = qmp.human("info mtree -f");
  if (!text) {
    return text.error();
  }
  const Result<std::vector<MtreeRange>> mtree = parse_mtree(*text);
  if (!mtree) {
    return mtree.error();
  }
  std::vector<PlacedRam> runs;
  for (const MtreeRange& range : guest_ram_ranges(*mtree, *memdevs)) {
    const Result<std::string> answer = qmp.human(fmt::format("gpa2hva {:#x}", range.first));
    if (!answer) {
      return answer.error();
    }
    const Result<std::uint64_t> address = parse_gpa2hva(*answer);
    if (!address) {
      return address.error();
    }
    runs.push_back({range.first, Bytes(range.last - range.first + 1), *address});
  }
  return place_in_backings(runs, backings);
}

Result<RamLayout> identity_layout(std::span<const Backing> backings) {
  if (backings.size() != 1) {
    return Error{fmt::format(
        "the VM has {} RAM backings, so their place in guest memory is not known; pass the monitor "
        "with --qmp SOCKET (QEMU: -qmp unix:PATH,server=on,wait=off)",
        backings.size())};
  }
  const Bytes size = backings[0].size.page_floor();
  if (size > kIdentityLimit) {
    return Error{fmt::format(
        "the VM has {} of RAM, part of which lies behind the PCI hole; pass the monitor with --qmp "
        "SOCKET (QEMU: -qmp unix:PATH,server=on,wait=off) so that its place is known",
        to_string(size))};
  }
  const std::uint64_t pages = size.whole_pages();
  std::vector<RamSegment> segments;
  constexpr std::uint64_t kHoleFirst = kLegacyHoleStart / kPageSize;
  constexpr std::uint64_t kHoleEnd = kLegacyHoleEnd / kPageSize;
  segments.push_back({{GuestFrame(0), std::min(pages, kHoleFirst)}, HostOffset(0), 0});
  if (pages > kHoleEnd) {
    segments.push_back({{GuestFrame(kHoleEnd), pages - kHoleEnd}, HostOffset(kLegacyHoleEnd), 0});
  }
  return RamLayout::create(std::move(segments));
}

Result<RamLayout> keep_only_ram(const RamLayout& layout, GuestRam& ram,
                                std::vector<std::string>& dropped) {
  constexpr std::uint32_t kUnused = ~0U;
  std::vector<std::uint32_t> renamed(ram.backings().size(), kUnused);
  for (const RamSegment& segment : layout.segments()) {
    if (segment.backing >= renamed.size()) {
      return Error{fmt::format("there is no memory backing {} in {}", segment.backing,
                               ram.process().label())};
    }
    renamed[segment.backing] = 0;
  }
  std::vector<InodeId> kept;
  for (std::size_t i = 0; i < renamed.size(); ++i) {
    if (renamed[i] == kUnused) {
      dropped.push_back(ram.backings()[i].name);
    } else {
      renamed[i] = static_cast<std::uint32_t>(kept.size());
      kept.push_back(ram.backings()[i].id());
    }
  }
  if (const Result<void> done = ram.keep_only(kept); !done) {
    return done.error();
  }
  std::vector<RamSegment> segments = layout.segments();
  for (RamSegment& segment : segments) {
    segment.backing = renamed[segment.backing];
  }
  return RamLayout::create(std::move(segments));
}

}  // namespace fileballoon::host
