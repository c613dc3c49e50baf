//! Instructions of the hot paths: the codec, and a shard that relays without I/O.
//!
//! Every case runs in a process of its own under callgrind. The counts are compared with those
//! last accepted; `tools/micro.sh` builds and runs this.
#![deny(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};

mod cases;
mod valgrind;

#[path = "../../../engine/tests/scenario/peer.rs"]
#[expect(dead_code, reason = "shared with the frame scripts, which use more")]
mod peer;
#[path = "../../../engine/tests/scenario/world.rs"]
#[expect(dead_code, reason = "shared with the frame scripts, which use more")]
mod world;

use cases::CASES;
use valgrind::Counts;

/// A rise above this, in per cent, fails.
const TOLERANCE: f64 = 5.0;

/// Counts instructions and compares them with the accepted ones.
#[derive(Debug, Parser)]
struct Args {
    /// The accepted counts.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/accepted.json"))]
    accepted: PathBuf,
    /// Accept what is counted now.
    #[arg(long)]
    accept: bool,
    /// The compiler that made this program, for the file.
    #[arg(long, default_value = "unknown")]
    compiler: String,
    /// Keep callgrind's profiles in this folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only cases with this in their name.
    #[arg(long, default_value = "")]
    only: String,
    /// Do one case and print how many operations that were: what runs under callgrind.
    #[arg(long)]
    run: Option<String>,
}

/// What was accepted.
#[derive(Debug, Serialize, Deserialize)]
struct Accepted {
    /// Counts of one architecture say nothing about another.
    machine: String,
    compiler: String,
    /// Instructions an operation.
    instructions: BTreeMap<String, u64>,
}

type Outcome = Result<bool, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.run {
        Some(name) => run_case(name),
        None => compare(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringway-micro: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_case(name: &str) -> Outcome {
    let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
    println!("{}", (case.run)(valgrind::toggle));
    Ok(true)
}

fn compare(args: &Args) -> Outcome {
    let text = std::fs::read_to_string(&args.accepted);
    let accepted: Option<Accepted> =
        text.ok().map(|text| serde_json::from_str(&text)).transpose()?;
    let machine = std::env::consts::ARCH;
    let known = accepted.as_ref().filter(|accepted| accepted.machine == machine);
    if let (None, Some(other)) = (known, &accepted) {
        println!("nothing to compare with: the accepted counts are of {}", other.machine);
    }
    let dir = args.out.clone().unwrap_or_else(|| temporary("ringway-micro"));
    std::fs::create_dir_all(&dir)?;
    if let Some(known) = known.filter(|known| known.compiler != args.compiler) {
        println!(
            "warning: accepted with {}, this is {}: it counts otherwise without a change of ours",
            known.compiler, args.compiler
        );
    }
    println!("{:<34}{:>12}{:>12}{:>9}{:>12}", "an operation", "accepted", "now", "", "C library");
    let (mut now, mut risen) = (BTreeMap::new(), Vec::new());
    for case in CASES.iter().filter(|case| case.name.contains(&args.only)) {
        let counts = valgrind::count(case.name, &dir)?;
        let before = known.and_then(|known| known.instructions.get(case.name)).copied();
        let per = print(case.name, counts, before);
        if before.is_none_or(|before| change(before, per) > TOLERANCE) {
            risen.push(case.name);
        }
        now.insert(case.name.to_owned(), per);
    }
    if args.out.is_none() {
        std::fs::remove_dir_all(&dir)?;
    }
    if args.accept {
        return accept(args, accepted.filter(|accepted| accepted.machine == machine), now);
    }
    Ok(verdict(args, known, &risen))
}

/// Prints one row; the instructions an operation.
fn print(name: &str, counts: Counts, before: Option<u64>) -> u64 {
    let per = |all: u64| (all + counts.operations / 2) / counts.operations.max(1);
    let now = per(counts.ours);
    let (was, change) = match before {
        Some(before) => (before.to_string(), format!("{:+.1} %", change(before, now))),
        None => ("-".to_owned(), String::new()),
    };
    println!("{name:<34}{was:>12}{now:>12}{change:>9}{:>12}", per(counts.theirs));
    now
}

fn change(before: u64, now: u64) -> f64 {
    (now as f64 / before.max(1) as f64 - 1.0) * 100.0
}

fn verdict(args: &Args, known: Option<&Accepted>, risen: &[&str]) -> bool {
    let Some(known) = known else { return true };
    if risen.is_empty() {
        return true;
    }
    println!("more than {TOLERANCE} % above what was accepted, or new: {}", risen.join("; "));
    if known.compiler != args.compiler {
        println!("it may be the compiler's doing: count a commit that is known to be good");
    }
    println!("if that is as it should be: tools/micro.sh --accept");
    false
}

/// Writes the counts down; with `--only` the other ones stay.
fn accept(args: &Args, before: Option<Accepted>, now: BTreeMap<String, u64>) -> Outcome {
    let mut instructions = before.map(|accepted| accepted.instructions).unwrap_or_default();
    instructions.extend(now);
    instructions.retain(|name, _| CASES.iter().any(|case| case.name == name));
    let machine = std::env::consts::ARCH.to_owned();
    let accepted = Accepted { machine, compiler: args.compiler.clone(), instructions };
    std::fs::write(&args.accepted, serde_json::to_string_pretty(&accepted)? + "\n")?;
    println!("accepted: {}", args.accepted.display());
    Ok(true)
}

fn temporary(name: &str) -> PathBuf {
    Path::new(&std::env::temp_dir()).join(format!("{name}-{}", std::process::id()))
}
