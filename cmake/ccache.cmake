# Compiles through ccache, so that clones and worktrees of this project share what is compiled:
# paths below the clone enter the cache's key relative to it, and the working directory does not.
# (Debug information of a shared object may then name the clone that compiled it first.)
# A precompiled header (quick builds) is cached as such; its users are then found by its content, for
# which ccache asks to overlook macros that a header was compiled with, and -fpch-preprocess.
# With -DCMAKE_CXX_COMPILER_LAUNCHER=OTHER the launcher is the caller's choice.
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND (NOT CMAKE_CXX_COMPILER_LAUNCHER OR CMAKE_CXX_COMPILER_LAUNCHER STREQUAL "ccache"))
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE_PROGRAM})
endif()
