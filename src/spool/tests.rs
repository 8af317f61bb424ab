//! The spool against a plain vector, small budgets, and disks that fail.

use std::fs;
use std::fs::File;
use std::future::poll_fn;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::task::Wake;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

const REQUEST: SpoolLimits = SpoolLimits { memory: 64 * KIB, disk: u64::MAX, replay: true };
const RESPONSE: SpoolLimits = SpoolLimits { memory: 64 * KIB, disk: u64::MAX, replay: false };

#[test]
fn small_body_stays_in_memory_and_costs_about_its_size() {
    run(async {
        let (budget, dir) = budgets(32 * MIB, MIB);
        let mut spool = Spool::new(&budget, REQUEST);
        assert_eq!(spool.mem_bytes(), 0);
        for piece in body(0, 3000).chunks(100) {
            ready(&mut spool).await.unwrap();
            spool.push(piece);
        }
        assert_eq!((spool.len(), spool.unread(), spool.on_disk()), (3000, 3000, 0));
        assert!(spool.mem_bytes() < 2 * 3000, "{} bytes for 3000", spool.mem_bytes());
        assert_eq!(budget.memory_used(), spool.mem_bytes() as u64);
        assert_eq!(read_to_end(&mut spool).await, body(0, 3000));
        assert_eq!(open_files(&dir), 0);
    });
}

#[test]
fn piece_is_kept_as_it_is_only_where_a_copy_would_not_be_much_smaller() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, MIB);
        for (bytes, whole) in [(100, false), (20 * KIB, false), (40 * KIB, true)] {
            let mut spool = Spool::new(&budget, REQUEST);
            let mut large = piece();
            large.extend_from_slice(&body(0, bytes));
            let at = large.as_ptr();
            spool.push_piece(large);
            let kept = poll_fn(|cx| spool.poll_data(cx, bytes).map(|data| data.unwrap().as_ptr()));
            assert_eq!(kept.await == at, whole, "{bytes} bytes");
            assert!(whole || spool.mem_bytes() < 2 * KIB + bytes, "{}", spool.mem_bytes());
            assert_eq!(budget.memory_used(), spool.mem_bytes() as u64);
            assert_eq!(read_to_end(&mut spool).await, body(0, bytes));
        }
    });
}

#[test]
fn large_body_goes_to_disk_and_is_replayed_byte_for_byte() {
    run(async {
        let (budget, dir) = budgets(32 * MIB, 16 * MIB);
        let mut spool = Spool::new(&budget, REQUEST);
        push(&mut spool, &body(0, 3 * MIB + 17)).await.unwrap();
        settle().await;
        assert!(spool.on_disk() > 2 * MIB as u64);
        assert_eq!((budget.disk_used(), budget.files_open()), (spool.on_disk(), 1));
        assert_eq!(open_files(&dir), 1);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "the file has no name");
        for stop in [0, 5, 70_000, 2 * MIB + 1] {
            read(&mut spool, stop).await;
            spool.rewind();
        }
        assert_eq!(read_to_end(&mut spool).await, body(0, 3 * MIB + 17));
        spool.rewind();
        assert_eq!(read_to_end(&mut spool).await, body(0, 3 * MIB + 17));
    });
}

/// Pushes, reads, partial consumption, rewinds, spills, pauses of the pool, a disk that comes and
/// goes and the pressure of others, at random, against a vector.
#[test]
fn random_steps_match_a_plain_vector() {
    static DISK_DOWN: AtomicUsize = AtomicUsize::new(0);
    fn open(dir: &Path) -> io::Result<File> {
        match DISK_DOWN.load(SeqCst) {
            0 => tempfile::tempfile_in(dir),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
    let mut seen = std::collections::BTreeMap::<&str, u32>::new();
    for seed in 0..120 {
        let mut seen = |what| *seen.entry(what).or_default() += 1;
        run(async {
            let mut rng = fastrand::Rng::with_seed(seed);
            DISK_DOWN.store(0, SeqCst);
            let dir = tempfile::tempdir().unwrap();
            let disk = rng.u64(100_000..3_000_000);
            // Some of what goes to disk finds room in the page cache.
            let cache = rng.u64(0..500_000);
            let budget = Budget::with_opener(2 << 20, disk, cache, dir.path().into(), open);
            let limits = SpoolLimits {
                memory: rng.usize(0..100_000),
                disk: rng.u64(100_000..3_000_000),
                replay: seed % 2 == 0,
            };
            let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
            let mut spool = Spool::new(&budget, limits);
            let (mut model, mut at) = (Vec::new(), 0);
            let mut cx = Context::from_waker(Waker::noop());
            for step in 0..400 {
                let here = format!("seed {seed} step {step}");
                match rng.u32(0..100) {
                    0..40 => match spool.poll_ready(&mut cx) {
                        Poll::Ready(Ok(())) => {
                            let size = rng.usize(0..=MAX_PUSH) >> rng.u32(0..6);
                            let piece = body(model.len(), size);
                            if rng.bool() {
                                spool.push(&piece);
                            } else {
                                spool.push_piece(piece.clone());
                            }
                            model.extend(piece);
                        }
                        Poll::Ready(Err(error)) => {
                            assert!(limits.replay, "{here}: {error}");
                            seen(match error.kind() {
                                io::ErrorKind::StorageFull => "refused",
                                _ => "disk failed under a request",
                            });
                        }
                        Poll::Pending if spool.blocked() => seen("blocked"),
                        Poll::Pending => seen("waited for a write"),
                    },
                    40..80 => {
                        let max = rng.usize(1..100_000);
                        if let Poll::Ready(data) = spool.poll_data(&mut cx, max) {
                            let data = data.unwrap();
                            let n = rng.usize(0..=data.len());
                            assert_eq!(data, &model[at..at + data.len()], "{here}");
                            assert_eq!(data.is_empty(), at == model.len(), "{here}");
                            spool.consume(n);
                            at += n;
                        } else {
                            seen("waited for a read");
                        }
                    }
                    80..88 => {
                        let mut slices = [IoSlice::new(&[]); 4];
                        let (count, bytes) = spool.memory_slices(usize::MAX, &mut slices);
                        let slices = slices[..count].iter().flat_map(|slice| slice.to_vec());
                        let slices: Vec<u8> = slices.collect();
                        assert_eq!(slices.len() as u64, bytes, "{here}");
                        assert_eq!(slices, model[at..at + slices.len()], "{here}");
                        let n = rng.usize(0..=slices.len());
                        spool.consume(n);
                        at += n;
                    }
                    88..95 => settle().await,
                    95 => spool.spill(),
                    96 if limits.replay => {
                        spool.rewind();
                        at = 0;
                    }
                    97 => {
                        // What is under way has ended before and after it, or chance would decide
                        // on a busy machine whether a write meets it.
                        settle().await;
                        DISK_DOWN.store(usize::from(rng.u32(0..4) == 0), SeqCst);
                        spool.spill();
                        settle().await;
                    }
                    98 => {
                        ballast.give(ballast.bytes());
                        ballast.grow(rng.u64(0..4 * MIB as u64).min(2 * MIB as u64));
                    }
                    99 if rng.u32(0..4) == 0 => {
                        spool.clear();
                        model.clear();
                        at = 0;
                    }
                    _ => {}
                }
                assert_eq!(spool.len(), model.len() as u64, "{here}");
                assert_eq!(spool.unread(), (model.len() - at) as u64, "{here}");
                assert!(spool.on_disk() <= limits.disk, "{here}");
                assert!(budget.disk_used() <= disk, "{here}");
                if spool.on_disk() > 0 {
                    seen("on disk");
                }
                if spool.disk_failed() {
                    seen("disk failed under a response");
                }
            }
            assert_eq!(read_to_end(&mut spool).await, model[at..], "seed {seed}");
            drop((spool, ballast));
            settle().await;
            assert_given_back(&budget);
            assert_eq!(open_files(&dir), 0);
        });
    }
    for what in [
        "refused",
        "disk failed under a request",
        "disk failed under a response",
        "blocked",
        "waited for a write",
        "waited for a read",
        "on disk",
    ] {
        assert!(seen.get(what) > Some(&5), "{what} hardly ever happened: {seen:?}");
    }
}

/// One task that pushes and reads, woken by the spool alone: a lost wake-up hangs it.
#[test]
fn writer_and_reader_in_one_task_are_woken() {
    run(async {
        let (budget, _dir) = budgets(MIB, 3 * MIB);
        for limits in [
            RESPONSE,
            SpoolLimits { memory: 0, ..RESPONSE },
            SpoolLimits { disk: MIB as u64, ..RESPONSE },
        ] {
            let mut spool = Spool::new(&budget, limits);
            let data = body(0, 20 * MIB);
            let mut got = Vec::<u8>::new();
            poll_fn(|cx| {
                loop {
                    let sent = spool.len() as usize;
                    let pushed = sent < data.len() && spool.poll_ready(cx)?.is_ready();
                    if pushed {
                        spool.push(&data[sent..data.len().min(sent + MAX_PUSH)]);
                    }
                    // Slower than the writer, so that it comes to the limits.
                    let read = match spool.poll_data(cx, 40_000)? {
                        Poll::Ready(bytes) => {
                            let n = bytes.len().min(30_000);
                            got.extend(&bytes[..n]);
                            spool.consume(n);
                            n > 0
                        }
                        Poll::Pending => false,
                    };
                    if got.len() == data.len() {
                        return Poll::Ready(io::Result::Ok(()));
                    }
                    if !pushed && !read {
                        return Poll::Pending;
                    }
                }
            })
            .await
            .unwrap();
            assert!(got == data);
        }
    });
}

#[test]
fn drop_gives_everything_back_with_a_write_or_a_read_in_flight() {
    run(async {
        let (budget, dir) = budgets(32 * MIB, 16 * MIB);
        for limits in [REQUEST, RESPONSE] {
            for before in [0, MIB] {
                let mut spool = Spool::new(&budget, limits);
                push(&mut spool, &body(0, before)).await.unwrap();
                settle().await;
                spool.take_finished_write();
                let pool = hold_pool();
                while spool.writing.is_none() {
                    ready(&mut spool).await.unwrap();
                    spool.push(&[1; MAX_PUSH]);
                }
                let _ = spool.poll_data(&mut Context::from_waker(Waker::noop()), MAX_PUSH);
                assert_eq!(spool.reading.is_some(), before > 0);
                drop(spool);
                assert!(budget.memory_used() > 0, "the batch is still in hand");
                drop(pool);
                settle().await;
                assert_given_back(&budget);
                assert_eq!(open_files(&dir), 0);
            }
        }
    });
}

#[test]
fn response_blocks_at_its_disk_limit_and_goes_on_after_consume() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, 64 * MIB);
        let limits = SpoolLimits { disk: 4 * MIB as u64, ..RESPONSE };
        let mut spool = Spool::new(&budget, limits);
        let sent = push_until_blocked(&mut spool).await;
        assert!((3 * MIB..5 * MIB).contains(&sent), "blocked after {sent} bytes");
        let woken = Arc::new(Woken::default());
        assert!(poll_ready(&mut spool, &woken).is_pending());
        // Too little: nothing of the disk comes back for it.
        let mut got = read(&mut spool, 10_000).await;
        assert!(poll_ready(&mut spool, &woken).is_pending() && spool.blocked());
        let before = woken.0.load(SeqCst);
        got.extend(read(&mut spool, 2 * MIB).await);
        assert!(woken.0.load(SeqCst) > before, "consume wakes the writer");
        let more = push_until_blocked(&mut spool).await;
        assert!(more > MIB, "only {more} bytes more");
        got.extend(read_to_end(&mut spool).await);
        assert!(got == body(0, sent + more));
        assert_eq!(spool.on_disk(), 0, "caught up: memory alone again");
    });
}

#[test]
fn response_blocked_by_the_budget_of_all_is_woken_by_another_one() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, 2 * MIB);
        let mut hog = Spool::new(&budget, RESPONSE);
        push_until_blocked(&mut hog).await;
        let mut spool = Spool::new(&budget, RESPONSE);
        let sent = push_until_blocked(&mut spool).await;
        let woken = Arc::new(Woken::default());
        assert!(poll_ready(&mut spool, &woken).is_pending() && spool.blocked());
        drop(hog);
        settle().await;
        assert_eq!(woken.0.load(SeqCst), 1);
        let more = push_until_blocked(&mut spool).await;
        assert!(more > MIB, "only {more} bytes more");
        assert!(read_to_end(&mut spool).await == body(0, sent + more));
    });
}

#[test]
fn request_beyond_the_disk_budget_is_refused_and_keeps_what_it_has() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, MIB);
        let mut spool = Spool::new(&budget, REQUEST);
        let error = push(&mut spool, &body(0, 3 * MIB)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!spool.blocked());
        let sent = spool.len() as usize;
        assert!(read_to_end(&mut spool).await == body(0, sent));
        drop(spool);
        settle().await;
        push(&mut Spool::new(&budget, REQUEST), &body(0, MIB)).await.unwrap();
    });
}

#[test]
fn vanished_directory_refuses_new_bodies_spares_open_ones_and_recovers() {
    run(async {
        let (budget, dir) = budgets(32 * MIB, 64 * MIB);
        let mut old = Spool::new(&budget, REQUEST);
        push(&mut old, &body(0, MIB)).await.unwrap();
        settle().await;
        fs::remove_dir(dir.path()).unwrap();

        let mut new = Spool::new(&budget, REQUEST);
        let error = push_settled(&mut new, &body(0, MIB)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let mut small = Spool::new(&budget, REQUEST);
        push(&mut small, &body(0, 50 * KIB)).await.unwrap();
        assert!(read_to_end(&mut small).await == body(0, 50 * KIB));
        push(&mut old, &body(MIB, MIB)).await.unwrap();
        assert!(read_to_end(&mut old).await == body(0, 2 * MIB));

        fs::create_dir(dir.path()).unwrap();
        let mut later = Spool::new(&budget, REQUEST);
        push_settled(&mut later, &body(0, MIB)).await.unwrap();
        assert!(later.on_disk() > 0);
    });
}

#[test]
fn directory_without_write_permission_paces_a_response_and_refuses_a_request() {
    run(async {
        // Not even root makes files there.
        let budget = Budget::new(32 * MIB as u64, 64 * MIB as u64, "/proc/self".into());
        assert!(push_settled(&mut Spool::new(&budget, REQUEST), &body(0, MIB)).await.is_err());

        let mut response = Spool::new(&budget, RESPONSE);
        let sent = push_until_blocked(&mut response).await;
        assert!(response.disk_failed());
        assert!(
            sent <= RESPONSE.memory + 2 * MAX_PUSH + GATHER as usize,
            "{sent} bytes without a disk"
        );
        let woken = Arc::new(Woken::default());
        assert!(poll_ready(&mut response, &woken).is_pending());
        let mut got = read(&mut response, sent - 10).await;
        assert_eq!(woken.0.load(SeqCst), 1);
        let more = push_until_blocked(&mut response).await;
        got.extend(read_to_end(&mut response).await);
        assert!(got == body(0, sent + more));
        assert!(!response.disk_failed(), "asked again from here on");
    });
}

#[test]
fn disk_that_fails_in_the_middle_loses_nothing_that_was_pushed() {
    /// Takes 200,000 bytes, then every write fails.
    fn short_disk(_: &Path) -> io::Result<File> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        let file = File::from(memfd_create("spool", MemfdFlags::ALLOW_SEALING)?);
        file.set_len(200_000)?;
        fcntl_add_seals(&file, SealFlags::GROW)?;
        Ok(file)
    }
    run(async {
        let budget = Budget::with_opener(32 << 20, 64 << 20, budget::CACHE, "/".into(), short_disk);
        let mut response = Spool::new(&budget, RESPONSE);
        let sent = push_until_blocked(&mut response).await;
        assert!(response.disk_failed() && response.on_disk() > 100_000);
        assert_eq!(budget.disk_used(), response.on_disk());
        assert!(read_to_end(&mut response).await == body(0, sent));

        let mut request = Spool::new(&budget, REQUEST);
        push_settled(&mut request, &body(0, MIB)).await.unwrap_err();
        let sent = request.len() as usize;
        assert!(read_to_end(&mut request).await == body(0, sent));
        drop((response, request));
        settle().await;
        assert_given_back(&budget);
    });
}

#[test]
fn responses_without_a_disk_leave_memory_to_requests() {
    run(async {
        let (budget, _dir) = budgets(MIB, 0);
        let mut responses: Vec<_> = (0..100).map(|_| Spool::new(&budget, RESPONSE)).collect();
        let mut cx = Context::from_waker(Waker::noop());
        for response in &mut responses {
            while response.poll_ready(&mut cx).is_ready() {
                response.push(&[1; MAX_PUSH]);
            }
        }
        assert!(budget.memory_used() <= (MIB - MIB / 8) as u64, "{}", budget.memory_used());
        let mut request = Spool::new(&budget, REQUEST);
        ready(&mut request).await.unwrap();
        request.push(&body(0, 100));
        assert!(read_to_end(&mut request).await == body(0, 100));
    });
}

#[test]
fn stalled_reader_of_a_file_holds_no_memory_when_it_is_short() {
    run(async {
        let (budget, _dir) = budgets(2 * MIB, 64 * MIB);
        let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
        ballast.grow(MIB as u64);
        let mut spool = Spool::new(&budget, SpoolLimits { memory: 0, ..RESPONSE });
        push_settled(&mut spool, &body(0, 100 * KIB)).await.unwrap();
        settle().await;
        ready(&mut spool).await.unwrap();
        // Too little to be worth a file, were there none.
        assert_eq!(data(&mut spool, 40 * KIB).await.len(), 40 * KIB);
        spool.consume(39 * KIB);
        assert!((1..=WORTH_A_FILE).contains(&spool.mem_bytes()), "{}", spool.mem_bytes());
        assert!(spool.relieve());
        stalls(&mut spool);
        spool.relieve();
        settle().await;
        assert!(!spool.relieve());
        assert_eq!((spool.mem_bytes(), budget.memory_used()), (0, ballast.bytes()));
        assert!(read_to_end(&mut spool).await == body(39 * KIB, 61 * KIB));
    });
}

#[test]
fn full_disk_is_said_as_such() {
    run(async {
        let full = |_: &Path| File::options().read(true).write(true).open("/dev/full");
        let budget = Budget::with_opener(32 << 20, 64 << 20, budget::CACHE, "/".into(), full);
        let mut request = Spool::new(&budget, REQUEST);
        let error = push_settled(&mut request, &body(0, MIB)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    });
}

#[test]
fn stalled_reader_pins_little() {
    run(async {
        let (budget, _dir) = budgets(2 * MIB, 64 * MIB);
        let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
        ballast.grow(MIB as u64);
        for taken in [1, 60_000] {
            let mut spool = Spool::new(&budget, RESPONSE);
            push(&mut spool, &body(0, MIB)).await.unwrap();
            assert_eq!(data(&mut spool, MAX_PUSH).await.len(), MAX_PUSH);
            spool.consume(taken);
            settle().await;
            ready(&mut spool).await.unwrap();
            settle().await;
            let pinned = budget.memory_used() - ballast.bytes();
            assert!(pinned < 16 * KIB as u64, "{pinned} bytes after {taken}");
            spool.spill();
            settle().await;
            ready(&mut spool).await.unwrap();
            assert_eq!(spool.mem_bytes(), 0);
            assert!(read_to_end(&mut spool).await == body(taken, MIB - taken));
        }
        // In memory, what is left of a large chunk.
        let mut spool = Spool::new(&budget, REQUEST);
        spool.limits.replay = false;
        ballast.give(ballast.bytes());
        push(&mut spool, &body(0, 64 * KIB)).await.unwrap();
        read(&mut spool, 60 * KIB).await;
        assert_eq!(spool.mem_bytes(), 4 * KIB);
        assert!(read_to_end(&mut spool).await == body(60 * KIB, 4 * KIB));
    });
}

#[test]
fn spool_keeps_less_the_more_memory_is_in_use() {
    run(async {
        let (budget, _dir) = budgets(2 * MIB, 64 * MIB);
        let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
        let mut kept = Vec::new();
        for more in [0, 700 * KIB, 1200 * KIB] {
            ballast.grow(more as u64);
            let mut spool = Spool::new(&budget, REQUEST);
            for piece in body(0, 64 * KIB).chunks(4 * KIB) {
                ready(&mut spool).await.unwrap();
                spool.push(piece);
                settle().await;
            }
            ready(&mut spool).await.unwrap();
            settle().await;
            kept.push((budget.memory_used() - ballast.bytes()) as usize);
            assert!(read_to_end(&mut spool).await == body(0, 64 * KIB));
        }
        assert!(kept[0] >= 64 * KIB, "{kept:?}");
        assert!((1..=2 * KEEP_WHEN_SHORT).contains(&kept[1]), "{kept:?}");
        assert_eq!(kept[2], 0);
        assert!(budget.should_relieve());
    });
}

#[test]
fn writer_waits_when_not_even_a_push_fits_and_is_woken() {
    run(async {
        let (budget, _dir) = budgets(MIB, 64 * MIB);
        let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
        ballast.grow((MIB - 10) as u64);
        let woken = Arc::new(Woken::default());
        let mut spool = Spool::new(&budget, RESPONSE);
        assert!(poll_ready(&mut spool, &woken).is_pending());
        assert!(!spool.blocked(), "no reader of its own is to blame");
        ballast.give(100);
        assert_eq!(woken.0.load(SeqCst), 0, "too little");
        drop(ballast);
        assert_eq!(woken.0.load(SeqCst), 1);
        assert!(poll_ready(&mut spool, &woken).is_ready());
    });
}

#[test]
fn give_back_wakes_as_many_as_it_has_room_for() {
    run(async {
        let (budget, _dir) = budgets(MIB, 64 * MIB);
        let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
        ballast.grow(MIB as u64);
        let woken: Vec<_> = (0..10).map(|_| Arc::new(Woken::default())).collect();
        let mut spools: Vec<_> = woken.iter().map(|_| Spool::new(&budget, REQUEST)).collect();
        for (spool, woken) in spools.iter_mut().zip(&woken) {
            assert!(poll_ready(spool, woken).is_pending());
        }
        let count = || woken.iter().map(|woken| woken.0.load(SeqCst)).collect::<Vec<_>>();
        ballast.give(3 * MAX_PUSH as u64 + 5);
        assert_eq!(count(), [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], "the first first");
        // Those three have gone: whoever sweeps finds the room that they did not take.
        budget.sweep();
        assert_eq!(count(), [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
        drop(ballast);
        assert_eq!(count(), [1; 10]);
    });
}

#[test]
fn one_client_does_not_take_the_disk_from_others() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, 16 * MIB);
        let [hog, other] = ["192.0.2.1", "2001:db8::1"].map(|ip| budget.owner(ip.parse().ok()));
        assert_ne!(hog, other, "one of 1024 runs may fail here");
        let mut hogs = Vec::new();
        let refused = loop {
            let mut spool = Spool::new(&budget, REQUEST);
            spool.belongs_to(hog);
            let pushed = push_settled(&mut spool, &body(0, MIB)).await;
            hogs.push(spool);
            if let Err(error) = pushed {
                break error;
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        // While nobody else asks, it may have more than a quarter.
        let half = 8 * MIB as u64;
        assert!((half - MIB as u64..=half).contains(&budget.disk_used()), "{}", budget.disk_used());
        for _ in 0..4 {
            let mut spool = Spool::new(&budget, REQUEST);
            spool.belongs_to(other);
            push_settled(&mut spool, &body(0, MIB)).await.unwrap();
            hogs.push(spool);
        }
        let mut response = Spool::new(&budget, RESPONSE);
        response.belongs_to(hog);
        push_until_blocked(&mut response).await;
        assert_eq!(response.on_disk(), 0, "the others have asked");
        drop((hogs, response));
        settle().await;
        assert_given_back(&budget);
        let mut later = Spool::new(&budget, REQUEST);
        later.belongs_to(hog);
        push_settled(&mut later, &body(0, 4 * MIB)).await.unwrap();
    });
}

#[test]
fn one_client_does_not_take_the_memory_from_others() {
    run(async {
        let (budget, _dir) = budgets(MIB, 64 * MIB);
        let [hog, other] = ["192.0.2.1", "192.0.2.2"].map(|ip| budget.owner(ip.parse().ok()));
        assert_ne!(hog, other, "one of 1024 runs may fail here");
        let mut spools = Vec::new();
        for owner in [hog, other] {
            // Each may keep 8 KiB in memory: more than the budget, together.
            for _ in 0..200 {
                let mut spool = Spool::new(&budget, REQUEST);
                spool.belongs_to(owner);
                push_settled(&mut spool, &body(0, 7 * KIB)).await.unwrap();
                spools.push(spool);
            }
            let part = MIB / 4;
            let held = spools[spools.len() - 200..].iter().map(Spool::mem_bytes).sum::<usize>();
            assert!((part - 16 * KIB..=part + 16 * KIB).contains(&held), "{held}");
        }
        assert_eq!(budget.level(Owner::UNKNOWN), Level::Short);
        assert!(read_to_end(&mut spools[199]).await == body(0, 7 * KIB));
    });
}

#[test]
fn thousand_readers_from_disk_stay_inside_the_memory_budget() {
    run(async {
        let (budget, _dir) = budgets(2 * MIB, 256 * MIB);
        let mut spools = Vec::new();
        for _ in 0..300 {
            let mut spool = Spool::new(&budget, SpoolLimits { memory: 0, ..RESPONSE });
            push_settled(&mut spool, &body(0, 100 * KIB)).await.unwrap();
            spools.push(spool);
        }
        settle().await;
        assert_eq!(budget.memory_used(), 0);
        // All their clients can take something at the same moment.
        let pool = hold_pool();
        let mut cx = Context::from_waker(Waker::noop());
        for spool in &mut spools {
            assert!(spool.poll_data(&mut cx, MAX_PUSH).is_pending());
        }
        let most = 2 * MIB + spools.len() * KEEP_WHEN_SHORT;
        assert!(budget.memory_used() <= most as u64, "{} bytes", budget.memory_used());
        drop(pool);
        assert!(read_to_end(&mut spools[299]).await == body(0, 100 * KIB));
    });
}

#[test]
fn request_that_has_room_in_memory_does_not_fail_with_the_disk() {
    run(async {
        let budget = Budget::new(MIB as u64, 64 * MIB as u64, "/proc/self".into());
        let mut spool = Spool::new(&budget, REQUEST);
        let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
        ballast.grow(MIB as u64 / 8);
        push(&mut spool, &body(0, 50 * KIB)).await.unwrap();
        stalls(&mut spool);
        assert!(spool.relieve());
        assert!(spool.writing.is_some(), "an eighth is in use: what only waits is moved");
        settle().await;
        push_settled(&mut spool, &body(50 * KIB, 10 * KIB)).await.unwrap();
        assert!(read_to_end(&mut spool).await == body(0, 60 * KIB));
    });
}

#[test]
fn stalled_upload_is_moved_to_disk_when_it_has_waited_for_a_second() {
    run(async {
        let (budget, _dir) = budgets(MIB, 64 * MIB);
        let mut spool = Spool::new(&budget, REQUEST);
        push(&mut spool, &body(0, 50 * KIB)).await.unwrap();
        stalls(&mut spool);
        assert!(spool.relieve(), "to be asked again");
        assert!(spool.writing.is_none(), "little memory is in use");
        let ballast = Lease::empty(&budget.memory, Owner::UNKNOWN);
        ballast.grow(MIB as u64 / 8);
        push(&mut spool, &body(50 * KIB, KIB)).await.unwrap();
        assert!(spool.relieve());
        assert!(spool.writing.is_none(), "it has just moved");
        stalls(&mut spool);
        spool.relieve();
        settle().await;
        assert!(!spool.relieve());
        assert_eq!((spool.mem_bytes(), budget.memory_used()), (0, ballast.bytes()));
        assert!(read_to_end(&mut spool).await == body(0, 51 * KIB));
    });
}

#[test]
fn page_cache_of_spool_files_stays_small() {
    spill_fifty(false);
}

#[test]
fn page_cache_of_spool_files_stays_small_where_the_file_system_wants_all_of_it() {
    spill_fifty(true);
}

fn spill_fifty(refuses_direct: bool) {
    run(async {
        let (budget, dir) = budgets(32 * MIB, 256 * MIB);
        if crate::config::platform::in_memory(dir.path()).unwrap() {
            return eprintln!("skipped: files of {} are in memory", dir.path().display());
        }
        if refuses_direct {
            budget.refuse_direct();
        }
        let mut spools = Vec::new();
        let body = body(0, 2 * MIB);
        for n in 0..50 {
            let limits = if n % 2 == 0 { REQUEST } else { RESPONSE };
            let mut spool = Spool::new(&budget, limits);
            push_settled(&mut spool, &body).await.unwrap();
            stalls(&mut spool);
            spool.spill();
            settle().await;
            spool.take_finished_write();
            spools.push(spool);
        }
        assert_eq!(budget.disk_used(), 100 * MIB as u64);
        for spool in &mut spools {
            assert!(read(spool, MIB).await == body[..MIB]);
        }
        match open_in(&dir).map(|fd| cached_bytes(&fd)).sum::<Option<usize>>() {
            Some(cached) => assert!((MIB..10 * MIB).contains(&cached), "{cached} bytes"),
            None => eprintln!("skipped: fincore is not installed"),
        }
        drop(spools);
        settle().await;
        assert_given_back(&budget);
    });
}

#[test]
fn what_finds_no_room_in_the_page_cache_is_never_there() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        if crate::config::platform::in_memory(dir.path()).unwrap() {
            return eprintln!("skipped: files of {} are in memory", dir.path().display());
        }
        let cached = || open_in(&dir).map(|fd| cached_bytes(&fd)).sum::<Option<usize>>();
        let open = |dir: &Path| tempfile::tempfile_in(dir);
        let budget = Budget::with_opener(32 << 20, 64 << 20, MIB as u64, dir.path().into(), open);
        let mut spool = Spool::new(&budget, RESPONSE);
        push_settled(&mut spool, &body(0, MIB)).await.unwrap();
        // Nobody else cleans.
        assert!(budget.begins_cleaning());
        for n in 1..8 {
            push_settled(&mut spool, &body(n * MIB, MIB)).await.unwrap();
            match cached() {
                // The kernel takes what it has for larger pieces.
                Some(cached) => assert!(cached < 2 * MIB, "{cached} bytes of {n} MiB"),
                None => eprintln!("skipped: fincore is not installed"),
            }
        }
        assert!(read_to_end(&mut spool).await == body(0, 8 * MIB));
        assert!(cached().is_none_or(|cached| cached < 2 * MIB), "{:?} after reading", cached());
    });
}

#[test]
fn files_that_wait_leave_half_of_the_page_cache_to_those_that_come() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, 64 * MIB);
        let has_half = || budget.cache.has_room(Owner::UNKNOWN, budget::CACHE / 2);
        let mut spools = Vec::new();
        while has_half() {
            let mut spool = Spool::new(&budget, REQUEST);
            push_settled(&mut spool, &body(0, MIB)).await.unwrap();
            spools.push(spool);
        }
        budget.sweep();
        settle().await;
        assert!(has_half());
        for spool in &mut spools {
            assert!(read_to_end(spool).await == body(0, MIB));
        }
    });
}

#[test]
fn file_system_without_direct_writes_takes_bodies_all_the_same() {
    use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
    let open = |_: &Path| Ok(File::from(memfd_create("spool", MemfdFlags::CLOEXEC)?));
    if fcntl_setfl(open(Path::new("/")).unwrap(), OFlags::DIRECT).is_ok() {
        return eprintln!("skipped: this kernel's files in memory take O_DIRECT");
    }
    run(async {
        let budget = Budget::with_opener(32 << 20, 64 << 20, 0, "/".into(), open);
        for limits in [REQUEST, RESPONSE] {
            let mut spool = Spool::new(&budget, limits);
            push_settled(&mut spool, &body(0, 2 * MIB)).await.unwrap();
            assert!(!budget.takes_direct() && spool.on_disk() > MIB as u64);
            assert!(read_to_end(&mut spool).await == body(0, 2 * MIB));
        }
    });
}

#[test]
fn list_of_files_in_the_page_cache_forgets_those_that_are_closed() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, MIB);
        for _ in 0..300 {
            let mut spool = Spool::new(&budget, SpoolLimits { memory: 0, ..REQUEST });
            push_settled(&mut spool, &body(0, KIB)).await.unwrap();
        }
        assert!(budget.files_listed() < 100, "{} files", budget.files_listed());
    });
}

#[test]
fn many_writers_together_stay_inside_the_memory_budget() {
    run(async {
        let (budget, _dir) = budgets(MIB, 256 * MIB);
        let mut spools: Vec<_> = (0..100).map(|_| Spool::new(&budget, REQUEST)).collect();
        let pieces = body(0, 10 * MAX_PUSH);
        for piece in pieces.chunks(MAX_PUSH) {
            for spool in &mut spools {
                ready(spool).await.unwrap();
                spool.push(piece);
                assert!(budget.memory_used() <= MIB as u64, "{} bytes", budget.memory_used());
            }
        }
        assert!(read_to_end(&mut spools[50]).await == pieces);
    });
}

#[test]
fn body_of_just_its_memory_limit_makes_no_file() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, MIB);
        let mut spool = Spool::new(&budget, REQUEST);
        push_settled(&mut spool, &body(0, REQUEST.memory)).await.unwrap();
        assert_eq!((spool.on_disk(), budget.files_open()), (0, 0));
        spool.push(b"+");
        settle().await;
        assert_eq!((spool.on_disk(), budget.files_open()), (REQUEST.memory as u64 + 1, 1));
    });
}

#[test]
fn spools_share_the_budgets() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, 64 * MIB);
        let (mut one, mut two) = (Spool::new(&budget, REQUEST), Spool::new(&budget, RESPONSE));
        push(&mut one, &body(0, MIB)).await.unwrap();
        push(&mut two, &body(5, 2 * MIB)).await.unwrap();
        settle().await;
        ready(&mut one).await.unwrap();
        ready(&mut two).await.unwrap();
        settle().await;
        assert_eq!(budget.disk_used(), one.on_disk() + two.on_disk());
        assert_eq!(budget.files_open(), 2);
        drop(two);
        settle().await;
        assert_eq!((budget.disk_used(), budget.files_open()), (one.on_disk(), 1));
        assert!(read_to_end(&mut one).await == body(0, MIB));
    });
}

#[test]
fn disk_behind_the_reader_of_a_response_is_given_back() {
    run(async {
        let (budget, dir) = budgets(32 * MIB, 64 * MIB);
        let mut spool = Spool::new(&budget, RESPONSE);
        push(&mut spool, &body(0, 8 * MIB)).await.unwrap();
        settle().await;
        spool.spill();
        settle().await;
        assert_eq!(budget.disk_used(), 8 * MIB as u64);
        let mut got = read(&mut spool, 5 * MIB).await;
        settle().await;
        assert!(spool.on_disk() <= 4 * MIB as u64);
        assert_eq!(budget.disk_used(), spool.on_disk());
        let blocks = spool_blocks(&dir);
        assert!(blocks <= spool.on_disk() + 64 * KIB as u64, "{blocks} bytes in blocks");
        got.extend(read_to_end(&mut spool).await);
        assert!(got == body(0, 8 * MIB));
        settle().await;
        assert_given_back(&budget);
    });
}

#[test]
fn cleared_spool_takes_another_body() {
    run(async {
        let (budget, _dir) = budgets(32 * MIB, 64 * MIB);
        let mut spool = Spool::new(&budget, REQUEST);
        for round in 0..3 {
            push(&mut spool, &body(round, MIB)).await.unwrap();
            assert!(read(&mut spool, 600_000).await == body(round, 600_000));
            spool.clear();
            assert!(spool.is_empty() && spool.mem_bytes() == 0 && spool.on_disk() == 0);
            settle().await;
            assert_given_back(&budget);
        }
    });
}

#[test]
fn spool_may_move_between_threads() {
    fn send<T: Send>() {}
    send::<Spool>();
}

/// Runs `test` on one thread, and the pool on another one: tasks of the pool end in their order.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    // Only ends a test that has failed already: some write 100 MiB, and others may want the disk, too.
    let limit = Duration::from_secs(300);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("it hangs") });
}

fn budgets(memory: usize, disk: usize) -> (Arc<Budget>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Budget::new(memory as u64, disk as u64, dir.path().into()), dir)
}

/// Bytes that no other position has for long.
fn body(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

async fn ready(spool: &mut Spool) -> io::Result<()> {
    poll_fn(|cx| spool.poll_ready(cx)).await
}

async fn push(spool: &mut Spool, data: &[u8]) -> io::Result<()> {
    for piece in data.chunks(MAX_PUSH) {
        ready(spool).await?;
        spool.push(piece);
    }
    Ok(())
}

/// The same, and the outcome of every write.
async fn push_settled(spool: &mut Spool, data: &[u8]) -> io::Result<()> {
    push(spool, data).await?;
    settle().await;
    ready(spool).await
}

/// Pushes on in the pattern until the spool is blocked; the number of bytes.
async fn push_until_blocked(spool: &mut Spool) -> usize {
    let before = spool.len() as usize;
    loop {
        let blocked = poll_fn(|cx| match spool.poll_ready(cx) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| false)),
            Poll::Pending if spool.blocked() => Poll::Ready(Ok(true)),
            Poll::Pending => Poll::Pending,
        });
        let blocked = blocked.await.unwrap();
        let sent = spool.len() as usize;
        if blocked {
            return sent - before;
        }
        spool.push(&body(sent, 50_000));
    }
}

async fn data(spool: &mut Spool, max: usize) -> Vec<u8> {
    poll_fn(|cx| spool.poll_data(cx, max).map(|data| data.unwrap().to_vec())).await
}

async fn read(spool: &mut Spool, bytes: usize) -> Vec<u8> {
    let mut got = Vec::<u8>::new();
    while got.len() < bytes {
        let piece = data(spool, 50_000).await;
        let n = piece.len().min(bytes - got.len());
        assert!(n > 0, "ends after {} of {bytes} bytes", got.len());
        got.extend(&piece[..n]);
        spool.consume(n);
    }
    got
}

async fn read_to_end(spool: &mut Spool) -> Vec<u8> {
    let unread = spool.unread() as usize;
    read(spool, unread).await
}

/// A waker that counts.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn poll_ready(spool: &mut Spool, woken: &Arc<Woken>) -> Poll<io::Result<()>> {
    let waker = Waker::from(woken.clone());
    spool.poll_ready(&mut Context::from_waker(&waker))
}

/// Nothing runs on the pool until the sender is dropped.
fn hold_pool() -> mpsc::Sender<()> {
    let (sender, gate) = mpsc::channel();
    spawn_blocking(move || gate.recv());
    sender
}

/// All that the pool had to do is done, and what that led to: closing.
async fn settle() {
    for _ in 0..2 {
        spawn_blocking(|| ()).await.unwrap();
    }
}

fn assert_given_back(budget: &Budget) {
    let left = (budget.memory_used(), budget.disk_used(), budget.files_open());
    assert_eq!(left, (0, 0, 0), "memory, disk, files");
    assert!(budget.cache.has_room(Owner::UNKNOWN, u64::MAX), "page cache");
}

/// Has what is in this spool have been there for a second.
fn stalls(spool: &mut Spool) {
    let long_ago = Instant::now().checked_sub(STALLED).unwrap();
    spool.seen = Some((spool.read + spool.pushed, long_ago));
}

/// Bytes of a file in the page cache, as util-linux's fincore counts them (mincore(2)); None where
/// that is not installed.
fn cached_bytes(file: &Path) -> Option<usize> {
    // Its own `self` is another process.
    let file = file.to_str()?.replace("self", &std::process::id().to_string());
    let fincore =
        std::process::Command::new("fincore").args(["-nbo", "RES", &file]).output().ok()?;
    String::from_utf8_lossy(&fincore.stdout).trim().parse().ok()
}

/// This process's descriptors of files in `dir`.
fn open_in(dir: &TempDir) -> impl Iterator<Item = std::path::PathBuf> {
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten().map(|fd| fd.path());
    fds.filter(|fd| fs::read_link(fd).is_ok_and(|file| file.starts_with(dir.path())))
}

fn open_files(dir: &TempDir) -> usize {
    open_in(dir).count()
}

/// Bytes that the file systems holds for them.
fn spool_blocks(dir: &TempDir) -> u64 {
    use std::os::unix::fs::MetadataExt;
    open_in(dir).map(|fd| fs::metadata(fd).unwrap().blocks() * 512).sum()
}
