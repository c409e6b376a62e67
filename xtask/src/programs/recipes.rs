//! The programs that are timed, and what of Debian's packages they need.
//!
//! Only files that a program names itself are listed: interpreters of scripts and shared libraries
//! are found by `belljar_image::Tree`.

/// A program: a file in `xtask/programs` and what it runs.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Program {
    /// Its name, and that of its file in the root's `bench`.
    pub name: &'static str,
    /// The packages that have what it runs.
    pub packages: &'static [&'static str],
    /// The files that it needs of them, as patterns for [`matches()`]; at least one file must match
    /// each. (Suites differ in where they have some.)
    pub keep: &'static [&'static str],
    /// What is in `bench`.
    pub files: &'static [File],
}

/// A file of `bench`.
#[derive(Clone, Copy, Debug, Hash)]
pub struct File {
    /// Its name.
    pub name: &'static str,
    /// Whether it is a script.
    pub executable: bool,
    /// Where its bytes come from.
    pub contents: Contents,
}

/// Where the bytes of a file of `bench` come from.
#[derive(Clone, Copy, Debug, Hash)]
pub enum Contents {
    /// It is as it is in `xtask/programs`.
    Text(&'static str),
    /// This C program is compiled for it, by the host.
    Compiled(&'static str),
    /// It is the C source that is made up by [`source`](super::source).
    Generated,
}

/// The file in `xtask/programs` with this name, for execution.
macro_rules! script {
    ($name:literal) => {
        text!($name, true)
    };
}

/// The file in `xtask/programs` with this name.
macro_rules! text {
    ($name:literal, $executable:literal) => {
        File {
            name: $name,
            executable: $executable,
            contents: Contents::Text(include_str!(concat!("../../programs/", $name))),
        }
    };
}

/// The programs, in the order in which they run.
pub const PROGRAMS: [Program; 8] = [
    Program {
        name: "python",
        packages: &["python3"],
        keep: &[
            "usr/lib/python3.*/collections/*.py",
            "usr/lib/python3.*/copyreg.py",
            "usr/lib/python3.*/encodings/*.py",
            "usr/lib/python3.*/enum.py",
            "usr/lib/python3.*/functools.py",
            "usr/lib/python3.*/json/*.py|usr/lib/python3.*/lib-dynload/_json.*",
            "usr/lib/python3.*/keyword.py",
            "usr/lib/python3.*/operator.py",
            "usr/lib/python3.*/os.py",
            "usr/lib/python3.*/re/*.py",
            "usr/lib/python3.*/reprlib.py",
            "usr/lib/python3.*/types.py",
        ],
        files: &[script!("python")],
    },
    Program {
        name: "gcc",
        packages: &["gcc", "coreutils"],
        keep: &[
            "usr/bin/gcc",
            "usr/bin/as",
            "usr/lib/gcc/x86_64-linux-gnu/*/include/stddef.h",
            "usr/lib/gcc/x86_64-linux-gnu/*/cc1|usr/libexec/gcc/x86_64-linux-gnu/*/cc1",
            "usr/bin/sha256sum",
        ],
        files: &[
            script!("gcc"),
            File {
                name: "generated.c",
                executable: false,
                contents: Contents::Generated,
            },
        ],
    },
    Program {
        name: "sqlite",
        packages: &["sqlite3"],
        keep: &["usr/bin/sqlite3"],
        files: &[script!("sqlite"), text!("sqlite.sql", false)],
    },
    Program {
        name: "shell",
        packages: &["coreutils", "sed"],
        keep: &[
            "usr/bin/basename",
            "usr/bin/cut",
            "usr/bin/expr",
            "usr/bin/head",
            "usr/bin/sed",
            "usr/bin/seq",
            "usr/bin/tail",
            "usr/bin/wc",
        ],
        files: &[script!("shell")],
    },
    Program {
        name: "text",
        packages: &["coreutils", "grep", "gzip", "mawk", "sed"],
        keep: &[
            "usr/bin/cut",
            "usr/bin/grep",
            "usr/bin/gzip",
            "usr/bin/mawk",
            "usr/bin/md5sum",
            "usr/bin/sed",
            "usr/bin/sha256sum",
            "usr/bin/sort",
            "usr/bin/tee",
            "usr/bin/tr",
            "usr/bin/uniq",
            "usr/bin/wc",
        ],
        files: &[script!("text")],
    },
    Program {
        name: "luajit",
        packages: &["luajit"],
        keep: &[],
        files: &[script!("luajit")],
    },
    Program {
        name: "node",
        packages: &["nodejs"],
        keep: &["usr/share/nodejs/**"],
        files: &[script!("node")],
    },
    Program {
        name: "pingpong",
        packages: &[],
        keep: &[],
        files: &[File {
            name: "pingpong",
            executable: true,
            contents: Contents::Compiled("pingpong.c"),
        }],
    },
];

/// What every root needs: the shell of the scripts.
pub const SHELL_PACKAGE: &str = "dash";

/// Whether `path` matches one of the patterns that `|` separates in `patterns`. In a pattern, `**`
/// stands for anything, `*` for anything without a `/`.
pub fn matches(patterns: &str, path: &str) -> bool {
    let one = |pattern: &str| matches_one(pattern.as_bytes(), path.as_bytes());
    patterns.split('|').any(one)
}

fn matches_one(pattern: &[u8], path: &[u8]) -> bool {
    let any_rest = |pattern, end| (0..=end).any(|at| matches_one(pattern, &path[at..]));
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => any_rest(rest, path.len()),
        [b'*', rest @ ..] => {
            let part = path.iter().position(|&b| b == b'/').unwrap_or(path.len());
            any_rest(rest, part)
        }
        [first, rest @ ..] => path.first() == Some(first) && matches_one(rest, &path[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stays_in_a_directory_and_two_do_not() {
        for (patterns, path, expected) in [
            ("usr/bin/as", "usr/bin/as", true),
            ("usr/bin/as", "usr/bin/ash", false),
            ("usr/lib/python3.*/*.py", "usr/lib/python3.11/os.py", true),
            (
                "usr/lib/python3.*/*.py",
                "usr/lib/python3.11/json/a.py",
                false,
            ),
            (
                "usr/lib/python3.*/json/**",
                "usr/lib/python3.11/json/a/b",
                true,
            ),
            ("a/*/cc1|b/*/cc1", "b/12/cc1", true),
            ("a/*/cc1|b/*/cc1", "c/12/cc1", false),
            ("a*", "", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(patterns, path), expected, "{patterns} {path}");
        }
    }

    #[test]
    fn each_program_has_its_file() {
        for program in PROGRAMS {
            let own = program.files.iter().find(|f| f.name == program.name);
            assert!(own.is_some_and(|f| f.executable), "{}", program.name);
        }
    }
}
