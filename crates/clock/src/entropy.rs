//! Randomness, the other named door.

use std::fs::File;
use std::io::Read;
use std::sync::Mutex;

/// Where a machine's randomness (RDRAND, RDSEED, virtio-rng, seeds handed to kernels) comes from.
pub trait Entropy: Send + Sync + std::fmt::Debug {
    /// Fills `out` with random bytes.
    fn fill(&self, out: &mut [u8]);

    /// A random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// The host's random number generator, read in batches.
#[derive(Debug)]
pub struct HostEntropy {
    pool: Mutex<Pool>,
}

#[derive(Debug)]
struct Pool {
    source: File,
    bytes: [u8; 512],
    used: usize,
}

impl HostEntropy {
    /// Opens the host's generator.
    ///
    /// # Errors
    /// When the host has no `/dev/urandom`.
    pub fn new() -> std::io::Result<Self> {
        let mut source = File::open("/dev/urandom")?;
        let mut bytes = [0; 512];
        source.read_exact(&mut bytes)?;
        Ok(Self {
            pool: Mutex::new(Pool {
                source,
                bytes,
                used: 0,
            }),
        })
    }
}

impl Entropy for HostEntropy {
    fn fill(&self, out: &mut [u8]) {
        let mut guard = self
            .pool
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let pool = &mut *guard;
        for byte in out {
            if pool.used == pool.bytes.len() {
                pool.source
                    .read_exact(&mut pool.bytes)
                    .expect("the open /dev/urandom of a Linux host never fails or ends");
                pool.used = 0;
            }
            *byte = std::mem::take(&mut pool.bytes[pool.used]);
            pool.used += 1;
        }
    }
}
