//! Building an image, in steps that are kept: fetched packages, the unpacked disk, the configured
//! one. Whenever it is cut short, the next build goes on behind the last whole step.

mod disk;
mod plan;

use crate::apt::Apt;
use crate::cache;
use crate::configure;
use crate::gpt::Uuid;
use crate::images::{Files, Image, Images, Metadata, Package, Recipe, write_json};
use crate::progress::Progress;
use crate::runner::{Job, Runner};
use crate::{ImageError, names, sources, sparse};
use plan::Plan;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The version of what is built: images of another one are built anew.
const FORMAT: u32 = 2;
/// The unpacked disk, before anything is configured.
const UNPACKED: &str = "unpacked.raw";
/// What is known of it.
const UNPACKED_METADATA: &str = "unpacked.json";
/// The RAM of the machine that configures the packages.
const MEMORY: u64 = 1 << 30;
/// Its vCPUs, if the host has as many.
const MOST_CPUS: usize = 2;

/// UUIDs that follow from the image's identifier.
#[derive(Clone, Copy, Debug)]
struct Uuids {
    disk: Uuid,
    partition: Uuid,
    root: Uuid,
}

impl Uuids {
    fn of(id: &str) -> Self {
        let uuid = |what: &str| Uuid::of(plan::digest16(&format!("{id} {what}")));
        Self {
            disk: uuid("disk"),
            partition: uuid("partition"),
            root: uuid("root"),
        }
    }
}

impl Images {
    /// Builds the image of `recipe` with the machines that `runner` runs, unless one with the same
    /// contents is there, and makes `name` mean it. Shows its progress on standard error.
    ///
    /// # Errors
    /// As for [`default_guest`](crate::default_guest); [`ImageError::NotConfigured`] and others of
    /// images.
    pub fn build(
        &self,
        recipe: &Recipe,
        name: &str,
        runner: &dyn Runner,
    ) -> Result<Image, ImageError> {
        recipe.validate()?;
        if !names::is_name(name) {
            return Err(ImageError::BadSetting {
                setting: "name",
                value: name.to_owned(),
            });
        }
        let suite = &recipe.suite;
        let apt_state = self.directory.join("apt").join(suite);
        fs::create_dir_all(&apt_state).map_err(ImageError::io("create", &apt_state))?;
        let _lock = cache::lock(
            &self.directory.join(format!("{suite}.lock")),
            &format!("an image of {suite}"),
        )?;
        let progress = Progress::new();
        let (selection, system) =
            sources::select_for_system(&self.apt_directory, suite, recipe.updates)?;
        let apt = Apt::new(apt_state, &selection, &progress)?;
        progress.step(&format!("reading the package index of Debian {suite}"));
        apt.update()?;
        let plan = Plan::make(&apt, recipe, system, &progress)?;
        let id = plan.id(FORMAT, recipe)?;
        if self.by_id(&id)?.is_none() {
            self.make(&id, recipe, &plan, runner, &progress)?;
        }
        self.set_name(name, &id)?;
        self.by_id(&id)?
            .ok_or_else(|| ImageError::NoImage(name.to_owned()))
    }

    /// Makes the image in a directory of its own, which then gets its right name.
    fn make(
        &self,
        id: &str,
        recipe: &Recipe,
        plan: &Plan,
        runner: &dyn Runner,
        progress: &Progress,
    ) -> Result<(), ImageError> {
        let work = self.directory.join(format!("{id}.partial"));
        fs::create_dir_all(&work).map_err(ImageError::io("create", &work))?;
        let metadata = unpacked(&work, id, recipe, plan, progress)?;
        configured(&work, &metadata, runner, progress)?;
        let unpacked = work.join(UNPACKED);
        fs::remove_file(&unpacked).map_err(ImageError::io("remove", &unpacked))?;
        let description = work.join(UNPACKED_METADATA);
        fs::remove_file(&description).map_err(ImageError::io("remove", &description))?;
        let home = self.directory.join(id);
        fs::rename(&work, &home).map_err(ImageError::io("rename", &work))
    }
}

/// The step of unpacking, unless it is done.
fn unpacked(
    work: &Path,
    id: &str,
    recipe: &Recipe,
    plan: &Plan,
    progress: &Progress,
) -> Result<Metadata, ImageError> {
    let (disk, description) = (work.join(UNPACKED), work.join(UNPACKED_METADATA));
    if description.is_file() {
        progress.step("going on with the unpacked packages");
        let bytes = fs::read(&description).map_err(ImageError::io("read", &description))?;
        return crate::images::parse(&description, &bytes);
    }
    let made = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    progress.step(&format!("unpacking {} packages", plan.debs.len()));
    let uuids = Uuids::of(id);
    let contents = disk::write(&disk, id, recipe, plan, uuids, made as u32, progress)?;
    let files = Files::in_directory(work);
    cache::write_through(&files.kernel, &contents.kernel)?;
    cache::write_through(&files.initrd, &contents.initrd)?;
    let packages = contents.packages.iter().map(|control| Package {
        name: control.package().to_owned(),
        version: control.version().to_owned(),
    });
    let metadata = Metadata {
        format: FORMAT,
        id: id.to_owned(),
        made,
        recipe: recipe.clone(),
        root_partition: uuids.partition.to_string(),
        root: uuids.root.to_string(),
        cmdline: format!("root=PARTUUID={} rw console=ttyS0 quiet", uuids.partition),
        packages: packages.collect(),
    };
    write_json(&description, &metadata)?;
    Ok(metadata)
}

/// The step of configuring, from a new copy of the unpacked disk.
fn configured(
    work: &Path,
    metadata: &Metadata,
    runner: &dyn Runner,
    progress: &Progress,
) -> Result<(), ImageError> {
    let files = Files::in_directory(work);
    progress.step("configuring the packages in a machine");
    sparse::copy(&work.join(UNPACKED), &files.disk)?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let job = Job {
        kernel: files.kernel.clone(),
        initrd: files.initrd.clone(),
        cmdline: format!(
            "root=PARTUUID={} rw console=ttyS0 quiet panic=1 init={}",
            metadata.root_partition,
            configure::INIT
        ),
        disk: files.disk.clone(),
        memory: MEMORY,
        cpus: cpus.min(MOST_CPUS) as u32,
    };
    let token = configure_token(&metadata.id);
    configure::run(runner, &job, &token, metadata.packages.len(), progress)?;
    let disk = fs::File::open(&files.disk).map_err(ImageError::io("open", &files.disk))?;
    disk.sync_all()
        .map_err(ImageError::io("write", &files.disk))?;
    write_json(&files.metadata, metadata)
}

/// The word with which the machine's lines begin.
fn configure_token(id: &str) -> String {
    format!("belljar-{id}:")
}
