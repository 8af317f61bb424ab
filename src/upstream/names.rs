//! What the names of upstreams stand for. `getaddrinfo` blocks for as long as a resolver likes, so it
//! has a thread of its own (invariant 9), which begins with the first question: the blocking pools
//! are for the disk.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::queue::Index;

/// What a resolver has said is used this long before it is asked again.
const HOLDS: Duration = Duration::from_secs(30);

type Resolver = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;
type Answer = Result<Vec<SocketAddr>, String>;

/// Names by upstream.
pub(super) struct Names {
    resolver: Arc<Resolver>,
    known: Arc<Mutex<HashMap<Index, Known>>>,
    ask: OnceLock<Sender<Question>>,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// When it was last asked for.
    since: Instant,
    /// None of the addresses could be connected to.
    doubted: bool,
}

struct Question {
    upstream: Index,
    host: String,
    port: u16,
    asked: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Default for Names {
    fn default() -> Names {
        Names::new(|host, port| (host, port).to_socket_addrs().map(Vec::from_iter))
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("known", &*lock(&self.known)).finish_non_exhaustive()
    }
}

fn lock(known: &Mutex<HashMap<Index, Known>>) -> MutexGuard<'_, HashMap<Index, Known>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Names {
    fn new(
        resolver: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Names {
        Names { resolver: Arc::new(resolver), known: Arc::default(), ask: OnceLock::new() }
    }

    /// All addresses of an upstream's name. Nobody waits for a resolver where an answer is known
    /// that has not failed; one that is old is asked for again meanwhile.
    pub(super) async fn addresses(
        &self,
        upstream: Index,
        host: &str,
        port: u16,
    ) -> io::Result<Vec<SocketAddr>> {
        let (known, is_old) = {
            let mut all = lock(&self.known);
            let known = all.get_mut(&upstream);
            let is_old = known.as_ref().is_none_or(|known| known.since.elapsed() >= HOLDS);
            let known = known.map(|known| {
                if is_old {
                    known.since = Instant::now();
                }
                known.clone()
            });
            (known, is_old)
        };
        let (answer, asked) = oneshot::channel();
        let question =
            || Question { upstream, host: host.into(), port, asked: Instant::now(), answer };
        match known {
            Some(known) if !known.doubted => {
                if is_old {
                    self.ask(question())?;
                }
                Ok(known.addresses)
            }
            known => {
                self.ask(question())?;
                match (asked.await, known) {
                    (Ok(Ok(addresses)), _) => Ok(addresses),
                    // A resolver that fails takes nothing away that may still be right.
                    (_, Some(known)) => Ok(known.addresses),
                    // Where the app is a container, its name comes with it.
                    (Ok(Err(e)), None) => Err(io::Error::new(io::ErrorKind::NotFound, e)),
                    (Err(_), None) => Err(io::ErrorKind::NotFound.into()),
                }
            }
        }
    }

    /// None of its addresses could be connected to: the next one who asks waits for the resolver.
    pub(super) fn doubt(&self, upstream: Index) {
        if let Some(known) = lock(&self.known).get_mut(&upstream) {
            known.doubted = true;
        }
    }

    fn ask(&self, question: Question) -> io::Result<()> {
        let ask = match self.ask.get() {
            Some(ask) => ask,
            None => {
                let (ask, questions) = mpsc::channel();
                let (resolver, known) = (self.resolver.clone(), self.known.clone());
                thread::Builder::new()
                    .name("dns".into())
                    .spawn(move || answer_all(&questions, &*resolver, &known))?;
                // Of two that begin at once, one ends with its sender.
                self.ask.get_or_init(|| ask)
            }
        };
        // The thread ends after its last sender: the question is taken.
        ask.send(question).map_err(|_| io::ErrorKind::NotFound.into())
    }
}

fn answer_all(
    questions: &Receiver<Question>,
    resolver: &Resolver,
    known: &Mutex<HashMap<Index, Known>>,
) {
    // Many ask at once while one lookup runs: its answer is for all of them.
    let mut last: HashMap<Index, (Instant, Answer)> = HashMap::new();
    for Question { upstream, host, port, asked, answer } in questions {
        if last.get(&upstream).is_none_or(|(at, _)| *at < asked) {
            let result = resolver(&host, port).map_err(|e| e.to_string());
            let now = Instant::now();
            if let Ok(addresses) = &result {
                let found = Known { addresses: addresses.clone(), since: now, doubted: false };
                lock(known).insert(upstream, found);
            }
            last.insert(upstream, (now, result));
        }
        if let Some((_, result)) = last.get(&upstream) {
            // Whoever asked may have left.
            let _ = answer.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    const fn address(port: u16) -> SocketAddr {
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    /// A resolver whose answers the test gives one by one, and how often it was asked.
    fn scripted() -> (Names, Sender<io::Result<Vec<SocketAddr>>>, Arc<AtomicUsize>) {
        let (give, answers) = mpsc::channel();
        let (answers, count) = (Mutex::new(answers), Arc::new(AtomicUsize::new(0)));
        let asked = count.clone();
        let names = Names::new(move |_, _| {
            asked.fetch_add(1, SeqCst);
            answers.lock().unwrap().recv().unwrap()
        });
        (names, give, count)
    }

    fn make_old(names: &Names) {
        let before = Instant::now().checked_sub(HOLDS).unwrap();
        lock(&names.known).get_mut(&0).unwrap().since = before;
    }

    fn ask(names: &Names) -> Option<Vec<SocketAddr>> {
        block_on(names.addresses(0, "app", 80)).ok()
    }

    #[test]
    fn a_name_is_asked_for_once_while_it_holds() {
        let (names, give, count) = scripted();
        give.send(Ok(vec![address(1)])).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&names), Some(vec![address(1)]));
        }
        assert_eq!(count.load(SeqCst), 1);
    }

    #[test]
    fn nobody_waits_for_a_resolver_that_hangs_where_an_answer_is_known() {
        let (names, give, _) = scripted();
        give.send(Ok(vec![address(1)])).unwrap();
        ask(&names);
        make_old(&names);
        // It is asked again, and does not answer.
        for _ in 0..3 {
            assert_eq!(ask(&names), Some(vec![address(1)]));
        }
        // Until now.
        give.send(Ok(vec![address(2)])).unwrap();
        while ask(&names) != Some(vec![address(2)]) {
            thread::yield_now();
        }
    }

    #[test]
    fn an_answer_that_fails_is_asked_for_again_and_kept_if_there_is_no_other() {
        let (names, give, _) = scripted();
        give.send(Ok(vec![address(1)])).unwrap();
        ask(&names);
        names.doubt(0);
        give.send(Err(io::ErrorKind::TimedOut.into())).unwrap();
        assert_eq!(ask(&names), Some(vec![address(1)]));
        give.send(Ok(vec![address(2)])).unwrap();
        assert_eq!(ask(&names), Some(vec![address(2)]));
    }

    #[test]
    fn a_name_that_nobody_knows_is_an_app_that_is_not_there() {
        let (names, give, _) = scripted();
        give.send(Err(io::ErrorKind::Other.into())).unwrap();
        let error = block_on(names.addresses(0, "app", 80)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_lookup_answers_all_who_ask_meanwhile() {
        let (names, give, count) = scripted();
        block_on(async {
            let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
            let mut all = [(); 5].map(|()| Box::pin(names.addresses(0, "app", 80)));
            // All have asked before the first answer.
            for one in &mut all {
                assert!(one.as_mut().poll(cx).is_pending());
            }
            give.send(Ok(vec![address(1)])).unwrap();
            for one in all {
                assert_eq!(one.await.unwrap(), [address(1)]);
            }
        });
        assert_eq!(count.load(SeqCst), 1);
    }
}
