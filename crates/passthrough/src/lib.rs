//! Runs single innocuous instructions on the host's own processor with their operands redirected.
