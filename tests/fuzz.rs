//! Fuzzing without coverage: the committed corpus of every target, then mutations of it from a seed, in bounded time.
//!
//! `scripts/fuzz` runs the same functions (`src/fuzzing.rs`) led by coverage. Here each has as many inputs as fit into some
//! seconds of an unoptimised build, the same ones in every run; `AMPHIPOD_FUZZ` says otherwise (`--inputs=N`, `--seconds=N`),
//! and `AMPHIPOD_FUZZ_SEED` begins elsewhere. An input that panics, takes too long or takes too much memory is kept in
//! `target/fuzz/finds`, to be put into the corpus with its mending.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::exit)]

#[path = "fuzz/memory.rs"]
mod memory;
#[path = "fuzz/mutation.rs"]
mod mutation;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amphipod::fuzzing::TARGETS;
use mutation::Mutation;

const SEED: u64 = 0x616d_7068_6970_6f64;
/// An input that takes longer hangs, also on a machine with much else to do: the slowest takes some tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// An input that takes longer is worth a look.
const SLOW: Duration = Duration::from_secs(1);
/// What a target may keep for good: tables that it makes once, the room of buffers that it uses again.
const KEPT_BYTES_MAX: isize = 1 << 20;
const CORPUS_BYTES_MAX: u64 = 300_000;

/// When a target has had enough.
#[derive(Clone, Copy)]
enum Bound {
    Inputs(u64),
    Time(Duration),
}

fn bound(inputs: u64) -> Bound {
    let Ok(text) = std::env::var("AMPHIPOD_FUZZ") else { return Bound::Inputs(inputs) };
    match text.split_once('=') {
        Some(("--inputs", count)) => Bound::Inputs(count.parse().unwrap()),
        Some(("--seconds", seconds)) => Bound::Time(Duration::from_secs(seconds.parse().unwrap())),
        _ => panic!("AMPHIPOD_FUZZ={text}: expected --inputs=N or --seconds=N"),
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> =
        fs::read_dir(directory().join("corpus").join(name)).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Keeps an input that failed.
fn keep(name: &str, data: &[u8]) -> PathBuf {
    let finds = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz/finds");
    fs::create_dir_all(&finds).unwrap();
    let path = finds.join(format!("{name}-{}", std::process::id()));
    fs::write(&path, data).unwrap();
    path
}

/// What is being run, since when; whoever takes longer than [`PATIENCE`] ends the process.
type Running = Arc<Mutex<Option<(Instant, Vec<u8>)>>>;

fn watch(name: &'static str, running: &Running) {
    let running = Arc::downgrade(running);
    std::thread::spawn(move || {
        while let Some(running) = running.upgrade() {
            if let Some((since, data)) = &*running.lock().unwrap()
                && since.elapsed() > PATIENCE
            {
                eprintln!("{name}: an input takes longer than {PATIENCE:?}: {}", keep(name, data).display());
                std::process::exit(1);
            }
            drop(running);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}

/// Replays the corpus, and runs so many mutations of it.
fn fuzz(name: &'static str, inputs: u64) {
    let seed = std::env::var("AMPHIPOD_FUZZ_SEED").map_or(SEED, |text| text.parse().unwrap());
    let corpus = corpus(name);
    let words = mutation::words(&directory().join("dictionaries").join(format!("{name}.dict")));
    let mut mutation = Mutation::new(
        seed ^ name.bytes().fold(0, |all: u64, byte| all.wrapping_mul(31) + u64::from(byte)),
        &corpus,
        &words,
    );
    let (bound, began, running) = (bound(inputs), Instant::now(), Running::default());
    watch(name, &running);
    let run = |data: &[u8]| {
        *running.lock().unwrap() = Some((Instant::now(), data.to_vec()));
        let result = catch_unwind(AssertUnwindSafe(|| memory::run(name, data)));
        let (since, _) = running.lock().unwrap().take().unwrap();
        assert!(result.is_ok(), "{name}: an input fails (seed {seed}): {}", keep(name, data).display());
        since.elapsed()
    };
    // Twice, so that whatever is made once is there.
    corpus.iter().chain(&corpus).for_each(|data| {
        run(data);
    });
    let held = memory::held_bytes();
    let (mut count, mut slowest) = (0, Duration::ZERO);
    loop {
        match bound {
            Bound::Inputs(most) if count >= most => break,
            Bound::Time(most) if began.elapsed() >= most => break,
            Bound::Inputs(_) | Bound::Time(_) => {}
        }
        let data = mutation.next();
        let took = run(data);
        if took > slowest {
            slowest = took;
            if took > SLOW {
                println!("{name}: {took:?} for {}", keep(&format!("{name}-slow"), data).display());
            }
        }
        count += 1;
    }
    let kept = memory::held_bytes() - held;
    assert!(kept <= KEPT_BYTES_MAX, "{name}: {kept} bytes are kept after {count} inputs (seed {seed})");
    let seconds = began.elapsed().as_secs_f32();
    println!("{name}: {count} mutations of {} inputs, seed {seed}, {seconds:.1} s, slowest {slowest:?}", corpus.len());
}

/// A test for each target, with how many mutations it gets.
macro_rules! targets {
    ($($name:ident: $inputs:expr,)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name), $inputs);
            }
        )*
    };
}

targets! {
    json_decode: 20_000,
    yaml_decode: 20_000,
    protobuf_decode: 20_000,
    json_patch: 20_000,
    merge_patch: 20_000,
    strategic_patch: 20_000,
    server_side_apply: 8_000,
    label_selector: 20_000,
    field_selector: 20_000,
    cel_expression: 8_000,
    dns_query: 20_000,
    dns_answer: 20_000,
    spdy_frames: 20_000,
    websocket_frames: 20_000,
    tunnel_frames: 20_000,
    image_manifest: 20_000,
    image_layer: 8_000,
    registries: 8_000,
    netlink_route: 20_000,
    netlink_nftables: 20_000,
    netlink_conntrack: 20_000,
}

#[test]
fn every_target_is_driven_by_both_and_has_a_small_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let tested: BTreeSet<String> = TESTED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, tested);
    let files = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(directory().join(folder)).unwrap();
        entries.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names, files("fuzz_targets"));
    assert_eq!(names, files("corpus"));
    assert!(files("dictionaries").is_subset(&names));
    let manifest = fs::read_to_string(directory().join("Cargo.toml")).unwrap();
    let mut bytes = 0;
    for name in &names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in its Cargo.toml");
        let own = corpus(name);
        assert!(!own.is_empty(), "{name} has no corpus");
        bytes += own.iter().map(|data| data.len() as u64).sum::<u64>();
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "the corpus is {bytes} bytes, more than {CORPUS_BYTES_MAX}");
}

#[test]
fn what_takes_too_much_memory_or_is_kept_is_seen() {
    let held = memory::held_bytes();
    let kept = vec![0u8; 3 << 20];
    assert!(memory::held_bytes() - held >= 3 << 20, "{}", kept.len());
    drop(kept);
    assert!(memory::held_bytes() - held < 1 << 20);
    assert!(catch_unwind(|| memory::within(1 << 20, || drop(vec![0u8; 2 << 20]))).is_err());
    memory::within(1 << 20, || (0..9).for_each(|_| drop(vec![0u8; 900 << 10])));
}
