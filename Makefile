# The front door. `make` builds, `make test` tests, `make demo` shows; each installs what it needs.
# CMake does the work; BUILD, TYPE, JOBS and TEST_JOBS can be set on the command line.
BUILD ?= build
TYPE  ?= RelWithDebInfo
JOBS  ?= $(shell nproc)
# One more: a test waits for a guest or a clock for nearly half of its time.
TEST_JOBS ?= $(shell expr $(JOBS) + 1)
PREFIX ?= /usr/local

CMAKE_FLAGS = -G Ninja -DCMAKE_BUILD_TYPE=$(TYPE) -DCMAKE_INSTALL_PREFIX=$(PREFIX) \
              -DFILEBALLOON_GUEST_KERNEL=$(abspath $(BUILD))/guest-kernel
SOURCES = $(shell git ls-files '*.h' '*.cc')
# Lets a pipe or CI stay quiet while a terminal sees progress.
QUIET = $(shell test -t 1 || echo --quiet)

.PHONY: all deps build test test-unit sanitize demo bench lint format install clean help

all: build

help:
	@echo 'targets: deps build (default) test test-unit sanitize demo bench lint format install clean'

# The stamp follows the scripts: a package added there is installed by the next make.
DEPS_STAMP = $(BUILD)/.deps-installed
$(DEPS_STAMP): scripts/install-deps.sh scripts/fetch-guest-kernel.sh
	@mkdir -p $(BUILD)
	scripts/install-deps.sh $(BUILD)/guest-kernel
	@touch $@

deps: $(DEPS_STAMP)

$(BUILD)/build.ninja: $(DEPS_STAMP)
	cmake -S . -B $(BUILD) $(CMAKE_FLAGS)

build: $(BUILD)/build.ninja
	ninja -C $(BUILD) -j $(JOBS) $(QUIET)

test: build
	cd $(BUILD) && ctest -j $(TEST_JOBS) --output-on-failure --output-junit ctest.xml $(CTEST_FLAGS)

test-unit: build
	cd $(BUILD) && ctest -j $(TEST_JOBS) --output-on-failure -L unit

# Unit and integration tests under ASan+UBSan, and those where threads meet under TSan.
sanitize: $(DEPS_STAMP)
	scripts/sanitize.sh $(BUILD)/sanitize $(JOBS) $(TEST_JOBS)

demo: build
	$(BUILD)/bench/demo

# Every benchmark with its default settings; JSON beside the tables, in $(BUILD)/results.
bench: build
	scripts/bench.sh $(BUILD) $(BUILD)/results

# TIDY='fileballoon host' restricts clang-tidy, which is slow, to some folders.
lint: $(BUILD)/build.ninja
	scripts/lint.sh $(BUILD) $(JOBS) $(TIDY)

format: deps
	clang-format -i $(SOURCES)

# The prefix is part of the units, so it is settled anew.
install: build
	cmake -S . -B $(BUILD) $(CMAKE_FLAGS) >/dev/null
	cmake --install $(BUILD)

clean:
	rm -rf $(BUILD)
