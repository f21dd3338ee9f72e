# One place for how our targets are compiled, so that a warning is an error everywhere.
add_library(fileballoon_options INTERFACE)
target_compile_options(fileballoon_options INTERFACE -Wall -Wextra)
if(FILEBALLOON_WERROR)
  target_compile_options(fileballoon_options INTERFACE -Werror)
endif()
target_include_directories(fileballoon_options INTERFACE ${CMAKE_SOURCE_DIR})
# Headers are most of what is compiled: a dozen sources of a library at a time take half of what they
# take one by one (measured: host/ 59 and 29 s, uffd/ 29 and 16 s). Debug information goes down to
# lines, and a linker that takes a third of the time (sanitized fileballoond: 11 and 4 s) is used
# where it is there. A source whose file-local names collide with a neighbour's has
# SKIP_UNITY_BUILD_INCLUSION.
if(FILEBALLOON_QUICK_BUILD)
  set(CMAKE_UNITY_BUILD ON)
  set(CMAKE_UNITY_BUILD_BATCH_SIZE 12)
  # Coroutine frames of a file's own types: GCC takes them for a header's in such a build.
  add_compile_options(-g1 $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>
                      $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
  find_program(LLD_PROGRAM ld.lld)
  if(LLD_PROGRAM)
    add_link_options(-fuse-ld=lld)
  endif()
endif()
if(FILEBALLOON_SANITIZE)
  target_compile_options(fileballoon_options INTERFACE -fsanitize=${FILEBALLOON_SANITIZE}
                         -fno-omit-frame-pointer)
  target_link_options(fileballoon_options INTERFACE -fsanitize=${FILEBALLOON_SANITIZE})
endif()

# Boost.Asio on io_uring alone; every user must agree on these macros (one definition rule).
add_library(fileballoon_asio INTERFACE)
target_compile_definitions(fileballoon_asio INTERFACE BOOST_ASIO_HAS_IO_URING=1
                           BOOST_ASIO_DISABLE_EPOLL=1)
# GCC 12 takes Asio's frame allocator (aligned_alloc in operator new, free in operator delete) for a
# mismatch when a sanitizer changes what is inlined: a false alarm in a header that is not ours.
target_compile_options(fileballoon_asio INTERFACE
                       $<$<CXX_COMPILER_ID:GNU>:-Wno-mismatched-new-delete>)
target_link_libraries(fileballoon_asio INTERFACE Boost::headers PkgConfig::LIBURING Threads::Threads)

# What scripts/sanitize.sh builds: the test programs (and what they run) that suit a sanitizer.
add_custom_target(sanitizer_tests)
add_custom_target(thread_tests)

# Registers a test program by its ctest labels with the target above that builds it.
function(fileballoon_register_test target)
  if("unit" IN_LIST ARGN OR "integration" IN_LIST ARGN)
    add_dependencies(sanitizer_tests ${target})
  endif()
  if("threads" IN_LIST ARGN)
    add_dependencies(thread_tests ${target})
  endif()
endfunction()

# The code under test is compiled and checked as it ships; the statements of a test or benchmark itself
# compile in half of the time so. Quick builds only, so a quick build is not one to measure with.
function(fileballoon_test_options target)
  if(FILEBALLOON_SANITIZE OR FILEBALLOON_QUICK_BUILD)
    target_compile_options(${target} PRIVATE -O0)
  endif()
  if(FILEBALLOON_SANITIZE)
    target_compile_options(${target} PRIVATE -fno-sanitize=undefined)
  endif()
endfunction()

# fileballoon_test(NAME LABELS l... SOURCES f... LIBS t... [TIMEOUT s] [SERIAL] [LOCK name])
# One GoogleTest program; each of its tests is a test of its own for ctest. SERIAL: beside no other
# test. LOCK: beside no other test with the same lock.
function(fileballoon_test name)
  cmake_parse_arguments(ARG "SERIAL" "TIMEOUT;LOCK" "LABELS;SOURCES;LIBS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 60)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE fileballoon_options ${ARG_LIBS} GTest::gtest GTest::gmock
                        GTest::gtest_main)
  fileballoon_test_options(${name})
  if(FILEBALLOON_QUICK_BUILD)
    if(NOT TARGET fileballoon_test_headers)
      # GoogleTest's headers take 3 s to read. A library needs a source.
      file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/test_headers.cc CONTENT "")
      add_library(fileballoon_test_headers OBJECT ${CMAKE_BINARY_DIR}/test_headers.cc)
      target_link_libraries(fileballoon_test_headers PRIVATE fileballoon_options GTest::gtest
                            GTest::gmock)
      fileballoon_test_options(fileballoon_test_headers)
      target_precompile_headers(fileballoon_test_headers PRIVATE <gmock/gmock.h> <gtest/gtest.h>)
    endif()
    target_precompile_headers(${name} REUSE_FROM fileballoon_test_headers)
  endif()
  fileballoon_register_test(${name} ${ARG_LABELS})
  if(FILEBALLOON_SANITIZE AND "unit" IN_LIST ARG_LABELS)
    # A sanitized program takes longer to start than most of its tests take.
    add_test(NAME ${name} COMMAND ${name} --gtest_brief=1)
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 200)
    return()
  endif()
  # A busy machine lists the tests of a sanitized program later than in the 5 s of the default.
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60)

  # The properties are set by a script of ours, run by ctest after the discovery. Passed through
  # gtest_discover_tests(PROPERTIES), a list of labels comes apart there (CMake 3.25): its second
  # item becomes the name of a property, and all properties after it are lost.
  set(properties TIMEOUT ${ARG_TIMEOUT} SKIP_REGULAR_EXPRESSION [["\\[  SKIPPED \\]"]])
  if(ARG_SERIAL)
    list(APPEND properties RUN_SERIAL ON)
  endif()
  if(ARG_LOCK)
    list(APPEND properties RESOURCE_LOCK ${ARG_LOCK})
  endif()
  list(JOIN properties " " properties)
  set(script ${CMAKE_CURRENT_BINARY_DIR}/${name}_properties.cmake)
  file(CONFIGURE OUTPUT ${script} @ONLY CONTENT
    [[set_tests_properties(${@name@_TESTS} PROPERTIES LABELS "@ARG_LABELS@" @properties@)
]])
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${script})
endfunction()
