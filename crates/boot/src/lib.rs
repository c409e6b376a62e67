//! Loaders of kernels and the firmware tables.
