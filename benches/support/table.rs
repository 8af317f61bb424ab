//! Markdown tables.

/// A table with a left-aligned first column.
pub(crate) fn markdown(columns: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(columns);
    text.push_str("|---|");
    text.push_str(&"---:|".repeat(columns.len().saturating_sub(1)));
    text.push('\n');
    text.extend(rows.iter().map(|row| line(row)));
    text
}

/// The middle of the values, of which there is at least one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Three significant digits.
pub(crate) fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
