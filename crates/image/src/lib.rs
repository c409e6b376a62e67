//! Guests made by Belljar itself: packages from the host's own mirror, initial RAM filesystems.
