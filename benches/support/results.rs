//! What is kept of a run: each part's table as tab-separated values below `target/bench`; and what
//! `cargo bench -- plots` makes of it: the files, plots and tables of the documentation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plot::{Bar, Bars, Group};
use super::table::markdown;

/// All parts, in the order of the documentation.
pub(crate) const PARTS: [&str; 6] = ["cpu", "memory", "rescue", "capacity", "overload", "restart"];

/// Pages with tables between `<!-- PART: begin -->` and `<!-- PART: end -->`.
const PAGES: [&str; 2] = ["docs/capacity.md", "benches/README.md"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn measured(part: &str) -> PathBuf {
    repository().join("target/bench").join(format!("{part}.tsv"))
}

fn kept(part: &str) -> PathBuf {
    repository().join("docs/benchmarks").join(format!("{part}.tsv"))
}

/// Keeps the table of a part, with the paragraph that says where and when it was measured.
pub(crate) fn keep(part: &str, machine: &str, table: &str) -> io::Result<()> {
    let path = measured(part);
    fs::create_dir_all(path.parent().unwrap_or(repository()))?;
    fs::write(path, Results::of_markdown(machine, table).tsv())
}

/// Takes over what was measured since, draws the plots and writes the tables into the pages.
pub(crate) fn publish() -> io::Result<()> {
    for part in PARTS {
        if measured(part).exists() {
            fs::create_dir_all(repository().join("docs/benchmarks"))?;
            fs::copy(measured(part), kept(part))?;
        }
        let Ok(text) = fs::read_to_string(kept(part)) else {
            eprintln!("left out: {part}, of which nothing is kept: cargo bench -- {part}");
            continue;
        };
        let results = Results::of_tsv(&text);
        fs::write(kept(part).with_extension("svg"), plot(part, &results).svg())?;
        for page in PAGES {
            let page = repository().join(page);
            let text = fs::read_to_string(&page)?;
            fs::write(&page, replaced(&text, part, &results))?;
        }
        println!("docs/benchmarks/{part}.tsv, {part}.svg: {}", results.machine);
    }
    Ok(())
}

/// One table.
#[derive(Debug, Default, PartialEq)]
struct Results {
    machine: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Results {
    fn of_markdown(machine: &str, table: &str) -> Results {
        let cells = |line: &str| {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = table.lines().filter(|line| !line.starts_with("|---")).map(cells);
        let columns = lines.next().unwrap_or_default();
        Results { machine: machine.to_owned(), columns, rows: lines.collect() }
    }

    fn of_tsv(text: &str) -> Results {
        let machine = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let cells = |line: &str| line.split('\t').map(str::to_owned).collect();
        let mut lines = text.lines().filter(|line| !line.starts_with("# ")).map(cells);
        let columns = lines.next().unwrap_or_default();
        Results { machine: machine.unwrap_or_default().to_owned(), columns, rows: lines.collect() }
    }

    fn tsv(&self) -> String {
        let lines = [&self.columns].into_iter().chain(&self.rows).map(|cells| cells.join("\t"));
        format!("# {}\n{}\n", self.machine, lines.collect::<Vec<_>>().join("\n"))
    }

    /// The bars of one row, one for each of these columns that is there.
    fn row(&self, row: &[String], columns: &[&str]) -> Group {
        let cell = |name: &&str| {
            let at = self.columns.iter().position(|column| column == name)?;
            bar(name, row.get(at)?)
        };
        Group { name: row[0].clone(), bars: columns.iter().filter_map(cell).collect() }
    }

    /// The bars of one column, one for each of the rows; they have the names of the column `who`.
    fn column(&self, name: &str, group: &str, who: usize, rows: &[&Vec<String>]) -> Group {
        let at = self.columns.iter().position(|column| column == name);
        let bar = |row: &&Vec<String>| bar(row.get(who)?, row.get(at?)?);
        Group { name: group.to_owned(), bars: rows.iter().filter_map(bar).collect() }
    }
}

/// `16.7 (0.89)` is as long as 16.7; `–` is none.
fn bar(who: &str, cell: &str) -> Option<Bar> {
    let value = cell.split(' ').next()?.parse().ok()?;
    Some(Bar { who: who.to_owned(), value, label: cell.to_owned() })
}

const OTHERS: [&str; 3] = ["bufproxy", "nginx", "HAProxy"];

fn plot(part: &str, results: &Results) -> Bars {
    let rows = || results.rows.iter();
    let (title, note, groups) = match part {
        "cpu" => (
            "CPU time per request, µs (less is better)",
            "The app closes after each answer, as gunicorn's sync worker does. In brackets: bufproxy's part of it.",
            rows()
                .filter(|row| row[0].ends_with("connection per request"))
                .map(|row| results.row(row, &OTHERS))
                .collect(),
        ),
        "memory" => (
            "Memory of the proxy per client, KiB",
            "Less is better. What the kernel holds for stalled readers counts against a container, too.",
            rows()
                .zip(rows().skip(1))
                .flat_map(|(row, next)| {
                    let own = (!row[0].starts_with('–')).then(|| results.row(row, &OTHERS));
                    let stalled = row[0].contains("readers");
                    let queued = stalled.then(|| Group {
                        name: format!("{}, in the kernel", row[0]),
                        ..results.row(next, &OTHERS)
                    });
                    own.into_iter().chain(queued)
                })
                .collect(),
        ),
        "rescue" => (
            "Four gunicorn workers and 200 slow clients",
            "What fast clients keep of the throughput that they have alone. More is better.",
            vec![results.column("kept", "", 0, &rows().collect::<Vec<_>>())],
        ),
        "capacity" => {
            let all: Vec<_> = rows().collect();
            (
                "5,000 stalled clients",
                "What eight fast ones keep of their throughput, and the most memory of the proxy.",
                vec![
                    results.column("kept", "kept (more is better)", 0, &all),
                    results.column("most memory, MiB", "memory, MiB (less is better)", 0, &all),
                ],
            )
        }
        "overload" => {
            // Those that all proxies did.
            let mut cases: Vec<&String> =
                rows().map(|row| &row[0]).filter(|case| !case.starts_with("patience")).collect();
            cases.dedup();
            let group = |case: &&String| {
                let rows: Vec<_> = rows().filter(|row| row[0] == **case).collect();
                results.column("answered in time, of capacity", case, 2, &rows)
            };
            (
                "Overload: more requests than four workers can do",
                "Answered before the client leaves (1 s), of what the workers can do. More is better.",
                cases.iter().map(group).collect(),
            )
        }
        _ => (
            "The app stops for 1 s and comes back, 300 requests a second",
            "Requests that failed. Less is better.",
            vec![results.column("failed", "", 0, &rows().collect::<Vec<_>>())],
        ),
    };
    Bars { title: title.to_owned(), note: note.to_owned(), groups }
}

/// The page with this table between the part's marks, if it has them.
fn replaced(page: &str, part: &str, results: &Results) -> String {
    let (begin, end) = (format!("<!-- {part}: begin -->\n"), format!("<!-- {part}: end -->"));
    let Some((before, rest)) = page.split_once(&begin) else { return page.to_owned() };
    let Some((_, after)) = rest.split_once(&end) else { return page.to_owned() };
    let table = markdown(&results.columns, &results.rows);
    format!("{before}{begin}{}\n\n{table}{end}{after}", results.machine)
}
