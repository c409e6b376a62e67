use super::*;

const DEB822: &str = "\
# The archive
Types: deb deb-src
# http://elsewhere
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://deb.example/node
Suites: nodistro
Components: main
Signed-By: /usr/share/keyrings/node.gpg
";

fn stanza(uri: &str, suite: &str, signed_by: &str) -> String {
    format!(
        "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n\
         Targets: Packages\nSigned-By: {signed_by}\n\n"
    )
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[test]
fn the_hosts_suite_comes_with_its_updates() {
    let selection = select_from(&parse_stanzas(DEB822), None).unwrap();
    assert_eq!(selection.suite, "bookworm");
    let archive = "http://mirror.example/debian";
    let expected = [
        stanza(archive, "bookworm", KEYRING),
        stanza(archive, "bookworm-updates", KEYRING),
        stanza(
            "http://mirror.example/debian-security",
            "bookworm-security",
            KEYRING,
        ),
    ];
    assert_eq!(selection.text, expected.concat());
}

#[test]
fn another_suite_comes_from_the_same_mirror_with_the_same_keyring() {
    let selection = select_from(&parse_stanzas(DEB822), Some("trixie")).unwrap();
    assert_eq!(selection.suite, "trixie");
    assert_eq!(
        selection.text,
        stanza("http://mirror.example/debian", "trixie", KEYRING)
    );
}

#[test]
fn one_line_sources_are_understood() {
    let text = "\
# deb http://commented.example/debian sid main
deb-src http://mirror.example/debian bookworm main
deb cdrom:[Debian 12]/ bookworm main
deb https://deb.example/docker bookworm stable
deb [arch=amd64 signed-by=/k.gpg trusted=yes] http://mirror.example/debian/ bookworm main # x
deb http://mirror.example/debian bookworm-backports main
";
    let selection = select_from(&parse_lines(text), None).unwrap();
    assert_eq!(
        selection.text,
        stanza("http://mirror.example/debian/", "bookworm", "/k.gpg")
    );
}

#[test]
fn a_key_within_the_source_is_kept_with_its_lines() {
    let text = "\
Types: deb
URIs: http://mirror.example/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEYWJj
 -----END PGP PUBLIC KEY BLOCK-----
";
    let sources = parse_stanzas(text);
    let selection = select_from(&sources, None).unwrap();
    assert_eq!(
        parse_stanzas(&selection.text)[0].signed_by,
        sources[0].signed_by
    );
    assert!(
        selection
            .text
            .contains("Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n")
    );
}

#[test]
fn disabled_sources_and_third_parties_are_not_used() {
    let disabled = DEB822.replace("Types: deb", "Enabled: no\nTypes: deb");
    assert_eq!(select_from(&parse_stanzas(&disabled), None), None);
    let third_party = "deb http://deb.example/apt stable main\n";
    assert_eq!(
        select_from(&parse_lines(third_party), Some("bookworm")),
        None
    );
}

#[test]
fn files_are_read_in_apts_order() {
    let directory = tempfile::tempdir().unwrap();
    let parts = directory.path().join("sources.list.d");
    std::fs::create_dir(&parts).unwrap();
    for (file, suite) in [("b.list", "b"), ("a.list", "a"), ("c.list.disabled", "c")] {
        let text = format!("deb http://mirror.example/debian {suite} main\n");
        std::fs::write(parts.join(file), text).unwrap();
    }
    let suite = || select(directory.path(), None).unwrap().suite;
    assert_eq!(suite(), "a");
    let list = directory.path().join("sources.list");
    std::fs::write(list, "deb http://mirror.example/debian first main\n").unwrap();
    assert_eq!(suite(), "first");
}

#[test]
fn a_system_has_the_updates_of_its_own_suite() {
    let (selection, system) = system_from(&parse_stanzas(DEB822), "trixie", true).unwrap();
    for name in ["trixie", "trixie-updates", "trixie-security"] {
        let line = format!("Suites: {name}\n");
        assert!(selection.text.contains(&line) && system.text.contains(&line));
    }
    assert!(!system.text.contains("bookworm") && !system.text.contains("Targets"));
    assert!(system.keyrings.is_empty());
    for (suite, updates) in [("sid", true), ("trixie", false)] {
        let (_, system) = system_from(&parse_stanzas(DEB822), suite, updates).unwrap();
        assert_eq!(system.text.matches("Suites:").count(), 1, "{suite}");
    }
}

#[test]
fn keyrings_of_others_go_with_the_sources() {
    let text = DEB822.replace(KEYRING, "/etc/apt/keyrings/mirror.gpg");
    let (_, system) = system_from(&parse_stanzas(&text), "trixie", true).unwrap();
    assert_eq!(
        system.keyrings,
        [PathBuf::from("/etc/apt/keyrings/mirror.gpg")]
    );
    assert!(
        system
            .text
            .contains("Signed-By: /etc/apt/keyrings/mirror.gpg")
    );
}
