//! Nothing half-written: at an output's path lies the old file, no file, or the whole new one, whenever the command is killed
//! and whatever the disk does.

mod support;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ndarray::Array1;
use ndarray_npy::WriteNpyExt;
use support::{full, lapidary, root, run};

fn model(name: &str) -> PathBuf {
    root().join("tests/models").join(name)
}

const TINY: &str = "random/30-generate-top_k";

fn compile(model: &Path, output: &Path) -> Command {
    let mut command = lapidary();
    command.arg("-q").arg("compile").arg(model).arg("-o").arg(output);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Names in a folder that begin as temporary files do, and other names.
fn names(folder: &Path) -> (Vec<String>, Vec<String>) {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.partition(|name| name.starts_with(lapidary_format::TEMPORARY_PREFIX))
}

/// Kills `compile` at `kills` moments over the time it takes; half of them over an old file.
fn killed_at_any_moment(model: &Path, kills: u32) {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.lapis");
    // The first run warms the caches that the others then have.
    run(&mut compile(model, &good)).unwrap();
    let begin = Instant::now();
    run(&mut compile(model, &good)).unwrap();
    let took = begin.elapsed();
    let whole = std::fs::read(&good).unwrap();
    let old = b"what lay there before".to_vec();
    let (mut finished, mut unfinished, mut left) = (0, 0, 0);
    let mut state = 0x9e37_79b9_u32;
    for kill in 0..kills {
        let folder = folder.path().join(kill.to_string());
        std::fs::create_dir(&folder).unwrap();
        let output = folder.join("out.lapis");
        let before = (kill % 2 == 0).then(|| old.clone());
        if let Some(old) = &before {
            std::fs::write(&output, old).unwrap();
        }
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = took.mul_f64(1.1 * f64::from(state >> 8) / f64::from(1_u32 << 24));
        let mut child = compile(model, &output).spawn().unwrap();
        std::thread::sleep(at);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = std::fs::read(&output).ok();
        let is_whole = found.as_ref() == Some(&whole);
        assert!(is_whole || found == before, "killed after {at:?}: {} bytes", found.map_or(0, |f| f.len()));
        if is_whole {
            finished += 1
        } else {
            unfinished += 1
        }
        let (temporary, others) = names(&folder);
        assert!(others.iter().all(|name| name == "out.lapis"), "{others:?}");
        left += temporary.len();
        // What is left over is in nobody's way.
        run(&mut compile(model, &output)).unwrap();
        assert!(std::fs::read(&output).unwrap() == whole);
        std::fs::remove_dir_all(&folder).unwrap();
    }
    eprintln!("{kills} kills within {took:?}: {finished} finished, {unfinished} not, {left} temporary files left");
    assert!(unfinished > 0, "kills that come when all is done show nothing");
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_file_or_the_new_one() {
    killed_at_any_moment(&model(TINY), 50);
    killed_at_any_moment(&model("gem-mini"), if full() { 50 } else { 5 });
}

/// Runs with files limited to `bytes`, as on a disk that has no more: writing fails, and the signal is ignored.
fn on_a_full_disk(command: &mut Command, bytes: u64) -> (Option<i32>, String) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: both functions may be called between fork and exec; the structure is this closure's.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = command.stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_full_disk_is_an_error_and_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.lapis");
    run(&mut compile(&model(TINY), &good)).unwrap();
    let whole = std::fs::metadata(&good).unwrap().len();
    let ids = folder.path().join("ids.npy");
    Array1::from(vec![1_i64; 100]).write_npy(std::fs::File::create(&ids).unwrap()).unwrap();

    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let (lapis, npz, lir) = (out.join("x.lapis"), out.join("x.npz"), out.join("x.lir"));
    let plain = || {
        let mut command = lapidary();
        command.args(["-q", "run"]).arg(&good).arg("--input").arg(format!("ids=@{}", ids.display()));
        command.arg("--output").arg(&npz);
        command
    };
    let ir = || {
        let mut command = compile(&model(TINY), &lir);
        command.args(["--emit", "ir"]);
        command
    };
    let commands: [(&dyn Fn() -> Command, &Path, u64); 3] =
        [(&|| compile(&model(TINY), &lapis), &lapis, whole - 1), (&plain, &npz, 20_000), (&ir, &lir, 1000)];
    for (command, path, most) in commands {
        for bytes in [0, 100, most / 2, most] {
            let (code, stderr) = on_a_full_disk(&mut command(), bytes);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(code, Some(1), "{name}, {bytes} bytes: {stderr}");
            assert!(stderr.contains(name) && stderr.contains("too large"), "{name}, {bytes} bytes: {stderr}");
            assert!(!stderr.contains("panicked"), "{stderr}");
            assert_eq!(names(&out), (vec![], vec![]), "{name}, {bytes} bytes");
        }
        std::fs::write(path, "old").unwrap();
        on_a_full_disk(&mut command(), most);
        assert_eq!(std::fs::read(path).unwrap(), b"old");
        let (code, stderr) = on_a_full_disk(&mut command(), whole + 1_000_000);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(std::fs::metadata(path).unwrap().len() > most);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn what_is_no_file_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let name = CString::new(at("pipe").as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that ends in zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    std::fs::create_dir(at("folder")).unwrap();
    std::os::unix::fs::symlink("/dev/null", at("device")).unwrap();
    for (name, found) in [("pipe", "a device or a pipe"), ("folder", "a folder"), ("device", "a device or a pipe")] {
        let output = compile(&model(TINY), &at(name)).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(name) && stderr.contains(found), "{stderr}");
    }
    assert!(std::fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
    assert!(std::fs::symlink_metadata(at("device")).unwrap().is_symlink());
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert_eq!(names(folder.path()).0, Vec::<String>::new());
    // A link to a file is replaced; the file that it led to stays.
    std::fs::write(at("file"), "old").unwrap();
    std::os::unix::fs::symlink("file", at("link.lapis")).unwrap();
    run(&mut compile(&model(TINY), &at("link.lapis"))).unwrap();
    assert_eq!(std::fs::read(at("file")).unwrap(), b"old");
    assert!(std::fs::symlink_metadata(at("link.lapis")).unwrap().is_file());
    // A new name in a folder that does not let.
    let output = compile(&model(TINY), Path::new("/proc/x.lapis")).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("/proc/x.lapis"), "{stderr}");
}
