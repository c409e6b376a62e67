//! The disk of an image before its first boot: packages, and the few files of a system that no
//! package has.

use super::Uuids;
use super::configure_token;
use super::plan::Plan;
use crate::configure;
use crate::dpkg::{self, Control, Found, Unpacker};
use crate::ext4::{Attributes, Identity, Writer};
use crate::images::Recipe;
use crate::progress::Progress;
use crate::{ImageError, agent, bundle, deb, first_boot, gpt};
use std::fs::{self, File};
use std::path::Path;

/// The links at the root of a usr-merged system.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// Every interface that has a cable gets its address by DHCP.
const NETWORK: &str = "\
[Match]
Type=ether
Kind=!*

[Network]
DHCP=yes

[DHCPv4]
UseDomains=yes
";
const HOSTS: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";
/// Units of Debian that images start.
const UNITS: [&str; 2] = ["systemd-networkd.service", "systemd-resolved.service"];

/// What was put on the disk, and what belongs beside it.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) packages: Vec<Control>,
    pub(super) kernel: Vec<u8>,
    pub(super) initrd: Vec<u8>,
}

/// Writes the disk to the new file `path`.
pub(super) fn write(
    path: &Path,
    id: &str,
    recipe: &Recipe,
    plan: &Plan,
    uuids: Uuids,
    made: u32,
    progress: &Progress,
) -> Result<Contents, ImageError> {
    let file = File::create(path).map_err(ImageError::io("create", path))?;
    file.set_len(recipe.size)
        .map_err(ImageError::io("enlarge", path))?;
    let partition = gpt::write(&file, recipe.size, uuids.disk, uuids.partition)?;
    let identity = Identity {
        uuid: uuids.root.0,
        label: "root",
        made,
    };
    let mut disk = Writer::new(&file, partition.start, partition.len, identity)?;
    let plain = Attributes {
        permissions: 0o644,
        user: 0,
        group: 0,
        modified: made,
    };
    for name in MERGED {
        let target = format!("usr/{name}");
        let attributes = Attributes {
            permissions: 0o755,
            ..plain
        };
        disk.directory(&target, attributes)?;
        disk.symlink(name, &target, plain)?;
    }
    let mut found = Found::new();
    let mut unpacker = Unpacker::new(&mut disk, made);
    dpkg::each_data(&plan.debs, |index, deb, data| {
        unpacker.unpack(deb, &data, bundle::is_wanted, &mut found)?;
        progress.percent(100.0 * (index + 1) as f64 / plan.debs.len() as f64);
        Ok(())
    })?;
    let (packages, preinst) = unpacker.finish(&plan.wanted)?;
    let mut system = System {
        disk: &mut disk,
        plain,
    };
    system.files(id, recipe, plan, uuids)?;
    system.configuration(id, &dpkg::closure(&packages), preinst)?;
    disk.finish()?;
    let busybox = deb::read_file(
        &plan.busybox,
        |path| matches!(path, "bin/busybox" | "usr/bin/busybox"),
        "busybox",
    )?;
    let initrd = bundle::initrd(&busybox, &found, uuids.root)?;
    let kernel = found.into_iter().find(|(path, _)| bundle::is_kernel(path));
    let (_, kernel) = kernel.ok_or_else(|| ImageError::Incomplete {
        file: "the image".to_owned(),
        needed: "a kernel".to_owned(),
    })?;
    Ok(Contents {
        packages,
        kernel,
        initrd,
    })
}

/// Puts files onto the disk that no package has.
struct System<'w, 'f> {
    disk: &'w mut Writer<'f>,
    plain: Attributes,
}

impl System<'_, '_> {
    fn file(&mut self, path: &str, permissions: u16, text: &str) -> Result<(), ImageError> {
        let attributes = Attributes {
            permissions,
            ..self.plain
        };
        self.disk.small_file(path, attributes, text.as_bytes())
    }

    /// The files that stay.
    fn files(
        &mut self,
        id: &str,
        recipe: &Recipe,
        plan: &Plan,
        uuids: Uuids,
    ) -> Result<(), ImageError> {
        let first_boot = &recipe.first_boot;
        let hostname = first_boot.hostname(&recipe.suite);
        let short = hostname.split('.').next().unwrap_or(hostname);
        let root = format!(
            "PARTUUID={} / ext4 errors=remount-ro 0 1\n",
            uuids.partition
        );
        self.file("etc/fstab", 0o644, &root)?;
        self.file("etc/hostname", 0o644, &format!("{short}\n"))?;
        let names = if short == hostname {
            short.to_owned()
        } else {
            format!("{hostname} {short}")
        };
        let hosts = format!("{HOSTS}127.0.1.1\t{names}\n");
        self.file("etc/hosts", 0o644, &hosts)?;
        self.file("etc/systemd/network/80-dhcp.network", 0o644, NETWORK)?;
        let sources = &plan.sources;
        self.file(
            "etc/apt/sources.list.d/debian.sources",
            0o644,
            &sources.text,
        )?;
        for keyring in &sources.keyrings {
            let bytes = fs::read(keyring).map_err(ImageError::io("read", keyring))?;
            let place = keyring.to_string_lossy();
            self.disk
                .small_file(place.trim_start_matches('/'), self.plain, &bytes)?;
        }
        for (name, text) in first_boot::UNITS {
            let place = format!("usr/lib/systemd/system/{name}");
            self.file(&place, 0o644, text)?;
        }
        let (name, text) = agent::UNIT;
        self.file(&format!("usr/lib/systemd/system/{name}"), 0o644, text)?;
        let executable = Attributes {
            permissions: 0o755,
            ..self.plain
        };
        self.disk
            .small_file(agent::PLACE, executable, agent::PROGRAM)?;
        self.file("usr/lib/belljar/first-boot", 0o755, first_boot::READER)?;
        let seed = first_boot::SEED;
        // It may hold the hash of a password.
        let private = Attributes {
            permissions: 0o700,
            ..self.plain
        };
        self.disk.directory(seed, private)?;
        let meta_data = first_boot.meta_data(id, hostname);
        self.file(&format!("{seed}/meta-data"), 0o600, &meta_data)?;
        self.file(&format!("{seed}/user-data"), 0o600, &first_boot.user_data())
    }

    /// The files for configuring the packages, which are gone afterwards.
    fn configuration(
        &mut self,
        id: &str,
        essential: &[String],
        mut preinst: Vec<String>,
    ) -> Result<(), ImageError> {
        // The users and groups come first: others' scripts may name them.
        preinst.sort_by_key(|package| package != "base-passwd");
        let script = configure::script(&configure_token(id));
        self.file(&configure::INIT[1..], 0o755, &script)?;
        let directory = configure::DIRECTORY;
        let lines = |names: &[String]| {
            names
                .iter()
                .flat_map(|name| [name.as_str(), "\n"])
                .collect()
        };
        let units = UNITS
            .iter()
            .copied()
            .chain(first_boot::UNITS.map(|(name, _)| name))
            .chain([agent::UNIT.0]);
        let units: Vec<String> = units.map(str::to_owned).collect();
        for (name, list) in [
            ("essential", essential),
            ("preinst", &preinst),
            ("units", &units),
        ] {
            let text: String = lines(list);
            self.file(&format!("{directory}/{name}"), 0o644, &text)?;
        }
        Ok(())
    }
}
