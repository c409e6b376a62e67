//! The disks: what the user says about them, opened, and plugged in.
//!
//! A virtio disk has a slot of its own, in the order of the configuration; NVMe disks are the
//! namespaces of one controller, in the same order.

use crate::expansion::Slots;
use crate::{MachineConfig, MachineError};
use belljar_block::{DiskConfig, Interface, Request};
use belljar_devices::buffers::Buffers;
use belljar_devices::disk::{self, Disk, Done, Operation};
use belljar_devices::nvme::{Nvme, NvmeParts};
use belljar_devices::virtio::block::Block;
use belljar_memory::{GuestMemory, MemoryError, Segments};
use std::io;
use std::sync::Arc;

/// The NVMe controller's slot, and the first of the virtio disks' which take the rest.
const NVME: usize = 2;
const VIRTIO: usize = 11;
/// The controller's serial number, and the beginning of the virtio disks', if none is given.
const SERIAL: &str = "belljar";

/// A disk as devices use it: what they ask for, in the words of `belljar-block`.
#[derive(Debug)]
struct Backend {
    disk: belljar_block::Disk,
    memory: GuestMemory,
}

impl Backend {
    fn segments(&self, buffers: &Buffers) -> Result<Segments, MemoryError> {
        let ranges = buffers.list().iter().map(|b| (b.start, b.len.into()));
        Segments::new(&self.memory, ranges)
    }

    fn request(&self, request: disk::Request) -> Result<Request, MemoryError> {
        let offset = request.offset;
        Ok(match request.operation {
            Operation::Read(to) => {
                let segments = self.segments(&to)?;
                Request::Read { offset, segments }
            }
            Operation::Write(from) => {
                let segments = self.segments(&from)?;
                Request::Write { offset, segments }
            }
            Operation::Flush => Request::Flush,
            Operation::Discard(len) => Request::Discard { offset, len },
            Operation::WriteZeroes { len, unmap } => Request::WriteZeroes {
                offset,
                len,
                may_unmap: unmap,
            },
        })
    }
}

impl Disk for Backend {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn submit(&self, request: disk::Request, done: Done) {
        self.submit_all(vec![(request, done)]);
    }

    fn submit_all(&self, requests: Vec<(disk::Request, Done)>) {
        let request = |(request, done): (disk::Request, Done)| match self.request(request) {
            Ok(request) => Some((request, done)),
            Err(error) => {
                done(Err(io::Error::other(error)));
                None
            }
        };
        // Nothing of this in the disk's lock.
        let requests: Vec<_> = requests.into_iter().filter_map(request).collect();
        self.disk.submit_all(requests);
    }
}

impl Slots {
    /// Opens the disks of `config` and plugs them in.
    pub fn disks(
        &mut self,
        config: &MachineConfig,
        memory: &GuestMemory,
    ) -> Result<(), MachineError> {
        let of = |interface| {
            let disks = config.disk.iter();
            disks.filter(move |disk: &&DiskConfig| disk.interface == interface)
        };
        let open = |disk: &DiskConfig| -> Result<Arc<dyn Disk>, MachineError> {
            let disk = belljar_block::open(disk)?;
            let memory = memory.clone();
            Ok(Arc::new(Backend { disk, memory }))
        };
        for (index, disk) in of(Interface::Virtio).enumerate() {
            let default = format!("{SERIAL}-{index}");
            let serial = disk.serial.as_deref().unwrap_or(&default);
            let device = Block::new(open(disk)?, serial, config.cpus);
            self.virtio(VIRTIO + index, "disk", device)?;
        }
        let disks: Result<Vec<_>, _> = of(Interface::Nvme).map(open).collect();
        let disks = disks?;
        if !disks.is_empty() {
            let serial = of(Interface::Nvme).find_map(|disk| disk.serial.as_deref());
            let parts = NvmeParts {
                disks,
                memory: Arc::clone(&self.memory),
                messages: Arc::clone(&self.messages),
                line: self.line(NVME),
            };
            let controller = Nvme::new(serial.unwrap_or(SERIAL), config.cpus, parts);
            let controller = controller.map_err(|source| MachineError::Device {
                name: "nvme".to_owned(),
                source,
            })?;
            let location = NVME.into();
            self.functions
                .push((location, Arc::new(controller.clone())));
            self.workers.push(Arc::new(controller));
        }
        Ok(())
    }
}
