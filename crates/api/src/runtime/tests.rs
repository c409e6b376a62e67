//! Directories, claims and what is left over.

use super::*;

fn runtime() -> (tempfile::TempDir, Runtime) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime::at(directory.path().join("belljar")).unwrap();
    (directory, runtime)
}

fn record(detached: bool) -> Record {
    Claim::started_now(Record {
        pid: 1,
        cpus: 2,
        memory: 3,
        source: "kernel".to_owned(),
        detached,
        started: 0,
        ended: None,
    })
}

fn off() -> Ended {
    Ended {
        status: Some(0),
        reason: "powered off".to_owned(),
    }
}

fn names(runtime: &Runtime) -> Vec<String> {
    let places = runtime.places().unwrap();
    places.iter().map(|p| p.name().to_owned()).collect()
}

#[test]
fn a_name_can_be_taken_once_at_a_time() {
    let (_directory, runtime) = runtime();
    let claim = runtime.claim("web").unwrap();
    assert!(matches!(runtime.claim("web"), Err(ApiError::NameTaken(_))));
    runtime.claim("db").unwrap();
    claim.release(off()).unwrap();
    runtime.claim("web").unwrap();
}

#[test]
fn a_machine_in_the_foreground_leaves_nothing() {
    let (_directory, runtime) = runtime();
    let claim = runtime.claim("web").unwrap();
    claim.write_record(&record(false)).unwrap();
    claim.release(off()).unwrap();
    assert!(names(&runtime).is_empty());
}

#[test]
fn a_detached_machine_leaves_its_logs_until_the_name_is_taken_again() {
    let (_directory, runtime) = runtime();
    let claim = runtime.claim("web").unwrap();
    claim.write_record(&record(true)).unwrap();
    let place = claim.place().clone();
    fs::write(place.console_log(), "hello").unwrap();
    claim.release(off()).unwrap();
    let Condition::Ended(Some(left)) = place.condition().unwrap() else {
        panic!("not ended");
    };
    assert_eq!(left.ended.unwrap().1, off());
    runtime.sweep().unwrap();
    assert!(place.console_log().exists());
    let again = runtime.claim("web").unwrap();
    assert!(!place.console_log().exists());
    drop(again);
}

#[test]
fn what_killed_processes_left_is_swept() {
    let (_directory, runtime) = runtime();
    for (name, detached) in [("front", false), ("back", true)] {
        let claim = runtime.claim(name).unwrap();
        claim.write_record(&record(detached)).unwrap();
        // The socket is left, as when the process is killed.
        drop(claim.listen().unwrap());
    }
    let held = runtime.claim("alive").unwrap();
    runtime.sweep().unwrap();
    assert_eq!(names(&runtime), ["alive", "back"]);
    let place = runtime.place("back").unwrap();
    assert!(!place.socket().exists());
    assert_eq!(place.record().unwrap().ended.unwrap().1.status, None);
    drop(held);
}

#[test]
fn logs_of_ended_machines_are_kept_in_bounded_number() {
    let (_directory, runtime) = runtime();
    for number in 0..2 * MOST_ENDED {
        let claim = runtime.claim(&format!("m{number}")).unwrap();
        claim.write_record(&record(true)).unwrap();
        claim.release(off()).unwrap();
    }
    runtime.sweep().unwrap();
    assert_eq!(names(&runtime).len(), MOST_ENDED);
}

#[test]
fn conditions_are_told_apart() {
    let (_directory, runtime) = runtime();
    let place = runtime.place("web").unwrap();
    assert!(matches!(place.condition(), Err(ApiError::NoMachine(_))));
    let claim = runtime.claim("web").unwrap();
    assert!(matches!(place.condition(), Ok(Condition::Between)));
    let listener = claim.listen().unwrap();
    assert!(matches!(place.condition(), Ok(Condition::Running(_))));
    let mode = fs::metadata(place.socket()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop((listener, claim));
    assert!(matches!(place.condition(), Ok(Condition::Ended(None))));
}

#[test]
fn directories_that_are_not_the_users_alone_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("open");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(Runtime::at(path), Err(ApiError::Untrusted { .. })));
    let target = directory.path().join("target");
    DirBuilder::new().mode(0o700).create(&target).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(matches!(Runtime::at(link), Err(ApiError::Untrusted { .. })));
}

#[test]
fn generated_names_avoid_each_other() {
    let (_directory, runtime) = runtime();
    let claims: Vec<_> = (0..5)
        .map(|_| runtime.claim_generated(7).unwrap())
        .collect();
    assert_eq!(names(&runtime).len(), claims.len());
}
