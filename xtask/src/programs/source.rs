//! C source for the compiler to work on: always the same, and of many kinds of code.

use std::fmt::Write;

/// Groups of functions; the compiler sees as many percent of them as the macro `SCALE` says.
const GROUPS: u32 = 20;
/// Functions of each kind in a group.
const PER_KIND: u32 = 1;

const HEAD: &str = "\
#include <stddef.h>
typedef unsigned int u32;
typedef unsigned long u64;
struct node { struct node *next, *other; u32 key; short kind; double weight; };
extern void *take(size_t size);
extern void tell(const char *text, u32 value);
";

/// Numbers that look random. Knuth, The Art of Computer Programming 2, 3.3.4 (MMIX).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32 % limit
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// An expression of unsigned numbers.
    fn expression(&mut self, depth: u32) -> String {
        if depth == 0 {
            return match self.below(3) {
                0 => format!("{}u", self.below(100_000)),
                _ => self.one_of(&["a", "b", "c", "x", "y"]).to_owned(),
            };
        }
        let left = self.expression(depth - 1);
        let right = self.expression(depth - 1);
        match self.below(10) {
            0 => format!("({left} << {})", self.below(31) + 1),
            1 => format!("({left} >> {})", self.below(31) + 1),
            2 => format!("({left} / ({right} | 1))"),
            3 => format!("({left} % {}u)", self.below(1000) + 2),
            4 => format!("({left} < {right} ? {left} : {right})"),
            _ => {
                let operator = self.one_of(&["+", "-", "*", "&", "|", "^"]);
                format!("({left} {operator} {right})")
            }
        }
    }
}

/// The source.
pub fn generate() -> String {
    let kinds = [straight, array, switch, list, floating, text, matrix, bits];
    let mut chance = Chance(2024);
    let mut source = HEAD.to_owned();
    for group in 0..GROUPS {
        let mut calls = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(source, "#if SCALE > {}", group * 100 / GROUPS);
        for (index, kind) in kinds.iter().enumerate() {
            for copy in 0..PER_KIND {
                let name = format!("f{group}_{index}_{copy}");
                source.push_str(&kind(&mut chance, &name));
                let _ = write!(calls, " + {name}(a ^ {copy}, b + {index})");
            }
        }
        let _ = writeln!(
            source,
            "u32 group{group}(u32 a, u32 b)\n{{\n    return a{calls};\n}}\n#endif"
        );
    }
    source
}

fn straight(chance: &mut Chance, name: &str) -> String {
    let mut body = String::new();
    for _ in 0..10 {
        let target = chance.one_of(&["x", "y", "c"]);
        let _ = writeln!(body, "    {target} = {};", chance.expression(3));
    }
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    u32 c = a ^ b, x = a + 1, y = b;\n{body}    \
         return x ^ y ^ c;\n}}\n"
    )
}

fn array(chance: &mut Chance, name: &str) -> String {
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    static u32 t[256];\n    u32 c = 0, x = a, y = b;\n    \
         for (u32 i = 0; i < 256; i++) {{\n        x = {};\n        t[i] = x;\n        \
         if (x % {}u == {}u)\n            continue;\n        y += t[x & 255] ^ i;\n    }}\n    \
         for (int i = 255; i > 0 && c < {}u; i -= {})\n        c += t[i] * y;\n    return c ^ y;\n}}\n",
        chance.expression(2),
        chance.below(13) + 2,
        chance.below(7),
        chance.below(1 << 30) + 1,
        chance.below(3) + 1,
    )
}

fn switch(chance: &mut Chance, name: &str) -> String {
    let mut cases = String::new();
    for value in 0..24 {
        let end = chance.one_of(&["break", "break", "continue", "return x ^ y"]);
        let _ = write!(
            cases,
            "        case {}:\n            {} = {};\n            {end};\n",
            value * 3 + chance.below(3),
            chance.one_of(&["x", "y", "c"]),
            chance.expression(2),
        );
    }
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    u32 c = b, x = a, y = 0;\n    while (c--) {{\n        \
         switch (x % 80) {{\n{cases}        default:\n            x = x * {}u + y;\n        }}\n        \
         y += x >> 3;\n    }}\n    return y;\n}}\n",
        chance.below(1 << 20) | 1,
    )
}

fn list(chance: &mut Chance, name: &str) -> String {
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    struct node *head = 0, *other = 0;\n    u32 c = 0, x = a, y = b;\n    \
         for (u32 i = 0; i < (a & {}); i++) {{\n        struct node *n = take(sizeof *n);\n        \
         x = {};\n        n->next = head;\n        n->other = other;\n        n->key = x;\n        \
         n->kind = x >> {};\n        n->weight = i * {}.5;\n        head = n;\n        \
         if (x & 4)\n            other = n;\n    }}\n    \
         for (struct node *n = head; n; n = n->key & 1 && n->other ? n->other : n->next) {{\n        \
         c += n->key * 31 + n->kind;\n        if (n->weight > {}.0)\n            c ^= {};\n    }}\n    \
         return c;\n}}\n",
        chance.below(1000),
        chance.expression(2),
        chance.below(16),
        chance.below(9),
        chance.below(500),
        chance.expression(1),
    )
}

fn floating(chance: &mut Chance, name: &str) -> String {
    let mut terms = String::new();
    for _ in 0..8 {
        let _ = writeln!(
            terms,
            "        s = s * p + {}.{} {} q / {}.0;\n        q = q < s ? q + p : q * 0.{};",
            chance.below(100),
            chance.below(1000),
            chance.one_of(&["+", "-", "*"]),
            chance.below(50) + 1,
            chance.below(1000),
        );
    }
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    double s = a, p = b / 7.0, q = 1;\n    \
         for (int i = 0; i < 40; i++) {{\n{terms}        if (s > 1e9 || s < -1e9)\n            s = p;\n    }}\n    \
         return (u32)(int)(s * 100);\n}}\n"
    )
}

fn text(chance: &mut Chance, name: &str) -> String {
    let mut word = String::new();
    for _ in 0..chance.below(20) + 4 {
        word.push(char::from(b'a' + chance.below(26) as u8));
    }
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    char s[64];\n    u32 c = 0, x = a;\n    \
         const char *w = \"{word}\";\n    for (u32 i = 0; i < 63; i++)\n        \
         s[i] = w[(i + b) % {}u] ^ (char)(a >> (i & 7));\n    s[63] = 0;\n    \
         for (const char *p = s; *p; p++) {{\n        \
         if (*p >= 'a' && *p <= 'z')\n            x = x * 31 + *p - 'a';\n        \
         else if (*p == ' ' || *p == '{}')\n            c++;\n        else\n            x ^= (u32)*p << 5;\n    }}\n    \
         if (c > {}u)\n        tell(s, x);\n    return x + c;\n}}\n",
        word.len(),
        char::from(b'A' + chance.below(26) as u8),
        chance.below(40),
    )
}

fn matrix(chance: &mut Chance, name: &str) -> String {
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    u32 m[12][12], n[12][12], c = 0, x = a, y = b;\n    \
         for (int i = 0; i < 12; i++)\n        for (int j = 0; j < 12; j++) {{\n            \
         m[i][j] = {} + i * {}u;\n            n[j][i] = m[i][j] ^ (u32)j;\n        }}\n    \
         for (int i = 0; i < 12; i++)\n        for (int j = 0; j < 12; j++) {{\n            u32 s = 0;\n            \
         for (int k = 0; k < 12; k++)\n                s += m[i][k] * n[k][j];\n            \
         c = {} + s;\n            x = c >> 3;\n        }}\n    return c ^ x ^ y;\n}}\n",
        chance.expression(2),
        chance.below(1000),
        chance.expression(1),
    )
}

fn bits(chance: &mut Chance, name: &str) -> String {
    format!(
        "static u32 {name}(u32 a, u32 b)\n{{\n    u64 v = (u64)a << 32 | b;\n    u32 c = 0, x = a, y = b;\n    \
         if (a < b)\n        return b ? {name}(b, a % b) + 1 : a;\n    while (v) {{\n        c += v & 1;\n        \
         v >>= 1 + (v & {});\n    }}\n    do {{\n        x = (x << {}) | (x >> {});\n        y ^= {};\n    \
         }} while (--c < 40);\n    return x + y + (u32)__builtin_popcount(x) + (u32)__builtin_ctz(y | 1u << 31);\n}}\n",
        chance.below(7),
        chance.below(15) + 1,
        chance.below(15) + 16,
        chance.expression(2),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn the_source_is_always_the_same() {
        assert_eq!(generate(), generate());
    }

    #[test]
    fn a_compiler_accepts_the_source() {
        let mut compiler = Command::new("cc")
            .args(["-x", "c", "-fsyntax-only", "-DSCALE=100", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = compiler.stdin.take().unwrap();
        input.write_all(generate().as_bytes()).unwrap();
        drop(input);
        assert!(compiler.wait().unwrap().success());
    }
}
