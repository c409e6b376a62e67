//! Names of machines.

/// The longest name, in bytes: with the directories before it, it must fit into a socket's address.
const LONGEST: usize = 64;

const FIRST: [&str; 32] = [
    "amber", "azure", "brisk", "calm", "clear", "coral", "crisp", "dawn", "eager", "early", "fair",
    "fleet", "gentle", "glad", "golden", "green", "keen", "light", "lucid", "mellow", "merry",
    "neat", "noble", "pale", "quick", "quiet", "silver", "steady", "still", "sunny", "swift",
    "warm",
];
const SECOND: [&str; 32] = [
    "alder", "aspen", "badger", "birch", "brook", "cedar", "clover", "crane", "curlew", "fern",
    "finch", "harbor", "hazel", "heron", "ivy", "lark", "lichen", "linnet", "maple", "marten",
    "meadow", "moss", "oak", "otter", "pine", "plover", "reed", "robin", "rowan", "sedge",
    "thrush", "wren",
];

/// Whether `name` can be a machine's: letters, digits, `_`, `.` and `-`, the first a letter or a
/// digit. It is also the name of the machine's directory.
pub fn is_valid(name: &str) -> bool {
    name.len() <= LONGEST
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// A name made of `seed`; after the first 1024 seeds a number makes it longer.
pub fn generated(seed: u64) -> String {
    let pick = |words: &[&'static str; 32], at: u64| words[(at % 32) as usize];
    let (first, second) = (pick(&FIRST, seed), pick(&SECOND, seed / 32));
    match seed / 1024 {
        0 => format!("{first}-{second}"),
        more => format!("{first}-{second}-{more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in ["", ".", "..", ".hidden", "a/b", "-x", "a b", "ä", "a\0"] {
            assert!(!is_valid(name), "{name:?}");
        }
        assert!(!is_valid(&"a".repeat(65)));
        for name in ["a", "9", "web-1.example_x", &"a".repeat(64)] {
            assert!(is_valid(name), "{name:?}");
        }
    }

    #[test]
    fn generated_names_are_valid_and_differ() {
        let names: HashSet<String> = (0..4096).map(generated).collect();
        assert_eq!(names.len(), 4096);
        assert!(names.iter().all(|name| is_valid(name)));
        assert!(is_valid(&generated(u64::MAX)));
    }
}
