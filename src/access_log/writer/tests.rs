use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::*;

const LONG: Duration = Duration::from_secs(60);
const BACKLOG: usize = 1 << 20;

fn pipe(backlog: usize) -> (io::PipeReader, io::PipeWriter, LogWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let file = File::from(OwnedFd::from(writer.try_clone().unwrap()));
    (
        reader,
        writer,
        LogWriter::start("test log", Sink::shared(file).unwrap(), None, backlog).unwrap(),
    )
}

/// Lines that this log has lost and not yet reported.
fn lost(log: &LogWriter) -> u64 {
    log.handle.as_ref().unwrap().0.lock().lost
}

#[test]
fn close_writes_everything_and_takes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "before\n").unwrap();
    let log = LogWriter::open(&LogDestination::File(path.clone()), BACKLOG).unwrap();
    assert_eq!(log.max_line(), 9_899);
    log.push(b"one");
    log.clone().push(b"two");
    assert!(log.close(LONG));
    log.push(b"three");
    assert_eq!(fs::read_to_string(path).unwrap(), "before\none\ntwo\n");
}

#[test]
fn a_log_that_nobody_has_any_more_is_written_and_ends() {
    let (mut reader, writer, log) = pipe(BACKLOG);
    drop(writer);
    log.push(b"one");
    drop(log.clone());
    log.push(b"two");
    drop(log);
    // Its end comes when the thread has closed the descriptor.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\n");
}

#[test]
fn a_log_that_is_off_takes_and_closes() {
    let log = LogWriter::open(&LogDestination::Off, BACKLOG).unwrap();
    assert!(log.is_off());
    log.push(b"line");
    log.reopen();
    assert!(log.close(LONG));
}

#[test]
fn a_named_pipe_does_not_wait_for_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    // It did: no reader comes before this returns.
    let log = LogWriter::open(&LogDestination::File(path.clone()), BACKLOG).unwrap();
    assert_eq!(log.max_line(), PIPE_MAX_LINE);
    log.push(b"lost");
    assert!(log.flush(LONG));
    assert_eq!(lost(&log), 1);
    let mut reader = File::open(&path).unwrap();
    log.push(b"read");
    assert!(log.close(LONG));
    drop(log);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "read\n");
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let destination = LogDestination::File(dir.path().join("no").join("log"));
    assert_eq!(LogWriter::open(&destination, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn lines_after_reopen_go_to_the_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
    let log = LogWriter::open(&LogDestination::File(path.clone()), BACKLOG).unwrap();
    log.push(b"old");
    fs::rename(&path, &rotated).unwrap();
    log.push(b"still old");
    log.reopen();
    log.push(b"new");
    assert!(log.close(LONG));
    assert_eq!(fs::read_to_string(rotated).unwrap(), "old\nstill old\n");
    assert_eq!(fs::read_to_string(path).unwrap(), "new\n");
}

#[test]
fn a_file_that_cannot_be_reopened_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("a").join("log"), dir.path().join("b"));
    fs::create_dir(dir.path().join("a")).unwrap();
    let log = LogWriter::open(&LogDestination::File(path), BACKLOG).unwrap();
    fs::rename(dir.path().join("a"), &moved).unwrap();
    log.reopen();
    log.push(b"line");
    assert!(log.close(LONG));
    assert_eq!(fs::read_to_string(moved.join("log")).unwrap(), "line\n");
}

#[test]
fn every_write_to_a_pipe_is_whole_lines_of_at_most_4096_bytes() {
    // A datagram socket shows where each write ends.
    for (pipe, longest) in [(true, 4_096), (false, 65_536)] {
        let (reader, writer) = UnixDatagram::pair().unwrap();
        let lines: Vec<u8> =
            (0..500).flat_map(|i| [vec![b'x'; i * 37 % 4_096], vec![b'\n']]).flatten().collect();
        let expected = lines.clone();
        let writing = std::thread::spawn(move || {
            Sink::new(File::from(OwnedFd::from(writer)), pipe).write_lines(&lines)
        });
        let (mut text, mut largest) = (Vec::new(), 0);
        while text.len() < expected.len() {
            let mut buffer = vec![0; 1 << 20];
            let n = reader.recv(&mut buffer).unwrap();
            assert_eq!(buffer[n - 1], b'\n');
            largest = largest.max(n);
            text.extend_from_slice(&buffer[..n]);
        }
        assert!(largest <= longest && largest > longest / 2, "{largest}");
        assert_eq!(writing.join().unwrap(), 0);
        assert!(text == expected);
    }
}

#[test]
fn lines_of_another_writer_of_the_pipe_do_not_fall_into_ours() {
    let (mut reader, mut app, log) = pipe(BACKLOG * 16);
    assert_eq!(log.max_line(), 4_095);
    let lines = 5_000;
    let closed = Arc::new(AtomicBool::new(false));
    let until = closed.clone();
    let other = std::thread::spawn(move || {
        while !until.load(Relaxed) {
            app.write_all(format!("{}\n", "a".repeat(700)).as_bytes()).unwrap();
        }
    });
    let pusher = std::thread::spawn(move || {
        for i in 0..lines {
            log.push("b".repeat(1 + i * 37 % 4_095).as_bytes());
        }
        assert!(log.close(LONG));
        closed.store(true, Relaxed);
    });
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    pusher.join().unwrap();
    other.join().unwrap();
    for line in text.lines() {
        let theirs = line.bytes().all(|b| b == b'a') && line.len() == 700;
        assert!(theirs || line.bytes().all(|b| b == b'b'), "{line}");
    }
    let lengths = text.lines().filter(|line| line.starts_with('b')).map(str::len);
    assert!(lengths.eq((0..lines).map(|i| 1 + i * 37 % 4_095)));
}

#[test]
fn a_stopped_reader_costs_lines_and_never_time() {
    let (mut reader, mut app, log) = pipe(10_000);
    // The pipe is full and nobody reads: a push that waited would hang.
    let size = rustix::pipe::fcntl_getpipe_size(&app).unwrap();
    app.write_all(&vec![b'\n'; size]).unwrap();
    drop(app);
    let before = METRICS.log_lines_dropped.get();
    let line = [b'x'; 99];
    for _ in 0..5_000 {
        log.push(&line);
    }
    assert!(!log.flush(Duration::from_millis(1)), "the pipe is full");
    let dropped = lost(&log);
    assert!(dropped >= 4_000, "{dropped}");
    assert!(METRICS.log_lines_dropped.get() - before >= dropped);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    assert!(log.close(LONG));
    drop(log);
    let text = reading.join().unwrap();
    let lines = text[size..].lines();
    assert!(lines.clone().all(|line| line.len() == 99));
    assert_eq!(lines.count() as u64 + dropped, 5_000);
}

#[test]
fn a_stuck_reader_does_not_hang_the_exit() {
    let (_reader, _app, log) = pipe(BACKLOG);
    for _ in 0..1_000 {
        log.push(&[b'x'; 500]);
    }
    assert!(!log.close(Duration::from_millis(1)));
}

#[test]
fn a_reader_that_has_gone_costs_lines_only() {
    let (reader, _app, log) = pipe(BACKLOG);
    drop(reader);
    let before = METRICS.log_lines_dropped.get();
    log.push(b"one");
    assert!(log.flush(LONG));
    log.push(b"two");
    assert!(log.close(LONG));
    assert_eq!(lost(&log), 2);
    assert!(METRICS.log_lines_dropped.get() - before >= 2);
}

#[test]
fn lost_lines_are_said_once_when_they_begin_and_once_when_they_end() {
    // The log's own thread speaks, so the thread's part is called here, under a subscriber of ours.
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let diagnostics = LogWriter::open(&LogDestination::File(said.clone()), BACKLOG).unwrap();
    let lines = crate::access_log::diagnostics::lines(diagnostics.clone());
    tracing::subscriber::with_default(lines, || {
        let mut thread = Thread {
            name: "access log",
            shared: Arc::default(),
            sink: Sink::shared(OpenOptions::new().write(true).open("/dev/full").unwrap()).unwrap(),
            path: None,
            failing: false,
        };
        thread.write(b"one\ntwo\n", None);
        thread.write(b"three\n", None);
        lock(&thread.sink).file = File::create(dir.path().join("log")).unwrap();
        thread.write(b"four\n", None);
        thread.write(b"five\n", None);
    });
    assert!(diagnostics.close(LONG));
    assert_eq!(
        fs::read_to_string(said).unwrap(),
        "bufproxy: error: access log: No space left on device (os error 28); lines are lost until \
         it can be written\nbufproxy: warning: access log is written again; 3 lines were lost\n"
    );
    assert_eq!(fs::read_to_string(dir.path().join("log")).unwrap(), "four\nfive\n");
}

#[test]
fn a_line_that_was_torn_by_a_full_disk_is_ended_before_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut sink = Sink::new(File::create(&path).unwrap(), false);
    assert_eq!(sink.write_lines(b"whole\n"), 0);
    // What a short write leaves.
    sink.write_all(b"to").unwrap();
    assert_eq!(sink.write_lines(b"next\n"), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nto\nnext\n");
}

#[test]
fn a_descriptor_made_non_blocking_by_somebody_else_is_waited_for() {
    let (mut reader, app, log) = pipe(BACKLOG);
    let flags = rustix::fs::fcntl_getfl(&app).unwrap();
    rustix::fs::fcntl_setfl(&app, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    drop(app);
    for _ in 0..2_000 {
        log.push(&[b'x'; 200]);
    }
    assert!(!log.flush(Duration::from_millis(1)), "the pipe is full");
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    assert!(log.close(LONG));
    drop(log);
    assert_eq!(reading.join().unwrap().lines().count(), 2_000);
}
