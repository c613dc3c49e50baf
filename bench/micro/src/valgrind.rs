//! Callgrind: runs one case of this program under it, and adds up what it counted.
//!
//! Only instructions of this program's own object file are compared. The C library picks its
//! `memcpy` by the CPU it meets (ifuncs), so its share differs between machines; ours does not.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// What one run counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Instructions of this program.
    pub(crate) ours: u64,
    /// Instructions of the C library and the loader.
    pub(crate) theirs: u64,
    /// Operations the case says it did.
    pub(crate) operations: u64,
}

/// Runs `case` of the running program under callgrind; its output file stays in `dir`.
pub(crate) fn count(case: &str, dir: &Path) -> io::Result<Counts> {
    let program = std::env::current_exe()?;
    let file = dir.join(format!("{}.callgrind", case.replace([' ', ','], "-")));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--error-exitcode=1", "-q"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(&program)
        .args(["--run", case])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::other(format!("valgrind: {e} (apt-get install valgrind)")))?;
    if !run.status.success() {
        let why = String::from_utf8_lossy(&run.stderr).into_owned();
        return Err(io::Error::other(format!("{case}: {why}")));
    }
    let said = String::from_utf8_lossy(&run.stdout);
    let operations =
        said.trim().parse().map_err(|_| io::Error::other(format!("{case}: {said}")))?;
    let text = std::fs::read_to_string(&file)?;
    let name = program.file_name().map(|name| name.to_string_lossy().into_owned());
    let (ours, theirs) = sum(&text, &name.unwrap_or_default());
    Ok(Counts { ours, theirs, operations })
}

/// The instructions in a callgrind profile that `program` itself executed, and all others.
///
/// A profile is a list of positions: `ob=` names the object file of the lines that follow it, a
/// line of numbers is a source line and the instructions spent there, the one after `calls=` is
/// what a callee spent and stands again at the callee itself.
fn sum(profile: &str, program: &str) -> (u64, u64) {
    // A name is given once, as `(number) name`, and only its number from then on.
    let mut objects = HashMap::new();
    let (mut ours, mut theirs) = (0, 0);
    let (mut is_ours, mut callee) = (false, false);
    for line in profile.lines() {
        let object = line.strip_prefix("ob=").map(|name| (name, true));
        let object = object.or_else(|| line.strip_prefix("cob=").map(|name| (name, false)));
        if let Some((name, current)) = object {
            let (number, name) = name.split_once(' ').unwrap_or((name, ""));
            if !name.is_empty() {
                objects.insert(number, name.rsplit('/').next() == Some(program));
            }
            if current {
                is_ours = objects.get(number).copied().unwrap_or(false);
            }
        } else if line.starts_with("calls=") {
            callee = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse().ok());
            if !std::mem::take(&mut callee) {
                *(if is_ours { &mut ours } else { &mut theirs }) += cost.unwrap_or(0);
            }
        }
    }
    (ours, theirs)
}

/// Switches counting on or off. Without callgrind it does nothing.
///
/// The return value is for [`World::count`](crate::world::World::count), which is called at both
/// edges of each call into the shard.
#[inline(never)]
pub(crate) fn toggle() -> u64 {
    /// `CALLGRIND_TOGGLE_COLLECT`: the third request of the tool `CT`.
    const TOGGLE_COLLECT: usize = ((b'C' as usize) << 24 | (b'T' as usize) << 16) + 2;
    request(&[TOGGLE_COLLECT, 0, 0, 0, 0, 0]);
    0
}

/// A client request (valgrind.h): instructions without effect that valgrind knows.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "valgrind is asked by a sequence of instructions")]
fn request(words: &[usize; 6]) {
    // SAFETY: four rotations of RDI by 128 bits in all leave it as it was, and XCHG of a register
    // with itself does nothing. Valgrind reads the six words RAX points to, and sets RDX.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") words.as_ptr(),
            inout("rdx") 0_usize => _,
        );
    }
}

/// A client request (valgrind.h): instructions without effect that valgrind knows.
#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "valgrind is asked by a sequence of instructions")]
fn request(words: &[usize; 6]) {
    // SAFETY: four rotations of X12 by 128 bits in all leave it as it was, and X10 or'ed with
    // itself is itself. Valgrind reads the six words X4 points to, and sets X3.
    unsafe {
        std::arch::asm!(
            "ror x12, x12, #3",
            "ror x12, x12, #13",
            "ror x12, x12, #51",
            "ror x12, x12, #61",
            "orr x10, x10, x10",
            in("x4") words.as_ptr(),
            inout("x3") 0_usize => _,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_lines_count_and_callees_once() {
        let profile = "events: Ir\n\nob=(1) /x/ringway-micro\nfl=(1) a.rs\nfn=(1) relay\n10 7\n\
                       +1 3\ncob=(2) /lib/libc.so.6\ncfn=(2) memcpy\ncalls=2 0\n* 900\n-2 5\n\n\
                       ob=(2)\nfn=(2)\n0 450\n0 450\n\nob=(1)\nfn=(3) other\n* 1\nsummary: 916\n";
        assert_eq!(sum(profile, "ringway-micro"), (16, 900));
        assert_eq!(sum(profile, "micro"), (0, 916));
    }
}
