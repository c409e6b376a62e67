//! The command line of Belljar.

fn main() {}
