//! Plots as SVG: horizontal bars in groups, each group to its own scale.

use std::fmt::Write;

/// One plot.
pub(crate) struct Bars {
    pub(crate) title: String,
    /// What is measured, and which way is better.
    pub(crate) note: String,
    pub(crate) groups: Vec<Group>,
}

/// Bars that are compared with each other: who, and how much.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) bars: Vec<Bar>,
}

pub(crate) struct Bar {
    pub(crate) who: String,
    pub(crate) value: f64,
    /// As the table has it.
    pub(crate) label: String,
}

const WIDTH: usize = 760;
/// Where the bars begin, and the longest of them.
const LEFT: usize = 250;
const LONGEST: usize = 400;
const BAR: usize = 22;
const STYLE: &str = "\
.page { fill: #ffffff } text { fill: #1f2328 } .soft { fill: #59636e }
.head { font-size: 18px; font-weight: 600 } .group { font-weight: 600 }
.ours { fill: #0969da } .theirs { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } text { fill: #f0f6fc } .soft { fill: #9198a1 }
.ours { fill: #4493f8 } .theirs { fill: #484f58 } }";

impl Bars {
    pub(crate) fn svg(&self) -> String {
        let (mut body, mut y) = (String::new(), 64);
        for group in &self.groups {
            if !group.name.is_empty() {
                y += 30;
                text(&mut body, 24, y, "group", &group.name);
            }
            let most = group.bars.iter().fold(0.0, |most: f64, bar| most.max(bar.value));
            for Bar { who, value, label } in &group.bars {
                y += BAR;
                let length =
                    (value / most.max(f64::MIN_POSITIVE) * LONGEST as f64).max(1.0) as usize;
                let class = if who == "bufproxy" { "ours" } else { "theirs" };
                text(&mut body, 24, y, "soft", who);
                // Writing to a String cannot fail.
                let _ = writeln!(
                    body,
                    "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length}\" height=\"14\" rx=\"2\"/>",
                    y - 12
                );
                text(&mut body, LEFT + length + 8, y, "", label);
            }
        }
        let height = y + 28;
        let (title, note) = (escaped(&self.title), escaped(&self.note));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" role=\"img\" font-family=\"system-ui, -apple-system, \
             'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"14\">\n<title>{title}</title>\n\
             <desc>{note}</desc>\n<style>\n{STYLE}\n</style>\n\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
             <text class=\"head\" x=\"24\" y=\"34\">{title}</text>\n\
             <text class=\"soft\" x=\"24\" y=\"56\">{note}</text>\n{body}</svg>\n"
        )
    }
}

fn text(out: &mut String, x: usize, y: usize, class: &str, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
