//! A machine: vCPU threads, memory, bus and devices wired to a board, and its lifecycle.
