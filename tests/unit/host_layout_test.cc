// The place of guest RAM, from real output of QEMU 7.2 (host_data/: `info mtree -f` of machines
// started with -S -accel tcg). A user would lose data, or see nothing freed, if a guest address
// were looked for in the wrong place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include "host/guest_layout.h"
#include "host/ram_sharers.h"

namespace fileballoon::host {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kGiB = 1 << 30;

std::string captured(const std::string& machine) {
  std::ifstream in(std::string(HOST_TEST_DATA) + "/qemu-7.2-" + machine + ".mtree");
  EXPECT_TRUE(in) << machine;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// The RAM ranges of a captured machine.
std::vector<MtreeRange> ram_of(const std::string& machine,
                               const std::vector<MemoryBackend>& backends) {
  const auto mtree = parse_mtree(captured(machine));
  EXPECT_TRUE(mtree) << mtree.error().message;
  return mtree ? guest_ram_ranges(*mtree, backends) : std::vector<MtreeRange>();
}

MemoryBackend backend(std::string id, std::uint64_t size) {
  return {std::move(id), Bytes(size), true};
}

/// A backing of `size` bytes that the VMM has mapped at `address`.
Backing mapped(std::uint64_t address, std::uint64_t size) {
  Backing backing;
  backing.size = Bytes(size);
  backing.mappings.push_back({address, {HostOffset(0), Bytes(size)}});
  return backing;
}

/// What gpa2hva would say: backend `name` lies at its address.
std::vector<PlacedRam> place(const std::vector<MtreeRange>& ranges,
                             const std::map<std::string, std::uint64_t>& addresses) {
  std::vector<PlacedRam> placed;
  for (const MtreeRange& r : ranges) {
    placed.push_back({r.first, Bytes(r.last - r.first + 1), addresses.at(r.name) + r.offset});
  }
  return placed;
}

TEST(Mtree, Q35With1GiBIsOneRunWithoutTheLegacyHole) {
  const auto ranges = ram_of("q35_1g", {backend("ram0", kGiB)});
  ASSERT_EQ(ranges.size(), 2U);
  EXPECT_EQ(ranges[0], (MtreeRange{0, 0x9ffff, "ram", "ram0", 0}));
  EXPECT_EQ(ranges[1], (MtreeRange{kMiB, kGiB - 1, "ram", "ram0", kMiB}));
}

TEST(Mtree, Q35With4GiBContinuesBehindThePciHole) {
  const auto ranges = ram_of("q35_4g", {backend("ram0", 4 * kGiB)});
  ASSERT_EQ(ranges.size(), 3U);
  EXPECT_EQ(ranges[1], (MtreeRange{kMiB, 2 * kGiB - 1, "ram", "ram0", kMiB}));
  EXPECT_EQ(ranges[2], (MtreeRange{4 * kGiB, 6 * kGiB - 1, "ram", "ram0", 2 * kGiB}));
}

TEST(Mtree, I440fxWith4GiBHasItsHoleElsewhere) {
  const auto ranges = ram_of("pc_4g", {backend("ram0", 4 * kGiB)});
  ASSERT_EQ(ranges.size(), 3U);
  EXPECT_EQ(ranges[1].last, 3 * kGiB - 1);
  EXPECT_EQ(ranges[2], (MtreeRange{4 * kGiB, 5 * kGiB - 1, "ram", "ram0", 3 * kGiB}));
}

TEST(Mtree, TwoNumaBackendsKeepTheirNames) {
  const auto ranges = ram_of("numa", {backend("ram1", 2 * kGiB), backend("ram0", 2 * kGiB)});
  ASSERT_EQ(ranges.size(), 3U);
  EXPECT_EQ(ranges[1].name, "ram0");
  EXPECT_EQ(ranges[2], (MtreeRange{4 * kGiB, 6 * kGiB - 1, "ram", "ram1", 0}));
}

TEST(Mtree, RomAndVideoMemoryAreNoGuestRam) {
  const auto mtree = parse_mtree(captured("q35_4g"));
  ASSERT_TRUE(mtree);
  const auto kind_of = [&](const std::string& name) {
    const auto found = std::find_if(mtree->begin(), mtree->end(),
                                    [&](const MtreeRange& r) { return r.name == name; });
    return found == mtree->end() ? std::string("absent") : found->kind;
  };
  EXPECT_EQ(kind_of("pc.bios"), "rom");
  EXPECT_EQ(kind_of("pc.rom"), "rom");
  for (const MtreeRange& r : guest_ram_ranges(*mtree, std::vector{backend("ram0", 4 * kGiB)})) {
    EXPECT_EQ(r.name, "ram0");
  }
  // Even a backend of that name does not make a ROM writable.
  EXPECT_TRUE(guest_ram_ranges(*mtree, std::vector{backend("pc.bios", kMiB)}).empty());
}

TEST(Mtree, OldMachineTypesNameRegionsByTheirPath) {
  const auto mtree = parse_mtree(
      "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n"
      "  0000000000100000-000000003fffffff (prio 0, ram): /objects/ram0 @0000000000100000 KVM\n");
  ASSERT_TRUE(mtree) << mtree.error().message;
  const auto ranges = guest_ram_ranges(*mtree, std::vector{backend("ram0", kGiB)});
  ASSERT_EQ(ranges.size(), 1U);
  EXPECT_EQ(ranges[0].offset, kMiB);
}

TEST(Mtree, TextWithoutMemoryOrWithABrokenLineIsAnError) {
  EXPECT_FALSE(parse_mtree(""));
  EXPECT_FALSE(parse_mtree("FlatView #0\n AS \"I/O\", root: io\n"));
  const auto broken =
      parse_mtree("FlatView #0\n AS \"memory\", root: system\n  zz-11 (prio 0, ram): ram0\n");
  ASSERT_FALSE(broken);
  EXPECT_THAT(broken.error().message, HasSubstr("zz-11"));
}

TEST(Layout, FramesBehindThePciHoleLieRightAfterTheRestInTheBacking) {
  std::vector<Backing> backings;
  backings.push_back(mapped(0x7f2cdbfff000, 4 * kGiB));
  const auto layout = place_in_backings(
      place(ram_of("q35_4g", {backend("ram0", 4 * kGiB)}), {{"ram0", 0x7f2cdbfff000}}), backings);
  ASSERT_TRUE(layout) << layout.error().message;
  std::vector<BackingRange> pieces;
  ASSERT_TRUE(layout->translate({GuestFrame(4 * kGiB / kPageSize), 1}, pieces));
  EXPECT_EQ(pieces[0], (BackingRange{0, {HostOffset(2 * kGiB), Bytes(kPageSize)}}));
  pieces.clear();
  EXPECT_FALSE(layout->translate({GuestFrame(3 * kGiB / kPageSize), 1}, pieces)) << "PCI hole";
  EXPECT_FALSE(layout->translate({GuestFrame(0xc0), 1}, pieces)) << "option ROM";
  EXPECT_FALSE(layout->translate({GuestFrame(0xfffff), 1}, pieces)) << "BIOS";
}

TEST(Layout, NumaBackendsAreToldApartByAddressNotByOrder) {
  std::vector<Backing> backings;
  backings.push_back(mapped(0x1000'0000'0000, 2 * kGiB));  // ram1
  backings.push_back(mapped(0x2000'0000'0000, 2 * kGiB));  // ram0
  const auto layout = place_in_backings(
      place(ram_of("numa", {backend("ram0", 2 * kGiB), backend("ram1", 2 * kGiB)}),
            {{"ram0", 0x2000'0000'0000}, {"ram1", 0x1000'0000'0000}}),
      backings);
  ASSERT_TRUE(layout) << layout.error().message;
  std::vector<BackingRange> pieces;
  ASSERT_TRUE(layout->translate({GuestFrame(256), 1}, pieces));
  ASSERT_TRUE(layout->translate({GuestFrame(4 * kGiB / kPageSize), 1}, pieces));
  EXPECT_EQ(pieces[0].backing, 1U);
  EXPECT_EQ(pieces[1].backing, 0U);
}

TEST(Layout, ARunThatTheKernelShowsAsTwoMappingsIsPutTogether) {
  Backing backing;
  backing.size = Bytes(4 * kMiB);
  backing.mappings.push_back({0x10000000, {HostOffset(0), Bytes(kMiB)}});
  backing.mappings.push_back({0x10000000 + kMiB, {HostOffset(kMiB), Bytes(3 * kMiB)}});
  std::vector<Backing> backings;
  backings.push_back(std::move(backing));
  const std::vector<PlacedRam> runs = {{0, Bytes(4 * kMiB), 0x10000000}};
  const auto layout = place_in_backings(runs, backings);
  ASSERT_TRUE(layout) << layout.error().message;
  EXPECT_EQ(layout->segments().size(), 1U);
  EXPECT_EQ(layout->total(), Bytes(4 * kMiB));
}

TEST(Layout, RamThatIsNotSharedNamesTheMissingOptions) {
  std::vector<Backing> backings;
  backings.push_back(mapped(0x10000000, kMiB));
  const std::vector<PlacedRam> runs = {{0, Bytes(2 * kMiB), 0x10000000}};
  const auto layout = place_in_backings(runs, backings);
  ASSERT_FALSE(layout);
  EXPECT_THAT(layout.error().message,
              HasSubstr("-object memory-backend-memfd,id=ram0,size=...,share=on -machine "
                        "memory-backend=ram0"));
}

TEST(Layout, WithoutTheMonitorOnlySmallSingleBackingsAreTaken) {
  std::vector<Backing> one;
  one.push_back(mapped(0x10000000, kGiB));
  const auto layout = identity_layout(one);
  ASSERT_TRUE(layout) << layout.error().message;
  std::vector<BackingRange> pieces;
  ASSERT_TRUE(layout->translate({GuestFrame(0x12345), 1}, pieces));
  EXPECT_EQ(pieces[0].range.start, HostOffset(0x12345000));
  EXPECT_FALSE(layout->translate({GuestFrame(0xc0), 1}, pieces));

  std::vector<Backing> large;
  large.push_back(mapped(0x10000000, 4 * kGiB));
  std::vector<Backing> two;
  two.push_back(mapped(0x10000000, kGiB));
  two.push_back(mapped(0x20000000'0000, kGiB));
  for (const auto* backings : {&large, &two}) {
    const auto refused = identity_layout(*backings);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message, HasSubstr("--qmp SOCKET"));
  }
}

TEST(Qmp, MemoryBackendsAreRead) {
  const auto backends = parse_memdevs(boost::json::parse(
      R"([{"share": true, "size": 2147483648, "id": "ram1"}, {"share": false, "size": 1, "id": "x"}])"));
  ASSERT_TRUE(backends);
  EXPECT_EQ((*backends)[0], (MemoryBackend{"ram1", Bytes(2 * kGiB), true}));
  EXPECT_FALSE((*backends)[1].shared);
  EXPECT_FALSE(parse_memdevs(boost::json::parse("{}")));
}

TEST(Qmp, HostAddressesAreRead) {
  const auto address = parse_gpa2hva("Host virtual address for 0x0 (ram0) is 0x7fd5cbfff000\r\n");
  ASSERT_TRUE(address);
  EXPECT_EQ(*address, 0x7fd5cbfff000U);
  const auto none = parse_gpa2hva("No memory is mapped at address 0x80000000\r\n");
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, HasSubstr("No memory is mapped"));
}

// Devices and back ends whose writes to guest RAM no userfaultfd sees. As QEMU 7.2 prints them.
TEST(Sharers, DevicesThatWriteUnseenForbidPaging) {
  RamSharers sharers;
  add_sharing_devices(boost::json::parse(R"([
      {"name": "type", "type": "string"},
      {"name": "fs0", "type": "child<vhost-user-fs-pci>"},
      {"name": "disk0", "type": "child<virtio-blk-pci>"},
      {"name": "vsock0", "type": "child<vhost-vsock-pci>"}])"),
                      sharers);
  EXPECT_THAT(sharers.assigned_devices, IsEmpty());
  EXPECT_THAT(sharers.paging_hazards,
              ElementsAre(AllOf(HasSubstr("'fs0' (vhost-user)"), HasSubstr("without a store"))));
}

TEST(Sharers, AssignedDevicesForbidEvenDiscards) {
  RamSharers sharers;
  add_sharing_devices(boost::json::parse(R"([
      {"name": "gpu", "type": "child<vfio-pci>"},
      {"name": "v0", "type": "child<vhost-vdpa-device-pci>"}])"),
                      sharers);
  EXPECT_THAT(sharers.assigned_devices, ElementsAre("'gpu', VFIO", "'v0', vDPA"));
}

TEST(Sharers, NetworkBackEndsAreFound) {
  RamSharers sharers;
  add_sharing_netdevs(
      "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n"
      " \\ user0: index=0,type=user,net=10.0.2.0,restrict=off\r\n"
      "virtio-net-pci.1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\r\n"
      " \\ ovs0: index=0,type=vhost-user,info=socket\r\n"
      "vd0: index=0,type=vhost-vdpa\r\n",
      sharers);
  EXPECT_THAT(sharers.paging_hazards, ElementsAre(HasSubstr("netdev 'ovs0' (vhost-user)")));
  EXPECT_THAT(sharers.assigned_devices, ElementsAre("netdev 'vd0', vDPA"));
}

TEST(Sharers, DirectDrivesForbidPagingAndCachedOnesDoNot) {
  RamSharers sharers;
  add_direct_drives(boost::json::parse(R"([{"node-name": "n0", "file": "/a",
      "cache": {"direct": false, "no-flush": false, "writeback": true}}])"),
                    sharers);
  EXPECT_THAT(sharers.paging_hazards, IsEmpty());
  add_direct_drives(boost::json::parse(R"([{"node-name": "n1", "file": "/b.img",
      "cache": {"direct": true, "no-flush": false, "writeback": true}}])"),
                    sharers);
  EXPECT_THAT(sharers.paging_hazards,
              ElementsAre(AllOf(HasSubstr("'n1' (/b.img)"), HasSubstr("cache=writeback"))));
}

}  // namespace
}  // namespace fileballoon::host
